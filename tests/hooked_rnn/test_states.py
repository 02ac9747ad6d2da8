"""The states of every cell: what they are, two halves of a sequence, gradients through them, and what is refused."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from causality import (
    BATCH,
    STEPS,
    TOKENS,
    by_hand,
    doubled,
    doubled_in_place,
    every_cell,
    exact,
    make_model,
    nonlinear,
    parts_of,
    random,
    random_state,
)
from reference import State
from torch import Tensor
from torch.testing import assert_close

from hooked_rnn import HookedRNN
from hooked_rnn.errors import StateError

D_HIDDEN = 4


def no_hooks(model: HookedRNN) -> None:
    pass


def looking(model: HookedRNN) -> None:
    model.add_hook(lambda name: True, lambda x, hook: None)
    model.add_caching_hooks()


def editing(model: HookedRNN) -> None:
    model.add_hook(lambda name: True, lambda x, hook: nonlinear(x))


def editing_each_step(model: HookedRNN) -> None:
    """The same at every step's own point, of which the halves have fewer."""
    model.set_use_step_hooks(True, 1)
    model.add_hook(lambda name: ".steps." in name, lambda x, hook: x)
    model.add_hook("blocks.1.hook_hidden", doubled)


every_hooking = pytest.mark.parametrize("hooking", [no_hooks, looking, editing, editing_each_step])


@every_cell
@every_hooking
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("start", [False, True], ids=["zeros", "initial_state"])
def test_two_halves_are_the_whole(cell: str, hooking: Callable[[HookedRNN], None], mode: Any, start: bool) -> None:
    model = make_model(cell=cell)
    hooking(model)
    state = random_state(model) if start else None
    with mode():
        whole, final = model(TOKENS, initial_state=state, return_state=True)
        for cut in range(1, STEPS):
            first, between = model(TOKENS[:, :cut], initial_state=state, return_state=True)
            second, end = model(TOKENS[:, cut:], initial_state=between, return_state=True)
            assert_close(torch.cat([first, second], dim=1), whole, **exact)
            assert_close(parts_of(end), parts_of(final), **exact)
            assert not torch.allclose(model(TOKENS[:, cut:]), whole[:, cut:])  # without the state


@every_cell
def test_a_state_is_what_the_unrolled_network_ends_with(cell: str) -> None:
    model = make_model(cell=cell)
    start = random_state(model)
    _, state = model(TOKENS, initial_state=start, return_state=True)
    expected = by_hand(model, initial_state=start)
    assert isinstance(state, tuple) is (cell == "lstm")
    assert_close(parts_of(state), parts_of(expected.state), **exact)
    assert all(part.shape == (2, BATCH, D_HIDDEN) for part in parts_of(state))
    for layer in range(2):
        assert_close(parts_of(state)[0][layer], expected.values["hidden", layer, STEPS - 1], **exact)
        if cell == "lstm":
            assert_close(state[1][layer], expected.values["cell", layer, STEPS - 1], **exact)


@every_cell
def test_each_part_of_a_state_matters(cell: str) -> None:
    model = make_model(cell=cell)
    parts = parts_of(random_state(model))
    plain = model(TOKENS, initial_state=as_state(parts))
    for i in range(len(parts)):
        changed = [part + 1 if i == j else part for j, part in enumerate(parts)]
        assert not torch.allclose(model(TOKENS, initial_state=as_state(changed)), plain)


def as_state(parts: list[Tensor]) -> State:
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


@every_cell
@pytest.mark.parametrize("hooked", [False, True])
def test_gradients_flow_through_the_state(cell: str, hooked: bool) -> None:
    model = make_model(cell=cell)
    if hooked:
        model.add_hook(lambda name: True, lambda x, hook: None)
        model.add_hook(lambda name: True, lambda x, hook: None, dir="bwd")
    whole = torch.autograd.grad(model(TOKENS)[:, -1].sum(), list(model.parameters()))
    _, state = model(TOKENS[:, :2], return_type=None, return_state=True)
    logits, final = model(TOKENS[:, 2:], initial_state=state, return_state=True)
    halves = torch.autograd.grad(logits[:, -1].sum(), list(model.parameters()))
    assert_close(list(halves), list(whole), **exact)

    start = as_state([part.requires_grad_() for part in parts_of(random_state(model))])
    twin = as_state([part.detach().clone().requires_grad_() for part in parts_of(start)])
    logits, final = model(TOKENS, initial_state=start, return_state=True)
    expected = by_hand(model, initial_state=twin)
    got = sum(part.square().sum() for part in parts_of(final)) + logits.sum()
    wanted = sum(part.square().sum() for part in parts_of(expected.state)) + expected.logits.sum()
    for mine, theirs in zip(
        torch.autograd.grad(got, parts_of(start)), torch.autograd.grad(wanted, parts_of(twin)), strict=True
    ):
        assert_close(mine, theirs, **exact)


