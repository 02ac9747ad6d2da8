"""The circuit of a recurrent network that adds, step by step: what is written where, and how much of it is known.

Each activation is split, over the grid of pairs, into families of functions of each frequency. With w = 2 pi k / p:

- ``"a"``, ``"b"``, ``"sum"``, ``"difference"``: cosine and sine of wa, wb, w(a+b), w(a-b), as in :mod:`analyses.grid`;
- ``"double a"``, ``"double b"``: cosine and sine of 2wa, 2wb.

With the constant these are all cos(w(ma + nb)) with |m| + |n| <= 2: a ReLU of waves of order one makes them, and
smaller ones of higher even order. They are orthogonal, so least squares fits are projections and shares add up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from analyses.attribution import Fit, hidden_fit
from analyses.errors import FamilyError, FrequencyError, ReportError
from analyses.fourier import FourierBasis
from analyses.grid import check_grid, check_logits, grid_functions
from analyses.measure import check_task
from hooked_rnn import HookedRNN, ModularTask
from hooked_rnn.errors import choices

WAVES = ("a", "b", "sum", "difference", "double a", "double b")
"""The families of one frequency, those of order one first."""
ROUNDING = 1e-6
"""What is smaller than this, beside what it is compared with, is taken for the rounding of a float32 network."""
FORMS = ("clock", "pizza")
"""The closed forms of the logits that :func:`logit_fit` knows."""


@dataclass(frozen=True)
class Wave:
    """The part of an activation that one family of one frequency holds."""

    power: float
    """Its sum of squares over pairs and features."""
    share: float
    """That over the centred activation's; 0 where the activation is constant."""
    amplitude: float
    """Root mean square over the pairs of its norm."""


@dataclass(frozen=True)
class Stage:
    """One activation of the circuit, in waves."""

    point: str
    """The hook point."""
    position: int
    """Of the sequence."""
    text: str
    """What it is, in words."""
    closed_form: tuple[str, ...]
    """The families that it is made of, if the network computes by Fourier multiplication."""
    frequencies: list[int]
    """Those that it was fitted on."""
    p: int
    """The modulus."""
    power: float
    """Sum of squares over pairs and features of the activation less its mean over the pairs."""
    waves: dict[str, dict[int, Wave]]
    """By family and frequency; without what is no other wave (for even p, twice p/2)."""
    errors: dict[int, float]
    """By frequency, the relative error of the fit where the frequency is written: see :func:`read_stage`."""

    def share(self, family: str) -> float:
        """Share of a family, of all the frequencies. A double that is a frequency of the list counts there alone."""
        return _total(self._distinct([family]))

    @property
    def explained(self) -> float:
        """Share of the centred variance that the closed form explains, with all the frequencies together."""
        return _total(self._distinct(self.closed_form))

    @property
    def explained_by_all(self) -> float:
        """Share that all families explain."""
        return _total(self._distinct(WAVES))

    @property
    def relative_error(self) -> float:
        """Norm of what the closed form leaves over the norm of the activation, centred over the pairs."""
        return max(0.0, 1.0 - self.explained) ** 0.5 if self.power > 0 else 0.0

    def _distinct(self, families: Iterable[str]) -> list[Wave]:
        """Waves of families, without doubles that are waves of another of the frequencies too, or of each other."""
        found: dict[tuple[str, int], Wave] = {}
        taken = set(self.frequencies)
        for family in families:
            for k, wave in self.waves[family].items():
                actual = doubled(k, self.p) if family.startswith("double") else k
                if not (family.startswith("double") and actual in taken):
                    found[family, actual] = wave
        return list(found.values())


@dataclass(frozen=True)
class Phases:
    """How a's wave and b's meet in the units: unit i gets A cos(wa + f) + B cos(wb + g), with its own A, B, f, g.

    By the ReLU's even part a unit then holds |cos((w(a-b) + f - g)/2)| cos(w(a+b) + f + g), and more. With f = g in
    all units the first factor is common to them, and the logits are a pizza's; with f - g spread evenly W_U sums it
    away, and they are a clock's, though no unit multiplies.
    """

    overlap: float
    """sum A B / sqrt(sum A^2 sum B^2): 1 where units get as much of one wave as of the other, up to one factor."""
    agreement: float
    """sum A B cos(f - g) / sum A B: 1 where every unit gets both in the same phase."""
    concentration: float
    """|sum A B exp(i(f - g))| / sum A B: 1 where f - g is the same in all units, 0 where it is spread evenly."""


