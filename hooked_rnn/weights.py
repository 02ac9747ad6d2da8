"""Weights as safetensors, with a digest that shows when a file was cut short or altered."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hooked_rnn.errors import WeightsError
from hooked_rnn.files import write_atomically

DIGEST = "sha256"
"""Key of the digest in the file's metadata."""


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, atomically."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {DIGEST: digest(kept)}  # one key, for safetensors writes several in any order
    content = safetensors.torch.save(kept, metadata)  # written by Python, whose errors say what went wrong
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Nothing is unpickled.

    A file that another program wrote has no digest; it is read as it stands.

    Raises:
        WeightsError: the file is missing, cut short, altered, or no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing: expected a safetensors file") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors (cut short or altered?): {error}") from error
    if metadata.get(DIGEST, digest(tensors)) != digest(tensors):
        raise WeightsError(f"{path} was altered: its weights do not have the {DIGEST} that was saved with them")
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
