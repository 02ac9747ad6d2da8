"""An edit at one position reaches every later step, and no other: each promise, against a loop written by hand."""

import gc
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from reference import Edits, Unrolled, points, unroll
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN, HookedRNNConfig, ObservingHook
from hooked_rnn.errors import HookError, UnknownHookPointError
from hooked_rnn.hook_points import StepHookPoint

BATCH, STEPS, VOCAB, ANSWERS = 3, 4, 7, 6
STEP_KINDS = ("recurrent", "preact", "hidden")
ARCHITECTURES = list(itertools.product((1, 2, 3), ("relu", "tanh"), (True, False)))
FEW = [(2, "tanh", True), (3, "relu", False)]
ALL_POINTS = points(2)
STEP_POINTS = [point for point in ALL_POINTS if point[0] in STEP_KINDS]
ONCE_POINTS = [point for point in ALL_POINTS if point[0] not in STEP_KINDS]
exact = {"rtol": 0.0, "atol": 1e-12}

architectures = pytest.mark.parametrize(("n_layers", "act_fn", "bias"), ARCHITECTURES)
few_architectures = pytest.mark.parametrize(("n_layers", "act_fn", "bias"), FEW)
every_point = pytest.mark.parametrize("point", ALL_POINTS, ids=str)
step_points = pytest.mark.parametrize("point", STEP_POINTS, ids=str)
once_points = pytest.mark.parametrize("point", ONCE_POINTS, ids=str)

Point = tuple[str, int | None]
Hook = Callable[..., Any]


def make_model(n_layers: int = 2, act_fn: str = "tanh", bias: bool = True, seed: int = 0) -> HookedRNN:
    """A small network in float64, with biases that are not zero."""
    cfg = HookedRNNConfig(
        d_vocab=VOCAB,
        d_vocab_out=ANSWERS,
        d_model=3,
        d_hidden=4,
        n_layers=n_layers,
        act_fn=act_fn,
        bias=bias,
        seed=seed,
        dtype=torch.float64,
    )
    model = HookedRNN(cfg)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".b_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    return model


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*shape: int, high: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


TOKENS = integers(BATCH, STEPS)
LABELS = integers(BATCH, STEPS, high=ANSWERS, seed=1)


def by_hand(model: HookedRNN, edits: Edits | None = None, tokens: Tensor = TOKENS, **kwargs: Any) -> Unrolled:
    weights = dict(model.named_parameters())
    return unroll(weights, tokens, n_layers=model.cfg.n_layers, act_fn=model.cfg.act_fn, edits=edits, **kwargs)


def name_of(point: Point) -> str:
    kind, layer = point
    return f"hook_{kind}" if layer is None else f"blocks.{layer}.hook_{kind}"


def width_of(model: HookedRNN, point: Point) -> int:
    return {"embed": model.cfg.d_model, "logits": model.cfg.d_vocab_out}.get(point[0], model.cfg.d_hidden)


def mean_loss(logits: Tensor, labels: Tensor = LABELS) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def nonlinear(x: Tensor) -> Tensor:
    """Some function of each position by itself."""
    return 1.5 * x - 0.25 + 0.5 * x.roll(1, dims=-1).sin()


def edit_at(point: Point, steps: Iterable[int], function: Callable[[Tensor], Tensor]) -> Edits:
    return {(*point, t): function for t in steps}


# The ways in which a hook can say "this position, that function of it"


