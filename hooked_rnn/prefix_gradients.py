"""The loss at the last position and its gradient, by way of shared prefixes.

Backpropagation through time, written out for the vanilla cell over a trie of prefixes. Nearly all nodes of
a trie are at the last position, where a step is a gather, a sum, a nonlinearity, the unembedding and the
cross entropy. That position is walked in chunks that stay in the processor's cache, forward and backward at
once, so that little is left of its cost but the unembedding's three matrix products. Autograd would keep,
and fetch again, every intermediate of all nodes.

Several threads take a share of the nodes of each position: see :mod:`hooked_rnn.side_by_side`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
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
"""Nodes that a thread is worth waking for."""


def n_shares(nodes: int, threads: int) -> int:
    """How many threads share so many nodes, of those there are."""
    return max(1, min(threads, nodes // SHARE))


@dataclass(frozen=True)
class Step:
    """One step of some prefixes, as rows of a table that has every parent's row and below them every token's."""

    parents: Int[Tensor, " nodes"]
    tokens: Int[Tensor, " nodes"]
    pairs: Int[Tensor, " two_nodes"]
    """Both rows of each node, one node after the other."""
    starts: Int[Tensor, " nodes"]
    """Where each node's pair begins."""
    nodes: slice
    """Which nodes of their position these are."""

    @classmethod
    def of(cls, parents: Int[Tensor, " nodes"], tokens: Int[Tensor, " nodes"], n_parents: int, nodes: slice) -> "Step":
        """The step from some parents, of ``n_parents`` in all, by some tokens."""
        starts = torch.arange(0, 2 * len(tokens), 2, device=tokens.device)
        pairs = torch.stack([parents, tokens + n_parents], dim=1).flatten()
        return cls(parents.contiguous(), tokens.contiguous(), pairs, starts, nodes)


@dataclass(frozen=True)
class LabelledTrie:
    """Sequences and their answers, as the steps of their prefixes. Made once, used at every optimizer step."""

    inner: list[list[Step]]
    """For every position but the last, the steps, in a share for each thread."""
    last: list[list[tuple[Step, Int[Tensor, " _nodes"]]]]
    """For each thread, the last step of its sequences in chunks; and where their answers are in the chunk's logits
    [d_vocab_out, nodes], flattened."""
    n: int
    """How many sequences there are."""
    rooms: list["_Room"] = field(repr=False)
    """For each thread."""

    @classmethod
    def of(cls, trie: PrefixTrie, labels: Int[Tensor, " n"], threads: int = 1) -> "LabelledTrie":
        """The sequences of a trie with the answer to each, for so many threads."""
        n_parents = [1, *map(len, trie.tokens)]
        inner = [
            [Step.of(parents[nodes], tokens[nodes], n, nodes) for nodes in _shares(parents, threads)]
            for parents, tokens, n in zip(trie.parents[:-1], trie.tokens[:-1], n_parents, strict=False)
        ]
        order = trie.leaves.argsort()  # neighbours share their parents, which then are in the cache
        leaves, labels = trie.leaves[order], labels[order]
        parents, tokens = trie.parents[-1][leaves], trie.tokens[-1][leaves]
        last = []
        for mine in _shares(parents, threads):
            chunks = _chunks(mine, labels.is_cuda)
            steps = [Step.of(parents[nodes], tokens[nodes], n_parents[-2], nodes) for nodes in chunks]
            last.append([(step, _positions(labels[step.nodes])) for step in steps])
        return cls(inner, last, len(labels), [_Room() for _ in range(threads)])


