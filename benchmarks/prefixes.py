"""A full-batch gradient by shared prefixes beside the plain forward and backward, over operands and layers."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.harness import Comparison, compare
from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition
from hooked_rnn.side_by_side import lead
from hooked_rnn.training.batches import Sequences

CASES = [(113, 2, False, 1), (113, 2, True, 1), (23, 3, False, 1), (11, 4, False, 1), (7, 5, False, 1)]
CASES += [(113, 2, False, layers) for layers in (2, 3)] + [(23, 3, False, 2)]
"""Modulus, operands, '=' token, layers: 12,000 to 17,000 sequences each, of which 40% are trained on."""


def comparisons(threads: int) -> Iterator[Comparison]:
    """One gradient each."""
    for p, operands, equals_token, layers in CASES:
        task = ModularAddition(p, operands, equals_token)
        chosen, _ = task.split(0.4, 0)
        batch = Sequences.of(task.tokens[chosen], task.labels[chosen], torch.device("cpu"))
        cfg = HookedRNNConfig(d_vocab=task.d_vocab, d_vocab_out=p, d_model=128, d_hidden=256, n_layers=layers)
        nodes = " + ".join(f"{len(level):,}" for level in batch.trie.tokens)
        name = f"gradient by prefixes: {operands} operands mod {p}{', =' * equals_token}, {layers} layer{'s' * (layers > 1)}"
        by_prefix, plain = gradients(HookedRNN(cfg), batch)
        note = f"{nodes} states for {len(chosen):,} sequences of {task.n_ctx}"
        yield compare(f"{name}, over plain", by_prefix, plain, threads, rounds=9, note=note, in_a_row=True)


def gradients(model: HookedRNN, batch: Sequences) -> tuple[Callable[[], None], Callable[[], None]]:
    def by_prefix() -> None:
        model.zero_grad()
        lead(*batch.plan_backward(model))

    def plain() -> None:
        model.zero_grad()
        model(batch.tokens, return_type="loss", labels=batch.labels, logits_to_keep=1).backward()

    return by_prefix, plain
