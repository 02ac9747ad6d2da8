"""The recurrent network written out by hand, one step after another, in plain torch.

What the tests hold HookedRNN against. It knows nothing of hook points: an edit is a function on the
[batch, d] value of one place, applied where that value is made. Every value keeps its graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Place = tuple[str, int | None, int]
"""Kind ("embed", "input", "recurrent", "preact", "hidden", "out" or "logits"), layer (None for the two outside), step."""

Edits = Mapping[Place, Callable[[Tensor], Tensor]]

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class Unrolled:
    """Every value of one pass."""

    values: dict[Place, Tensor]
    """What left each place, [batch, d]: after the edit, if there was one."""
    logits: Tensor
    """[batch, pos, d_vocab_out]"""
    state: Tensor
    """After the last step, [layer, batch, d_hidden]."""

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
    tokens: Tensor,
    *,
    n_layers: int,
    act_fn: str,
    edits: Edits | None = None,
    initial_state: Tensor | None = None,
) -> Unrolled:
    """Run the network.

    Args:
        weights: by parameter name; a bias that is missing is none.
        tokens: [batch, pos].
        n_layers, act_fn: the architecture.
        edits: which values to replace, and by what function of them.
        initial_state: [layer, batch, d_hidden]; None for zeros.
    """
    batch, n_steps = tokens.shape
    values: dict[Place, Tensor] = {}

    def visit(kind: str, layer: int | None, step: int, value: Tensor) -> Tensor:
        value = value.clone()  # a node of its own in the graph, with a gradient of its own
        if edits is not None and (kind, layer, step) in edits:
            value = edits[kind, layer, step](value).clone()
        values[kind, layer, step] = value
        return value

    def affine(x: Tensor, weight: str, bias: str) -> Tensor:
        return x @ weights[weight] + weights[bias] if bias in weights else x @ weights[weight]

    d_hidden = weights["unembed.W_U"].shape[0]
    state = torch.zeros(n_layers, batch, d_hidden, dtype=weights["unembed.W_U"].dtype)
    state = list(state if initial_state is None else initial_state)
    logits = []
    for t in range(n_steps):
        x = visit("embed", None, t, weights["embed.W_E"][tokens[:, t]])
        for layer in range(n_layers):
            block = f"blocks.{layer}"
            from_below = visit("input", layer, t, affine(x, f"{block}.W_ih", f"{block}.b_ih"))
            recurrent = visit("recurrent", layer, t, affine(state[layer], f"{block}.W_hh", f"{block}.b_hh"))
            preact = visit("preact", layer, t, from_below + recurrent)
            state[layer] = visit("hidden", layer, t, ACTIVATIONS[act_fn](preact))
            x = visit("out", layer, t, state[layer])
        logits.append(visit("logits", None, t, affine(x, "unembed.W_U", "unembed.b_U")))
    return Unrolled(values, torch.stack(logits, dim=1), torch.stack(state))


def points(n_layers: int) -> list[tuple[str, int | None]]:
    """Every kind and layer of a network."""
    kinds = ("input", "recurrent", "preact", "hidden", "out")
    return [("embed", None), *((kind, layer) for layer in range(n_layers) for kind in kinds), ("logits", None)]
