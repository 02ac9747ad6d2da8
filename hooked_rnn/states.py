"""The states of a whole network, as its callers see them: one tensor for each part of a cell's state."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_rnn.config import CELLS, HookedRNNConfig
from hooked_rnn.errors import StateError
from hooked_rnn.recurrent import State

NetworkState = Float[Tensor, "layer batch d_hidden"] | tuple[Float[Tensor, "layer batch d_hidden"], ...]
"""The hidden state of every layer; where a cell keeps more, as an LSTM does, a tuple: (hidden, cell)."""


def by_layer(state: NetworkState | None, cfg: HookedRNNConfig, batch: int) -> list[State] | list[None]:
    """The state of each layer.

    Raises:
        StateError: another shape, dtype, device or number of tensors than the model's states have.
    """
    if state is None:
        return [None] * cfg.n_layers
    names = CELLS[cfg.cell].state_names
    parts = tuple(state) if isinstance(state, tuple | list) else (state,)
    if len(parts) != len(names):
        given = f"{type(state).__name__} of {len(parts)}" if isinstance(state, tuple | list) else type(state).__name__
        raise StateError(f"initial_state is {given}: expected {_expected(names)}, as the cell is {cfg.cell!r}")
    for name, part in zip(names, parts, strict=True):
        _check(name if len(names) > 1 else "initial_state", part, cfg, batch)
    return list(zip(*parts, strict=True))


def of_network(states: Sequence[State]) -> NetworkState:
    """The network's state from that of each layer."""
    parts = tuple(torch.stack(part) for part in zip(*states, strict=True))
    return parts[0] if len(parts) == 1 else parts


def _check(name: str, part: object, cfg: HookedRNNConfig, batch: int) -> None:
    what = name if name == "initial_state" else f"the {name} state of initial_state"
    if not isinstance(part, Tensor):
        raise StateError(f"{what} is {type(part).__name__}: expected a tensor [layer, batch, d_hidden]")
    expected = (cfg.n_layers, batch, cfg.d_hidden)
    if tuple(part.shape) != expected:
        raise StateError(f"{what} has shape {list(part.shape)}: expected {list(expected)}, [layer, batch, d_hidden]")
    if (part.dtype, part.device) != (cfg.dtype, cfg.device):
        raise StateError(f"{what} is {part.dtype} on {part.device}: expected {cfg.dtype} on {cfg.device}, as the model")


def _expected(names: Sequence[str]) -> str:
    return "a tensor" if len(names) == 1 else f"a tuple of {len(names)}, ({', '.join(names)})"
