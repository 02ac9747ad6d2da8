"""The history in TensorBoard: the same figures, step by step."""

from pathlib import Path

import pytest

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, Run, TrainConfig, train
from hooked_rnn.errors import ConfigError


def run_of(out: Path | None, log: str | None, fraction: float = 0.5) -> Run:
    model = HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=7, d_model=4, d_hidden=5))
    config = TrainConfig.recipe("fast", steps=9, orthogonal_steps=5, eval_every=4, train_fraction=fraction)
    return train(model, ModularAddition(7), config, out, progress=False, log=log)


def test_tensorboard_has_the_figures_of_the_history(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_of(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss/train", "loss/test", "accuracy/train", "accuracy/test"]
    for measure in ("loss", "accuracy"):
        for part in ("train", "test"):
            logged = {event.step: event.value for event in events.Scalars(f"{measure}/{part}")}
            assert logged == pytest.approx({row["step"]: row[f"{part}_{measure}"] for row in run.history}, rel=1e-6)


def test_what_has_no_value_is_not_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_of(tmp_path / "run", "tensorboard", fraction=1.0)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss/train", "accuracy/train"]


def test_a_log_changes_nothing_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with_log, without = run_of(tmp_path / "run", "tensorboard"), run_of(None, None)
    assert [row["test_loss"] for row in with_log.history] == [row["test_loss"] for row in without.history]


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="needs the tensorboard package: pip install tensorboard"):
        run_of(tmp_path / "run", "tensorboard")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("log", "message"), [("wandb", "unknown log 'wandb'"), ("tensorboard", "without a run dir")])
def test_a_log_that_cannot_be_is_refused(log: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(None, log)
