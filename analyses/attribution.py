"""Which frequency a singular vector, an embedding or a projection of the hidden state belongs to."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.fourier import FourierBasis
from analyses.grid import check_grid, grid_functions


@dataclass(frozen=True)
class SingularAttribution:
    """The singular vectors of a matrix on its token (or answer) axis, read as functions on Z_p."""

    energy: Float[Tensor, " n"]
    """Share of the matrix's energy in each component."""
    shares: Float[Tensor, "n n_frequencies"]
    """Share of each singular vector's power at each frequency 1..p//2 (what is missing to one is constant)."""

    @property
    def purity(self) -> Float[Tensor, " n"]:
        """Of each singular vector, the share of its strongest frequency."""
        return self.shares.max(dim=1).values

    @property
    def frequency(self) -> list[int]:
        """Of each singular vector, its strongest frequency."""
        return [int(i) + 1 for i in self.shares.argmax(dim=1)]

    @property
    def mean_purity(self) -> float:
        """Mean purity, weighted by energy; 0 where there is none."""
        return float((self.purity * self.energy).sum() / self.energy.sum()) if self.energy.sum() > 0 else 0.0


@dataclass(frozen=True)
class Fit:
    """How well the projections of the last hidden state fit cos(w_k(a+b)) and sin(w_k(a+b))."""

    argument: Int[Tensor, " pairs"]
    """k(a+b) modulo p of each pair: where on the circle of the frequency its answer lies."""
    projections: Float[Tensor, "pairs axes"]
    """What is fitted."""
    fitted: Float[Tensor, "pairs axes"]
    """Its least squares fit."""

    @property
    def relative(self) -> float:
        """Norm of the residual over the norm of what is fitted, over all pairs and both axes; 0 for nothing."""
        norm = self.projections.norm()
        return float((self.projections - self.fitted).norm() / norm) if norm > 0 else 0.0

    @property
    def squared(self) -> float:
        """Its square: the share of the power that the fit misses."""
        return self.relative**2


def singular_attribution(matrix: Float[Tensor, "n m"], p: int, components: int, dim: int) -> SingularAttribution:
    """Attribute the first singular vectors on axis ``dim`` (of length p) to frequencies."""
    left, values, right = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    vectors = (left if dim == 0 else right.T)[:, :components]
    squares = values.square()
    basis = FourierBasis(p)
    shares = torch.stack([basis.power(vector)[1:] for vector in vectors.T]) if components else left.new_zeros(0, p // 2)
    return SingularAttribution(squares[:components] / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny), shares)


def explained_by_circles(W_E: Float[Tensor, "p d_model"], frequencies: list[int]) -> float:
    """Share of W_E's variance over tokens that cos(w_k a) and sin(w_k a) of these frequencies explain.

    1 - |W_E - fit|^2 / |W_E - mean|^2, with the least squares fit of each column on a constant and these
    functions, which the orthonormal basis makes a projection.
    """
    basis = FourierBasis(len(W_E))
    centered = W_E.detach().double()
    centered = centered - centered.mean(0)
    total = centered.square().sum()
    return float(basis.keep(centered, frequencies).square().sum() / total) if total > 0 else 0.0


def circle(W_E: Float[Tensor, "p d_model"], frequency: int) -> Float[Tensor, "p axes"]:
    """Tokens in the plane of the embedding in which the frequency turns: its cosine and its sine axis.

    The plane is spanned by W_E.T cos and W_E.T sin; its axes are the orthonormal pair closest to the two
    (their polar factor), so that a perfect circle is shown as a circle. All of W_E is projected, not the
    frequency's part of it: what else lies in the plane is seen as noise.
    """
    W_E = W_E.detach().double()
    directions = W_E.T @ FourierBasis(len(W_E)).functions([frequency]).T
    left, _, right = torch.linalg.svd(directions, full_matrices=False)
    return W_E @ (left @ right)


def hidden_projections(
    hidden: Float[Tensor, "pairs d_hidden"], W_U: Float[Tensor, "d_hidden p"], frequency: int
) -> Float[Tensor, "pairs axes"]:
    """Projections of the last hidden state onto the directions that W_U reads a frequency from.

    The directions are W_U cos(w_k c) and W_U sin(w_k c), with the orthonormal basis functions over the
    answers c; the projections are thus the logits' Fourier coefficients over the answers (less b_U's).
    """
    W_U = W_U.detach().double()
    return hidden.detach().double() @ (W_U @ FourierBasis(W_U.shape[1]).functions([frequency]).T)


def hidden_fit(hidden: Float[Tensor, "pairs d_hidden"], W_U: Float[Tensor, "d_hidden p"], frequency: int) -> Fit:
    """Least squares fit of both :func:`hidden_projections` on cos(w_k(a+b)) and sin(w_k(a+b)).

    What is fitted is the projections as they are, not centred.
    """
    p = W_U.shape[1]
    check_grid(hidden, p)
    projections = hidden_projections(hidden, W_U, frequency)
    functions = grid_functions(p, [frequency], "sum")
    total = torch.arange(p).repeat_interleave(p) + torch.arange(p).repeat(p)
    return Fit(frequency * total % p, projections, functions.T @ (functions @ projections))
