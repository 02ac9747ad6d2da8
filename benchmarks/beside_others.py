"""One capture and one edit inside the time loop, beside plain torch hooks and nnsight on a loop of nn.RNNCell.

All sides have the same weights, and their numbers are compared before anything is timed. nnsight is needed by
this benchmark alone; where it is not installed, that is said and the rest runs. To install it:

    pip install --constraint constraints.txt --editable ".[benchmarks]"
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from operator import methodcaller
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.harness import Comparison, compare
from hooked_rnn import HookedRNN, HookedRNNConfig

SIZES = ((2, 4096, 45), (32, 4096, 15), (256, 64, 25))
"""Steps, batch, and how many rounds are timed."""
TOLERANCE = 1e-5
"""How far two sides may differ, of the largest value."""
LEVEL = 1.03
"""Medians that differ by less say nothing of who is ahead."""
HIDDEN = "blocks.0.hook_hidden"
NOT_INSTALLED = "nnsight is not installed, so it is not measured: pip install -c constraints.txt -e '.[benchmarks]'"


class DisagreementError(AssertionError):
    """Two sides that are to compute the same do not, so that their times say nothing."""


class Side(Protocol):
    """One way to look into a recurrent network, and to change it. All without autograd."""

    name: str

    def plain(self, tokens: Tensor) -> Tensor:
        """Logits [batch, pos, d_vocab_out], of a network that nothing is attached to."""

    def capture(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the hidden states as one tensor [batch, pos, d_hidden]."""

    def capture_list(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits, and the hidden states [batch, d_hidden] of each step, which are not put together."""

    def edit(self, tokens: Tensor, step: int) -> Tensor:
        """Logits with the hidden state doubled at one step: what the later steps make of it, too."""


Task = Callable[[Side], Any]


class Hooked:
    """run_with_cache and run_with_hooks."""

    name = "HookedRNN"

    def __init__(self, model: HookedRNN) -> None:
        self.model = model

    def plain(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def capture(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits, cache = self.model.run_with_cache(tokens, names_filter=HIDDEN)
        return logits, cache[HIDDEN]

    def capture_list(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, states = self.capture(tokens)
        return logits, states.unbind(1)

    def edit(self, tokens: Tensor, step: int) -> Tensor:
        def double(x: Tensor, hook: Any) -> Tensor:
            x[:, step] *= 2
            return x

        return self.model.run_with_hooks(tokens, fwd_hooks=[(HIDDEN, double)])


class RNNCellLoop(nn.Module):
    """The same network as written by hand: nn.Embedding, nn.RNNCell at each step, nn.Linear."""

    def __init__(self, model: HookedRNN) -> None:
        """With a copy of the weights of a model of one vanilla layer."""
        super().__init__()
        cfg, block = model.cfg, model.blocks[0]
        self.embed = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.cell = nn.RNNCell(cfg.d_model, cfg.d_hidden, bias=cfg.bias, nonlinearity=cfg.act_fn)
        self.unembed = nn.Linear(cfg.d_hidden, cfg.d_vocab_out, bias=model.unembed.b_U is not None)
        self.to(cfg.device, cfg.dtype)
        # torch keeps its weights transposed: they stand on the left of a column vector.
        weights = {"embed.weight": model.W_E, "cell.weight_ih": block.W_ih.T, "cell.weight_hh": block.W_hh.T}
        biases = {"cell.bias_ih": block.b_ih, "cell.bias_hh": block.b_hh, "unembed.bias": model.unembed.b_U}
        weights |= {"unembed.weight": model.W_U.T} | {name: bias for name, bias in biases.items() if bias is not None}
        self.load_state_dict(weights)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = []
        state = None
        # Time comes first, so that what a step reads lies together: a little faster than [batch, pos, d_model].
        for x in self.embed(tokens.T).unbind(0):
            state = self.cell(x, state)
            hidden.append(state)
        return self.unembed(torch.stack(hidden, dim=1))


class TorchHooks:
    """register_forward_hook on the cell; which step a call belongs to is for the hook to count."""

    name = "torch hooks"

    def __init__(self, model: HookedRNN) -> None:
        self.loop = RNNCellLoop(model)

    def plain(self, tokens: Tensor) -> Tensor:
        return self.loop(tokens)

    def capture(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits, states = self.capture_list(tokens)
        return logits, torch.stack(states, dim=1)

    def capture_list(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        states: list[Tensor] = []
        handle = self.loop.cell.register_forward_hook(lambda cell, inputs, output: states.append(output))
        try:
            return self.loop(tokens), tuple(states)
        finally:
            handle.remove()

    def edit(self, tokens: Tensor, step: int) -> Tensor:
        calls = 0

        def double(cell: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            nonlocal calls
            calls += 1
            return 2 * output if calls == step + 1 else None

        handle = self.loop.cell.register_forward_hook(double)
        try:
            return self.loop(tokens)
        finally:
            handle.remove()


class NNsight:
    """A trace that iterates over the calls of the cell. Its plain forward is that of a loop that is not wrapped."""

    def __init__(self, model: HookedRNN) -> None:
        import nnsight

        self.name = f"nnsight {metadata.version('nnsight')}"
        self.save = nnsight.save
        self.loop = RNNCellLoop(model)
        self.wrapped = nnsight.NNsight(RNNCellLoop(model))

    def plain(self, tokens: Tensor) -> Tensor:
        return self.loop(tokens)

    def capture(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits, states = self.capture_list(tokens)
        return logits, torch.stack(states, dim=1)

    def capture_list(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with self.wrapped.trace(tokens) as tracer:
            states = self.save([])
            for _ in tracer.iter[: tokens.shape[1]]:
                states.append(self.wrapped.cell.output)
            logits = self.save(self.wrapped.output)
        return logits, tuple(states)

    def edit(self, tokens: Tensor, step: int) -> Tensor:
        with self.wrapped.trace(tokens) as tracer:
            for _ in tracer.iter[step]:
                self.wrapped.cell.output = 2 * self.wrapped.cell.output
            logits = self.save(self.wrapped.output)
        return logits  # noqa: RET504 (a return inside the trace would not be run)


def comparisons(threads: int) -> Iterator[Comparison]:
    """Each side over its own plain forward, and the others over HookedRNN."""
    # A scale at which an edit is still felt at the last of 256 steps, and states neither vanish nor grow.
    model = HookedRNN(HookedRNNConfig(d_vocab=113, d_vocab_out=113, d_model=128, d_hidden=256, init_scale=1.35))
    sides = all_sides(model)
    for n_steps, batch, rounds in SIZES:
        tokens = torch.randint(113, (batch, n_steps), generator=torch.Generator().manual_seed(0))
        verify(sides, tokens)
        yield from Rows(sides, tokens, threads, rounds).measured()


def all_sides(model: HookedRNN) -> list[Side]:
    """HookedRNN first; without nnsight, which is then said, where it is not installed."""
    if find_spec("nnsight") is None:
        print(NOT_INSTALLED, flush=True)
        return [Hooked(model), TorchHooks(model)]
    return [Hooked(model), TorchHooks(model), NNsight(model)]


@torch.no_grad()
def verify(sides: list[Side], tokens: Tensor) -> None:
    """Check that all sides give the numbers of the first, and that the edit is felt at the last step.

    Raises:
        DisagreementError: they do not, or it is not.
    """
    step = edited_step(tokens)
    first, *others = sides
    logits, states = first.capture(tokens)
    edited = first.edit(tokens, step)
    if _difference(edited[:, -1], logits[:, -1]) < 100 * TOLERANCE:
        raise DisagreementError(f"{first.name}: the edit at step {step} is not felt at the last, {len(logits[0]) - 1}")
    _agree(f"{first.name}, captured beside plain logits", logits, first.plain(tokens))
    for side in others:
        its_logits, its_states = side.capture(tokens)
        _agree(f"{side.name}, plain logits", side.plain(tokens), logits)
        _agree(f"{side.name}, logits beside captured states", its_logits, logits)
        _agree(f"{side.name}, captured states", its_states, states)
        _agree(f"{side.name}, captured list", torch.stack(side.capture_list(tokens)[1], dim=1), states)
        _agree(f"{side.name}, edited logits", side.edit(tokens, step), edited)


def edited_step(tokens: Tensor) -> int:
    """The middle one; the first of two, so that there is a later one."""
    return (tokens.shape[1] - 1) // 2


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _agree(what: str, measured: Tensor, expected: Tensor) -> None:
    if measured.shape != expected.shape:
        raise DisagreementError(f"{what}: shape {list(measured.shape)}, expected {list(expected.shape)}")
    difference = _difference(measured, expected)
    if not difference <= TOLERANCE:  # nor may it be NaN
        raise DisagreementError(f"{what}: differ by {difference:.1e} of the largest, expected at most {TOLERANCE:g}")


@dataclass(frozen=True)
class Rows:
    """The rows of one size."""

    sides: list[Side]
    tokens: Tensor
    threads: int
    rounds: int

    @torch.no_grad()
    def measured(self) -> list[Comparison]:
        """What each task costs a side, over its own plain forward, and what it costs the others, over the first."""
        plain = methodcaller("plain", self.tokens)
        capture, capture_list = methodcaller("capture", self.tokens), methodcaller("capture_list", self.tokens)
        edit = methodcaller("edit", self.tokens, edited_step(self.tokens))
        return [
            *self._over_first("plain forward", plain)[:1],  # nnsight's is the same loop
            *self._over_plain("capture", capture, plain),
            *self._over_first("capture", capture),
            *self._over_first("capture, a list", capture_list),
            *self._over_plain("edit one step", edit, plain),
            *self._over_first("edit one step", edit),
        ]

    def _over_plain(self, name: str, task: Task, plain: Task) -> list[Comparison]:
        return mark_least([self._compare(name, side, task, "its plain forward", side, plain) for side in self.sides])

    def _over_first(self, name: str, task: Task) -> list[Comparison]:
        first, *others = self.sides
        results = [self._compare(name, side, task, first.name, first, task) for side in others]
        unmeasured = "" if any(isinstance(side, NNsight) for side in others) else "; nnsight not measured"
        return [
            replace(result, note=who_is_ahead(result, side.name, first.name) + unmeasured)
            for result, side in zip(results, others, strict=True)
        ]

    def _compare(self, name: str, side: Side, task: Task, over: str, other: Side, other_task: Task) -> Comparison:
        return compare(
            f"{name}, T = {self.tokens.shape[1]}, batch {len(self.tokens):,}: {side.name} over {over}",
            lambda: task(side),
            lambda: other_task(other),
            self.threads,
            self.rounds,
        )


def mark_least(results: list[Comparison]) -> list[Comparison]:
    """Note the least of the median ratios, or those that are level with it."""
    least = min(result.ratio_median for result in results)
    lowest = [result for result in results if result.ratio_median <= least * LEVEL]
    note = "least overhead" if len(lowest) == 1 else "among the least"
    return [replace(result, note=note if result in lowest else "") for result in results]


def who_is_ahead(result: Comparison, measured: str, baseline: str) -> str:
    """By the median, and whether that holds in every round."""
    if 1 / LEVEL <= result.ratio_median <= LEVEL:
        return "level"
    ahead = baseline if result.ratio_median > 1 else measured
    in_every_round = result.ratio_min > 1 or result.ratio_max < 1
    return f"{ahead} ahead{'' if in_every_round else ', not in every round'}"