def returned(function: Callable[[Tensor], Tensor], t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> Tensor:
        edited = x.clone()
        edited[:, t] = function(x[:, t])
        return edited

    return hook


def in_place(function: Callable[[Tensor], Tensor], t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> None:
        x[:, t] = function(x[:, t].clone())

    return hook


def in_place_and_returned(function: Callable[[Tensor], Tensor], t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> Tensor:
        x[:, t] = function(x[:, t].clone())
        return x

    return hook


def behind_autograd(function: Callable[[Tensor], Tensor], t: int) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> None:
        x.data[:, t] = function(x.data[:, t])

    return hook


WAYS = [returned, in_place, in_place_and_returned, behind_autograd]


# Forward edits


@architectures
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_an_edit_at_any_point_and_position_is_the_edit_of_the_unrolled_network(
    n_layers: int, act_fn: str, bias: bool, grad: bool
) -> None:
    model = make_model(n_layers, act_fn, bias)
    with torch.set_grad_enabled(grad):
        for point, t in itertools.product(points(n_layers), range(STEPS)):
            expected = by_hand(model, edit_at(point, [t], nonlinear)).logits
            assert not torch.allclose(expected, model(TOKENS))  # an edit that does nothing would prove nothing
            for way in WAYS:
                logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), way(nonlinear, t))])
                where = f"{point} {t} {way.__name__}"
                assert_close(logits, expected, **exact, msg=lambda m, where=where: f"{where}: {m}")


@architectures
def test_a_hook_on_the_whole_tensor_edits_every_position_once(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    for point in points(n_layers):
        expected = by_hand(model, edit_at(point, range(STEPS), nonlinear)).logits
        logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))])
        assert_close(logits, expected, **exact)


@architectures
def test_a_hook_that_asks_for_its_step_edits_that_step_alone(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    for point, t in itertools.product(points(n_layers), range(STEPS)):
        if point[0] not in STEP_KINDS:
            continue

        def hook(x: Tensor, hook: HookPoint, t: int = t) -> Tensor | None:
            return nonlinear(x) if hook.step == t else None

        logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), hook)])
        assert_close(logits, by_hand(model, edit_at(point, [t], nonlinear)).logits, **exact)


@few_architectures
def test_edits_at_every_point_at_once(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    edits = {(kind, layer, t): nonlinear for kind, layer in points(n_layers) for t in range(STEPS)}
    logits = model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: True, lambda x, hook: nonlinear(x))])
    assert_close(logits, by_hand(model, edits).logits, **exact)


@few_architectures
def test_an_edit_leaves_earlier_positions_as_they_were_bit_by_bit(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    plain = model(TOKENS)
    for point, t in itertools.product(points(n_layers), range(STEPS)):
        logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), returned(nonlinear, t))])
        assert torch.equal(logits[:, :t], plain[:, :t])
        assert not torch.equal(logits[:, t:], plain[:, t:])


def test_an_edit_of_the_hidden_state_reaches_the_next_step_and_one_of_hook_out_does_not() -> None:
    model = make_model(1, "tanh", False)
    plain = model(TOKENS)
    hidden = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_hidden", returned(nonlinear, 1))])
    out = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_out", returned(nonlinear, 1))])
    assert torch.equal(hidden[:, 1], out[:, 1])
    assert not torch.allclose(hidden[:, 2:], plain[:, 2:])
    assert torch.equal(out[:, 2:], plain[:, 2:])


@few_architectures
def test_the_state_that_is_returned_holds_the_edit(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    start = random(n_layers, BATCH, 4)
    for point in points(n_layers):
        expected = by_hand(model, edit_at(point, range(STEPS), nonlinear), initial_state=start)
        with model.hooks(fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))]):
            logits, state = model(TOKENS, initial_state=start, return_state=True)
        assert_close(logits, expected.logits, **exact)
        assert_close(state, expected.state, **exact)


@every_point
def test_an_edit_may_bring_its_own_tensor_and_gets_it_back_untouched(point: Point) -> None:
    model = make_model()
    brought = random(BATCH, STEPS, width_of(model, point))
    before = brought.clone()

    def double(x: Tensor, hook: HookPoint) -> None:
        x.mul_(2)

    logits = model.run_with_hooks(
        TOKENS, fwd_hooks=[(name_of(point), lambda x, hook: brought), (name_of(point), double)]
    )
    edits = {(*point, t): lambda x, t=t: 2 * before[:, t] for t in range(STEPS)}
    assert_close(logits, by_hand(model, edits).logits, **exact)
    assert torch.equal(brought, before)


