"""An edit at one step is the edit of the unrolled network, made once."""

import itertools

import pytest
import torch
from causality import (
    BATCH,
    STEP_KINDS,
    STEPS,
    TOKENS,
    WAYS,
    Hook,
    Point,
    architectures,
    by_hand,
    doubled,
    doubled_in_place,
    edit_at,
    every_cell,
    every_point_of_cells,
    exact,
    few_architectures,
    few_architectures_of_cells,
    gated_cells,
    make_model,
    name_of,
    nonlinear,
    parts_of,
    random,
    random_state,
    returned,
    width_of,
)
from reference import points
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint


@architectures
def test_an_edit_at_any_point_and_position_is_the_edit_of_the_unrolled_network(
    n_layers: int, act_fn: str, bias: bool
) -> None:
    model = make_model(n_layers, act_fn, bias)
    plain = model(TOKENS)
    for point, t in itertools.product(points(n_layers), range(STEPS)):
        expected = by_hand(model, edit_at(point, [t], nonlinear)).logits
        assert not torch.allclose(expected, plain)  # an edit that does nothing would prove nothing
        for way, grad in itertools.product(WAYS, (True, False)):
            with torch.set_grad_enabled(grad):
                logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), way(nonlinear, t))])
            where = f"{point} {t} {way.__name__} {grad}"
            assert_close(logits, expected, **exact, msg=lambda m, where=where: f"{where}: {m}")


@gated_cells
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_an_edit_at_any_point_and_position_of_a_gated_cell_is_the_edit_of_the_unrolled_network(
    cell: str, grad: bool
) -> None:
    model = make_model(cell=cell)
    start = random_state(model)  # or a forget gate would have nothing to forget at the first step
    with torch.set_grad_enabled(grad):
        plain = model(TOKENS, initial_state=start)
        for (i, point), t in itertools.product(enumerate(points(2, cell)), range(STEPS)):
            way = WAYS[(i + t) % len(WAYS)]
            expected = by_hand(model, edit_at(point, [t], nonlinear), initial_state=start).logits
            assert not torch.allclose(expected, plain)
            hooks = [(name_of(point), way(nonlinear, t))]
            logits = model.run_with_hooks(TOKENS, fwd_hooks=hooks, initial_state=start)
            where = f"{point} {t} {way.__name__}"
            assert_close(logits, expected, **exact, msg=lambda m, where=where: f"{where}: {m}")


@gated_cells
def test_a_hook_on_the_whole_tensor_of_a_gated_cell_edits_every_position_once(cell: str) -> None:
    for bias in (True, False):
        model = make_model(bias=bias, cell=cell)
        for point in points(2, cell):
            expected = by_hand(model, edit_at(point, range(STEPS), nonlinear)).logits
            logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))])
            assert_close(logits, expected, **exact)


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


@every_cell
@few_architectures
def test_edits_at_every_point_at_once(n_layers: int, act_fn: str, bias: bool, cell: str) -> None:
    model = make_model(n_layers, act_fn, bias, cell=cell)
    edits = {(kind, layer, t): nonlinear for kind, layer in points(n_layers, cell) for t in range(STEPS)}
    logits = model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: True, lambda x, hook: nonlinear(x))])
    assert_close(logits, by_hand(model, edits).logits, **exact)


@few_architectures_of_cells
def test_an_edit_leaves_earlier_positions_as_they_were(n_layers: int, act_fn: str, bias: bool, cell: str) -> None:
    """To the bit; a gate that a hook had in a tensor of its own may round otherwise than one side by side with others."""
    model = make_model(n_layers, act_fn, bias, cell=cell)
    start = random_state(model)
    plain = model(TOKENS, initial_state=start)
    for point, t in itertools.product(points(n_layers, cell), range(STEPS)):
        hooks = [(name_of(point), returned(nonlinear, t))]
        logits = model.run_with_hooks(TOKENS, fwd_hooks=hooks, initial_state=start)
        rounding = 0.0 if cell == "rnn" else 4 * torch.finfo(plain.dtype).eps
        assert_close(logits[:, :t], plain[:, :t], rtol=0.0, atol=rounding)
        assert float((logits[:, t:] - plain[:, t:]).detach().abs().max()) > 1e-9


def test_an_edit_of_the_hidden_state_reaches_the_next_step_and_one_of_hook_out_does_not() -> None:
    model = make_model(1, "tanh", False)
    plain = model(TOKENS)
    hidden = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_hidden", returned(nonlinear, 1))])
    out = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_out", returned(nonlinear, 1))])
    assert torch.equal(hidden[:, 1], out[:, 1])
    assert not torch.allclose(hidden[:, 2:], plain[:, 2:])
    assert torch.equal(out[:, 2:], plain[:, 2:])


@every_cell
@few_architectures
def test_the_state_that_is_returned_holds_the_edit(n_layers: int, act_fn: str, bias: bool, cell: str) -> None:
    model = make_model(n_layers, act_fn, bias, cell=cell)
    start = random_state(model)
    for point in points(n_layers, cell):
        expected = by_hand(model, edit_at(point, range(STEPS), nonlinear), initial_state=start)
        with model.hooks(fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))]):
            logits, state = model(TOKENS, initial_state=start, return_state=True)
        assert_close(logits, expected.logits, **exact)
        assert_close(parts_of(state), parts_of(expected.state), **exact)


@every_point_of_cells
def test_an_edit_may_bring_its_own_tensor_and_gets_it_back_untouched(cell: str, point: Point) -> None:
    model = make_model(cell=cell)
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


@every_point_of_cells
def test_a_single_step_and_a_single_sequence(cell: str, point: Point) -> None:
    model, tokens = make_model(cell=cell), TOKENS[:1, :1]
    logits = model.run_with_hooks(tokens, fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))])
    assert_close(logits, by_hand(model, edit_at(point, [0], nonlinear), tokens).logits, **exact)


@every_point_of_cells
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("double", [doubled, doubled_in_place])
@pytest.mark.parametrize("cached", [False, True], ids=["alone", "cached"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_hook_that_doubles_doubles_exactly_once(
    cell: str, point: Point, grad: bool, double: Hook, cached: bool, times: int
) -> None:
    model = make_model(cell=cell)
    expected = by_hand(model, edit_at(point, range(STEPS), lambda x: x * 2**times))
    with torch.set_grad_enabled(grad), model.hooks(fwd_hooks=[(name_of(point), double)] * times):
        logits, cache = model.run_with_cache(TOKENS) if cached else (model(TOKENS), None)
    assert_close(logits, expected.logits, **exact)
    assert cache is None or all(
        torch.allclose(cache[name_of(other)], expected.stacked(*other), **exact) for other in points(2, cell)
    )


@every_point_of_cells
@pytest.mark.parametrize("prepend", [True, False])
def test_prepend_puts_a_hook_before_the_others(cell: str, point: Point, prepend: bool) -> None:
    model = make_model(cell=cell)
    model.add_hook(name_of(point), doubled)
    model.add_hook(name_of(point), lambda x, hook: x + 1, prepend=prepend)
    function = (lambda x: (x + 1) * 2) if prepend else (lambda x: x * 2 + 1)
    assert_close(model(TOKENS), by_hand(model, edit_at(point, range(STEPS), function)).logits, **exact)
