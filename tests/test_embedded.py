"""The embedded models are what their cards say, and can be made again from what the cards say."""

import dataclasses
import json

import pytest
import torch

from analyses.seeds import RULES, choose, read_csv
from hooked_rnn import TrainConfig, build_model, load_model, train
from hooked_rnn.architectures import architecture_of, config_from_json
from hooked_rnn.pretrained import EMBEDDED, embedded_names, read_training
from hooked_rnn.tasks import task_from_dict
from hooked_rnn.training.run_directory import read_history
from hooked_rnn.weights import digest

RECORDS = {name: read_training(EMBEDDED / name) for name in embedded_names()}
TABLES = {name: read_csv(EMBEDDED / name / "seeds.csv") for name in embedded_names()}
ROWS = {
    name: next(row for row in TABLES[name] if int(row["seed"]) == RECORDS[name]["train"]["seed"])
    for name in embedded_names()
}
LEAST_SEEDS = {"mod-add-113": 8, "mod-add-113-adamw": 3, "mod-add-113-clean": 3, "mod-add-113-transformer": 3}

every_model = pytest.mark.parametrize("name", embedded_names())


@every_model
def test_the_beginning_of_its_run_is_made_again_from_its_record(name: str) -> None:
    """All of it would take a minute; the studies' tests make a whole run again.

    On another kind of processor rounding differs, which so early is not amplified by much.
    """
    assert torch.get_num_threads() == RECORDS[name]["threads"] == 1
    directory, record = EMBEDDED / name, RECORDS[name]
    first, second, *_ = read_history(directory)
    config = dataclasses.replace(TrainConfig.from_dict(record["train"]), steps=first["step"])
    model = build_model(config_from_json((directory / "config.json").read_text(encoding="utf-8")))
    again = train(model, task_from_dict(record["task"]), config, progress=False).history[0]
    for figure in ("train_loss", "test_loss"):
        assert again[figure] == pytest.approx(first[figure], rel=0.01)
        assert again[figure] != pytest.approx(second[figure], rel=0.01)  # the control


def test_there_is_one_for_every_rule() -> None:
    assert embedded_names() == sorted(RULES)


@every_model
def test_the_weights_are_those_of_the_row_and_the_record(name: str) -> None:
    model, record, row = load_model(name), RECORDS[name], ROWS[name]
    task, kind = task_from_dict(record["task"]), architecture_of(model)
    assert digest(kind.weights_of(model)).startswith(row["sha256"])
    with torch.no_grad():
        correct = (model(task.tokens)[:, -1].argmax(-1) == task.labels).double()
    assert float(correct.mean()) == float(row["accuracy"]) >= 0.999
    _, test = task.split(record["train"]["train_fraction"], record["train"]["seed"])
    assert float(correct[test].mean()) == pytest.approx(record["result"]["test_accuracy"], abs=1e-4)


@every_model
def test_several_seeds_stand_in_the_table_and_the_rule_chose_this_one(name: str) -> None:
    assert len({row["seed"] for row in TABLES[name]}) >= LEAST_SEEDS[name]
    numbers = ("accuracy", "n_key", "W_E without 1", "W_E without all", "largest_fit_error")
    numbers = tuple(key for key in numbers if key in ROWS[name])  # a transformer has no fit error
    rows = [{**row, **{key: float(row[key]) for key in numbers}, "seed": int(row["seed"])} for row in TABLES[name]]
    assert choose(rows, RULES[name])["seed"] == int(ROWS[name]["seed"])


@every_model
def test_the_card_lists_every_seed_with_every_metric(name: str) -> None:
    card = (EMBEDDED / name / "README.md").read_text(encoding="utf-8")
    record, row = RECORDS[name], ROWS[name]
    for metric in row:
        assert f"\n| {metric} |" in card
    assert all(row["key_frequencies"] in card for row in TABLES[name])
    assert f"hooked-rnn train --recipe {record['train']['name']} " in card
    assert f"--threads {record['threads']} --seed {row['seed']}`" in card
    assert RULES[name].text in card


def test_the_structure_is_not_the_orthogonal_gradients_doing() -> None:
    assert RECORDS["mod-add-113-adamw"]["train"]["orthogonal_steps"] == 0
    assert RECORDS["mod-add-113"]["train"]["orthogonal_steps"] > 0  # the control


@every_model
def test_the_record_is_strict_json_and_names_no_path(name: str) -> None:
    text = (EMBEDDED / name / "train.json").read_text(encoding="utf-8")
    assert json.loads(text)["result"]["step"] == RECORDS[name]["train"]["steps"]
    assert "/" not in text.replace("+cpu", "")
    assert (EMBEDDED / name / "history.jsonl").is_file()
