"""Nothing that was said to be saved is ever lost, and a run that was cut off ends as if it had not been."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import FIELDS, TASK, die_at_file_operation, model_of, start, write_no_file_above

from hooked_rnn import HookedRNN, TrainConfig, train
from hooked_rnn.checkpoints import checkpoint_paths
from hooked_rnn.errors import HookedRNNWarning, RunDirectoryError
from hooked_rnn.training import loop
from hooked_rnn.training.run_directory import read_history
from hooked_rnn.weights import load_weights

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")


def run_to_the_end(out: Path, **fields: Any) -> Path:
    train(model_of(), TASK, TrainConfig.recipe("fast", **{**FIELDS, **fields}), out, progress=False, resume=True)
    return out


def ending(out: Path) -> tuple[bytes, list[dict[str, Any]], list[bytes]]:
    """A run's final weights, its history and its checkpoints, all but for the seconds."""
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(out)]
    checkpoints = []
    for path in checkpoint_paths(out):
        tensors = load_weights(path)
        del tensors["training.seconds"]
        checkpoints.append(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)))
    return (out / "model.safetensors").read_bytes(), history, checkpoints


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, Any]], list[bytes]]:
    return ending(run_to_the_end(tmp_path_factory.mktemp("never") / "killed"))


def test_killed_at_many_random_moments_a_run_ends_with_the_same_bits(
    tmp_path: Path, never_killed: tuple[bytes, list[dict[str, Any]], list[bytes]]
) -> None:
    chance, reached = random.Random(0), []
    for attempt in range(5):
        out = tmp_path / f"run-{attempt}"
        for _ in range(20):
            training = start(out)
            enough = len(checkpoint_paths(out)) + chance.randint(0, 2)
            while training.process.is_alive() and len(checkpoint_paths(out)) < enough:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.015))
            training.process.kill()
            if training.outcome() != "killed":
                break
            saved = [int(path.stem.removeprefix("step-")) for path in checkpoint_paths(out)]
            assert saved == sorted(range(0, max(saved, default=-1) + 1, 5), reverse=True)  # none is ever lost
            reached += saved[:1]
        run_to_the_end(out)
        assert ending(out) == never_killed
    assert sum(0 < step < 30 for step in reached) >= 2, reached  # both phases were cut off
    assert sum(30 < step < 60 for step in reached) >= 2, reached


