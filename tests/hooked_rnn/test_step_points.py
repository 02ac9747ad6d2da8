"""Points that fire exactly once, one for each step; alone, and together with those of the whole sequence."""

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from causality import (
    BATCH,
    LABELS,
    STEPS,
    TOKENS,
    assert_same_parameter_gradients,
    by_hand,
    doubled,
    doubled_in_place,
    edit_at,
    every_cell,
    exact,
    make_model,
    mean_loss,
    nonlinear,
)
from reference import LOOP_KINDS
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN
from hooked_rnn.errors import ConfigError, HookError, UnknownHookPointError

LAYERS = 2


def stepped(cell: str = "rnn", n_steps: int = STEPS, **fields: Any) -> HookedRNN:
    model = make_model(cell=cell, n_layers=LAYERS, **fields)
    model.set_use_step_hooks(True, n_steps)
    return model


def places(cell: str) -> list[tuple[str, int, int]]:
    return [(kind, layer, t) for kind in LOOP_KINDS[cell] for layer in range(LAYERS) for t in range(STEPS)]


def name_at(kind: str, layer: int, step: int) -> str:
    return f"blocks.{layer}.steps.{step}.hook_{kind}"


@every_cell
def test_off_they_are_not_there_and_on_they_are(cell: str) -> None:
    model = make_model(cell=cell, n_layers=LAYERS)
    before, logits = dict(model.hook_dict), model(TOKENS)
    assert not any("steps" in name for name in before)
    model.set_use_step_hooks(True, STEPS)
    assert set(model.hook_dict) - set(before) == {name_at(*place) for place in places(cell)}
    assert torch.equal(model(TOKENS), logits)
    model.set_use_step_hooks(False)
    assert list(model.hook_dict) == list(before)
    assert all(model.hook_dict[name] is point for name, point in before.items())
    assert torch.equal(model(TOKENS), logits)


@every_cell
def test_a_cache_of_both_views(cell: str) -> None:
    model = stepped(cell)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            _, cache = model.run_with_cache(TOKENS)
        expected = by_hand(model)
        for kind, layer, t in places(cell):
            value = cache[name_at(kind, layer, t)]
            assert_close(value, expected.values[kind, layer, t].detach(), **exact)
            assert torch.equal(value, cache[kind, layer][:, t])


@every_cell
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("way", ["returned", "in place"])
def test_an_edit_is_that_of_the_unrolled_network(cell: str, way: str, grad: bool) -> None:
    model = stepped(cell)
    fired: list[str] = []

    def hook(x: Tensor, hook: HookPoint) -> Tensor | None:
        fired.append(hook.name)
        if way == "returned":
            return nonlinear(x)
        x[:] = nonlinear(x.clone())
        return None

    for place in places(cell):
        with torch.set_grad_enabled(grad):
            got = model.run_with_hooks(TOKENS, fwd_hooks=[(name_at(*place), hook)])
        kind, layer, t = place
        assert_close(got, by_hand(model, edit_at((kind, layer), [t], nonlinear)).logits, check_stride=False, **exact)
    assert fired == [name_at(*place) for place in places(cell)]  # once each


@every_cell
def test_gradients_are_those_of_the_unrolled_network(cell: str) -> None:
    model = stepped(cell)
    names = [name_at(*place) for place in places(cell)]
    _, cache = model.run_with_cache(TOKENS, names_filter=names, incl_bwd=True, return_type="loss", labels=LABELS)
    expected = by_hand(model)
    loss = mean_loss(expected.logits)
    for kind, layer, t in places(cell):
        (grad,) = torch.autograd.grad(loss, expected.values[kind, layer, t], retain_graph=True, allow_unused=True)
        name = f"{name_at(kind, layer, t)}_grad"
        if name in cache.cache_dict:
            assert_close(cache[name], torch.zeros_like(cache[name]) if grad is None else grad, **exact)
        else:  # nothing depends on it that a gradient could pass: the state before the first step is a constant
            assert (t, kind) in ((0, "recurrent"), (0, "carry"))


