"""What hooks cost where sequences are long, counted in elements and bytes, not in seconds."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from causality import Hook, Point, doubled, integers, name_of, random, step_points
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformer_lens.hook_points import HookPoint

from benchmarks.memory import Memory, memory_of
from hooked_rnn import HookedRNN, HookedRNNConfig, hook_points

STEPS, EDITED = 16, 5
POINT = "blocks.0.hook_hidden"


def of_length(n_steps: int) -> tuple[HookedRNN, Tensor]:
    """A network whose batch is large beside its width, so that the activations are most of the cost."""
    cfg = HookedRNNConfig(d_vocab=7, d_vocab_out=2, d_model=2, d_hidden=8, n_layers=2, seed=1)
    return HookedRNN(cfg), integers(16, n_steps)


class Elements(TorchDispatchMode):
    """Counts the elements that operations read and write; views cost nothing, repeated elements count once."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not any(returned.alias_info and not returned.alias_info.is_write for returned in function._schema.returns):
            tensors = (x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor))
            self.total += sum(min(x.numel(), x.untyped_storage().nbytes() // x.element_size()) for x in tensors)
        return result


Run = Callable[[HookedRNN, Tensor, str], Any]


def growth(run: Run, point: Point, n_steps: int = STEPS) -> float:
    """By what factor the count grows as the sequence becomes twice as long."""
    counts = []
    for length in (n_steps, 2 * n_steps):
        model, tokens = of_length(length)
        with Elements() as counted:
            run(model, tokens, name_of(point))
        counts.append(counted.total)
    return counts[1] / counts[0]


def plain(model: HookedRNN, tokens: Tensor, name: str) -> Any:
    return model(tokens)


def capture(model: HookedRNN, tokens: Tensor, name: str) -> Any:
    return model.run_with_cache(tokens, names_filter=name)


def capture_everything(model: HookedRNN, tokens: Tensor, name: str) -> Any:
    return model.run_with_cache(tokens)


def capture_gradients(model: HookedRNN, tokens: Tensor, name: str) -> Any:
    labels = tokens % model.cfg.d_vocab_out
    return model.run_with_cache(tokens, return_type="loss", labels=labels, incl_bwd=True)


def hooked(make_hook: Callable[[], Hook]) -> Run:
    def run(model: HookedRNN, tokens: Tensor, name: str) -> Any:
        return model.run_with_hooks(tokens, fwd_hooks=[(name, make_hook())])

    return run


def and_backward(run: Run) -> Run:
    def run_and_backward(model: HookedRNN, tokens: Tensor, name: str) -> None:
        result = run(model, tokens, name)
        (result[0] if isinstance(result, tuple) else result).pow(2).mean().backward()

    return run_and_backward


def edit_one_step() -> Hook:
    def edit(x: Tensor, hook: HookPoint) -> None:
        if hook.step == EDITED:
            x[:, EDITED] = 0

    return edit


def edit_one_step_returned() -> Hook:
    def edit(x: Tensor, hook: HookPoint) -> Tensor | None:
        return x * 2 if hook.step == EDITED else None

    return edit


def mix_at_one_step() -> Hook:
    weight = random(8).float().requires_grad_()

    def mix(x: Tensor, hook: HookPoint) -> Tensor | None:
        return x.mean(1, keepdim=True) * weight + x if hook.step == EDITED else None

    return mix


def look() -> Hook:
    return lambda x, hook: None


def patch_everything() -> Hook:
    clean = random(1, 1, 8).float()
    return lambda x, hook: clean.expand_as(x)


def edit_own_row() -> Hook:
    def edit(x: Tensor, hook: HookPoint) -> None:
        x[:, hook.step] *= 0.5

    return edit


def keep_everything() -> Hook:
    kept: list[Tensor] = []
    return lambda x, hook: kept.append(x)


def double() -> Hook:
    return doubled


HOOKS = [look, edit_one_step, edit_one_step_returned, mix_at_one_step, patch_everything]


@step_points
@pytest.mark.parametrize("run", [plain, capture, capture_everything, *map(hooked, [*HOOKS, edit_own_row])])
def test_without_autograd_twice_the_length_costs_twice_as_much(run: Run, point: Point) -> None:
    with torch.no_grad():
        assert growth(run, point) < 2.1


@step_points
@pytest.mark.parametrize("run", [plain, capture, capture_everything, *map(hooked, HOOKS)])
@pytest.mark.parametrize("backward", [False, True])
def test_under_autograd_twice_the_length_costs_twice_as_much(run: Run, backward: bool, point: Point) -> None:
    assert growth(and_backward(run) if backward else run, point) < 2.1


def test_what_the_backward_pass_does_is_counted() -> None:
    model, tokens = of_length(STEPS)
    with Elements() as counted:
        output = model(tokens)
        forward = counted.total
        output.mean().backward()
    assert counted.total > 2 * forward


def test_gradients_in_a_cache_cost_twice_as_much_at_twice_the_length() -> None:
    assert growth(capture_gradients, ("hidden", 0)) < 2.1


@step_points
@pytest.mark.parametrize("make_hook", [double, keep_everything])
def test_control_a_hook_that_works_on_or_keeps_each_tensor_costs_more(make_hook: Callable, point: Point) -> None:
    run = hooked(make_hook)
    assert growth(run, point) > 2.5
    assert growth(and_backward(run), point) > 2.5


@pytest.mark.parametrize("make_hook", HOOKS)
def test_control_a_new_tensor_at_each_step_costs_more(make_hook: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_points._LinkedRows, "_reusable", lambda rows: None)
    assert growth(hooked(make_hook), ("hidden", 0)) > 2.5


# Memory


def captured_and_above(run: Run, n_steps: int) -> tuple[int, Memory]:
    """Bytes of the hidden states, and what the pass takes more than a plain forward pass."""
    model, tokens = of_length(n_steps)
    with torch.no_grad():
        taken, plainly = (memory_of(lambda each=each: each(model, tokens, POINT)) for each in (run, plain))
    above = Memory(taken.peak - plainly.peak, taken.held - plainly.held)
    return tokens.numel() * model.cfg.d_hidden * 4, above


def capture_to_the_cpu(model: HookedRNN, tokens: Tensor, name: str) -> Any:
    return model.run_with_cache(tokens, names_filter=name, device="cpu")


@pytest.mark.parametrize("run", [capture, capture_to_the_cpu])
@pytest.mark.parametrize("n_steps", [64, 256])
def test_the_peak_of_a_capture_is_above_that_of_the_plain_pass_by_what_it_captures_at_most(
    run: Run, n_steps: int
) -> None:
    captured, above = captured_and_above(run, n_steps)
    assert above.peak < 1.2 * captured
    assert captured <= above.held < 1.1 * captured  # it is there at the end: the plain pass had it at its own peak


def test_control_keeping_each_tensor_takes_more_memory_than_what_it_shows() -> None:
    captured, above = captured_and_above(copy_at_each_step, 64)
    assert above.peak > 1.2 * captured


def copy_at_each_step(model: HookedRNN, tokens: Tensor, name: str) -> Sequence[Tensor]:
    copies: list[Tensor] = []
    model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: copies.append(x.clone()))])
    return copies


