"""Shared prefixes, computed once.

A set of sequences is a trie, and in a recurrent network the state after a prefix depends on that prefix
alone. All pairs of numbers modulo p, for one, have p*p sequences but only p states after the first token.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_rnn.model import HookedRNN
from hooked_rnn.points import Points
from hooked_rnn.recurrent import RecurrentBlock


@dataclass(frozen=True)
class PrefixTrie:
    """The distinct prefixes of a set of sequences, level by level; a node is a prefix."""

    tokens: list[Int[Tensor, " _nodes"]]
    """For each position, the last token of every distinct prefix that ends there."""
    parents: list[Int[Tensor, " _nodes"]]
    """For each position, which node of the position before every prefix continues; zeros at the first."""
    leaves: Int[Tensor, " n"]
    """For each sequence, its node at the last position."""

    @classmethod
    def of(cls, sequences: Int[Tensor, "n pos"]) -> "PrefixTrie":
        """The trie of some sequences of one length."""
        tokens, parents = [], []
        base = int(sequences.max()) + 1
        node = torch.zeros(len(sequences), dtype=torch.int64, device=sequences.device)
        for column in sequences.unbind(1):
            # A node and a token as one number: sorting those is many times faster than sorting pairs.
            nodes, node = torch.unique(node * base + column, return_inverse=True)
            parents.append(nodes // base)
            tokens.append(nodes % base)
        return cls(tokens, parents, node)

    def nodes(self) -> list[Int[Tensor, " n"]]:
        """For each position, every sequence's node there."""
        nodes = [self.leaves]
        for parents in reversed(self.parents[1:]):
            nodes.append(parents.index_select(0, nodes[-1]))
        return nodes[::-1]

    def restricted(self, chosen: Int[Tensor, " chosen"]) -> "PrefixTrie":
        """The trie of some of the sequences alone, in the order in which they were chosen."""
        tokens, parents = [], []
        nodes, leaves = torch.unique(self.leaves.index_select(0, chosen), return_inverse=True)
        for all_tokens, all_parents in zip(reversed(self.tokens), reversed(self.parents), strict=True):
            tokens.append(all_tokens.index_select(0, nodes))
            nodes, parent = torch.unique(all_parents.index_select(0, nodes), return_inverse=True)
            parents.append(parent)
        return PrefixTrie(tokens[::-1], parents[::-1], leaves)


def last_logits(
    model: HookedRNN, trie: PrefixTrie, W_E: Float[Tensor, "d_vocab d_model"] | None = None
) -> Float[Tensor, "n d_vocab_out"]:
    """The logits at the last position of every sequence: those of ``model(sequences, logits_to_keep=1)``.

    The same sums, and the same gradients, up to rounding; each of them once for every distinct prefix. No
    hook fires, so a model with hooks needs another way: see :func:`has_hooks`.

    Args:
        model: the network.
        trie: the sequences' prefixes, on the model's device.
        W_E: another embedding to use in place of the model's own.
    """
    return model.unembed(_top_states(model, trie, W_E)[-1]).index_select(0, trie.leaves)


def hooked_last_logits(model: HookedRNN, trie: PrefixTrie) -> Float[Tensor, "n d_vocab_out"]:
    """As :func:`last_logits`, with the hooks of what comes after the last loop: the top layer's ``hook_out``, ``hook_logits``.

    They are given what the ordinary forward pass gives them, [n, pos, d_hidden] and [n, 1, d_vocab_out].
    """
    states = zip(_top_states(model, trie), trie.nodes(), strict=True)
    out = torch.stack([hidden.index_select(0, nodes) for hidden, nodes in states], dim=1)
    return model.hook_logits(model.unembed(_top(model).hook_out(out)[:, -1:]))[:, 0]


def needs_plain_forward(model: HookedRNN) -> bool:
    """Whether the model has a hook, or a forward pass of its own, that the shared prefixes would pass by.

    A hook before or inside a loop may tell sequences apart that share a prefix, so it has to be given all of
    them, and their states can no longer be shared. Those after the last loop cannot: see :func:`hooked_last_logits`.
    """
    after = _top(model).hook_out, model.hook_logits
    return _has_own_forward(model) or any(_has_hooks(module) for module in model.modules() if module not in after)


def has_hooks(model: HookedRNN) -> bool:
    """Whether there is anything that :func:`last_logits` would pass by."""
    return _has_own_forward(model) or any(map(_has_hooks, model.modules()))


def _has_own_forward(model: HookedRNN) -> bool:
    return type(model).forward is not HookedRNN.forward or any(
        type(block).forward is not RecurrentBlock.forward for block in model.blocks
    )


def _has_hooks(module: nn.Module) -> bool:
    """Whether torch keeps a hook for a module, be it one of our hook points or not."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _top(model: HookedRNN) -> RecurrentBlock:
    return cast(RecurrentBlock, model.blocks[-1])


def _top_states(
    model: HookedRNN, trie: PrefixTrie, W_E: Float[Tensor, "d_vocab d_model"] | None = None
) -> list[Float[Tensor, "_nodes d_hidden"]]:
    """The top layer's hidden state of every node, position by position."""
    first, *above = cast(list[RecurrentBlock], list(model.blocks))
    # Layer 0 sees a token through W_E W_ih: a table with a row for each token.
    table = first.project(model.W_E if W_E is None else W_E)
    hidden = _layer(first, [table.index_select(0, tokens) for tokens in trie.tokens], trie)
    for block in above:
        hidden = _layer(block, [block.project(h) for h in hidden], trie)
    return hidden


def _layer(
    block: RecurrentBlock, inputs: list[Float[Tensor, "_nodes d_preact"]], trie: PrefixTrie
) -> list[Float[Tensor, "_nodes d_hidden"]]:
    """The hidden state of every node at every position."""
    state = block.zero_state(inputs[0])
    hidden = []
    for x_t, parents in zip(inputs, trie.parents, strict=True):
        recurrent = block.recur(state[0]).index_select(0, parents)
        carry = block.carry_of(state)
        state = block.step(x_t, recurrent, None if carry is None else carry.index_select(0, parents), Points())
        hidden.append(state[0])
    return hidden
