"""Gradients at every point and position are those of the unrolled network."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from causality import (
    ALL_POINTS,
    ANSWERS,
    BATCH,
    LABELS,
    STEPS,
    TOKENS,
    Hook,
    Point,
    architectures,
    assert_same_parameter_gradients,
    by_hand,
    doubled,
    doubled_in_place,
    edit_at,
    every_cell,
    every_point_of_cells,
    exact,
    few_architectures,
    gated_cells,
    gradient_of,
    in_place,
    make_model,
    mean_loss,
    name_of,
    nonlinear,
    of_cells,
    parameter_gradients,
    random,
    random_state,
    returned,
    step_points_of_cells,
    width_of,
)
from reference import points
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint


@architectures
def test_cached_gradients_are_the_total_gradients_at_each_position(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    expected = by_hand(model)
    _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    for point in points(n_layers):
        assert_close(gradient_of(cache, point), expected.gradient(mean_loss(expected.logits), *point), **exact)
    for (name, parameter), grad in zip(model.named_parameters(), parameter_gradients(model, expected), strict=True):
        assert_close(parameter.grad, grad, **exact, msg=lambda m, name=name: f"{name}: {m}")


@gated_cells
@pytest.mark.parametrize("bias", [True, False])
def test_cached_gradients_of_a_gated_cell_are_the_total_gradients_at_each_position(cell: str, bias: bool) -> None:
    model = make_model(bias=bias, cell=cell)
    expected = by_hand(model)
    loss = mean_loss(expected.logits)
    _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    for point in points(2, cell):
        assert_close(gradient_of(cache, point), expected.gradient(loss, *point), **exact)
        _, alone = model.run_with_cache(
            TOKENS, return_type="loss", labels=LABELS, incl_bwd=True, names_filter=name_of(point)
        )
        assert_close(gradient_of(alone, point), gradient_of(cache, point), **exact)
    model.zero_grad()
    model(TOKENS, return_type="loss", labels=LABELS).backward()
    for parameter, grad in zip(model.parameters(), parameter_gradients(model, expected), strict=True):
        assert_close(parameter.grad, grad, **exact)


@gated_cells
def test_the_carry_before_the_first_step_has_its_gradient(cell: str) -> None:
    model = make_model(cell=cell)
    for start in (None, random_state(model)):
        expected = by_hand(model, initial_state=start)
        _, cache = model.run_with_cache(
            TOKENS,
            return_type="loss",
            labels=LABELS,
            incl_bwd=True,
            initial_state=start,
            names_filter="blocks.0.hook_carry",
        )
        assert_close(
            gradient_of(cache, ("carry", 0)), expected.gradient(mean_loss(expected.logits), "carry", 0), **exact
        )
        assert gradient_of(cache, ("carry", 0))[:, 0].any()


@every_point_of_cells
def test_what_a_constant_leads_to_has_its_gradient_too(cell: str, point: Point) -> None:
    model, t = make_model(cell=cell), 2
    constant = random(BATCH, width_of(model, point), seed=2)
    expected = by_hand(model, {(*point, t): lambda x: constant})

    def patch(x: Tensor, hook: HookPoint) -> Tensor:
        patched = x.detach() if hook.step == t else x.clone()  # nothing that follows in this step has a graph
        if hook.step in (None, t):
            patched[:, t] = constant
        return patched

    with model.hooks(fwd_hooks=[(name_of(point), patch)]):
        _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    for other in points(2, cell):
        assert_close(gradient_of(cache, other), expected.gradient(mean_loss(expected.logits), *other), **exact)


@few_architectures
def test_a_gradient_is_total_also_where_only_one_point_is_watched(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    expected = by_hand(model)
    for point in points(n_layers):
        _, cache = model.run_with_cache(
            TOKENS, return_type="loss", labels=LABELS, incl_bwd=True, names_filter=name_of(point)
        )
        assert_close(gradient_of(cache, point), expected.gradient(mean_loss(expected.logits), *point), **exact)


@every_point_of_cells
@pytest.mark.parametrize("way", [returned, in_place])
def test_gradients_are_total_under_a_forward_edit(cell: str, point: Point, way: Callable) -> None:
    model = make_model(cell=cell)
    expected = by_hand(model, edit_at(point, [1], nonlinear))
    with model.hooks(fwd_hooks=[(name_of(point), way(nonlinear, 1))]):
        loss, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    assert_close(loss, mean_loss(expected.logits), **exact)
    for other in points(2, cell):
        assert_close(gradient_of(cache, other), expected.gradient(mean_loss(expected.logits), *other), **exact)
    for parameter, grad in zip(model.parameters(), parameter_gradients(model, expected), strict=True):
        assert_close(parameter.grad, grad, **exact)


@every_point_of_cells
def test_gradients_are_total_where_the_hook_edits_every_position(cell: str, point: Point) -> None:
    model = make_model(cell=cell)
    expected = by_hand(model, edit_at(point, range(STEPS), nonlinear))
    with model.hooks(fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))]):
        _, cache = model.run_with_cache(
            TOKENS, return_type="loss", labels=LABELS, incl_bwd=True, names_filter=name_of(point)
        )
    assert_close(gradient_of(cache, point), expected.gradient(mean_loss(expected.logits), *point), **exact)
    for parameter, grad in zip(model.parameters(), parameter_gradients(model, expected), strict=True):
        assert_close(parameter.grad, grad, **exact)


@every_point_of_cells
@pytest.mark.parametrize("t", range(STEPS))
def test_a_constant_that_was_patched_in_has_its_gradient_too(cell: str, point: Point, t: int) -> None:
    model = make_model(cell=cell)
    constant = random(BATCH, width_of(model, point), seed=2)
    start = random_state(model)
    expected = by_hand(model, {(*point, t): lambda x: constant.clone().requires_grad_()}, initial_state=start)

    def patch(x: Tensor, hook: HookPoint) -> Tensor | None:
        if hook.step not in (None, t):
            return None
        patched = x.detach().clone() if hook.step == t else x.clone()  # cut off from the graph, where that is one step
        patched[:, t] = constant
        return patched

    with model.hooks(fwd_hooks=[(name_of(point), patch)]):
        _, cache = model.run_with_cache(
            TOKENS, return_type="loss", labels=LABELS, incl_bwd=True, names_filter=name_of(point), initial_state=start
        )
    assert_close(gradient_of(cache, point), expected.gradient(mean_loss(expected.logits), *point), **exact)
    assert gradient_of(cache, point)[:, t].any()


@pytest.mark.parametrize("t", range(STEPS))
def test_gradients_are_zero_where_the_loss_does_not_reach(t: int) -> None:
    model = make_model(3, "tanh", True)
    labels = torch.full_like(LABELS, -100)
    labels[:, t] = LABELS[:, t]
    expected = by_hand(model)
    wanted = mean_loss(expected.logits[:, t], labels[:, t])
    _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=labels, incl_bwd=True)
    for point in points(3):
        assert_close(gradient_of(cache, point), expected.gradient(wanted, *point), **exact)
        assert not gradient_of(cache, point)[:, t + 1 :].any()


def test_gradients_are_total_where_only_the_last_position_is_unembedded() -> None:
    model = make_model(3, "tanh", True)
    expected = by_hand(model)
    wanted = mean_loss(expected.logits[:, -1], LABELS[:, -1])
    _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS[:, -1], logits_to_keep=1, incl_bwd=True)
    for point in points(3)[:-1]:
        assert_close(gradient_of(cache, point), expected.gradient(wanted, *point), **exact)
    assert gradient_of(cache, ("logits", None)).shape == (BATCH, 1, ANSWERS)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Uninitialized memory holds NaN, so that reading it shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("t", range(STEPS))
@pytest.mark.parametrize("layer", [0, 1])
def test_a_step_that_an_edit_cut_off_has_gradient_zero(layer: int, t: int) -> None:
    model = make_model()
    expected = by_hand(model, {("hidden", layer, t): torch.ones_like})
    watched = [(kind, layer) for kind in ("input", "recurrent", "preact")]

    def replace(x: Tensor, hook: HookPoint) -> Tensor | None:
        return torch.ones_like(x) if hook.step == t else None

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_hidden", replace)]):
        _, cache = model.run_with_cache(
            TOKENS,
            return_type="loss",
            labels=LABELS,
            incl_bwd=True,
            names_filter=[name_of(point) for point in watched],
        )
    for point in watched:
        assert_close(gradient_of(cache, point), expected.gradient(mean_loss(expected.logits), *point), **exact)
        assert not gradient_of(cache, point)[:, t].any()


@pytest.mark.usefixtures("poisoned_memory")
@every_cell
@pytest.mark.parametrize("t", range(STEPS))
def test_in_a_frozen_model_gradients_are_total(cell: str, t: int) -> None:
    frozen, model = make_model(cell=cell).requires_grad_(False), make_model(cell=cell)
    steer = random(4).requires_grad_()

    def add(x: Tensor, hook: HookPoint) -> Tensor | None:
        return x + steer if hook.step == t else None

    for hooks in ([], [("blocks.0.hook_hidden", add)]):
        with frozen.hooks(fwd_hooks=hooks):
            _, cache = frozen.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
        expected = by_hand(model, {("hidden", 0, t): lambda x: x + steer} if hooks else None)
        loss = mean_loss(expected.logits)
        for point in points(2, cell):
            assert_close(gradient_of(cache, point), expected.gradient(loss, *point), **exact)
    assert_close(steer.grad, torch.autograd.grad(loss, steer)[0], **exact)


@every_point_of_cells
def test_a_second_backward_pass_starts_anew(cell: str, point: Point) -> None:
    model, seen = make_model(cell=cell), []
    expected = by_hand(model)

    def watch(grad: Tensor, hook: HookPoint) -> None:
        seen.append(grad.clone())

    with model.hooks(bwd_hooks=[(name_of(point), watch)]):
        logits = model(TOKENS)
        early, late = mean_loss(logits[:, 1], LABELS[:, 1]), mean_loss(logits)
        for loss, wanted in (
            (early, mean_loss(expected.logits[:, 1], LABELS[:, 1])),
            (late, mean_loss(expected.logits)),
            (early, mean_loss(expected.logits[:, 1], LABELS[:, 1])),
            (late, mean_loss(expected.logits)),
            (late, mean_loss(expected.logits)),
        ):
            loss.backward(retain_graph=True)
            assert_close(seen[-1], expected.gradient(wanted, *point), **exact)


def test_a_backward_pass_that_visits_some_steps_shows_nothing_of_an_earlier_one() -> None:
    model, kept, seen = make_model(1), [], []
    steer = torch.zeros(4, dtype=torch.float64, requires_grad=True)

    def add(x: Tensor, hook: HookPoint) -> Tensor | None:
        return x + steer if hook.step == 2 else None

    expected = by_hand(model)
    early = expected.gradient(sum(value.sum() for value in expected.at("hidden", 0)[:2]), "preact", 0)
    assert not early[:, 2:].any()
    with model.hooks(
        fwd_hooks=[("blocks.0.hook_recurrent", add), ("blocks.0.hook_hidden", lambda x, hook: kept.append(x))],
        bwd_hooks=[("blocks.0.hook_preact", lambda grad, hook: seen.append((hook.step, grad.clone())))],
    ):
        loss = model(TOKENS, return_type="loss", labels=LABELS)
        for inputs, visited in (([steer], [3, 2]), (list(model.parameters()), [3, 2, 1, 0])):
            seen.clear()
            torch.autograd.grad(loss, inputs, retain_graph=True)
            assert [step for step, _ in seen] == visited
            torch.autograd.grad(kept[1].sum(), model.W_E, retain_graph=True)
            assert_close(seen[-1][1], early, **exact)


@every_point_of_cells
def test_a_cached_gradient_is_not_changed_by_a_second_backward_pass(cell: str, point: Point) -> None:
    model, name = make_model(cell=cell), name_of(point)
    steer = torch.zeros(BATCH, STEPS, width_of(model, point), dtype=torch.float64, requires_grad=True)
    model.add_hook(name, lambda x, hook: x + steer)
    cache = model.add_caching_hooks(name, incl_bwd=True)
    loss = model(TOKENS, return_type="loss", labels=LABELS)
    loss.backward(retain_graph=True)
    kept, before = cache[f"{name}_grad"], cache[f"{name}_grad"].clone()
    loss.backward()
    assert torch.equal(kept, before)
    assert_close(steer.grad, 2 * before, **exact)


@every_point_of_cells
def test_a_cached_gradient_is_not_changed_with_the_gradient_of_a_tensor_that_a_hook_patched_in(
    cell: str, point: Point
) -> None:
    model, name = make_model(cell=cell), name_of(point)
    patch = random(BATCH, STEPS, width_of(model, point)).requires_grad_()
    model.add_hook(name, lambda x, hook: patch)
    cache = model.add_caching_hooks(name, incl_bwd=True)
    model(TOKENS, return_type="loss", labels=LABELS).backward()
    before = cache[f"{name}_grad"].clone()
    assert_close(patch.grad, before, **exact)
    patch.grad.zero_()
    assert torch.equal(cache[f"{name}_grad"], before)
    assert before.any()


@step_points_of_cells
def test_backward_hooks_run_from_the_last_step_to_the_first_with_later_positions_filled(
    cell: str, point: Point
) -> None:
    model, seen = make_model(cell=cell), []
    expected = by_hand(model)
    wanted = expected.gradient(mean_loss(expected.logits), *point)

    def watch(grad: Tensor, hook: HookPoint) -> None:
        seen.append((hook.step, hook.n_steps))
        assert_close(grad[:, hook.step :], wanted[:, hook.step :], **exact)
        assert not grad[:, : hook.step].any()

    with model.hooks(bwd_hooks=[(name_of(point), watch)]):
        model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert seen == [(t, STEPS) for t in reversed(range(STEPS))]


@every_point_of_cells
@pytest.mark.parametrize("spoil", [doubled_in_place, lambda grad, hook: grad.data.zero_()])
def test_what_a_backward_hook_kept_is_not_changed_by_a_later_hook(cell: str, point: Point, spoil: Hook) -> None:
    model, name, kept = make_model(cell=cell), name_of(point), []
    expected = by_hand(model)
    wanted = expected.gradient(mean_loss(expected.logits), *point)

    def spoil_and_keep_nothing(grad: Tensor, hook: HookPoint) -> None:
        if hook.step in (None, 0):  # so that the gradient which arrives is not the spoilt one
            spoil(grad, hook)

    model.add_hook(name, lambda grad, hook: kept.append(grad), dir="bwd")
    cache = model.add_caching_hooks(name, incl_bwd=True)
    model.add_hook(name, spoil_and_keep_nothing, dir="bwd")
    last = model.add_caching_hooks(name, incl_bwd=True)
    model(TOKENS, return_type="loss", labels=LABELS).backward()
    for grad in (kept[-1], cache[f"{name}_grad"], last[f"{name}_grad"]):
        assert_close(grad, wanted, **exact)


def gradient_returned(grad: Tensor, hook: HookPoint) -> Tensor:
    return nonlinear(grad)


def gradient_returned_as_a_tuple(grad: Tensor, hook: HookPoint) -> tuple[Tensor]:
    return (nonlinear(grad),)


def gradient_edited_in_place(grad: Tensor, hook: HookPoint) -> None:
    grad.copy_(nonlinear(grad))


@every_point_of_cells
@pytest.mark.parametrize("edit", [gradient_returned, gradient_returned_as_a_tuple, gradient_edited_in_place])
def test_an_edited_gradient_flows_on_to_earlier_steps(cell: str, point: Point, edit: Hook) -> None:
    model = make_model(cell=cell)
    expected = by_hand(model)
    for value in expected.at(*point):
        value.register_hook(nonlinear)
    with model.hooks(bwd_hooks=[(name_of(point), edit)]):
        model(TOKENS, return_type="loss", labels=LABELS).backward()
    unedited = by_hand(model)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    for grad, wanted in zip(grads, parameter_gradients(model, expected), strict=True):
        assert_close(grad, wanted, **exact)
    assert any(not torch.allclose(g, w) for g, w in zip(grads, parameter_gradients(model, unedited), strict=True))


@every_point_of_cells
@pytest.mark.parametrize("t", range(STEPS))
def test_a_gradient_edited_at_one_position_is_edited_there_alone(cell: str, point: Point, t: int) -> None:
    model = make_model(cell=cell)
    expected = by_hand(model)
    expected.values[*point, t].register_hook(nonlinear)

    def at_t(grad: Tensor, hook: HookPoint) -> Tensor | None:
        if hook.step not in (None, t):
            return None
        edited = grad.clone()
        edited[:, t] = nonlinear(grad[:, t])
        return edited

    with model.hooks(bwd_hooks=[(name_of(point), at_t)]):
        loss = model(TOKENS, return_type="loss", labels=LABELS)
        assert_same_parameter_gradients(model, loss, expected, mean_loss(expected.logits))


@every_point_of_cells
def test_a_gradient_stopped_at_one_position_is_seen_stopped_by_earlier_steps(cell: str, point: Point) -> None:
    model, t = make_model(cell=cell), 2
    expected = by_hand(model)
    expected.values[*point, t].register_hook(torch.zeros_like)
    model.add_hook(name_of(point), in_place(torch.zeros_like, t), dir="bwd")
    _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    for other in points(2, cell):
        if other != point:
            assert_close(gradient_of(cache, other), expected.gradient(mean_loss(expected.logits), *other), **exact)


@every_point_of_cells
@pytest.mark.parametrize("edit", [doubled, doubled_in_place])
def test_a_forward_edit_and_a_backward_hook_share_a_point(cell: str, point: Point, edit: Hook) -> None:
    model, seen = make_model(cell=cell), []
    expected = by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2))
    hook = (name_of(point), lambda grad, hook: seen.append(grad.clone()))
    with model.hooks(fwd_hooks=[(name_of(point), edit)], bwd_hooks=[hook]):
        loss = model(TOKENS, return_type="loss", labels=LABELS)
        assert_same_parameter_gradients(model, loss, expected, mean_loss(expected.logits))
        loss.backward()
    assert_close(seen[-1], expected.gradient(mean_loss(expected.logits), *point), **exact)


@of_cells(ALL_POINTS, [("gru", ("carry", 1)), ("lstm", ("cell", 0))])
def test_a_forward_and_a_backward_hook_on_one_point_leave_no_memory_behind(cell: str, point: Point) -> None:
    model = make_model(cell=cell)

    def tensors_left_behind() -> int:
        with model.hooks(fwd_hooks=[(name_of(point), doubled)], bwd_hooks=[(name_of(point), lambda g, hook: g * 2)]):
            model(TOKENS, return_type="loss", labels=LABELS).backward()
        model.zero_grad()
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    after_one = tensors_left_behind()
    after_two = tensors_left_behind()
    assert after_two <= after_one


@every_point_of_cells
def test_a_hook_that_only_looks_does_not_change_a_gradient(cell: str, point: Point) -> None:
    model = make_model(cell=cell)
    plain = by_hand(model)
    for hook in (lambda x, hook: None, lambda x, hook: x, lambda x, hook: x.clone()):
        with model.hooks(fwd_hooks=[(name_of(point), hook)], bwd_hooks=[(name_of(point), hook)]):
            loss = model(TOKENS, return_type="loss", labels=LABELS)
            assert_same_parameter_gradients(model, loss, plain, mean_loss(plain.logits))


@step_points_of_cells
def test_second_derivatives_pass_through_hooked_points(cell: str, point: Point) -> None:
    model = make_model(cell=cell)
    direction = [random(*p.shape, seed=i) for i, p in enumerate(model.parameters())]

    def curvature(loss: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        return torch.autograd.grad(slope, list(model.parameters()), allow_unused=True)

    wanted = curvature(mean_loss(by_hand(model, edit_at(point, range(STEPS), nonlinear)).logits))
    hook = (name_of(point), lambda x, hook: nonlinear(x))
    with model.hooks(fwd_hooks=[hook], bwd_hooks=[(name_of(point), lambda grad, hook: None)]):
        got = curvature(model(TOKENS, return_type="loss", labels=LABELS))
    for left, right in zip(got, wanted, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            assert_close(left, right, **exact)
