"""Spectra over the grid of any number of operands: which operands a Fourier term involves, and in what pattern.

A function of k numbers modulo p is a sum of waves exp(2 pi i (m_1 a + m_2 b + ...) / p). Those whose m_i are all zero or
plus or minus one frequency make patterns, named by their signs: ``"a"``, ``"a+b"``, ``"a-b"``, ``"a+b+c"``, ``"a+b-c"``, ... (the first
sign is plus: a wave and its conjugate are one real function). All others involve several frequencies: cross terms.
For two operands these are the families of :mod:`analyses.grid`: "a+b" is the sum, "a-b" the difference.
"""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from analyses.errors import GridError
from analyses.fourier import FourierBasis
from analyses.grid import all_numbers, letters, sign_patterns

COLUMNS = 64
"""How many columns are transformed at a time."""


@dataclass(frozen=True)
class TensorSpectrum:
    """All of the power of an activation over the grid of operands."""

    operands: int
    """How many."""
    constant: float
    """Power of the mean."""
    patterns: dict[str, Float[Tensor, " n_frequencies"]]
    """By pattern: power of each frequency 1..p//2. For even p, where signs make no difference to p/2, it counts as all plus."""
    cross: dict[str, float]
    """By the operands that they involve ("ab", "abc"): power of the terms of several frequencies."""

    @property
    def total(self) -> float:
        """All of it: the activation's sum of squares (Parseval)."""
        return self.constant + sum(self.by_operands.values())

    @property
    def by_operands(self) -> dict[str, float]:
        """Power by which operands a term involves: "a", "b", "ab", ..."""
        power = dict.fromkeys(_names(self.operands), 0.0)
        for pattern, of_frequencies in self.patterns.items():
            power[pattern.replace("+", "").replace("-", "")] += float(of_frequencies.sum())
        return {names: value + self.cross.get(names, 0.0) for names, value in power.items()}

    @property
    def sum(self) -> Float[Tensor, " n_frequencies"]:
        """Power of cos(w(a+b+...)) and sin(w(a+b+...)), all operands with a plus."""
        return self.patterns["+".join(letters(self.operands))]


def tensor_spectrum(x: Float[Tensor, "n d"], p: int, operands: int = 2) -> TensorSpectrum:
    """All of the power of an activation over the grid of operands, in canonical order (the first is major).

    Raises:
        ModulusError: p is no modulus.
        GridError: not p**operands rows, or fewer than one operand.
    """
    n_frequencies = len(FourierBasis(p).frequencies)
    if operands < 1 or len(x) != p**operands:
        raise GridError(
            f"a batch of {len(x)}: expected the full grid of p**operands = {p}**{operands} rows in canonical order"
        )
    power = _power(x.detach().double(), p, operands)
    m = all_numbers(p, operands).to(power.device)
    frequency = torch.minimum(m, p - m)  # of each operand; 0 where it is not involved
    highest = frequency.max(dim=1).values
    pure = ((frequency == 0) | (frequency == highest[:, None])).all(1)
    sign = torch.where(m == 0, 0, torch.where(2 * m <= p, 1, -1))
    first = sign.gather(1, (sign != 0).long().argmax(1, keepdim=True))

    of_patterns = {}
    for pattern, signs in sign_patterns(operands).items():
        here = pure & (sign * first == torch.tensor(signs, device=m.device)).all(1)
        of_patterns[pattern] = power.new_zeros(n_frequencies + 1).index_add_(0, highest[here], power[here])[1:]
    cross = {}
    for names in _names(operands):
        if len(names) > 1:
            involved = torch.tensor([letter in names for letter in letters(operands)], device=m.device)
            cross[names] = float(power[~pure & ((m != 0) == involved).all(1)].sum())
    return TensorSpectrum(operands, float(power[0]), of_patterns, cross)


def activation_spectrum(adder: Adder, name: str, position: int | None = None) -> TensorSpectrum:
    """Spectrum of any activation of a model over the grid of its task's operands; where it answers, if no position is given.

    Raises:
        ActivationError: an activation without such a position.
    """
    return tensor_spectrum(adder.activation(name, position), adder.p, adder.task.operands)


def _power(x: Tensor, p: int, operands: int) -> Float[Tensor, " n"]:
    """Squared modulus of each wave's orthonormal coefficient, over all columns."""
    grid = x.view(*[p] * operands, x.shape[1])
    axes = tuple(range(operands))
    power = x.new_zeros(len(x))
    for columns in grid.split(COLUMNS, dim=-1):
        power += torch.fft.fftn(columns, dim=axes, norm="ortho").abs().square().sum(-1).flatten()
    return power


def _names(operands: int) -> list[str]:
    """Each choice of operands: a, b, ab, ..."""
    return ["".join(c) for n in range(1, operands + 1) for c in itertools.combinations(letters(operands), n)]
