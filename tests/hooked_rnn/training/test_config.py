"""Every hyperparameter is a field, checked when it is set."""

import pytest

from hooked_rnn import TrainConfig
from hooked_rnn.errors import ConfigError
from hooked_rnn.training.config import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_its_values_and_a_keyword_overrides_them(name: str) -> None:
    config = TrainConfig.recipe(name)
    assert RECIPES[name].items() <= config.to_dict().items()
    assert TrainConfig.recipe(name, steps=7).steps == 7
    assert TrainConfig(**config.to_dict()) == config


def test_the_two_recipes_differ_in_the_orthogonal_phase() -> None:
    assert TrainConfig.recipe("fast").orthogonal_steps > 0
    assert TrainConfig.recipe("adamw").orthogonal_steps == 0


def test_unknown_recipe_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'slow': expected 'fast' or 'adamw'"):
        TrainConfig.recipe("slow")


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown field 'weight_decy'.*'weight_decay'"):
        TrainConfig.recipe("fast", weight_decy=1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("orthogonal_steps", -1),
        ("eval_every", 0),
        ("checkpoint_every", 0),
        ("seed", -1),
        ("lr", 0.0),
        ("orthogonal_lr", -1.0),
        ("eps", 0.0),
        ("weight_decay", -1.0),
        ("lr", float("inf")),
        ("betas", (0.9, 1.0)),
        ("train_fraction", 0.0),
        ("train_fraction", 1.01),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field}="):
        TrainConfig.recipe("fast", **{field: value})
