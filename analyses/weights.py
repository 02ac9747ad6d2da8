"""Every weight of a model that has an axis of numbers, as tokens or as answers, directly or by composition."""

import functools
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from hooked_rnn import HookedMLP, HookedRNN


def number_weights(adder: Adder) -> dict[str, Float[Tensor, "p _d"]]:
    """Each such weight by name, turned so that its rows are the numbers 0 to p - 1; "W_E" first.

    What reads the embedding has tokens for rows (``W_E W_ih``; of a transformer or MLP ``W_E W_in``, ``W_E W_Q``, ``W_E W_K``,
    ``W_E W_V`` and ``W_E W_V W_O``, heads side by side), what writes the logits has answers (``W_U``, ``W_hh W_U``, ``W_O W_U``,
    and the neuron-logit map ``W_out W_U``; of a HookedMLP ``W_U`` alone). Weights of layers above the first have the layer's number in brackets.
    Biases, positional embeddings and layer norms are left out.
    """
    found = {"W_E": adder.W_E}
    if isinstance(adder.model, HookedRNN):
        found |= _of_recurrent(adder)
    elif isinstance(adder.model, HookedMLP):
        found |= _of_mlp(adder)
    else:
        found |= _of_residual(adder)
    return found | {"W_U": adder.W_U.T}


def product(*matrices: Float[Tensor, "*_head _n _m"]) -> Float[Tensor, "*_head _n _m"]:
    """Their product; zeros where it is no more than rounding, since the directions of that mean nothing.

    Raises:
        RuntimeError: torch's, for shapes that do not go together.
    """
    found = functools.reduce(torch.matmul, matrices)
    largest = math.prod(float(matrix.norm()) for matrix in matrices)
    return found if float(found.norm()) > 10 * torch.finfo(found.dtype).eps * largest else torch.zeros_like(found)


def _of_recurrent(adder: Adder) -> dict[str, Tensor]:
    """The first layer reads the embedding, the last writes the logits; a gated cell's gates stand side by side."""
    blocks: Any = adder.model.blocks
    found = {"W_E W_ih": product(adder.W_E, blocks[0].W_ih.detach())}
    W_hh = blocks[-1].W_hh.detach()
    if W_hh.shape[0] == W_hh.shape[1]:  # with gates, what W_hh makes is not what W_U reads
        found["W_hh W_U"] = product(W_hh, adder.W_U).T
    return found


def _of_mlp(adder: Adder) -> dict[str, Tensor]:
    """What each number adds to the neurons from each position, side by side where the positions differ."""
    maps = [found.detach()[: adder.p] for found in adder.model.W_E_in]
    same = all(found is maps[0] or torch.equal(found, maps[0]) for found in maps)
    return {"W_E W_in": maps[0] if same else torch.cat(maps, dim=1)}


def _of_residual(adder: Adder) -> dict[str, Tensor]:
    """Every layer reads the embedding and writes the logits: TransformerLens stacks the weights of a kind over layers."""
    found = {}
    for layer in range(n_layers(adder.model)):
        W = {name: layer_weight(adder.model, name, layer) for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")}
        suffix = f"[{layer}]" if layer else ""
        for name in ("W_Q", "W_K", "W_V", "W_in"):
            if _fits(adder.W_E, W[name]):
                found[f"W_E {name}{suffix}"] = _side_by_side(product(adder.W_E, W[name]))
        if _fits(adder.W_E, W["W_V"]) and W["W_O"] is not None and len(W["W_V"]) == len(W["W_O"]):
            found[f"W_E W_V W_O{suffix}"] = _side_by_side(product(adder.W_E, W["W_V"], W["W_O"]))
        for name in ("W_O", "W_out"):
            if _fits(W[name], adder.W_U):
                found[f"{name} W_U{suffix}"] = product(W[name], adder.W_U).flatten(0, -2).T
    return found


def n_layers(model: Any) -> int:
    """How many layers TransformerLens stacks the weights of."""
    for name, stacked in (("W_in", 3), ("W_V", 4)):  # attention alone has no W_in
        weight = getattr(model, name, None)
        if weight is not None and weight.ndim == stacked:
            return len(weight)
    return 1


def layer_weight(model: Any, name: str, layer: int) -> Any:
    """A layer's weight [d_in, d_out], or [head, d_in, d_out] of attention; None where there is none."""
    weight = getattr(model, name, None)
    if weight is None:
        return None
    weight = weight.detach()
    stacked = weight.ndim == (3 if name in ("W_in", "W_out") else 4)
    return weight[layer] if stacked else weight


def _fits(left: Any, right: Any) -> bool:
    return left is not None and right is not None and left.shape[-1] == right.shape[-2]


def _side_by_side(x: Float[Tensor, "*head p d"]) -> Float[Tensor, "p d_all"]:
    return x if x.ndim == 2 else torch.cat(list(x), dim=1)
