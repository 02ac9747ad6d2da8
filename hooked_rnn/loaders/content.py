"""Where in a file the weights are: bare, wrapped beside losses and configuration, or one of many over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_rnn.errors import UnknownFormatError, WeightsError
from hooked_rnn.loaders.files import plain_values
from hooked_rnn.loaders.formats import StateDict
from hooked_rnn.loaders.hooked_transformer import BUFFERS

WRAPPERS = ("model", "state_dict", "model_state_dict")
"""Keys that a state dict is found under."""
SERIES = {"state_dicts": "epochs", "checkpoints": "checkpoint_epochs"}
"""Keys that a list of state dicts is found under, and those that their epochs are: the paper's and TransformerLens's demo's."""
CONFIGS = ("config", "cfg")
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def weights_in(content: Any, epoch: int | None, source: str, notes: list[str]) -> StateDict:
    """The weights in a file's content, as float32, or float64 where they are.

    Args:
        content: of the file.
        epoch: which, where there is a list of them; None for the model's own, else the last.
        source: what to call the file in an error.
        notes: what a user should know is added.

    Raises:
        UnknownFormatError: no weights are found.
        WeightsError: no such epoch, or a weight that is not finite.
    """
    found = _state_dict(content, epoch, source, notes)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    for name, tensor in found.items():
        if not name.endswith(BUFFERS) and not bool(torch.isfinite(tensor).all()):
            n = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(f"{source}: {n} of the {tensor.numel()} numbers of {name} are NaN or infinite")
    double = any(tensor.dtype == torch.float64 for tensor in found.values())
    return {name: tensor.detach().to(torch.float64 if double else torch.float32) for name, tensor in found.items()}


def config_in(content: Any) -> dict[str, Any]:
    """The configuration that stands beside the weights; empty where there is none."""
    if _is_state_dict(content) or not isinstance(content, Mapping):
        return {}
    return next((plain_values(content[key]) for key in CONFIGS if key in content), {})


def _state_dict(content: Any, epoch: int | None, source: str, notes: list[str]) -> dict[str, Tensor]:
    if _is_state_dict(content):
        if epoch is not None:
            raise WeightsError(f"{source} holds one state dict: expected no epoch, not {epoch}")
        return dict(content)
    if isinstance(content, Mapping):
        series = next((key for key in SERIES if _is_series(content.get(key))), None)
        single = next((key for key in WRAPPERS if _is_state_dict(content.get(key))), None)
        if series is not None and (epoch is not None or single is None):
            return _of_series(content[series], content.get(SERIES[series]), epoch, source, notes)
        if single is not None:
            if epoch is not None and content.get("epoch") != epoch:
                raise WeightsError(
                    f"{source} holds the state dict of epoch {content.get('epoch')} alone: expected no epoch, not {epoch}"
                )
            return dict(content[single])
    raise UnknownFormatError(
        f"{source} holds no weights: {found_in(content)}; expected a dictionary of tensors by name, bare or under one of {', '.join([*WRAPPERS, *SERIES])}"
    )


def found_in(content: Any) -> str:
    """In words, what a file holds."""
    if not isinstance(content, Mapping):
        return f"what was found is of type {type(content).__name__}"
    described = [f"{key} {_described(value)}" for key, value in content.items()]
    more = f" and {len(described) - 20} more" if len(described) > 20 else ""
    return f"what was found is {', '.join(described[:20]) or 'empty'}{more}"


def _of_series(
    states: Sequence[Any], epochs: Any, epoch: int | None, source: str, notes: list[str]
) -> dict[str, Tensor]:
    known = [int(number) for number in epochs] if isinstance(epochs, Sequence) and len(epochs) == len(states) else None
    if epoch is None:
        notes.append(f"the last of {len(states)} state dicts{'' if known is None else f', of epoch {known[-1]}'}")
        return dict(states[-1])
    if known is None or epoch not in known:
        there = "without their epochs" if known is None else f"of epochs {known[0]} to {known[-1]}"
        raise WeightsError(
            f"{source} holds {len(states)} state dicts {there}: expected no epoch, or one of these, not {epoch}"
        )
    return dict(states[known.index(epoch)])


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(list(value.shape))
    return f"({type(value).__name__}{f' of {len(value)}' if isinstance(value, (Mapping, list, tuple)) else ''})"


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _is_series(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(_is_state_dict(item) for item in value)
