"""The metric runner: every figure of a model of modular addition, by the same operators whatever kind of model it is.

:func:`run_metrics` measures a recurrent network of any cell, a transformer and an MLP alike, as all it asks for is an
:class:`analyses.adder.Adder`. What a model has no place for is :class:`Absent`, with the reason. :data:`METRICS` lists what is
measured, by name, operator and threshold, as tables and JSON have it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.ablation import Ablation, Curve, ablate, numbers_removed
from analyses.adder import Adder
from analyses.attribution import explained_by_circles, singular_attribution
from analyses.circuit import LogitFit, logit_fit
from analyses.clock_pizza import TRIPLES, Symmetry, circularity, distance_irrelevance, gradient_symmetry
from analyses.errors import ActivationError, GridError, RemovalSiteError
from analyses.key_frequencies import LOGITS, find, logit_spectrum, neuron_hook
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.neurons import Neurons, cluster_neurons
from analyses.places import Place, last_place, read
from analyses.restricted import ProgressMeasures, progress_measures
from analyses.sites import SITES, sites
from analyses.spectra import FamilySpectrum, KeyFrequencies, Spectrum, family_spectrum, grid_spectrum, weight_spectrum
from analyses.stitching import untrained
from analyses.weights import number_weights
from hooked_rnn.losses import cross_entropy

REMOVAL_PAIRS = 2048
"""On so many pairs, drawn at random, accuracy is taken in the controls of a removal: its standard error is at most 1.1%."""
REMOVAL_DRAWS = 10
"""Draws of each control of a removal, for each number of frequencies."""
NO_KEY = "no key frequency"
"""Why most is absent from a model without structure."""
LAST_STATE = "last state"
"""The name of the spectrum of what :func:`analyses.places.last_place` holds."""
ENDS = ("W_E", "W_U")
"""The two weights that every kind of model has."""


@dataclass(frozen=True)
class Absent:
    """In the place of a value that a model cannot have."""

    reason: str


@dataclass(frozen=True)
class Metrics:
    """Everything that is measured of one model. Shares and accuracies are fractions of one, losses are in nats."""

    p: int
    """The modulus."""
    parameters: int
    """How many numbers the model has."""
    accuracy: float
    """On all pairs."""
    loss: float
    """Mean cross entropy on all pairs."""
    held_out_accuracy: float | Absent
    """On the pairs that were not trained on."""
    key: KeyFrequencies
    """By the rule "embedding share", as everything below that speaks of key frequencies."""
    key_by_rule: dict[str, list[int]]
    """By every other rule that finds them without an argument of the user's."""
    spectra: dict[str, Spectrum]
    """Of every weight with an axis of numbers; of the last state over the grid; of the logits on cos(w(a+b-c))."""
    families: FamilySpectrum
    """Of the last state."""
    place: Place
    """Where the last state is."""
    energy: dict[str, Float[Tensor, " rank"]]
    """By weight with an axis of numbers: share of the energy in the first 1, 2, ... singular components."""
    untrained_energy: dict[str, float]
    """By the same: what the first 2K hold of a copy with random weights."""
    purity: dict[str, float]
    """By W_E and W_U: mean purity of the first 2K singular vectors, weighted by energy."""
    explained: float
    """Share of W_E's variance that the key frequencies' circles explain."""
    neurons: Neurons
    """At the hook point ``neuron_hook``."""
    neuron_hook: str
    clock: LogitFit | Absent
    """The logits on cos(w(a+b-c)) at the key frequencies."""
    pizza: LogitFit | Absent
    """The logits on abs(cos(w(a-b)/2)) cos(w(a+b-c)) at the key frequencies."""
    removal: dict[str, Ablation] | Absent
    """By site of :data:`analyses.sites.SITES`."""
    losses: ProgressMeasures | Absent
    """Restricted and excluded, variant "sum"."""
    symmetry: Symmetry | Absent
    """Of the gradients at the two operands."""
    distance_irrelevance: float | Absent
    circularity: float

    @property
    def components(self) -> int:
        """2K: a cosine and a sine for each of the K key frequencies."""
        return 2 * len(self.key.frequencies)

    @property
    def best_accuracy_known(self) -> float:
        """On held-out pairs where they are known, else on all."""
        return self.accuracy if isinstance(self.held_out_accuracy, Absent) else self.held_out_accuracy

    def held(self, weight: str) -> float | Absent:
        """Energy of a weight in its first 2K singular components."""
        if weight not in self.energy:
            return Absent(f"no weight {weight}")
        return held_by_first(self.energy[weight], self.components) if self.components else Absent(NO_KEY)

    def to_dict(self) -> dict[str, Any]:
        """Every metric by name: value, operator, threshold, and why there is none where the value is null."""
        return {metric.name: metric.to_dict(self) for metric in METRICS}


