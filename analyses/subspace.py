"""Frequencies removed on any batch: the directions of an activation that carry them, fitted on some pairs.

:func:`analyses.ablation.frequency_hook` projects along the pairs, so it needs all of them. Here a frequency is made a
property of the activation itself, as a linear probe's is: the directions of feature space in which the family's functions
lie. That is another operator. It also takes whatever else lies in those directions; the two agree where nothing does.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from analyses.errors import ActivationError, ModulusError
from analyses.fourier import FourierBasis
from analyses.grid import grid_functions, signs_of
from analyses.removal import check_mode, hook_at, replacement

CHANCE = 1.2
"""Default of the rank rule: how many times what chance may give a direction's singular value must be."""
ROUNDING = 1e-6
"""The least singular value that counts, over the norm of the centred activation."""


@dataclass(frozen=True)
class Subspace:
    """Directions of feature space that carry a family's functions, as fitted."""

    directions: Float[Tensor, "d r"]
    """Orthonormal columns, the strongest first."""
    constant: Float[Tensor, " d"]
    """The fit's constant term: the mean over all pairs as the fitted ones tell it."""
    strengths: Float[Tensor, " k"]
    """Root mean square of the fitted part over the pairs, by direction: those kept, then those that were not."""


def fit_subspace(
    activation: Float[Tensor, "n d"],
    numbers: Int[Tensor, "n operands"],
    p: int,
    frequencies: Iterable[int],
    family: str = "sum",
    beside: Sequence[str] | None = None,
    chance: float = CHANCE,
) -> Subspace:
    """The directions in which the family's functions lie, by least squares.

    With F [n, m] the family's functions at the pairs, and G those of all other frequencies of the families ``beside``,
    X = 1 c + F C + G D + E is fitted. (Over all pairs G changes nothing; over some of them functions are not orthogonal, and
    without G the other frequencies would leak into C.) The directions are the right singular vectors of F' C, the fitted
    part, where F' is what a fit by 1 and G leaves of F. One with singular value s counts if

        s > chance * (sqrt(tr S) + sqrt(m |S|))    and    s > 1e-6 |X - mean X|,

    where S = E^T E / (residual degrees of freedom). The first is Chevet's inequality: what is in the brackets bounds the
    expected singular value that m functions of no meaning get of Gaussian noise of covariance S. So in noise none
    counts; where the fit is exact, all but rounding does. ``chance=0`` leaves the second rule.

    Args:
        activation: one row for each pair.
        numbers: the pairs, as ``adder.tokens[rows, :2]``; of any number of operands.
        p: the modulus.
        frequencies: what to find, each in 1..p//2.
        family: "a", "b", "sum", "difference" or "block", or a pattern such as "a+b-c"; see :mod:`analyses.grid`.
        beside: families of G; None for the family itself. More of them leave less for E, if there are pairs enough.
        chance: see above.

    Raises:
        ActivationError: rows that are not one for each pair, no more pairs than functions, or such that some of the
            functions are the same there.
        ModulusError: a number that is not modulo p.
        FrequencyError, FamilyError: what does not exist.
    """
    frequencies = FourierBasis(p).check(frequencies)
    X, F = activation.detach().double(), _functions_at(numbers, p, frequencies, family).to(activation.device)
    G = _others(numbers, p, frequencies, family, [family] if beside is None else beside).to(X)
    (n, m), n_fitted = F.shape, F.shape[1] + G.shape[1]
    if len(X) != n or n <= n_fitted:
        raise ActivationError(
            f"an activation of {len(X)} rows and {n} pairs: expected as many, and more than the {n_fitted} functions to fit"
        )
    together = torch.cat([F, G], 1)
    coefficients = _least_squares(together, X)
    _, R = torch.linalg.qr(F - G @ _least_squares(G, F), mode="r")
    if m and torch.linalg.svdvals(R)[-1] < ROUNDING * n**0.5:
        raise ActivationError(
            f"{n} pairs that do not tell the functions of {frequencies} from all others of their family and those beside: "
            "expected more of the pairs, or fewer families beside"
        )
    _, singular, rows = torch.linalg.svd(R @ coefficients[:m], full_matrices=False)
    noise = torch.linalg.svdvals(X - together @ coefficients) / (n - n_fitted) ** 0.5
    by_chance = noise.norm() + m**0.5 * noise[:1].sum()
    counts = (singular > chance * by_chance) & (singular > ROUNDING * (X - X.mean(0)).norm())
    strengths, constant = singular / n**0.5, coefficients[m]
    return Subspace(rows[counts].T.to(activation), constant.to(activation), strengths.to(activation))


def subspace_hook(
    subspace: Subspace, positions: int | Sequence[int] = -1, mode: str = "zero", seed: int = 0
) -> Callable[..., Tensor | None]:
    """An ordinary hook function that removes a fitted subspace from an activation, on any batch.

    With Q the directions, x becomes x - x Q Q^T + R, where R is, by mode: "zero", 0; "mean", the fit's constant in
    those directions, c Q Q^T, which depends on no other row, and is what corresponds to the full grid's operator, in which
    the constant stays; "resample", x Q Q^T of the batch's rows in another, seeded order.

    Args:
        subspace: what to remove, see :func:`fit_subspace`.
        positions: where; see :func:`analyses.removal.hook_at`.
        mode: what takes its place.
        seed: of the permutation of "resample".

    Raises:
        FamilyError: at once, for an unknown mode; from the hook, for a position that the activation does not have.
        ActivationError: from the hook, for an activation of another width or kind.
    """
    check_mode(mode)
    return hook_at(positions, lambda x: without_subspace(x, subspace, mode, seed))


