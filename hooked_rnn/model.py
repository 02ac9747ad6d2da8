"""HookedRNN: a recurrent network that every TransformerLens hook can read and edit, exactly."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Generator, Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.utilities import Slice

from hooked_rnn import pretrained, torch_modules
from hooked_rnn.caching import NamesFilter, RNNActivationCache, SaveActivation, matching_names
from hooked_rnn.cells import make_block
from hooked_rnn.components import Embed, EmbedSignals, Unembed
from hooked_rnn.config import HookedRNNConfig
from hooked_rnn.errors import ConfigError, ReturnTypeError, TokenError, choices
from hooked_rnn.hook_points import IsolatedHookPoint
from hooked_rnn.losses import checked_labels, cross_entropy
from hooked_rnn.recurrent import RecurrentBlock
from hooked_rnn.signals import checked_signals
from hooked_rnn.states import NetworkState, by_layer, of_network
from hooked_rnn.tokens import TokensLike, to_tokens
from hooked_rnn.transformer_tools import TransformerTools
from hooked_rnn.transforms import uncompiled

ReturnType = Literal["logits", "loss", "both"] | None
RETURN_TYPES: tuple[ReturnType, ...] = ("logits", "loss", "both", None)

NamedHook = tuple[str | Callable[[str], bool], Callable[..., Any]]
"""A hook and where it goes: a hook point's name, or a predicate on names."""


class Output(NamedTuple):
    """What ``return_type="both"`` gives."""

    logits: Float[Tensor, "batch kept d_vocab_out"]
    loss: Tensor


