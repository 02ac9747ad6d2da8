"""Stop rules, by name."""

from typing import Any

import pytest

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, TrainConfig, train
from hooked_rnn.errors import ConfigError
from hooked_rnn.training.stopping import STOP_RULES, StopRule

ROW = {"step": 10, "seconds": 3.0, "train_loss": 0.5, "test_loss": 2.0, "train_accuracy": 0.9, "test_accuracy": 0.4}
TASK = ModularAddition(11)


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        ("accuracy=0.4", True),
        ("accuracy=0.41", False),
        ("test_accuracy=0.39", True),
        ("train_accuracy=0.95", False),
        ("loss=2", True),
        ("loss=1.9", False),
        ("train_loss=0.5", True),
        ("seconds=3", True),
        ("seconds=3.1", False),
    ],
)
def test_a_rule_looks_at_its_figure(rule: str, met: bool) -> None:
    assert StopRule.parse(rule).met_by(ROW) is met


def test_every_name_is_about_a_figure_of_the_history() -> None:
    assert {figure for figure, _ in STOP_RULES.values()} <= ROW.keys()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("accuracy", "stop rule 'accuracy': expected NAME=VALUE"),
        ("acuracy=1", "unknown name 'acuracy'; nearest: 'accuracy'"),
        ("accuracy=much", "value 'much': expected a number"),
        ("accuracy=nan", "value 'nan': expected a number"),
        ("accuracy=", "value '': expected a number"),
    ],
)
def test_a_bad_rule_is_refused_when_the_configuration_is_made(rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.recipe("fast", stop_at=rule)


@pytest.mark.parametrize("rules", ["loss=1", ["loss=1"], ("loss=1",)])
def test_one_rule_or_several(rules: Any) -> None:
    assert TrainConfig.recipe("fast", stop_at=rules).stop_at == ("loss=1",)


def history_of(**fields: Any) -> list[dict[str, Any]]:
    model = HookedRNN(HookedRNNConfig(d_vocab=11, d_vocab_out=11, d_model=16, d_hidden=24))
    values = {"steps": 40, "orthogonal_steps": 20, "eval_every": 3, "train_fraction": 0.5, **fields}
    return train(model, TASK, TrainConfig.recipe("fast", **values), progress=False).history


def test_a_run_stops_at_the_first_evaluation_that_fulfils_a_rule_and_not_before() -> None:
    whole = history_of()
    value = whole[4]["train_loss"]
    stopped = history_of(stop_at=(f"train_loss={value}", "accuracy=1.1"))
    assert [row["train_loss"] for row in stopped] == [row["train_loss"] for row in whole[: len(stopped)]]
    assert [row["train_loss"] <= value for row in stopped] == [False] * (len(stopped) - 1) + [True]
    assert len(history_of(stop_at="accuracy=1.1")) == len(whole)  # the control


def test_a_rule_about_test_sequences_where_there_are_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'accuracy=0.9' is about test sequences: expected train_fraction below 1"):
        history_of(stop_at="accuracy=0.9", train_fraction=1.0)
    assert history_of(stop_at="train_accuracy=0.01", train_fraction=1.0)
