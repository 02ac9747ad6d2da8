"""The embedded models are what their cards say, and can be made again from what the cards say."""

import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch

from analyses.seeds import RULES, choose, read_csv, row_of
from hooked_rnn import HookedRNN, HookedRNNConfig, TrainConfig, build_model, load_model, train
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


@pytest.fixture(scope="module")
def made_again(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """The row of the embedded run, trained and measured once more from its record alone."""
    directory, record = EMBEDDED / "mod-add-113", RECORDS["mod-add-113"]
    threads = torch.get_num_threads()
    torch.set_num_threads(record["threads"])
    cfg = HookedRNNConfig.from_json((directory / "config.json").read_text(encoding="utf-8"))
    out = tmp_path_factory.mktemp("again") / "run"
    train(HookedRNN(cfg), task_from_dict(record["task"]), TrainConfig.from_dict(record["train"]), out, progress=False)
    yield row_of(str(out))
    torch.set_num_threads(threads)


def test_training_again_gives_the_same_row_or_on_other_processors_one_of_its_kind(
    made_again: dict[str, object],
) -> None:
    """On another kind of processor rounding differs, and training amplifies that: the frequencies are then others."""
    row = ROWS["mod-add-113"]
    if made_again["sha256"] != row["sha256"]:
        assert float(made_again["accuracy"]) > 0.98
        assert 3 <= int(made_again["n_key"]) <= 9
        return
    assert RULES["mod-add-113"].admits(made_again)
    assert made_again["key_frequencies"] == row["key_frequencies"]
    for name in (name for name in row if name.startswith(("energy", "purity", "W_E without", "accuracy"))):
        assert float(made_again[name]) == pytest.approx(float(row[name]), abs=2e-3), name


def test_the_beginning_of_the_transformers_run_is_made_again_from_its_record() -> None:
    """All of it would take a minute. On another kind of processor rounding differs, which so early is not amplified by much."""
    directory, record = EMBEDDED / "mod-add-113-transformer", RECORDS["mod-add-113-transformer"]
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
