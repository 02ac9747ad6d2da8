"""From the options of ``hooked-rnn train`` to the configuration of one of the models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hooked_rnn import ModularTask
from hooked_rnn.architectures import ARCHITECTURES
from hooked_rnn.errors import ConfigError, choices
from hooked_rnn.model_config import ModelConfig

FIELDS = {
    "d_model": "d_model",
    "d_hidden": "d_hidden",
    "layers": "n_layers",
    "cell": "cell",
    "heads": "n_heads",
    "d_mlp": "d_mlp",
    "combine": "combine",
    "act_fn": "act_fn",
    "bias": "bias",
    "init_scale": "init_scale",
}
"""By option, the field of a configuration that it sets, in the models that have it."""
DEFAULTS: dict[str, dict[str, Any]] = {"rnn": {"d_model": 128, "d_hidden": 256}}
"""By model, what is not given and has no default in the configuration."""


def network_config(model: str, task: ModularTask, seed: int, options: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a model that fits a task.

    Args:
        model: "rnn", "transformer" or "mlp".
        task: what it is to be trained on.
        seed: of the initial weights.
        options: by the names of :data:`FIELDS`; None for what was not given.

    Raises:
        ConfigError: an unknown model, an option that it does not have, or a value that cannot be.
    """
    if model not in ARCHITECTURES:
        raise ConfigError(f"unknown model {model!r}: expected {choices(ARCHITECTURES)}")
    config: Any = ARCHITECTURES[model].config
    has = {field.name for field in dataclasses.fields(config)}
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if FIELDS[option] not in has:
            known = [_flag(name) for name, field in FIELDS.items() if field in has]
            raise ConfigError(f"{_flag(option)} with --model {model}, which has none: expected {choices(known)}")
    fields = {**DEFAULTS.get(model, {}), **{FIELDS[option]: value for option, value in given.items()}}
    return config(d_vocab=task.d_vocab, d_vocab_out=task.d_vocab_out, n_ctx=task.n_ctx, seed=seed, **fields)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
