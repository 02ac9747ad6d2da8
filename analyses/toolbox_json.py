"""The toolbox's results as ``report.json`` has them. Shares and accuracies are fractions of one, losses are in nats."""

from dataclasses import asdict
from typing import Any

from analyses.ablation import Spread
from analyses.candidates import Candidates
from analyses.circuit import Circuit
from analyses.neurons import Neurons
from analyses.singular_pairs import SingularPairs
from analyses.spectra import FamilySpectrum, KeyFrequencies
from analyses.subsets import Lattice
from analyses.toolbox import Toolbox

DIGITS = 9
"""Shares of long lists are rounded to so many."""


def toolbox_dict(box: Toolbox) -> dict[str, Any]:
    """Everything, by part; null where a model does not have it, with the reason in "left_out"."""
    removals = box.removals
    return {
        "key_frequencies_by_rule": {rule: _key(found) for rule, found in box.rules.items()},
        "weight_spectra": {name: _rounded(spectrum.shares.tolist()) for name, spectrum in box.weights.items()},
        "family_spectra": {name: _families(spectrum) for name, spectrum in box.families.items()},
        "singular_pairs": {name: _pairs(found) for name, found in box.pairs.items()},
        "neurons": None if box.neurons is None else {"hook_point": box.neurons_at, **_neurons(box.neurons)},
        "candidates": None if box.candidates is None else _candidates(box.candidates),
        "circuit": None if box.circuit is None else _circuit(box.circuit),
        "logits_explained": {
            form: {"all": fit.explained, "by_frequency": {str(k): share for k, share in fit.shares.items()}}
            for form, fit in (("clock", box.clock), ("pizza", box.pizza))
        },
        "clock_or_pizza": None if box.clock_or_pizza is None else asdict(box.clock_or_pizza),
        "losses": [asdict(measured) for measured in box.losses],
        "removal": None if removals is None else [asdict(removal) for removal in removals.removals],
        "subspace_leave_out": None if removals is None or removals.leave_out is None else asdict(removals.leave_out),
        "subsets": {site: _lattice(found) for site, found in box.lattices.items()},
        "left_out": box.left_out,
    }


def _key(found: KeyFrequencies) -> dict[str, Any]:
    shares = {str(k): found.spectrum.share(k) for k in found.by_share}
    return {
        "frequencies": found.frequencies,
        "of": found.of,
        "settings": dict(found.settings),
        "threshold": found.threshold,
        "shares": shares,
    }


def _families(spectrum: FamilySpectrum) -> dict[str, Any]:
    by_frequency = (
        {family: _rounded((power / spectrum.total).tolist()) for family, power in spectrum.families.items()}
        if spectrum.total
        else {}
    )
    return {"shares": spectrum.shares, "of_all_power_by_frequency": by_frequency}


def _pairs(found: SingularPairs) -> dict[str, Any]:
    pairs = [
        {
            "frequency": x.frequency,
            "components": list(x.components),
            "energy": x.energy,
            "purity": x.purity,
            "angles": list(x.angles),
        }
        for x in found.pairs
    ]
    return {
        "mean_purity": found.mean_purity,
        "pairs": pairs,
        "energy_by_frequency": _rounded(found.energy_by_frequency.tolist()),
    }


def _neurons(neurons: Neurons) -> dict[str, Any]:
    return {
        "threshold": neurons.threshold,
        "families": list(neurons.families),
        "share_above": neurons.share_above,
        "clusters": [
            {"frequency": c.frequency, "neurons": c.neurons, "mean_explained": c.mean_explained, "above": c.above}
            for c in neurons.clusters
        ],
        "explained": _rounded(neurons.best.tolist()),
        "phases": {
            family: [None if phase != phase else round(phase, 6) for phase in neurons.phases(family).tolist()]
            for family in neurons.coefficients
        },
    }


def _candidates(found: Candidates) -> list[dict[str, Any]]:
    return [{**asdict(row), "in_published_range": row.in_range()} for row in found.rows]


def _circuit(circuit: Circuit) -> dict[str, Any]:
    return {
        "stages": [
            {
                "hook_point": stage.point,
                "position": stage.position,
                "what": stage.text,
                "closed_form": list(stage.closed_form),
                "shares": {family: stage.share(family) for family in stage.waves},
                "explained": stage.explained,
                "relative_error": stage.relative_error,
                "errors_by_frequency": {str(k): error for k, error in stage.errors.items()},
            }
            for stage in circuit.stages
        ],
        "phases": {str(k): asdict(phases) for k, phases in circuit.phases.items()},
    }


def _lattice(found: Lattice) -> dict[str, Any]:
    lattice: dict[str, Any] = {
        "frequencies": list(found.frequencies),
        "accuracy": found.accuracy.tolist(),
        "loss": found.loss.tolist(),
        "by_number_removed": {str(n): _spread(spread) for n, spread in found.by_number_removed().items()},
        "shapley": {value: {str(k): x for k, x in found.shapley(value).items()} for value in ("accuracy", "loss")},
    }
    return lattice if found.control is None else {**lattice, "control": _lattice(found.control)}


def _spread(spread: Spread) -> dict[str, float]:
    return asdict(spread)


def _rounded(values: list[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
