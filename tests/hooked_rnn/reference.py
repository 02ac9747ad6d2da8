"""The recurrent network written out by hand, one step after another, in plain torch.

What the tests hold HookedRNN against. It knows nothing of hook points: an edit is a function on the
[batch, d] value of one place, applied where that value is made. Every value keeps its graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Place = tuple[str, int | None, int]
"""Kind (see :data:`LOOP_KINDS` and :func:`points`), layer (None for the two outside the layers), step."""

Edits = Mapping[Place, Callable[[Tensor], Tensor]]

State = Tensor | tuple[Tensor, Tensor]
"""[layer, batch, d_hidden]; of an LSTM a pair of such, hidden and cell."""

Visit = Callable[[str, Tensor], Tensor]
"""What goes on of a value of a kind."""

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}

LOOP_KINDS = {
    "rnn": ("recurrent", "preact", "hidden"),
    "gru": (
        "recurrent",
        "carry",
        "reset_preact",
        "reset",
        "update_preact",
        "update",
        "candidate_preact",
        "candidate",
        "hidden",
    ),
    "lstm": (
        "recurrent",
        "carry",
        "input_gate_preact",
        "input_gate",
        "forget_gate_preact",
        "forget_gate",
        "candidate_preact",
        "candidate",
        "output_gate_preact",
        "output_gate",
        "cell",
        "hidden",
    ),
}
"""For each cell, the kinds inside the loop, in the order in which they are made."""


@dataclass(frozen=True)
class Unrolled:
    """Every value of one pass."""

    values: dict[Place, Tensor]
    """What left each place, [batch, d]: after the edit, if there was one."""
    logits: Tensor
    """[batch, pos, d_vocab_out]"""
    state: State
    """After the last step."""

    def at(self, kind: str, layer: int | None) -> list[Tensor]:
        """The values of one kind and layer, in time order."""
        n_steps = self.logits.shape[1]
        return [self.values[kind, layer, t] for t in range(n_steps)]

    def stacked(self, kind: str, layer: int | None) -> Tensor:
        """The same, [batch, pos, d]."""
        return torch.stack(self.at(kind, layer), dim=1)

    def gradient(self, of: Tensor, kind: str, layer: int | None) -> Tensor:
        """The total gradient of a scalar at each position, [batch, pos, d]; zeros where it does not depend on one."""
        values = self.at(kind, layer)
        grads = torch.autograd.grad(of, values, retain_graph=True, allow_unused=True)
        return torch.stack([torch.zeros_like(v) if g is None else g for v, g in zip(values, grads, strict=True)], dim=1)


def unroll(
    weights: Mapping[str, Tensor],
    inputs: Tensor,
    *,
    n_layers: int,
    act_fn: str = "tanh",
    cell: str = "rnn",
    edits: Edits | None = None,
    initial_state: State | None = None,
) -> Unrolled:
    """Run the network.

    Args:
        weights: by parameter name; a bias that is missing is none.
        inputs: tokens [batch, pos], or signals [batch, pos, d_in].
        n_layers, cell, act_fn: the architecture.
        edits: which values to replace, and by what function of them.
        initial_state: None for zeros.
    """
    batch, n_steps = inputs.shape[:2]
    values: dict[Place, Tensor] = {}
    tracked = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights.values())

    def visit(layer: int | None, step: int, kind: str, value: Tensor) -> Tensor:
        value = value.clone()  # a node of its own in the graph, with a gradient of its own
        if edits is not None and (kind, layer, step) in edits:
            value = edits[kind, layer, step](value).clone()
        if tracked and not value.requires_grad:  # a constant, such as the state before the first step
            value.requires_grad_()
        values[kind, layer, step] = value
        return value

    def affine(x: Tensor, weight: str, bias: str) -> Tensor:
        return x @ weights[weight] + weights[bias] if bias in weights else x @ weights[weight]

    def embed(x: Tensor) -> Tensor:
        return affine(x, "embed.W_E", "embed.b_E") if x.is_floating_point() else weights["embed.W_E"][x]

    hidden, cells = _layers_of(initial_state, n_layers, batch, weights["unembed.W_U"])
    logits = []
    for t in range(n_steps):
        x = visit(None, t, "embed", embed(inputs[:, t]))
        for layer in range(n_layers):
            see, block = partial(visit, layer, t), f"blocks.{layer}"
            from_below = see("input", affine(x, f"{block}.W_ih", f"{block}.b_ih"))
            recurrent = see("recurrent", affine(hidden[layer], f"{block}.W_hh", f"{block}.b_hh"))
            if cell == "rnn":
                hidden[layer] = _rnn(from_below, recurrent, ACTIVATIONS[act_fn], see)
            elif cell == "gru":
                hidden[layer] = _gru(from_below, recurrent, hidden[layer], see)
            else:
                hidden[layer], cells[layer] = _lstm(from_below, recurrent, cells[layer], see)
            x = see("out", hidden[layer])
        logits.append(visit(None, t, "logits", affine(x, "unembed.W_U", "unembed.b_U")))
    state = torch.stack(hidden)
    return Unrolled(values, torch.stack(logits, dim=1), (state, torch.stack(cells)) if cell == "lstm" else state)


def points(n_layers: int, cell: str = "rnn") -> list[tuple[str, int | None]]:
    """Every kind and layer of a network."""
    kinds = ("input", *LOOP_KINDS[cell], "out")
    return [("embed", None), *((kind, layer) for layer in range(n_layers) for kind in kinds), ("logits", None)]


def _rnn(x: Tensor, recurrent: Tensor, act: Callable[[Tensor], Tensor], see: Visit) -> Tensor:
    return see("hidden", act(see("preact", x + recurrent)))


def _gru(x: Tensor, recurrent: Tensor, before: Tensor, see: Visit) -> Tensor:
    """Cho et al. 2014, with the reset gate after the product, as the equations of torch.nn.GRU have it."""
    before = see("carry", before)
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, dim=1), recurrent.chunk(3, dim=1)
    r = see("reset", torch.sigmoid(see("reset_preact", x_r + h_r)))
    z = see("update", torch.sigmoid(see("update_preact", x_z + h_z)))
    n = see("candidate", torch.tanh(see("candidate_preact", x_n + r * h_n)))
    return see("hidden", (1 - z) * n + z * before)


def _lstm(x: Tensor, recurrent: Tensor, before: Tensor, see: Visit) -> tuple[Tensor, Tensor]:
    """Hochreiter and Schmidhuber 1997 with forget gates, as the equations of torch.nn.LSTM have it."""
    before = see("carry", before)
    x_i, x_f, x_g, x_o = (x + recurrent).chunk(4, dim=1)
    i = see("input_gate", torch.sigmoid(see("input_gate_preact", x_i)))
    f = see("forget_gate", torch.sigmoid(see("forget_gate_preact", x_f)))
    g = see("candidate", torch.tanh(see("candidate_preact", x_g)))
    o = see("output_gate", torch.sigmoid(see("output_gate_preact", x_o)))
    cell = see("cell", f * before + i * g)
    return see("hidden", o * torch.tanh(cell)), cell


def _layers_of(state: State | None, n_layers: int, batch: int, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The hidden and the cell state of each layer."""
    zeros = torch.zeros(n_layers, batch, len(weight), dtype=weight.dtype)
    hidden, cells = state if isinstance(state, tuple) else (state, None)
    return list(zeros if hidden is None else hidden), list(zeros if cells is None else cells)