@torch.no_grad()
def run_metrics(
    adder: Adder,
    train: Int[Tensor, " n_train"] | None = None,
    n_pairs: int | None = REMOVAL_PAIRS,
    draws: int = REMOVAL_DRAWS,
    seed: int = 0,
    tick: Callable[[str], object] = lambda _: None,
) -> Metrics:
    """Measure one model.

    Args:
        adder: the model and its task, of two operands.
        train: indices of the pairs that were trained on, where they are known.
        n_pairs: on how many pairs accuracy is taken in the controls of a removal; None for all of them.
        draws: of each control of a removal, for each number of frequencies.
        seed: of these pairs and draws, and of the triples that gradients are taken at.
        tick: called with the name of what comes next, for a progress bar; :func:`n_ticks` times.

    Raises:
        GridError: a task that is not of two operands.
        ActivationError: a model without a hook point that could be the last state's.
    """
    if adder.task.operands != 2:
        raise GridError(f"a task of {adder.task.operands} operands: expected two")
    tick("accuracy")
    logits, p = adder.logits(), adder.p
    correct = (logits.argmax(-1) == adder.labels).double().cpu()
    key = find(adder)
    ks = key.frequencies

    tick("spectra")
    weights, place = number_weights(adder), last_place(adder)
    state = read(adder, place)
    spectra = {name: weight_spectrum(weight, p) for name, weight in weights.items()}
    spectra |= {LAST_STATE: grid_spectrum(state, p), LOGITS: logit_spectrum(logits, adder.labels, p)}

    tick("neurons")
    name_of_neurons = neuron_hook(adder)
    neurons = cluster_neurons(adder.activation(name_of_neurons), p)

    tick("gradients")
    symmetry = _symmetry(adder, seed)

    tick("singular components")
    random_weights = number_weights(untrained(adder, seed))
    return Metrics(
        p=p,
        parameters=sum(parameter.numel() for parameter in adder.model.parameters()),
        accuracy=float(correct.mean()),
        loss=float(cross_entropy(logits.unsqueeze(1).double(), adder.labels)),
        held_out_accuracy=_held_out(correct, train),
        key=key,
        key_by_rule={rule: find(adder, rule).frequencies for rule in ("elbow", "logit variance", "neuron argmax")},
        spectra=spectra,
        families=family_spectrum(state, p),
        place=place,
        energy={name: cumulative_energy(weight) for name, weight in weights.items()},
        untrained_energy={
            name: held_by_first(cumulative_energy(weight), 2 * len(ks)) for name, weight in random_weights.items()
        },
        purity={name: singular_attribution(weights[name], p, 2 * len(ks), dim=0).mean_purity for name in ENDS},
        explained=explained_by_circles(adder.W_E, ks),
        neurons=neurons,
        neuron_hook=name_of_neurons,
        clock=logit_fit(logits, p, ks, "clock") if ks else Absent(NO_KEY),
        pizza=logit_fit(logits, p, ks, "pizza") if ks else Absent(NO_KEY),
        removal=_removal(adder, key, n_pairs, draws, seed, tick),
        losses=progress_measures(adder, ks, "sum", train) if ks else Absent(NO_KEY),
        symmetry=symmetry,
        distance_irrelevance=_or_absent(distance_irrelevance(logits, p), "all correct logits are the same"),
        circularity=circularity(adder.W_E),
    )


def n_ticks(n_key_frequencies: int) -> int:
    """How often :func:`run_metrics` calls its ``tick``, if the model can be removed from."""
    return 5 + len(SITES) * len(numbers_removed(list(range(n_key_frequencies))))


def _removal(
    adder: Adder, key: KeyFrequencies, n_pairs: int | None, draws: int, seed: int, tick: Callable[[str], object]
) -> dict[str, Ablation] | Absent:
    if not key.frequencies:
        return Absent(NO_KEY)
    try:
        places = sites(adder, n_pairs, seed)
    except RemovalSiteError as error:
        return Absent(str(error))
    return {
        name: ablate(site, key.by_share, adder.p, seed, lambda name=name: tick(f"removal from {name}"), draws)
        for name, site in places.items()
    }


def _symmetry(adder: Adder, seed: int) -> Symmetry | Absent:
    try:
        return gradient_symmetry(adder, TRIPLES, seed)
    except ActivationError as error:
        return Absent(str(error))


def _held_out(correct: Float[Tensor, " pairs"], train: Tensor | None) -> float | Absent:
    if train is None:
        return Absent("the split is not known")
    held_out = torch.ones(len(correct), dtype=torch.bool)
    held_out[train.cpu()] = False
    return float(correct[held_out].mean()) if held_out.any() else Absent("all pairs were trained on")


def _or_absent(value: float | None, reason: str) -> float | Absent:
    return Absent(reason) if value is None else value


Value = float | int | str | list[int] | list[float] | Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """One figure: what it is called, how it is made, what it is held to."""

    name: str
    operator: str
    """The function of this project that makes it."""
    threshold: str | None
    """What decides in it, with the number; None where nothing does."""
    of: Callable[[Metrics], Value | Absent]

    def to_dict(self, metrics: Metrics) -> dict[str, Any]:
        """As JSON has it."""
        value = self.of(metrics)
        absent = isinstance(value, Absent)
        return {
            "value": None if absent else value,
            "why_null": value.reason if isinstance(value, Absent) else None,
            "operator": self.operator,
            "threshold": self.threshold,
        }


