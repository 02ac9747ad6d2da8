"""An MLP to compare with: an embedding of each operand, one hidden layer, an unembedding."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformer_lens import ActivationCache, HookedRootModule

from hooked_rnn.activations import ACTIVATION_FUNCTIONS
from hooked_rnn.affine import affine, draw
from hooked_rnn.errors import ReturnTypeError, TokenError, UnknownHookPointError, choices, nearest
from hooked_rnn.hook_points import IsolatedHookPoint
from hooked_rnn.losses import checked_labels, cross_entropy
from hooked_rnn.model_config import ModelConfig
from hooked_rnn.tokens import TokensLike, to_tokens

ACTIVATIONS = {**ACTIVATION_FUNCTIONS, "gelu": functional.gelu}
COMBINATIONS = ("sum", "concat")
RETURN_TYPES = ("logits", "loss", "both", None)


@dataclass(frozen=True, kw_only=True)
class HookedMLPConfig(ModelConfig):
    """What it takes to build a HookedMLP. Frozen; every value is checked when it is made.

    Raises:
        ConfigError: a size below one, a choice nobody knows, or a value of another type.
    """

    architecture: ClassVar[str] = "mlp"
    n_layers: ClassVar[int] = 1
    n_heads: ClassVar[int] = 1
    """Asked for by ``transformer_lens.patching``."""
    normalization_type: ClassVar[None] = None

    d_vocab: int
    """Number of token ids that go in."""
    d_vocab_out: int
    """Number of classes that come out."""
    d_model: int = 128
    """Width of each token's embedding."""
    d_mlp: int = 512
    """Number of hidden neurons."""
    n_ctx: int = 2
    """Number of positions that every sequence has."""
    combine: str = "concat"
    """What the hidden layer reads: the "sum" of the embeddings, or all of them side by side, "concat"."""
    shared_embedding: bool = True
    """Whether one embedding serves every position; otherwise each has its own."""
    act_fn: str = "relu"
    """Nonlinearity of the hidden layer."""
    bias: bool = False
    """Whether the hidden layer has a bias ``b_in``."""
    unembed_bias: bool | None = None
    """Whether the unembedding has a bias ``b_U``; None means: as ``bias``."""
    init_scale: float = 1.0
    """The initial weights' standard deviation, in units of 1/sqrt(fan in)."""
    seed: int = 0
    """Seed of the initial weights."""
    device: torch.device = field(default=torch.device("cpu"), compare=False)
    """Where the parameters are. Follows ``model.to()``; not part of the JSON."""
    dtype: torch.dtype = field(default=torch.float32, compare=False)
    """The parameters' dtype. Follows ``model.to()``; not part of the JSON."""

    def __post_init__(self) -> None:
        self._check_choice("combine", COMBINATIONS)
        self._check_choice("act_fn", tuple(ACTIVATIONS))
        for name in ("d_vocab", "d_vocab_out", "d_model", "d_mlp", "n_ctx"):
            self._check_size(name)
        for name in ("shared_embedding", "bias"):
            self._check_flag(name)
        self._default_unembed_bias(self.unembed_bias, self.bias)
        self._check_initial_weights(self.init_scale, self.seed)
        self._check_place(self.device, self.dtype)

    @property
    def d_in(self) -> int:
        """Width of what the hidden layer reads."""
        return self.d_model * (self.n_ctx if self.combine == "concat" else 1)


class TokenEmbed(nn.Module):
    """Token ids to vectors, by one table or by one for each position."""

    def __init__(self, cfg: HookedMLPConfig) -> None:
        super().__init__()
        shape = (cfg.d_vocab, cfg.d_model) if cfg.shared_embedding else (cfg.n_ctx, cfg.d_vocab, cfg.d_model)
        self.W_E = nn.Parameter(torch.empty(shape))
        self.init_scale = cfg.init_scale

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in)."""
        for table in self.tables:
            draw(table, self.init_scale, generator)

    @property
    def tables(self) -> list[Float[Tensor, "d_vocab d_model"]]:
        """The one table, or each position's."""
        return [self.W_E] if self.W_E.ndim == 2 else list(self.W_E.unbind(0))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        if self.W_E.ndim == 2:
            return functional.embedding(tokens, self.W_E)
        columns = [functional.embedding(ids, W_E) for ids, W_E in zip(tokens.unbind(1), self.tables, strict=True)]
        return torch.stack(columns, dim=1)


