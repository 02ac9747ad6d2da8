"""Runs side by side: the rule by which one is chosen, each of its parts just met and just missed."""

import math
from pathlib import Path
from typing import Any

import pytest
from planted import random_model

from analyses.adder import Adder
from analyses.circuit import logit_fit
from analyses.errors import ReportError
from analyses.fourier import FourierBasis
from analyses.neurons import cluster_neurons
from analyses.seeds import RULES, Rule, choose, read_csv, row_of, tabulate, write_csv
from hooked_rnn import ModularAddition, TrainConfig, TransformerConfig, build_model, save_model, train
from hooked_rnn.architectures import architecture_of
from hooked_rnn.weights import digest

GOOD = {"accuracy": 0.999, "n_key": 3, "W_E without 1": 0.86, "W_E without all": 0.05}


@pytest.mark.parametrize(
    ("change", "may"),
    [
        ({}, True),
        ({"accuracy": math.nextafter(0.999, 0)}, False),
        ({"n_key": 2}, False),
        ({"n_key": 9}, True),
        ({"n_key": 10}, False),
        ({"W_E without 1": 0.85}, False),
        ({"W_E without all": 0.06}, False),
        ({"n_key": 0, "W_E without 1": None, "W_E without all": None}, False),
    ],
)
def test_a_run_may_be_embedded_if_it_fulfils_every_part_of_the_rule(change: dict[str, Any], may: bool) -> None:
    assert RULES["mod-add-113"].admits(GOOD | change) == may


def test_the_clean_run_has_most_of_the_three_claims_then_the_least_error() -> None:
    claims, error = {"C2": "holds", "C6": "partly", "C7": "holds"}, "largest_fit_error"
    rows = [
        {"accuracy": 1.0, **claims, error: 0.3},
        {"accuracy": 1.0, **claims, error: 0.2},
        {"accuracy": 1.0, **claims, "C7": "partly", error: 0.1},
        {"accuracy": 0.99, **claims, error: 0.1},
    ]
    assert choose(rows, RULES["mod-add-113-clean"]) == rows[1]
    assert choose(rows[2:], RULES["mod-add-113-clean"]) == rows[2]


def test_of_adamw_alone_only_accuracy_is_asked() -> None:
    assert RULES["mod-add-113-adamw"].admits({"accuracy": 0.999})
    assert not RULES["mod-add-113-adamw"].admits({"accuracy": 0.99})


def test_the_lowest_seed_that_may_be_embedded_is_chosen() -> None:
    rows = [
        {"seed": seed, "may": may, "error": 1 / seed} for seed, may in ((7, True), (10, True), (2, False), (3, True))
    ]
    assert choose(rows, Rule("", lambda row: row["may"])) == rows[3]
    assert choose(rows, Rule("", lambda row: row["may"], lambda row: row["error"])) == rows[1]
    with pytest.raises(ReportError, match="none of 1 seeds may be embedded: expected a miracle"):
        choose(rows[2:3], Rule("a miracle", lambda row: row["may"]))


def test_runs_are_tabulated_by_seed_and_survive_a_file(tmp_path: Path) -> None:
    task = ModularAddition(5)
    for seed in (3, 1):
        config = TrainConfig.recipe("fast", steps=2, seed=seed)
        train(random_model(task, seed=seed), task, config, tmp_path / str(seed), progress=False)
    rows = tabulate([str(tmp_path / "3"), str(tmp_path / "1")])
    assert [row["seed"] for row in rows] == [1, 3]
    assert rows[0].keys() == rows[1].keys() >= {"accuracy", "n_key", "loss", "C1", "C7", "sha256"}
    assert rows[0]["sha256"] != rows[1]["sha256"]
    with pytest.raises(ReportError, match="none of 2 seeds may be embedded: expected the lowest seed"):
        choose(rows, RULES["mod-add-113"])
    write_csv(rows, tmp_path / "table.csv")
    read = read_csv(tmp_path / "table.csv")
    assert [row["accuracy"] for row in read] == [str(row["accuracy"]) for row in rows]


def test_a_model_without_its_training_is_no_row(tmp_path: Path) -> None:
    random_model(ModularAddition(5)).save_pretrained(tmp_path)
    with pytest.raises(ReportError, match=r"has no train\.json"):
        tabulate([str(tmp_path)])


def test_a_table_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot write"):
        write_csv([{"seed": 1}], tmp_path / "nowhere" / "table.csv")


def test_a_transformers_row_has_what_means_something_on_it(tmp_path: Path) -> None:
    task = ModularAddition(11, equals_token=True)
    cfg = TransformerConfig(d_vocab=12, d_vocab_out=11, d_model=16, n_heads=2, d_mlp=24, seed=4)
    config = TrainConfig.recipe("fast", steps=4, orthogonal_steps=4, train_fraction=0.9, seed=4)
    model = train(build_model(cfg), task, config, tmp_path / "run", progress=False).model
    weights = {name: w.clone() for name, w in architecture_of(model).weights_of(model).items()}
    weights["embed.W_E"][:11, :2] += 3 * FourierBasis(11).functions([2]).float().T  # now there is a key frequency
    architecture_of(model).set_weights(model, weights)
    save_model(model, tmp_path / "run")
    row, adder = row_of(str(tmp_path / "run")), Adder(model, task)
    assert (row["seed"], row["key_frequencies"], row["n_key"]) == (4, "2", 1)
    correct = (adder.logits().argmax(-1) == task.labels).double()
    assert row["accuracy"] == float(correct.mean())
    assert row["held_out_accuracy"] == float(correct[task.split(0.9, 4)[1]].mean())
    assert row["logits_clock"] == pytest.approx(logit_fit(adder.logits(), 11, [2]).explained)
    neurons = cluster_neurons(adder.activation("blocks.0.mlp.hook_post"), 11)
    assert row["neurons_explained"] == neurons.share_above
    assert {"energy W_E", "energy W_U", "W_E without 1", "restricted_loss", "circularity"} <= row.keys()
    assert not {"energy W_hh", "largest_fit_error", "C6"} & row.keys()
    write_csv([row], tmp_path / "seeds.csv")
    assert read_csv(tmp_path / "seeds.csv")[0]["sha256"] == row["sha256"] == digest(weights)[:16]
