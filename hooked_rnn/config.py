"""The configuration of a HookedRNN: sizes and choices, nothing that is learned."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hooked_rnn.activations import ACTIVATION_FUNCTIONS
from hooked_rnn.errors import ConfigError
from hooked_rnn.model_config import RNN, ModelConfig
from hooked_rnn.transformer_tools import TransformerFields

CELLS: dict[str, Any] = {}
"""The recurrent layers, by the name of their cell; each enters itself where it is defined (hooked_rnn/cells.py)."""
ACTIVATIONS = tuple(ACTIVATION_FUNCTIONS)
INPUTS = ("tokens", "continuous")


@dataclass(frozen=True, kw_only=True)
class HookedRNNConfig(ModelConfig, TransformerFields):
    """What it takes to build a HookedRNN. Frozen; every value is checked when it is made.

    Raises:
        ConfigError: a size below one, a choice nobody knows, or a value of another type.
    """

    architecture: ClassVar[str] = RNN

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
        for name in ("d_vocab_out", "d_model", "d_hidden", "n_layers"):
            self._check_size(name)
        if self.n_ctx is not None:
            self._check_size("n_ctx")
        self._check_input()
        for name in ("bias", "embed_bias"):
            self._check_flag(name)
        self._default_unembed_bias(self.unembed_bias, self.bias)
        self._check_initial_weights(self.init_scale, self.seed)
        self._check_place(self.device, self.dtype)

    @property
    def n_heads(self) -> int:
        """Always 1: ``transformer_lens.patching`` asks every model for it."""
        return 1

    @property
    def n_gates(self) -> int:
        """How many pre-activations of width ``d_hidden`` the cell has."""
        return int(CELLS[self.cell].n_gates)

    def _check_input(self) -> None:
        """That the input's one size is given, and nothing that only the other kind of input has."""
        size, others = ("d_vocab", ("d_in", "embed_bias")) if self.input == "tokens" else ("d_in", ("d_vocab",))
        self._check_size(size)
        for name in others:
            if getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)!r} with input={self.input!r}: expected {size} alone")
