"""Named rules by which a run ends before its last step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hooked_rnn.errors import ConfigError, nearest

STOP_RULES = {
    "accuracy": ("test_accuracy", "at least"),
    "test_accuracy": ("test_accuracy", "at least"),
    "train_accuracy": ("train_accuracy", "at least"),
    "loss": ("test_loss", "at most"),
    "test_loss": ("test_loss", "at most"),
    "train_loss": ("train_loss", "at most"),
    "seconds": ("seconds", "at least"),
}
"""By name: the figure of the history that is looked at, and on which side of the value it must be."""


@dataclass(frozen=True)
class StopRule:
    """Stop once a figure of the history has reached a value."""

    figure: str
    """Which figure of a row."""
    side: str
    """"at least" or "at most"."""
    value: float

    @classmethod
    def parse(cls, text: str) -> "StopRule":
        """The rule that "accuracy=0.99" stands for.

        Raises:
            ConfigError: no NAME=VALUE, an unknown name, or a value that is no number.
        """
        name, equals, number = str(text).partition("=")
        if not equals:
            raise ConfigError(f"stop rule {text!r}: expected NAME=VALUE, such as 'accuracy=0.99'")
        if name not in STOP_RULES:
            raise ConfigError(f"stop rule {text!r} has an unknown name {name!r}; nearest: {nearest(name, STOP_RULES)}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"stop rule {text!r} has the value {number!r}: expected a number")
        return cls(*STOP_RULES[name], value)

    def met_by(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of the history fulfils the rule."""
        figure = row[self.figure]
        if figure is None:
            return False
        return figure >= self.value if self.side == "at least" else figure <= self.value