@every_point
def test_a_single_step_and_a_single_sequence(point: Point) -> None:
    model, tokens = make_model(), TOKENS[:1, :1]
    logits = model.run_with_hooks(tokens, fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))])
    assert_close(logits, by_hand(model, edit_at(point, [0], nonlinear), tokens).logits, **exact)


# Exactly once


def ignore(x: Tensor, hook: HookPoint) -> None:
    """Do nothing."""


def doubled(x: Tensor, hook: HookPoint) -> Tensor:
    return x * 2


def doubled_in_place(x: Tensor, hook: HookPoint) -> None:
    x *= 2


@every_point
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("double", [doubled, doubled_in_place])
@pytest.mark.parametrize("cached", [False, True], ids=["alone", "cached"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_hook_that_doubles_doubles_exactly_once(
    point: Point, grad: bool, double: Hook, cached: bool, times: int
) -> None:
    model = make_model()
    expected = by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2**times))
    with torch.set_grad_enabled(grad), model.hooks(fwd_hooks=[(name_of(point), double)] * times):
        logits, cache = model.run_with_cache(TOKENS) if cached else (model(TOKENS), None)
    assert_close(logits, expected.logits, **exact)
    assert cache is None or all(
        torch.allclose(cache[name_of(other)], expected.stacked(*other), **exact) for other in ALL_POINTS
    )


@every_point
@pytest.mark.parametrize("prepend", [True, False])
def test_prepend_puts_a_hook_before_the_others(point: Point, prepend: bool) -> None:
    model = make_model()
    model.add_hook(name_of(point), doubled)
    model.add_hook(name_of(point), lambda x, hook: x + 1, prepend=prepend)
    function = (lambda x: (x + 1) * 2) if prepend else (lambda x: x * 2 + 1)
    assert_close(model(TOKENS), by_hand(model, edit_at(point, range(STEPS), function)).logits, **exact)


# Caches around an edit


@every_point
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("way", WAYS)
def test_a_cache_shows_the_edits_made_before_it_and_not_those_after_it(point: Point, grad: bool, way: Callable) -> None:
    model, name, t = make_model(), name_of(point), 1
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


@architectures
def test_a_cache_holds_every_activation_of_the_unrolled_network(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    expected = by_hand(model)
    _, cache = model.run_with_cache(TOKENS)
    assert list(cache) == [name_of(point) for point in points(n_layers)]  # in firing order
    for point in points(n_layers):
        assert_close(cache[name_of(point)], expected.stacked(*point).detach(), **exact)


# Nothing is spoiled between hooks


@every_point
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("spoil", [doubled_in_place, lambda x, hook: x.data.mul_(2), lambda x, hook: x.zero_()])
def test_what_a_hook_kept_is_not_changed_by_a_later_hook(point: Point, grad: bool, spoil: Hook) -> None:
    model, name, kept = make_model(), name_of(point), []

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


@every_point
def test_what_a_hook_kept_for_itself_is_not_changed_by_the_network(point: Point) -> None:
    model, name, kept = make_model(), name_of(point), []
    model.add_hook(name, lambda x, hook: kept.append(x))
    model.add_hook(name, doubled_in_place)
    with torch.no_grad():
        model(TOKENS)
    expected = by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2)).stacked(*point) / 2
    assert_close(kept[-1], expected.detach(), **exact)


@step_points
def test_what_a_hook_wrote_at_other_positions_is_gone_at_the_last_step(point: Point) -> None:
    model, name = make_model(), name_of(point)
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


# Gradients


def gradient_of(cache: Any, point: Point) -> Tensor:
    return cache[f"{name_of(point)}_grad"]


