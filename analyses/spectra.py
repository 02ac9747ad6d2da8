"""Which frequencies a weight or an activation is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from analyses.errors import FrequencyError
from analyses.fourier import FourierBasis, check_distinct
from analyses.grid import block_power, family_power
from analyses.weights import number_weights

TIMES_UNIFORM = 2.0
"""Default threshold of the key frequencies: this many times the share that each would have of white noise."""


@dataclass(frozen=True)
class Spectrum:
    """How the power of something is shared out among the frequencies."""

    shares: Float[Tensor, " n_frequencies"]
    """Share of each frequency 1..p//2, of the non-constant power: these sum to one. (What a rule of
    :mod:`analyses.key_frequencies` shares out otherwise, it says.)"""

    @property
    def by_share(self) -> list[int]:
        """All frequencies, the strongest first."""
        return [int(i) + 1 for i in self.shares.argsort(descending=True, stable=True)]

    def share(self, frequency: int) -> float:
        """The share of one frequency.

        Raises:
            FrequencyError: one that the spectrum does not have.
        """
        if frequency not in range(1, len(self.shares) + 1):
            raise FrequencyError(f"frequency {frequency!r}: expected a whole number from 1 to {len(self.shares)}")
        return float(self.shares[frequency - 1])

    def share_of(self, frequencies: list[int]) -> float:
        """The share of several frequencies together.

        Raises:
            FrequencyError: as :meth:`share`, and for one that stands twice.
        """
        return sum((self.share(k) for k in check_distinct(frequencies)), start=0.0)

    def strongest(self, n: int) -> set[int]:
        """The n strongest frequencies."""
        return set(self.by_share[:n])


@dataclass(frozen=True)
class KeyFrequencies:
    """The frequencies that stand out of a spectrum, and the rule by which."""

    frequencies: list[int]
    """The key frequencies, in ascending order."""
    by_share: list[int]
    """The same, the strongest first."""
    spectrum: Spectrum
    """The spectrum that they stand out of."""
    threshold: float
    """The share above which a frequency is a key frequency."""
    rule: str = "times uniform"
    """The rule's name."""
    of: str = ""
    """What the spectrum is of, where the rule knows."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """The rule's arguments, as used."""


@dataclass(frozen=True)
class FamilySpectrum:
    """All of the power of an activation over the grid of pairs, by family."""

    constant: float
    """Power of the mean over all pairs."""
    families: dict[str, Float[Tensor, " n_frequencies"]]
    """Of "a", "b", "sum" and "difference": power of each frequency 1..p//2. For even p, where the sum and the difference of
    p/2 are one function, it counts as sum."""
    cross: Float[Tensor, "n_frequencies n_frequencies"]
    """Power of the products of a frequency of a (row) and another of b (column); zeros on the diagonal."""

    @property
    def total(self) -> float:
        """All of it: the activation's sum of squares (Parseval)."""
        return self.constant + sum(self.powers.values())

    @property
    def powers(self) -> dict[str, float]:
        """Power of each family over all frequencies, "cross" the last."""
        return {family: float(power.sum()) for family, power in self.families.items()} | {
            "cross": float(self.cross.sum())
        }

    @property
    def shares(self) -> dict[str, float]:
        """Their shares of what is not constant; zeros where there is nothing."""
        varying = sum(self.powers.values())
        return {family: power / varying if varying > 0 else 0.0 for family, power in self.powers.items()}

    def spectrum(self, family: str) -> Spectrum:
        """Spectrum of one family alone: shares of that family's power."""
        return _normalized(self.families[family])


def weight_spectrum(weight: Float[Tensor, "*shape"], p: int, dim: int = 0) -> Spectrum:
    """Spectrum of a weight as functions of its axis ``dim`` (tokens or answers), summed over the others."""
    return _normalized(FourierBasis(p).power(weight.detach().double(), dim)[1:])


def grid_spectrum(activation: Float[Tensor, "pairs d"], p: int) -> Spectrum:
    """Spectrum of an activation on the grid of pairs: families a, b, sum and difference of each frequency."""
    return _normalized(torch.stack(list(family_power(activation.detach().double(), p).values())).sum(0))


def weight_spectra(adder: Adder) -> dict[str, Spectrum]:
    """Spectra of every weight that has an axis of numbers; for the names see :func:`analyses.weights.number_weights`."""
    return {name: weight_spectrum(weight, adder.p) for name, weight in number_weights(adder).items()}


def family_spectrum(activation: Float[Tensor, "pairs d"], p: int) -> FamilySpectrum:
    """All of the power of an activation over the grid of pairs: constant, a, b, sum, difference and cross.

    For more than two operands see :func:`analyses.operands.tensor_spectrum`.

    Raises:
        GridError: not p*p rows.
    """
    x = activation.detach().double()
    power = block_power(x, p).sum(-1)
    return FamilySpectrum(float(power[0, 0]), family_power(x, p), power[1:, 1:] - power[1:, 1:].diagonal().diag_embed())


def key_frequencies(spectrum: Spectrum, times_uniform: float = TIMES_UNIFORM) -> KeyFrequencies:
    """The frequencies whose share is above ``times_uniform`` times the uniform share 1/(p//2).

    White noise has every frequency near the uniform share, and so none of them as a key frequency.
    """
    threshold = times_uniform / len(spectrum.shares)
    by_share = [k for k in spectrum.by_share if spectrum.share(k) > threshold]
    return KeyFrequencies(
        sorted(by_share), by_share, spectrum, threshold, settings={"times_uniform": float(times_uniform)}
    )


def _normalized(power: Tensor) -> Spectrum:
    total = power.sum()
    return Spectrum(power / total if total > 0 else torch.zeros_like(power))
