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
    square = weight.square().sum()
    along = torch.where(square > 0, (weight * grad).sum() / square, 0)
    orthogonal = grad - along * weight
    norm, orthogonal_norm = grad.norm(), orthogonal.norm()
    scale = torch.where(orthogonal_norm > torch.finfo(grad.dtype).eps * norm, norm / orthogonal_norm, 0)
    return orthogonal * scale


@torch.no_grad()
def orthogonalize_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradient of every parameter by its orthogonal gradient."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = orthogonal_gradient(parameter, parameter.grad)