@architectures
def test_cached_gradients_are_the_total_gradients_at_each_position(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    expected = by_hand(model)
    _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    for point in points(n_layers):
        assert_close(gradient_of(cache, point), expected.gradient(mean_loss(expected.logits), *point), **exact)
    for (name, parameter), grad in zip(model.named_parameters(), parameter_gradients(model, expected), strict=True):
        assert_close(parameter.grad, grad, **exact, msg=lambda m, name=name: f"{name}: {m}")


def parameter_gradients(model: HookedRNN, unrolled: Unrolled, loss: Tensor | None = None) -> list[Tensor]:
    loss = mean_loss(unrolled.logits) if loss is None else loss
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def assert_same_parameter_gradients(model: HookedRNN, loss: Tensor, unrolled: Unrolled, expected_loss: Tensor) -> None:
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    expected = parameter_gradients(model, unrolled, expected_loss)
    for parameter, grad, wanted in zip(parameters, grads, expected, strict=True):
        assert_close(torch.zeros_like(parameter) if grad is None else grad, wanted, **exact)


@few_architectures
def test_a_gradient_is_total_also_where_only_one_point_is_watched(n_layers: int, act_fn: str, bias: bool) -> None:
    model = make_model(n_layers, act_fn, bias)
    expected = by_hand(model)
    for point in points(n_layers):
        _, cache = model.run_with_cache(
            TOKENS, return_type="loss", labels=LABELS, incl_bwd=True, names_filter=name_of(point)
        )
        assert_close(gradient_of(cache, point), expected.gradient(mean_loss(expected.logits), *point), **exact)


@every_point
@pytest.mark.parametrize("way", [returned, in_place])
def test_gradients_are_total_under_a_forward_edit(point: Point, way: Callable) -> None:
    model = make_model()
    expected = by_hand(model, edit_at(point, [1], nonlinear))
    with model.hooks(fwd_hooks=[(name_of(point), way(nonlinear, 1))]):
        loss, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    assert_close(loss, mean_loss(expected.logits), **exact)
    for other in ALL_POINTS:
        assert_close(gradient_of(cache, other), expected.gradient(mean_loss(expected.logits), *other), **exact)
    for parameter, grad in zip(model.parameters(), parameter_gradients(model, expected), strict=True):
        assert_close(parameter.grad, grad, **exact)


@every_point
def test_gradients_are_total_where_the_hook_edits_every_position(point: Point) -> None:
    model = make_model()
    expected = by_hand(model, edit_at(point, range(STEPS), nonlinear))
    with model.hooks(fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))]):
        _, cache = model.run_with_cache(
            TOKENS, return_type="loss", labels=LABELS, incl_bwd=True, names_filter=name_of(point)
        )
    assert_close(gradient_of(cache, point), expected.gradient(mean_loss(expected.logits), *point), **exact)
    for parameter, grad in zip(model.parameters(), parameter_gradients(model, expected), strict=True):
        assert_close(parameter.grad, grad, **exact)


