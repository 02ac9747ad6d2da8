"""Caches before and after an edit; no hook sees or spoils another's tensor."""

from collections.abc import Callable

import pytest
import torch
from causality import (
    BATCH,
    STEPS,
    TOKENS,
    WAYS,
    Hook,
    Point,
    architectures,
    by_hand,
    doubled_in_place,
    edit_at,
    every_cell,
    every_point_of_cells,
    exact,
    integers,
    make_model,
    name_of,
    nonlinear,
    step_points_of_cells,
)
from reference import points
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint


@every_point_of_cells
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("way", WAYS)
def test_a_cache_shows_the_edits_made_before_it_and_not_those_after_it(
    cell: str, point: Point, grad: bool, way: Callable
) -> None:
    model, name, t = make_model(cell=cell), name_of(point), 1
    edited = by_hand(model, edit_at(point, [t], nonlinear)).stacked(*point)
    before = edited.clone()
    before[:, t] = by_hand(model).stacked(*point)[:, t]  # later positions feel the edit all the same
    with torch.set_grad_enabled(grad):
        first = model.add_caching_hooks(name)
        model.add_hook(name, way(nonlinear, t))
        last = model.add_caching_hooks(name)
        model(TOKENS)
    assert_close(first[name], before.detach(), **exact)
    assert_close(last[name], edited.detach(), **exact)


@every_cell
@architectures
def test_a_cache_holds_every_activation_of_the_unrolled_network(
    n_layers: int, act_fn: str, bias: bool, cell: str
) -> None:
    model = make_model(n_layers, act_fn, bias, cell=cell)
    expected = by_hand(model)
    _, cache = model.run_with_cache(TOKENS)
    assert list(cache) == [name_of(point) for point in points(n_layers, cell)]  # in firing order
    for point in points(n_layers, cell):
        assert_close(cache[name_of(point)], expected.stacked(*point).detach(), **exact)


@every_point_of_cells
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("spoil", [doubled_in_place, lambda x, hook: x.data.mul_(2), lambda x, hook: x.zero_()])
def test_what_a_hook_kept_is_not_changed_by_a_later_hook(cell: str, point: Point, grad: bool, spoil: Hook) -> None:
    model, name, kept = make_model(cell=cell), name_of(point), []

    def keep(x: Tensor, hook: HookPoint) -> None:
        kept.append((x, x.detach().clone()))

    def spoil_and_keep_nothing(x: Tensor, hook: HookPoint) -> None:
        spoil(x, hook)

    with torch.set_grad_enabled(grad):
        model.add_hook(name, keep)
        cache = model.add_caching_hooks(name)
        model.add_hook(name, spoil_and_keep_nothing)
        model(TOKENS)
        last, as_it_was = kept[-1]
        assert torch.equal(last, as_it_was)
        assert torch.equal(last, cache[name])
        snapshot = cache[name].clone()
        model(integers(BATCH, STEPS, seed=5))  # another pass has tensors of its own
    assert torch.equal(last, as_it_was)
    assert grad is False or all(torch.equal(x, was) for x, was in kept)  # autograd may need every one of them
    assert not torch.equal(snapshot, cache[name])


@every_point_of_cells
def test_what_a_hook_kept_for_itself_is_not_changed_by_the_network(cell: str, point: Point) -> None:
    model, name, kept = make_model(cell=cell), name_of(point), []
    model.add_hook(name, lambda x, hook: kept.append(x))
    model.add_hook(name, doubled_in_place)
    with torch.no_grad():
        model(TOKENS)
    expected = by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2)).stacked(*point) / 2
    assert_close(kept[-1], expected.detach(), **exact)


@step_points_of_cells
def test_what_a_hook_wrote_at_other_positions_is_gone_at_the_last_step(cell: str, point: Point) -> None:
    model, name = make_model(cell=cell), name_of(point)
    seen = []

    def scribble(x: Tensor, hook: HookPoint) -> None:
        seen.append(x.clone())
        here = x[:, hook.step].clone()
        x.fill_(9.0)
        x[:, hook.step] = here

    with torch.no_grad():
        logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name, scribble)])
    assert_close(logits, by_hand(model).logits, **exact)
    assert_close(seen[-1], by_hand(model).stacked(*point), **exact)