def test_killed_before_any_file_operation_a_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    short = {"steps": 4, "orthogonal_steps": 2, "eval_every": 1, "checkpoint_every": 2}
    expected = ending(run_to_the_end(tmp_path / "whole", **short))
    number, outcome = 0, "killed"
    while outcome == "killed":
        number += 1
        out = tmp_path / f"killed-{number}"
        outcome = start(out, die_at_file_operation, (number, str(out)), **short).outcome()
        run_to_the_end(out, **short)
        assert ending(out) == expected, number
        assert not list(out.rglob(".*.tmp")), number
    assert outcome == "finished"
    assert number > 30


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 16},
        {"batch_size": 60},
        {"warmup_steps": 7},
        {"orthogonal_steps": 0},
        {"orthogonal_steps": 60},
        {"stop_at": ("train_accuracy=0.9",)},
    ],
)
def test_interrupted_at_any_step_whatever_the_configuration(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ending(run_to_the_end(tmp_path / "whole", **fields))
    out, at = tmp_path / "run", iter((3, 5, 17, 30, 31, 44))

    def cut(*arguments: Any) -> None:
        if arguments[-1] == cut.step:
            cut.step = next(at, None)
            raise KeyboardInterrupt
        take_step(*arguments)

    take_step, cut.step = loop.take_step, next(at)
    monkeypatch.setattr(loop, "take_step", cut)
    while True:
        try:
            run_to_the_end(out, **fields)
        except KeyboardInterrupt:
            continue
        break
    assert ending(out) == expected


def test_ctrl_c_saves_the_step_it_was_at(
    tmp_path: Path, never_killed: tuple[bytes, list[dict[str, Any]], list[bytes]]
) -> None:
    training = start(tmp_path / "run", checkpoint_every=1000)
    while not (tmp_path / "run" / "history.jsonl").exists() or not read_history(tmp_path / "run"):
        time.sleep(0.002)
    os.kill(training.process.pid, signal.SIGINT)
    outcome = training.outcome()
    assert outcome.startswith("KeyboardInterrupt: interrupted after step ")
    step = int(outcome.split()[4].rstrip(";"))
    assert [path.stem for path in checkpoint_paths(tmp_path / "run")] == [f"step-{step:06d}", "step-000000"]
    run_to_the_end(tmp_path / "run", checkpoint_every=1000)
    assert ending(tmp_path / "run")[:2] == never_killed[:2]


def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    first = start(tmp_path / "run", steps=400)
    while not checkpoint_paths(tmp_path / "run"):
        time.sleep(0.002)
    assert "is being written by another process" in start(tmp_path / "run", steps=400).outcome()
    assert first.outcome() == "finished"


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    out = run_to_the_end(tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    model = model_of()
    run = train(model, TASK, TrainConfig.recipe("fast", **FIELDS), out, progress=False, resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert torch.equal(model.W_U, HookedRNN.from_pretrained(out).W_U)  # the run that is returned is that run
    assert run.history == read_history(out)


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"lr": 0.5}, "train lr is 0.003 there and 0.5 here"),
        ({"steps": 61}, "train steps is 60 there and 61 here"),
        ({"seed": 1}, "train seed is 0 there and 1 here"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(
    tmp_path: Path, fields: dict[str, Any], difference: str
) -> None:
    out = run_to_the_end(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=difference):
        run_to_the_end(out, **fields)


def test_another_model_is_refused_with_the_difference(tmp_path: Path) -> None:
    out, config = run_to_the_end(tmp_path / "run"), TrainConfig.recipe("fast", **FIELDS)
    with pytest.raises(RunDirectoryError, match="run dtype is 'float32' there and 'float64' here"):
        train(model_of().double(), TASK, config, out, progress=False, resume=True)
    wider = HookedRNN(type(model_of().cfg)(**{**model_of().cfg.to_dict(), "d_hidden": 25}))
    with pytest.raises(RunDirectoryError, match="model d_hidden is 24 there and 25 here"):
        train(wider, TASK, config, out, progress=False, resume=True)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, altered, emptied])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_used(
    tmp_path: Path, damage: Any, never_killed: tuple[bytes, list[dict[str, Any]], list[bytes]]
) -> None:
    out = killed_run(tmp_path / "run")
    newest, before = checkpoint_paths(out)[:2]
    damage(newest)
    with pytest.warns(HookedRNNWarning) as said:
        model = HookedRNN.from_pretrained(out)
    assert newest.name in str(said[0].message)
    assert model.loaded_from == before
    with pytest.warns(HookedRNNWarning, match=f"{newest.name}.*the checkpoint before it is used"):
        run_to_the_end(out)
    assert ending(out) == never_killed


def killed_run(out: Path, at: int = 43) -> Path:
    """A run that died within a step."""
    with pytest.MonkeyPatch.context() as patch:
        take_step = loop.take_step

        def die(*arguments: Any) -> None:
            if arguments[-1] == at:
                raise KeyboardInterrupt
            take_step(*arguments)

        patch.setattr(loop, "take_step", die)
        with pytest.raises(KeyboardInterrupt):
            run_to_the_end(out)
    return out


def test_where_no_checkpoint_can_be_read_the_run_begins_again(
    tmp_path: Path, never_killed: tuple[bytes, list[dict[str, Any]], list[bytes]]
) -> None:
    out = killed_run(tmp_path / "run", at=9)
    for path in checkpoint_paths(out):
        cut_short(path)
    with pytest.warns(HookedRNNWarning, match="step-000005"), pytest.warns(HookedRNNWarning, match="step-000000"):
        run_to_the_end(out)
    assert ending(out) == never_killed


