"""Over training: the last checkpoint is the report's model, random checkpoints show nothing, a damaged one is left out."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import FREQUENCIES, STRENGTHS, P, fourier_adder, normal, random_model
from typer.testing import CliRunner

from analyses.adder import Adder
from analyses.circuit import read_circuit
from analyses.claims import judge
from analyses.cli import app
from analyses.errors import ReportError
from analyses.measure import load_subject, measure
from analyses.neurons import cluster_neurons
from analyses.plots import progress_figure
from analyses.progress import Progress, gini, progress
from analyses.progress_report import make_progress
from analyses.report import to_png
from analyses.restricted import progress_measures
from analyses.spectra import KeyFrequencies, key_frequencies, weight_spectrum
from analyses.subsets import removal_lattice
from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, ModularTask, TrainConfig, train
from hooked_rnn.checkpoints import CHECKPOINTS, checkpoint_paths, save_checkpoint
from hooked_rnn.errors import HookedRNNWarning, RunDirectoryError
from hooked_rnn.pretrained import CONFIG, TRAINING, WEIGHTS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, modulo 13, of two phases."""
    path = tmp_path_factory.mktemp("runs") / "thirteen"
    model = HookedRNN(HookedRNNConfig(d_vocab=13, d_vocab_out=13, d_model=16, d_hidden=32, n_ctx=2))
    config = TrainConfig.recipe(
        "fast", steps=300, orthogonal_steps=200, train_fraction=0.8, eval_every=100, checkpoint_every=100
    )
    train(model, ModularAddition(13), config, path, progress=False)
    return path


@pytest.fixture(scope="module")
def measured(run: Path) -> Progress:
    return progress(run)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def write_run(path: Path, models: dict[int, HookedRNN], task: ModularTask, fraction: float = 0.5) -> Path:
    """A run that is under way, whose checkpoints are these models."""
    (path / CHECKPOINTS).mkdir(parents=True)
    (path / CONFIG).write_text(next(iter(models.values())).cfg.to_json())
    how = {"train_fraction": fraction, "seed": 0, "steps": 100}
    (path / TRAINING).write_text(json.dumps({"task": task.to_dict(), "train": how, "result": None}))
    for step, model in models.items():
        save_checkpoint(path, step, model.state_dict() | {"training.step": torch.tensor(step)})
    return path


def test_every_checkpoint_is_measured_in_order(run: Path, measured: Progress) -> None:
    assert [point.step for point in measured.checkpoints] == [0, 100, 200, 300]
    assert measured.changes == [200]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for row, point in zip(history, measured.checkpoints[1:], strict=True):
        assert point.test is not None
        assert point.train.plain == pytest.approx(row["train_loss"], rel=1e-4)
        assert point.test.plain == pytest.approx(row["test_loss"], rel=1e-4)
        assert (point.train.accuracy, point.test.accuracy) == pytest.approx(
            (row["train_accuracy"], row["test_accuracy"])
        )


def test_the_last_checkpoint_is_what_the_report_measures(run: Path, measured: Progress) -> None:
    subject, last = load_subject(str(run)), measured.checkpoints[-1]
    report = measure(subject)
    assert judge(report)  # the same model, by the report's own path
    assert last.test is not None
    assert last.own_key.by_share == report.key.by_share == measured.key.by_share
    assert last.test.accuracy == pytest.approx(report.held_out_accuracy)
    n_train = round(0.8 * 13**2)
    on_all = (n_train * last.train.plain + (13**2 - n_train) * last.test.plain) / 13**2
    assert on_all == pytest.approx(report.loss, rel=1e-5)
    assert last.shares == pytest.approx({k: report.key.spectrum.share(k) for k in report.key.by_share})
    assert last.gini["W_U"] == pytest.approx(gini(report.output_spectrum.shares))
    circuit = read_circuit(subject.model, subject.task, report.key.by_share)
    assert (last.clock, last.pizza) == pytest.approx((circuit.clock.explained, circuit.pizza.explained))
    assert last.norms["W_hh"] == pytest.approx(float(subject.model.W_hh[0].detach().norm()))
    assert last.errors == pytest.approx(
        {f"{stage.point}[{stage.position}]": stage.relative_error for stage in circuit.stages}
    )
    assert last.energy == pytest.approx(report.energy)
    neurons = cluster_neurons(Adder(subject.model, subject.task).activation("blocks.0.hook_hidden"), 13)
    assert last.neurons_above == neurons.share_above
    assert last.norms["W_U"] != pytest.approx(measured.checkpoints[0].norms["W_U"])