@dataclass(frozen=True)
class LogitFit:
    """How much of the logits a closed form explains: sum over k of a coefficient times its wave in a + b - c."""

    coefficients: dict[int, float]
    """By frequency."""
    shares: dict[int, float]
    """By frequency: fraction of the variance explained."""

    @property
    def explained(self) -> float:
        """FVE: 1 - |logits - fit|^2 / |logits|^2, of logits centred over the answers of each pair."""
        return sum(self.shares.values(), start=0.0)


@dataclass(frozen=True)
class Circuit:
    """What is written at each step, and what is read in the end."""

    frequencies: list[int]
    """Those that everything was fitted on."""
    stages: list[Stage]
    """In the order in which the network computes them."""
    phases: dict[int, Phases]
    """By frequency: how a's and b's waves meet where they are added, in the first layer."""
    reads: dict[int, Fit]
    """By frequency: what W_U reads, fitted by cos and sin of w(a+b)."""
    clock: LogitFit
    """The logits, by cos(w(a+b-c))."""
    pizza: LogitFit
    """The logits, by |cos(w(a-b)/2)| cos(w(a+b-c))."""

    def stage(self, point: str, position: int) -> Stage:
        """The stage of a hook point at a position."""
        return next(stage for stage in self.stages if (stage.point, stage.position) == (point, position))


@torch.no_grad()
def read_circuit(model: HookedRNN, task: ModularTask, frequencies: Iterable[int]) -> Circuit:
    """Read the circuit of a vanilla RNN that adds two numbers, on the grid of all pairs, in float64.

    Args:
        model: of one layer or several; what an '=' adds are stages at a third position.
        task: addition of two numbers.
        frequencies: what to fit, as a rule the key frequencies; the order is kept.

    Raises:
        ReportError: another task, another cell, or a model of another modulus.
        FrequencyError: a frequency outside 1..p//2, or twice.
    """
    check_task(model, task)
    check_vanilla(model)
    adder, waves = Adder(model, task), Waves(task.p, frequencies)
    points = _points(model.cfg.n_layers)
    _, cache = model.run_with_cache(adder.tokens, names_filter=[*points, "hook_logits"])
    stages = [
        read_stage(cache[point][:, position].double(), waves, point, position)
        for position in range(task.n_ctx)
        for point in points
        if not _is_constant(point, position, task)
    ]
    logits = cache["hook_logits"][:, -1].double()
    centred = logits - logits.mean(1, keepdim=True)
    hidden = cache[f"blocks.{model.cfg.n_layers - 1}.hook_hidden"][:, -1]
    return Circuit(
        waves.frequencies,
        [*stages, read_stage(centred, waves, "hook_logits", task.n_ctx - 1)],
        {k: phases(cache["blocks.0.hook_preact"][:, 1], waves, k) for k in waves.frequencies},
        {k: hidden_fit(hidden.cpu(), model.W_U.cpu(), k) for k in waves.frequencies},
        *(logit_fit(logits, task.p, waves.frequencies, form) for form in FORMS),
    )


def check_vanilla(model: Any) -> None:
    """Raise ReportError unless the model is a HookedRNN of vanilla cells, which this circuit is of."""
    if not isinstance(model, HookedRNN):
        raise ReportError(f"the model is a {type(model).__name__}: expected a HookedRNN, whose circuit this is")
    if model.cfg.cell != "rnn":
        raise ReportError(
            f"the model's cell is {model.cfg.cell!r}: expected 'rnn', the vanilla cell, whose circuit this is"
        )


class Waves:
    """The functions on the grid that a circuit of these frequencies is made of, made once for all stages.

    Raises:
        ModulusError, FrequencyError: as :class:`FourierBasis`.
    """

    def __init__(self, p: int, frequencies: Iterable[int]) -> None:
        self.p = p
        self.frequencies = FourierBasis(p).check(frequencies)

    def of(self, family: str, frequency: int) -> Float[Tensor, "m pairs"] | None:
        """A family's orthonormal functions; None where there is no such wave.

        Raises:
            FamilyError: an unknown family.
        """
        if family not in WAVES:
            raise FamilyError(f"unknown family {family!r}: expected {choices(WAVES)}")
        return self._functions.get((family, frequency))

    def coefficients(self, x: Float[Tensor, "pairs d"]) -> dict[tuple[str, int], Float[Tensor, "m d"]]:
        """Coefficients of x on every wave there is, by family and frequency."""
        if not self._functions:
            return {}
        rows = self._stacked.to(x) @ x  # one product: x is large, and is read once
        return dict(zip(self._functions, rows.split([len(f) for f in self._functions.values()]), strict=True))

    @cached_property
    def _stacked(self) -> Float[Tensor, "m pairs"]:
        return torch.cat(list(self._functions.values()))

    @cached_property
    def _functions(self) -> dict[tuple[str, int], Tensor]:
        made = {}
        for family in WAVES:
            for k in self.frequencies:
                actual = doubled(k, self.p) if family.startswith("double") else k
                # For even p, twice p/2 is constant and its difference is its sum; for p = 3k, twice k is k.
                is_new = (
                    actual != k if family.startswith("double") else not (family == "difference" and 2 * k == self.p)
                )
                if actual and is_new:
                    made[family, k] = grid_functions(self.p, [actual], family.removeprefix("double "))
        return made


