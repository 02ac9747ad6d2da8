"""Which frequencies a weight or an activation is made of."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.fourier import FourierBasis
from analyses.grid import family_power

TIMES_UNIFORM = 2.0
"""Default threshold of the key frequencies: this many times the share that each would have of white noise."""


@dataclass(frozen=True)
class Spectrum:
    """How the power of something is shared out among the frequencies."""

    shares: Float[Tensor, " n_frequencies"]
    """Share of the non-constant power of each frequency 1..p//2; they sum to one."""

    @property
    def by_share(self) -> list[int]:
        """All frequencies, the strongest first."""
        return [int(i) + 1 for i in self.shares.argsort(descending=True, stable=True)]

    def share(self, frequency: int) -> float:
        """The share of one frequency."""
        return float(self.shares[frequency - 1])

    def share_of(self, frequencies: list[int]) -> float:
        """The share of several frequencies together."""
        return sum((self.share(k) for k in frequencies), start=0.0)

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


def weight_spectrum(weight: Float[Tensor, "*shape"], p: int, dim: int = 0) -> Spectrum:
    """Spectrum of a weight as functions of its axis ``dim`` (tokens or answers), summed over the others."""
    return _normalized(FourierBasis(p).power(weight.detach().double(), dim)[1:])


def grid_spectrum(activation: Float[Tensor, "pairs d"], p: int) -> Spectrum:
    """Spectrum of an activation on the grid of pairs: families a, b, sum and difference of each frequency."""
    return _normalized(torch.stack(list(family_power(activation.detach().double(), p).values())).sum(0))


def key_frequencies(spectrum: Spectrum, times_uniform: float = TIMES_UNIFORM) -> KeyFrequencies:
    """The frequencies whose share is above ``times_uniform`` times the uniform share 1/(p//2).

    White noise has every frequency near the uniform share, and so none of them as a key frequency.
    """
    threshold = times_uniform / len(spectrum.shares)
    by_share = [k for k in spectrum.by_share if spectrum.share(k) > threshold]
    return KeyFrequencies(sorted(by_share), by_share, spectrum, threshold)


def _normalized(power: Tensor) -> Spectrum:
    total = power.sum()
    return Spectrum(power / total if total > 0 else torch.zeros_like(power))