@pytest.mark.parametrize("make_hook", HOOKS)
def test_under_autograd_the_peak_grows_with_the_length(make_hook: Callable) -> None:
    def peak(n_steps: int) -> int:
        model, tokens = of_length(n_steps)
        return memory_of(lambda: hooked(make_hook)(model, tokens, POINT).mean().backward()).peak

    assert peak(2 * STEPS) < 2.2 * peak(STEPS)


class Moves(TorchDispatchMode):
    """Shapes of the tensors that are copied to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        moved = isinstance(result, Tensor) and result.is_meta
        if moved and any(isinstance(x, Tensor) and not x.is_meta for x in tree_leaves(args)):
            self.shapes.append(tuple(result.shape))
        return result


@step_points
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_capture_for_another_device_is_moved_once_and_whole(grad: bool, point: Point) -> None:
    model, tokens = of_length(STEPS)
    with torch.set_grad_enabled(grad), Moves() as moves:
        _, cache = model.run_with_cache(tokens, names_filter=name_of(point), device="meta")
    assert moves.shapes == [(16, STEPS, 8)]
    assert cache[name_of(point)].is_meta


def test_control_a_hook_that_moves_what_it_is_given_does_so_at_each_step() -> None:
    model, tokens = of_length(STEPS)
    with Moves() as moves:
        model.run_with_hooks(tokens, fwd_hooks=[(POINT, lambda x, hook: keep_elsewhere(x))])
    assert len(moves.shapes) == STEPS


def keep_elsewhere(x: Tensor) -> None:
    x.detach().to("meta")
