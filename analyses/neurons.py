"""Neurons by frequency: how much of each neuron's variance a frequency explains, at which phase, and who shares neurons."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.errors import FamilyError
from analyses.fourier import FourierBasis
from analyses.grid import check_grid, grid_functions, sign_patterns, signs_of
from hooked_rnn.errors import choices

EXPLAINED = 0.85
"""Default threshold: share of its variance that a neuron's frequency explains (Nanda et al. 2023)."""
NANDA = ("a", "b", "block")
"""Default families of two operands: functions of one frequency in a and b, and their products (Nanda et al. 2023)."""
TINY = 1e-12
"""A neuron whose variance is at most this share of its sum of squares does not vary: that is rounding."""


@dataclass(frozen=True)
class Cluster:
    """The neurons of one frequency."""

    frequency: int
    """Which."""
    neurons: list[int]
    """Those of whose variance no other frequency explains more."""
    mean_explained: float
    """Mean share of their variance that it explains."""
    above: int
    """For how many of them that is above the threshold."""


@dataclass(frozen=True)
class Neurons:
    """What each frequency explains of each neuron."""

    p: int
    """The modulus."""
    explained: Float[Tensor, "neurons n_frequencies"]
    """Share of a neuron's variance over all pairs that a frequency 1..p//2 explains; zeros for one that does not vary."""
    coefficients: dict[str, Float[Tensor, "neurons n_frequencies two"]]
    """By family "a", "b", "sum", "difference" (of other than two operands, by pattern): coefficients of the orthonormal cosine
    and sine."""
    families: tuple[str, ...]
    """Which families explain."""
    threshold: float
    """Above which share a neuron counts as explained."""
    operands: int = 2
    """Of how many numbers the grid is."""

    @property
    def frequency(self) -> Int[Tensor, " neurons"]:
        """The frequency that explains most of each neuron; 0 for one that does not vary."""
        return torch.where(self.best > 0, self.explained.argmax(1) + 1, 0)

    @property
    def best(self) -> Float[Tensor, " neurons"]:
        """What its frequency explains of each neuron."""
        return self.explained.max(1).values

    @property
    def share_above(self) -> float:
        """Share of all neurons, those that do not vary included, of which their frequency explains more than the threshold."""
        return float((self.best > self.threshold).double().mean())

    @property
    def clusters(self) -> list[Cluster]:
        """The neurons by frequency, in ascending order; frequencies without neurons are left out."""
        found = []
        for k in range(1, self.explained.shape[1] + 1):
            of_k = self.frequency == k
            if of_k.any():
                best = self.best[of_k]
                above = int((best > self.threshold).sum())
                found.append(Cluster(k, of_k.nonzero()[:, 0].tolist(), float(best.mean()), above))
        return found

    def phases(self, family: str) -> Float[Tensor, " neurons"]:
        """Phase f of each neuron's part in a family, at its frequency: the part is r cos(wx + f), x being a, b, a+b or a-b.

        NaN for a neuron that does not vary.

        Raises:
            FamilyError: a family that is not in ``coefficients``.
        """
        c, s = self._own(family).unbind(1)
        return torch.where(self.frequency > 0, torch.atan2(-s, c), torch.nan)

    def amplitudes(self, family: str) -> Float[Tensor, " neurons"]:
        """Size of the same part: its root mean square over all pairs, times sqrt(2) (so the r above, but for even p at p/2)."""
        return self._own(family).norm(dim=1) * 2**0.5 / self.p ** (self.operands / 2)

    def overlap(self, frequencies: Sequence[int] | None = None) -> Float[Tensor, "k k"]:
        """How two frequencies share neurons: the cosine between what they explain, as vectors over the neurons.

        1 if they explain the same neurons in the same proportions, 0 if no neuron has both.

        Args:
            frequencies: of which; all if None.
        """
        columns = range(1, self.explained.shape[1] + 1) if frequencies is None else frequencies
        of_each = self.explained[:, [k - 1 for k in FourierBasis(self.p).check(columns)]]
        return torch.nn.functional.normalize(of_each, dim=0).T @ torch.nn.functional.normalize(of_each, dim=0)

    def to_markdown(self) -> str:
        """The clusters as a table."""
        rows = [f"| {c.frequency} | {len(c.neurons)} | {c.mean_explained:.1%} | {c.above} |" for c in self.clusters]
        head = f"| frequency | neurons | mean variance explained | above {self.threshold:.0%} |"
        return "\n".join([head, "| --- | --- | --- | --- |", *rows])

    def _own(self, family: str) -> Float[Tensor, "neurons two"]:
        """Coefficients in a family of each neuron's own frequency."""
        if family not in self.coefficients:
            raise FamilyError(f"unknown family {family!r}: expected {choices(self.coefficients)}")
        index = (self.frequency - 1).clamp(min=0)
        return self.coefficients[family][torch.arange(len(index), device=index.device), index]


