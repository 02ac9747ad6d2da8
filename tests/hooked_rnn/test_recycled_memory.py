"""Without autograd the hooked pass writes in memory that it has rather than in new memory; nobody can tell."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from causality import (
    BATCH,
    LABELS,
    STEPS,
    TOKENS,
    Hook,
    Point,
    by_hand,
    doubled,
    doubled_in_place,
    edit_at,
    exact,
    integers,
    make_model,
    name_of,
    nonlinear,
    parts_of,
    random,
    random_state,
    step_points_and_a_few_gated,
    step_points_of_cells,
    width_of,
)
from reference import points
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN, HookedRNNConfig

MODES = [torch.no_grad, torch.inference_mode]

modes = pytest.mark.parametrize("mode", MODES)


def of_width(d_hidden: int, act_fn: str = "relu", bias: bool = False, cell: str = "rnn") -> HookedRNN:
    sizes = {"d_vocab": 7, "d_vocab_out": 6, "d_model": 3, "d_hidden": d_hidden, "n_layers": 2}
    return HookedRNN(HookedRNNConfig(**sizes, cell=cell, act_fn=act_fn, bias=bias, seed=1)).double()


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@modes
@pytest.mark.parametrize(("act_fn", "bias"), [("relu", False), ("tanh", True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("start", [None, 1], ids=["zeros", "initial_state"])
def test_a_cache_of_everything_holds_the_plain_path_s_bits(
    mode: Any, act_fn: str, bias: bool, dtype: torch.dtype, start: int | None
) -> None:
    for d_hidden, batch, n_steps in itertools.product((3, 32), (1, 300), (1, 2, 5)):
        model = of_width(d_hidden, act_fn, bias).to(dtype)
        tokens = integers(batch, n_steps)
        state = None if start is None else random(2, batch, d_hidden).to(dtype)
        with mode():
            plain, plain_state = model(tokens, initial_state=state, return_state=True)
            (logits, final), cache = model.run_with_cache(tokens, initial_state=state, return_state=True)
        _, with_autograd = model.run_with_cache(tokens, initial_state=state)
        assert torch.equal(logits, plain)
        assert torch.equal(final, plain_state)
        assert all(torch.equal(cache[name], with_autograd[name]) for name in with_autograd)
        assert all(cache[name].is_contiguous() for name in cache)


@modes
def test_two_caching_hooks_where_one_tensor_passes_share_it_as_outside_the_loop(mode: Any) -> None:
    model = make_model()
    with mode():
        _, cache = model.run_with_cache(TOKENS)
        assert memory(cache["hidden", 0]) == memory(cache["out", 0])
        with model.hooks(fwd_hooks=[("blocks.0.hook_hidden", doubled)]):
            _, cache = model.run_with_cache(TOKENS)
        assert memory(cache["hidden", 0]) == memory(cache["out", 0])  # the cache comes after the edit
        model.add_caching_hooks("blocks.0.hook_hidden")
        model.add_hook("blocks.0.hook_hidden", doubled)
        cache = model.add_caching_hooks("blocks.0.hook_out")
        before = model.add_caching_hooks("blocks.0.hook_recurrent")
        model(TOKENS)
        assert memory(before["blocks.0.hook_recurrent"]) != memory(cache["blocks.0.hook_out"])
    model.reset_hooks()
    _, cache = model.run_with_cache(TOKENS)
    assert memory(cache["hidden", 0]) != memory(cache["out", 0])  # autograd needs the one as it is


def scribble(x: Tensor, hook: HookPoint) -> None:
    """Double this step, and write nonsense at all others."""
    here = x[:, hook.step].clone()
    x.fill_(9.0)
    x[:, hook.step] = 2 * here


def scribble_behind_autograd(x: Tensor, hook: HookPoint) -> None:
    scribble(x.data, hook)


def replace_the_data(x: Tensor, hook: HookPoint) -> None:
    x.data = x.data * 2


def at_one_step(x: Tensor, hook: HookPoint) -> Tensor:
    x[:, 1] = 0
    return x


def flip_the_sign_of_zeros(x: Tensor, hook: HookPoint) -> None:
    x.data.mul_(0).neg_()


def edit_from_the_second_step_to_the_third(x: Tensor, hook: HookPoint) -> None:
    if hook.step == 0:
        hook.add_hook(doubled, level=7)
    if hook.step == 2:
        hook.remove_hooks(level=7)


HOOKS = [
    doubled,
    doubled_in_place,
    scribble,
    scribble_behind_autograd,
    replace_the_data,
    at_one_step,
    flip_the_sign_of_zeros,
    edit_from_the_second_step_to_the_third,
]


@modes
@pytest.mark.parametrize("hook", HOOKS)
@step_points_and_a_few_gated
def test_a_pass_is_the_same_bits_as_under_autograd_where_nothing_is_recycled(
    mode: Any, hook: Hook, cell: str, point: Point
) -> None:
    def run() -> list[Tensor]:
        model = make_model(cell=cell)
        before = model.add_caching_hooks()
        model.add_hook(name_of(point), hook)
        after = model.add_caching_hooks()
        start = random_state(model) if point[0] == "carry" else None
        logits, state = model(TOKENS, initial_state=start, return_state=True)
        return [logits, *parts_of(state), *before.values(), *after.values()]

    expected = run()
    with mode():
        got = run()
    assert all(torch.equal(x, y) and torch.equal(x.signbit(), y.signbit()) for x, y in zip(got, expected, strict=True))


KEEP: list[Callable[[Tensor, int], Any]] = [
    lambda x, step: x,
    lambda x, step: x.data,
    lambda x, step: x.detach(),
    lambda x, step: x[:, step],
    lambda x, step: x.numpy(),
]


@modes
@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("steps", [range(STEPS), [0], [1, 2], [STEPS - 1]])
@step_points_and_a_few_gated
def test_what_a_hook_kept_of_any_step_is_not_written_over(
    mode: Any, keep: Callable, steps: Sequence[int], cell: str, point: Point
) -> None:
    model, kept = make_model(cell=cell), []

    def double_and_keep(x: Tensor, hook: HookPoint) -> None:
        x[:, hook.step] *= 2
        if hook.step in steps:
            kept.append((hook.step, keep(x, hook.step)))

    with mode():
        model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), double_and_keep)])
        model(integers(BATCH, STEPS, seed=5))
    expected = by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2)).stacked(*point).detach()
    assert [step for step, _ in kept] == list(steps)
    for step, held in kept:
        held = torch.as_tensor(held)
        assert_close((held if held.dim() == 2 else held[:, step]).clone(), expected[:, step], **exact)


@modes
@pytest.mark.parametrize("write", [scribble, scribble_behind_autograd])
@step_points_of_cells
def test_the_last_step_shows_what_arrived_wherever_the_hook_wrote(
    mode: Any, write: Hook, cell: str, point: Point
) -> None:
    model, seen = make_model(cell=cell), []

    def look_and_write(x: Tensor, hook: HookPoint) -> None:
        seen.append(x.clone())
        write(x, hook)

    with mode():
        model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), look_and_write)])
    doubled_each = by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2)).stacked(*point)
    assert_close(seen[-1].clone(), doubled_each.detach() / 2, **exact)


@modes
@step_points_of_cells
def test_an_edit_that_keeps_nothing_is_given_one_tensor(mode: Any, cell: str, point: Point) -> None:
    model, addresses = make_model(cell=cell), set()
    with mode():
        model.run_with_hooks(
            integers(BATCH, 16), fwd_hooks=[(name_of(point), lambda x, hook: addresses.add(memory(x)))]
        )
    assert len(addresses) == 1


@modes
@pytest.mark.parametrize("step", [0, 2, STEPS - 1])
@step_points_and_a_few_gated
def test_a_hook_that_raises_leaves_nothing_behind(mode: Any, step: int, cell: str, point: Point) -> None:
    model, kept = make_model(cell=cell), []

    def fail(x: Tensor, hook: HookPoint) -> None:
        kept.append(x)
        x.fill_(5.0)
        if hook.step == step:
            raise RuntimeError("no further")

    with mode():
        model.add_caching_hooks()
        with pytest.raises(RuntimeError, match="no further"):
            model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), fail)])
        assert model.hook_dict[name_of(point)].step is None
        _, cache = model.run_with_cache(TOKENS)
    for other in points(2, cell):
        assert_close(cache[name_of(other)].clone(), by_hand(model).stacked(*other).detach(), **exact)
    assert all((x[:, 0] == 5.0).all() for x in kept)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch's own forward mode
@step_points_of_cells
def test_tangents_of_forward_mode_reach_the_logits_without_autograd(cell: str, point: Point) -> None:
    model = make_model(cell=cell)
    direction = random(BATCH, width_of(model, point), seed=8)

    def steer(x: Tensor, hook: HookPoint) -> None:
        if hook.step == 1:  # adds nothing but a tangent
            x[:, 1] += forward_ad.make_dual(torch.zeros_like(direction), direction)

    with torch.no_grad(), forward_ad.dual_level():
        model.add_caching_hooks()
        logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), steer)])
        tangent = forward_ad.unpack_dual(logits).tangent

    def moved(size: float) -> Tensor:
        return by_hand(model, edit_at(point, [1], lambda x: x + size * direction)).logits.detach()

    assert_close(tangent, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-8)


@step_points_of_cells
def test_vmap_over_a_steering_vector(cell: str, point: Point) -> None:
    model = make_model(cell=cell)
    vectors = random(2, width_of(model, point), seed=8)

    def steered(vector: Tensor) -> Tensor:
        return model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), lambda x, hook: x + vector)])

    expected = torch.stack([by_hand(model, edit_at(point, range(STEPS), lambda x, v=v: x + v)).logits for v in vectors])
    assert_close(torch.func.vmap(steered)(vectors), expected, **exact)


@pytest.mark.parametrize("bias", [True, False])
def test_autocast_chooses_the_same_dtypes_with_and_without_autograd(bias: bool) -> None:
    model = make_model(bias=bias).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits, cache = model.run_with_cache(TOKENS)
        with torch.no_grad():
            plain = model(TOKENS)
            without, cache_without = model.run_with_cache(TOKENS)
    assert torch.equal(logits, without)
    assert torch.equal(logits, plain)
    for name in cache:
        assert cache[name].dtype == cache_without[name].dtype
        assert torch.equal(cache[name], cache_without[name])


def test_the_gradient_of_a_loss_after_a_pass_without_autograd() -> None:
    model, untouched = make_model(), make_model()
    with torch.no_grad():
        model.run_with_cache(TOKENS)
    for each in (model, untouched):
        each(TOKENS, return_type="loss", labels=LABELS).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


@modes
@step_points_of_cells
def test_odd_widths_and_hooks_that_change_some_steps(mode: Any, cell: str, point: Point) -> None:
    for d_hidden in (3, 5, 8):
        model = of_width(d_hidden, cell=cell)

        def sometimes(x: Tensor, hook: HookPoint) -> Tensor | None:
            return nonlinear(x) if hook.step % 2 else None

        with mode():
            logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), sometimes)])
        edited = by_hand(model, edit_at(point, range(1, STEPS, 2), nonlinear))
        assert_close(logits.clone(), edited.logits.detach(), **exact)