@every_cell
def test_an_edited_gradient_flows_on(cell: str) -> None:
    model = stepped(cell)
    name = name_at("hidden", 0, 1)
    with model.hooks(bwd_hooks=[(name, lambda grad, hook: 3 * grad)]):
        loss = model(TOKENS, return_type="loss", labels=LABELS)
        got = torch.autograd.grad(loss, model.W_E)[0]

    def scaled(x: Tensor) -> Tensor:
        return 3 * x - 2 * x.detach()

    unrolled = by_hand(model, edit_at(("hidden", 0), [1], scaled))
    assert_close(got, torch.autograd.grad(mean_loss(unrolled.logits), model.W_E)[0], **exact)


@every_cell
@pytest.mark.parametrize("hook", [doubled, doubled_in_place])
@pytest.mark.parametrize("grad", [True, False])
def test_the_step_s_point_comes_before_the_sequence_s(cell: str, hook: Any, grad: bool) -> None:
    model = stepped(cell)
    for kind in LOOP_KINDS[cell]:
        step_name, name = name_at(kind, 0, 1), f"blocks.0.hook_{kind}"

        def plus_one(x: Tensor, hook: HookPoint) -> None:
            x[:, hook.step] += 1

        with torch.set_grad_enabled(grad):
            both = model.run_with_hooks(TOKENS, fwd_hooks=[(name, plus_one), (step_name, hook)])
        edits = {(kind, 0, t): (lambda x, t=t: (2 * x if t == 1 else x) + 1) for t in range(STEPS)}
        assert_close(both, by_hand(model, edits).logits, check_stride=False, **exact)
        other_order = {(kind, 0, t): (lambda x, t=t: (x + 1) * (2 if t == 1 else 1)) for t in range(STEPS)}
        assert not torch.allclose(both, by_hand(model, other_order).logits, rtol=0, atol=1e-9)


@every_cell
def test_an_edit_at_a_step_shows_in_the_sequence_s_cache_and_not_the_other_way_round(cell: str) -> None:
    model = stepped(cell)
    step_name, name = name_at("hidden", 0, 2), "blocks.0.hook_hidden"
    with model.hooks(fwd_hooks=[(step_name, doubled)]):
        _, cache = model.run_with_cache(TOKENS, names_filter=[name])
    _, clean = model.run_with_cache(TOKENS, names_filter=[name])
    assert_close(cache[name][:, 2], 2 * clean[name][:, 2], **exact)

    def double_step_2(x: Tensor, hook: HookPoint) -> None:
        x[:, 2] *= 2 if hook.step == 2 else 1

    with model.hooks(fwd_hooks=[(name, double_step_2)]):
        _, cache = model.run_with_cache(TOKENS, names_filter=[step_name])
    assert_close(cache[step_name], clean[name][:, 2], **exact)


@every_cell
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_hook_was_shown_is_never_written_over(cell: str, mode: Any) -> None:
    """Without autograd memory is used again, and caches share it."""
    model = stepped(cell)
    expected = by_hand(model)
    for kind in LOOP_KINDS[cell]:
        name = f"blocks.0.hook_{kind}"
        names = [name_at(kind, 0, t) for t in range(STEPS)]
        with mode():
            before = model.add_caching_hooks([*names, name])
            for step_name in names[1:]:
                model.add_hook(step_name, doubled_in_place)
            after = model.add_caching_hooks([*names, name])
            model(TOKENS)
            model(TOKENS.flip(0))  # a second pass, over whatever the first may have left
            kept = {key: value.clone() for key, value in before.items()}
            model(TOKENS)
            model.reset_hooks()
        edits = edit_at((kind, 0), range(1, STEPS), lambda x: 2 * x)
        unrolled = by_hand(model, edits, tokens=TOKENS)
        for t, step_name in enumerate(names):
            left = unrolled.values[kind, 0, t].detach()
            assert_close(after[step_name].clone(), left, check_stride=False, **exact)
            assert_close(after[name][:, t].clone(), left, check_stride=False, **exact)
            assert_close(before[step_name].clone(), left / (2 if t else 1), check_stride=False, **exact)
        assert kept.keys() == before.keys()
    assert_close(model(TOKENS), expected.logits, **exact)


