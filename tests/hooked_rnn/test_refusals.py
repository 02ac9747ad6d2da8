"""Hooks and names that cannot be, each refused in one clear error."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from causality import LABELS, TOKENS, Hook, Point, doubled, every_point_of_cells, ignore, make_model, name_of
from torch import Tensor

from hooked_rnn import HookedRNN
from hooked_rnn.errors import HookError, UnknownHookPointError


@every_point_of_cells
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
        (lambda x: turn_around(x), "made its tensor one of shape"),
        (lambda x: x.unsqueeze_(0), "shape"),
        (lambda x: setattr(x, "data", x.data.float()), "made its tensor one of dtype torch.float32"),
    ],
)
def test_an_edit_that_cannot_take_the_activation_s_place_is_refused(
    cell: str, point: Point, wrong: Hook, said: str
) -> None:
    model = make_model(cell=cell)
    with pytest.raises(HookError, match=re.escape(said)) as caught:
        model.run_with_hooks(TOKENS, fwd_hooks=[(name_of(point), lambda x, hook: wrong(x))])
    assert name_of(point) in str(caught.value)
    assert model.list_hooks() == {}


@every_point_of_cells
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda g: g[:, :1, :1], "shape"),
        (lambda g: g.float(), "dtype"),
        (lambda g: turn_around(g), "its tensor one of"),
    ],
)
def test_a_gradient_of_another_kind_is_refused(cell: str, point: Point, wrong: Hook, said: str) -> None:
    model = make_model(cell=cell)
    with (
        pytest.raises(HookError, match=said),
        model.hooks(bwd_hooks=[(name_of(point), lambda grad, hook: wrong(grad))]),
    ):
        model(TOKENS, return_type="loss", labels=LABELS).backward()
    assert model.list_hooks() == {}


def turn_around(x: Tensor) -> None:
    """In place, to another shape."""
    x.transpose_(0, 1)


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
        pytest.param(lambda name: "attn" in name, "hook_embed", id="a filter that no point passes"),
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