@every_point
@pytest.mark.parametrize("t", range(STEPS))
def test_a_constant_that_was_patched_in_has_its_gradient_too(point: Point, t: int) -> None:
    model = make_model()
    constant = random(BATCH, width_of(model, point), seed=2)
    expected = by_hand(model, {(*point, t): lambda x: constant.clone().requires_grad_()})

    def patch(x: Tensor, hook: HookPoint) -> Tensor | None:
        if hook.step not in (None, t):
            return None
        patched = x.detach().clone() if hook.step == t else x.clone()  # cut off from the graph, where that is one step
        patched[:, t] = constant
        return patched

    with model.hooks(fwd_hooks=[(name_of(point), patch)]):
        _, cache = model.run_with_cache(
            TOKENS, return_type="loss", labels=LABELS, incl_bwd=True, names_filter=name_of(point)
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
@pytest.mark.parametrize("t", range(STEPS))
def test_in_a_frozen_model_a_gradient_is_total_or_where_autograd_keeps_none_zero(t: int) -> None:
    frozen, model = make_model().requires_grad_(False), make_model()
    steer = random(4).requires_grad_()

    def add(x: Tensor, hook: HookPoint) -> Tensor | None:
        return x + steer if hook.step == t else None

    with frozen.hooks(fwd_hooks=[("blocks.0.hook_hidden", add)]):
        _, cache = frozen.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    edit = {("hidden", 0, t): lambda x: x + steer}
    expected, tracked = by_hand(model, edit), by_hand(frozen, edit)
    loss = mean_loss(expected.logits)
    assert_close(steer.grad, torch.autograd.grad(loss, steer, retain_graph=True)[0], **exact)
    for point in ALL_POINTS:
        grads = cache.cache_dict.get(f"{name_of(point)}_grad")
        for step, wanted in enumerate(expected.gradient(loss, *point).unbind(1)):
            more_than_by_hand = grads is not None and grads[:, step].any()
            if tracked.values[*point, step].requires_grad or more_than_by_hand:
                assert_close(grads[:, step], wanted, **exact)


@every_point
def test_a_second_backward_pass_starts_anew(point: Point) -> None:
    model, seen = make_model(), []
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


@every_point
def test_a_cached_gradient_is_not_changed_by_a_second_backward_pass(point: Point) -> None:
    model, name = make_model(), name_of(point)
    steer = torch.zeros(BATCH, STEPS, width_of(model, point), dtype=torch.float64, requires_grad=True)
    model.add_hook(name, lambda x, hook: x + steer)
    cache = model.add_caching_hooks(name, incl_bwd=True)
    loss = model(TOKENS, return_type="loss", labels=LABELS)
    loss.backward(retain_graph=True)
    kept, before = cache[f"{name}_grad"], cache[f"{name}_grad"].clone()
    loss.backward()
    assert torch.equal(kept, before)
    assert_close(steer.grad, 2 * before, **exact)


@step_points
def test_backward_hooks_run_from_the_last_step_to_the_first_with_later_positions_filled(point: Point) -> None:
    model, seen = make_model(), []
    expected = by_hand(model)
    wanted = expected.gradient(mean_loss(expected.logits), *point)

    def watch(grad: Tensor, hook: HookPoint) -> None:
        seen.append((hook.step, hook.n_steps))
        assert_close(grad[:, hook.step :], wanted[:, hook.step :], **exact)
        assert not grad[:, : hook.step].any()

    with model.hooks(bwd_hooks=[(name_of(point), watch)]):
        model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert seen == [(t, STEPS) for t in reversed(range(STEPS))]


@every_point
@pytest.mark.parametrize("spoil", [doubled_in_place, lambda grad, hook: grad.data.zero_()])
def test_what_a_backward_hook_kept_is_not_changed_by_a_later_hook(point: Point, spoil: Hook) -> None:
    model, name, kept = make_model(), name_of(point), []
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


@every_point
@pytest.mark.parametrize("edit", [gradient_returned, gradient_returned_as_a_tuple, gradient_edited_in_place])
def test_an_edited_gradient_flows_on_to_earlier_steps(point: Point, edit: Hook) -> None:
    model = make_model()
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


@every_point
@pytest.mark.parametrize("t", range(STEPS))
def test_a_gradient_edited_at_one_position_is_edited_there_alone(point: Point, t: int) -> None:
    model = make_model()
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


@every_point
def test_a_gradient_stopped_at_one_position_is_seen_stopped_by_earlier_steps(point: Point) -> None:
    model, t = make_model(), 2
    expected = by_hand(model)
    expected.values[*point, t].register_hook(torch.zeros_like)
    model.add_hook(name_of(point), in_place(torch.zeros_like, t), dir="bwd")
    _, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    for other in ALL_POINTS:
        if other != point:
            assert_close(gradient_of(cache, other), expected.gradient(mean_loss(expected.logits), *other), **exact)


@every_point
@pytest.mark.parametrize("edit", [doubled, doubled_in_place])
def test_a_forward_edit_and_a_backward_hook_share_a_point(point: Point, edit: Hook) -> None:
    model, seen = make_model(), []
    expected = by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2))
    hook = (name_of(point), lambda grad, hook: seen.append(grad.clone()))
    with model.hooks(fwd_hooks=[(name_of(point), edit)], bwd_hooks=[hook]):
        loss = model(TOKENS, return_type="loss", labels=LABELS)
        assert_same_parameter_gradients(model, loss, expected, mean_loss(expected.logits))
    assert_close(seen[-1], expected.gradient(mean_loss(expected.logits), *point), **exact)


