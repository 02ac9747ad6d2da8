"""The metric runner: the same operators on every kind of model, each figure with its name, and a reason where there is none."""

import json
from functools import cache

import pytest
import torch
from planted import FREQUENCIES, P, fourier_adder, random_model
from test_adder import MLP, transformer

from analyses.adder import Adder
from analyses.attribution import singular_attribution
from analyses.circuit import logit_fit
from analyses.clock_pizza import clock_or_pizza
from analyses.errors import ActivationError, GridError
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.measure import key_frequencies_of
from analyses.metrics import METRICS, NO_KEY, Absent, Metrics, n_ticks, run_metrics
from hooked_rnn import ModularAddition

TASK = ModularAddition(P)


@cache
def planted() -> Metrics:
    return run_metrics(Adder(fourier_adder(), TASK), TASK.split(0.4, 0)[0])


def test_what_is_planted_is_found() -> None:
    m = planted()
    assert m.accuracy == m.held_out_accuracy == m.best_accuracy_known == 1.0
    assert m.key.by_share == list(FREQUENCIES)
    assert set(m.key_by_rule["logit variance"]) == set(FREQUENCIES)
    assert m.components == 6
    assert [m.held("W_E"), m.held("W_U")] == pytest.approx([1.0, 1.0])
    assert m.purity["W_E"] == pytest.approx(1.0)
    assert m.explained == pytest.approx(1.0)
    assert m.neurons.share_above == 1.0
    assert m.families.shares["cross"] < 0.05
    assert not isinstance(m.pizza, Absent)
    assert not isinstance(m.clock, Absent)
    assert m.pizza.explained > 0.999 > 0.85 > m.clock.explained
    assert not isinstance(m.losses, Absent)
    assert m.losses.restricted.all < 0.2 < 3 < m.losses.excluded.all
    assert m.losses.plain.train is not None


def test_a_model_of_random_weights_has_no_structure_and_the_reasons_are_given() -> None:
    m = run_metrics(Adder(random_model(TASK), TASK))
    assert m.key.frequencies == []
    for absent in (m.clock, m.pizza, m.losses, m.removal, m.held("W_E")):
        assert absent == Absent(NO_KEY)
    assert m.held_out_accuracy == Absent("the split is not known")
    found = m.to_dict()
    assert found["removal"]["value"] is None
    assert found["removal"]["why_null"] == NO_KEY
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("model", "equals_token"),
    [
        (transformer(7), True),
        (MLP(7), False),
        *((random_model(ModularAddition(7), cell=cell), False) for cell in ("rnn", "gru", "lstm")),
    ],
    ids=["transformer", "mlp", "rnn", "gru", "lstm"],
)
def test_every_kind_of_model_has_every_metric(model: object, equals_token: bool) -> None:
    task = ModularAddition(7, equals_token=equals_token)
    adder = Adder(model, task)
    with torch.no_grad():  # a circle in the embedding, so that there is a key frequency
        turns = 2 * torch.pi * 3 * torch.arange(7) / 7
        adder.model.W_E[:7, 0].add_(20 * turns.cos())
        adder.model.W_E[:7, 1].add_(20 * turns.sin())
    ticks: list[str] = []
    m = run_metrics(adder, task.split(1.0, 0)[0], tick=ticks.append)
    assert 3 in m.key.frequencies
    assert len(ticks) == n_ticks(len(m.key.frequencies))
    found = m.to_dict()
    assert list(found) == [metric.name for metric in METRICS]
    for name, entry in found.items():
        assert set(entry) == {"value", "why_null", "operator", "threshold"}
        assert (entry["value"] is None) == (entry["why_null"] is not None), name
        assert entry["operator"]
    without = {name for name, entry in found.items() if entry["value"] is None}
    of_gradients = {"gradient symmetricity", "gradients exchanged", "gradients' ratio"}
    assert without == {"held-out accuracy"} | (of_gradients if isinstance(model, MLP) else set())
    assert found["held-out accuracy"]["why_null"] == "all pairs were trained on"
    json.dumps(found, allow_nan=False)


def test_each_figure_is_its_operator_s() -> None:
    adder = Adder(fourier_adder(), TASK)
    m, measures = planted(), clock_or_pizza(adder)
    assert m.key.by_share == key_frequencies_of(adder.model, TASK).by_share
    assert m.purity["W_U"] == pytest.approx(singular_attribution(adder.W_U, P, 6, dim=1).mean_purity)
    assert m.held("W_E") == held_by_first(cumulative_energy(adder.W_E), 6)
    assert m.symmetry == measures.symmetry
    assert m.distance_irrelevance == measures.distance_irrelevance
    assert m.circularity == measures.circularity
    assert not isinstance(m.clock, Absent)
    assert m.clock.explained == logit_fit(adder.logits(), P, m.key.frequencies).explained


def test_three_operands_and_a_model_without_a_last_state_are_errors() -> None:
    task = ModularAddition(5, operands=3)
    three = Adder(random_model(task), task)
    with pytest.raises(GridError, match="a task of 3 operands"):
        run_metrics(three)

    without = Adder(MLP(7), ModularAddition(7))
    without.model.hook_dict = {}
    with pytest.raises(ActivationError, match="no hook point whose name ends in"):
        run_metrics(without)
