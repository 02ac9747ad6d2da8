"""What is in a weights file, read without running anything that is in it."""

import zipfile
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from hooked_rnn.errors import WeightsError, choices
from hooked_rnn.weights import load_weights

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz")
"""What the names of weights files end in; what ends so is never taken for a model's name."""


class StoredConfig:
    """Stands in for a configuration class of TransformerLens when a file is read: it holds the values and has no code."""


_HARMLESS: list[Any] = [
    (StoredConfig, "transformer_lens.HookedTransformerConfig.HookedTransformerConfig"),
    (StoredConfig, "transformer_lens.config.HookedTransformerConfig.HookedTransformerConfig"),
    (StoredConfig, "transformer_lens.config.hooked_transformer_config.HookedTransformerConfig"),
    # A HookedTransformerConfig holds its initializer_range as a NumPy scalar.
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]
"""What may stand in a file beside tensors, numbers, strings, lists and dictionaries."""


def read_file(path: Path) -> Any:
    """The content of a file of ``torch.save``, read with ``weights_only=True``, or the tensors of a safetensors file.

    Raises:
        WeightsError: it cannot be read, or holds objects that only code from the file could make.
    """
    if path.suffix == SAFETENSORS:
        return load_weights(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(_why_not(path, error)) from error


def plain_values(config: Any) -> dict[str, Any]:
    """A configuration that stood in a file, as a dictionary; empty where it is of another kind."""
    if isinstance(config, dict):
        return {str(key): value for key, value in config.items()}
    return dict(vars(config)) if isinstance(config, StoredConfig) else {}


def _why_not(path: Path, error: Exception) -> str:
    objects = _objects(path)
    if objects:
        return (
            f"{path} holds objects of {choices(objects)}, which are not made, since making them would run code: expected tensors, "
            "numbers, strings, lists and dictionaries alone, as torch.save(model.state_dict(), path) writes"
        )
    reason = str(error).strip().split("\n")[0]
    return f"{path} cannot be read as a file of torch.save or safetensors (cut short, or of another kind?): {reason}"


def _objects(path: Path) -> list[str]:
    """The classes and functions that a file asks for and that may not be made; none where that cannot be told."""
    if not zipfile.is_zipfile(path):
        return []
    # Whatever a damaged file leads to: that it is damaged is said anyway.
    with suppress(Exception), torch.serialization.safe_globals(_HARMLESS):
        return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    return []
