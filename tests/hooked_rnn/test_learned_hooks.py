"""Parameters inside hooks, and attribution patching."""

from collections.abc import Callable

import pytest
import torch
from causality import (
    BATCH,
    LABELS,
    STEPS,
    TOKENS,
    Point,
    assert_same_parameter_gradients,
    by_hand,
    edit_at,
    every_point_of_cells,
    exact,
    few_architectures,
    gradient_of,
    in_place,
    integers,
    make_model,
    mean_loss,
    name_of,
    random,
    returned,
    step_points_of_cells,
    width_of,
)
from reference import Edits, points
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint


@every_point_of_cells
@pytest.mark.parametrize("edit_in_place", [True, False])
@pytest.mark.parametrize("start", [random, torch.ones])
def test_a_mask_that_is_learned_gets_its_exact_gradient(
    cell: str, point: Point, edit_in_place: bool, start: Callable
) -> None:
    model = make_model(cell=cell)
    mask = start(width_of(model, point)).double().requires_grad_()  # ones change no value, and have a gradient

    def apply(x: Tensor, hook: HookPoint) -> Tensor | None:
        return x.mul_(mask) if edit_in_place else x * mask

    loss = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), apply)], return_type="loss", labels=LABELS)
    expected = by_hand(model, edit_at(point, range(STEPS), lambda x: x * mask))
    wanted = mean_loss(expected.logits)
    assert_close(
        torch.autograd.grad(loss, mask, retain_graph=True),
        torch.autograd.grad(wanted, mask, retain_graph=True),
        **exact,
    )
    assert_same_parameter_gradients(model, loss, expected, wanted)


@every_point_of_cells
def test_a_steering_vector_for_each_position_gets_its_exact_gradient_in_a_frozen_model(cell: str, point: Point) -> None:
    model = make_model(cell=cell).requires_grad_(False)
    steer = random(STEPS, width_of(model, point), seed=4).requires_grad_()
    loss = model.run_with_hooks(
        TOKENS, fwd_hooks=[(name_of(point), lambda x, hook: x + steer)], return_type="loss", labels=LABELS
    )
    expected = by_hand(model, {(*point, t): lambda x, t=t: x + steer[t] for t in range(STEPS)})
    assert_close(torch.autograd.grad(loss, steer), torch.autograd.grad(mean_loss(expected.logits), steer), **exact)


def mixing_edits(point: Point, weight: Tensor) -> Edits:
    """Step t adds a multiple of all that arrived at earlier steps."""
    arrived: list[Tensor] = []

    def at(t: int) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            arrived.append(x)
            return x + weight * sum(arrived[:t], torch.zeros_like(x))

        return edit

    return {(*point, t): at(t) for t in range(STEPS)}


@step_points_of_cells
@pytest.mark.parametrize("watched", [True, False])
def test_a_hook_that_reads_earlier_positions_gets_exact_values_and_gradients(
    cell: str, point: Point, watched: bool
) -> None:
    model = make_model(cell=cell)
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def mix(x: Tensor, hook: HookPoint) -> Tensor:
        edited = x.clone()
        edited[:, hook.step] = x[:, hook.step] + weight * x[:, : hook.step].sum(1)
        return edited

    backward = [(name_of(point), lambda grad, hook: None)] if watched else []
    expected = by_hand(model, mixing_edits(point, weight))
    wanted = mean_loss(expected.logits)
    with model.hooks(fwd_hooks=[(name_of(point), mix)], bwd_hooks=backward):
        loss = model(TOKENS, return_type="loss", labels=LABELS)
        assert_close(loss, wanted, **exact)
        assert_same_parameter_gradients(model, loss, expected, wanted)
        assert_close(torch.autograd.grad(loss, weight), torch.autograd.grad(wanted, weight, retain_graph=True), **exact)


@every_point_of_cells
def test_a_penalty_on_the_activations_that_a_hook_kept_is_part_of_the_gradient(cell: str, point: Point) -> None:
    model, kept = make_model(cell=cell), []
    with model.hooks(fwd_hooks=[(name_of(point), lambda x, hook: kept.append(x))]):
        loss = model(TOKENS, return_type="loss", labels=LABELS)
    expected = by_hand(model)
    penalty = expected.stacked(*point).pow(2).sum()
    assert_same_parameter_gradients(model, loss + kept[-1].pow(2).sum(), expected, mean_loss(expected.logits) + penalty)


@pytest.mark.parametrize("way", [returned, in_place])
@few_architectures
def test_a_patched_in_activation_carries_its_own_graph(n_layers: int, act_fn: str, bias: bool, way: Callable) -> None:
    model = make_model(n_layers, act_fn, bias)
    for point in points(n_layers):
        other = random(width_of(model, point), seed=6).requires_grad_()
        with model.hooks(fwd_hooks=[(name_of(point), way(lambda x, o=other: o.expand_as(x).tanh(), 1))]):
            loss = model(TOKENS, return_type="loss", labels=LABELS)
        expected = by_hand(model, {(*point, 1): lambda x, o=other: o.expand_as(x).tanh()})
        wanted = torch.autograd.grad(mean_loss(expected.logits), other)
        assert_close(torch.autograd.grad(loss, other), wanted, **exact)


@every_point_of_cells
def test_attribution_patching_agrees_with_finite_differences(cell: str, point: Point) -> None:
    model, step = make_model(cell=cell), 1e-5
    clean, corrupted = TOKENS, integers(BATCH, STEPS, seed=9)
    _, clean_cache = model.run_with_cache(clean, names_filter=name_of(point))
    _, cache = model.run_with_cache(
        corrupted, return_type="loss", labels=LABELS, incl_bwd=True, names_filter=name_of(point)
    )
    difference = clean_cache[name_of(point)] - cache[name_of(point)]
    attributed = (difference * gradient_of(cache, point)).sum(dim=(0, 2))

    def patched(t: int, size: float) -> float:
        hook = returned(lambda x: x + size * difference[:, t], t)
        with torch.no_grad(), model.hooks(fwd_hooks=[(name_of(point), hook)]):
            return model(corrupted, return_type="loss", labels=LABELS).item()

    measured = [(patched(t, step) - patched(t, -step)) / (2 * step) for t in range(STEPS)]
    assert attributed.abs().max() > 1e-4
    assert_close(attributed, torch.tensor(measured, dtype=torch.float64), rtol=1e-6, atol=1e-8)