def test_the_adder_appears_between_its_first_checkpoint_and_its_last(tmp_path: Path) -> None:
    adder = fourier_adder(dtype=torch.float32)
    noise = {name: normal(*w.shape, seed=len(name)).float() * w.std() for name, w in adder.state_dict().items()}
    models = {}
    for step, t in ((0, 0.0), (50, 0.7), (100, 1.0)):
        models[step] = fourier_adder(dtype=torch.float32)
        models[step].load_state_dict({n: t * w + (1 - t) * noise[n] for n, w in adder.state_dict().items()})
    first, middle, last = progress(write_run(tmp_path / "run", models, ModularAddition(P))).checkpoints
    assert last.own_key.by_share == list(FREQUENCIES)
    powers = [s**2 for s in STRENGTHS]
    assert list(last.shares.values()) == pytest.approx([x / sum(powers) for x in powers], rel=1e-5)
    assert first.test is not None
    assert last.test is not None
    assert first.test.accuracy < 0.15
    assert last.test.accuracy == 1.0
    assert last.pizza == pytest.approx(1.0, abs=1e-3)
    for measure_of in (
        lambda c: sum(c.shares.values()),
        lambda c: c.clock,
        lambda c: c.gini["W_U"],
        lambda c: c.exchanged,
        lambda c: c.purity["W_E W_ih"],
        lambda c: c.energy["W_hh"],
        lambda c: c.neurons_above,
        lambda c: -max(c.errors.values()),
    ):
        assert measure_of(first) < measure_of(middle) < measure_of(last)
    assert last.neurons_above == 1.0
    assert last.purity["W_U"] == pytest.approx(1.0, abs=1e-3)
    assert max(last.removed["W_E"], last.removed["W_U"]) < 0.05
    for site, name in (("W_E", "W_E"), ("hidden", "blocks.0.hook_hidden"), ("W_U", "W_U")):
        lattice = removal_lattice(Adder(models[50], ModularAddition(P)), FREQUENCIES, name, control=False)
        assert middle.removed[site] == pytest.approx(float(lattice.accuracy[-1]))
    for rule in ("elbow", "logit variance", "neuron argmax"):
        assert last.key_by_rule[rule] == sorted(FREQUENCIES)
    at_W_U = removal_lattice(Adder(models[100], ModularAddition(P)), FREQUENCIES, "W_U", control=False)
    assert last.shapley == pytest.approx(at_W_U.shapley("loss"))
    assert sum(last.shapley.values()) == pytest.approx(float(at_W_U.loss[-1] - at_W_U.loss[0]))  # they share it all
    assert min(last.shapley.values()) > 0.1 > max(first.shapley.values())
    assert last.test.restricted < 0.9 * math.log(P)
    assert last.test.excluded > last.test.plain


def test_a_run_of_random_checkpoints_shows_nothing(tmp_path: Path) -> None:
    models = {step: random_model(ModularAddition(31), 64, 64, seed=step) for step in range(4)}
    measured = progress(write_run(tmp_path / "run", models, ModularAddition(31)), rule=strongest_three)
    for point in measured.checkpoints:
        assert point.test is not None
        assert point.test.accuracy < 0.1
        assert (point.clock, point.pizza) == pytest.approx((0, 0), abs=0.01)
        assert abs(point.test.restricted - point.test.plain) < 0.05
        assert abs(point.train.excluded - point.train.plain) < 0.05
        assert max(point.gini.values()) < 0.25
        assert abs(point.symmetricity) < 0.2
        assert point.neurons_above == 0.0
        assert (
            min(point.errors.values()) > 0.7
        )  # by chance the state after one number has six of its fifteen frequencies
        assert max(point.removed.values()) < 0.1
        assert point.key_by_rule["logit variance"] == point.key_by_rule["neuron argmax"] == []
        assert max(map(abs, point.shapley.values())) < 0.05
    default = progress(tmp_path / "run")
    assert default.key.frequencies == []
    assert default.checkpoints[0].clock == 0.0
    assert to_png(progress_figure(default)).startswith(b"\x89PNG")


def strongest_three(model: HookedRNN, task: ModularTask) -> KeyFrequencies:
    found = key_frequencies(weight_spectrum(model.W_E[: task.p], task.p), times_uniform=0.0)
    return KeyFrequencies(sorted(found.by_share[:3]), found.by_share[:3], found.spectrum, 0.0)


def test_an_unfinished_run_is_measured_to_where_it_came(copy: Path, measured: Progress) -> None:
    (copy / WEIGHTS).unlink()
    checkpoint_paths(copy)[0].unlink()
    record = json.loads((copy / TRAINING).read_text())
    (copy / TRAINING).write_text(json.dumps(record | {"result": None}))
    unfinished = progress(copy)
    assert [point.step for point in unfinished.checkpoints] == [0, 100, 200]
    assert unfinished.checkpoints[1].norms == measured.checkpoints[1].norms


def test_weights_of_the_end_stand_in_for_a_checkpoint(copy: Path, measured: Progress) -> None:
    checkpoint_paths(copy)[0].unlink()
    assert progress(copy).rows == measured.rows