def _if(part: Any, of: Callable[[Any], Value]) -> Value | Absent:
    return part if isinstance(part, Absent) else of(part)


def curve_to_dict(curve: Curve) -> dict[str, dict[str, float]]:
    """A removal curve as JSON has it."""
    return {str(n): {"mean": s.mean, "min": s.min, "max": s.max} for n, s in curve.items()}


def _curves(which: str) -> Callable[[Metrics], Value | Absent]:
    return lambda m: _if(
        m.removal, lambda found: {site: curve_to_dict(getattr(ablation, which)) for site, ablation in found.items()}
    )


def _losses(which: str) -> Callable[[Metrics], Value | Absent]:
    return lambda m: _if(m.losses, lambda found: vars(getattr(found, which)))


KEY_RULE = "key: share of the power of the embedding above 2 / (p//2)"
METRICS: tuple[Metric, ...] = (
    Metric("parameters", "sum of the parameters' sizes", None, lambda m: m.parameters),
    Metric("accuracy", "largest logit of the p answers, all pairs", None, lambda m: m.accuracy),
    Metric(
        "held-out accuracy",
        "the same on pairs that were not trained on",
        None,
        lambda m: m.held_out_accuracy,
    ),
    Metric("loss", "losses.cross_entropy, all pairs", None, lambda m: m.loss),
    Metric("key frequencies", "key_frequencies.find, 'embedding share'", KEY_RULE, lambda m: m.key.by_share),
    Metric(
        "key frequencies by other rules", "key_frequencies.find", "each rule's default", lambda m: dict(m.key_by_rule)
    ),
    Metric(
        "spectra",
        "spectra.weight_spectrum; grid_spectrum of the last state; key_frequencies.logit_spectrum of the logits",
        None,
        lambda m: {name: [round(share, 9) for share in s.shares.tolist()] for name, s in m.spectra.items()},
    ),
    Metric(
        "families of the last state",
        "spectra.family_spectrum: shares of the variance",
        None,
        lambda m: m.families.shares,
    ),
    Metric(
        "energy",
        "low_rank.cumulative_energy of the first 2K singular components, by weight with an axis of numbers",
        KEY_RULE,
        lambda m: {name: m.held(name) for name in m.energy} if m.components else Absent(NO_KEY),
    ),
    Metric(
        "energy, random weights",
        "the same of a copy with random weights (stitching.untrained)",
        KEY_RULE,
        lambda m: dict(m.untrained_energy) if m.components else Absent(NO_KEY),
    ),
    Metric(
        "purity",
        "attribution.singular_attribution: mean over the first 2K singular vectors, weighted by energy",
        KEY_RULE,
        lambda m: dict(m.purity) if m.components else Absent(NO_KEY),
    ),
    Metric("embedding explained", "attribution.explained_by_circles", KEY_RULE, lambda m: m.explained),
    Metric(
        "neurons above 85%",
        "neurons.cluster_neurons: share of neurons of whose variance one frequency's families a, b, block explain more than 85%",
        "0.85",
        lambda m: m.neurons.share_above,
    ),
    Metric(
        "neurons by frequency",
        "neurons.cluster_neurons",
        "the frequency that explains most",
        lambda m: {str(c.frequency): len(c.neurons) for c in m.neurons.clusters},
    ),
    Metric(
        "logits: clock",
        "circuit.logit_fit, 'clock': cos(w(a+b-c))",
        KEY_RULE,
        lambda m: _if(m.clock, lambda f: f.explained),
    ),
    Metric(
        "logits: pizza",
        "circuit.logit_fit, 'pizza': abs(cos(w(a-b)/2)) cos(w(a+b-c))",
        KEY_RULE,
        lambda m: _if(m.pizza, lambda f: f.explained),
    ),
    Metric("removal", "ablation.ablate at sites.sites: accuracy by number removed", KEY_RULE, _curves("key")),
    Metric("removal, as many others", "the same of random frequencies that are not key", KEY_RULE, _curves("random")),
    Metric("removal, equal power", "the same power in random directions", KEY_RULE, _curves("equal_power")),
    Metric("plain loss", "restricted.progress_measures: train, test, all", None, _losses("plain")),
    Metric("restricted loss", "restricted.progress_measures, 'sum'", KEY_RULE, _losses("restricted")),
    Metric("excluded loss", "restricted.progress_measures, 'sum'", KEY_RULE, _losses("excluded")),
    Metric(
        "gradient symmetricity",
        f"clock_pizza.gradient_symmetry, {TRIPLES} triples",
        None,
        lambda m: _if(m.symmetry, lambda s: s.symmetricity),
    ),
    Metric(
        "gradients exchanged", "clock_pizza.gradient_symmetry", None, lambda m: _if(m.symmetry, lambda s: s.exchanged)
    ),
    Metric("gradients' ratio", "clock_pizza.gradient_symmetry", None, lambda m: _if(m.symmetry, lambda s: s.ratio)),
    Metric("distance irrelevance", "clock_pizza.distance_irrelevance", None, lambda m: m.distance_irrelevance),
    Metric("circularity", "clock_pizza.circularity, four components", None, lambda m: m.circularity),
)
"""All of them, in the order of tables and JSON."""