@every_point
def test_a_forward_and_a_backward_hook_on_one_point_leave_no_memory_behind(point: Point) -> None:
    model = make_model()

    def tensors_left_behind() -> int:
        with model.hooks(fwd_hooks=[(name_of(point), doubled)], bwd_hooks=[(name_of(point), lambda g, hook: g * 2)]):
            model(TOKENS, return_type="loss", labels=LABELS).backward()
        model.zero_grad()
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    after_one = tensors_left_behind()
    after_two = tensors_left_behind()
    assert after_two <= after_one


@every_point
def test_a_hook_that_only_looks_does_not_change_a_gradient(point: Point) -> None:
    model = make_model()
    plain = by_hand(model)
    for hook in (lambda x, hook: None, lambda x, hook: x, lambda x, hook: x.clone()):
        with model.hooks(fwd_hooks=[(name_of(point), hook)], bwd_hooks=[(name_of(point), hook)]):
            loss = model(TOKENS, return_type="loss", labels=LABELS)
            assert_same_parameter_gradients(model, loss, plain, mean_loss(plain.logits))


@step_points
def test_second_derivatives_pass_through_hooked_points(point: Point) -> None:
    model = make_model()
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


# Learned parameters inside a hook


@every_point
@pytest.mark.parametrize("edit_in_place", [True, False])
@pytest.mark.parametrize("start", [random, torch.ones])
def test_a_mask_that_is_learned_gets_its_exact_gradient(point: Point, edit_in_place: bool, start: Callable) -> None:
    model = make_model()
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


@every_point
def test_a_steering_vector_for_each_position_gets_its_exact_gradient_in_a_frozen_model(point: Point) -> None:
    model = make_model().requires_grad_(False)
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


@step_points
@pytest.mark.parametrize("watched", [True, False])
def test_a_hook_that_reads_earlier_positions_gets_exact_values_and_gradients(point: Point, watched: bool) -> None:
    model = make_model()
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


@every_point
def test_a_penalty_on_the_activations_that_a_hook_kept_is_part_of_the_gradient(point: Point) -> None:
    model, kept = make_model(), []
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


# Attribution patching


@every_point
def test_attribution_patching_agrees_with_finite_differences(point: Point) -> None:
    model, step = make_model(), 1e-5
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
    assert attributed.abs().max() > 1e-3
    assert_close(attributed, torch.tensor(measured, dtype=torch.float64), rtol=1e-6, atol=1e-8)


# Registration: what holds of a plain TransformerLens HookPoint holds here


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


# Hooks that raise, run the model again, remove themselves


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


# Modes of autograd


@every_point
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS)
def test_edits_are_the_same_bits_with_and_without_autograd(point: Point, mode: Any, way: Callable) -> None:
    model = make_model()
    hooks = [(name_of(point), way(nonlinear, 1)), (name_of(point), doubled)]
    with model.hooks(fwd_hooks=hooks):
        with_autograd, cache = model.run_with_cache(TOKENS)
        with mode():
            without, cache_without = model.run_with_cache(TOKENS)
    assert torch.equal(with_autograd, without)
    assert not without.requires_grad
    assert all(torch.equal(cache[name], cache_without[name]) for name in cache)


