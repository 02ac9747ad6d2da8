"""A model of modular addition, of whatever kind, as the Fourier toolbox sees it.

Everything that TransformerLens can hook and that names its weights as TransformerLens does will do: a
HookedRNN, a one-layer transformer (``TransformerBridge.boot_native``), an MLP that is a ``HookedRootModule``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.errors import ActivationError, ModulusError
from hooked_rnn import ModularTask

NamedHook = tuple[str, Callable[..., Any]]


@dataclass(frozen=True)
class Adder:
    """A model and the task that it was trained on.

    Raises:
        ModulusError: the model has not the task's tokens, or neither its p answers nor one more (an answer '=' that never is).
    """

    model: Any
    """In eval mode; with ``W_E`` [d_vocab, d_model], ``W_U`` [d, d_vocab_out], run_with_hooks and run_with_cache."""
    task: ModularTask
    """Its tokens are the numbers 0 to p - 1, and p for '='."""
    position: int = -1
    """Where the model's answer is read."""

    def __post_init__(self) -> None:
        rows, columns = self.model.W_E.shape[0], self.model.W_U.shape[1]
        if rows != self.task.d_vocab:
            tokens = "the numbers and '='" if self.task.equals_token else "the numbers"
            raise ModulusError(
                f"the model's W_E has {rows} rows: expected {self.task.d_vocab}, {tokens} of a task with p={self.p}"
            )
        if columns not in (self.p, self.p + 1):
            raise ModulusError(
                f"the model's W_U has {columns} columns: expected {self.p} answers of a task with p={self.p}, or one more"
            )

    @property
    def p(self) -> int:
        """The modulus."""
        return self.task.p

    @property
    def tokens(self) -> Int[Tensor, "pairs pos"]:
        """The full grid in canonical order, where the model is."""
        return self.task.tokens.to(self.model.W_E.device)

    @property
    def labels(self) -> Int[Tensor, " pairs"]:
        """The answer to each."""
        return self.task.labels.to(self.model.W_E.device)

    @property
    def W_E(self) -> Float[Tensor, "p d_model"]:
        """The numbers' rows of the embedding."""
        return self.model.W_E.detach()[: self.p]

    @property
    def W_U(self) -> Float[Tensor, "d p"]:
        """The answers' columns of the unembedding; a surplus column is left out."""
        return self.model.W_U.detach()[:, : self.p]

    @torch.no_grad()
    def logits(
        self, fwd_hooks: Sequence[NamedHook] = (), tokens: Int[Tensor, "n pos"] | None = None
    ) -> Float[Tensor, "n p"]:
        """The answers' logits, on the full grid unless other tokens are given."""
        logits = self.model.run_with_hooks(self.tokens if tokens is None else tokens, fwd_hooks=list(fwd_hooks))
        return (logits[:, self.position] if logits.ndim == 3 else logits)[:, : self.p]

    @torch.no_grad()
    def activation(
        self, name: str, position: int | None = None, tokens: Int[Tensor, "n pos"] | None = None
    ) -> Float[Tensor, "n d"]:
        """An activation at one position, heads and the like side by side, on the full grid unless tokens are given.

        Raises:
            ActivationError: an activation that is not [batch, pos, ...], or has no such position.
        """
        tokens = self.tokens if tokens is None else tokens
        _, cache = self.model.run_with_cache(tokens, names_filter=[name])
        return at_position(cache[name], self.position if position is None else position, tokens.shape[1], name)


def at_position(x: Float[Tensor, "n *rest"], position: int, n_positions: int, name: str) -> Float[Tensor, "n d"]:
    """One position of an activation [batch, pos, ...], as [batch, d]; an activation [batch, d] is taken as it is."""
    if x.ndim == 2:
        return x
    if x.ndim < 2 or x.shape[1] != n_positions or name.endswith(("hook_pattern", "hook_attn_scores")):
        raise ActivationError(
            f"{name} has shape {list(x.shape)}: expected [batch, pos, ...] with {n_positions} positions, or [batch, d]"
        )
    if not -n_positions <= position < n_positions:
        raise ActivationError(f"position {position} of {name}: expected {-n_positions} to {n_positions - 1}")
    return x[:, position].flatten(1)
