"""Frequencies removed from weights: W_E, W_ih, W_hh, W_U.

W_E and W_U have an axis of numbers, so a frequency is a part of them: the projection on its functions along that
axis. W_ih and W_hh have none, but what they are given has: after one token their input is a function X [p, d] of
that token (of W_ih in layer 0, X is W_E; above, the state of the layer below; of W_hh, the layer's own state). The
frequencies' directions are the span of the rows of B X, where the rows of B are the frequencies' basis functions of
the token; with Q [d, r] an orthonormal basis of it, the weight W becomes W - Q Q^T W: whatever the input holds in
those directions no longer gets through.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from analyses.errors import FamilyError, RemovalSiteError
from analyses.fourier import FourierBasis
from analyses.removal import replacement
from hooked_rnn.errors import choices

WEIGHTS = ("W_E", "W_ih", "W_hh", "W_U")
RANK_TOLERANCE = 1e-6
"""A direction counts if its singular value in B X is more than this times the norm of X."""


@contextmanager
def removed_from_weight(
    adder: Adder, weight: str, frequencies: Iterable[int], layer: int = 0, mode: str = "zero", seed: int = 0
) -> Iterator[Adder]:
    """Inside the ``with``, a model whose weight lacks the frequencies; after it, the weight is what it was, to the bit.

    It is the caller's own model in between, hooks and all, so that ``adder.logits()`` and every other tool see the
    removal. Arguments and errors as for :func:`weight_without`.
    """
    parameter = live_weight(adder.model, weight, layer)
    without = weight_without(adder, weight, frequencies, layer, mode, seed)
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.copy_(without)
        yield adder
    finally:
        with torch.no_grad():
            parameter.copy_(before)


@torch.no_grad()
def weight_without(
    adder: Adder, weight: str, frequencies: Iterable[int], layer: int = 0, mode: str = "zero", seed: int = 0
) -> Float[Tensor, "rows columns"]:
    """The weight without the frequencies; the model is left alone.

    - "W_E": rows of the numbers less B^T B W_E. Exactly the hooks of family "a" at the first position of the
      embedding and "b" at the second. Other rows, such as that of '=', stay.
    - "W_U": columns of the answers less W_U B^T B: the logits less their frequencies *as functions of the answer*
      (the bias stays). No hook of a family of pairs is this.
    - "W_ih", "W_hh" of a layer: W - Q Q^T W, see above. W_ih of layer 0 is exactly a subspace hook (mode "zero") with
      those directions at every position of the embedding; W_hh of the one layer of a vanilla cell, one at every state but
      the last. (What goes upward, or is carried over in a gated cell, keeps them.)

    Args:
        adder: the model and its task.
        weight: "W_E", "W_ih", "W_hh" or "W_U".
        frequencies: what to remove, each in 1..p//2.
        layer: of W_ih and W_hh.
        mode: what takes the part's place in W_E and W_U, see :mod:`analyses.removal`, rows being numbers (answers).
            "mean" is "zero" there, since every frequency has mean zero. For W_ih and W_hh "zero" alone: a mean would be
            a bias, and what is resampled no function of the input.
        seed: of "resample".

    Raises:
        RemovalSiteError: a weight that the model does not have.
        FrequencyError: a frequency outside 1..p//2.
        FamilyError: a mode that there is not.
    """
    value = live_weight(adder.model, weight, layer).detach().clone()
    basis = FourierBasis(adder.p)
    frequencies = basis.check(frequencies)
    if weight == "W_E":
        part = basis.keep(adder.W_E, frequencies)
        value[: adder.p] += replacement(part, mode, seed) - part
    elif weight == "W_U":
        part = basis.keep(adder.W_U.T, frequencies)
        value[:, : adder.p] += (replacement(part, mode, seed) - part).T
    elif mode == "zero":
        Q = token_directions(input_after_one_token(adder, weight, layer), frequencies).to(value)
        value -= Q @ (Q.T @ value)
    else:
        raise FamilyError(f"mode {mode!r} of {weight}: expected 'zero', since {weight} has no axis of numbers")
    return value


def token_directions(x: Float[Tensor, "p d"], frequencies: Iterable[int]) -> Float[Tensor, "d r"]:
    """Orthonormal directions of feature space in which x, as functions of the token, has these frequencies."""
    x = x.double()
    coefficients = FourierBasis(len(x)).functions(frequencies, like=x) @ x
    _, singular, rows = torch.linalg.svd(coefficients, full_matrices=False)
    return rows[singular > RANK_TOLERANCE * x.norm()].T


@torch.no_grad()
def input_after_one_token(adder: Adder, weight: str, layer: int = 0) -> Float[Tensor, "p d"]:
    """What W_ih or W_hh of a layer is given that came of one number alone: the embedding, or a state after the first token."""
    layer = layer if weight == "W_hh" else layer - 1
    if layer < 0:
        return adder.W_E
    numbers = torch.arange(adder.p, device=adder.W_E.device)[:, None]
    return adder.activation(f"blocks.{layer}.hook_hidden", position=0, tokens=numbers)


def live_weight(model: Any, weight: str, layer: int = 0) -> Float[Tensor, "rows columns"]:
    """The model's own weight, or a view of it, so that writing in it changes the model.

    Raises:
        RemovalSiteError: it has none by that name.
    """
    if weight not in WEIGHTS:
        raise RemovalSiteError(f"unknown weight {weight!r}: expected {choices(WEIGHTS)}")
    owner = model
    if weight in ("W_ih", "W_hh"):
        blocks = list(getattr(model, "blocks", []))
        if not -1 < layer < len(blocks) or not hasattr(blocks[layer], weight):
            raise RemovalSiteError(
                f"{type(model).__name__} has no {weight} in layer {layer}: expected a recurrent network and a layer "
                f"from 0 to {len(blocks) - 1}; any model has 'W_E' and 'W_U'"
            )
        owner = blocks[layer]
    value = getattr(owner, weight)
    if value.untyped_storage().data_ptr() not in {p.untyped_storage().data_ptr() for p in model.parameters()}:
        raise RemovalSiteError(
            f"{weight} of {type(model).__name__} is made anew whenever it is asked for: expected a view of a parameter"
        )
    return value
