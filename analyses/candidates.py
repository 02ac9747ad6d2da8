"""What the published "85.4% to 95.5% of the energy" can be about: every matrix, by every rule for how many components count.

Rangamani (2025) is known to us to say that the significant singular components hold 85.4% to 95.5% of the weights' energy;
which matrices these are, how many components are significant and what energy is, is not. So all that they may be is listed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from analyses.errors import ReportError, RuleError
from analyses.key_frequencies import find
from analyses.spectra import KeyFrequencies
from analyses.weights import product
from hooked_rnn import HookedRNN
from hooked_rnn.errors import choices

PUBLISHED = (0.854, 0.955)
"""The published range."""
MEASURES: dict[str, int] = {"energy": 2, "nuclear": 1}
"""What a component holds: its squared singular value, or the value itself."""
SMALLEST = 1e-6
"""Singular values below this share of the largest are zero but for rounding."""


@dataclass(frozen=True)
class Candidate:
    """One matrix by one rule."""

    matrix: str
    """Its name."""
    rule: str
    """How its significant components were counted, of :data:`COUNTS`."""
    components: int
    """How many there are."""
    rank: int
    """Of how many."""
    holds: dict[str, float]
    """Share that they hold, by measure."""

    def in_range(self, measure: str = "energy") -> bool:
        """Whether that is in the published range, to the last digit published."""
        low, high = PUBLISHED
        return low <= round(self.holds[measure], 3) <= high


@dataclass(frozen=True)
class Candidates:
    """All of them, of one model."""

    rows: list[Candidate]
    """By matrix, then by rule."""
    key: KeyFrequencies
    """The K key frequencies of the rule "2K", and the rule that found them."""

    def fitting(self, rule: str, measure: str = "energy") -> list[str]:
        """The matrices that are in the published range by a rule."""
        return [row.matrix for row in self.rows if row.rule == rule and row.in_range(measure)]

    def to_markdown(self, measure: str = "energy") -> str:
        """A table of matrices by rules: the share held, in bold where it is in the published range, and by how many components.

        Raises:
            RuleError: an unknown measure.
        """
        if measure not in MEASURES:
            raise RuleError(f"unknown measure {measure!r}: expected {choices(MEASURES)}")
        cells: dict[str, list[str]] = {}
        for row in self.rows:
            share = f"{row.holds[measure]:.1%}"
            share = f"**{share}**" if row.in_range(measure) else share
            cells.setdefault(f"{row.matrix} (rank {row.rank})", []).append(f"{share} ({row.components})")
        table = [["matrix", *COUNTS], ["---"] * (1 + len(COUNTS)), *([name, *held] for name, held in cells.items())]
        return "\n".join(f"| {' | '.join(line)} |" for line in table)


def candidates(adder: Adder, key: KeyFrequencies | None = None) -> Candidates:
    """Every matrix of a one-layer vanilla network by every rule.

    Args:
        adder: the model and its task.
        key: its key frequencies; by the rule "embedding share" if not given.

    Raises:
        ReportError: another kind of model.
    """
    key = find(adder) if key is None else key
    rows = []
    for name, matrix in candidate_matrices(adder).items():
        values = torch.linalg.svdvals(matrix.double())
        values = values[values > SMALLEST * values[0]] if float(values[0]) > 0 else values[:0]
        for rule, count in COUNTS.items():
            n = min(count(values, (matrix.shape[0], matrix.shape[1]), 2 * len(key.frequencies)), len(values))
            holds = {measure: _held(values**power, n) for measure, power in MEASURES.items()}
            rows.append(Candidate(name, rule, n, len(values), holds))
    return Candidates(rows, key)


def candidate_matrices(adder: Adder) -> dict[str, Float[Tensor, "_n _m"]]:
    """Every weight of a one-layer vanilla network and what they make of each other, by name.

    "h_1" is the state after one number, relu(W_E W_ih) where there are no biases. Of W_E only the numbers' rows count.

    Raises:
        ReportError: another kind of model.
    """
    model = adder.model
    if not isinstance(model, HookedRNN) or model.cfg.cell != "rnn" or model.cfg.n_layers != 1:
        what = (
            f"cell={model.cfg.cell!r}, n_layers={model.cfg.n_layers}" if isinstance(model, HookedRNN) else type(model)
        )
        raise ReportError(f"the model has {what}: expected a HookedRNN with cell='rnn', n_layers=1")
    W_E, W_U = adder.W_E, adder.W_U
    block = model.get_submodule("blocks.0")
    W_ih, W_hh = block.get_parameter("W_ih").detach(), block.get_parameter("W_hh").detach()
    one_of_each = adder.tokens[:: len(adder.tokens) // adder.p]
    h_1 = adder.activation("blocks.0.hook_hidden", position=0, tokens=one_of_each)
    return {
        "W_E": W_E,
        "W_ih": W_ih,
        "W_hh": W_hh,
        "W_U": W_U,
        "[W_ih; W_hh]": torch.cat([W_ih, W_hh]),
        "W_E W_ih": product(W_E, W_ih),
        "h_1": h_1,
        "h_1 W_hh": product(h_1, W_hh),
        "W_ih W_hh": product(W_ih, W_hh),
        "W_E W_ih W_hh": product(W_E, W_ih, W_hh),
        "W_hh W_U": product(W_hh, W_U),
        "W_E W_ih W_hh W_U": product(W_E, W_ih, W_hh, W_U),
    }


Count = Callable[[Tensor, tuple[int, int], int], int]


def _elbow(values: Tensor, shape: tuple[int, int], twice_k: int) -> int:
    """Those above the largest ratio between consecutive singular values, the smaller half left out (there it is noise)."""
    half = values[: len(values) // 2 + 1]
    return int((half[:-1] / half[1:]).argmax()) + 1 if len(half) > 1 else len(values)


def _effective_rank(values: Tensor, shape: tuple[int, int], twice_k: int) -> int:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007), rounded."""
    shares = values / values.sum()
    return round(float(torch.exp(-(shares * shares.log()).sum()))) if len(values) else 0


def _above_noise(values: Tensor, shape: tuple[int, int], twice_k: int) -> int:
    """Those above what white noise of the same norm has: s (sqrt(n) + sqrt(m)), s its standard deviation (Marchenko, Pastur)."""
    n, m = shape
    deviation = float(values.square().sum() / (n * m)) ** 0.5
    return int((values > deviation * (n**0.5 + m**0.5)).sum())


def _tenth(values: Tensor, shape: tuple[int, int], twice_k: int) -> int:
    """Those of at least a tenth of the largest."""
    return int((values >= values[0] / 10).sum()) if len(values) else 0


COUNTS: Mapping[str, Count] = {
    "2K": lambda values, shape, twice_k: twice_k,
    "12": lambda values, shape, twice_k: 12,
    "elbow": _elbow,
    "effective rank": _effective_rank,
    "above noise": _above_noise,
    "a tenth of the largest": _tenth,
}
"""How many singular components are significant, by rule: 2 for each key frequency, 2 for each of the six published, ..."""


def _held(values: Tensor, n: int) -> float:
    return float(values[:n].sum() / values.sum()) if len(values) else 0.0
