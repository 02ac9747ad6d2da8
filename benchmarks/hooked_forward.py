"""The hooked forward pass beside the plain one: no_grad, batch 4096, d_hidden 256."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.harness import Comparison, compare
from hooked_rnn import HookedRNN, HookedRNNConfig

BATCH = 4096


def comparisons(threads: int) -> Iterator[Comparison]:
    """Capture of everything at T = 2, capture of the hidden state and edits at T = 32."""
    for n_steps, cases in ((2, {"capture all points": (capture_all, 1.3)}), (32, LONG)):
        model = HookedRNN(HookedRNNConfig(d_vocab=113, d_vocab_out=113, d_model=128, d_hidden=256))
        tokens = torch.randint(113, (BATCH, n_steps), generator=torch.Generator().manual_seed(0))
        for name, (hooked, goal) in cases.items():
            with torch.no_grad():
                yield compare(
                    f"{name}, T = {n_steps}, over the plain forward",
                    lambda hooked=hooked, model=model, tokens=tokens: hooked(model, tokens),
                    lambda model=model, tokens=tokens: model(tokens),
                    threads,
                    rounds=45 if n_steps == 2 else 9,
                    goal=goal,
                )


def capture_all(model: HookedRNN, tokens: torch.Tensor) -> Any:
    return model.run_with_cache(tokens)


def capture_hidden(model: HookedRNN, tokens: torch.Tensor) -> Any:
    return model.run_with_cache(tokens, names_filter="blocks.0.hook_hidden")


def edit_one_step(model: HookedRNN, tokens: torch.Tensor) -> Any:
    def edit(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x[:, 7] = 0
        return x

    return model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_hidden", edit)])


LONG = {"capture hook_hidden": (capture_hidden, 1.3), "edit one step of hook_hidden": (edit_one_step, 1.5)}
