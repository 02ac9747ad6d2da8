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


def held_by_first(cumulative: Float[Tensor, " rank"], components: int) -> float:
    """What the first ``components`` singular components hold; 0 for none of them, all for more than there are."""
    return float(cumulative[min(components, len(cumulative)) - 1]) if components > 0 else 0.0