def read_stage(x: Float[Tensor, "pairs d"], waves: Waves, point: str, position: int) -> Stage:
    """Split an activation of the grid into waves.

    ``errors`` says how clean a frequency is where it is written. Let V be the span, in feature space, of the closed
    form's coefficients at k, and y the activation, centred over the pairs and projected on V: the norm of y less its
    fit on the closed form's functions of k, over the norm of y. It is 0 where nothing is written.

    Raises:
        GridError: x has not p*p rows.
    """
    check_grid(x, waves.p)
    layer, kind = _kind(point)
    closed_form = _closed_form(kind, position, layer)
    centred = (x - x.mean(0)).double()
    power = float(centred.square().sum())
    coefficients = waves.coefficients(centred)
    split: dict[str, dict[int, Wave]] = {family: {} for family in WAVES}
    for (family, k), c in coefficients.items():
        of_this = float(c.square().sum())
        split[family][k] = Wave(of_this, of_this / power if power > 0 else 0.0, (of_this / len(x)) ** 0.5)
    errors = {}
    for k in waves.frequencies:
        of_k = torch.cat([coefficients[family, k] for family in closed_form if (family, k) in coefficients])
        errors[k] = _error_where_written(centred, of_k)
    return Stage(
        point,
        position,
        _text(kind, position, layer),
        closed_form,
        waves.frequencies,
        waves.p,
        power,
        split,
        errors,
    )


def phases(preact: Float[Tensor, "pairs d"], waves: Waves, frequency: int) -> Phases:
    """How a's and b's waves of a frequency meet in the units, by least squares; zeros where one of them is missing.

    Raises:
        GridError: an activation that is not of the whole grid.
        FrequencyError: a frequency that is not of the waves.
    """
    check_grid(preact, waves.p)
    if frequency not in waves.frequencies:
        raise FrequencyError(f"frequency {frequency!r}: expected one of {waves.frequencies}, of which the waves are")
    preact = preact.double()
    a, b = (_phasors(f.to(preact) @ preact) for name in ("a", "b") if (f := waves.of(name, frequency)) is not None)
    if min(a.norm(), b.norm()) <= ROUNDING * preact.norm():
        return Phases(0.0, 0.0, 0.0)
    both, meeting = (a.abs() * b.abs()).sum(), (a * b.conj()).sum()
    if both <= ROUNDING**2 * a.norm() * b.norm():
        return Phases(0.0, 0.0, 0.0)
    return Phases(float(both / (a.norm() * b.norm())), float(meeting.real / both), float(meeting.abs() / both))


def _phasors(coefficients: Float[Tensor, "m d"]) -> Tensor:
    """A exp(if) of A cos(wa + f), from the coefficients of cos(wa) and (but for p/2) sin(wa)."""
    cos = coefficients[0]
    return torch.complex(cos, -coefficients[1] if len(coefficients) == 2 else torch.zeros_like(cos))


def logit_fit(logits: Float[Tensor, "pairs p"], p: int, frequencies: Iterable[int], form: str = "clock") -> LogitFit:
    """Least squares fit of the logits on one wave for each frequency, and the fraction of the variance explained.

    The waves are, with w = 2 pi k / p:

    - ``"clock"``: cos(w(a+b-c)), the form of Nanda et al. 2023 (arXiv 2301.05217), whose fraction of
      variance explained Chughtai et al. 2023 (arXiv 2302.03025) report too;
    - ``"pizza"``: |cos(w(a-b)/2)| cos(w(a+b-c)), the form of Zhong et al. 2023 (arXiv 2306.17844).

    Logits are centred over the answers of each pair before (a softmax does not see the mean): FVE = 1 - |l - fit|^2 /
    |l|^2. Waves of different frequencies are orthogonal, so that it is a sum over frequencies.

    Raises:
        FamilyError: an unknown form.
        GridError: logits that are not of the whole grid and the p answers.
        FrequencyError: a frequency outside 1..p//2.
    """
    if form not in FORMS:
        raise FamilyError(f"unknown form {form!r}: expected {choices(FORMS)}")
    check_logits(logits, p)
    basis = FourierBasis(p)
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    power = float(centred.square().sum())
    coefficients, shares = {}, {}
    for k in basis.check(frequencies):
        of_pairs = grid_functions(p, [k], "sum").to(centred)
        if form == "pizza":
            of_pairs = of_pairs * distance_factor(p, k).to(centred)
        of_answers = basis.functions([k], like=centred)
        # cos(w(a+b-c)) = cos cos + sin sin, up to the norms of the orthonormal functions.
        inner = float(((of_pairs @ centred) * of_answers).sum())
        squared_norm = float(of_pairs.square().sum())
        coefficients[k] = inner / squared_norm * _peak(p, k)
        shares[k] = inner**2 / squared_norm / power if power > 0 else 0.0
    return LogitFit(coefficients, shares)