def test_damaged_checkpoints_are_left_out_with_a_warning_each(copy: Path, measured: Progress) -> None:
    paths = checkpoint_paths(copy)
    for path in (paths[0], paths[2]):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(HookedRNNWarning) as warned:
        left = progress(copy)
    assert [str(w.message).split()[0] for w in warned] == ["step-000300.safetensors", "step-000100.safetensors"]
    assert [point.step for point in left.checkpoints] == [0, 200]
    assert left.checkpoints[1].norms == measured.checkpoints[2].norms


def test_a_run_that_has_every_pair_to_train_on_has_no_test_losses(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", {1: random_model(ModularAddition(5))}, ModularAddition(5), fraction=1.0)
    made = make_progress(path, tmp_path / "out", bar=False)
    assert made.rows[0]["test_loss"] is None
    assert (tmp_path / "out" / "progress.png").is_file()


@pytest.mark.parametrize("fields", [{"cell": "gru"}, {"cell": "lstm"}, {"n_layers": 2, "bias": True}])
def test_other_networks_and_an_equals_token(fields: dict[str, object], tmp_path: Path) -> None:
    task = ModularAddition(5, equals_token=True)
    (point,) = progress(write_run(tmp_path / "run", {1: random_model(task, **fields)}, task)).checkpoints
    assert point.step == 1
    assert all(math.isfinite(value) for value in point.row().values() if isinstance(value, float))


def test_restricted_and_excluded_losses_are_those_of_their_own_module(run: Path, measured: Progress) -> None:
    subject, last = load_subject(str(run)), measured.checkpoints[-1]
    trained, _ = subject.task.split(0.8, 0)
    adder = Adder(subject.model, subject.task)
    expected = progress_measures(adder, measured.key.by_share, "sum", trained)
    assert last.test is not None
    for name in ("plain", "restricted", "excluded"):
        pair = (getattr(last.train, name), getattr(last.test, name))
        assert pair == pytest.approx((getattr(expected, name).train, getattr(expected, name).test))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=20).filter(lambda values: sum(values) > 1e-3))
def test_gini_is_half_the_relative_mean_difference(values: list[float]) -> None:
    differences = sum(abs(x - y) for x in values for y in values)
    assert gini(torch.tensor(values, dtype=torch.float64)) == pytest.approx(
        differences / (2 * len(values) * sum(values)), abs=1e-9
    )


def test_gini_of_the_extremes() -> None:
    assert gini(torch.ones(8)) == pytest.approx(0.0)
    assert gini(torch.eye(8)[3]) == pytest.approx(1 - 1 / 8)
    assert gini(torch.zeros(8)) == 0.0


def test_the_command_writes_table_and_figure(run: Path, measured: Progress, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["progress", str(run), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert all(f" {step} │" in result.stdout for step in (0, 100, 200, 300))
    with (tmp_path / "out" / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "100", "200", "300"]
    assert rows[-1] == {name: "" if value is None else str(value) for name, value in measured.rows[-1].items()}
    assert (tmp_path / "out" / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_the_circuit_command_prints_every_stage(run: Path) -> None:
    result = CliRunner().invoke(app, ["circuit", str(run)])
    assert result.exit_code == 0, result.stderr
    for text in ("hook_embed", "what W_hh carries of a", "hook_logits", "gradient symmetricity", "circularity"):
        assert text in result.stdout


def without_record(path: Path) -> None:
    (path / TRAINING).unlink()


def without_checkpoints(path: Path) -> None:
    for file in (*checkpoint_paths(path), path / WEIGHTS):
        file.unlink()


def without_config(path: Path) -> None:
    (path / CONFIG).unlink()


def changed(**task: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        record = json.loads((path / TRAINING).read_text())
        (path / TRAINING).write_text(json.dumps(record | {"task": record["task"] | task}))

    return change


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (without_config, RunDirectoryError, "is no run: it has no config.json"),
        (without_record, ReportError, "has no train.json"),
        (without_checkpoints, ReportError, "has no checkpoint that can be read"),
        (changed(p=11), ReportError, "d_vocab=13, d_vocab_out=13: expected d_vocab=11"),
        (changed(operands=3), ReportError, "expected modular addition of two numbers"),
        (changed(name="Subtraction"), ReportError, "does not say task and split: unknown task 'Subtraction'"),
    ],
)
def test_bad_input_is_one_line_and_no_traceback(
    spoil: Callable[[Path], None], error: type[Exception], message: str, copy: Path
) -> None:
    spoil(copy)
    with pytest.raises(error, match=message):
        progress(copy)
    result = CliRunner().invoke(app, ["progress", str(copy)])
    assert result.exit_code == 1
    assert result.stderr.startswith("hooked-rnn: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_directory_that_cannot_be_written_is_an_error_before_anything_is_measured(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot write to"):
        make_progress(run, tmp_path / "file" / "out", bar=False)
