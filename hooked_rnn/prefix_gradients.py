"""The loss at the last position and its gradient, by way of shared prefixes.

Backpropagation through time, written out for the vanilla cell over a trie of prefixes. Nearly all nodes of
a trie are at the last position, where a step is a gather, a sum, a nonlinearity, the unembedding and the
cross entropy. That position is walked in chunks that stay in the processor's cache, forward and backward at
once, so that little is left of its cost but the unembedding's three matrix products. Autograd would keep,
and fetch again, every intermediate of all nodes.

Several threads take a part of the sequences each, from the first position to the last and back, and their
gradients are added up: see :mod:`hooked_rnn.side_by_side`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_rnn.cells import RNNBlock
from hooked_rnn.components import Embed, Unembed
from hooked_rnn.model import HookedRNN
from hooked_rnn.prefixes import PrefixTrie
from hooked_rnn.side_by_side import share

SUM = 0
"""torch.embedding_bag's name for a sum."""
CHUNK = 1024
"""Sequences in a chunk, at most: in float32 their states take 1 MiB for a d_hidden of 256."""
SHARE = 256
"""Sequences that a thread is worth waking for."""


def n_parts(sequences: int, threads: int) -> int:
    """How many parts to make of so many sequences for so many threads."""
    return max(1, min(threads, sequences // SHARE))


@dataclass(frozen=True)
class Step:
    """One step of some prefixes, as rows of a table that has every parent's row and below them every token's."""

    parents: Int[Tensor, " nodes"]
    tokens: Int[Tensor, " nodes"]
    pairs: Int[Tensor, " two_nodes"]
    """Both rows of each node, one node after the other."""
    starts: Int[Tensor, " nodes"]
    """Where each node's pair begins."""

    @classmethod
    def of(cls, parents: Int[Tensor, " nodes"], tokens: Int[Tensor, " nodes"], n_parents: int) -> "Step":
        """The step from some parents, of ``n_parents`` in all, by some tokens."""
        starts = torch.arange(0, 2 * len(tokens), 2, device=tokens.device)
        pairs = torch.stack([parents, tokens + n_parents], dim=1).flatten()
        return cls(parents.contiguous(), tokens.contiguous(), pairs, starts)


@dataclass(frozen=True)
class LabelledTrie:
    """Sequences and their answers, as the steps of their prefixes. Made once, used at every optimizer step."""

    inner: list[Step]
    """The step to every position but the last."""
    last: list[tuple[Step, Int[Tensor, " _nodes"]]]
    """The last step of the sequences in chunks; and where their answers are in the chunk's logits
    [d_vocab_out, nodes], flattened."""
    room: "_Room" = field(repr=False)

    @classmethod
    def parts_of(cls, trie: PrefixTrie, labels: Int[Tensor, " n"], n_parts: int = 1) -> list["LabelledTrie"]:
        """The sequences of a trie with the answer to each, in parts of the same size, up to one.

        Prefixes that two parts share are computed in both. They are few, and no part waits for another.
        """
        order = trie.leaves.argsort()  # neighbours share their parents, which then are in the cache
        if n_parts == 1:
            return [cls._of(trie, labels, order)]
        return [
            cls._of(trie.restricted(part), labels[part], torch.arange(len(part), device=labels.device))
            for part in order.tensor_split(n_parts)
        ]

    @classmethod
    def _of(cls, trie: PrefixTrie, labels: Int[Tensor, " n"], order: Int[Tensor, " n"]) -> "LabelledTrie":
        """Sequences in an order in which their leaves ascend."""
        n_parents = [1, *map(len, trie.tokens)]
        inner = zip(trie.parents[:-1], trie.tokens[:-1], n_parents, strict=False)
        leaves, labels = trie.leaves[order], labels[order]
        parents, tokens = trie.parents[-1][leaves], trie.tokens[-1][leaves]
        last = [
            (Step.of(parents[chunk], tokens[chunk], n_parents[-2]), _positions(labels[chunk]))
            for chunk in _chunks(len(order), labels.is_cuda)
        ]
        return cls([Step.of(*step) for step in inner], last, _Room())


def _chunks(n: int, whole: bool) -> list[slice]:
    """A part's sequences in chunks of the same size, up to the last."""
    size = n if whole else -(-n // -(-n // CHUNK))
    return [slice(a, min(a + size, n)) for a in range(0, n, size)]


def _positions(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """In [d_vocab_out, n], flattened, the entry of each sequence's label."""
    return labels * len(labels) + torch.arange(len(labels), device=labels.device)


class _Room:
    """Memory that is written over in every chunk: a fresh piece would cost more than what is done in it."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """A tensor of this shape, with whatever was last written under this name."""
        kept = self.kept.get((name, shape))
        if kept is None or kept.dtype != like.dtype or kept.device != like.device:
            kept = self.kept[name, shape] = like.new_empty(shape)
        return kept


def is_written_out(model: HookedRNN) -> bool:
    """Whether :func:`backward` knows the model's parts; for others there is autograd through the shared prefixes.

    It knows the vanilla cell and parameters that are what they seem: none that is computed from others
    (torch's parametrizations), or that has a hook for its gradient.
    """
    modules = {Embed: model.embed, Unembed: model.unembed}
    return (
        all(type(block) is RNNBlock for block in model.blocks)  # a class of it may have another step
        and all(type(module) is kind for kind, module in modules.items())
        and not any(_has_gradient_hooks(parameter) for parameter in model.parameters())
    )


def _has_gradient_hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


@torch.no_grad()
def backward(model: HookedRNN, batch: Sequence[LabelledTrie]) -> Float[Tensor, ""]:
    """The mean cross entropy at the last position; its gradient is added to that of every parameter.

    The numbers of ``model(sequences, return_type="loss", labels=labels)`` and its ``backward()``, up to
    rounding. No hook fires: see :func:`hooked_rnn.prefixes.has_hooks`; and :func:`is_written_out`.

    Args:
        model: the network.
        batch: the sequences in the parts that :meth:`LabelledTrie.parts_of` makes, in a thread each.
    """
    n = sum(len(labels) for part in batch for _, labels in part.last)
    sweep, *others = share([partial(_Sweep.over, model, part, n) for part in batch])
    for other in others:  # always in the same order
        sweep.add(other)
    share([sweep.finish_embedding, sweep.finish_input])
    for parameter, gradient in sweep.gradients.sums.items():
        if parameter.requires_grad:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return -torch.cat(sweep.log_likelihoods).mean()


@dataclass(frozen=True)
class _Level:
    """What all steps at one position share: the states that enter it, and what comes back to them."""

    below: list[Tensor]
    """By layer, the states that enter: [parents, d_hidden]."""
    recurrents: list[Tensor]
    """By layer, what they add to the next step: [parents, d_hidden]."""
    rows: Tensor
    """Layer 0's of these above what its tokens add: [parents + d_vocab, d_hidden]."""
    d_recurrents: list[Tensor]
    """Gradients."""


class _Gradients:
    """By parameter, what has come together so far."""

    def __init__(self) -> None:
        self.sums: dict[nn.Parameter, Tensor] = {}

    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        before = self.sums.get(parameter)
        self.sums[parameter] = gradient if before is None else before.add_(gradient)

    def add_sum(self, bias: nn.Parameter | None, gradients: Tensor, over: int = 1) -> None:
        """For a bias, if there is one, the sum over rows."""
        if bias is not None:
            self.add(bias, gradients.sum(0) / over)


class _Sweep:
    """One pass over the positions and back, with the gradients that have come together so far."""

    def __init__(self, model: HookedRNN) -> None:
        self.blocks = cast(list[RNNBlock], list(model.blocks))
        self.embed, self.unembed = model.embed, model.unembed
        self.table = self.blocks[0].project(model.W_E)  # layer 0 sees a token as a row of this
        self.d_table = torch.zeros_like(self.table)
        self.gradients = _Gradients()
        self.log_likelihoods: list[Tensor] = []

    @classmethod
    def over(cls, model: HookedRNN, part: LabelledTrie, n: int) -> "_Sweep":
        """Over a part of ``n`` sequences, whose mean loss it takes the gradient of, up to what tokens add."""
        sweep = cls(model)
        levels = [sweep.begin()]
        for step in part.inner:
            levels.append(sweep.go_on(step, levels[-1]))
        sweep.last_position(part, levels[-1], n)
        for step in reversed(part.inner):
            sweep.come_back(step, levels.pop(), levels[-1])
        sweep.leave(levels[0])
        return sweep

    def add(self, other: "_Sweep") -> None:
        """The sum over another part too."""
        self.d_table += other.d_table
        self.log_likelihoods += other.log_likelihoods
        for parameter, gradient in other.gradients.sums.items():
            self.gradients.add(parameter, gradient)

    def begin(self) -> _Level:
        """Before the first position there are no states."""
        return self._level([self.unembed.W_U.new_zeros(1, block.W_hh.shape[0]) for block in self.blocks])

    def go_on(self, step: Step, level: _Level) -> _Level:
        """Take a step to the next position."""
        return self._level(self.forward(step, level))

    def last_position(self, part: LabelledTrie, level: _Level, n: int) -> None:
        """The last step, forward and backward."""
        W_U = self.unembed.W_U.T.contiguous()
        W_U_over_n, d_W_U = W_U / n, torch.zeros_like(W_U)
        for step, labels in part.last:
            hidden = self.forward(step, level)
            top, size = hidden[-1], (len(W_U), len(labels))
            logits = torch.mm(W_U, top.T, out=part.room("logits", *size, like=W_U))
            if self.unembed.b_U is not None:
                logits += self.unembed.b_U[:, None]
            log_probs = torch.log_softmax(logits, 0, out=part.room("log_probs", *size, like=W_U))
            self.log_likelihoods.append(log_probs.view(-1).index_select(0, labels))
            # By the logits, n times the mean loss has this gradient: probabilities, less one at the label.
            d_logits = log_probs.exp_()
            d_logits.view(-1).index_add_(0, labels, log_probs.new_full(labels.shape, -1.0))
            d_W_U.addmm_(d_logits, top)
            self.gradients.add_sum(self.unembed.b_U, d_logits.T, n)
            d_top = torch.mm(d_logits.T, W_U_over_n, out=part.room("d_top", *top.shape, like=W_U))
            self.backward(step, level, hidden, [*map(torch.zeros_like, hidden[:-1]), d_top], self.d_table)
        self.gradients.add(self.unembed.W_U, (d_W_U / n).T.contiguous())

    def come_back(self, step: Step, after: _Level, before: _Level) -> None:
        """Take the gradient over a step."""
        for block, h, gradient in zip(self.blocks, after.below, after.d_recurrents, strict=True):
            self.gradients.add(block.W_hh, h.T @ gradient)
            self.gradients.add_sum(block.b_hh, gradient)
        d_hidden = [g @ block.W_hh.T for block, g in zip(self.blocks, after.d_recurrents, strict=True)]
        d_table = torch.zeros_like(self.table)
        self.backward(step, before, after.below, d_hidden, d_table)
        self.d_table += d_table

    def leave(self, level: _Level) -> None:
        """Take the gradient to what the first position had."""
        for block, gradient in zip(self.blocks, level.d_recurrents, strict=True):
            self.gradients.add_sum(block.b_hh, gradient)
            if block.W_hh not in self.gradients.sums:  # one position: what enters it is zero, and so is what W_hh gets
                self.gradients.add(block.W_hh, torch.zeros_like(block.W_hh))

    def finish_embedding(self) -> None:
        """Take the gradient from what tokens add to their embedding."""
        self.gradients.add(self.embed.W_E, self.d_table @ self.blocks[0].W_ih.T)

    def finish_input(self) -> None:
        """Take the gradient from what tokens add to how layer 0 reads it."""
        block = self.blocks[0]
        self.gradients.add(block.W_ih, self.embed.W_E.T @ self.d_table)
        self.gradients.add_sum(block.b_ih, self.d_table)

    def forward(self, step: Step, level: _Level) -> list[Tensor]:
        """By layer, the states after a step."""
        block, *above = self.blocks
        preact = torch.embedding_bag(level.rows, step.pairs, step.starts, False, SUM, False, None, False)[0]
        hidden = [block.act_in_place(preact)]
        for block, recurrent in zip(above, level.recurrents[1:], strict=True):
            preact = block.project(hidden[-1]).add_(recurrent.index_select(0, step.parents))
            hidden.append(block.act_in_place(preact))
        return hidden

    def backward(
        self, step: Step, level: _Level, hidden: list[Tensor], d_hidden: list[Tensor], d_table: Tensor
    ) -> None:
        """Take the gradient by each layer's states after a step, which is written over, to before the step."""
        for layer in reversed(range(len(self.blocks))):
            block, gradient = self.blocks[layer], d_hidden[layer]
            block.act_backward_in_place(gradient, hidden[layer])
            level.d_recurrents[layer].index_add_(0, step.parents, gradient)
            if layer == 0:
                d_table.index_add_(0, step.tokens, gradient)
            else:
                self.gradients.add(block.W_ih, hidden[layer - 1].T @ gradient)
                self.gradients.add_sum(block.b_ih, gradient)
                d_hidden[layer - 1] += gradient @ block.W_ih.T

    def _level(self, below: list[Tensor]) -> _Level:
        """Of the states that enter a position."""
        recurrents = [block.recur(h) for block, h in zip(self.blocks, below, strict=True)]
        rows = torch.cat([recurrents[0], self.table])
        return _Level(below, recurrents, rows, [torch.zeros_like(r) for r in recurrents])