def distance_factor(p: int, frequency: int) -> Float[Tensor, " pairs"]:
    """|cos(w(a-b)/2)| on the grid: what the amplitude of cos(w(a+b)) is, where cos(wa) and cos(wb) were added.

    Raises:
        ModulusError, FrequencyError: what does not exist.
    """
    (frequency,) = FourierBasis(p).check([frequency])
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    return (torch.pi / p * (frequency * (a - b) % p).double()).cos().abs()


def doubled(frequency: int, p: int) -> int:
    """The frequency in 0..p//2 of cos(2wa)."""
    turns = 2 * frequency % p
    return min(turns, p - turns)


def _peak(p: int, frequency: int) -> float:
    """Value at 0 of sum_i f_i(s) g_i(c), with the orthonormal functions f of a + b and g of c: then cos's factor is 1."""
    factor = 1.0 if 2 * frequency == p else 2.0
    return factor / p**1.5


def _error_where_written(centred: Tensor, coefficients: Tensor) -> float:
    """Relative error of a fit whose coefficients [functions, d] are given, within the span of their rows."""
    _, values, directions = torch.linalg.svd(coefficients, full_matrices=False)
    directions = directions[values > ROUNDING * centred.norm()]
    norm = float((centred @ directions.T).square().sum())
    residual = norm - float((coefficients @ directions.T).square().sum())
    return (max(0.0, residual) / norm) ** 0.5 if norm > 0 else 0.0


def _points(n_layers: int) -> list[str]:
    kinds = ("hook_input", "hook_recurrent", "hook_preact", "hook_hidden")
    return ["hook_embed", *(f"blocks.{layer}.{kind}" for layer in range(n_layers) for kind in kinds)]


def _kind(point: str) -> tuple[int, str]:
    """Layer and kind of a hook point; layer 0 for the embedding and the logits."""
    parts = point.split(".")
    return (int(parts[1]), parts[2]) if len(parts) == 3 else (0, point)


def _is_constant(point: str, position: int, task: ModularTask) -> bool:
    """Whether an activation is the same for all pairs: before there is a state, and where '=' is read."""
    layer, kind = _kind(point)
    if kind == "hook_recurrent":
        return position == 0
    return layer == 0 and kind in ("hook_embed", "hook_input") and position >= task.operands


def _closed_form(kind: str, position: int, layer: int) -> tuple[str, ...]:
    if kind == "hook_logits":
        return ("sum",)
    if layer > 0 or position > 1:
        return WAVES
    if kind in ("hook_embed", "hook_input"):
        return ("ab"[position],)
    if position == 0:
        return ("a", "double a") if kind == "hook_hidden" else ("a",)
    return {"hook_recurrent": ("a",), "hook_preact": ("a", "b")}.get(kind, WAVES)


def _text(kind: str, position: int, layer: int) -> str:
    where = f", layer {layer + 1}" if layer else ""
    if kind == "hook_logits":
        return "the logits, less their mean over the answers"
    if kind == "hook_embed":
        return f"the embedding of {'ab'[position]}"
    if kind == "hook_input":
        return f"what W_ih writes of {'ab'[position]}" if layer == 0 else f"what W_ih writes{where}"
    if kind == "hook_recurrent":
        return f"what W_hh carries of {'a' if position == 1 else 'a and b'}{where}"
    if kind == "hook_preact":
        return ("a's waves" if position == 0 else "the waves, added") + f", before the nonlinearity{where}"
    return ("the state after a" if position == 0 else "the products that the nonlinearity makes") + where


def _total(waves: list[Wave]) -> float:
    return sum((wave.share for wave in waves), start=0.0)
