"""The configuration of a HookedRNN: sizes and choices, nothing that is learned."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from hooked_rnn.activations import ACTIVATION_FUNCTIONS
from hooked_rnn.errors import ConfigError, choices, nearest
from hooked_rnn.transformer_tools import TransformerFields

CELLS: dict[str, Any] = {}
"""The recurrent layers, by the name of their cell; each enters itself where it is defined (hooked_rnn/cells.py)."""
ACTIVATIONS = tuple(ACTIVATION_FUNCTIONS)
INPUTS = ("tokens", "continuous")


@dataclass(frozen=True, kw_only=True)
class HookedRNNConfig(TransformerFields):
    """What it takes to build a HookedRNN. Frozen; every value is checked when it is made.

    Raises:
        ConfigError: a size below one, a choice nobody knows, or a value of another type.
    """

    d_vocab: int | None = None
    """Number of token ids that go in; None where the input is continuous."""
    d_vocab_out: int
    """Number of classes that come out."""
    d_model: int
    """Width of the embedding."""
    d_hidden: int
    """Width of the recurrent state, in every layer."""
    n_layers: int = 1
    """Number of stacked recurrent layers."""
    n_ctx: int | None = None
    """Length of the sequences trained on; longer ones run all the same."""
    cell: str = "rnn"
    """Kind of recurrent cell: "rnn", "gru", "lstm", or one of your own (hooked_rnn/recurrent.py)."""
    act_fn: str = "relu"
    """Nonlinearity of the vanilla cell; gated cells have their own."""
    bias: bool = False
    """Whether the recurrent layers have biases ``b_ih`` and ``b_hh``."""
    unembed_bias: bool | None = None
    """Whether the unembedding has a bias; None means: as ``bias``."""
    input: str = "tokens"
    """What a sequence is made of: "tokens", ids [batch, pos], or "continuous", signals [batch, pos, d_in]."""
    d_in: int | None = None
    """Width of the signals; None where the input is tokens."""
    embed_bias: bool = False
    """Whether the embedding of signals has a bias ``b_E``."""
    init_scale: float = 1.0
    """The initial weights' standard deviation, in units of 1/sqrt(fan in)."""
    seed: int = 0
    """Seed of the initial weights."""
    device: torch.device = field(default=torch.device("cpu"), compare=False)
    """Where the parameters are. Follows ``model.to()``; not part of the JSON."""
    dtype: torch.dtype = field(default=torch.float32, compare=False)
    """The parameters' dtype. Follows ``model.to()``; not part of the JSON."""

    def __post_init__(self) -> None:
        self._check_choice("cell", tuple(CELLS))
        self._check_choice("act_fn", ACTIVATIONS)
        self._check_choice("input", INPUTS)
        for name in ("d_vocab_out", "d_model", "d_hidden", "n_layers", "n_ctx"):
            self._check_size(name)
        self._check_input()
        for name in ("bias", "embed_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected True or False")
        if self.unembed_bias is None:
            object.__setattr__(self, "unembed_bias", self.bias)
        if not isinstance(self.unembed_bias, bool):
            raise ConfigError(f"unembed_bias={self.unembed_bias!r}: expected True, False or None")
        if not _is_number(self.init_scale) or not 0 < self.init_scale < math.inf:
            raise ConfigError(f"init_scale={self.init_scale!r}: expected a number above 0")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed!r}: expected an integer from 0 to 2**63 - 1")
        object.__setattr__(self, "device", torch.device(self.device))
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise ConfigError(f"dtype={self.dtype!r}: expected a floating point torch.dtype")

    @property
    def n_heads(self) -> int:
        """Always 1: ``transformer_lens.patching`` asks every model for it."""
        return 1

    @property
    def n_gates(self) -> int:
        """How many pre-activations of width ``d_hidden`` the cell has."""
        return int(CELLS[self.cell].n_gates)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are kept in ``config.json``: all but device and dtype."""
        stored = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in stored.items() if k not in ("device", "dtype")}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HookedRNNConfig":
        """The configuration with these values.

        Raises:
            ConfigError: a key that is no field, a required field that is missing, a bad value.
        """
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
    def from_json(cls, text: str) -> "HookedRNNConfig":
        """Inverse of :meth:`to_json`. Raises ConfigError where the text is no JSON object."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"the model's configuration is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"the model's configuration is a JSON {type(values).__name__}, expected an object")
        return cls.from_dict(values)

    def _check_input(self) -> None:
        """That the input's one size is given, and nothing that only the other kind of input has."""
        size, others = ("d_vocab", ("d_in", "embed_bias")) if self.input == "tokens" else ("d_in", ("d_vocab",))
        self._check_size(size)
        for name in others:
            if getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)!r} with input={self.input!r}: expected {size} alone")

    def _check_size(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name == "n_ctx":
            return
        if not _is_int(value) or value < 1:
            raise ConfigError(f"{name}={value!r}: expected a whole number of at least 1")

    def _check_choice(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise ConfigError(f"{name}={value!r}: expected {choices(known)}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
