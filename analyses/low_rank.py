"""How few directions hold a matrix's energy."""

import torch
from jaxtyping import Float
from torch import Tensor


def cumulative_energy(matrix: Float[Tensor, "n m"]) -> Float[Tensor, " rank"]:
    """Share of the energy (sum of squared singular values) in the first 1, 2, ... singular components.

    By Eckart and Young, the first n components are the best approximation of rank n, and this is the
    share of the squared Frobenius norm that it holds.
    """
    squares = torch.linalg.svdvals(matrix.detach().double()).square()
    total = squares.sum()
    return squares.cumsum(0) / total if total > 0 else torch.zeros_like(squares)


def energy_of_first(matrix: Float[Tensor, "n m"], components: int) -> float:
    """Share of the energy in the first ``components`` singular components; 0 for none of them."""
    held = cumulative_energy(matrix)
    return float(held[min(components, len(held)) - 1]) if components > 0 else 0.0
