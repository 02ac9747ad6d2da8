"""What stands before and after the recurrent layers: embedding and unembedding."""

from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional

from hooked_rnn.affine import affine, draw, undrawn
from hooked_rnn.config import HookedRNNConfig


class Embed(nn.Module):
    """Token ids to vectors."""

    def __init__(self, cfg: HookedRNNConfig) -> None:
        super().__init__()
        assert cfg.d_vocab is not None
        self.W_E = undrawn(cfg.d_vocab, cfg.d_model)
        self.init_scale = cfg.init_scale

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in)."""
        draw(self.W_E, self.init_scale, generator)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return functional.embedding(tokens, self.W_E)


class EmbedSignals(nn.Module):
    """Signals to vectors, for ``cfg.input="continuous"``: x W_E + b_E."""

    def __init__(self, cfg: HookedRNNConfig) -> None:
        super().__init__()
        assert cfg.d_in is not None
        self.W_E = undrawn(cfg.d_in, cfg.d_model)
        self.b_E = undrawn(cfg.d_model) if cfg.embed_bias else None
        self.init_scale = cfg.init_scale

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in); the bias is zero."""
        draw(self.W_E, self.init_scale, generator)
        if self.b_E is not None:
            nn.init.zeros_(self.b_E)

    def forward(self, signals: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_model"]:
        return affine(signals, self.W_E, self.b_E)


class Unembed(nn.Module):
    """Hidden states to logits."""

    def __init__(self, cfg: HookedRNNConfig) -> None:
        super().__init__()
        self.W_U = undrawn(cfg.d_hidden, cfg.d_vocab_out)
        self.b_U = undrawn(cfg.d_vocab_out) if cfg.unembed_bias else None
        self.init_scale = cfg.init_scale

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in); the bias is zero."""
        draw(self.W_U, self.init_scale, generator)
        if self.b_U is not None:
            nn.init.zeros_(self.b_U)

    def forward(self, x: Float[Tensor, "*batch d_hidden"]) -> Float[Tensor, "*batch d_vocab_out"]:
        return affine(x, self.W_U, self.b_U)
