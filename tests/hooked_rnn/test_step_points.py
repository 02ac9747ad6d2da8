"""The points of one step, which fire exactly once; and both views of a step together."""

import copy
import itertools
import pickle
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
    VOCAB,
    Hook,
    Point,
    assert_same_parameter_gradients,
    by_hand,
    doubled,
    doubled_in_place,
    every_cell,
    exact,
    ignore,
    integers,
    make_model,
    mean_loss,
    name_of,
    nonlinear,
    parts_of,
    random,
    random_state,
    width_of,
)
from reference import LOOP_KINDS
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN, ObservingHook
from hooked_rnn.errors import ConfigError, HookError, UnknownHookPointError

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]

every_mode = pytest.mark.parametrize("mode", MODES)

with_and_without_autograd = pytest.mark.parametrize("mode", MODES[:2])


def with_steps(cell: str, n_steps: int = STEPS, **fields: Any) -> HookedRNN:
    model = make_model(cell=cell, **fields)
    model.set_use_step_hooks(True, n_steps)
    return model


def loop_points(cell: str) -> list[Point]:
    return list(itertools.product(LOOP_KINDS[cell], range(2)))


def places(cell: str) -> list[tuple[Point, int]]:
    """Every point inside the loop, at every step."""
    return list(itertools.product(loop_points(cell), range(STEPS)))


def some_places(cell: str) -> list[tuple[Point, int]]:
    """Every kind, each at one layer and one step."""
    kinds = enumerate(LOOP_KINDS[cell])
    return [((kind, i % 2), (i + 1) % STEPS) for i, kind in kinds]


def at(point: Point, t: int) -> str:
    kind, layer = point
    return f"blocks.{layer}.steps.{t}.hook_{kind}"


def returned(x: Tensor, hook: HookPoint) -> Tensor:
    return nonlinear(x)


def in_place(x: Tensor, hook: HookPoint) -> None:
    x.copy_(nonlinear(x))


def in_place_and_returned(x: Tensor, hook: HookPoint) -> Tensor:
    x.copy_(nonlinear(x))
    return x


def behind_autograd(x: Tensor, hook: HookPoint) -> None:
    x.data = nonlinear(x.data)


WAYS: list[Hook] = [returned, in_place, in_place_and_returned, behind_autograd]


# Which points there are


@every_cell
def test_off_they_are_not_there(cell: str) -> None:
    model = make_model(cell=cell)
    names, modules, weights = list(model.hook_dict), len(list(model.modules())), list(model.state_dict())
    assert not any(".steps." in name for name in names)
    model.set_use_step_hooks(True, STEPS)
    assert list(model.state_dict()) == weights
    assert {name for name in model.hook_dict if ".steps." in name} == {at(*place) for place in places(cell)}
    assert [name for name in model.hook_dict if ".steps." not in name] == names
    assert all(point.name == name for name, point in model.hook_dict.items())
    model.set_use_step_hooks(False)
    assert list(model.hook_dict) == names
    assert len(list(model.modules())) == modules
    with pytest.raises(UnknownHookPointError):
        model.add_hook(at(("hidden", 0), 0), ignore)


@pytest.mark.usefixtures("unchecked")
def test_as_many_as_n_ctx_where_nothing_is_said() -> None:
    model = make_model()
    with pytest.raises(ConfigError, match="n_steps=None: expected a whole number of at least 1"):
        model.set_use_step_hooks(True)
    for wrong in (0, -1, True, 2.0, "3"):
        with pytest.raises(ConfigError, match=re.escape(f"n_steps={wrong!r}")):
            model.set_use_step_hooks(True, wrong)
    assert not any(".steps." in name for name in model.hook_dict)
    object.__setattr__(model.cfg, "n_ctx", 2)
    model.set_use_step_hooks(True)
    assert max(int(name.split(".")[3]) for name in model.hook_dict if ".steps." in name) == 1
    model.set_use_step_hooks(True, 3)
    assert max(int(name.split(".")[3]) for name in model.hook_dict if ".steps." in name) == 2