def _shares(parents: Int[Tensor, " nodes"], threads: int) -> list[slice]:
    """Nodes in shares of about the same size, none of which has a parent of another: threads that add to those never meet.

    Args:
        parents: ascending.
        threads: how many shares to make at most.
    """
    n = n_shares(len(parents), threads)
    middles = torch.tensor([len(parents) * i // n for i in range(1, n)], dtype=torch.int64, device=parents.device)
    starts = torch.searchsorted(parents, parents[middles])  # of those nodes' siblings, the first
    return [slice(a, b) for a, b in pairwise([0, *starts.tolist(), len(parents)]) if a < b]


def _chunks(nodes: slice, whole: bool) -> list[slice]:
    """A share in chunks of the same size, up to the last."""
    length = nodes.stop - nodes.start
    size = length if whole else -(-length // -(-length // CHUNK))
    return [slice(a, min(a + size, nodes.stop)) for a in range(nodes.start, nodes.stop, size)]


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
def backward(model: HookedRNN, batch: LabelledTrie) -> Float[Tensor, ""]:
    """The mean cross entropy at the last position; its gradient is added to that of every parameter.

    The numbers of ``model(sequences, return_type="loss", labels=labels)`` and its ``backward()``, up to
    rounding. No hook fires: see :func:`hooked_rnn.prefixes.has_hooks`; and :func:`is_written_out`.
    """
    sweep = _Sweep(model, len(batch.rooms))
    levels = [sweep.begin()]
    for steps in batch.inner:
        levels.append(sweep.go_on(steps, levels[-1]))
    loss = sweep.last_position(batch, levels[-1])
    for steps in reversed(batch.inner):
        sweep.come_back(steps, levels.pop(), levels[-1])
    sweep.finish(levels[0])
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

    def __init__(self, model: HookedRNN, threads: int) -> None:
        self.blocks = cast(list[RNNBlock], list(model.blocks))
        self.embed, self.unembed = model.embed, model.unembed
        self.table = self.blocks[0].project(model.W_E)  # layer 0 sees a token as a row of this
        self.d_table = torch.zeros_like(self.table)
        self.gradients = [_Gradients() for _ in range(threads)]
        """Each share has its own, which are added up at the end, always in the same order."""

    def begin(self) -> _Level:
        """Before the first position there are no states."""
        below = [self.unembed.W_U.new_zeros(1, block.W_hh.shape[0]) for block in self.blocks]
        return self._level([(below, self._recur(below))])

    def go_on(self, steps: list[Step], level: _Level) -> _Level:
        """Take every share of the steps at a position: to the next one."""

        def take(step: Step) -> tuple[list[Tensor], list[Tensor]]:
            hidden = self.forward(step, level)
            return hidden, self._recur(hidden)

        return self._level(share([partial(take, step) for step in steps]))

    def last_position(self, batch: LabelledTrie, level: _Level) -> Tensor:
        """The mean loss; of the last step, forward and backward."""
        W_U = self.unembed.W_U.T.contiguous()
        walk = partial(self._walk_chunks, W_U=W_U, W_U_over_n=W_U / batch.n, n=batch.n, level=level)
        tasks = [partial(walk, *mine) for mine in zip(batch.last, batch.rooms, self.gradients, strict=False)]
        log_likelihoods = []
        for mine, d_table in share(tasks):
            log_likelihoods += mine
            self.d_table += d_table
        return -torch.cat(log_likelihoods).mean()

    def come_back(self, steps: list[Step], after: _Level, before: _Level) -> None:
        """Take the gradient over the steps at a position."""

        def take_back(step: Step, gradients: _Gradients) -> Tensor:
            hidden = [h[step.nodes] for h in after.below]
            d_recurrents = [g[step.nodes] for g in after.d_recurrents]
            for block, h, gradient in zip(self.blocks, hidden, d_recurrents, strict=True):
                gradients.add(block.W_hh, h.T @ gradient)
                gradients.add_sum(block.b_hh, gradient)
            d_hidden = [g @ block.W_hh.T for block, g in zip(self.blocks, d_recurrents, strict=True)]
            d_table = torch.zeros_like(self.table)
            self.backward(step, before, hidden, d_hidden, gradients, d_table)
            return d_table

        for d_table in share([partial(take_back, *mine) for mine in zip(steps, self.gradients, strict=False)]):
            self.d_table += d_table

    def finish(self, level: _Level) -> None:
        """Take the gradient to what the first position had, and hand every parameter its own."""
        block, W_E, gradients = self.blocks[0], self.embed.W_E, self.gradients[0]
        for others in self.gradients[1:]:
            for parameter, gradient in others.sums.items():
                gradients.add(parameter, gradient)
        for above, gradient in zip(self.blocks, level.d_recurrents, strict=True):
            gradients.add_sum(above.b_hh, gradient)
            if above.W_hh not in gradients.sums:  # one position: what enters it is zero, and so is what W_hh gets
                gradients.add(above.W_hh, torch.zeros_like(above.W_hh))
        gradients.add(W_E, self.d_table @ block.W_ih.T)
        gradients.add(block.W_ih, W_E.T @ self.d_table)
        gradients.add_sum(block.b_ih, self.d_table)
        for parameter, gradient in gradients.sums.items():
            if parameter.requires_grad:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

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
        self,
        step: Step,
        level: _Level,
        hidden: list[Tensor],
        d_hidden: list[Tensor],
        gradients: _Gradients,
        d_table: Tensor,
    ) -> None:
        """Take the gradient by each layer's states after a step, which is written over, to before the step."""
        for layer in reversed(range(len(self.blocks))):
            block, gradient = self.blocks[layer], d_hidden[layer]
            block.act_backward_in_place(gradient, hidden[layer])
            level.d_recurrents[layer].index_add_(0, step.parents, gradient)  # no other share has these parents
            if layer == 0:
                d_table.index_add_(0, step.tokens, gradient)
            else:
                gradients.add(block.W_ih, hidden[layer - 1].T @ gradient)
                gradients.add_sum(block.b_ih, gradient)
                d_hidden[layer - 1] += gradient @ block.W_ih.T

    def _walk_chunks(
        self,
        chunks: list[tuple[Step, Tensor]],
        room: _Room,
        gradients: _Gradients,
        *,
        W_U: Tensor,
        W_U_over_n: Tensor,
        n: int,
        level: _Level,
    ) -> tuple[list[Tensor], Tensor]:
        """One share of the last step: its log-likelihoods, and its gradient by what tokens add."""
        d_W_U, d_table, log_likelihoods = torch.zeros_like(W_U), torch.zeros_like(self.table), []
        for step, labels in chunks:
            hidden = self.forward(step, level)
            top, size = hidden[-1], (len(W_U), len(labels))
            logits = torch.mm(W_U, top.T, out=room("logits", *size, like=W_U))
            if self.unembed.b_U is not None:
                logits += self.unembed.b_U[:, None]
            log_probs = torch.log_softmax(logits, 0, out=room("log_probs", *size, like=W_U))
            log_likelihoods.append(log_probs.view(-1).index_select(0, labels))
            # By the logits, n times the mean loss has this gradient: probabilities, less one at the label.
            d_logits = log_probs.exp_()
            d_logits.view(-1).index_add_(0, labels, log_probs.new_full(labels.shape, -1.0))
            d_W_U.addmm_(d_logits, top)
            gradients.add_sum(self.unembed.b_U, d_logits.T, n)
            d_top = torch.mm(d_logits.T, W_U_over_n, out=room("d_top", *top.shape, like=W_U))
            self.backward(step, level, hidden, [*map(torch.zeros_like, hidden[:-1]), d_top], gradients, d_table)
        gradients.add(self.unembed.W_U, (d_W_U / n).T.contiguous())
        return log_likelihoods, d_table

    def _recur(self, hidden: list[Tensor]) -> list[Tensor]:
        return [block.recur(h) for block, h in zip(self.blocks, hidden, strict=True)]

    def _level(self, shares: list[tuple[list[Tensor], list[Tensor]]]) -> _Level:
        """From each share's states and what they add to the next step."""
        below, recurrents = ([_joined(parts) for parts in zip(*of, strict=True)] for of in zip(*shares, strict=True))
        rows = torch.cat([recurrents[0], self.table])
        return _Level(below, recurrents, rows, [torch.zeros_like(r) for r in recurrents])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
