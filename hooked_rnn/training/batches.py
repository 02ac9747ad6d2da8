"""What a step is trained on: sequences with their prefixes found once, whole or in minibatches."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from hooked_rnn.architectures import architecture_of
from hooked_rnn.losses import cross_entropy
from hooked_rnn.model import HookedRNN
from hooked_rnn.prefix_gradients import LabelledTrie, backward, is_written_out, n_parts
from hooked_rnn.prefixes import PrefixTrie, has_hooks, hooked_last_logits, last_logits, needs_plain_forward

PIECE = 2048
"""Sequences that are evaluated at once, by models that have no prefixes to share: as memory is."""


@dataclass(frozen=True)
class Sequences:
    """Some sequences with their answers and the trie of their prefixes, on one device.

    Of a HookedRNN, both ways to use them go by the prefixes, unless a hook on the model wants to see the steps of every
    sequence. Every hook fires, whichever way is gone.
    """

    tokens: Int[Tensor, "n pos"]
    labels: Int[Tensor, " n"]
    trie: PrefixTrie
    _labelled_tries: dict[int, list[LabelledTrie]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokens: Int[Tensor, "n pos"], labels: Int[Tensor, " n"], device: torch.device) -> "Sequences":
        tokens, labels = tokens.to(device), labels.to(device)
        return cls(tokens, labels, PrefixTrie.of(tokens))

    def chosen(self, rows: Int[Tensor, " chosen"]) -> "Sequences":
        """Some of the sequences."""
        return Sequences(self.tokens[rows], self.labels[rows], self.trie.restricted(rows))

    def labelled_trie(self, n_parts: int) -> list[LabelledTrie]:
        """The index that :meth:`backward` goes by, in so many parts."""
        if n_parts not in self._labelled_tries:
            self._labelled_tries[n_parts] = LabelledTrie.parts_of(self.trie, self.labels, n_parts)
        return self._labelled_tries[n_parts]

    def backward(self, model: nn.Module) -> Float[Tensor, ""]:
        """The mean loss at the last position; its gradient is added to the parameters'."""
        return self.plan_backward(model)[1]()

    def plan_backward(self, model: nn.Module) -> tuple[int, Callable[[], Float[Tensor, ""]]]:
        """How many threads can share :meth:`backward`, up to torch's number (1 where torch's own do as well), and it."""
        if isinstance(model, HookedRNN) and is_written_out(model) and not has_hooks(model):
            threads = torch.get_num_threads() if self.labels.device.type == "cpu" else 1
            parts = self.labelled_trie(n_parts(len(self.labels), threads))
            return len(parts), partial(backward, model, parts)
        return 1, partial(self._autograd_backward, model)

    def _autograd_backward(self, model: nn.Module) -> Float[Tensor, ""]:
        with torch.enable_grad():
            loss = cross_entropy(self.last_logits(model)[:, None], self.labels)
            loss.backward()
        return loss.detach()

    def last_logits(self, model: nn.Module) -> Float[Tensor, "n d_vocab_out"]:
        """The logits at the last position. Where no gradient is wanted, other models than a HookedRNN run piece by piece."""
        if not isinstance(model, HookedRNN):
            kind, size = architecture_of(model), len(self.tokens) if torch.is_grad_enabled() else PIECE
            return torch.cat([kind.last_logits(model, piece) for piece in self.tokens.split(size)])
        if needs_plain_forward(model):
            return model(self.tokens, logits_to_keep=1)[:, 0]
        by_prefixes = hooked_last_logits if has_hooks(model) else last_logits
        return by_prefixes(model, self.trie)


class Minibatches:
    """Which sequences each step is trained on: all of them, or a new shuffle of them piece by piece."""

    def __init__(self, sequences: Sequences, size: int | None, seed: int) -> None:
        self.sequences = sequences
        self.size = size
        self.per_epoch = 1 if size is None else -(-len(sequences.labels) // size)
        # Not the seed of the split alone, or the order of the first epoch would follow from the split.
        self.generator = torch.Generator().manual_seed(2**32 + seed)
        self.before_epoch = self.generator.get_state()

    def at(self, step: int) -> Sequences:
        """The sequences of a step; steps are asked for in turn, from 1 or from where :meth:`restore` left."""
        if self.size is None:
            return self.sequences
        position = (step - 1) % self.per_epoch
        if position == 0:
            self._shuffle()
        rows = self.order[position * self.size : (position + 1) * self.size]
        return self.sequences.chosen(rows.to(self.sequences.labels.device))

    def state_after(self, step: int) -> UInt8[Tensor, " bytes"]:
        """What :meth:`restore` needs: the generator's state, from before the shuffle that is still in use."""
        return self.generator.get_state() if step % self.per_epoch == 0 else self.before_epoch

    def restore(self, state: UInt8[Tensor, " bytes"], step: int) -> None:
        """Go on after a step with the state that was saved then."""
        self.generator.set_state(state)
        if step % self.per_epoch:
            self._shuffle()

    def _shuffle(self) -> None:
        self.before_epoch = self.generator.get_state()
        self.order = torch.randperm(len(self.sequences.labels), generator=self.generator)
