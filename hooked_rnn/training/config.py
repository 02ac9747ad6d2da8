"""The configuration of a training run, and the named recipes."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hooked_rnn.errors import ConfigError, choices, nearest
from hooked_rnn.training.stopping import StopRule

RECIPES: dict[str, dict[str, Any]] = {
    "fast": {"steps": 3000, "orthogonal_steps": 1500, "train_fraction": 0.4},
    "adamw": {"steps": 3000, "orthogonal_steps": 0, "train_fraction": 0.6},
}
"""What each recipe sets; everything else is :class:`TrainConfig`'s default."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every hyperparameter of a run.

    A run has two phases. In the first, ``orthogonal_steps`` long, AdamW is given the orthogonal gradient
    (see :mod:`hooked_rnn.training.orthogonal`); in the second, AdamW with weight decay the plain one.

    Raises:
        ConfigError: a value that cannot be.
    """

    name: str
    """Name of the recipe that the values started from."""
    steps: int
    """Optimizer steps in all, both phases together."""
    orthogonal_steps: int
    """How many of them, from the first on, use the orthogonal gradient."""
    orthogonal_lr: float = 1e-2
    """Learning rate of the first phase."""
    orthogonal_weight_decay: float = 0.0
    """Decoupled weight decay of the first phase."""
    lr: float = 3e-3
    """Learning rate of the second phase."""
    weight_decay: float = 2.0
    """Decoupled weight decay of the second phase, as AdamW has it (multiplied by the learning rate)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the two moments, in both phases."""
    eps: float = 1e-8
    """AdamW's eps, in both phases."""
    warmup_steps: int = 0
    """The learning rate rises linearly over the first so many steps of each phase."""
    batch_size: int | None = None
    """Sequences in a step, drawn without repetition until all have been seen; None for all of them in every step."""
    train_fraction: float
    """Share of the sequences that is trained on."""
    seed: int = 0
    """Seed of the split, and of the order of minibatches."""
    eval_every: int = 50
    """Evaluate after every so many steps, and after the last one."""
    checkpoint_every: int = 100
    """Save all that it takes to go on after every so many steps, and after the last; needs a run directory."""
    stop_at: tuple[str, ...] = ()
    """Stop at the first evaluation that fulfils any of these, such as "accuracy=0.99": see :data:`STOP_RULES`."""

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise ConfigError(f"unknown recipe {self.name!r}: expected {choices(RECIPES)}")
        for name, least in (
            ("steps", 1),
            ("orthogonal_steps", 0),
            ("warmup_steps", 0),
            ("seed", 0),
            ("eval_every", 1),
            ("checkpoint_every", 1),
        ):
            value = getattr(self, name)
            if not _is_whole(value) or value < least:
                raise ConfigError(f"{name}={value!r}: expected a whole number of at least {least}")
        if self.batch_size is not None and not (_is_whole(self.batch_size) and self.batch_size >= 1):
            raise ConfigError(f"batch_size={self.batch_size!r}: expected None, or a whole number of at least 1")
        for rule in self.stop_at:
            StopRule.parse(rule)
        for name in ("orthogonal_lr", "lr", "eps", "weight_decay", "orthogonal_weight_decay"):
            value = getattr(self, name)
            zero_allowed = "weight_decay" in name
            if not _is_number(value) or value < 0 or (value == 0 and not zero_allowed):
                raise ConfigError(f"{name}={value!r}: expected a number {'of at least' if zero_allowed else 'above'} 0")
        if len(self.betas) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas!r}: expected two numbers of at least 0 and below 1")
        if not _is_number(self.train_fraction) or not 0 < self.train_fraction <= 1:
            raise ConfigError(f"train_fraction={self.train_fraction!r}: expected a number above 0 and at most 1")

    @classmethod
    def recipe(cls, name: str, **overrides: Any) -> "TrainConfig":
        """The named recipe, with these fields instead of its own; ``stop_at`` may also be one rule, or a list.

        Raises:
            ConfigError: an unknown recipe or field, or a value that cannot be.
        """
        if name not in RECIPES:
            raise ConfigError(f"unknown recipe {name!r}: expected {choices(RECIPES)}")
        fields = [f.name for f in dataclasses.fields(cls)]
        for key in overrides:
            if key not in fields:
                raise ConfigError(f"unknown field {key!r} of a training configuration; nearest: {nearest(key, fields)}")
        if "stop_at" in overrides:
            rules = overrides["stop_at"]
            overrides["stop_at"] = (rules,) if isinstance(rules, str) else tuple(rules)
        return cls(**{"name": name, **RECIPES[name], **overrides})

    def to_dict(self) -> dict[str, Any]:
        """Every field, as ``train.json`` keeps it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Inverse of :meth:`to_dict`, also after JSON has made lists of tuples.

        Raises:
            ConfigError: an unknown recipe or field, or a value that cannot be.
        """
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls.recipe(str(fields.pop("name", None)), **fields)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
