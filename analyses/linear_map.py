"""Affine maps from one activation to another by least squares, and the random maps that they are held against.

All in float64. With x and y the mean rows of X [n, d_source] and Y [n, d_target] where the mean is in the map, zeros where it
is not, and ridge r, the map is v -> y + (v - x) A with

    A = argmin |(Y - y) - (X - x) A|^2 + r s^2 |A|^2,    s^2 = |X - x|^2 / d_source,

so that r has no unit: it is in mean squares of the singular values of X - x. The mean itself is never shrunk. Of all solutions A is the
one of least norm: singular values below :data:`ROUNDING` times the epsilon of the activation's own dtype, relative to the largest,
count as zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from analyses.errors import StitchingError

ROUNDING = 10
"""Singular values below this many times the dtype's epsilon, relative to the largest, are zero but for rounding."""


@dataclass(frozen=True)
class LinearMap:
    """v -> target_mean + (v - source_mean) weight."""

    weight: Float[Tensor, "d_source d_target"]
    source_mean: Float[Tensor, " d_source"]
    target_mean: Float[Tensor, " d_target"]

    def __call__(self, source: Float[Tensor, "n d_source"]) -> Float[Tensor, "n d_target"]:
        """The mapped rows, in float64."""
        return self.target_mean + (source.double() - self.source_mean) @ self.weight

    def split(self, widths: Sequence[int]) -> list["LinearMap"]:
        """The maps to consecutive columns of the target: least squares fits each column by itself."""
        pieces = zip(self.weight.split(list(widths), 1), self.target_mean.split(list(widths)), strict=True)
        return [LinearMap(weight, self.source_mean, mean) for weight, mean in pieces]


def fit_linear_map(
    source: Float[Tensor, "n d_source"], target: Float[Tensor, "n d_target"], ridge: float = 0.0, mean: bool = True
) -> LinearMap:
    """The map from the rows of one activation to those of another; see the module.

    Args:
        source: X.
        target: Y, row by row of the same pairs.
        ridge: r, at least 0.
        mean: whether the mean is in the map, as a constant of its own.

    Raises:
        StitchingError: a ridge below 0; without ridge, fewer rows than the map has numbers to fit for each column.
    """
    check_ridge(ridge)
    n, d = source.shape
    unknowns = d + mean
    if n < (1 if ridge else unknowns):
        raise StitchingError(
            f"{n} pairs to fit {unknowns} numbers to (width {d}{' and the mean' if mean else ''}): expected at least "
            f"{1 if ridge else unknowns} pairs{'' if ridge else ', or a ridge above 0'}"
        )
    X, Y = source.detach().double(), target.detach().double()
    x, y = (Z.mean(0) if mean else Z.new_zeros(Z.shape[1]) for Z in (X, Y))
    left, singular, right = _svd(source, x)
    penalty = ridge * singular.square().sum() / max(d, 1)
    shrunk = singular / (singular.square() + penalty)
    return LinearMap(right.T @ (shrunk[:, None] * (left.T @ (Y - y))), x, y)


def check_ridge(ridge: float) -> None:
    """Raise StitchingError unless the ridge is a finite number of at least 0."""
    if not 0 <= ridge < math.inf:
        raise StitchingError(f"ridge={ridge!r}: expected a finite number of at least 0")


def explained(predicted: Float[Tensor, "n d"], actual: Float[Tensor, "n d"]) -> float:
    """Fraction of variance explained: 1 - |actual - predicted|^2 / |actual - mean actual|^2; 0 where nothing varies.

    Below 0 for what is further off than the mean of these very rows.
    """
    varies = (actual - actual.mean(0)).square().sum()
    return float(1 - (actual - predicted).square().sum() / varies) if varies > 0 else 0.0


def rotated(fitted: LinearMap, source: Float[Tensor, "n d_source"], seed: int) -> LinearMap:
    """The map after a random rotation Q of the whitened source: the same covariance comes out, of other features of the source.

    With X - x = U S V^T it is v -> y + (v - x) V S^-1 Q S V^T A: of U Q S V^T A and U S V^T A, the fitted rows, the covariances are
    the same. (A rotation of the source as it is would mix its strong directions into weak ones, which A enlarges.)
    """
    _, singular, right = _svd(source, fitted.source_mean)
    turn = random_rotation(len(singular), seed).to(right)
    weight = (right.T / singular) @ turn @ (singular[:, None] * (right @ fitted.weight))
    return replace(fitted, weight=weight)


def gaussian(fitted: LinearMap, source: Float[Tensor, "n d_source"], seed: int) -> LinearMap:
    """A map of independent normal numbers, scaled so that what it makes of ``source`` varies as much as what the fitted one makes."""
    weight = _normal(fitted.weight.shape, seed).to(fitted.weight)
    centred = source.double() - fitted.source_mean
    norm = (centred @ weight).norm().clamp(min=torch.finfo(weight.dtype).tiny)
    return replace(fitted, weight=weight * (centred @ fitted.weight).norm() / norm)


def of_rank(fitted: LinearMap, source: Float[Tensor, "n d_source"], rank: int) -> LinearMap:
    """The best map of so low a rank: A V V^T, with V the first right singular vectors of (X - x) A.

    Reduced-rank regression (Izenman 1975): without ridge, of all maps of this rank the one of least squared error on the pairs
    that were fitted, by the theorem of Eckart and Young.
    """
    _, _, directions = torch.linalg.svd((source.double() - fitted.source_mean) @ fitted.weight, full_matrices=False)
    V = directions[:rank].T
    return replace(fitted, weight=fitted.weight @ V @ V.T)


def random_rotation(d: int, seed: int) -> Float[Tensor, "d d"]:
    """A random orthogonal matrix, uniform over all of them (Haar): Q of a normal matrix, its signs fixed by R's diagonal."""
    Q, R = torch.linalg.qr(_normal((d, d), seed))
    return Q * R.diagonal().sign()


def permutation(n: int, seed: int) -> Int[Tensor, " n"]:
    """The numbers below n in random order."""
    return torch.randperm(n, generator=Generator().manual_seed(seed))


def _svd(source: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T of the centred source, without what is zero but for rounding."""
    left, singular, right = torch.linalg.svd(source.detach().double() - mean, full_matrices=False)
    counts = singular > ROUNDING * torch.finfo(source.dtype).eps * singular[:1].sum()
    return left[:, counts], singular[counts], right[counts]


def _normal(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
