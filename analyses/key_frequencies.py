"""Which frequencies are a model's key frequencies: rules by name, each with its threshold as an argument and in the result.

Papers differ in the rule, and their numbers of key frequencies are comparable only under one of them:
``find(adder, "embedding share")``, ``find(adder, "elbow", of="W_U", least_ratio=3.0)``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.adder import Adder
from analyses.errors import ActivationError, GridError, RuleError
from analyses.fourier import FourierBasis
from analyses.grid import check_answers
from analyses.neurons import cluster_neurons
from analyses.operands import activation_spectrum
from analyses.spectra import TIMES_UNIFORM, KeyFrequencies, Spectrum, key_frequencies, weight_spectrum
from analyses.weights import number_weights
from hooked_rnn.errors import choices, nearest

LOGITS = "logits"
"""The name of the logits, as what a spectrum may be of."""
NEURONS = ("mlp.hook_post", "hook_hidden")
"""How the names of hook points end at which a model's neurons are found, if none is given."""


@dataclass(frozen=True)
class Rule:
    """How key frequencies are told from others."""

    text: str
    """In words."""
    of: Callable[[Adder], str]
    """What it looks at, unless told otherwise."""
    settings: Mapping[str, float]
    """Its arguments and their defaults."""
    apply: Callable[[Adder, str, dict[str, float]], KeyFrequencies]
    """What it finds."""


def find(adder: Adder, rule: str = "embedding share", of: str | None = None, **settings: float) -> KeyFrequencies:
    """The key frequencies of a model, by a rule of :data:`RULES`.

    Args:
        adder: the model and its task.
        rule: the rule's name.
        of: what it looks at: a weight of :func:`analyses.weights.number_weights`, "logits", or any activation over the grid
            by its hook point. "neuron argmax" takes hook points only, "logit variance" the logits only.
        settings: the rule's arguments.

    Raises:
        RuleError: an unknown rule, argument or weight, or something that the rule cannot look at.
        ActivationError: no hook point with neurons was given, and none is found.
    """
    if rule not in RULES:
        raise RuleError(f"unknown rule {rule!r}: expected {choices(RULES)}")
    chosen = RULES[rule]
    for name in settings:
        if name not in chosen.settings:
            raise RuleError(f"rule {rule!r} has no argument {name!r}: expected {choices(chosen.settings)}")
    of = chosen.of(adder) if of is None else of
    used = {**chosen.settings, **{name: float(value) for name, value in settings.items()}}
    return replace(chosen.apply(adder, of, used), rule=rule, of=of, settings=used)


def spectrum_of(adder: Adder, of: str) -> Spectrum:
    """Spectrum of a weight, the logits (:func:`logit_spectrum`) or an activation where the model answers, by name.

    Of an activation over the grid, all patterns of one frequency count together (a, b, a+b and a-b, for two operands), and
    what is constant or a product of several frequencies is left out.

    Raises:
        RuleError: no such weight or hook point.
    """
    if of == LOGITS:
        return logit_spectrum(adder.logits(), adder.labels, adder.p)
    weights = number_weights(adder)
    if of in weights:
        return weight_spectrum(weights[of], adder.p)
    _check_hook(adder, of, [*weights, LOGITS])
    power = torch.stack(list(activation_spectrum(adder, of).patterns.values())).sum(0)
    return Spectrum(power / power.sum().clamp(min=torch.finfo(power.dtype).tiny))


def logit_spectrum(logits: Float[Tensor, "n p"], labels: Tensor, p: int) -> Spectrum:
    """Share of the logits' variance on cos(w(y - c)), with y the label of each row and c the answer, by frequency 1..p//2.

    For addition, cos(w(a+b-c)). The logits are centred over the answers of each row, as a constant there changes nothing. What the
    shares leave of one is not of this form; Nanda et al. (2023) give their sum over the key frequencies.

    Raises:
        GridError: other than p answers, or other than one label for each row.
    """
    check_answers(logits, p)
    if len(labels) != len(logits):
        raise GridError(f"{len(labels)} labels for logits of {len(logits)} rows: expected as many")
    x = logits.detach().double()
    x = x - x.mean(1, keepdim=True)
    ahead = (labels[:, None] + torch.arange(p, device=x.device)) % p  # the answers in the order of c - y
    mean = x.gather(1, ahead).mean(0)
    cosines = [rows[0] for rows in (FourierBasis(p).functions([k]) for k in FourierBasis(p).frequencies)]
    power = len(x) * (torch.stack(cosines).to(x) @ mean).square()
    return Spectrum(power / x.square().sum().clamp(min=torch.finfo(x.dtype).tiny))


