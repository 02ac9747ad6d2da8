"""The checkpoints of a run: where they are, and which of them can be read."""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from hooked_rnn.errors import HookedRNNWarning, WeightsError
from hooked_rnn.weights import load_weights, save_weights

CHECKPOINTS = "checkpoints"
"""The folder of a run directory that they are in."""
TRAINING = "training."
"""What the names of tensors begin with that are no weights, such as "training.step"."""

_NAME = re.compile(r"step-(\d{6,})\.safetensors")


def save_checkpoint(directory: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the checkpoint of a step, atomically."""
    save_weights(directory / CHECKPOINTS / f"step-{step:06d}.safetensors", tensors)


def checkpoint_paths(directory: Path) -> list[Path]:
    """The files of a run directory's checkpoints, the newest first."""
    steps = {path: _NAME.fullmatch(path.name) for path in (directory / CHECKPOINTS).glob("step-*.safetensors")}
    named = [(int(match[1]), path) for path, match in steps.items() if match]
    return [path for _, path in sorted(named, reverse=True)]


def load_checkpoints(directory: Path) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """The checkpoints that can be read, the newest first; a warning names each that was cut short or altered."""
    for path in checkpoint_paths(directory):
        try:
            tensors = load_weights(path)
        except WeightsError as error:
            refuse(error)
        else:
            yield path, tensors


def refuse(error: Exception) -> None:
    """Say that a checkpoint is not used."""
    warnings.warn(f"{error}; the checkpoint before it is used", HookedRNNWarning, stacklevel=3)


def weights_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights alone."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING)}
