"""What the report shows of the toolbox: the planted answer on the oracle, nothing on random weights, and the tools' own numbers."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from planted import FREQUENCIES, P, fourier_adder, random_model
from test_adder import MLP, transformer

from analyses.ablation import frequency_hook
from analyses.adder import Adder
from analyses.candidates import candidates
from analyses.circuit import read_circuit
from analyses.clock_pizza import clock_or_pizza
from analyses.key_frequencies import RULES, find
from analyses.measure import Subject, subject_of
from analyses.neurons import cluster_neurons
from analyses.removal_sites import CONTROL_DRAWS, removal_sites
from analyses.restricted import VARIANTS, progress_measures
from analyses.singular_pairs import weight_pairs
from analyses.subsets import removal_lattice
from analyses.toolbox import LATTICE_SITES, NO_KEY, PARTS, Toolbox, use_toolbox
from analyses.toolbox_json import toolbox_dict
from analyses.weight_removal import removed_from_weight
from hooked_rnn import ModularAddition

TASK = ModularAddition(P)
TRAIN = TASK.split(0.4, 0)[0]
HIDDEN = "blocks.0.hook_hidden"


@cache
def oracle() -> Subject:
    return subject_of(fourier_adder(noise=1e-3, dtype=torch.float32), TASK, "the oracle", TRAIN)


@cache
def of_the_oracle() -> Toolbox:
    return use_toolbox(oracle(), find(oracle().adder))


@cache
def written() -> dict[str, Any]:
    return json.loads(json.dumps(toolbox_dict(of_the_oracle()), allow_nan=False))


def box_of(model: Any, task: ModularAddition) -> Toolbox:
    subject = subject_of(model, task)
    return use_toolbox(subject, find(subject.adder))


def test_the_oracle_has_what_was_planted_everywhere() -> None:
    box = of_the_oracle()
    assert box.left_out == {}
    assert all(set(found.frequencies) == set(FREQUENCIES) for found in box.rules.values())
    for found in box.pairs.values():
        assert [pair.frequency for pair in found.pairs[:3]] == list(FREQUENCIES)
        assert min(pair.purity for pair in found.pairs[:3]) > 0.85
    assert box.neurons is not None
    assert box.neurons.share_above == 1.0
    assert {c.frequency: len(c.neurons) for c in box.neurons.clusters} == dict.fromkeys(FREQUENCIES, 32)
    assert box.pizza.explained > 0.97 > box.clock.explained  # the oracle is a pizza
    assert box.families["logits"].shares["sum"] > 0.75
    assert [lattice.frequencies for lattice in box.lattices.values()] == [FREQUENCIES] * len(LATTICE_SITES)


def test_the_json_holds_the_tools_own_numbers() -> None:
    box, adder, ks = written(), oracle().adder, list(FREQUENCIES)
    for rule, found in box["key_frequencies_by_rule"].items():
        direct = find(adder, rule)
        assert (found["frequencies"], found["threshold"], found["of"]) == (
            direct.frequencies,
            direct.threshold,
            direct.of,
        )
    assert list(box["key_frequencies_by_rule"]) == list(RULES)
    direct = weight_pairs(adder, 12)
    assert {name: x["mean_purity"] for name, x in box["singular_pairs"].items()} == {
        n: x.mean_purity for n, x in direct.items()
    }
    assert box["neurons"]["share_above"] == cluster_neurons(adder.activation(HIDDEN), P).share_above
    assert [row["holds"] for row in box["candidates"]] == [row.holds for row in candidates(adder).rows]
    stages = read_circuit(oracle().model, TASK, ks).stages
    assert [stage["relative_error"] for stage in box["circuit"]["stages"]] == [stage.relative_error for stage in stages]
    assert box["clock_or_pizza"]["symmetry"]["exchanged"] == clock_or_pizza(adder).symmetry.exchanged
    assert [x["variant"] for x in box["losses"]] == list(VARIANTS)
    trace = progress_measures(adder, ks, "trace", TRAIN)
    assert box["losses"][2]["excluded"] == {
        "train": trace.excluded.train,
        "test": trace.excluded.test,
        "all": trace.excluded.all,
    }
    for site in LATTICE_SITES:
        lattice = removal_lattice(adder, ks, site, not_in_control=ks)
        assert box["subsets"][site]["loss"] == lattice.loss.tolist()
        assert box["subsets"][site]["shapley"]["accuracy"] == {str(k): x for k, x in lattice.shapley().items()}
        assert lattice.control is not None
        assert box["subsets"][site]["control"]["accuracy"] == lattice.control.accuracy.tolist()


def test_removal_at_every_place_is_the_operator_that_it_is_called() -> None:
    adder, ks = oracle().adder, list(FREQUENCIES)
    found = {(x.site, x.mode): x for x in removal_sites(adder, ks).removals}
    assert [key for key in found if key[1] == "mean"] == [("hidden, by subspace", "mean")]
    for weight in ("W_E", "W_ih", "W_hh", "W_U"):
        with removed_from_weight(adder, weight, ks):
            expected = accuracy(adder)
        assert found[weight, "zero"].accuracy == expected < 0.1
    hook = frequency_hook(P, ks)
    logits = adder.logits([(HIDDEN, hook)])
    assert found["hidden", "zero"].accuracy == float((logits.argmax(-1) == adder.labels).double().mean())
    assert found["logits", "zero"].loss == pytest.approx(
        found["hidden", "zero"].loss, rel=1e-4
    )  # W_U reads it, and is linear
    for site in ("W_E", "W_hh", "W_U", "hidden", "logits", "hidden, by subspace"):
        control = found[site, "zero"].control
        assert control is not None
        assert control.min > 0.99 > found[site, "zero"].accuracy
        assert found[site, "zero"].one.min <= found[site, "zero"].one.mean <= found[site, "zero"].one.max
    assert CONTROL_DRAWS > 1


def accuracy(adder: Adder) -> float:
    return float((adder.logits().argmax(-1) == adder.labels).double().mean())


def test_random_weights_have_none_of_it() -> None:
    box = box_of(random_model(TASK), TASK)
    assert (box.losses, box.removals, box.lattices) == ([], None, {})
    assert {part for part, why in box.left_out.items() if why == NO_KEY} == {
        "restricted loss", "removal at every site", *(f"subsets at {site}" for site in LATTICE_SITES),
    }  # fmt: skip
    assert all(found.frequencies == [] for rule, found in box.rules.items() if rule != "threshold")  # it knows no p
    assert (box.clock.explained, box.pizza.explained) == (0, 0)
    assert box.neurons is not None
    assert box.neurons.share_above == 0.0
    assert max(found.mean_purity for found in box.pairs.values()) < 0.6
    json.dumps(toolbox_dict(box), allow_nan=False)


@pytest.mark.parametrize("kind", ["gru", "lstm", "transformer", "mlp"])
def test_what_is_about_a_vanilla_network_only_is_left_out_with_a_reason(kind: str) -> None:
    task = ModularAddition(7, equals_token=kind == "transformer")
    model = (
        {"transformer": transformer, "mlp": MLP}[kind](7)
        if kind in ("transformer", "mlp")
        else random_model(task, cell=kind)
    )
    box = box_of(model.eval(), task)
    assert (box.circuit, box.candidates) == (None, None)
    assert "expected" in box.left_out["circuit"]
    assert box.neurons is not None
    assert box.families
    assert (box.clock_or_pizza is None) == (kind == "mlp")  # this one has no hook at its embedding
    json.dumps(toolbox_dict(box), allow_nan=False)


def test_every_part_is_announced_once() -> None:
    ticks: list[str] = []
    model = random_model(ModularAddition(5))
    subject = subject_of(model, ModularAddition(5))
    use_toolbox(subject, find(subject.adder), ticks.append)
    assert ticks == list(PARTS)