@every_point
def test_autograd_switched_on_again_inside_inference_mode_changes_nothing(point: Point) -> None:
    model = make_model()
    with torch.inference_mode(), torch.enable_grad():
        logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), doubled)])
    assert_close(logits, by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2)).logits.detach(), **exact)


@every_point
def test_backward_hooks_are_idle_without_autograd(point: Point) -> None:
    model, seen = make_model(), []
    with torch.no_grad(), model.hooks(bwd_hooks=[(name_of(point), lambda grad, hook: seen.append(grad))]):
        assert torch.equal(model(TOKENS), make_model()(TOKENS))
    assert seen == []


# torch's own hooks


@every_point
def test_a_raw_forward_hook_is_a_hook(point: Point) -> None:
    model = make_model()
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


@every_point
def test_a_raw_full_backward_hook_is_a_hook(point: Point) -> None:
    model, seen = make_model(), []
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


@every_point
def test_pre_hooks_are_refused(point: Point) -> None:
    module = make_model().hook_dict[name_of(point)]
    for register in (
        module.register_forward_pre_hook,
        module.register_full_backward_pre_hook,
        module.register_backward_hook,
    ):
        with pytest.raises(HookError, match=re.escape(name_of(point))):
            register(lambda *args: None)


# What a hook in the time loop is given


@step_points
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_counting_hook_fires_once_a_step_in_time_order(point: Point, grad: bool) -> None:
    model, steps = make_model(), []
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


@step_points
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_hook_is_given_what_arrived_so_far_and_zeros_beyond(point: Point, grad: bool) -> None:
    model, given = make_model(), []

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


@every_point
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_an_observing_hook_is_called_once_with_everything(point: Point, grad: bool) -> None:
    model, watch = make_model(), Watch()
    with torch.set_grad_enabled(grad):
        model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), watch)])
    ((step, tensor),) = watch.given
    assert step == (STEPS - 1 if point[0] in STEP_KINDS else None)
    assert not tensor.requires_grad
    assert_close(tensor, by_hand(model).stacked(*point).detach(), **exact)


@step_points
def test_without_autograd_a_hook_that_looks_is_given_two_tensors_however_many_steps(point: Point) -> None:
    model, given = make_model(), []
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


@every_point
def test_a_hook_that_looks_makes_the_graph_longer_by_a_constant_a_step(point: Point) -> None:
    model = make_model()

    def cost(n_steps: int, hook: Hook) -> int:
        return edges(model.run_with_hooks(integers(BATCH, n_steps), fwd_hooks=[(name_of(point), hook)]))

    for looks in (lambda x, hook: None, lambda x, hook: x):
        assert cost(32, looks) < 2.2 * cost(16, looks)
    if point[0] in STEP_KINDS:
        assert cost(32, doubled) > 2.2 * cost(16, doubled)  # autograd sees through all of the tensor


@step_points
def test_an_observing_hook_has_one_tensor_in_the_backward_pass(point: Point) -> None:
    model, watch = make_model(), Watch()
    with model.hooks(bwd_hooks=[(name_of(point), watch)]):
        model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert [step for step, _ in watch.given] == list(reversed(range(STEPS)))
    assert len({x.untyped_storage().data_ptr() for _, x in watch.given}) == 1


# The plain path


@every_point
@pytest.mark.parametrize("start", [None, 1], ids=["zeros", "initial_state"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_hooked_path_gives_the_plain_path_s_bits(point: Point, start: int | None, dtype: torch.dtype) -> None:
    for act_fn, bias in itertools.product(("relu", "tanh"), (True, False)):
        model = make_model(2, act_fn, bias).to(dtype)
        state = None if start is None else random(2, BATCH, 4).to(dtype)
        plain = model(TOKENS, initial_state=state)
        for hook in (Watch(), lambda x, hook: None, lambda x, hook: x):
            hooked = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), hook)], initial_state=state)
            assert torch.equal(hooked, plain)


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


# Refusals