def test_a_hook_that_keeps_a_step_and_removes_itself() -> None:
    model, kept = stepped(), {}

    def keep(x: Tensor, hook: HookPoint) -> None:
        kept[hook.name] = x
        hook.remove_hooks()

    for kind in LOOP_KINDS["rnn"]:
        model.add_hook(name_at(kind, 0, 1), keep)
    with torch.no_grad():
        model(TOKENS)
    for kind in LOOP_KINDS["rnn"]:
        assert_close(kept[name_at(kind, 0, 1)], by_hand(model).values[kind, 0, 1].detach(), **exact)


def test_longer_and_shorter_sequences() -> None:
    longer = stepped(n_steps=2)
    _, cache = longer.run_with_cache(TOKENS)
    assert "blocks.0.steps.1.hook_hidden" in cache.cache_dict
    assert_close(longer(TOKENS), by_hand(longer).logits, **exact)
    with pytest.raises(UnknownHookPointError, match=r"blocks\.0\.steps\.2\.hook_hidden"):
        longer.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.steps.2.hook_hidden", doubled)])

    shorter = stepped(n_steps=STEPS + 2)
    logits, cache = shorter.run_with_cache(TOKENS)  # hooks that only look do not fire there
    assert f"blocks.0.steps.{STEPS}.hook_hidden" not in cache.cache_dict
    assert_close(logits, by_hand(shorter).logits, **exact)
    with pytest.raises(
        HookError, match=rf"steps\.{STEPS}\.hook_hidden has a hook: expected none beyond the {STEPS} pos"
    ):
        shorter.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.0.steps.{STEPS}.hook_hidden", doubled)])
    assert shorter.list_hooks() == {}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n_steps", [0, -1, 2.5, True, "3"])
def test_a_number_of_steps_that_cannot_be_is_an_error(n_steps: Any) -> None:
    with pytest.raises(ConfigError, match="expected a whole number of at least 1"):
        make_model().set_use_step_hooks(True, n_steps)
    with pytest.raises(ConfigError, match=r"n_steps=None: expected .* where cfg\.n_ctx says it"):
        make_model().set_use_step_hooks(True)


@pytest.mark.parametrize(
    "wrong", [lambda x: x[:, :-1], lambda x: x.float(), lambda x: x.tolist(), lambda x: x.to("meta")]
)
def test_an_edit_that_cannot_take_its_place_is_refused(wrong: Any) -> None:
    model, name = stepped(), name_at("hidden", 1, 1)
    with pytest.raises(HookError, match=r"blocks\.1\.steps\.1\.hook_hidden"):
        model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: wrong(x))])


@pytest.mark.parametrize("training", [True, False])
def test_every_submodule_is_in_the_model_s_mode(training: bool) -> None:
    model = make_model().train(training)
    model.set_use_step_hooks(True, STEPS)
    assert all(module.training == training for module in model.modules())


@every_cell
def test_copies_have_points_of_their_own(cell: str) -> None:
    model = stepped(cell)
    name = name_at("hidden", 0, 1)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        edited = copy.run_with_hooks(TOKENS, fwd_hooks=[(name, doubled)])
        assert_close(edited, by_hand(model, edit_at(("hidden", 0), [1], lambda x: 2 * x)).logits, **exact)
        assert_close(model(TOKENS), by_hand(model).logits, **exact)


def test_a_set_n_ctx_is_the_number_of_steps() -> None:
    model = HookedRNN.from_pretrained("mod-add-113")
    model.set_use_step_hooks(True)
    assert [name for name in model.hook_dict if name.endswith("hook_hidden")] == [
        "blocks.0.hook_hidden",
        "blocks.0.steps.0.hook_hidden",
        "blocks.0.steps.1.hook_hidden",
    ]


def test_parameters_learn_as_in_the_unrolled_network() -> None:
    model = stepped("lstm")
    name = name_at("cell", 0, 1)
    loss = mean_loss(model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: nonlinear(x))]))
    unrolled = by_hand(model, edit_at(("cell", 0), [1], nonlinear))
    assert_same_parameter_gradients(model, loss, unrolled, mean_loss(unrolled.logits))
    assert TOKENS.shape == (BATCH, STEPS)