def neuron_hook(adder: Adder) -> str:
    """The hook point of the model's neurons: the last whose name ends in "mlp.hook_post" or "hook_hidden".

    Raises:
        ActivationError: there is none.
    """
    names = [name for name in adder.model.hook_dict if name.endswith(NEURONS) and ".steps." not in name]
    if not names:
        raise ActivationError(
            f"the model has no hook point whose name ends in {choices(NEURONS)}: expected one to be given"
        )
    return names[-1]


def _by_times_uniform(adder: Adder, of: str, settings: dict[str, float]) -> KeyFrequencies:
    return key_frequencies(spectrum_of(adder, of), settings["times_uniform"])


def _by_share(adder: Adder, of: str, settings: dict[str, float]) -> KeyFrequencies:
    return _above(spectrum_of(adder, of), settings["share"])


def _by_neurons(adder: Adder, of: str, settings: dict[str, float]) -> KeyFrequencies:
    """Shares are of neurons here: those whose strongest frequency it is, and who are explained by it."""
    _check_hook(adder, of, [])
    neurons = cluster_neurons(adder.activation(of), adder.p, settings["explained"], operands=adder.task.operands)
    counts = torch.zeros(neurons.explained.shape[1], dtype=torch.float64)
    for cluster in neurons.clusters:
        counts[cluster.frequency - 1] = cluster.above
    return _above(Spectrum(counts / len(neurons.best)), settings["share"])


def _by_logits(adder: Adder, of: str, settings: dict[str, float]) -> KeyFrequencies:
    if of != LOGITS:
        raise RuleError(f"of={of!r}: expected {LOGITS!r}, as 'logit variance' is about them")
    return _by_share(adder, of, settings)


def _by_elbow(adder: Adder, of: str, settings: dict[str, float]) -> KeyFrequencies:
    """The frequencies above the largest ratio between consecutive shares, sorted, if it is large enough."""
    spectrum = spectrum_of(adder, of)
    floor = settings["floor"] / len(spectrum.shares)
    shares = spectrum.shares.clamp(min=floor).sort(descending=True).values
    ratios = shares[:-1] / shares[1:]
    if not len(ratios) or float(ratios.max()) < settings["least_ratio"]:
        return _above(spectrum, float(shares[0]))
    return _above(spectrum, float(shares[int(ratios.argmax()) + 1]))


def _above(spectrum: Spectrum, threshold: float) -> KeyFrequencies:
    by_share = [k for k in spectrum.by_share if spectrum.share(k) > threshold]
    return KeyFrequencies(sorted(by_share), by_share, spectrum, threshold)


def _check_hook(adder: Adder, name: str, others: list[str]) -> None:
    if name not in adder.model.hook_dict:
        known = [*others, *adder.model.hook_dict]
        raise RuleError(f"of={name!r}: no weight or hook point has that name; nearest: {nearest(name, known)}")


def _embedding(adder: Adder) -> str:
    """What the first layer is given of each number, where that is a product of weights alone."""
    return "W_E W_ih" if "W_E W_ih" in number_weights(adder) else "W_E"


RULES: dict[str, Rule] = {
    "embedding share": Rule(
        "more than times_uniform times the uniform share 1/(p//2) of the embedding's power (W_E W_ih of a recurrent network, "
        "else W_E)",
        _embedding,
        {"times_uniform": TIMES_UNIFORM},
        _by_times_uniform,
    ),
    "neuron argmax": Rule(
        "the frequency that explains most of more than a share of all neurons, counting those of whose variance over the grid it "
        "explains more than explained",
        neuron_hook,
        {"share": 0.02, "explained": 0.5},
        _by_neurons,
    ),
    "logit variance": Rule(
        "more than a share of the logits' variance on cos(w(a+b-c))", lambda _: LOGITS, {"share": 0.01}, _by_logits
    ),
    "threshold": Rule("more than a share of the power of the embedding", _embedding, {"share": 0.05}, _by_share),
    "elbow": Rule(
        "above the largest ratio between consecutive shares of the embedding's power, sorted, if it is at least least_ratio; shares "
        "below floor times the uniform share 1/(p//2) count as that much",
        _embedding,
        {"least_ratio": 2.0, "floor": 0.1},
        _by_elbow,
    ),
}
"""The rules by name."""