@pytest.mark.parametrize("training", [True, False])
def test_they_are_in_the_model_s_mode(training: bool) -> None:
    model = make_model().train(training)
    model.set_use_step_hooks(True, STEPS)
    assert all(module.training is training for module in model.modules())
    model.train(not training)
    assert all(module.training is not training for module in model.modules())


def test_turned_off_or_asked_for_anew_their_hooks_are_gone() -> None:
    model = with_steps("rnn")
    plain = model(TOKENS)
    for setting in ((True, STEPS), (False,)):
        model.add_hook(at(("hidden", 0), 1), doubled)
        assert not torch.allclose(model(TOKENS), plain)
        model.set_use_step_hooks(*setting)
        assert torch.equal(model(TOKENS), plain)
        assert model.list_hooks() == {}


@every_cell
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_step_points_of_their_own(cell: str, clone: Callable[[HookedRNN], HookedRNN]) -> None:
    model = with_steps(cell)
    twin = clone(model)
    name = at(("hidden", 1), 2)
    twin.add_hook(name, doubled)
    expected = by_hand(model, {("hidden", 1, 2): lambda x: x * 2})
    assert_close(twin(TOKENS), expected.logits, **exact)
    assert_close(model(TOKENS), by_hand(model).logits, **exact)
    twin.reset_hooks()
    _, cache = twin.run_with_cache(TOKENS)
    _, original = model.run_with_cache(TOKENS)
    assert all(torch.equal(kept, original[name]) for name, kept in cache.items())
    assert list(twin.hook_dict) == list(model.hook_dict)


# Values


@every_cell
@every_mode
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_cache_of_everything_holds_both_views_of_every_step(cell: str, mode: Any, dtype: torch.dtype) -> None:
    model = with_steps(cell).to(dtype)
    expected = by_hand(model)
    for start in (None, random_state(model, dtype)):
        with mode():
            plain = model(TOKENS, initial_state=start)
            logits, cache = model.run_with_cache(TOKENS, initial_state=start)
        assert torch.equal(logits, plain)
        for (kind, layer), t in places(cell):
            one, whole = cache[at((kind, layer), t)], cache[kind, layer]
            assert torch.equal(one, whole[:, t])
            if dtype == torch.float64 and start is None:
                assert_close(one.clone(), expected.values[kind, layer, t].detach(), **exact)


@every_cell
def test_each_fires_once(cell: str) -> None:
    model, fired = with_steps(cell), []
    hook = lambda x, hook: fired.append((hook.name, hook.step, tuple(x.shape)))  # noqa: E731
    with model.hooks(fwd_hooks=[(lambda name: ".steps." in name, hook)]):
        model(TOKENS)
    wanted = [
        (at((kind, layer), t), None, (BATCH, width_of(model, (kind, layer))))
        for layer, t, kind in itertools.product(range(2), range(STEPS), LOOP_KINDS[cell])
    ]
    assert fired == wanted  # in firing order too