def without_subspace(
    x: Float[Tensor, "n d"], subspace: Subspace, mode: str = "zero", seed: int = 0
) -> Float[Tensor, "n d"]:
    """What :func:`subspace_hook` makes of the rows of an activation at one position."""
    Q = subspace.directions.to(x)
    if x.shape[1] != len(Q):
        raise ActivationError(f"an activation of width {x.shape[1]}: expected {len(Q)}, as the subspace was fitted on")
    part = (x @ Q) @ Q.T
    if mode == "mean":
        return x - part + (subspace.constant.to(x) @ Q) @ Q.T
    return x - part + replacement(part, mode, seed)


@dataclass(frozen=True)
class LeaveOut:
    """What a subspace that was fitted on half of the pairs does to the other half."""

    removed: float
    """Share of the family's power in the held-out half that is gone."""
    collateral: float
    """Share of the power of all else in the held-out half, the mean apart, that is gone with it."""
    rank: int
    """How many directions there were."""


def leave_out(
    activation: Float[Tensor, "n d"],
    numbers: Int[Tensor, "n operands"],
    p: int,
    frequencies: Iterable[int],
    family: str = "sum",
    beside: Sequence[str] | None = None,
    chance: float = CHANCE,
    seed: int = 0,
) -> LeaveOut:
    """Fit on a random half of the pairs, remove on the other, and see what is left there.

    The family's part of the held-out half is by a least squares fit of its own there, before and after. Arguments and
    errors as for :func:`fit_subspace`; ``seed`` is of the halves.
    """
    frequencies, n = FourierBasis(p).check(frequencies), len(numbers)
    if len(activation) != n:
        raise ActivationError(f"an activation of {len(activation)} rows and {n} pairs: expected as many")
    order = torch.randperm(n, generator=Generator().manual_seed(seed)).to(numbers.device)
    fitted, held_out = order[: n // 2], order[n // 2 :]
    subspace = fit_subspace(activation[fitted], numbers[fitted], p, frequencies, family, beside, chance)
    X = activation[held_out].detach().double()
    Q = subspace.directions.double()
    left = X - (X @ Q) @ Q.T
    F = _functions_at(numbers[held_out], p, frequencies, family).to(X)
    part, rest = _powers(X, F)
    part_left, rest_left = _powers(left, F)
    return LeaveOut(_share_gone(part, part_left), _share_gone(rest, rest_left), Q.shape[1])


def _others(
    numbers: Int[Tensor, "n operands"], p: int, frequencies: list[int], family: str, beside: Sequence[str]
) -> Float[Tensor, "n others"]:
    """A constant, and the functions of the families that are not among those asked for."""
    operands = numbers.shape[1]
    asked_signs = signs_of(family, operands)
    columns = [torch.ones(len(numbers), 1, dtype=torch.float64, device=numbers.device)]
    for name in beside:
        signs = signs_of(name, operands)
        block_and_part = (not signs and all(asked_signs)) or (not asked_signs and all(signs))
        shared = signs == asked_signs or block_and_part
        # At p/2 families of the same operands are one and the same function.
        at_half = _involved(signs, operands) == _involved(asked_signs, operands)
        asked = set(frequencies) if shared else {k for k in frequencies if at_half and 2 * k == p}
        others = [k for k in FourierBasis(p).frequencies if k not in asked]
        columns.append(_functions_at(numbers, p, others, name).to(numbers.device))
    return torch.cat(columns, 1)


def _involved(signs: tuple[int, ...], operands: int) -> tuple[bool, ...]:
    """Which operands a family involves; "block", which has no signs, all."""
    return tuple(bool(s) for s in signs) if signs else (True,) * operands


def _least_squares(G: Float[Tensor, "n m"], X: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """Coefficients of the fit of X by the columns of G, the smallest where they depend on each other."""
    return torch.linalg.pinv(G.T @ G, hermitian=True, rtol=1e-9) @ (G.T @ X)


def _powers(X: Tensor, F: Tensor) -> tuple[float, float]:
    """Power of the centred X in the span of the centred functions, and outside it."""
    X = X - X.mean(0)
    Q, R = torch.linalg.qr(F - F.mean(0))
    Q = Q[:, R.diagonal().abs() > 1e-9]
    inside = (Q.T @ X).square().sum()
    return float(inside), float(X.square().sum() - inside)


def _share_gone(before: float, after: float) -> float:
    return 1 - after / before if before > 0 else 0.0


def _functions_at(
    numbers: Int[Tensor, "n operands"], p: int, frequencies: Iterable[int], family: str
) -> Float[Tensor, "n m"]:
    """The family's functions at some pairs, scaled to root mean square 1 over the grid."""
    operands = numbers.shape[1]
    functions = grid_functions(p, frequencies, family, operands)
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < p:
        raise ModulusError(
            f"numbers from {int(numbers.min())} to {int(numbers.max())}: expected 0 to {p - 1}, as p is {p}"
        )
    places = p ** torch.arange(operands - 1, -1, -1, device=numbers.device)  # the first operand is major
    return functions[:, (numbers * places).sum(1).cpu()].T * p ** (operands / 2)
