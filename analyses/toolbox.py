"""What the Fourier toolbox finds in one model: the results that the report shows beside the claims' own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from analyses.ablation import SUBSETS_OF
from analyses.adder import Adder
from analyses.candidates import Candidates, candidates
from analyses.circuit import Circuit, LogitFit, check_vanilla, logit_fit, read_circuit
from analyses.clock_pizza import TRIPLES, ClockOrPizza, clock_or_pizza
from analyses.errors import ActivationError, RemovalSiteError, ReportError
from analyses.key_frequencies import RULES, find, neuron_hook
from analyses.measure import Subject
from analyses.neurons import Neurons, cluster_neurons
from analyses.places import last_place, read
from analyses.removal_sites import SiteRemovals, removal_sites
from analyses.restricted import ProgressMeasures, progress_measures
from analyses.singular_pairs import SingularPairs, weight_pairs
from analyses.spectra import FamilySpectrum, KeyFrequencies, Spectrum, family_spectrum, weight_spectra
from analyses.subsets import Lattice, removal_lattice

LEAST_COMPONENTS = 12
"""Singular vectors of a weight that are paired: two for each key frequency, and at least so many."""
LATTICE_SITES = ("W_E", "W_U", "logits")
"""Where all subsets are removed. Where W_U reads the last hidden state, its family "sum" is that of the logits."""
PARTS = (
    "rules", "spectra", "singular pairs", "neurons", "candidates", "circuit", "clock or pizza", "restricted loss",
    "removal at every site", *(f"subsets at {site}" for site in LATTICE_SITES),
)  # fmt: skip
"""What is measured, in this order."""
NO_KEY = "no key frequency"

T = TypeVar("T")


@dataclass(frozen=True)
class Toolbox:
    """The results; None (or none of them) where a model does not have what they are about, for the reason in ``left_out``."""

    p: int
    """The modulus."""
    key: KeyFrequencies
    """The key frequencies that everything here is about: those of the rule "embedding share"."""
    rules: dict[str, KeyFrequencies]
    """By every rule of :data:`analyses.key_frequencies.RULES`, at its default threshold."""
    weights: dict[str, Spectrum]
    """Of every weight with an axis of numbers."""
    families: dict[str, FamilySpectrum]
    """Of the last hidden state, by its hook point, and of the "logits", over the grid of pairs."""
    pairs: dict[str, SingularPairs]
    """The first 2K (at least 12) singular vectors of every weight with an axis of numbers, paired."""
    neurons: Neurons | None
    """By the families a, b and block; threshold 85%."""
    neurons_at: str
    """Their hook point."""
    candidates: Candidates | None
    """Every matrix by every rule for how many components are significant."""
    circuit: Circuit | None
    """Step by step, at the key frequencies."""
    clock: LogitFit
    """The logits, by cos(w(a+b-c)) of the key frequencies."""
    pizza: LogitFit
    """The logits, by abs(cos(w(a-b)/2)) cos(w(a+b-c)) of the key frequencies."""
    clock_or_pizza: ClockOrPizza | None
    """The measures of Zhong et al. 2023; gradients at 10,000 triples."""
    losses: list[ProgressMeasures]
    """Restricted and excluded loss, by variant."""
    removals: SiteRemovals | None
    """Removal at every place."""
    lattices: dict[str, Lattice]
    """All subsets of the strongest key frequencies, at most six, by site; each with its control."""
    left_out: dict[str, str]
    """By part: why there is none."""


@torch.no_grad()
def use_toolbox(subject: Subject, key: KeyFrequencies, tick: Callable[[str], object] = lambda _: None) -> Toolbox:
    """Measure everything, with key frequencies that were found before.

    Args:
        subject: the model, its task, and the pairs that it was trained on.
        key: its key frequencies.
        tick: called with the name of each of :data:`PARTS` before it is measured, for a progress bar.
    """
    adder, ks, left_out = subject.adder, key.by_share, dict[str, str]()

    def attempt(part: str, measure: Callable[[], T], needs_key: bool = False) -> T | None:
        """None, and the reason noted, where the model does not have what is asked for."""
        tick(part)
        if needs_key and not ks:
            left_out[part] = NO_KEY
            return None
        try:
            return measure()
        except (ActivationError, RemovalSiteError, ReportError) as error:
            left_out[part] = str(error)
            return None

    rules = attempt("rules", lambda: key_frequencies_by_rule(adder))
    weights, families = attempt("spectra", lambda: (weight_spectra(adder), spectra_by_family(adder))) or ({}, {})
    components = max(2 * len(ks), LEAST_COMPONENTS)
    pairs = attempt("singular pairs", lambda: weight_pairs(adder, components))
    neurons_at, neurons = attempt("neurons", lambda: neurons_of(adder)) or ("", None)
    found = attempt("candidates", lambda: candidates(adder, key))
    circuit = attempt("circuit", lambda: circuit_of(subject, ks))
    measures = attempt("clock or pizza", lambda: clock_or_pizza(adder, TRIPLES))
    losses = attempt("restricted loss", lambda: losses_by_variant(subject, ks), needs_key=True)
    removals = attempt("removal at every site", lambda: removal_sites(adder, ks), needs_key=True)
    lattices = {
        site: attempt(f"subsets at {site}", lambda site=site: lattice(adder, ks, site), needs_key=True)
        for site in LATTICE_SITES
    }
    logits = adder.logits()
    return Toolbox(
        p=adder.p,
        key=key,
        rules=rules or {},
        weights=weights,
        families=families,
        pairs=pairs or {},
        neurons=neurons,
        neurons_at=neurons_at,
        candidates=found,
        circuit=circuit,
        clock=logit_fit(logits, adder.p, ks, "clock"),
        pizza=logit_fit(logits, adder.p, ks, "pizza"),
        clock_or_pizza=measures,
        losses=losses or [],
        removals=removals,
        lattices={site: found for site, found in lattices.items() if found is not None},
        left_out=left_out,
    )


def key_frequencies_by_rule(adder: Adder) -> dict[str, KeyFrequencies]:
    """The key frequencies by every rule at its default threshold."""
    return {rule: find(adder, rule) for rule in RULES}


def spectra_by_family(adder: Adder) -> dict[str, FamilySpectrum]:
    """2-D spectra of the last hidden state and the logits."""
    place = last_place(adder)
    return {
        place.hook_name: family_spectrum(read(adder, place), adder.p),
        "logits": family_spectrum(adder.logits(), adder.p),
    }


def circuit_of(subject: Subject, frequencies: list[int]) -> Circuit:
    """The circuit step by step, of a vanilla RNN; ReportError for any other model."""
    check_vanilla(subject.model)
    return read_circuit(subject.model, subject.task, frequencies)


def neurons_of(adder: Adder) -> tuple[str, Neurons]:
    """The hook point of the model's neurons, and what each frequency explains of them."""
    name = neuron_hook(adder)
    return name, cluster_neurons(adder.activation(name), adder.p)


def losses_by_variant(subject: Subject, frequencies: list[int]) -> list[ProgressMeasures]:
    """Restricted and excluded loss: the three variants of the logits, and that of the neurons' activations."""
    adder, train = subject.adder, subject.train
    on_logits = [progress_measures(adder, frequencies, variant, train) for variant in ("sum", "polynomial", "trace")]
    return [*on_logits, progress_measures(adder, frequencies, "activation", train, neuron_hook(adder))]


def lattice(adder: Adder, by_share: list[int], site: str) -> Lattice:
    """All subsets of the strongest key frequencies removed at a site, and of as many others that are no key frequencies."""
    return removal_lattice(adder, by_share[:SUBSETS_OF], site, not_in_control=by_share)
