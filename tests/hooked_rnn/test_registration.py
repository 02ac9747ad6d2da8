"""Adding, nesting and removing hooks: what holds of a plain TransformerLens HookPoint holds here."""

import logging
from typing import Any

import pytest
import torch
from causality import (
    BATCH,
    LABELS,
    STEP_KINDS,
    STEPS,
    TOKENS,
    Hook,
    Point,
    by_hand,
    doubled,
    doubled_in_place,
    edit_at,
    every_point,
    exact,
    ignore,
    integers,
    make_model,
    mean_loss,
    name_of,
    nonlinear,
    once_points,
    step_points,
)
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN


class Plain(HookedRootModule):
    """Two ordinary hook points, for comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.first = HookPoint()
        self.second = HookPoint()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.second(self.first(tokens[..., None] * self.scale) * 2)


MODELS = {
    "plain": lambda: (Plain(), "first", "second"),
    "once": lambda: (make_model(), "hook_embed", "hook_logits"),
    "in the loop": lambda: (make_model(), "blocks.0.hook_preact", "blocks.1.hook_hidden"),
}


class Notes:
    """Hooks that write their label down, on a sequence of one token, where a step hook fires once too."""

    def __init__(self, model: HookedRootModule) -> None:
        self.model = model
        self.lines: list[str] = []

    def hook(self, label: str) -> Hook:
        return lambda x, hook: self.lines.append(label)

    def fired(self) -> list[str]:
        self.lines.clear()
        self.model(TOKENS[:, :1]).sum().backward()
        return list(self.lines)


@pytest.fixture(params=MODELS)
def registered(request: pytest.FixtureRequest) -> tuple[HookedRootModule, str, str, Notes]:
    model, first, second = MODELS[request.param]()
    return model, first, second, Notes(model)


def test_hooks_run_in_the_order_added_and_backward_after_forward(registered: Any) -> None:
    model, first, second, notes = registered
    model.add_hook(second, notes.hook("c"))
    model.add_hook(first, notes.hook("a"))
    model.add_hook(first, notes.hook("b"))
    model.add_hook(first, notes.hook("z"), prepend=True)
    model.add_hook(first, notes.hook("A"), dir="bwd")
    model.add_hook(first, notes.hook("B"), dir="bwd")
    model.add_hook(first, notes.hook("Z"), dir="bwd", prepend=True)
    model.add_hook(second, notes.hook("C"), dir="bwd")
    assert notes.fired() == ["z", "a", "b", "c", "C", "Z", "A", "B"]


def test_permanent_hooks_outlive_reset_hooks(registered: Any) -> None:
    model, first, _, notes = registered
    model.add_perma_hook(first, notes.hook("perma"))
    model.add_perma_hook(first, notes.hook("PERMA"), dir="bwd")
    model.add_hook(first, notes.hook("a"))
    assert notes.fired() == ["perma", "a", "PERMA"]
    model.reset_hooks()
    assert notes.fired() == ["perma", "PERMA"]
    model.remove_all_hook_fns(including_permanent=True)
    assert notes.fired() == []


def test_reset_hooks_and_remove_all_hook_fns_know_directions_and_levels(registered: Any) -> None:
    model, first, second, notes = registered
    model.add_hook(first, notes.hook("a"), level=1)
    model.add_hook(first, notes.hook("b"), level=2)
    model.add_hook(second, notes.hook("A"), dir="bwd", level=1)
    model.reset_hooks(level=2)
    assert notes.fired() == ["a", "A"]
    model.remove_all_hook_fns(direction="bwd")
    assert notes.fired() == ["a"]
    model.remove_all_hook_fns(level=2)
    assert notes.fired() == ["a"]
    model.reset_hooks(direction="fwd")
    assert notes.fired() == []


def test_contexts_nest(registered: Any) -> None:
    model, first, second, notes = registered
    model.add_hook(first, notes.hook("outside"))
    with model.hooks(fwd_hooks=[(first, notes.hook("one"))], bwd_hooks=[(first, notes.hook("ONE"))]):
        with model.hooks(fwd_hooks=[(lambda name: name in (first, second), notes.hook("two"))]):
            assert model.context_level == 2
            assert notes.fired() == ["outside", "one", "two", "two", "ONE"]
        assert notes.fired() == ["outside", "one", "ONE"]
    assert model.context_level == 0
    assert notes.fired() == ["outside"]


def test_a_context_may_leave_its_hooks(registered: Any) -> None:
    model, first, _, notes = registered
    with model.hooks(fwd_hooks=[(first, notes.hook("stays"))], reset_hooks_end=False):
        pass
    assert notes.fired() == ["stays"]
    model.reset_hooks()
    assert notes.fired() == []


def test_list_hooks_shows_what_was_added(registered: Any) -> None:
    model, first, second, notes = registered
    forward, backward = notes.hook("a"), notes.hook("A")
    model.add_hook(first, forward)
    model.add_perma_hook(second, backward, dir="bwd")
    listed = {name: [handle.user_hook for handle in handles] for name, handles in model.list_hooks().items()}
    assert listed == {first: [forward], second: [backward]}
    assert list(model.list_hooks(dir="fwd")) == [first]
    assert list(model.list_hooks(including_permanent=False)) == [first]
    assert list(model.list_hooks(name_filter=second)) == [second]
    assert model.hook_dict[first].has_hooks(dir="fwd")
    assert not model.hook_dict[first].has_hooks(dir="bwd")


def test_a_handle_removes_its_hook(registered: Any) -> None:
    model, first, _, notes = registered
    handle = model.hook_dict[first].add_hook(notes.hook("a"))
    assert notes.fired() == ["a"]
    handle.hook.remove()
    assert notes.fired() == []


def test_run_with_hooks_warns_that_backward_hooks_go_before_a_backward_pass(
    registered: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, first, _, notes = registered
    with caplog.at_level(logging.WARNING):
        output = model.run_with_hooks(TOKENS[:, :1], bwd_hooks=[(first, notes.hook("A"))])
    assert "backward hooks" in caplog.text
    assert output.requires_grad
    assert model.list_hooks() == {}


def test_a_context_of_a_hook_is_cleared_on_request(registered: Any) -> None:
    model, first, _, _ = registered

    def remember(x: Tensor, hook: HookPoint) -> None:
        hook.ctx["seen"] = True

    model.run_with_hooks(TOKENS[:, :1], fwd_hooks=[(first, remember)])
    assert model.hook_dict[first].ctx == {"seen": True}
    model.reset_hooks(clear_contexts=True)
    assert model.hook_dict[first].ctx == {}


def test_the_last_backward_hook_to_answer_decides(registered: Any) -> None:
    model, first, _, _ = registered
    seen = []

    def answer(factor: float) -> Hook:
        def hook(grad: Tensor, hook: HookPoint) -> Tensor:
            seen.append(grad.clone())
            return grad * factor

        return hook

    parameter = next(model.parameters())
    model(TOKENS[:, :1]).sum().backward()
    plain, parameter.grad = parameter.grad, None
    with model.hooks(bwd_hooks=[(first, answer(3)), (first, answer(5))]):
        model(TOKENS[:, :1]).sum().backward()
    assert torch.equal(seen[0], seen[1])
    assert_close(parameter.grad, 5 * plain)


def test_a_gradient_that_a_hook_replaces_goes_past_the_forward_hooks(registered: Any) -> None:
    model, first, _, _ = registered
    parameter, grads = next(model.parameters()), []
    for edit in (ignore, doubled, doubled_in_place):
        if edit is doubled_in_place and isinstance(model, Plain):
            continue  # which torch forbids on a plain HookPoint
        with model.hooks(fwd_hooks=[(first, edit)], bwd_hooks=[(first, lambda grad, hook: torch.ones_like(grad))]):
            grads.append(torch.autograd.grad(model(TOKENS[:, :1]).sum(), parameter)[0])
    assert grads[0].any()
    assert all(torch.equal(grad, grads[0]) for grad in grads)


def state_of(model: HookedRNN) -> dict[str, Any]:
    return {
        "torch's own": {n: (len(p._forward_hooks), len(p._backward_hooks)) for n, p in model.hook_dict.items()},
        "TransformerLens's": model.list_hooks(),
        "step": {n: (p.step, p.n_steps) for n, p in model.hook_dict.items()},
        "level": model.context_level,
        "gradients": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
    }


@every_point
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
@pytest.mark.parametrize("t", [0, 2])
@pytest.mark.parametrize("cached", [False, True], ids=["alone", "cached"])
def test_a_hook_that_raises_leaves_nothing_behind(point: Point, direction: str, t: int, cached: bool) -> None:
    model = make_model()
    model.blocks[1].W_hh.requires_grad_(False)
    model.blocks[0].eval()
    before, plain = state_of(model), model(TOKENS)

    def burst(x: Tensor, hook: HookPoint) -> None:
        if hook.step in (None, t):
            raise RuntimeError("burst")

    def run() -> None:
        if cached:
            model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
        else:
            model(TOKENS, return_type="loss", labels=LABELS).backward()

    with pytest.raises(RuntimeError, match="burst"), model.hooks(**{f"{direction}_hooks": [(name_of(point), burst)]}):
        run()
    assert state_of(model) == before
    assert torch.equal(model(TOKENS), plain)


@every_point
def test_a_hook_may_run_the_model_again(point: Point) -> None:
    model, other, busy, steps = make_model(), integers(BATCH, STEPS, seed=8), [], []

    def patch_from_another_run(x: Tensor, hook: HookPoint) -> Tensor | None:
        if busy or hook.step not in (None, 2):
            return None
        busy.append(True)
        _, cache = model.run_with_cache(other)
        model(TOKENS[:, :2])
        busy.clear()
        steps.append((hook.step, hook.n_steps))
        edited = x.clone()
        edited[:, 2] = cache[hook.name][:, 2]
        return edited

    with model.hooks(fwd_hooks=[(name_of(point), patch_from_another_run)]):
        logits = model(TOKENS)
    patch = by_hand(model, tokens=other).values[*point, 2]
    assert_close(logits, by_hand(model, {(*point, 2): lambda x: patch}).logits, **exact)
    assert steps == ([(2, STEPS)] if point[0] in STEP_KINDS else [(None, None)])


@step_points
def test_a_hook_that_removes_itself_has_edited_its_first_step_alone(point: Point) -> None:
    model, name = make_model(), name_of(point)

    def once(x: Tensor, hook: HookPoint) -> Tensor:
        hook.remove_hooks("fwd")
        return nonlinear(x)

    model.add_hook(name, once)
    assert_close(model(TOKENS), by_hand(model, edit_at(point, [0], nonlinear)).logits, **exact)
    assert_close(model(TOKENS), by_hand(model).logits, **exact)


@every_point
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_hook_that_removes_itself_does_not_stop_the_next(point: Point, direction: str) -> None:
    model, fired = make_model(), []
    handle = model.hook_dict[name_of(point)].add_hook(lambda x, hook: handle.hook.remove(), dir=direction)
    model.add_hook(name_of(point), lambda x, hook: fired.append(hook.step), dir=direction)
    model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert len(fired) == (STEPS if point[0] in STEP_KINDS else 1)


@once_points
def test_a_hook_that_removes_itself_is_gone_in_the_next_pass(point: Point) -> None:
    model = make_model()

    def once(x: Tensor, hook: HookPoint) -> Tensor:
        hook.remove_hooks("fwd")
        return nonlinear(x)

    model.add_hook(name_of(point), once)
    assert_close(model(TOKENS), by_hand(model, edit_at(point, range(STEPS), nonlinear)).logits, **exact)
    assert_close(model(TOKENS), by_hand(model).logits, **exact)


@step_points
def test_a_hook_added_in_the_middle_of_a_pass_starts_there(point: Point) -> None:
    model, name, added = make_model(), name_of(point), []

    def add(x: Tensor, hook: HookPoint) -> None:
        if hook.step == 1 and not added:
            added.append(hook.add_hook(lambda x, hook: nonlinear(x)))

    model.add_hook(name, add)
    assert_close(model(TOKENS), by_hand(model, edit_at(point, range(2, STEPS), nonlinear)).logits, **exact)


@every_point
def test_two_passes_before_one_backward_pass_do_not_mix(point: Point) -> None:
    model, other, seen = make_model(), integers(BATCH, STEPS, seed=8), []
    with model.hooks(bwd_hooks=[(name_of(point), lambda grad, hook: seen.append(grad.clone()))]):
        losses = [model(tokens, return_type="loss", labels=LABELS) for tokens in (TOKENS, other)]
        losses[0].backward()
        first = seen[-1]
        losses[1].backward()
    for grad, tokens in ((first, TOKENS), (seen[-1], other)):
        expected = by_hand(model, tokens=tokens)
        assert_close(grad, expected.gradient(mean_loss(expected.logits), *point), **exact)