@every_point
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x[:, :-1], "shape"),
        (lambda x: x[:1], "shape"),
        (lambda x: x[..., :-1], "shape"),
        (lambda x: x[:, 0], "shape"),
        (lambda x: x.float(), "dtype torch.float32: expected torch.float64"),
        (lambda x: x.to("meta"), "device meta: expected cpu"),
        (lambda x: x.tolist(), "list"),
        (lambda x: 0.0, "float"),
        (lambda x: (x,), "tuple"),
    ],
)
def test_an_edit_that_cannot_take_the_activation_s_place_is_refused(point: Point, wrong: Hook, said: str) -> None:
    model = make_model()
    with pytest.raises(HookError, match=re.escape(said)) as caught:
        model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), lambda x, hook: wrong(x))])
    assert name_of(point) in str(caught.value)
    assert model.list_hooks() == {}


@every_point
@pytest.mark.parametrize(("wrong", "said"), [(lambda g: g[:, :1, :1], "shape"), (lambda g: g.float(), "dtype")])
def test_a_gradient_of_another_kind_is_refused(point: Point, wrong: Hook, said: str) -> None:
    model = make_model()
    with (
        pytest.raises(HookError, match=said),
        model.hooks(bwd_hooks=[(name_of(point), lambda grad, hook: wrong(grad))]),
    ):
        model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert model.list_hooks() == {}


def enter(model: HookedRNN, name: Any, direction: str) -> None:
    with model.hooks(**{f"{direction}_hooks": [(name, ignore)]}):
        pass


BY_NAME: dict[str, Callable[[HookedRNN, Any], Any]] = {
    "add_hook": lambda model, name: model.add_hook(name, ignore),
    "add_perma_hook": lambda model, name: model.add_perma_hook(name, ignore),
    "hooks, forward": lambda model, name: enter(model, name, "fwd"),
    "hooks, backward": lambda model, name: enter(model, name, "bwd"),
    "run_with_hooks": lambda model, name: model.run_with_hooks(TOKENS, fwd_hooks=[(name, ignore)]),
    "run_with_cache": lambda model, name: model.run_with_cache(TOKENS, names_filter=name),
    "add_caching_hooks": lambda model, name: model.add_caching_hooks(name),
}


@pytest.mark.parametrize("call", BY_NAME.values(), ids=BY_NAME)
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("blocks.0.hook_hiden", "blocks.0.hook_hidden"),
        ("blocks.7.hook_hidden", "blocks.1.hook_hidden"),
        ("hook_logit", "hook_logits"),
        ("blocks.0", "blocks.0.hook_"),  # a module, but no hook point
        (lambda name: "attn" in name, "hook_embed"),
    ],
    ids=str,
)
def test_a_name_that_no_hook_point_has_is_refused_with_the_nearest(call: Callable, name: Any, nearest: str) -> None:
    model = make_model()
    with pytest.raises(UnknownHookPointError, match=re.escape(nearest)):
        call(model, name)
    assert model.list_hooks() == {}
    assert model.context_level == 0


@pytest.mark.parametrize("collection", [list, tuple, set])
def test_one_wrong_name_among_right_ones_is_refused(collection: Callable) -> None:
    model = make_model()
    with pytest.raises(UnknownHookPointError, match=r"hook_embd.*hook_embed"):
        model.run_with_cache(TOKENS, names_filter=collection(["hook_logits", "hook_embd"]))
    assert model.list_hooks() == {}
    _, cache = model.run_with_cache(TOKENS, names_filter=collection(["hook_logits", "hook_embed"]))
    assert list(cache) == ["hook_embed", "hook_logits"]


def test_one_wrong_name_in_hooks_leaves_none_of_the_right_ones() -> None:
    model = make_model()
    with pytest.raises(UnknownHookPointError):
        model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", doubled), ("hook_embd", doubled)])
    assert model.list_hooks() == {}
    assert torch.equal(model(TOKENS), make_model()(TOKENS))
