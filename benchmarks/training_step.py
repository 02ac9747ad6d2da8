"""A full-batch training step, p = 113, 40% of the pairs, d_model 128, d_hidden 256, beside two other things.

The same step through torch.nn.RNN, and the unembedding's three matrix products alone (logits, and the gradients by
the weights and by the states), which no such step can do without.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.harness import Comparison, compare
from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, TrainConfig
from hooked_rnn.training.batches import Sequences
from hooked_rnn.training.loop import take_step
from hooked_rnn.training.state import make_optimizer

TASK = ModularAddition(113)


def comparisons(threads: int) -> Iterator[Comparison]:
    """One step of the adamw recipe, and one of the fast recipe's first phase."""
    chosen, _ = TASK.split(0.4, 0)
    yield compare(
        "training step (adamw), over the same step with nn.RNN",
        ours("adamw", chosen),
        torchs(chosen),
        threads,
        goal=1 / 4,
        in_a_row=True,
    )
    for recipe in ("adamw", "fast"):
        name = f"training step ({recipe}), over the unembedding's three products"
        yield compare(
            name, ours(recipe, chosen), three_products(len(chosen)), threads, rounds=101, goal=1.5, in_a_row=True
        )


def ours(recipe: str, chosen: torch.Tensor) -> Callable[[], None]:
    model = HookedRNN(HookedRNNConfig(d_vocab=113, d_vocab_out=113, d_model=128, d_hidden=256))
    config = TrainConfig.recipe(recipe)
    batch = Sequences.of(TASK.tokens[chosen], TASK.labels[chosen], torch.device("cpu"))
    optimizer = make_optimizer(model, config, 1)
    return lambda: take_step(model, optimizer, batch, config, 1)


def torchs(chosen: torch.Tensor) -> Callable[[], None]:
    model = TorchRNN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98))
    tokens, labels = TASK.tokens[chosen], TASK.labels[chosen]

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), labels).backward()
        optimizer.step()

    return step


class TorchRNN(nn.Module):
    """The same network from torch's own parts, with the same initial standard deviations."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(113, 128)
        self.rnn = nn.RNN(128, 256, nonlinearity="relu", bias=False, batch_first=True)
        self.readout = nn.Linear(256, 113, bias=False)
        ours = HookedRNN(HookedRNNConfig(d_vocab=113, d_vocab_out=113, d_model=128, d_hidden=256, seed=seed))
        with torch.no_grad():
            self.embedding.weight.copy_(ours.W_E)
            self.rnn.weight_ih_l0.copy_(ours.blocks[0].W_ih.T)
            self.rnn.weight_hh_l0.copy_(ours.blocks[0].W_hh.T)
            self.readout.weight.copy_(ours.W_U.T)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(self.embedding(tokens))
        return self.readout(hidden[:, -1])


def three_products(n: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    hidden, d_logits, W_U = (torch.randn(shape, generator=generator) for shape in ((n, 256), (n, 113), (256, 113)))
    return lambda: (hidden @ W_U, hidden.T @ d_logits, d_logits @ W_U.T)
