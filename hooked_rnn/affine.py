"""Row vectors times weights, and how the weights are drawn."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn


def affine(
    x: Float[Tensor, "*batch d_in"],
    weight: Float[Tensor, "d_in d_out"],
    bias: Float[Tensor, " d_out"] | None,
    out: Float[Tensor, "*batch d_out"] | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """x W + b."""
    if bias is None:
        return torch.matmul(x, weight, out=out)
    return torch.add(x @ weight, bias, out=out)


def undrawn(*shape: int) -> nn.Parameter:
    """A parameter with no values yet, where and as :func:`draw` wants it, whatever torch's default device and dtype."""
    return nn.Parameter(torch.empty(*shape, device="cpu", dtype=torch.float32))


def draw(weight: Tensor, scale: float, generator: Generator | None) -> None:
    """Normal numbers of standard deviation scale/sqrt(fan in)."""
    with torch.no_grad():
        weight.normal_(std=scale * weight.shape[0] ** -0.5, generator=generator)
