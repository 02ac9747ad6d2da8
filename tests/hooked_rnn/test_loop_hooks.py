"""What a hook in the time loop is given, what looking costs, and the plain path."""

import copy
import itertools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from causality import (
    BATCH,
    LABELS,
    ONCE_POINTS,
    STEP_KINDS,
    STEPS,
    TOKENS,
    Hook,
    Point,
    by_hand,
    doubled,
    doubled_in_place,
    edit_at,
    every_cell,
    every_point_and_a_few_gated,
    every_point_of_cells,
    exact,
    integers,
    make_model,
    name_of,
    nonlinear,
    once_points,
    random_state,
    step_points_of_cells,
)
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import ObservingHook
from hooked_rnn.hook_points import StepHookPoint


@step_points_of_cells
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_counting_hook_fires_once_a_step_in_time_order(cell: str, point: Point, grad: bool) -> None:
    model, steps = make_model(cell=cell), []
    with (
        torch.set_grad_enabled(grad),
        model.hooks(fwd_hooks=[(name_of(point), lambda x, hook: steps.append((hook.step, hook.n_steps)))]),
    ):
        model(TOKENS)
    assert steps == [(t, STEPS) for t in range(STEPS)]


@once_points
def test_a_hook_outside_the_loop_fires_once_and_has_no_step(point: Point) -> None:
    model, steps = make_model(), []
    hook = (name_of(point), lambda x, hook: steps.append((hook.step, hook.n_steps)))
    with model.hooks(fwd_hooks=[hook], bwd_hooks=[hook]):
        model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert steps == [(None, None)] * 2


@step_points_of_cells
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_hook_is_given_what_arrived_so_far_and_zeros_beyond(cell: str, point: Point, grad: bool) -> None:
    model, given = make_model(cell=cell), []

    def watch(x: Tensor, hook: HookPoint) -> Tensor:
        given.append(x.clone())
        return nonlinear(x)  # what arrives later feels it; what is shown of earlier steps is what arrived

    arrived: list[Tensor] = []

    def edit(x: Tensor) -> Tensor:
        arrived.append(x)
        return nonlinear(x)

    by_hand(model, edit_at(point, range(STEPS), edit))
    with torch.set_grad_enabled(grad):
        model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), watch)])
    for t, x in enumerate(given):
        assert_close(x[:, : t + 1], torch.stack(arrived[: t + 1], dim=1), **exact)
        assert not x[:, t + 1 :].any()


class Watch(ObservingHook):
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[int | None, Tensor]] = []

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        self.given.append((hook.step, tensor))


@every_point_of_cells
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_an_observing_hook_is_called_once_with_everything(cell: str, point: Point, grad: bool) -> None:
    model, watch = make_model(cell=cell), Watch()
    with torch.set_grad_enabled(grad):
        model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), watch)])
    ((step, tensor),) = watch.given
    assert step == (STEPS - 1 if point[0] in STEP_KINDS else None)
    assert not tensor.requires_grad
    assert_close(tensor, by_hand(model).stacked(*point).detach(), **exact)


@step_points_of_cells
def test_without_autograd_a_hook_that_looks_is_given_two_tensors_however_many_steps(cell: str, point: Point) -> None:
    model, given = make_model(cell=cell), []
    tokens = integers(BATCH, 16)
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[(name_of(point), lambda x, hook: given.append(x))])
    assert len(given) == 16
    assert len({x.untyped_storage().data_ptr() for x in given}) <= 2  # one that fills, one rebuilt at the end


def edges(output: Tensor) -> int:
    """How many edges its autograd graph has."""
    seen, queue, count = set(), [output.grad_fn], 0
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            count += len(node.next_functions)
            queue.extend(following for following, _ in node.next_functions)
    return count


@every_point_of_cells
def test_a_hook_makes_the_graph_longer_by_a_constant_a_step(cell: str, point: Point) -> None:
    model = make_model(cell=cell)

    def cost(n_steps: int, hook: Hook) -> int:
        return edges(model.run_with_hooks(integers(BATCH, n_steps), fwd_hooks=[(name_of(point), hook)]))

    for hook in (lambda x, hook: None, lambda x, hook: x, doubled, doubled_in_place):
        assert cost(32, hook) < 2.2 * cost(16, hook)
    if point[0] in STEP_KINDS:
        assert cost(32, sum_of_all_given()) > 2.2 * cost(16, sum_of_all_given())


