"""Functions of several operands: the grid of all their values, and the families of each frequency on it.

The basis is the tensor product of :class:`FourierBasis` with itself, in the grid's canonical order (the first operand is
major: of two, row a*p + b). For w = 2 pi k / p, the families of frequency k are, of two operands,

- ``"a"``: cos(wa), sin(wa), constant in b;  ``"b"``: the same of b;
- ``"sum"``: cos(w(a+b)), sin(w(a+b));  ``"difference"``: cos(w(a-b)), sin(w(a-b));
- ``"block"``: the products of one of cos(wa), sin(wa) and one of cos(wb), sin(wb), four functions that
  span the sum and the difference together.

Of any number of operands they are the patterns of signs, ``"a"``, ``"c"``, ``"a+b"``, ``"a-c"``, ``"a+b-c"``, ... (the first sign is plus: a
wave and its conjugate are one real function), ``"sum"`` is the one of all operands with a plus, and ``"block"`` all products of one
function of every operand, which the patterns of all operands span. Of two, ``"a+b"`` is the sum and ``"a-b"`` the difference.
"""

import functools
import itertools
import string
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.errors import FamilyError, GridError
from analyses.fourier import FourierBasis
from hooked_rnn.errors import choices

FAMILIES = ("a", "b", "sum", "difference", "block")
"""Of two operands."""


def letters(operands: int) -> str:
    """The operands' names: a, b, c, ..."""
    return string.ascii_lowercase[:operands]


def sign_patterns(operands: int) -> dict[str, tuple[int, ...]]:
    """Signs of the operands by pattern ("a+b-c"), 0 for one that is not involved; the first is plus."""
    found = {}
    for signs in itertools.product((0, 1, -1), repeat=operands):
        terms = [f"{'+' if s > 0 else '-'}{x}" for s, x in zip(signs, letters(operands), strict=True) if s]
        if terms and terms[0].startswith("+"):
            found["".join(terms)[1:]] = signs
    return found


def families_of(operands: int) -> tuple[str, ...]:
    """The families whose names may be given: those of two by their own names first, then every pattern of signs."""
    patterns = sign_patterns(operands)
    named = FAMILIES if operands == 2 else (*letters(operands), "sum", "block")
    return tuple(dict.fromkeys([*named, *patterns]))


def signs_of(family: str, operands: int = 2) -> tuple[int, ...]:
    """The signs of a family that is a pattern; none, (), of "block".

    Raises:
        FamilyError: a family that so many operands do not have.
    """
    if family not in families_of(operands):
        of = "" if operands == 2 else f" of {operands} operands"
        raise FamilyError(f"unknown family {family!r}{of}: expected {choices(families_of(operands))}")
    if family == "block":
        return ()
    if family == "difference":
        return (1, -1)
    return (1,) * operands if family == "sum" else sign_patterns(operands)[family]


def all_numbers(p: int, operands: int = 2) -> Int[Tensor, "n operands"]:
    """Every row of the grid, in canonical order."""
    return torch.cartesian_prod(*[torch.arange(p)] * operands).view(-1, operands)


def grid_functions(p: int, frequencies: Iterable[int], family: str, operands: int = 2) -> Float[Tensor, "m pairs"]:
    """Orthonormal functions on the grid, a function a row: the family, of each of the frequencies.

    For even p and frequency p/2 signs make no difference: of two operands, sum, difference and block are one function.

    Raises:
        FamilyError: a family that so many operands do not have.
        FrequencyError: a frequency outside 1..p//2.
    """
    signs, basis = signs_of(family, operands), FourierBasis(p)
    functions = basis.functions(frequencies := basis.check(frequencies))
    if not signs:
        of_one = [basis.functions([k]) for k in frequencies]
        products = [functools.reduce(torch.kron, [f] * operands) for f in of_one]
        return torch.cat([functions.new_zeros(0, p**operands), *products])
    argument = (all_numbers(p, operands) @ torch.tensor(signs)) % p
    return functions[:, argument] / p ** (
        (operands - 1) / 2
    )  # each value of the argument occurs p**(operands - 1) times


def keep_on_grid(
    x: Float[Tensor, "pairs d"], p: int, frequencies: Iterable[int], family: str, operands: int = 2
) -> Float[Tensor, "pairs d"]:
    """The part of x, as d functions on the grid, that lies in the family of these frequencies.

    Raises:
        GridError: x has not p**operands rows.
        FamilyError, FrequencyError: as for :func:`grid_functions`.
    """
    check_grid(x, p, operands)
    functions = grid_functions(p, frequencies, family, operands).to(x)
    return functions.T @ (functions @ x)


def remove_from_grid(
    x: Float[Tensor, "pairs d"], p: int, frequencies: Iterable[int], family: str, operands: int = 2
) -> Float[Tensor, "pairs d"]:
    """x without the family of these frequencies: what :func:`keep_on_grid` leaves."""
    return x - keep_on_grid(x, p, frequencies, family, operands)


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


def check_grid(x: Tensor, p: int, operands: int = 2) -> None:
    """Raise GridError unless the first axis is the full grid of the operands."""
    if x.shape[0] != p**operands:
        grid = f"p*p = {p * p} pairs" if operands == 2 else f"p**{operands} = {p**operands} rows"
        raise GridError(f"a batch of {x.shape[0]}: expected the full grid of {grid} in canonical order, as p is {p}")


def check_logits(logits: Tensor, p: int, operands: int = 2) -> None:
    """Raise GridError unless these are the logits of the p answers on the full grid."""
    check_grid(logits, p, operands)
    check_answers(logits, p)


def check_answers(logits: Tensor, p: int) -> None:
    """Raise GridError unless there are p answers."""
    if logits.shape[1] != p:
        raise GridError(f"logits of {logits.shape[1]} answers: expected {p}, as p is {p}")
