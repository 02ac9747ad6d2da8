"""The swap test: does one model's activation, mapped linearly, do another model's work?

Model stitching (Lenc and Vedaldi 2015, arXiv 1411.5908; Bansal, Nakkiran and Barak 2021, arXiv 2106.07682), without any training:
an affine map (:mod:`analyses.linear_map`) is fitted by least squares from the source's activation to the target's, on some
pairs; on the others the mapped activation is put into the target by an ordinary hook, and the target runs on from there. The
target's weights stay as they are, and neither answers nor losses are seen by the fit.

With L(a, b, c) the logits of held-out pairs, y the right answer, and w = 2 pi k / p:

- the amplitude of frequency k is the least squares coefficient of cos(w(y - c)) in L, mean over pairs of
  2/p sum_c L(a, b, c) cos(w(y - c)). (For each pair these cosines are orthogonal over c, so it does not matter which pairs.)
- what survives of k is the amplitude with the swap over that without.
- k alone: M, the mapped activation of all pairs, becomes mean M + P_k M, with P_k the projection on k's functions of the
  pair in the families said ("a", "b" and "block": every product of cos and sin of wa and of wb); without k: M - P_k M. The
  same of the target's own activation stands beside it.
- k is available in the source as far as cos(wy) and sin(wy) are affine functions of its activation: their fraction of variance
  explained on the held-out pairs, by a map fitted on the others.

What it shows and does not show is said in docs/stitching.md.
"""

import copy
import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional

from analyses.adder import Adder
from analyses.errors import GridError, ModulusError, StitchingError
from analyses.fourier import FourierBasis
from analyses.grid import keep_on_grid
from analyses.key_frequencies import find
from analyses.linear_map import (
    LinearMap,
    check_ridge,
    explained,
    fit_linear_map,
    gaussian,
    of_rank,
    permutation,
    rotated,
)
from analyses.places import Place, last_place, logits_with, read
from analyses.sites import reads_linearly
from hooked_rnn import HookedRNN

SEEDS = (0, 1, 2, 3, 4)
"""Of the splits, if no others are given."""
FAMILIES = ("a", "b", "block")
"""Whose functions a frequency's part of an activation is made of, if no others are given."""
NEGLIGIBLE = 0.01
"""An amplitude below this share of the largest is too small to ask what survives of it."""

CONTROLS = {
    "mean": "the target's mean activation for every pair",
    "rotated": "the fitted map after a random rotation of the whitened source: the same covariance comes out",
    "gaussian": "a map of normal numbers, scaled so that what it makes varies as much",
    "shuffled": "a map fitted to the same pairs' activations in random order",
    "untrained": "a map fitted from a source of the same sizes with random weights",
}
"""What should fail if the swap is to mean anything."""
LIMITED = {
    "rank": "the best map of rank 2K, for the target's K key frequencies",
    "circles": "a map fitted to the target's circles alone: its constant, and cos and sin of w_k y for its key frequencies",
    "own circles": "those circles themselves, without any source: as much as 'circles' can reach",
    "shared circles": "of them, those of the frequencies that are key to both: what the target has if nothing else gets across",
}
"""The map held to two dimensions for each key frequency, and what circles can reach without any map."""


@dataclass(frozen=True)
class Outcome:
    """What the target does on the held-out pairs with something put in."""

    accuracy: float
    loss: float
    """Mean cross entropy, in nats."""
    explained: float
    """Fraction of the variance of the target's own activation that what is put in explains; below 0 if it is worse than a mean."""
    amplitudes: Float[Tensor, " n_frequencies"]
    """Of cos(w_k(y - c)) in the logits, by frequency 1..p//2."""


@dataclass(frozen=True)
class FrequencyRuns:
    """One frequency kept alone in an activation, or left out of it."""

    alone: Outcome
    """In the mapped activation."""
    without: Outcome
    own_alone: Outcome
    """In the target's own."""
    own_without: Outcome


@dataclass(frozen=True)
class Trial:
    """One split of the pairs."""

    seed: int
    plain: Outcome
    """The target as it is."""
    swapped: Outcome
    """With the mapped activation."""
    others: dict[str, Outcome]
    """By the names of :data:`CONTROLS` and :data:`LIMITED`."""
    available: Float[Tensor, " n_frequencies"]
    """How far cos and sin of w_k y are affine functions of the source's activation, by frequency 1..p//2."""
    runs: dict[int, FrequencyRuns]
    """By frequency."""

    def survives(self, frequency: int) -> float | None:
        """Amplitude with the swap over that without: 1 where all of it survives, 0 where none does.

        None where the target has next to nothing of the frequency: below :data:`NEGLIGIBLE` of its largest amplitude.
        """
        own = self.plain.amplitudes
        if own[frequency - 1].abs() <= NEGLIGIBLE * own.abs().max():
            return None
        return float(self.swapped.amplitudes[frequency - 1] / own[frequency - 1])


