"""The loss at the last position and its gradient, by way of shared prefixes.

Backpropagation through time, written out for the vanilla cell over a trie of prefixes. Nearly all nodes of
a trie are at the last position, where a step is a gather, a sum, a nonlinearity, the unembedding and the
cross entropy. That position is walked in chunks that stay in the processor's cache, forward and backward at
once, so that little is left of its cost but the unembedding's three matrix products. Autograd would keep,
and fetch again, every intermediate of all nodes.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_rnn.cells import RNNBlock
from hooked_rnn.components import Embed, Unembed
from hooked_rnn.model import HookedRNN
from hooked_rnn.prefixes import PrefixTrie

SUM = 0
"""torch.embedding_bag's name for a sum."""
CHUNK = 1024
"""Sequences in a chunk, at most: in float32 their states take 1 MiB for a d_hidden of 256."""


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
        tokens = tokens + n_parents
        starts = torch.arange(0, 2 * len(tokens), 2, device=tokens.device)
        return cls(parents.contiguous(), tokens, torch.stack([parents, tokens], dim=1).flatten(), starts)


@dataclass(frozen=True)
class LabelledTrie:
    """Sequences and their answers, as the steps of their prefixes. Made once, used at every optimizer step."""

    inner: list[Step]
    """The steps at every position but the last."""
    last: list[tuple[Step, Int[Tensor, " _nodes"]]]
    """The last step of every sequence, in chunks, and where the answers are in the chunk's logits [d_vocab_out, nodes]."""
    n: int
    """How many sequences there are."""
    scratch: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict, repr=False)
    """Memory that is written over in every chunk: a fresh piece would cost more than what is done in it."""

    @classmethod
    def of(cls, trie: PrefixTrie, labels: Int[Tensor, " n"]) -> "LabelledTrie":
        """The sequences of a trie with the answer to each."""
        n_parents = [1, *map(len, trie.tokens)]
        inner = [Step.of(*level) for level in zip(trie.parents, trie.tokens, n_parents, strict=False)][:-1]
        order = trie.leaves.argsort()  # neighbours share their parents, which then are in the cache
        leaves, labels = trie.leaves[order], labels[order]
        parents, tokens = trie.parents[-1][leaves], trie.tokens[-1][leaves]
        n_chunks = 1 if labels.is_cuda else -(-len(labels) // CHUNK)
        chunks = (x.chunk(n_chunks) for x in (parents, tokens, labels))
        last = [(Step.of(p, t, n_parents[-2]), _positions(answers)) for p, t, answers in zip(*chunks, strict=True)]
        return cls(inner, last, len(labels))

    def memory(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """A tensor of this shape, with whatever was last written under this name."""
        kept = self.scratch.get((name, shape))
        if kept is None or kept.dtype != like.dtype or kept.device != like.device:
            kept = self.scratch[name, shape] = like.new_empty(shape)
        return kept


def _positions(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """In [d_vocab_out, n], flattened, the entry of each sequence's label."""
    return labels * len(labels) + torch.arange(len(labels), device=labels.device)


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
def backward(model: HookedRNN, batch: LabelledTrie) -> Float[Tensor, ""]:
    """The mean cross entropy at the last position; its gradient is added to that of every parameter.

    The numbers of ``model(sequences, return_type="loss", labels=labels)`` and its ``backward()``, up to
    rounding. No hook fires: see :func:`hooked_rnn.prefixes.has_hooks`; and :func:`is_written_out`.
    """
    sweep = _Sweep(model)
    hidden = [model.W_U.new_zeros(1, model.cfg.d_hidden)] * model.cfg.n_layers
    inner = []
    for step in batch.inner:
        level = sweep.enter(hidden)
        hidden = sweep.forward(step, level)
        inner.append((step, level, hidden))
    level = sweep.enter(hidden)
    loss = sweep.last_position(batch, level)
    sweep.leave(level)
    for step, below, hidden in reversed(inner):
        sweep.backward(step, below, hidden, sweep.by_states(level))
        level = below
        sweep.leave(level)
    sweep.finish()
    return loss


@dataclass(frozen=True)
class _Level:
    """What all steps at one position share: the states that enter it, and what comes back to them."""

    below: list[Tensor]
    """By layer, the states that enter: [parents, d_hidden]."""
    recurrents: list[Tensor]
    """By layer, what they add to the next step: [parents, d_hidden]."""
    rows: Tensor
    """Layer 0's of these above what its tokens add: [parents + d_vocab, d_hidden]."""
    d_rows: Tensor
    d_recurrents: list[Tensor]
    """Gradients; layer 0's is the upper part of ``d_rows``."""


class _Sweep:
    """One pass over the positions and back, with the gradients that have come together so far."""

    def __init__(self, model: HookedRNN) -> None:
        self.blocks = cast(list[RNNBlock], list(model.blocks))
        self.embed, self.unembed = model.embed, model.unembed
        self.table = self.blocks[0].project(model.W_E)  # layer 0 sees a token as a row of this
        self.d_table = torch.zeros_like(self.table)
        self.gradients: dict[nn.Parameter, Tensor] = {}

    def enter(self, below: list[Tensor]) -> _Level:
        """Begin a position."""
        recurrents = [block.recur(h) for block, h in zip(self.blocks, below, strict=True)]
        rows = torch.cat([recurrents[0], self.table])
        d_rows = torch.zeros_like(rows)
        d_recurrents = [d_rows[: len(below[0])], *map(torch.zeros_like, recurrents[1:])]
        return _Level(below, recurrents, rows, d_rows, d_recurrents)

    def forward(self, step: Step, level: _Level) -> list[Tensor]:
        """By layer, the states after a step."""
        block, *above = self.blocks
        preact = torch.embedding_bag(level.rows, step.pairs, step.starts, False, SUM, False, None, False)[0]
        hidden = [block.act_in_place(preact)]
        for block, recurrent in zip(above, level.recurrents[1:], strict=True):
            preact = block.project(hidden[-1]).add_(recurrent.index_select(0, step.parents))
            hidden.append(block.act_in_place(preact))
        return hidden

    def backward(self, step: Step, level: _Level, hidden: list[Tensor], d_hidden: list[Tensor]) -> None:
        """Take the gradient by each layer's states after a step, which is written over, to before the step."""
        for layer in reversed(range(len(self.blocks))):
            block, gradient = self.blocks[layer], d_hidden[layer]
            block.act_backward_in_place(gradient, hidden[layer])
            level.d_recurrents[layer].index_add_(0, step.parents, gradient)
            if layer == 0:
                level.d_rows.index_add_(0, step.tokens, gradient)
            else:
                self._add(block.W_ih, hidden[layer - 1].T @ gradient)
                self._add_sum(block.b_ih, gradient)
                d_hidden[layer - 1] += gradient @ block.W_ih.T

    def by_states(self, level: _Level) -> list[Tensor]:
        """By layer, the gradient by the states that entered a position."""
        return [g @ block.W_hh.T for block, g in zip(self.blocks, level.d_recurrents, strict=True)]

    def leave(self, level: _Level) -> None:
        """End a position on the way back."""
        self.d_table += level.d_rows[len(level.below[0]) :]
        for block, below, gradient in zip(self.blocks, level.below, level.d_recurrents, strict=True):
            self._add(block.W_hh, below.T @ gradient)
            self._add_sum(block.b_hh, gradient)

    def last_position(self, batch: LabelledTrie, level: _Level) -> Tensor:
        """The mean loss; of the last step, forward and backward."""
        W_U, b_U = self.unembed.W_U.T.contiguous(), self.unembed.b_U
        W_U_over_n, d_W_U = W_U / batch.n, torch.zeros_like(W_U)
        log_likelihoods = []
        for step, labels in batch.last:
            hidden = self.forward(step, level)
            top, size = hidden[-1], (len(W_U), len(labels))
            logits = torch.mm(W_U, top.T, out=batch.memory("logits", *size, like=W_U))
            if b_U is not None:
                logits += b_U[:, None]
            log_probs = torch.log_softmax(logits, 0, out=batch.memory("log_probs", *size, like=W_U))
            log_likelihoods.append(log_probs.view(-1).index_select(0, labels))
            # By the logits, n times the mean loss has this gradient: probabilities, less one at the label.
            d_logits = log_probs.exp_()
            d_logits.view(-1).index_add_(0, labels, log_probs.new_full(labels.shape, -1.0))
            d_W_U.addmm_(d_logits, top)
            self._add_sum(b_U, d_logits.T, batch.n)
            d_top = torch.mm(d_logits.T, W_U_over_n, out=batch.memory("d_top", *top.shape, like=W_U))
            self.backward(step, level, hidden, [*map(torch.zeros_like, hidden[:-1]), d_top])
        self._add(self.unembed.W_U, (d_W_U / batch.n).T.contiguous())
        return -torch.cat(log_likelihoods).mean()

    def finish(self) -> None:
        """Take the table's gradient to what it was made of, and hand every parameter its own."""
        block, W_E = self.blocks[0], self.embed.W_E
        self._add(W_E, self.d_table @ block.W_ih.T)
        self._add(block.W_ih, W_E.T @ self.d_table)
        self._add_sum(block.b_ih, self.d_table)
        for parameter, gradient in self.gradients.items():
            if parameter.requires_grad:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _add_sum(self, bias: nn.Parameter | None, gradients: Tensor, over: int = 1) -> None:
        """For a bias, if there is one, the sum over rows."""
        if bias is not None:
            self._add(bias, gradients.sum(0) / over)

    def _add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        before = self.gradients.get(parameter)
        self.gradients[parameter] = gradient if before is None else before.add_(gradient)
