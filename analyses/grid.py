"""Functions of two operands: the p x p grid of pairs (a, b), and the families of each frequency on it.

The basis is the tensor product of :class:`FourierBasis` with itself, in the grid's canonical order (a
major: row a*p + b). For w = 2 pi k / p, the families of frequency k are

- ``"a"``: cos(wa), sin(wa), constant in b;  ``"b"``: the same of b;
- ``"sum"``: cos(w(a+b)), sin(w(a+b));  ``"difference"``: cos(w(a-b)), sin(w(a-b));
- ``"block"``: the products of one of cos(wa), sin(wa) and one of cos(wb), sin(wb), four functions that
  span the sum and the difference together.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.errors import FamilyError, GridError
from analyses.fourier import FourierBasis
from hooked_rnn.errors import choices

FAMILIES = ("a", "b", "sum", "difference", "block")


def grid_functions(p: int, frequencies: Iterable[int], family: str) -> Float[Tensor, "m pairs"]:
    """Orthonormal functions on the grid, a function a row: the family, of each of the frequencies.

    For even p and frequency p/2, sum, difference and block are one and the same function.

    Raises:
        FamilyError: an unknown family.
        FrequencyError: a frequency outside 1..p//2.
    """
    if family not in FAMILIES:
        raise FamilyError(f"unknown family {family!r}: expected {choices(FAMILIES)}")
    basis = FourierBasis(p)
    functions = basis.functions(frequencies := basis.check(frequencies))
    if family == "block":
        of_one = [basis.functions([k]) for k in frequencies]
        return torch.cat([functions.new_zeros(0, p * p), *(torch.kron(f, f) for f in of_one)])
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    argument = {"a": a, "b": b, "sum": (a + b) % p, "difference": (a - b) % p}[family]
    return functions[:, argument] / p**0.5  # each value of the argument occurs p times


def keep_on_grid(
    x: Float[Tensor, "pairs d"], p: int, frequencies: Iterable[int], family: str
) -> Float[Tensor, "pairs d"]:
    """The part of x, as d functions on the grid, that lies in the family of these frequencies.

    Raises:
        GridError: x has not p*p rows.
        FamilyError, FrequencyError: as for :func:`grid_functions`.
    """
    check_grid(x, p)
    functions = grid_functions(p, frequencies, family).to(x)
    return functions.T @ (functions @ x)


def remove_from_grid(
    x: Float[Tensor, "pairs d"], p: int, frequencies: Iterable[int], family: str
) -> Float[Tensor, "pairs d"]:
    """x without the family of these frequencies: what :func:`keep_on_grid` leaves."""
    return x - keep_on_grid(x, p, frequencies, family)


def family_power(x: Float[Tensor, "pairs d"], p: int) -> dict[str, Float[Tensor, " n_frequencies"]]:
    """Power of x in each family, by frequency 1..p//2; sums over d.

    ``"a"``, ``"b"``, ``"sum"`` and ``"difference"`` are orthogonal to each other (but for even p at p/2,
    where sum and difference are the same function, counted as sum).
    """
    check_grid(x, p)
    coefficients = FourierBasis(p).coefficients(FourierBasis(p).coefficients(x.view(p, p, -1), 0), 1)
    n = p // 2
    power = {family: x.new_zeros(n) for family in ("a", "b", "sum", "difference")}
    for k in range(1, n + 1):
        rows = FourierBasis(p).rows([k])
        power["a"][k - 1] = coefficients[rows, 0].square().sum()
        power["b"][k - 1] = coefficients[0, rows].square().sum()
        if len(rows) == 1:
            power["sum"][k - 1] = coefficients[rows[0], rows[0]].square().sum()
            continue
        c, s = rows
        cc, cs, sc, ss = (coefficients[i, j] for i in (c, s) for j in (c, s))
        power["sum"][k - 1] = ((cc - ss).square().sum() + (sc + cs).square().sum()) / 2
        power["difference"][k - 1] = ((cc + ss).square().sum() + (sc - cs).square().sum()) / 2
    return power


def block_power(x: Float[Tensor, "pairs d"], p: int) -> Float[Tensor, "n n d"]:
    """Power of each column of x in frequency i of a times frequency j of b, at [i, j], each 0..p//2 (0 is the constant).

    All of it: the sum over i and j is the column's sum of squares, by Parseval. [k, k] is the family "block" of k,
    [k, 0] is "a" and [0, k] is "b".
    """
    check_grid(x, p)
    basis, n = FourierBasis(p), p // 2 + 1
    squares = basis.coefficients(basis.coefficients(x.view(p, p, -1), 0), 1).square()
    frequency = torch.tensor([0, *(k for k in basis.frequencies for _ in basis.rows([k]))], device=x.device)
    by_a = squares.new_zeros(n, p, x.shape[1]).index_add_(0, frequency, squares)
    return squares.new_zeros(n, n, x.shape[1]).index_add_(1, frequency, by_a)


def check_grid(x: Tensor, p: int) -> None:
    """Raise GridError unless the first axis is the full grid of p*p pairs."""
    if x.shape[0] != p * p:
        raise GridError(
            f"a batch of {x.shape[0]}: expected the full grid of p*p = {p * p} pairs in canonical order, as p is {p}"
        )