def cluster_neurons(
    activation: Float[Tensor, "pairs neurons"],
    p: int,
    threshold: float = EXPLAINED,
    families: Sequence[str] | None = None,
    operands: int = 2,
) -> Neurons:
    """What each frequency explains of each neuron's variance over the full grid of pairs.

    Args:
        activation: of all pairs in canonical order, or of all p**operands rows.
        p: the modulus.
        threshold: above which share a neuron counts as explained.
        families: whose functions explain, of :mod:`analyses.grid`: orthogonal ones, so "block" or "sum" and "difference". Nanda's
            "a", "b" and "block" if None; of other than two operands every pattern, which is the same for them.
        operands: of how many numbers the grid is.

    Raises:
        GridError: not p**operands rows.
        FamilyError: no family, an unknown one, one that stands twice, or "block" beside a part of it.
    """
    check_grid(activation, p, operands)
    single = {"a": "a", "b": "b", "sum": "a+b", "difference": "a-b"}  # of two operands, the families by their own names
    single = single if operands == 2 else {pattern: pattern for pattern in sign_patterns(operands)}
    families = (NANDA if operands == 2 else tuple(single)) if families is None else tuple(families)
    _check_families(families, operands)
    x = activation.detach().double()
    coefficients = {name: _coefficients(x, p, pattern, operands) for name, pattern in single.items()}
    by_signs = {signs_of(name, operands): c.square().sum(2) for name, c in coefficients.items()}
    block = torch.stack([power for signs, power in by_signs.items() if all(signs)]).sum(0)
    found = torch.stack([by_signs.get(signs_of(family, operands), block) for family in families]).sum(0)
    total = x.square().sum(0)
    variance = (x - x.mean(0)).square().sum(0)
    varies = variance > TINY * total
    explained = torch.where(varies[:, None], found / torch.where(varies, variance, 1.0)[:, None], 0.0)
    return Neurons(p, explained, coefficients, families, threshold, operands)


def _coefficients(
    x: Float[Tensor, "pairs neurons"], p: int, pattern: str, operands: int
) -> Float[Tensor, "neurons n_frequencies two"]:
    """On cosine and sine of each frequency. For even p, p/2 has no sine, and counts where all signs are plus."""
    values = (grid_functions(p, FourierBasis(p).frequencies, pattern, operands).to(x) @ x).T
    if p % 2 == 0:
        values = torch.cat([values, values.new_zeros(len(values), 1)], dim=1)
        if "-" in pattern:
            values[:, -2] = 0.0
    return values.view(len(values), -1, 2)


def _check_families(families: Sequence[str], operands: int) -> None:
    signs = [signs_of(family, operands) for family in families]
    parts_of_block = [family for family, of_it in zip(families, signs, strict=True) if of_it and all(of_it)]
    if not families or len(set(signs)) < len(signs) or ("block" in families and parts_of_block):
        raise FamilyError(
            f"families {list(families)}: expected at least one, each once, and not 'block' beside its parts, as 'sum' or 'difference'"
        )
