"""The orthogonal gradient of Prieto et al. 2025, "Grokking at the Edge of Numerical Stability"."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


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
    """Write over the gradient of every parameter with its orthogonal gradient."""
    pairs = [(parameter.detach(), parameter.grad) for parameter in parameters if parameter.grad is not None]
    if pairs:
        _orthogonalize(*map(list, zip(*pairs, strict=True)))


def _orthogonalize(weights: list[Tensor], grads: list[Tensor]) -> None:
    """Of each weight and its gradient, in place, with few calls: most parameters are small."""
    squares = torch.stack([square.sum() for square in torch._foreach_mul(weights, weights)])
    products = torch.stack([product.sum() for product in torch._foreach_mul(weights, grads)])
    along = torch.where(squares > 0, products / squares, 0)
    norms = torch.stack(torch._foreach_norm(grads))
    torch._foreach_sub_(grads, torch._foreach_mul(weights, along.unbind()))
    orthogonal_norms = torch.stack(torch._foreach_norm(grads))
    scales = torch.where(orthogonal_norms > torch.finfo(norms.dtype).eps * norms, norms / orthogonal_norms, 0)
    torch._foreach_mul_(grads, scales.unbind())
