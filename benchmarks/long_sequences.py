"""Hooks beside the plain pass where the sequence is long: T = 1,024, batch 64, d_hidden 256, one layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from benchmarks.harness import Comparison, compare, seconds_of
from hooked_rnn import HookedRNN, HookedRNNConfig

BATCH, D_HIDDEN = 64, 256
LENGTHS = (256, 512, 1024)
EDITED = 100
POINT = "blocks.0.hook_hidden"

Pass = Callable[[HookedRNN, torch.Tensor], Any]
"""A forward pass; the first of what it returns, or all of it, is the logits."""


def plain(model: HookedRNN, tokens: torch.Tensor) -> Any:
    return model(tokens)


def capture(model: HookedRNN, tokens: torch.Tensor) -> Any:
    return model.run_with_cache(tokens, names_filter=POINT)


def capture_to_device(model: HookedRNN, tokens: torch.Tensor) -> Any:
    return model.run_with_cache(tokens, names_filter=POINT, device="cpu")


def edit_one_step(model: HookedRNN, tokens: torch.Tensor) -> Any:
    def edit(x: torch.Tensor, hook: Any) -> None:
        if hook.step == EDITED:
            x[:, EDITED] = 0

    return model.run_with_hooks(tokens, fwd_hooks=[(POINT, edit)])


def edit_one_step_point(model: HookedRNN, tokens: torch.Tensor) -> Any:
    point = f"blocks.0.steps.{EDITED}.hook_hidden"
    return model.run_with_hooks(tokens, fwd_hooks=[(point, lambda x, hook: torch.zeros_like(x))])


def edit_each_step(model: HookedRNN, tokens: torch.Tensor) -> Any:
    def edit(x: torch.Tensor, hook: Any) -> None:
        x[:, hook.step] *= 0.5

    return model.run_with_hooks(tokens, fwd_hooks=[(POINT, edit)])


@dataclass(frozen=True)
class Case:
    """What is timed, and what its ratio to the plain pass is to be at most."""

    name: str
    run: Pass
    goal: float | None = None
    backward: bool = False
    step_points: bool = False
    """Whether every step has points of its own."""


PLAIN = [Case("plain", plain), Case("plain, forward and backward", plain, backward=True)]

CASES = [
    Case("capture hook_hidden", capture, 1.3),
    Case("capture hook_hidden, device given", capture_to_device, 1.3),
    Case("edit one step", edit_one_step, 1.5),
    Case("edit one step, at its own point", edit_one_step_point, 1.5, step_points=True),
    Case("edit each step", edit_each_step, 3.0),
    Case("capture hook_hidden, forward and backward", capture, backward=True),
    Case("edit one step, forward and backward", edit_one_step, backward=True),
    Case("edit one step, at its own point, forward and backward", edit_one_step_point, backward=True, step_points=True),
]


def comparisons(threads: int) -> Iterator[Comparison]:
    """Each case over the plain pass; and at four times the length."""
    for case in CASES:
        name = f"{case.name}, T = {LENGTHS[-1]}, over plain"
        baseline = timed(PLAIN[case.backward], LENGTHS[-1])
        yield compare(name, timed(case, LENGTHS[-1]), baseline, threads, rounds=15, goal=case.goal)
    for case in (*PLAIN, *CASES):
        yield growth(case, threads)


def timed(case: Case, n_steps: int) -> Callable[[], object]:
    """The case's pass over sequences of one length, with the backward pass where it has one."""
    model, tokens = of_length(n_steps)
    model.set_use_step_hooks(case.step_points, n_steps)

    def run() -> None:
        with torch.set_grad_enabled(case.backward):
            result = case.run(model, tokens)
        if case.backward:
            model.zero_grad()
            (result[0] if isinstance(result, tuple) else result).mean().backward()

    return run


def of_length(n_steps: int) -> tuple[HookedRNN, torch.Tensor]:
    model = HookedRNN(HookedRNNConfig(d_vocab=113, d_vocab_out=113, d_model=128, d_hidden=D_HIDDEN))
    return model, torch.randint(113, (BATCH, n_steps), generator=torch.Generator().manual_seed(0))


def growth(case: Case, threads: int, rounds: int = 5) -> Comparison:
    """Seconds at the longest length over those at the shortest; the note has each doubling."""
    runs = [timed(case, length) for length in LENGTHS]
    seconds = [[seconds_of(run) for run in runs] for _ in range(rounds + 1)][1:]
    medians = [median(column) for column in zip(*seconds, strict=True)]
    doublings = ", ".join(f"{longer / shorter:.2f}" for shorter, longer in pairwise(medians))
    at_each = ", ".join(f"{value:.3f}" for value in medians)
    note = f"seconds at T = {', '.join(map(str, LENGTHS))}: {at_each}; per doubling: {doublings}"
    name = f"growth, T = {LENGTHS[-1]} over T = {LENGTHS[0]}: {case.name}"
    return Comparison.of(name, [(row[-1], row[0]) for row in seconds], threads, note=note)
