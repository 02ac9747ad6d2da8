"""The command line: what it does, and what it says of what it cannot do."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from analyses.cli import app
from hooked_rnn import load_model, model_config
from hooked_rnn.training.loop import take_step

TINY = ("--modulus", "7", "--steps", "20", "--d-model", "8", "--d-hidden", "12", "--threads", "1")
COMMAND = Path(sys.executable).with_name("hooked-rnn")


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    """``--threads`` is for the whole process, and these tests share one."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def tiny_run(tmp_path: Path, *options: str) -> Path:
    out = tmp_path / "run"
    result = run("train", *TINY, *options, "--out", str(out))
    assert result.exit_code == 0, result.stderr
    return out


def test_the_installed_command_answers() -> None:
    result = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"hooked-rnn {metadata.version('hooked-rnn')}\n"


def test_the_installed_command_prints_an_error_and_no_traceback(tmp_path: Path) -> None:
    result = subprocess.run([COMMAND, "report", tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert (
        result.stderr
        == f"hooked-rnn: {tmp_path} is no run: it has no config.json; expected config.json and model.safetensors\n"
    )


@pytest.mark.parametrize(
    ("model", "options", "fields"),
    [
        ("rnn", ["--d-hidden", "9"], {"d_hidden": 9, "n_ctx": 3}),
        (
            "transformer",
            ["--heads", "2", "--d-mlp", "12", "--bias"],
            {"n_heads": 2, "d_head": 4, "d_mlp": 12, "bias": True},
        ),
        (
            "mlp",
            ["--combine", "sum", "--d-mlp", "12", "--init-scale", "0.5"],
            {"combine": "sum", "d_mlp": 12, "init_scale": 0.5},
        ),
    ],
)
def test_every_model_is_trained_by_the_same_command(
    model: str, options: list[str], fields: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    size = ["--modulus", "7", "--equals-token", "--steps", "4", "--orthogonal-steps", "2", "--d-model", "8"]
    result = run("train", "--model", model, *size, *options, "--seed", "3", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    trained = model_config(load_model(out))
    assert trained.architecture == model
    expected = {"d_vocab": 8, "d_vocab_out": 7, "d_model": 8, "n_ctx": 3, "seed": 3, **fields}
    assert {name: getattr(trained, name) for name in expected} == expected


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    assert all(
        command in run("--help").stdout for command in ("report", "train", "models", "seeds", "circuit", "progress")
    )
    code = "import sys, analyses.cli; print({'torch', 'transformer_lens', 'matplotlib', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_train_then_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyses.report.to_png", lambda figure: b"png")  # what takes the time is tested elsewhere
    directory = tiny_run(tmp_path)
    result = run("report", str(directory), "--out", str(tmp_path / "report"))
    assert result.exit_code == 0, result.stderr
    assert all(f"C{i}" in result.stdout for i in range(1, 8))
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    printed = json.loads(run("report", str(directory), "--json").stdout)
    assert printed == written


def test_seeds_tabulates_runs(tmp_path: Path) -> None:
    directory = tiny_run(tmp_path, "--seed", "3")
    result = run("seeds", str(directory), "--csv", str(tmp_path / "seeds.csv"))
    assert result.exit_code == 0, result.stderr
    header, row = (tmp_path / "seeds.csv").read_text().splitlines()
    assert header.startswith("seed,steps,train_fraction,accuracy")
    assert row.startswith("3,20,0.4,")


def test_seeds_tabulates_runs_of_different_depths(tmp_path: Path) -> None:
    runs = [tiny_run(tmp_path / str(layers), "--layers", str(layers)) for layers in (2, 1)]
    result = run("seeds", *map(str, runs), "--csv", str(tmp_path / "seeds.csv"))
    assert result.exit_code == 0, result.stderr
    with (tmp_path / "seeds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["energy W_hh[1]"] != "" for row in rows) == [False, True]
    assert "W_hh[1]" in result.stdout


@pytest.mark.filterwarnings("default:.*has not finished")
def test_a_run_that_has_not_finished_is_reported_on_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_at_15(*arguments: object) -> None:
        if arguments[-1] == 15:
            raise KeyboardInterrupt
        take_step(*arguments)

    monkeypatch.setattr("hooked_rnn.training.loop.take_step", interrupt_at_15)
    out = str(tmp_path / "run")
    tiny = ("--modulus", "7", "--d-model", "8", "--d-hidden", "12", "--checkpoint-every", "10", "--out", out)
    result = run("train", *tiny)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert "holds a run that did not finish already" in run("train", *tiny).stderr
    result = run("report", out)
    assert result.exit_code == 0
    unfinished = "not finished, these are the weights of step-000010.safetensors"
    assert f"warning: {out} has {unfinished.replace(',', ':')}" in result.stderr
    assert unfinished in " ".join(result.stdout.split())


def test_resume_goes_on_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    out = tiny_run(tmp_path, "--resume")
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "20 steps" in run("train", *TINY, "--resume", "--out", str(out)).stdout
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == written
    refused = run("train", *TINY, "--lr", "0.5", "--resume", "--out", str(out))
    assert refused.exit_code == 1
    assert "another configuration: train lr is 0.003 there and 0.5 here" in refused.stderr


def test_every_hyperparameter_can_be_given(tmp_path: Path) -> None:
    given = {
        "steps": 3,
        "orthogonal_steps": 2,
        "orthogonal_lr": 0.02,
        "orthogonal_weight_decay": 0.03,
        "lr": 0.004,
        "weight_decay": 0.5,
        "betas": [0.8, 0.9],
        "eps": 1e-6,
        "warmup_steps": 2,
        "batch_size": 5,
        "train_fraction": 0.3,
        "seed": 4,
        "eval_every": 2,
        "checkpoint_every": 2,
        "stop_at": ["loss=0.001"],
    }
    options = []
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        options += [f"--{'fraction' if name == 'train_fraction' else name.replace('_', '-')}", *map(str, values)]
    record = json.loads((tiny_run(tmp_path, "--recipe", "adamw", *options) / "train.json").read_text())
    assert record["train"] == {"name": "adamw", **given}  # a field that no option sets would be one too many


def test_a_stop_rule_ends_the_run(tmp_path: Path) -> None:
    out = tiny_run(tmp_path, "--stop-at", "train_accuracy=0", "--eval-every", "6")
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [6]


def test_models_lists_what_is_embedded() -> None:
    assert "mod-add-113" in run("models").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--modulus", "1"], "p=1: expected a whole number of at least 2"),
        (["train", "--fraction", "0"], "train_fraction=0.0: expected a number above 0 and at most 1"),
        (["train", "--fraction", "1.5"], "train_fraction=1.5: expected"),
        (["train", "--recipe", "slow"], "unknown recipe 'slow': expected 'fast' or 'adamw'"),
        (["train", "--model", "mpl"], "unknown model 'mpl': expected 'rnn', 'transformer' or 'mlp'"),
        (
            ["train", "--model", "transformer", "--d-hidden", "9"],
            "--d-hidden with --model transformer, which has none: expected",
        ),
        (
            ["train", "--model", "mlp", "--layers", "2"],
            "--layers with --model mlp, which has none: expected '--d-model'",
        ),
        (["train", "--heads", "2"], "--heads with --model rnn, which has none: expected '--d-model', '--d-hidden'"),
        (
            ["train", "--model", "transformer", "--heads", "5"],
            "n_heads=5 with d_model=128: expected one that divides it",
        ),
        (["train", "--cell", "gruu"], "cell='gruu': expected 'rnn', 'gru'"),
        (["train", "--act-fn", "gelu"], "act_fn='gelu': expected 'relu' or 'tanh'"),
        (["train", "--modulus", "7", "--out", "FILE/run"], "cannot write a run to"),
        (["train", "--modulus", "7", "--d-hidden", "0"], "d_hidden=0: expected a whole number of at least 1"),
        (["report", "mod-ad-113"], "no model 'mod-ad-113': expected an embedded one ('mod-add-113'"),
        (["report", "EMPTY"], "is no run: it has no config.json"),
        (["report", "--out", "FILE/report"], "cannot write a report to"),
        (["seeds", "EMPTY"], "EMPTY has no train.json: expected the directory of a run"),
        (["circuit", "EMPTY"], "is no run: it has no config.json"),
        (["progress", "EMPTY"], "is no run: it has no config.json"),
        (["progress", "NOWHERE"], "is no run: it has no config.json"),
        (["progress", "EMPTY", "--out", "FILE/out"], "cannot write to"),
    ],
)
def test_bad_input_is_one_line_and_no_traceback(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("hooked-rnn: ")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_weights_file_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = tiny_run(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-9] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    result = run("report", str(path.parent))
    assert result.exit_code == 1
    assert "model.safetensors" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_record_with_no_more_than_task_and_split_is_enough_for_a_report(tmp_path: Path) -> None:
    path = tiny_run(tmp_path) / "train.json"
    record = json.loads(path.read_text())
    split = {key: record["train"][key] for key in ("train_fraction", "seed")}
    path.write_text(json.dumps({"task": record["task"], "train": split}))
    result = run("report", str(path.parent))
    assert result.exit_code == 0, result.stderr
    assert "40% of the pairs, seed 0" in result.stdout