@dataclass(frozen=True)
class Range:
    """A number over the splits."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """Of several values."""
        return cls(min(values), statistics.median(values), max(values))

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.min:{spec}} to {self.max:{spec}})"


@dataclass(frozen=True)
class SwapTest:
    """One direction of the swap, over several splits."""

    source: Place
    target: Place
    source_frequencies: list[int]
    """Key frequencies."""
    target_frequencies: list[int]
    ridge: float
    mean: bool
    """Whether the mean is in the map."""
    fraction: float
    """Share of the pairs that the map is fitted on."""
    families: tuple[str, ...]
    """Of "alone" and "without"."""
    trials: list[Trial]

    def range(self, of: Callable[[Trial], float]) -> Range:
        """Least, median and most of a number over the splits."""
        return Range.of([of(trial) for trial in self.trials])

    def to_markdown(self) -> str:
        """Two tables: what is put in, and what becomes of each frequency. Median over the splits, least to most in brackets."""
        put_in = [self._put_in_row(name, pick) for name, pick in self._outcomes().items()]
        by_frequency = [self._frequency_row(k) for k in self.trials[0].runs]
        return f"{_table(PUT_IN, put_in)}\n\n{_table(BY_FREQUENCY, by_frequency)}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, of what JSON has."""
        fields = {name: getattr(self, name) for name in ("source_frequencies", "target_frequencies", "ridge", "mean")}
        places = {"source": dataclasses.asdict(self.source), "target": dataclasses.asdict(self.target)}
        rest = {"fraction": self.fraction, "families": list(self.families)}
        return {**places, **fields, **rest, "trials": [_plain(dataclasses.asdict(trial)) for trial in self.trials]}

    def _outcomes(self) -> dict[str, Callable[[Trial], Outcome]]:
        others = {name: lambda t, name=name: t.others[name] for name in self.trials[0].others}
        return {"its own": lambda t: t.plain, "swapped": lambda t: t.swapped, **others}

    def _put_in_row(self, name: str, pick: Callable[[Trial], Outcome]) -> list[str]:
        accuracy, loss, share = (
            self.range(lambda t: pick(t).accuracy),
            self.range(lambda t: pick(t).loss),
            self.range(lambda t: pick(t).explained),
        )
        return [name, f"{accuracy:.1%}", f"{loss:.3g}", f"{share:.1%}"]

    def _frequency_row(self, k: int) -> list[str]:
        named = {"source": self.source_frequencies, "target": self.target_frequencies}
        amplitude = (
            self.range(lambda t: float(t.plain.amplitudes[k - 1])),
            self.range(lambda t: float(t.swapped.amplitudes[k - 1])),
        )
        runs = [
            self.range(lambda t: t.runs[k].own_alone.accuracy),
            self.range(lambda t: t.runs[k].alone.accuracy),
            self.range(lambda t: t.runs[k].own_without.accuracy),
            self.range(lambda t: t.runs[k].without.accuracy),
        ]
        survives = [share for share in (t.survives(k) for t in self.trials) if share is not None]
        return [
            str(k),
            ", ".join(name for name, ks in named.items() if k in ks),
            f"{self.range(lambda t: float(t.available[k - 1])).median:.1%}",
            *(f"{x.median:.3g}" for x in amplitude),
            f"{Range.of(survives).median:.1%}" if survives else "",
            *(f"{x.median:.1%}" for x in runs),
        ]


PUT_IN = ["put in", "accuracy", "loss", "variance explained"]
BY_FREQUENCY = [
    *("frequency", "key of", "available", "own amplitude", "swapped", "survives"),
    *("own alone", "swapped alone", "own without", "swapped without"),
]
"""Columns of the tables."""