def test_a_finished_run_needs_no_checkpoints(tmp_path: Path) -> None:
    out = run_to_the_end(tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    model = model_of()
    run = train(model, TASK, TrainConfig.recipe("fast", **FIELDS), out, progress=False, resume=True)
    assert torch.equal(model.W_U, HookedRNN.from_pretrained(out).W_U)
    assert run.history == read_history(out) != []


def test_a_checkpoint_of_another_kind_is_refused_by_name(
    tmp_path: Path, never_killed: tuple[bytes, list[dict[str, Any]], list[bytes]]
) -> None:
    out = killed_run(tmp_path / "run")
    newest = checkpoint_paths(out)[0]
    shutil.copyfile(run_to_the_end(tmp_path / "whole") / "model.safetensors", newest)  # weights and nothing else
    with pytest.warns(
        HookedRNNWarning, match=f"{newest.name} cannot be gone on from: it lacks training.history_length"
    ):
        run_to_the_end(out)
    assert ending(out) == never_killed


def test_a_history_that_lost_rows_sends_the_run_back_to_where_it_is_whole(
    tmp_path: Path, never_killed: tuple[bytes, list[dict[str, Any]], list[bytes]]
) -> None:
    out = killed_run(tmp_path / "run")
    lines = (out / "history.jsonl").read_text().splitlines(keepends=True)
    (out / "history.jsonl").write_text("".join(lines[:-1]))
    with pytest.warns(HookedRNNWarning, match="step-000040.* the history has 9 rows: expected at least 10"):
        run_to_the_end(out)
    assert ending(out) == never_killed


def test_a_line_of_the_history_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    out = killed_run(tmp_path / "run")
    rows = read_history(out)
    with (out / "history.jsonl").open("a") as file:
        file.write('{"step": 44, "sec')
    assert read_history(out) == rows
    run_to_the_end(out)
    assert [row["step"] for row in read_history(out)] == list(range(4, 61, 4))


def test_a_full_disk_is_one_clear_error_and_what_was_saved_is_whole(
    tmp_path: Path, never_killed: tuple[bytes, list[dict[str, Any]], list[bytes]]
) -> None:
    out = killed_run(tmp_path / "run", at=23)
    size = checkpoint_paths(out)[0].stat().st_size
    outcome = start(out, write_no_file_above, (size - 1,)).outcome()
    assert outcome.startswith(f"RunDirectoryError: cannot write a run to {out}: [Errno 27] File too large")
    assert "step-000020.safetensors and all before it are whole" in outcome
    run_to_the_end(out)
    assert ending(out) == never_killed


@pytest.mark.parametrize("at", [3, 4])  # a checkpoint comes next, or a row of the history
def test_a_directory_that_vanishes_is_one_clear_error(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out, take_step = tmp_path / "run", loop.take_step

    def vanish(*arguments: Any) -> None:
        if arguments[-1] == at:
            shutil.rmtree(out)
        take_step(*arguments)

    monkeypatch.setattr(loop, "take_step", vanish)
    with pytest.raises(RunDirectoryError, match=r"cannot write a run to .*No such file.*; nothing is saved"):
        run_to_the_end(out, checkpoint_every=3)


def test_an_absent_and_an_empty_directory_start(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        assert (run_to_the_end(tmp_path / name) / "model.safetensors").is_file()


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"holds config.json but no train.json: no run to go on with"):
        run_to_the_end(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    out = run_to_the_end(tmp_path / "run")
    (out / "train.json").write_text(json.dumps({"task": {}}))
    with pytest.raises(RunDirectoryError, match=r"train.json is no record of a run: 'train'"):
        run_to_the_end(out)


def test_other_threads_are_said(tmp_path: Path) -> None:
    out = run_to_the_end(tmp_path / "run")
    record = json.loads((out / "train.json").read_text())
    (out / "train.json").write_text(json.dumps({**record, "threads": 64}))
    with pytest.warns(HookedRNNWarning, match=r"was begun with threads 64 and goes on with 1: rounding may differ"):
        run_to_the_end(out)