@every_cell
def test_no_state_is_a_state_of_zeros(cell: str) -> None:
    model = make_model(cell=cell)
    zeros = as_state([torch.zeros_like(part) for part in parts_of(random_state(model))])
    assert_close(model(TOKENS, initial_state=zeros), model(TOKENS), **exact)
    _, cache = model.run_with_cache(TOKENS, initial_state=zeros)
    _, without = model.run_with_cache(TOKENS)
    assert all(torch.allclose(kept, without[name], **exact) for name, kept in cache.items())


@every_cell
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_initial_state_is_left_as_it_was(cell: str, mode: Any) -> None:
    model = make_model(cell=cell)
    state = random_state(model)
    before = [part.clone() for part in parts_of(state)]
    model.set_use_step_hooks(True, STEPS)
    model.add_hook(lambda name: True, doubled_in_place)
    with mode():
        model(TOKENS, initial_state=state)
        model.reset_hooks()
        model(TOKENS, initial_state=state)
        model.run_with_cache(TOKENS, initial_state=state)
    assert all(torch.equal(*pair) for pair in zip(parts_of(state), before, strict=True))


@every_cell
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_state_may_begin_anywhere_in_its_memory(cell: str, mode: Any, dtype: torch.dtype) -> None:
    model = make_model(cell=cell).to(dtype)
    parts = parts_of(random_state(model, dtype))
    shifted = [torch.cat([part.new_zeros(1), part.flatten()])[1:].view_as(part) for part in parts]
    with mode():
        hooked = model.run_with_hooks(
            TOKENS, fwd_hooks=[(lambda name: True, lambda x, hook: None)], initial_state=as_state(shifted)
        )
        assert torch.equal(hooked, model(TOKENS, initial_state=as_state(parts)))


@every_cell
def test_a_returned_state_is_not_written_over_by_the_next_pass(cell: str) -> None:
    model = make_model(cell=cell)
    with torch.no_grad():
        model.add_caching_hooks()
        _, state = model(TOKENS, return_state=True)
        before = [part.clone() for part in parts_of(state)]
        model(TOKENS.flip(1), initial_state=state, return_state=True)
    assert all(torch.equal(*pair) for pair in zip(parts_of(state), before, strict=True))


ONE = random(2, BATCH, D_HIDDEN)
BAD_PARTS: list[tuple[Any, str]] = [
    (random(1, BATCH, D_HIDDEN), "[1, 3, 4]: expected [2, 3, 4]"),
    (random(2, 1, D_HIDDEN), "[2, 1, 4]: expected [2, 3, 4]"),
    (random(2, BATCH, 5), "[2, 3, 5]: expected [2, 3, 4]"),
    (random(BATCH, D_HIDDEN), "[3, 4]: expected [2, 3, 4]"),
    (ONE.float(), "torch.float32 on cpu: expected torch.float64 on cpu"),
    (ONE.long(), "torch.int64 on cpu: expected torch.float64"),
    (ONE.to("meta"), "torch.float64 on meta: expected torch.float64 on cpu"),
    (ONE.tolist(), "list: expected a tensor [layer, batch, d_hidden]"),
    (None, "NoneType: expected a tensor [layer, batch, d_hidden]"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("part", "said"), BAD_PARTS, ids=[said for _, said in BAD_PARTS])
def test_a_part_that_does_not_fit_is_refused_by_name(part: Any, said: str) -> None:
    lstm, fired = make_model(cell="lstm"), []
    lstm.add_hook("hook_embed", lambda x, hook: fired.append(x))
    for state, name in (((part, ONE), "hidden"), ((ONE, part), "cell"), ([ONE, part], "cell")):
        with pytest.raises(StateError, match=re.escape(f"the {name} state of initial_state")) as caught:
            lstm(TOKENS, initial_state=state)
        assert said in str(caught.value)
    assert fired == []
    if isinstance(part, Tensor):
        for cell in ("rnn", "gru"):
            with pytest.raises(StateError, match=re.escape(said)):
                make_model(cell=cell)(TOKENS, initial_state=part)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("cell", "state", "said"),
    [
        ("lstm", ONE, "initial_state is Tensor: expected a tuple of 2, (hidden, cell), as the cell is 'lstm'"),
        ("lstm", (ONE,), "initial_state is tuple of 1: expected a tuple of 2"),
        ("lstm", (ONE, ONE, ONE), "initial_state is tuple of 3: expected a tuple of 2"),
        ("lstm", (), "initial_state is tuple of 0: expected a tuple of 2"),
        ("gru", (ONE, ONE), "initial_state is tuple of 2: expected a tensor, as the cell is 'gru'"),
        ("rnn", (ONE, ONE), "initial_state is tuple of 2: expected a tensor, as the cell is 'rnn'"),
        ("rnn", 0.0, "initial_state is float: expected a tensor [layer, batch, d_hidden]"),
        ("lstm", 3, "initial_state is int: expected a tuple of 2"),
        ("gru", "zeros", "initial_state is str: expected a tensor"),
    ],
)
def test_another_number_of_parts_is_refused(cell: str, state: Any, said: str) -> None:
    model = make_model(cell=cell)
    for call in (model, model.run_with_cache, model.run_with_hooks):
        with pytest.raises(StateError, match=re.escape(said)):
            call(TOKENS, initial_state=state)
