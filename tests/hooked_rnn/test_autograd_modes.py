"""With and without autograd, and torch's own hooks."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from causality import (
    BATCH,
    LABELS,
    STEPS,
    TOKENS,
    WAYS,
    Point,
    assert_same_parameter_gradients,
    by_hand,
    doubled,
    edit_at,
    every_point_and_a_few_gated,
    every_point_of_cells,
    exact,
    make_model,
    mean_loss,
    name_of,
    nonlinear,
    width_of,
)
from torch import Tensor, nn
from torch.testing import assert_close

from hooked_rnn.errors import HookError


@every_point_and_a_few_gated
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS)
def test_edits_are_the_same_bits_with_and_without_autograd(cell: str, point: Point, mode: Any, way: Callable) -> None:
    model = make_model(cell=cell)
    hooks = [(name_of(point), way(nonlinear, 1)), (name_of(point), doubled)]
    with model.hooks(fwd_hooks=hooks):
        with_autograd, cache = model.run_with_cache(TOKENS)
        with mode():
            without, cache_without = model.run_with_cache(TOKENS)
    assert torch.equal(with_autograd, without)
    assert not without.requires_grad
    assert all(torch.equal(cache[name], cache_without[name]) for name in cache)


@every_point_of_cells
def test_autograd_switched_on_again_inside_inference_mode_changes_nothing(cell: str, point: Point) -> None:
    model = make_model(cell=cell)
    with torch.inference_mode(), torch.enable_grad():
        logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), doubled)])
    assert_close(logits, by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2)).logits.detach(), **exact)


@every_point_of_cells
def test_backward_hooks_are_idle_without_autograd(cell: str, point: Point) -> None:
    model, seen = make_model(cell=cell), []
    with torch.no_grad(), model.hooks(bwd_hooks=[(name_of(point), lambda grad, hook: seen.append(grad))]):
        assert torch.equal(model(TOKENS), make_model(cell=cell)(TOKENS))
    assert seen == []


@every_point_of_cells
def test_a_raw_forward_hook_is_a_hook(cell: str, point: Point) -> None:
    model = make_model(cell=cell)
    module, seen = model.hook_dict[name_of(point)], []

    def edit(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        seen.append(torch.equal(args[0], output))
        return nonlinear(output)

    handle = module.register_forward_hook(edit)
    edited = by_hand(model, edit_at(point, range(STEPS), nonlinear)).logits
    assert_close(model(TOKENS), edited, **exact)
    handle.remove()
    with_kwargs = module.register_forward_hook(lambda m, args, kwargs, output: nonlinear(output), with_kwargs=True)
    assert_close(model(TOKENS), edited, **exact)
    with_kwargs.remove()
    assert_close(model(TOKENS), by_hand(model).logits, **exact)
    assert all(seen)


@every_point_of_cells
def test_a_raw_full_backward_hook_is_a_hook(cell: str, point: Point) -> None:
    model, seen = make_model(cell=cell), []
    expected = by_hand(model)
    for value in expected.at(*point):
        value.register_hook(nonlinear)

    def edit(module: nn.Module, grad_input: tuple[Tensor], grad_output: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(grad_output[0].clone())
        return (nonlinear(grad_output[0]),)

    model.hook_dict[name_of(point)].register_full_backward_hook(edit)
    loss = model(TOKENS, return_type="loss", labels=LABELS)
    assert_same_parameter_gradients(model, loss, expected, mean_loss(expected.logits))
    assert seen[-1].shape == (BATCH, STEPS, width_of(model, point))


@every_point_of_cells
def test_pre_hooks_are_refused(cell: str, point: Point) -> None:
    module = make_model(cell=cell).hook_dict[name_of(point)]
    for register in (
        module.register_forward_pre_hook,
        module.register_full_backward_pre_hook,
        module.register_backward_hook,
    ):
        with pytest.raises(HookError, match=re.escape(name_of(point))):
            register(lambda *args: None)
