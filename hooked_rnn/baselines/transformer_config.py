"""The configuration of a transformer to compare with; importing it does not import the transformer."""

from dataclasses import dataclass
from typing import ClassVar

from hooked_rnn.errors import ConfigError
from hooked_rnn.model_config import ModelConfig

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """What it takes to build a transformer without normalisation. Frozen; every value is checked when it is made.

    The defaults are the sizes of Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability".

    Raises:
        ConfigError: a size below one, a choice nobody knows, or a value of another type.
    """

    architecture: ClassVar[str] = "transformer"

    d_vocab: int
    """Number of token ids that go in."""
    d_vocab_out: int
    """Number of classes that come out."""
    d_model: int = 128
    """Width of the residual stream."""
    n_heads: int = 4
    """Number of attention heads in each block."""
    d_head: int | None = None
    """Width of a head; None means: ``d_model // n_heads``, which must divide."""
    d_mlp: int = 512
    """Number of neurons in each block's MLP."""
    n_layers: int = 1
    """Number of blocks."""
    n_ctx: int = 3
    """Most positions that a sequence may have: there is an embedding for each."""
    act_fn: str = "relu"
    """Nonlinearity of the MLP."""
    bias: bool = False
    """Whether there are biases, in attention, MLP and unembedding."""
    init_scale: float = 1.0
    """The initial weights' standard deviation, in units of the paper's (hooked_rnn/baselines/transformer.py)."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        self._check_choice("act_fn", ACTIVATIONS)
        for name in ("d_vocab", "d_vocab_out", "d_model", "n_heads", "d_mlp", "n_layers", "n_ctx"):
            self._check_size(name)
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise ConfigError(
                    f"n_heads={self.n_heads} with d_model={self.d_model}: expected one that divides it, or d_head to be given"
                )
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        self._check_size("d_head")
        self._check_flag("bias")
        self._check_initial_weights(self.init_scale, self.seed)
