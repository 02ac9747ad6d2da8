"""Several hooks at once, of any sort, anywhere: what hypothesis draws is the unrolled network with those edits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from causality import (
    CELLS,
    Hook,
    assert_same_parameter_gradients,
    by_hand,
    exact,
    integers,
    make_model,
    name_of,
    parts_of,
    random,
    random_state,
    width_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LOOP_KINDS, Edits, points
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "double": lambda x, vector: 2 * x,
    "zero": lambda x, vector: torch.zeros_like(x),
    "steer": lambda x, vector: x + vector,
    "mask": lambda x, vector: x * vector.sigmoid(),
    "patch": lambda x, vector: vector.expand_as(x),
    "bend": lambda x, vector: x + x.roll(1, dims=-1).sin(),
    "look": lambda x, vector: x,
}
"""Of one step [batch, d], and of a vector that may be learned."""

WAYS = ("returned", "in place", "both", "silent")
"""How a hook says what it makes of a step; the last where it leaves that alone."""


@dataclass(frozen=True)
class Edit:
    """One hook: which step it edits, None for all of them, and by what function."""

    kind: str
    layer: int | None
    of_one_step: bool
    """Whether it is on the step's own point."""
    step: int | None
    function: str
    way: str
    prepend: bool


def edits(cell: str, n_layers: int, n_steps: int) -> st.SearchStrategy[Edit]:
    return st.builds(
        lambda point, **fields: Edit(*point, **fields),
        st.sampled_from(points(n_layers, cell)),
        of_one_step=st.booleans(),
        step=st.one_of(st.none(), st.integers(0, n_steps - 1)),
        function=st.sampled_from(list(FUNCTIONS)),
        way=st.sampled_from(WAYS),
        prepend=st.booleans(),
    )


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, int, int, list[Edit]]:
    cell, n_layers, n_steps = draw(st.sampled_from(CELLS)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return cell, n_layers, n_steps, draw(st.lists(edits(cell, n_layers, n_steps), min_size=1, max_size=5))


def views(edit: Edit, cell: str, n_steps: int) -> tuple[list[int], bool]:
    """The steps that it edits, and whether on points of their own, which only activations inside the loop have."""
    return list(range(n_steps)) if edit.step is None else [edit.step], edit.of_one_step and edit.kind in LOOP_KINDS[
        cell
    ]


def hook_of(edit: Edit, vector: Tensor, steps: list[int]) -> Hook:
    """The hook on the point of the whole sequence."""

    def hook(x: Tensor, hook: HookPoint) -> Tensor | None:
        here = [t for t in steps if hook.step in (None, t)]
        if edit.way == "silent" and not here:
            return None
        edited = x.clone() if edit.way in ("returned", "silent") else x
        for t in here:
            edited[:, t] = FUNCTIONS[edit.function](x[:, t].clone(), vector)
        return None if edit.way == "in place" else edited

    return hook


def hook_of_one_step(edit: Edit, vector: Tensor) -> Hook:
    def hook(x: Tensor, hook: HookPoint) -> Tensor | None:
        edited = FUNCTIONS[edit.function](x.clone(), vector)
        if edit.way in ("returned", "silent"):
            return edited
        x.copy_(edited)
        return None if edit.way == "in place" else x

    return hook


def add(model: HookedRNN, drawn: list[Edit], vectors: list[Tensor], n_steps: int) -> Edits:
    """Put the hooks on the model; the same edits of the unrolled network, a step's own first."""
    chains: dict[tuple[str, int | None, int], tuple[list[Any], list[Any]]] = {}
    for edit, vector in zip(drawn, vectors, strict=True):
        steps, of_one_step = views(edit, model.cfg.cell, n_steps)
        if of_one_step:
            for t in steps:
                point = model.hook_dict[f"blocks.{edit.layer}.steps.{t}.hook_{edit.kind}"]
                point.add_hook(hook_of_one_step(edit, vector), prepend=edit.prepend)
        else:
            point = model.hook_dict[name_of((edit.kind, edit.layer))]
            point.add_hook(hook_of(edit, vector, steps), prepend=edit.prepend)
        for t in steps:
            chain = chains.setdefault((edit.kind, edit.layer, t), ([], []))[not of_one_step]
            chain.insert(0 if edit.prepend else len(chain), (FUNCTIONS[edit.function], vector))

    def composed(chain: list[Any]) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            for function, vector in chain:
                x = function(x, vector)
            return x

        return edit

    return {place: composed([*first, *then]) for place, (first, then) in chains.items()}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    network=networks(),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    start=st.booleans(),
    cached=st.booleans(),
    grad=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_hooks_together_are_their_edits_of_the_unrolled_network(
    network: tuple[str, int, int, list[Edit]], batch: int, bias: bool, start: bool, cached: bool, grad: bool, seed: int
) -> None:
    cell, n_layers, n_steps, drawn = network
    model = make_model(n_layers, "tanh", bias, seed, cell)
    model.set_use_step_hooks(True, n_steps)
    tokens, state = integers(batch, n_steps, seed=seed), random_state(model, batch=batch) if start else None
    vectors = [
        random(width_of(model, (edit.kind, edit.layer)), seed=i).requires_grad_(grad) for i, edit in enumerate(drawn)
    ]
    in_network = add(model, drawn, vectors, n_steps)
    cache = model.add_caching_hooks() if cached else {}
    with torch.set_grad_enabled(grad):
        logits, final = model(tokens, initial_state=state, return_state=True)
        expected = by_hand(model, in_network, tokens, initial_state=state)

    assert_close(logits, expected.logits, **exact)
    assert_close(parts_of(final), parts_of(expected.state), **exact)
    for point in points(n_layers, cell) if cached else []:
        assert_close(cache[name_of(point)], expected.stacked(*point).detach(), **exact)
    if grad and expected.logits.requires_grad:
        losses = [each.square().sum() for each in (logits, expected.logits)]
        if losses[0].requires_grad:
            assert_same_parameter_gradients(model, losses[0], expected, losses[1])
            for vector, other in zip(*(of_vectors(loss, vectors) for loss in losses), strict=True):
                assert_close(vector, other, **exact)


def of_vectors(loss: Tensor, vectors: list[Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(loss, vectors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for v, g in zip(vectors, grads, strict=True)]


def test_control_a_step_s_own_hook_after_the_whole_sequence_s_would_be_another_network() -> None:
    first = Edit("hidden", 0, True, 1, "bend", "returned", False)
    then = Edit("hidden", 0, False, 1, "mask", "returned", False)
    vectors, tokens, model = [random(4, seed=i) for i in range(2)], integers(3, 4), make_model()
    model.set_use_step_hooks(True, 4)
    add(model, [then, first], vectors, 4)  # in whatever order they are added
    logits = model(tokens)

    def in_order(*chain: Edit) -> Tensor:
        def edit(x: Tensor) -> Tensor:
            for each in chain:
                x = FUNCTIONS[each.function](x, vectors[each is first])
            return x

        return by_hand(model, {("hidden", 0, 1): edit}, tokens).logits

    assert_close(logits, in_order(first, then), **exact)
    assert not torch.allclose(logits, in_order(then, first))
