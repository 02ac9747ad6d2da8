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
    _orthogonalize(weight.detach(), orthogonal)
    return orthogonal


@torch.no_grad()
def orthogonalize_gradients(parameters: Iterable[Tensor]) -> None:
    """Write over the gradient of every parameter with its orthogonal gradient."""
    for parameter in parameters:
        if parameter.grad is not None:
            _orthogonalize(parameter.detach(), parameter.grad)


def _orthogonalize(weight: Tensor, grad: Tensor) -> None:
    """In place. Scalars are Python's: on a processor, tensors of one number cost more than the sums that they hold."""
    square, product = (weight * weight).sum().item(), (weight * grad).sum().item()
    norm = torch.linalg.vector_norm(grad).item()
    if square > 0:
        grad.sub_(weight * (product / square))
    orthogonal_norm = torch.linalg.vector_norm(grad).item()
    grad.mul_(norm / orthogonal_norm if orthogonal_norm > torch.finfo(grad.dtype).eps * norm else 0.0)