@torch.no_grad()
def swap_test(
    source: Adder,
    target: Adder,
    source_place: Place | None = None,
    target_place: Place | None = None,
    *,
    ridge: float = 0.0,
    mean: bool = True,
    fraction: float = 0.5,
    seeds: Sequence[int] = SEEDS,
    families: Sequence[str] = FAMILIES,
    source_frequencies: Iterable[int] | None = None,
    target_frequencies: Iterable[int] | None = None,
) -> SwapTest:
    """Put the source's mapped activation into the target. For the way back, exchange the two.

    Args:
        source, target: two models of the same task of two operands; one may have an '=' token and the other not. A pair (a, b)
            is the same pair in both.
        source_place, target_place: where; :func:`analyses.places.last_place` if not given.
        ridge: of the map, see :mod:`analyses.linear_map`.
        mean: whether the mean is in the map, as a constant of its own.
        fraction: share of the pairs that the map is fitted on; all others are held out.
        seeds: of the splits, one each, and of the random maps.
        families: which functions of the pair are a frequency's part, for "alone" and "without".
        source_frequencies, target_frequencies: key frequencies; by the rule "embedding share" if not given.

    Raises:
        ModulusError: another modulus.
        GridError: not two operands.
        ActivationError: no such hook point or position, or an activation that is not [batch, pos, ...] or [batch, d].
        StitchingError: tasks of different answers, no seeds, no pairs held out, a ridge below 0; without ridge, fewer pairs than
            the map has numbers to fit for each column.
        TaskError: a fraction outside (0, 1].
        FrequencyError, FamilyError: what does not exist.
    """
    check_pair(source, target)
    check_ridge(ridge)
    if not seeds:
        raise StitchingError("no seeds: expected at least one, as each makes a split")
    basis = FourierBasis(target.p)
    of_source = find(source).frequencies if source_frequencies is None else basis.check(source_frequencies)
    of_target = find(target).frequencies if target_frequencies is None else basis.check(target_frequencies)
    source_place = last_place(source) if source_place is None else source_place
    target_place = last_place(target) if target_place is None else target_place
    stitch = Stitch(
        source, target, source_place, target_place, ridge, mean, fraction, tuple(families), of_source, of_target
    )
    trials = [stitch.trial(seed) for seed in seeds]
    return SwapTest(source_place, target_place, of_source, of_target, ridge, mean, fraction, stitch.families, trials)


def check_pair(source: Adder, target: Adder) -> None:
    """Raise ModulusError, GridError or StitchingError unless a pair (a, b) is one question with one answer to both models."""
    if source.p != target.p:
        raise ModulusError(
            f"the source adds modulo {source.p}, the target modulo {target.p}: expected the same modulus"
        )
    for adder in (source, target):
        if adder.task.operands != 2:
            raise GridError(f"a task of {adder.task.operands} operands: expected pairs, two operands")
    differ = int((source.task.labels != target.task.labels).sum())
    if differ:
        raise StitchingError(f"the two tasks give different answers to {differ} pairs: expected the same task")


