"""Where a model's two files are, and how they are read and written.

A model's directory holds ``config.json`` and ``model.safetensors``, as huggingface_hub's mixin has it.
The embedded models are such directories inside the package.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from hooked_rnn.checkpoints import load_checkpoints, weights_in
from hooked_rnn.errors import (
    ConfigError,
    HookedRNNWarning,
    RunDirectoryError,
    UnknownModelError,
    WeightsError,
    choices,
    nearest,
)
from hooked_rnn.files import write_text_atomically
from hooked_rnn.model_config import Config, ModelConfig
from hooked_rnn.weights import load_weights, save_weights

EMBEDDED = Path(__file__).parent / "models"
CONFIG = constants.CONFIG_NAME
WEIGHTS = constants.SAFETENSORS_SINGLE_FILE
TRAINING = "train.json"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def embedded_names() -> list[str]:
    """Names of the models that are part of the package."""
    return sorted(path.parent.name for path in EMBEDDED.glob(f"*/{CONFIG}"))


def local_directory(name: str | Path) -> Path | None:
    """The directory that a name stands for, or None where it can only be a repository on the Hub.

    Raises:
        UnknownModelError: no embedded model, no directory, and no Hub id either.
    """
    if not isinstance(name, (str, Path)) or not str(name):
        raise UnknownModelError(f"no model {name!r}: expected a name, a directory, or a Hub id 'owner/name'")
    if str(name) in embedded_names():
        return EMBEDDED / str(name)
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, str) and _HUB_ID.fullmatch(name) and name[0] != ".":
        return None
    raise UnknownModelError(
        f"no model {str(name)!r}: expected an embedded one ({nearest(str(name), embedded_names())}), "
        "a run directory, or a Hub id 'owner/name'"
    )


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the Hub into one clear error."""
    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, (RunDirectoryError, WeightsError)):
            raise
        raise UnknownModelError(
            f"no model {name!r}: it is no embedded one ({choices(embedded_names())}) and no directory here, "
            f"and from the Hub it could not be had: {error}"
        ) from error


def download(repo_id: str, **options: Any) -> Path:
    """Fetch a model's two files from the Hub; the directory that they are in."""
    paths = [Path(hf_hub_download(repo_id, filename, **options)) for filename in (CONFIG, WEIGHTS)]
    return paths[0].parent


def read(directory: Path, from_json: Callable[[str], Config]) -> tuple[Config, dict[str, Tensor], Path]:
    """The configuration and the weights in a directory, and the weights' file.

    A run that has not finished has no weights of its own yet: then those of its last checkpoint, with a warning.

    Raises:
        RunDirectoryError: one of the two files is not there.
        ConfigError, WeightsError: it is there, and wrong.
    """
    cfg = read_config(directory, from_json)
    path = directory / WEIGHTS
    if path.is_file():
        return cfg, load_weights(path), path
    for path, tensors in load_checkpoints(directory):
        message = f"{directory} has not finished: these are the weights of {path.name}"
        warnings.warn(message, HookedRNNWarning, stacklevel=4)
        return cfg, weights_in(tensors), path
    raise RunDirectoryError(f"{directory} is no run: it has no {WEIGHTS} and no checkpoint that can be read")


def read_config(directory: Path, from_json: Callable[[str], Config]) -> Config:
    """The configuration in a directory.

    Args:
        directory: a model's.
        from_json: that of the configuration's class, such as ``HookedRNNConfig.from_json``; of whatever architecture,
            ``hooked_rnn.architectures.config_from_json``.

    Raises:
        RunDirectoryError: there is none.
        ConfigError: it is wrong.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise RunDirectoryError(f"{directory} is no run: it has no {CONFIG}; expected {CONFIG} and {WEIGHTS}")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def read_training(directory: Path) -> dict[str, Any] | None:
    """What ``train.json`` says of how a model came to be; None where there is none.

    Raises:
        RunDirectoryError: the file is there, and no JSON object.
    """
    path = directory / TRAINING
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise RunDirectoryError(f"{path} holds a JSON {type(record).__name__}: expected an object")
    return record


def write(directory: Path, cfg: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the two files, each atomically."""
    write_text_atomically(directory / CONFIG, cfg.to_json())
    save_weights(directory / WEIGHTS, weights)


def check_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], directory: Path) -> None:
    """Raise WeightsError unless the weights have exactly the expected names and shapes."""
    for problem, names in (
        ("lacks", expected.keys() - weights.keys()),
        ("has unknown", weights.keys() - expected.keys()),
    ):
        if names:
            raise WeightsError(
                f"{directory / WEIGHTS} {problem} {', '.join(sorted(names))}: expected {', '.join(sorted(expected))}"
            )
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise WeightsError(
                f"{directory / WEIGHTS}: {name} has shape {list(weights[name].shape)}, expected {list(tensor.shape)} by {CONFIG}"
            )