class MLP(nn.Module):
    """The hidden layer."""

    def __init__(self, cfg: HookedMLPConfig) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(cfg.d_in, cfg.d_mlp))
        self.b_in = nn.Parameter(torch.empty(cfg.d_mlp)) if cfg.bias else None
        self.init_scale = cfg.init_scale
        self.act_fn = ACTIVATIONS[cfg.act_fn]
        self.hook_in = IsolatedHookPoint()  # [batch, d_in]
        self.hook_pre = IsolatedHookPoint()  # [batch, d_mlp]
        self.hook_post = IsolatedHookPoint()  # [batch, d_mlp]

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in); the bias is zero."""
        draw(self.W_in, self.init_scale, generator)
        if self.b_in is not None:
            nn.init.zeros_(self.b_in)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_mlp"]:
        return self.hook_post(self.act_fn(self.hook_pre(affine(self.hook_in(x), self.W_in, self.b_in))))


class MLPBlock(nn.Module):
    """So that the hook points are named as a transformer's: "blocks.0.mlp.hook_post"."""

    def __init__(self, cfg: HookedMLPConfig) -> None:
        super().__init__()
        self.mlp = MLP(cfg)


class MLPUnembed(nn.Module):
    """Neurons to logits."""

    def __init__(self, cfg: HookedMLPConfig) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_vocab_out))
        self.b_U = nn.Parameter(torch.empty(cfg.d_vocab_out)) if cfg.unembed_bias else None
        self.init_scale = cfg.init_scale

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in); the bias is zero."""
        draw(self.W_U, self.init_scale, generator)
        if self.b_U is not None:
            nn.init.zeros_(self.b_U)

    def forward(self, x: Float[Tensor, "batch d_mlp"]) -> Float[Tensor, "batch d_vocab_out"]:
        return affine(x, self.W_U, self.b_U)


class HookedMLP(HookedRootModule):
    """Token ids in, logits [batch, d_vocab_out] out; hook points as in TransformerLens.

    ``hook_embed`` [batch, pos, d_model], then without a position axis ``blocks.0.mlp.hook_in`` [batch, d_in],
    ``blocks.0.mlp.hook_pre`` and ``blocks.0.mlp.hook_post`` [batch, d_mlp], and ``hook_logits`` [batch, d_vocab_out].
    Weights are drawn from ``cfg.seed`` alone; no global random state is read or changed.

    Args:
        cfg: the configuration.
    """

    cfg: HookedMLPConfig
    loaded_from: Path | None = None
    """The file that ``load_model`` read the weights from."""

    def __init__(self, cfg: HookedMLPConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = TokenEmbed(cfg)
        self.hook_embed = IsolatedHookPoint()  # [batch, pos, d_model]
        self.blocks = nn.ModuleList([MLPBlock(cfg)])
        self.unembed = MLPUnembed(cfg)
        self.hook_logits = IsolatedHookPoint()  # [batch, d_vocab_out]
        generator = torch.Generator().manual_seed(cfg.seed)
        for module in (self.embed, self.mlp, self.unembed):
            module.reset_parameters(generator)
        self.to(cfg.device, cfg.dtype)
        self.setup()

    def forward(self, tokens: TokensLike, *, return_type: str | None = "logits", labels: Tensor | None = None) -> Any:
        """Run the network.

        Args:
            tokens: integer [batch, pos], or whatever :meth:`to_tokens` reads.
            return_type: "logits" [batch, d_vocab_out]; "loss", the mean cross entropy in nats; "both", a pair; or None.
            labels: integer [batch].

        Raises:
            TokenError, LabelError, ReturnTypeError: before anything is computed.
            HookError: a hook returned something that cannot take the activation's place.
        """
        tokens = self.to_tokens(tokens)
        if return_type not in RETURN_TYPES:
            raise ReturnTypeError(f"return_type={return_type!r}: expected {choices(RETURN_TYPES)}")
        if return_type in ("loss", "both"):
            labels = checked_labels(labels, (len(tokens), 1), tokens.device, 1, self.cfg.d_vocab_out)
        embedded = self.hook_embed(self.embed(tokens))
        combined = embedded.sum(1) if self.cfg.combine == "sum" else embedded.flatten(1)
        logits = self.hook_logits(self.unembed(self.mlp(combined)))
        if labels is None or return_type in ("logits", None):
            return logits if return_type == "logits" else None
        loss = cross_entropy(logits[:, None], labels)
        return loss if return_type == "loss" else (logits, loss)

    def to_tokens(self, source: TokensLike) -> Int[Tensor, "batch pos"]:
        """Token ids [batch, pos] from a tensor, nested lists, or strings such as "12 + 55".

        Raises:
            TokenError: floats, ids out of range, an empty or ragged batch, an unreadable string, another length than ``cfg.n_ctx``.
        """
        tokens = to_tokens(source, self.cfg)
        if tokens.shape[1] != self.cfg.n_ctx:
            raise TokenError(
                f"tokens have shape {list(tokens.shape)}: expected {self.cfg.n_ctx} positions, as n_ctx is"
            )
        return tokens

    # Weights, by the names that TransformerLens gives them

    @property
    def mlp(self) -> MLP:
        """The hidden layer."""
        block = self.blocks[0]
        assert isinstance(block, MLPBlock)
        return block.mlp

    @property
    def W_E(self) -> Float[Tensor, "d_vocab _d"]:
        """[d_vocab, d_model]; where each position has an embedding of its own, those side by side [d_vocab, pos * d_model], a copy."""
        return self.embed.W_E if self.cfg.shared_embedding else torch.cat(self.embed.tables, dim=1)

    @property
    def W_in(self) -> Float[Tensor, "d_in d_mlp"]:
        return self.mlp.W_in

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """The hidden layer's bias; zeros where it has none."""
        return self.W_in.new_zeros(self.cfg.d_mlp) if self.mlp.b_in is None else self.mlp.b_in

    @property
    def W_U(self) -> Float[Tensor, "d_mlp d_vocab_out"]:
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab_out"]:
        """The unembedding's bias; zeros where it has none."""
        return self.W_U.new_zeros(self.cfg.d_vocab_out) if self.unembed.b_U is None else self.unembed.b_U

    @property
    def W_E_in(self) -> list[Float[Tensor, "d_vocab d_mlp"]]:
        """What each token adds to the neurons' pre-activations, from each position in turn."""
        tables = self.embed.tables * (self.cfg.n_ctx if self.cfg.shared_embedding else 1)
        readers = self.W_in.split(self.cfg.d_model) if self.cfg.combine == "concat" else [self.W_in] * self.cfg.n_ctx
        return [W_E @ W_in for W_E, W_in in zip(tables, readers, strict=True)]

    # Hooks and caches

    def run_with_cache(
        self, tokens: TokensLike, *, names_filter: Any = None, **kwargs: Any
    ) -> tuple[Any, ActivationCache]:
        """The output and the activations, as a real ActivationCache: ``cache["post", 0]``.

        Args:
            tokens: as for calling the model.
            names_filter: which hook points: None for all, a name, several names, or a predicate.
            kwargs: TransformerLens's, and those of calling the model.

        Raises:
            UnknownHookPointError: a name that no hook point has.
            ReturnTypeError: ``incl_bwd`` with an output that is no scalar.
        """
        if kwargs.get("incl_bwd") and kwargs.get("return_type") != "loss":
            raise ReturnTypeError("incl_bwd=True calls backward on the output: expected return_type='loss'")
        names = [names_filter] if isinstance(names_filter, str) else names_filter
        if names is not None and not callable(names):
            names = [self._known(name) for name in names]
        output, cache = super().run_with_cache(self.to_tokens(tokens), names_filter=names, **kwargs)
        return output, ActivationCache(cache, self, has_batch_dim=not kwargs.get("remove_batch_dim", False))

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[Any, Callable[..., Any]]] = (),
        bwd_hooks: Sequence[tuple[Any, Callable[..., Any]]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedMLP"]:
        """As in TransformerLens, but a name that no hook point has is an error."""
        for name, _ in [*fwd_hooks, *bwd_hooks]:
            if isinstance(name, str):
                self._known(name)
        with super().hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts):
            yield self

    # Inner workings

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HookedMLP":
        """What ``.to()``, ``.double()`` and ``.cuda()`` come down to: the configuration follows."""
        super()._apply(fn, recurse)
        self.cfg = dataclasses.replace(self.cfg, device=self.W_U.device, dtype=self.W_U.dtype)
        return self

    def _known(self, name: str) -> str:
        if name not in self.hook_dict:
            raise UnknownHookPointError(f"no hook point is named {name!r}; nearest: {nearest(name, self.hook_dict)}")
        return name