class Stitch:
    """Everything of one direction that is the same for every split."""

    def __init__(
        self,
        source: Adder,
        target: Adder,
        source_place: Place,
        target_place: Place,
        ridge: float,
        mean: bool,
        fraction: float,
        families: tuple[str, ...],
        source_frequencies: list[int],
        target_frequencies: list[int],
    ) -> None:
        self.source, self.target = source, target
        self.source_place, self.target_place = source_place, target_place
        self.ridge, self.mean, self.fraction, self.families = ridge, mean, fraction, families
        self.frequencies = sorted({*source_frequencies, *target_frequencies})
        self.Y = read(target, target_place)
        self.X = read(source, source_place).to(self.Y.device)
        self.is_read_linearly = target_place == last_place(target) and reads_linearly(target, self.Y, target.logits())
        self.circles = answer_circles(target, FourierBasis(target.p).frequencies).to(self.Y.device)
        self.key_circles = answer_circles(target, target_frequencies).to(self.Y.device)
        shared = [k for k in target_frequencies if k in source_frequencies]
        self.shared_circles = answer_circles(target, shared).to(self.Y.device)

    def trial(self, seed: int) -> Trial:
        """One split."""
        fit, held = (pairs.to(self.Y.device) for pairs in self.target.task.split(self.fraction, seed))
        if not len(held):
            raise StitchingError(f"fraction={self.fraction!r} of {len(fit)} pairs: expected some to be held out")
        X, Y = self.X[fit], self.Y[fit].double()
        own_circles = fit_linear_map(self.key_circles[fit], Y)(self.key_circles)
        targets = [Y, Y[permutation(len(fit), seed).to(fit.device)], own_circles[fit], self.circles[fit]]
        maps = fit_linear_map(X, torch.cat(targets, 1), self.ridge, self.mean).split([t.shape[1] for t in targets])
        fitted, shuffled, to_circles, to_all_circles = maps

        others = {
            "mean": Y.mean(0).expand_as(self.Y),
            "rotated": rotated(fitted, X, seed)(self.X),
            "gaussian": gaussian(fitted, X, seed)(self.X),
            "shuffled": shuffled(self.X),
            "untrained": self._from_untrained(fit, seed),
            "rank": of_rank(fitted, X, self.key_circles.shape[1])(self.X),
            "circles": to_circles(self.X),
            "own circles": own_circles,
            "shared circles": fit_linear_map(self.shared_circles[fit], Y)(self.shared_circles),
        }
        mapped = fitted(self.X)
        return Trial(
            seed,
            self._outcome(self.Y, held),
            self._outcome(mapped, held),
            {name: self._outcome(rows, held) for name, rows in others.items()},
            self._available(to_all_circles, held),
            {k: self._runs(mapped, k, held) for k in self.frequencies},
        )

    def _outcome(self, rows: Float[Tensor, "pairs d"], held: Int[Tensor, " n"]) -> Outcome:
        logits = self._logits(rows[held], held).double()
        labels = self.target.labels[held]
        return Outcome(
            float((logits.argmax(1) == labels).double().mean()),
            float(functional.cross_entropy(logits, labels)),
            explained(rows[held].double(), self.Y[held].double()),
            amplitudes(logits, labels, self.target.p),
        )

    def _logits(self, rows: Float[Tensor, "n d"], held: Int[Tensor, " n"]) -> Float[Tensor, "n p"]:
        """The target's, with these rows put in: by a hook, or by what comes behind the place where W_U reads it as it is."""
        if not self.is_read_linearly:
            return logits_with(self.target, self.target_place, rows, held)
        bias = getattr(self.target.model, "b_U", None)
        logits = rows.to(self.target.W_U) @ self.target.W_U
        return logits if bias is None else logits + bias.detach()[: self.target.p]

    def _from_untrained(self, fit: Int[Tensor, " n"], seed: int) -> Float[Tensor, "pairs d"]:
        X = read(untrained(self.source, seed), self.source_place).to(self.Y.device)
        return fit_linear_map(X[fit], self.Y[fit], self.ridge, self.mean)(X)

    def _available(self, to_circles: LinearMap, held: Int[Tensor, " n"]) -> Float[Tensor, " n_frequencies"]:
        predicted, actual = to_circles(self.X[held]), self.circles[held]
        basis = FourierBasis(self.target.p)
        columns = [[row - 1 for row in basis.rows([k])] for k in basis.frequencies]  # all rows but the constant's
        return torch.tensor([explained(predicted[:, c], actual[:, c]) for c in columns], dtype=torch.float64)

    def _runs(self, mapped: Float[Tensor, "pairs d"], frequency: int, held: Int[Tensor, " n"]) -> FrequencyRuns:
        outcomes = []
        for rows in (mapped, self.Y.double()):
            part = sum(
                (keep_on_grid(rows, self.target.p, [frequency], family) for family in self.families),
                torch.zeros_like(rows),
            )
            outcomes += [self._outcome(rows.mean(0) + part, held), self._outcome(rows - part, held)]
        return FrequencyRuns(*outcomes)


def answer_circles(adder: Adder, frequencies: Iterable[int]) -> Float[Tensor, "pairs m"]:
    """cos(w_k y) and sin(w_k y) of every pair's answer y, two columns a frequency, as they are in the orthonormal basis."""
    return FourierBasis(adder.p).functions(frequencies)[:, adder.task.labels].T


def amplitudes(logits: Float[Tensor, "n p"], labels: Int[Tensor, " n"], p: int) -> Float[Tensor, " n_frequencies"]:
    """Least squares coefficients of cos(w_k(y - c)) in logits, with y the label of each row and c the answer, by k = 1..p//2."""
    ahead = (labels[:, None] + torch.arange(p, device=labels.device)) % p  # the answers in the order of c - y
    mean = logits.double().gather(1, ahead).mean(0)
    basis = FourierBasis(p)
    cosines = torch.stack([basis.functions([k], like=mean)[0] for k in basis.frequencies])
    cosines = cosines / cosines[:, :1]  # cos(0) = 1
    return cosines @ mean / cosines.square().sum(1)


def untrained(adder: Adder, seed: int) -> Adder:
    """A copy with random weights: a HookedRNN's as they are drawn before training, another model's each in random order."""
    model = copy.deepcopy(adder.model)
    if isinstance(model, HookedRNN):
        model.load_state_dict(HookedRNN(dataclasses.replace(model.cfg, seed=seed)).state_dict())
        return dataclasses.replace(adder, model=model)
    generator = Generator().manual_seed(seed)
    for parameter in model.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view(parameter.shape)
    return dataclasses.replace(adder, model=model)


def _plain(value: Any) -> Any:
    """Tensors as lists, all the way down."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return value


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])
