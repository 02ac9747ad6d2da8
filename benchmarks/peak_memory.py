"""What a capture adds to the peak of the plain pass: a count of bytes, T = 1,024, batch 64, d_hidden 256, one layer."""

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.harness import Comparison, seconds_of
from benchmarks.long_sequences import D_HIDDEN, LENGTHS, POINT, Pass, capture, capture_to_device, of_length, plain
from benchmarks.memory import Memory, memory_of
from hooked_rnn import HookedRNN


def capture_copies(model: HookedRNN, tokens: torch.Tensor) -> Any:
    copies: list[torch.Tensor] = []
    logits = model.run_with_hooks(tokens, fwd_hooks=[(POINT, lambda x, hook: copies.append(x[:, hook.step].clone()))])
    return logits, copies


CAPTURES = {"capture hook_hidden": capture, "capture hook_hidden, device given": capture_to_device}


def comparisons(threads: int) -> Iterator[Comparison]:
    """Both captures, and a control."""
    for name, run in CAPTURES.items():
        yield above_plain(name, run, threads, goal=1.2)
    yield above_plain("control: a hook that copies each step", capture_copies, threads)


def above_plain(name: str, run: Pass, threads: int, goal: float | None = None) -> Comparison:
    """How far the peak is above the plain pass's, over the bytes captured: the same in every round."""
    model, tokens = of_length(LENGTHS[-1])
    captured = tokens.numel() * D_HIDDEN * 4
    taken: list[Memory] = []
    with torch.no_grad():
        seconds = [
            seconds_of(lambda each=each: taken.append(memory_of(lambda: each(model, tokens)))) for each in (run, plain)
        ]
    here, without = taken
    ratio = (here.peak - without.peak) / captured
    sizes = (here.peak, without.peak, captured, here.held - without.held)
    note = "MiB at the peak {}, of the plain pass {}; captured {}; held at the end beyond the plain pass {}".format(
        *(f"{size / 2**20:.0f}" for size in sizes)
    )
    name = f"peak memory above plain, over the captured: {name}"
    return Comparison(name, threads, 1, ratio, ratio, ratio, *seconds, goal=goal, note=note)
