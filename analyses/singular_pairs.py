"""Singular vectors of a weight in pairs, each pair matched to the cosine and the sine of a frequency."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from analyses.errors import RuleError
from analyses.fourier import FourierBasis
from analyses.weights import number_weights


@dataclass(frozen=True)
class SingularPair:
    """Two singular vectors, as functions of the numbers, and the frequency that both are the most of."""

    frequency: int
    """Which; the plane that the pair is compared with is that of its cosine and sine."""
    components: tuple[int, ...]
    """Their places among the singular vectors, 0 the strongest; one alone where no partner was found, and for p/2."""
    energy: float
    """Share of the weight's energy (squared singular values) that they hold."""
    purities: tuple[float, ...]
    """Of each vector, the share of its power at the frequency."""
    cosines: tuple[float, ...]
    """Cosines of the principal angles between the vectors' span and the frequency's plane, the largest first."""

    @property
    def purity(self) -> float:
        """Of their span: mean squared cosine of the principal angles, which is also the mean of the vectors' purities."""
        return sum(c * c for c in self.cosines) / len(self.cosines)

    @property
    def angles(self) -> tuple[float, ...]:
        """The principal angles in degrees, the smallest first."""
        return tuple(math.degrees(math.acos(min(1.0, c))) for c in self.cosines)

    @property
    def consecutive(self) -> bool:
        """Whether the two stand next to each other, as a circle's two equal singular values do."""
        return len(self.components) == 2 and self.components[1] == self.components[0] + 1


@dataclass(frozen=True)
class SingularPairs:
    """A weight's singular vectors on its axis of numbers, paired; and its energy by frequency."""

    pairs: list[SingularPair]
    """In the order of their first vectors."""
    energy_by_frequency: Float[Tensor, " n"]
    """Share of the weight's energy at each frequency 0..p//2, 0 the constant; they sum to one. Needs no singular vectors, and
    so is not blurred where two frequencies of equal strength mix in them."""

    @property
    def mean_purity(self) -> float:
        """Mean purity of the pairs, weighted by energy; 0 where there is none."""
        energy = sum(pair.energy for pair in self.pairs)
        return sum(pair.purity * pair.energy for pair in self.pairs) / energy if energy > 0 else 0.0


def singular_pairs(weight: Float[Tensor, "p d"], p: int, components: int | None = None) -> SingularPairs:
    """Pair the first singular vectors of a weight whose rows are the numbers.

    In the order of singular values, each vector goes to the frequency that most of its power is at, and two that go to the
    same one are a pair. A weight made of circles of different radii has one pair for each, with purity 1 and angles 0.

    Args:
        weight: rows are the numbers 0 to p - 1, as tokens or as answers.
        p: the modulus.
        components: how many singular vectors; None for all that have energy.

    Raises:
        ModulusError: not p rows.
        RuleError: fewer than no components.
    """
    if components is not None and components < 0:
        raise RuleError(f"components={components}: expected None, for all, or a number of at least 0")
    weight = weight.detach().double()
    basis = FourierBasis(p)
    power = basis.power(weight)
    left, values, _ = torch.linalg.svd(weight, full_matrices=False)
    energy = values.square() / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    n = int((energy > torch.finfo(values.dtype).eps).sum())
    vectors = left[:, : n if components is None else min(components, n)]
    strongest = [int(basis.power(vector)[1:].argmax()) + 1 for vector in vectors.T]
    total = power.sum()
    return SingularPairs(
        [_pair(k, where, vectors, energy, basis) for k, where in _paired(strongest, p)],
        power / total if total > 0 else power,
    )


def weight_pairs(adder: Adder, components: int | None = None) -> dict[str, SingularPairs]:
    """The pairs of every weight that has an axis of numbers; for the names see :func:`analyses.weights.number_weights`."""
    return {name: singular_pairs(weight, adder.p, components) for name, weight in number_weights(adder).items()}


def _paired(strongest: list[int], p: int) -> list[tuple[int, tuple[int, ...]]]:
    """Frequency and places of each pair, first come first served."""
    open_at: dict[int, int] = {}  # by frequency: the pair that waits for its second vector
    pairs: list[tuple[int, tuple[int, ...]]] = []
    for place, k in enumerate(strongest):
        if k in open_at:
            index = open_at.pop(k)
            pairs[index] = (k, (*pairs[index][1], place))
        else:
            if 2 * k < p:  # p/2 has a cosine only
                open_at[k] = len(pairs)
            pairs.append((k, (place,)))
    return pairs


def _pair(frequency: int, where: tuple[int, ...], vectors: Tensor, energy: Tensor, basis: FourierBasis) -> SingularPair:
    inner = basis.functions([frequency]).to(vectors) @ vectors[:, list(where)]
    return SingularPair(
        frequency,
        where,
        float(energy[list(where)].sum()),
        tuple(inner.square().sum(0).tolist()),
        tuple(torch.linalg.svdvals(inner).tolist()),
    )
