"""Under autograd a hook in the time loop is given one memory at all steps; nobody can tell it from new tensors.

The reference is the network unrolled by hand, where at each step the same hook is given a new stack of all that
arrived there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from causality import (
    BATCH,
    LABELS,
    STEPS,
    TOKENS,
    Point,
    by_hand,
    doubled,
    exact,
    make_model,
    mean_loss,
    name_of,
    nonlinear,
    random,
    step_points,
)
from reference import Edits
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from hooked_rnn import HookedRNN, hook_points

D_HIDDEN = 4


@dataclass
class Case:
    """A hook with a learned weight and a memory of its own, and what it adds to the loss."""

    function: Callable[["Case", Tensor, int], Tensor | None]
    weight: Tensor = field(default_factory=lambda: (1.5 + random(D_HIDDEN, seed=3)).requires_grad_())
    kept: list[Any] = field(default_factory=list)

    def __call__(self, x: Tensor, hook: Any) -> Tensor | None:
        return self.function(self, x, hook.step)

    def penalty(self) -> Tensor:
        """Of the tensors that it kept, as they are when the loss is made."""
        kept = (x for x in self.kept if isinstance(x, Tensor))
        return sum((x.pow(2).sum() * i for i, x in enumerate(kept, 1)), torch.zeros(()).double())


def edits_of(case: Case, point: Point, n_steps: int = STEPS) -> Edits:
    """The case at every step of the unrolled network, given a new tensor each time."""
    arrived: list[Tensor] = []

    def at(t: int) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            arrived.append(x)
            given = torch.stack(arrived + [torch.zeros_like(x)] * (n_steps - 1 - t), dim=1)
            result = case(given, SimpleNamespace(step=t))
            return (given if result is None else result)[:, t]

        return edit

    return {(*point, t): at(t) for t in range(n_steps)}


def edit_one_step(case: Case, x: Tensor, t: int) -> None:
    if t == 1:
        x[:, 1] = 0


def scale_one_step(case: Case, x: Tensor, t: int) -> Tensor | None:
    return x * case.weight if t == 1 else None


def scale(case: Case, x: Tensor, t: int) -> Tensor:
    return x * case.weight


def scale_own_row(case: Case, x: Tensor, t: int) -> None:
    x[:, t] *= case.weight


def scale_in_place(case: Case, x: Tensor, t: int) -> None:
    x.mul_(case.weight)


def mix(case: Case, x: Tensor, t: int) -> Tensor:
    return x + case.weight * x.sum(1, keepdim=True)


def mix_in_place(case: Case, x: Tensor, t: int) -> None:
    x[:, t] = x.mean(1) * case.weight


def mix_at_odd_steps(case: Case, x: Tensor, t: int) -> Tensor | None:
    return x.cumsum(1).sin() * case.weight if t % 2 else None


def scribble_then_mix(case: Case, x: Tensor, t: int) -> None:
    """Write nonsense at another position; later steps must find there what arrived."""
    x[:, t] = x.sum(1) * case.weight
    x[:, t - 1 if t else 2] = 7.0


def scribble_through_a_detached_alias(case: Case, x: Tensor, t: int) -> Tensor:
    result = x.sum(1, keepdim=True) * case.weight + x
    x.detach().fill_(7.0)
    return result


def scribble_behind_autograd(case: Case, x: Tensor, t: int) -> Tensor:
    result = (x.sum(1, keepdim=True) * case.weight + x).clone()
    x.data.fill_(7.0)
    return result


def keep(case: Case, x: Tensor, t: int) -> None:
    case.kept.append(x)


def keep_a_row(case: Case, x: Tensor, t: int) -> None:
    case.kept.append(x[:, : t + 1])


def keep_the_first(case: Case, x: Tensor, t: int) -> Tensor | None:
    if t == 0:
        case.kept.append(x)
        return None
    return x + case.kept[0][:, :1] * case.weight


def keep_and_write_later(case: Case, x: Tensor, t: int) -> None:
    """Write at the next step in what was given at this one."""
    case.kept.append(x)
    if t:
        case.kept[t - 1][:, t - 1] *= case.weight
        x[:, t] = x.sum(1)


def keep_an_array(case: Case, x: Tensor, t: int) -> Tensor:
    case.kept.append(x.detach().numpy())
    return x + torch.from_numpy(sum(array.sum(1, keepdims=True) for array in case.kept))


def return_a_view(case: Case, x: Tensor, t: int) -> Tensor:
    return x[:].view_as(x)


def return_a_view_and_keep_it(case: Case, x: Tensor, t: int) -> Tensor:
    case.kept.append(x.transpose(0, 1).transpose(0, 1))
    return case.kept[-1]


def write_in_a_view(case: Case, x: Tensor, t: int) -> Tensor:
    row = x[:, t]
    row.mul_(case.weight)
    return x[:]


def patch(case: Case, x: Tensor, t: int) -> Tensor | None:
    return case.weight.sin().expand_as(x) if t == 2 else None


def replace_the_data(case: Case, x: Tensor, t: int) -> Tensor:
    result = x + x.sum(1, keepdim=True) * case.weight
    x.data = x.data * 3
    return result


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grads[0]


def square(case: Case, x: Tensor, t: int) -> Tensor:
    return Square.apply(x).sum(1, keepdim=True) + x


STATELESS = [
    edit_one_step,
    scale_one_step,
    scale,
    scale_own_row,
    scale_in_place,
    mix,
    mix_in_place,
    mix_at_odd_steps,
    scribble_then_mix,
    scribble_through_a_detached_alias,
    scribble_behind_autograd,
    return_a_view,
    write_in_a_view,
    patch,
    replace_the_data,
    square,
]

KEEPING = [
    keep,
    keep_a_row,
    keep_the_first,
    keep_and_write_later,
    keep_an_array,
    return_a_view_and_keep_it,
]

WRITE_WHERE_LATER_STEPS_LOOK = [
    mix_in_place,
    scribble_then_mix,
    scribble_through_a_detached_alias,
    scribble_behind_autograd,
]
"""Without autograd these may see what they wrote themselves at earlier positions."""

NOT_FOR_TORCH_FUNC = [replace_the_data, square]

stateless = pytest.mark.parametrize("function", STATELESS)


def both_losses(model: HookedRNN, function: Callable, point: Point) -> tuple[tuple[Tensor, Case], tuple[Tensor, Case]]:
    """The loss and the case of a hooked pass, and of the pass by hand."""
    case, reference = Case(function), Case(function)
    loss = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), case)], return_type="loss", labels=LABELS)
    wanted = mean_loss(by_hand(model, edits_of(reference, point)).logits)
    return (loss + case.penalty(), case), (wanted + reference.penalty(), reference)


def gradients(model: HookedRNN, loss: Tensor, case: Case, **kwargs: Any) -> list[Tensor]:
    inputs = [*model.parameters(), case.weight]
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, **kwargs)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def assert_same_loss_and_gradients(function: Callable, point: Point) -> None:
    model = make_model()
    (loss, case), (wanted, reference) = both_losses(model, function, point)
    assert_close(loss, wanted, **exact)
    expected = gradients(model, wanted, reference)
    for _ in range(2):  # the graph may be walked again
        for got, want in zip(gradients(model, loss, case), expected, strict=True):
            assert_close(got, want, **exact)


@step_points
@pytest.mark.parametrize("function", [*STATELESS, *KEEPING])
def test_values_and_gradients_are_those_of_a_new_tensor_at_each_step(function: Callable, point: Point) -> None:
    assert_same_loss_and_gradients(function, point)


POINT: Point = ("hidden", 0)


@pytest.mark.parametrize("function", [scale, mix, keep, keep_the_first, square, return_a_view_and_keep_it])
def test_control_memory_that_somebody_holds_must_not_be_written(
    function: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_points, "_holders", lambda tensor: hook_points._ONE_HOLDER)
    if function is mix:  # holds nothing: a sum saves no argument
        assert_same_loss_and_gradients(function, POINT)
    else:  # autograd notices what it saved itself, and the rest shows in the numbers
        with pytest.raises((AssertionError, RuntimeError)):
            assert_same_loss_and_gradients(function, POINT)


@pytest.mark.parametrize("function", [scribble_then_mix, scribble_behind_autograd, mix_in_place])
def test_control_memory_that_a_hook_wrote_in_must_not_be_shown_again(
    function: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_points._LinkedRows, "_reusable", lambda rows: rows.filled)
    with pytest.raises((AssertionError, RuntimeError)):
        assert_same_loss_and_gradients(function, POINT)


@pytest.mark.parametrize("function", [mix, mix_at_odd_steps, keep, edit_one_step])
def test_control_gradients_of_earlier_positions_need_the_chain(
    function: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_row = staticmethod(lambda ctx, grad: (None, grad[:, ctx.step], None))
    monkeypatch.setattr(hook_points._Link, "backward", own_row)
    if function is edit_one_step:  # looks at one position only
        assert_same_loss_and_gradients(function, POINT)
    else:
        with pytest.raises(AssertionError):
            assert_same_loss_and_gradients(function, POINT)


@step_points
@stateless
def test_second_derivatives_are_those_of_a_new_tensor_at_each_step(function: Callable, point: Point) -> None:
    model = make_model()

    def curvature(loss: Tensor, case: Case) -> list[Tensor]:
        slope = sum(
            (g * random(*g.shape, seed=i)).sum() for i, g in enumerate(gradients(model, loss, case, create_graph=True))
        )
        return gradients(model, slope, case)

    got, wanted = (curvature(*each) for each in both_losses(model, function, point))
    for left, right in zip(got, wanted, strict=True):
        assert_close(left, right, **exact)


@stateless
def test_a_batch_of_gradients_in_one_backward_pass(function: Callable) -> None:
    model = make_model()
    (loss, case), (wanted, reference) = both_losses(model, function, POINT)
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    got = gradients(model, loss, case, grad_outputs=weights, is_grads_batched=True)
    for batched, single in zip(got, gradients(model, wanted, reference), strict=True):
        if batched.shape != single.shape:  # zeros where the loss does not depend on one
            assert_close(batched, torch.stack([weight * single for weight in weights]), **exact)


@pytest.mark.parametrize(
    ("function", "reentrant"),
    [
        *((function, False) for function in STATELESS),
        # Its first pass is without autograd.
        *((function, True) for function in STATELESS if function not in WRITE_WHERE_LATER_STEPS_LOOK),
    ],
)
def test_a_checkpointed_pass_has_the_same_gradients(function: Callable, reentrant: bool) -> None:
    model, case, reference = make_model(), Case(function), Case(function)
    state = random(2, BATCH, D_HIDDEN, seed=5).requires_grad_()  # a reentrant one wants an argument with a gradient
    wanted = by_hand(model, edits_of(reference, POINT), initial_state=state).logits

    def run(state: Tensor) -> Tensor:
        return model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(POINT), case)], initial_state=state)

    leaves = [*model.parameters(), case.weight, state]
    mean_loss(checkpoint(run, state, use_reentrant=reentrant)).backward()
    got = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    leaves[-2] = reference.weight
    expected = torch.autograd.grad(mean_loss(wanted), leaves, allow_unused=True)
    for left, leaf, right in zip(got, leaves, expected, strict=True):
        assert_close(left, torch.zeros_like(leaf) if right is None else right, **exact)


@step_points
@stateless
def test_a_frozen_model_gives_the_hook_s_own_weight_its_gradient(function: Callable, point: Point) -> None:
    model = make_model().requires_grad_(False)
    (loss, case), (wanted, reference) = both_losses(model, function, point)
    assert_close(loss, wanted, **exact)
    assert loss.requires_grad == wanted.requires_grad
    if wanted.requires_grad:
        expected = torch.autograd.grad(wanted, reference.weight)
        assert_close(torch.autograd.grad(loss, case.weight), expected, **exact)


def test_what_another_hook_wrote_in_a_tensor_and_let_go_is_not_shown_at_the_next_step() -> None:
    model, name = make_model(), name_of(POINT)
    lent: list[Tensor] = []

    def lend(x: Tensor, hook: Any) -> Tensor:
        lent.append(x)
        return x + x.sum(1, keepdim=True)

    def write(x: Tensor, hook: Any) -> None:
        lent.pop().fill_(7.0)

    hooks = [(name, lend), (name, write)]
    loss = model.run_with_hooks(TOKENS, fwd_hooks=hooks, return_type="loss", labels=LABELS)
    case = Case(lambda case, x, t: x + x.sum(1, keepdim=True))
    wanted = mean_loss(by_hand(model, edits_of(case, POINT)).logits)
    assert_close(loss, wanted, **exact)
    for got, want in zip(gradients(model, loss, case), gradients(model, wanted, case), strict=True):
        assert_close(got, want, **exact)


@step_points
def test_hooks_on_the_gradient_of_what_a_hook_was_given_run_where_there_is_one(point: Point) -> None:
    seen: list[tuple[int, Tensor]] = []

    def watch(case: Case, x: Tensor, t: int) -> Tensor | None:
        x.register_hook(lambda grad: seen.append((t, grad.clone())))
        return x * case.weight if t == 1 else x + x.sum(1, keepdim=True) if t == 2 else None

    model = make_model()
    (loss, case), (wanted, reference) = both_losses(model, watch, point)
    gradients(model, loss, case)
    got = sorted(seen, key=lambda pair: pair[0])
    assert [t for t, _ in got] == [1, 2]  # the others were never used
    seen.clear()
    gradients(model, wanted, reference)
    assert_close(dict(got), {t: grad for t, grad in seen if t in (1, 2)}, **exact)


@stateless
def test_two_hooks_and_backward_hooks_at_one_point(function: Callable) -> None:
    model, case, reference = make_model(), Case(function), Case(function)
    name = name_of(POINT)
    with model.hooks(
        fwd_hooks=[(name, case), (name, doubled), (name, case)], bwd_hooks=[(name, lambda grad, hook: None)]
    ):
        loss = model(TOKENS, return_type="loss", labels=LABELS)
    first, second = edits_of(reference, POINT), edits_of(reference, POINT)
    both = {place: lambda x, place=place: second[place](2 * first[place](x)) for place in first}
    wanted = mean_loss(by_hand(model, both).logits)
    assert_close(loss, wanted, **exact)
    for got, want in zip(gradients(model, loss, case), gradients(model, wanted, reference), strict=True):
        assert_close(got, want, **exact)


@pytest.mark.parametrize("from_step", [0, 1, 2])
def test_a_hook_added_within_the_loop(from_step: int) -> None:
    """The chain then starts at a later step."""
    model, name = make_model(), name_of(POINT)
    seen: list[Tensor] = []

    def look(x: Tensor, hook: Any) -> Tensor:
        seen.append(x.detach().clone())
        return x + x.sum(1, keepdim=True)

    def begin(x: Tensor, hook: Any) -> None:
        if hook.step == from_step:
            hook.add_hook(look, level=7)

    loss = model.run_with_hooks(TOKENS, fwd_hooks=[(name, begin)], return_type="loss", labels=LABELS)
    model.reset_hooks(level=7)
    arrived: list[Tensor] = []

    def add_the_sum(x: Tensor) -> Tensor:
        arrived.append(x)
        return x + sum(arrived)

    # A hook that is added while the others run is first called at the next step.
    expected = by_hand(model, {(*POINT, t): add_the_sum for t in range(from_step + 1, STEPS)})
    assert_close(loss, mean_loss(expected.logits), **exact)
    case = Case(scale)
    wanted = gradients(model, mean_loss(expected.logits), case)
    assert_close(gradients(model, loss, case), wanted, **exact)
    assert len(seen) == len(arrived)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch's own forward mode
@step_points
def test_tangents_of_forward_mode_pass_under_autograd(point: Point) -> None:
    """A node of our own knows no tangent: such a pass is given stacks."""
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    directions = {name: random(*p.shape, seed=i) for i, (name, p) in enumerate(model.named_parameters())}
    hook = (name_of(point), lambda x, hook: x + nonlinear(x).sum(1, keepdim=True))

    def loss_at(size: float) -> float:
        other = make_model()
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter += size * directions[name]
        return other.run_with_hooks(TOKENS, fwd_hooks=[hook], return_type="loss", labels=LABELS).item()

    with forward_ad.dual_level(), model.hooks(fwd_hooks=[hook]):
        dual = {name: forward_ad.make_dual(dict(model.named_parameters())[name], directions[name]) for name in names}
        loss = torch.func.functional_call(model, dual, TOKENS, {"return_type": "loss", "labels": LABELS})
        tangent = forward_ad.unpack_dual(loss).tangent
    assert_close(tangent.item(), (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("function", [each for each in STATELESS if each not in NOT_FOR_TORCH_FUNC])
def test_gradients_by_torch_func(function: Callable) -> None:
    model = make_model()
    case = Case(function)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        with model.hooks(fwd_hooks=[(name_of(POINT), case)]):
            return torch.func.functional_call(model, parameters, TOKENS, {"return_type": "loss", "labels": LABELS})

    expected = gradients(model, mean_loss(by_hand(model, edits_of(Case(function), POINT)).logits), case)
    for got, wanted in zip(torch.func.grad(loss)(parameters).values(), expected, strict=False):
        assert_close(got, wanted, **exact)