class HookedRNN(
    TransformerTools,
    HookedRootModule,
    PyTorchModelHubMixin,
    library_name="hooked-rnn",
    license="mit",
    tags=["interpretability", "transformer-lens", "rnn"],
):
    """Token ids, or signals, in, logits out; hook points as in TransformerLens, each activation [batch, pos, d].

    An edit at position t reaches every later step: hooks inside the time loop are called once per step
    (see :mod:`hooked_rnn.hook_points`). Weights are drawn from ``cfg.seed`` alone; no global random
    state is read or changed.

    Args:
        cfg: the configuration.
    """

    cfg: HookedRNNConfig
    loaded_from: Path | None = None
    """The file that :meth:`from_pretrained` read the weights from."""

    def __init__(self, cfg: HookedRNNConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = Embed(cfg) if cfg.input == "tokens" else EmbedSignals(cfg)
        self.hook_embed = IsolatedHookPoint()  # [batch, pos, d_model]
        self.blocks = nn.ModuleList(
            make_block(cfg, cfg.d_hidden if layer else cfg.d_model) for layer in range(cfg.n_layers)
        )
        self.unembed = Unembed(cfg)
        self.hook_logits = IsolatedHookPoint()  # [batch, pos, d_vocab_out]
        self._reset_parameters(torch.Generator().manual_seed(cfg.seed))
        self.to(cfg.device, cfg.dtype)
        self.setup()

    @uncompiled
    def forward(
        self,
        tokens: TokensLike,
        *,
        return_type: ReturnType = "logits",
        labels: Tensor | None = None,
        loss_per_token: bool = False,
        logits_to_keep: int | None = None,
        initial_state: NetworkState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Run the network over whole sequences.

        Args:
            tokens: integer [batch, pos], or whatever :meth:`to_tokens` reads; where the model's input is
                continuous, signals [batch, pos, d_in].
            return_type: "logits" [batch, pos, d_vocab_out]; "loss"; "both", a named pair; or None.
            labels: integer [batch] of the last position, or [batch, pos] with -100 where ignored.
            loss_per_token: keep the losses apart, in the labels' shape, instead of their mean.
            logits_to_keep: unembed the last n positions only; None, or as in Hugging Face 0, for all of them.
            initial_state: hidden state of every layer before the first step [layer, batch, d_hidden]; of an
                LSTM a pair of such, (hidden, cell); None for zeros.
            return_state: return a pair, the above and the state after the last step, as in ``initial_state``.

        Raises:
            TokenError, SignalError, LabelError, StateError, ReturnTypeError: before anything is computed.
            HookError: a hook returned something that cannot take the activation's place.
        """
        inputs = self.to_input(tokens)
        batch, n_positions = inputs.shape[:2]
        kept = self._n_kept(logits_to_keep, n_positions)
        if return_type not in RETURN_TYPES:
            raise ReturnTypeError(f"return_type={return_type!r}: expected {choices(RETURN_TYPES)}")
        if return_type in ("loss", "both"):
            labels = checked_labels(labels, (batch, n_positions), inputs.device, kept, self.cfg.d_vocab_out)
        states = by_layer(initial_state, self.cfg, batch)

        x = self.hook_embed(self.embed(inputs))
        final_states = []
        for block, state in zip(self.blocks, states, strict=True):
            x, final_state = block(x, state)
            final_states.append(final_state)
        out: Any = None
        if return_type is not None or self.hook_logits.is_hooked:
            logits = self.hook_logits(self.unembed(x[:, -kept:]))
            out = self._output(return_type, logits, labels, loss_per_token)
        return (out, of_network(final_states)) if return_state else out

    def to_input(self, source: TokensLike) -> Tensor:
        """What the network runs on: token ids [batch, pos], or signals [batch, pos, d_in], checked.

        Raises:
            TokenError, SignalError: what does not fit the model.
        """
        return self.to_tokens(source) if self.cfg.input == "tokens" else checked_signals(source, self.cfg)

    def to_tokens(self, source: TokensLike) -> Tensor:
        """Token ids [batch, pos] from a tensor, nested lists, or strings such as "12 + 55".

        Raises:
            TokenError: floats, ids out of range, an empty or ragged batch, an unreadable string, a model
                whose input is continuous.
        """
        if self.cfg.input != "tokens":
            raise TokenError(
                f"this model has no tokens: expected signals [batch, pos, {self.cfg.d_in}], as its input is {self.cfg.input!r}"
            )
        return to_tokens(source, self.cfg)

    # Weights, by the names that TransformerLens gives them

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Where the input is continuous, [d_in, d_model]."""
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_hidden d_vocab_out"]:
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab_out"]:
        """The unembedding's bias; zeros where it has none."""
        return self.W_U.new_zeros(self.cfg.d_vocab_out) if self.unembed.b_U is None else self.unembed.b_U

    @property
    def W_hh(self) -> Float[Tensor, "layer d_hidden d_preact"]:
        """The recurrent weights of every layer: stacked, so a copy; to write in one, ``blocks[layer].W_hh``."""
        return torch.stack([block.W_hh for block in self.blocks])

    # Hooks and caches

    def set_use_step_hooks(self, use_step_hooks: bool, n_steps: int | None = None) -> None:
        """Have hook points that fire once in a forward pass, ``blocks.{l}.steps.{t}.hook_*``, each [batch, d].

        One for every activation inside the loop and each of the first ``n_steps`` steps. At each step its
        hooks run before those of the point of the whole sequence, which so show what they edited. When they
        are turned off, or asked for anew, the hooks on them are gone.

        Args:
            use_step_hooks: whether to have them; off, they cost nothing and are not in ``hook_dict``.
            n_steps: for how many steps; None for ``cfg.n_ctx``.

        Raises:
            ConfigError: a number of steps below 1, or none where ``cfg.n_ctx`` is None.
        """
        n_steps = self.cfg.n_ctx if n_steps is None else n_steps
        if use_step_hooks and (not isinstance(n_steps, int) or isinstance(n_steps, bool) or n_steps < 1):
            raise ConfigError(
                f"n_steps={n_steps!r}: expected a whole number of at least 1, or None where cfg.n_ctx says it"
            )
        for block in cast(list[RecurrentBlock], list(self.blocks)):
            block.set_step_points(n_steps if use_step_hooks and n_steps else 0)
        self.setup()

    def run_with_cache(
        self,
        tokens: TokensLike,
        *,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        **model_kwargs: Any,
    ) -> tuple[Any, RNNActivationCache]:
        """The output and the activations, as a real ActivationCache: ``cache["hidden", 0]``.

        Args:
            tokens, model_kwargs: as for calling the model.
            names_filter: which hook points: None for all, a name, several names, or a predicate.
            device: where to keep them; None for where they are.
            remove_batch_dim: drop the batch axis; the batch must be one sequence.
            incl_bwd: call ``backward`` on the output, which must be the mean loss, and keep the
                gradients too, under the names with "_grad" at the end.
            reset_hooks_end, clear_contexts: as in TransformerLens.
            pos_slice: which positions to keep, as in TransformerLens; a step point's [batch, d] is kept whole.

        Raises:
            UnknownHookPointError: a name, or a predicate, that matches no hook point.
            ReturnTypeError: ``incl_bwd`` with an output that is no scalar.
        """
        if incl_bwd and not self._is_mean_loss(**model_kwargs):
            raise ReturnTypeError(
                "incl_bwd=True calls backward on the output: expected return_type='loss', without loss_per_token or return_state"
            )
        output, cache = super().run_with_cache(
            self.to_input(tokens),
            names_filter=names_filter,
            device=device,
            remove_batch_dim=remove_batch_dim,
            incl_bwd=incl_bwd,
            reset_hooks_end=reset_hooks_end,
            clear_contexts=clear_contexts,
            pos_slice=pos_slice,
            **model_kwargs,
        )
        return output, RNNActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[tuple[str, SaveActivation]], list[tuple[str, SaveActivation]]]:
        """A dictionary, and the forward and backward hooks that will fill it; see :meth:`run_with_cache`."""
        cache = {} if cache is None else cache
        names = matching_names(self.hook_dict, names_filter)
        keep = Slice.unwrap(pos_slice)
        save = SaveActivation(cache, "", device, remove_batch_dim, keep)
        save_gradient = SaveActivation(cache, "_grad", device, remove_batch_dim, keep)
        self.is_caching = True
        return cache, [(name, save) for name in names], [(name, save_gradient) for name in names if incl_bwd]

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Leave caching hooks on the model, until ``reset_hooks``; the dictionary that they fill."""
        cache, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, hook in forward:
            self.hook_dict[name].add_hook(hook, "fwd")
        for name, hook in backward:
            self.hook_dict[name].add_hook(hook, "bwd")
        return cache

    def add_hook(self, name: str | Callable[[str], bool], hook: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """As in TransformerLens, but a name or predicate that matches no hook point is an error."""
        for matched in matching_names(self.hook_dict, name):
            super().add_hook(matched, hook, *args, **kwargs)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[NamedHook] = (),
        bwd_hooks: Sequence[NamedHook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedRNN"]:
        """As in TransformerLens, but a name or predicate that matches no hook point is an error."""
        for name, _ in [*fwd_hooks, *bwd_hooks]:
            matching_names(self.hook_dict, name)
        with super().hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts):
            yield self

    # Saving and loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "HookedRNN":
        """An embedded model, a run directory, or a repository on the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: a name that ``hooked-rnn models`` lists, a directory, or a Hub id "owner/name".
            kwargs: ``device`` and ``dtype``; for the Hub also ``revision``, ``token``, ``cache_dir``,
                ``force_download`` and ``local_files_only``.

        Raises:
            UnknownModelError: none of the three.
            RunDirectoryError: a directory that holds no model.
            WeightsError: a weights file that is cut short, altered, or of another architecture.
            ConfigError: a configuration that cannot be.
        """
        directory = pretrained.local_directory(pretrained_model_name_or_path)
        if directory is None:
            with pretrained.hub_errors(str(pretrained_model_name_or_path)):
                return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)
        return cls._load(directory, **kwargs)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: Any = None,
        **kwargs: Any,
    ) -> "HookedRNN":
        """Called by huggingface_hub for a repository: fetch its two files, then load them as any directory."""
        directory = pretrained.download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls._load(directory, **kwargs)

    @classmethod
    def _load(
        cls, directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> "HookedRNN":
        cfg, weights, path = pretrained.read(directory, HookedRNNConfig.from_json)
        model = cls(cfg).to(device, dtype)  # before the weights come, or they would be rounded on the way
        model.loaded_from = path
        pretrained.check_fit(weights, model.state_dict(), directory)
        model.load_state_dict(weights)
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Called by huggingface_hub's ``save_pretrained`` and ``push_to_hub``."""
        pretrained.write(save_directory, self.cfg, self.state_dict())

    # From and to PyTorch

    @classmethod
    def from_torch(
        cls,
        embedding: torch_modules.Embedding | None,
        rnn: torch_modules.Recurrent,
        readout: nn.Linear,
    ) -> "HookedRNN":
        """The HookedRNN that computes what torch modules do, with copies of their parameters.

        It takes [batch, pos] whatever the module's ``batch_first``, and is in training or in eval mode as ``rnn`` is.

        Args:
            embedding: nn.Embedding; or nn.Linear, for signals; or None where the signals go straight into ``rnn``.
            rnn: nn.RNN, nn.GRU or nn.LSTM; an nn.RNNCell, nn.GRUCell or nn.LSTMCell; or a list of such cells,
                one for each layer.
            readout: nn.Linear.

        Raises:
            ConversionError: a module of another kind, one with an option that HookedRNN does not have
                (bidirectional, projections, dropout in training, max_norm), or parts that do not fit together.
        """
        model = cls(torch_modules.config_of(embedding, rnn, readout))
        model.load_state_dict(torch_modules.weights_of(embedding, rnn, readout))
        training = rnn.training if isinstance(rnn, nn.Module) else rnn[0].training
        return model.train(training)

    def to_torch(self, batch_first: bool = True, cells: bool = False) -> torch_modules.TorchModules:
        """The torch modules that compute the same, with copies of the parameters: ``readout(rnn(embedding(x))[0])``.

        Args:
            batch_first: of nn.RNN, nn.GRU or nn.LSTM: whether it takes [batch, pos, d].
            cells: have a list of nn.RNNCell, nn.GRUCell or nn.LSTMCell instead, one for each layer.

        Raises:
            ConversionError: a cell that torch has no module for.
        """
        modules = torch_modules.modules_of(self.cfg, self.state_dict(), batch_first, cells)
        for module in modules:
            module.train(self.training)
        return modules

    # Inner workings

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HookedRNN":
        """What ``.to()``, ``.double()`` and ``.cuda()`` come down to: the configuration follows."""
        super()._apply(fn, recurse)
        self.cfg = dataclasses.replace(self.cfg, device=self.W_E.device, dtype=self.W_E.dtype)
        return self

    def _reset_parameters(self, generator: Generator) -> None:
        for module in (self.embed, *self.blocks, self.unembed):
            module.reset_parameters(generator)

    def _n_kept(self, logits_to_keep: int | None, n_positions: int) -> int:
        if logits_to_keep is None:
            return n_positions
        if not isinstance(logits_to_keep, int) or isinstance(logits_to_keep, bool) or logits_to_keep < 0:
            raise ReturnTypeError(
                f"logits_to_keep={logits_to_keep!r}: expected None or a whole number of last positions, 0 for all"
            )
        return min(logits_to_keep, n_positions) or n_positions

    def _output(self, return_type: ReturnType, logits: Tensor, labels: Tensor | None, per_token: bool) -> Any:
        if return_type == "logits":
            return logits
        if return_type is None:
            return None
        assert labels is not None  # checked_labels saw to it
        loss = cross_entropy(logits, labels, per_token)
        return loss if return_type == "loss" else Output(logits, loss)

    @staticmethod
    def _is_mean_loss(
        return_type: ReturnType = "logits", loss_per_token: bool = False, return_state: bool = False, **_: Any
    ) -> bool:
        return return_type == "loss" and not loss_per_token and not return_state