@every_cell
@with_and_without_autograd
def test_an_edit_is_the_edit_of_the_unrolled_network(cell: str, mode: Any) -> None:
    model = with_steps(cell)
    start = random_state(model)  # or a forget gate would have nothing to forget at the first step
    plain = model(TOKENS, initial_state=start)
    for i, (point, t) in enumerate(places(cell)):
        expected = by_hand(model, {(*point, t): nonlinear}, initial_state=start)
        assert not torch.allclose(expected.logits, plain)
        way = WAYS[(i + i // STEPS) % len(WAYS)]
        with mode(), model.hooks(fwd_hooks=[(at(point, t), way)]):
            logits, state = model(TOKENS, initial_state=start, return_state=True)
        where = f"{point} {t} {way.__name__}"
        assert_close(logits.clone(), expected.logits, **exact, msg=lambda m, where=where: f"{where}: {m}")
        assert_close([part.clone() for part in parts_of(state)], parts_of(expected.state), **exact)


@every_cell
@with_and_without_autograd
@pytest.mark.parametrize(("double", "times"), [(doubled, 2), (doubled_in_place, 1)])
def test_doubling_doubles_exactly_once(cell: str, mode: Any, double: Hook, times: int) -> None:
    model = with_steps(cell)
    for point, t in some_places(cell):
        expected = by_hand(model, {(*point, t): lambda x: x * 2**times})
        with mode(), model.hooks(fwd_hooks=[(at(point, t), double)] * times):
            assert_close(model(TOKENS), expected.logits, **exact)
            logits, cache = model.run_with_cache(TOKENS)
        assert_close(logits, expected.logits, **exact)
        for other, s in ((point, t), (("hidden", 1), STEPS - 1)):
            assert torch.allclose(cache[at(other, s)], expected.values[*other, s], **exact)
            assert torch.equal(cache[at(other, s)], cache[name_of(other)][:, s])


# Both views of one step


def shifted(x: Tensor) -> Tensor:
    return x + 0.75


@every_cell
@with_and_without_autograd
def test_the_step_s_own_point_comes_first(cell: str, mode: Any) -> None:
    model = with_steps(cell)
    for point, t in some_places(cell):
        whole = lambda x, hook, t=t: nonlinear(x) if hook.step == t else None  # noqa: E731
        hooks = [(name_of(point), whole), (at(point, t), lambda x, hook: shifted(x))]
        right = by_hand(model, {(*point, t): lambda x: nonlinear(shifted(x))})
        wrong = by_hand(model, {(*point, t): lambda x: shifted(nonlinear(x))})
        for added in (hooks, hooks[::-1]):  # whichever was added first
            with mode():
                logits = model.run_with_hooks(TOKENS, fwd_hooks=added)
            assert_close(logits.clone(), right.logits, **exact)
            assert not torch.allclose(logits, wrong.logits, **exact)


@every_cell
@with_and_without_autograd
def test_the_whole_sequence_s_point_shows_the_step_s_edit_and_not_the_other_way_round(cell: str, mode: Any) -> None:
    model = with_steps(cell)
    for point, t in some_places(cell):
        kind, layer = point
        edited, arrived = by_hand(model, {(*point, t): nonlinear}), by_hand(model).values[*point, t]
        with mode(), model.hooks(fwd_hooks=[(at(point, t), in_place)]):
            _, cache = model.run_with_cache(TOKENS)
        assert_close(cache[kind, layer].clone(), edited.stacked(*point), **exact)
        with mode(), model.hooks(fwd_hooks=[(name_of(point), in_place_at(t))]):
            _, cache = model.run_with_cache(TOKENS)
        assert_close(cache[kind, layer].clone(), edited.stacked(*point), **exact)
        assert_close(cache[at(point, t)].clone(), arrived, **exact)
        assert not torch.allclose(cache[at(point, t)], edited.values[*point, t])
        for s in range(t + 1, STEPS):
            assert_close(cache[at(point, s)].clone(), edited.values[*point, s], **exact)


def in_place_at(t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> None:
        if hook.step == t:
            x[:, t] = nonlinear(x[:, t].clone())

    return hook


# Gradients


@every_cell
@pytest.mark.parametrize("edited", [False, True])
def test_cached_gradients_are_total(cell: str, edited: bool) -> None:
    model = with_steps(cell)
    hooks = [(at(point, t), returned) for point, t in some_places(cell)] if edited else []
    expected = by_hand(model, {(*point, t): nonlinear for point, t in some_places(cell)} if edited else None)
    with model.hooks(fwd_hooks=hooks):
        loss, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    wanted = mean_loss(expected.logits)
    assert_close(loss, wanted, **exact)
    for point in loop_points(cell):
        for t, grad in enumerate(expected.gradient(wanted, *point).unbind(1)):
            assert_close(cache[f"{at(point, t)}_grad"], grad, **exact)
            assert_close(cache[f"{name_of(point)}_grad"][:, t], grad, **exact)


@every_cell
def test_each_view_has_the_gradient_of_what_left_it(cell: str) -> None:
    model = with_steps(cell)
    for point, t in some_places(cell):
        between: list[Tensor] = []

        def both(x: Tensor, between: list[Tensor] = between) -> Tensor:
            between.append(shifted(x).clone())
            return nonlinear(between[-1])

        expected = by_hand(model, {(*point, t): both})
        loss = mean_loss(expected.logits)
        (before,) = torch.autograd.grad(loss, between, retain_graph=True)
        hooks = [(at(point, t), lambda x, hook: shifted(x)), (name_of(point), in_place_at(t))]
        with model.hooks(fwd_hooks=hooks):
            _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
        assert_close(cache[f"{at(point, t)}_grad"], before, **exact)
        assert_close(cache[f"{name_of(point)}_grad"], expected.gradient(loss, *point), **exact)
        assert not torch.allclose(before, expected.gradient(loss, *point)[:, t])


def gradient_in_place(grad: Tensor, hook: HookPoint) -> None:
    grad.copy_(nonlinear(grad))


@every_cell
@pytest.mark.parametrize("edit", [returned, gradient_in_place, lambda grad, hook: (nonlinear(grad),)])
def test_an_edited_gradient_flows_on_to_earlier_steps(cell: str, edit: Hook) -> None:
    model = with_steps(cell)
    plain = by_hand(model)
    for point, t in some_places(cell):
        expected = by_hand(model)
        expected.values[*point, t].register_hook(nonlinear)
        with model.hooks(bwd_hooks=[(at(point, t), edit)]):
            loss = model(TOKENS, return_type="loss", labels=LABELS)
            assert_same_parameter_gradients(model, loss, expected, mean_loss(expected.logits))
        with pytest.raises(AssertionError):  # the control: without the edit they are others
            assert_same_parameter_gradients(model, loss, plain, mean_loss(plain.logits))


@every_cell
def test_gradients_are_edited_at_the_whole_sequence_s_point_before_the_step_s_own(cell: str) -> None:
    model = with_steps(cell)
    for point, t in some_places(cell):
        if point[0] == "carry":
            continue
        expected = by_hand(model)
        expected.values[*point, t].register_hook(nonlinear)
        expected.values[*point, t].register_hook(shifted)
        whole = lambda grad, hook, t=t: nonlinear(grad) if hook.step == t else None  # noqa: E731
        with model.hooks(bwd_hooks=[(at(point, t), lambda grad, hook: shifted(grad)), (name_of(point), whole)]):
            loss = model(TOKENS, return_type="loss", labels=LABELS)
            assert_same_parameter_gradients(model, loss, expected, mean_loss(expected.logits))


@every_cell
def test_a_learned_edit_gets_its_gradient_in_a_frozen_model(cell: str) -> None:
    model = with_steps(cell).requires_grad_(False)
    for point, t in some_places(cell):
        steer = random(width_of(model, point), seed=3).requires_grad_()
        wanted = mean_loss(by_hand(model, {(*point, t): lambda x, steer=steer: x + steer}).logits)
        hook = (at(point, t), lambda x, hook, steer=steer: x + steer)
        loss = model.run_with_hooks(TOKENS, fwd_hooks=[hook], return_type="loss", labels=LABELS)
        assert_close(torch.autograd.grad(loss, steer), torch.autograd.grad(wanted, steer), **exact)


def test_vmap_over_a_steering_vector() -> None:
    for cell in LOOP_KINDS:
        model, point = with_steps(cell), ("hidden", 0)
        vectors = random(2, 4, seed=8)

        def steered(vector: Tensor, model: HookedRNN = model, point: Point = point) -> Tensor:
            return model.run_with_hooks(TOKENS, fwd_hooks=[(at(point, 1), lambda x, hook: x + vector)])

        expected = [by_hand(model, {(*point, 1): lambda x, v=v: x + v}).logits for v in vectors]
        assert_close(torch.func.vmap(steered)(vectors), torch.stack(expected), **exact)


# Memory


class Keep(ObservingHook):
    """Keeps what it was given, and what that held then."""

    def __init__(self, once: bool = False) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.once = once

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        self.kept.append((tensor, tensor.clone()))
        if self.once:
            hook.remove_hooks()


def keep_as_user(keep: Keep) -> Hook:
    """The same, by a hook that does not promise to look only."""
    return lambda x, hook: keep(x, hook)


def steps_of(names: str) -> bool:
    return ".steps." in names


@every_cell
@every_mode
@pytest.mark.parametrize("user", [False, True], ids=["observing", "user"])
@pytest.mark.parametrize(
    ("once", "second"),
    [(True, None), (False, None), (False, doubled), (False, doubled_in_place), (False, behind_autograd)],
)
def test_what_a_hook_kept_is_never_written_over(
    cell: str, mode: Any, user: bool, once: bool, second: Hook | None
) -> None:
    model = with_steps(cell)
    keep = Keep(once)
    hook = keep_as_user(keep) if user else keep
    with mode():
        cache = model.add_caching_hooks(lambda name: not steps_of(name))
        model.add_hook(steps_of, hook)
        if second is not None:
            model.add_hook(steps_of, second)
            model.add_hook(steps_of, keep)
        logits = model(TOKENS)
        cached = {name: kept.clone() for name, kept in cache.items()}
        model(integers(BATCH, STEPS, seed=5))
    assert len(keep.kept) >= len(places(cell))
    assert all(torch.equal(tensor, then) for tensor, then in keep.kept)
    if second is None:
        expected = by_hand(model)
        assert_close(logits.clone(), expected.logits, **exact)
        for point in loop_points(cell):
            assert_close(cached[name_of(point)], expected.stacked(*point).detach(), **exact)
    else:
        function = nonlinear if second is behind_autograd else lambda x: x * 2
        expected = by_hand(model, {(*point, t): function for point, t in places(cell)})
        assert_close(logits.clone(), expected.logits, **exact)


@every_cell
@with_and_without_autograd
def test_a_hook_may_add_up_steps_in_the_first_of_them(cell: str, mode: Any) -> None:
    model = with_steps(cell)
    for point, _ in some_places(cell):
        sums: list[Tensor] = []

        def add_up(x: Tensor, hook: HookPoint, sums: list[Tensor] = sums) -> None:
            if sums:
                sums[0] += x.detach()
            else:
                sums.append(x)

        plain = by_hand(model)
        with mode(), model.hooks(fwd_hooks=[(at(point, t), add_up) for t in range(STEPS)]):
            logits, cache = model.run_with_cache(TOKENS)
        assert_close(logits.clone(), plain.logits, **exact)
        assert_close(sums[0].clone(), plain.stacked(*point).sum(1), **exact)
        for t in range(STEPS):
            assert_close(cache[at(point, t)].clone(), plain.values[*point, t].detach(), **exact)


@every_mode
def test_what_an_edit_brings_is_left_as_it_was(mode: Any) -> None:
    for cell in LOOP_KINDS:
        model = with_steps(cell)
        for point, t in some_places(cell):
            brought = random(BATCH, width_of(model, point))
            before = brought.clone()
            expected = by_hand(model, {(*point, t): lambda x, b=before: b}).logits
            with mode():
                logits = model.run_with_hooks(TOKENS, fwd_hooks=[(at(point, t), lambda x, hook, b=brought: b)])
            assert torch.equal(brought, before)
            assert_close(logits.clone(), expected, **exact)


@every_mode
def test_a_hook_that_raises_leaves_nothing_behind(mode: Any) -> None:
    for cell in LOOP_KINDS:
        model = with_steps(cell)

        def fail(x: Tensor, hook: HookPoint) -> None:
            x.fill_(5.0)
            raise RuntimeError("no further")

        with mode():
            for point, t in some_places(cell):
                with pytest.raises(RuntimeError, match="no further"):
                    model.run_with_hooks(TOKENS, fwd_hooks=[(at(point, t), fail)])
                assert model.list_hooks() == {}
            _, cache = model.run_with_cache(TOKENS)
        for point, t in places(cell):
            assert_close(cache[at(point, t)].clone(), by_hand(model).values[*point, t].detach(), **exact)


# Hooks that come while the loop runs, and sequences of another length


@every_cell
@every_mode
@pytest.mark.parametrize("first", ["blocks.0.hook_hidden", "blocks.0.steps.0.hook_hidden"])
def test_a_hook_that_is_added_while_the_loop_runs_fires_where_the_loop_has_not_been(
    cell: str, mode: Any, first: str
) -> None:
    model, fired = with_steps(cell), []

    def add(x: Tensor, hook: HookPoint) -> None:
        if hook.step in (0, None) and not any(".steps.2." in name for name in model.list_hooks()):
            model.add_hook(at(("hidden", 0), 2), doubled)
            model.add_hook(at(("recurrent", 0), 0), lambda x, hook: fired.append(hook.name))

    model.add_hook(first, add)
    with mode():
        logits = model(TOKENS)
        assert fired == []
        model(TOKENS)
    assert fired == [at(("recurrent", 0), 0)]
    assert_close(logits.clone(), by_hand(model, {("hidden", 0, 2): lambda x: x * 2}).logits, **exact)


@every_cell
def test_a_hook_that_may_edit_beyond_the_end_is_an_error(cell: str) -> None:
    model = with_steps(cell, STEPS + 2)
    plain = make_model(cell=cell)(TOKENS)
    for kind, layer in loop_points(cell):
        name = at((kind, layer), STEPS)
        for hooks in ({"fwd_hooks": [(name, ignore)]}, {"bwd_hooks": [(name, ignore)]}):
            with pytest.raises(HookError, match=re.escape(f"{name} has a hook: expected none beyond the {STEPS}")):
                model.run_with_hooks(TOKENS, **hooks)
    assert model.list_hooks() == {}
    logits, cache = model.run_with_cache(TOKENS)
    assert torch.equal(logits, plain)
    assert {name for name in cache if ".steps." in name} == {at(*place) for place in places(cell)}
    longer = integers(BATCH, STEPS + 2, high=VOCAB)
    edited = by_hand(model, {("hidden", 0, STEPS): nonlinear}, longer)
    assert_close(model.run_with_hooks(longer, fwd_hooks=[(at(("hidden", 0), STEPS), in_place)]), edited.logits, **exact)


@every_cell
def test_steps_beyond_the_last_point_have_the_whole_sequence_s_point_alone(cell: str) -> None:
    model = with_steps(cell, 2)
    edits = {("hidden", 1, t): (lambda x: nonlinear(shifted(x))) if t < 2 else nonlinear for t in range(STEPS)}
    hooks = [
        ("blocks.1.hook_hidden", lambda x, hook: nonlinear(x)),
        (lambda name: ".1.steps." in name and name.endswith("hook_hidden"), lambda x, hook: shifted(x)),
    ]
    assert_close(model.run_with_hooks(TOKENS, fwd_hooks=hooks), by_hand(model, edits).logits, **exact)
    _, cache = model.run_with_cache(TOKENS)
    assert at(("hidden", 1), 1) in cache
    with pytest.raises(UnknownHookPointError, match=re.escape("steps.2")):
        model.add_hook(at(("hidden", 1), 2), ignore)


# Refusals


@every_cell
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x[:1], "shape"),
        (lambda x: x[..., :-1], "shape"),
        (lambda x: x[:, None], "shape"),
        (lambda x: x.float(), "dtype torch.float32: expected torch.float64"),
        (lambda x: x.to("meta"), "device meta: expected cpu"),
        (lambda x: 0.0, "float"),
    ],
)
def test_an_edit_that_cannot_take_the_activation_s_place_is_refused(cell: str, wrong: Callable, said: str) -> None:
    model = with_steps(cell)
    for point, t in some_places(cell):
        with pytest.raises(HookError, match=re.escape(said)) as caught:
            model.run_with_hooks(TOKENS, fwd_hooks=[(at(point, t), lambda x, hook: wrong(x))])
        assert at(point, t) in str(caught.value)
    if said in ("shape", "dtype torch.float32: expected torch.float64"):
        with (
            pytest.raises(HookError, match=said.split()[0]),
            model.hooks(bwd_hooks=[(at(("hidden", 0), 1), lambda grad, hook: wrong(grad))]),
        ):
            model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert model.list_hooks() == {}