def sum_of_all_given() -> Hook:
    """At each step, the sum of all tensors that the hook was given so far."""
    given: list[Tensor] = []

    def hook(x: Tensor, hook: HookPoint) -> Tensor:
        given.append(x)
        return torch.stack(given).sum(0)

    return hook


@step_points_of_cells
def test_an_observing_hook_has_one_tensor_in_the_backward_pass(cell: str, point: Point) -> None:
    model, watch = make_model(cell=cell), Watch()
    with model.hooks(bwd_hooks=[(name_of(point), watch)]):
        model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert [step for step, _ in watch.given] == list(reversed(range(STEPS)))
    assert len({x.untyped_storage().data_ptr() for _, x in watch.given}) == 1


@every_point_and_a_few_gated
@pytest.mark.parametrize("start", [None, 1], ids=["zeros", "initial_state"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_hooked_path_gives_the_plain_path_s_bits(
    cell: str, point: Point, start: int | None, dtype: torch.dtype
) -> None:
    for act_fn, bias in itertools.product(("relu", "tanh"), (True, False)):
        if cell != "rnn" and act_fn != "tanh":
            continue
        model = make_model(2, act_fn, bias, cell=cell).to(dtype)
        state = None if start is None else random_state(model, dtype)
        plain = model(TOKENS, initial_state=state)
        for hook in (Watch(), lambda x, hook: None, lambda x, hook: x):
            hooked = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), hook)], initial_state=state)
            assert torch.equal(hooked, plain)


@every_cell
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_on_a_copy_a_hook_is_told_the_step_of_the_copy(cell: str, direction: str) -> None:
    model, seen = make_model(cell=cell), []
    point = model.hook_dict["blocks.1.hook_hidden"]
    point.add_hook(lambda x, hook: seen.append((hook.step, hook.n_steps)), dir=direction)
    twin = copy.deepcopy(model)
    twin(TOKENS).sum().backward()
    order = range(STEPS) if direction == "fwd" else reversed(range(STEPS))
    assert seen == [(t, STEPS) for t in order]
    assert (point.step, point.n_steps) == (None, None)
    seen.clear()
    pickle.loads(pickle.dumps(make_model(cell=cell)))(TOKENS)  # a model of its own
    assert seen == []


@step_points_of_cells
def test_each_thread_has_steps_of_its_own(cell: str, point: Point) -> None:
    """One thread runs a whole pass while another is in the middle of one."""
    model, first, seen = make_model(cell=cell), threading.get_ident(), []
    plain = model(TOKENS)

    def edit(x: Tensor, hook: HookPoint) -> Tensor | None:
        step = hook.step
        if step == 1 and threading.get_ident() == first:
            with ThreadPoolExecutor(1) as pool:
                others.append(pool.submit(model, TOKENS[:, :3]).result())
        seen.append((step, hook.step))
        return 2 * x if hook.step == 1 else None

    others: list[Tensor] = []
    logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), edit)])
    assert seen == [(t, t) for t in (0, 0, 1, 2, 1, 2, 3)]
    expected = by_hand(model, {(*point, 1): lambda x: 2 * x}).logits
    assert_close(logits, expected, **exact)
    assert_close(others[0], expected[:, :3], **exact)
    assert not torch.allclose(logits, plain)


def test_a_layer_without_hooks_in_its_loop_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looped = make_model(), []
    loop = StepHookPoint.loop

    def watched(self: StepHookPoint, n_steps: int) -> Any:
        looped.append(self.name)
        return loop(self, n_steps)

    monkeypatch.setattr(StepHookPoint, "loop", watched)
    model(TOKENS)
    for point in ONCE_POINTS:
        model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), doubled)])
    assert looped == []
    model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_preact", doubled)])
    assert {name.split(".")[1] for name in looped} == {"1"}
