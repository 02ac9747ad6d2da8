"""The orthogonal gradient of Prieto et al. 2025, "Grokking at the Edge of Numerical Stability"."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_rnn.side_by_side import share, team_size


def orthogonal_gradient(weight: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The gradient without its component along the weights, at its old norm.

    g_perp = g - (w.g / w.w) w, then g_perp * |g| / |g_perp|, over a whole parameter at once. Along its
    weights a network without biases only grows its logits, which lowers the loss and teaches nothing.
    A gradient that lies wholly along the weights becomes zero, up to rounding; weights of zero leave it as it is.
    """
    orthogonal = grad.clone()
    _orthogonalize([weight], [orthogonal])
    return orthogonal


@torch.no_grad()
def orthogonalize_gradients(parameters: Iterable[Tensor]) -> None:
    """Write over the gradient of every parameter with its orthogonal gradient; threads share the parameters."""
    shares: list[list[Tensor]] = [[] for _ in range(team_size())]
    for parameter in sorted(parameters, key=torch.numel, reverse=True):
        if parameter.grad is not None:
            min(shares, key=lambda mine: sum(map(torch.numel, mine))).append(parameter)
    share([partial(_orthogonalize, mine, [p.grad for p in mine if p.grad is not None]) for mine in shares if mine])


def _orthogonalize(weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Of each weight and its gradient, in place; what is one number for each is computed for all together."""
    room = torch.empty_like(max(weights, key=torch.numel)).view(-1)
    rooms = [room[: weight.numel()].view_as(weight) for weight in weights]
    each = list(zip(weights, grads, rooms, strict=True))

    squares = torch.stack([torch.mul(w, w, out=out).sum() for w, _, out in each])
    products = torch.stack([torch.mul(w, g, out=out).sum() for w, g, out in each])
    along = torch.where(squares > 0, products / squares, 0)
    norms = torch.stack([torch.linalg.vector_norm(g) for g in grads])
    for (w, g, out), factor in zip(each, along.unbind(), strict=True):
        g.sub_(torch.mul(w, factor, out=out))
    orthogonal_norms = torch.stack([torch.linalg.vector_norm(g) for g in grads])
    scales = torch.where(orthogonal_norms > torch.finfo(norms.dtype).eps * norms, norms / orthogonal_norms, 0)
    for g, scale in zip(grads, scales.unbind(), strict=True):
        g.mul_(scale)
