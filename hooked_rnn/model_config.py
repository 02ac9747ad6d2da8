"""What the configuration of every kind of model has: checked values, and a JSON form that names the architecture."""

import dataclasses
import json
import math
from typing import Any, ClassVar, TypeVar

import torch

from hooked_rnn.errors import ConfigError, choices, nearest

ARCHITECTURE = "architecture"
"""The key of ``config.json`` that says what kind of model it is; a file without it is of an RNN."""
RNN = "rnn"

Config = TypeVar("Config", bound="ModelConfig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of the frozen dataclasses that say how to build a model."""

    architecture: ClassVar[str]
    """What kind of model this builds."""
    not_stored: ClassVar[tuple[str, ...]] = ("device", "dtype")
    """Fields that follow the model and are no part of its configuration file."""

    def to_dict(self) -> dict[str, Any]:
        """What is kept in ``config.json``: the architecture, but for an RNN, and the fields but for device and dtype."""
        named = {} if self.architecture == RNN else {ARCHITECTURE: self.architecture}
        fields = [f.name for f in dataclasses.fields(self)]
        return named | {name: getattr(self, name) for name in fields if name not in self.not_stored}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """The configuration with these values.

        Raises:
            ConfigError: another architecture, a key that is no field, a required field that is missing, a bad value.
        """
        check_architecture(values, cls.architecture)
        values = {key: value for key, value in values.items() if key != ARCHITECTURE}
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise ConfigError(f"unknown key {key!r} in the model's configuration; nearest: {nearest(key, fields)}")
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
        if missing:
            raise ConfigError(
                f"the model's configuration lacks {', '.join(missing)}; it has {', '.join(values) or 'nothing'}"
            )
        return cls(**values)

    @classmethod
    def from_json(cls: type[Config], text: str) -> Config:
        """Inverse of :meth:`to_json`. Raises ConfigError where the text is no JSON object."""
        return cls.from_dict(json_object(text))

    def _check_size(self, name: str) -> None:
        value = getattr(self, name)
        if not is_int(value) or value < 1:
            raise ConfigError(f"{name}={value!r}: expected a whole number of at least 1")

    def _check_choice(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise ConfigError(f"{name}={value!r}: expected {choices(known)}")

    def _check_flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r}: expected True or False")

    def _check_initial_weights(self, init_scale: Any, seed: Any) -> None:
        if not _is_number(init_scale) or not 0 < init_scale < math.inf:
            raise ConfigError(f"init_scale={init_scale!r}: expected a number above 0")
        if not is_int(seed) or not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed!r}: expected an integer from 0 to 2**63 - 1")

    def _default_unembed_bias(self, unembed_bias: Any, bias: bool) -> None:
        """None means: as ``bias``."""
        if unembed_bias is None:
            object.__setattr__(self, "unembed_bias", bias)
        elif not isinstance(unembed_bias, bool):
            raise ConfigError(f"unembed_bias={unembed_bias!r}: expected True, False or None")

    def _check_place(self, device: Any, dtype: Any) -> None:
        object.__setattr__(self, "device", torch.device(device))
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ConfigError(f"dtype={dtype!r}: expected a floating point torch.dtype")


def json_object(text: str) -> dict[str, Any]:
    """The object that a configuration file holds. Raises ConfigError where it holds none."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the model's configuration is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the model's configuration is a JSON {type(values).__name__}, expected an object")
    return values


def check_architecture(values: dict[str, Any], expected: str) -> None:
    """Raise ConfigError where a configuration is of another architecture than the expected one."""
    architecture = values.get(ARCHITECTURE, expected)
    if architecture != expected:
        raise ConfigError(
            f"this is the configuration of a model of architecture {architecture!r}, expected {expected!r}; "
            "hooked_rnn.load_model loads a model of whatever architecture"
        )


def is_int(value: object) -> bool:
    """Whether a value is a whole number, and not True or False."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
