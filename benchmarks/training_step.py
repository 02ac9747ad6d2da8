"""A full-batch training step beside the same step through torch.nn.RNN: p = 113, 40%, d_model 128, d_hidden 256."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.harness import Comparison, compare
from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, TrainConfig
from hooked_rnn.training.loop import Sequences, make_optimizer, take_step

TASK = ModularAddition(113)


def comparisons(threads: int) -> Iterator[Comparison]:
    """One step of the adamw recipe."""
    chosen, _ = TASK.split(0.4, 0)
    yield compare("training step, over the same step with nn.RNN", ours(chosen), torchs(chosen), threads)


def ours(chosen: torch.Tensor) -> Callable[[], None]:
    model = HookedRNN(HookedRNNConfig(d_vocab=113, d_vocab_out=113, d_model=128, d_hidden=256))
    config = TrainConfig.recipe("adamw")
    optimizer, batch = make_optimizer(model, config, 1), Sequences.of(TASK, torch.device("cpu"), chosen)
    return lambda: take_step(model, optimizer, batch, config, 1)


def torchs(chosen: torch.Tensor) -> Callable[[], None]:
    embedding, rnn = nn.Embedding(113, 128), nn.RNN(128, 256, nonlinearity="relu", bias=False, batch_first=True)
    readout = nn.Linear(256, 113, bias=False)
    parameters = [*embedding.parameters(), *rnn.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98))
    tokens, labels = TASK.tokens[chosen], TASK.labels[chosen]

    def step() -> None:
        optimizer.zero_grad()
        hidden, _ = rnn(embedding(tokens))
        loss = nn.functional.cross_entropy(readout(hidden[:, -1]), labels)
        loss.backward()
        optimizer.step()

    return step
