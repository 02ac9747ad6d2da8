"""The Fourier basis of functions on Z_p, and what projections on it give.

Conventions: the basis is real and orthonormal, so Parseval's identity holds without a factor and a
projection is ``B.T @ (B @ x)``. A frequency k from 1 to p//2 is the plane of cos(2 pi k a / p) and
sin(2 pi k a / p); for even p the last one, p/2, is the line of the cosine alone.
"""

from collections.abc import Iterable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.errors import FrequencyError, ModulusError


class FourierBasis:
    """The orthonormal real Fourier basis of functions on Z_p.

    Row 0 is constant; rows 2k-1 and 2k are the cosine and the sine of frequency k = 1..p//2 (for even p
    the last row is the cosine of p/2, whose sine is zero everywhere).

    Args:
        p: the modulus, at least 2.

    Raises:
        ModulusError: p is no whole number of at least 2.
    """

    def __init__(self, p: int) -> None:
        if not isinstance(p, int) or isinstance(p, bool) or p < 2:
            raise ModulusError(f"p={p!r}: expected a whole number of at least 2")
        self.p = p

    def __repr__(self) -> str:
        return f"FourierBasis({self.p})"

    @property
    def frequencies(self) -> range:
        """All frequencies: 1 to p//2."""
        return range(1, self.p // 2 + 1)

    @cached_property
    def matrix(self) -> Float[Tensor, "p p"]:
        """The basis, a function a row, in float64."""
        a = torch.arange(self.p, dtype=torch.float64)
        # The angle is reduced modulo p in integers first: cos of a large argument loses digits.
        waves = [2 * torch.pi / self.p * (k * a % self.p) for k in self.frequencies]
        rows = [torch.ones_like(a)] + [wave(angle) for angle in waves for wave in (torch.cos, torch.sin)]
        basis = torch.stack(rows[: self.p])  # for even p, without the sine of p/2
        return basis / basis.norm(dim=1, keepdim=True)

    def rows(self, frequencies: Iterable[int]) -> list[int]:
        """Indices of the basis functions of these frequencies, in the order given.

        Raises:
            FrequencyError: one of them is not in 1..p//2, or stands twice.
        """
        return [row for k in self.check(frequencies) for row in (2 * k - 1, 2 * k) if row < self.p]

    def check(self, frequencies: Iterable[int]) -> list[int]:
        """The frequencies as a list, if each is in 1..p//2 and none stands twice; else FrequencyError."""
        listed = _listed(frequencies)
        for k in listed:
            if not isinstance(k, int) or isinstance(k, bool) or k not in self.frequencies:
                raise FrequencyError(
                    f"frequency {k!r}: expected a whole number from 1 to {self.p // 2}, as p is {self.p}"
                )
        return check_distinct(listed)

    def functions(self, frequencies: Iterable[int], like: Tensor | None = None) -> Float[Tensor, "m p"]:
        """The basis functions of these frequencies; in the dtype and on the device of ``like``."""
        chosen = self.matrix[self.rows(frequencies)]
        return chosen if like is None else chosen.to(like)

    def coefficients(self, x: Float[Tensor, "*shape"], dim: int = 0) -> Float[Tensor, "*shape"]:
        """Coefficients of x, as a function of axis ``dim``: the same shape, with basis functions on that axis."""
        return self._along(x, dim, self.matrix.to(x))

    def power(self, x: Float[Tensor, "*shape"], dim: int = 0) -> Float[Tensor, " n_frequencies"]:
        """Sum of squared coefficients by frequency 0..p//2, over all other axes. Sums to ``x.square().sum()``."""
        squares = self.coefficients(x, dim).square().movedim(dim, 0).reshape(self.p, -1).sum(1)
        padded = torch.cat([squares.new_zeros(1), squares, squares.new_zeros(1 - self.p % 2)])
        return padded.view(-1, 2).sum(1)

    def keep(self, x: Float[Tensor, "*shape"], frequencies: Iterable[int], dim: int = 0) -> Float[Tensor, "*shape"]:
        """The part of x, as a function of axis ``dim``, that has these frequencies (not the constant)."""
        functions = self.functions(frequencies, like=x)
        return self._along(x, dim, functions.T @ functions)

    def remove(self, x: Float[Tensor, "*shape"], frequencies: Iterable[int], dim: int = 0) -> Float[Tensor, "*shape"]:
        """x without these frequencies along axis ``dim``: what :meth:`keep` leaves."""
        return x - self.keep(x, frequencies, dim)

    def _along(self, x: Tensor, dim: int, operator: Tensor) -> Tensor:
        if not -x.ndim <= dim < x.ndim or x.shape[dim] != self.p:
            raise ModulusError(f"axis {dim} of a tensor of shape {list(x.shape)}: expected length p={self.p}")
        return torch.tensordot(operator, x, dims=([1], [dim])).movedim(0, dim)


def check_distinct(frequencies: Iterable[int]) -> list[int]:
    """The frequencies as a list, if there may be several and none stands twice; else FrequencyError."""
    listed = _listed(frequencies)
    if len(set(listed)) < len(listed):
        raise FrequencyError(f"frequencies {listed}: expected each of them once")
    return listed


def _listed(frequencies: Iterable[int]) -> list[int]:
    if not isinstance(frequencies, Iterable):
        raise FrequencyError(f"frequencies {frequencies!r}: expected several of them, such as [1]")
    return list(frequencies)
