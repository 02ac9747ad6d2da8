"""TransformerLens's hooks, in all their forms, on a HookedRNN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tool_verdicts import works
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.conversion_utils.conversion_steps import BaseTensorConversion
from transformer_lens.hook_points import HookPoint
from unrolled_cells import (
    BATCH,
    LABELS,
    STEPS,
    TOKENS,
    by_hand,
    every_cell,
    every_layer,
    exact,
    make_model,
    score,
)

from hooked_rnn import HookedRNN
from hooked_rnn.errors import UnknownHookPointError

T = 1
"""The step that the hooks edit."""


def halved(x: Tensor) -> Tensor:
    return 0.5 * x - 0.25


def at_one_step(x: Tensor, hook: HookPoint) -> Tensor:
    edited = x.clone()
    edited[:, T] = halved(x[:, T])
    return edited


def whole(x: Tensor, hook: HookPoint) -> Tensor:
    return halved(x)


def edited_logits(model: HookedRNN, layer: int, kind: str = "hidden") -> Tensor:
    return by_hand(model, edits={(kind, layer, T): halved}).logits


WAYS: dict[str, Callable[[HookedRNN, str], Tensor]] = {
    "run_with_hooks": lambda model, name: model.run_with_hooks(TOKENS, fwd_hooks=[(name, at_one_step)]),
    "a predicate": lambda model, name: model.run_with_hooks(TOKENS, fwd_hooks=[(lambda n: n == name, at_one_step)]),
}


def in_context(model: HookedRNN, name: str) -> Tensor:
    with model.hooks(fwd_hooks=[(name, at_one_step)]):
        return model(TOKENS)


def added(model: HookedRNN, name: str) -> Tensor:
    model.add_hook(name, at_one_step)
    logits = model(TOKENS)
    model.reset_hooks()
    return logits


def added_to_the_point(model: HookedRNN, name: str) -> Tensor:
    point = model.hook_dict[name]
    point.add_hook(at_one_step)
    assert point.has_hooks()
    logits = model(TOKENS)
    point.remove_hooks()
    assert not point.has_hooks()
    return logits


def permanent(model: HookedRNN, name: str) -> Tensor:
    model.add_perma_hook(name, at_one_step)
    model.reset_hooks()
    logits = model(TOKENS)
    model.remove_all_hook_fns(including_permanent=True)
    return logits


def permanent_on_the_point(model: HookedRNN, name: str) -> Tensor:
    model.hook_dict[name].add_perma_hook(at_one_step)
    logits = model(TOKENS)
    model.hook_dict[name].remove_hooks(including_permanent=True)
    return logits


def checked(model: HookedRNN, name: str) -> Tensor:
    model.check_hooks_to_add(model.hook_dict[name], name, at_one_step, "fwd")  # which here has nothing to say
    model.check_and_add_hook(model.hook_dict[name], name, at_one_step)
    logits = model(TOKENS)
    model.reset_hooks()
    return logits


WAYS |= {
    way.__name__: way for way in (in_context, added, added_to_the_point, permanent, permanent_on_the_point, checked)
}


@works(
    "HookedRootModule.run_with_hooks",
    "HookedRootModule.hooks",
    "HookedRootModule.add_hook",
    "HookedRootModule.add_perma_hook",
    "HookedRootModule.check_and_add_hook",
    "HookedRootModule.check_hooks_to_add",
    "HookedRootModule.reset_hooks",
    "HookedRootModule.remove_all_hook_fns",
    "HookPoint.add_hook",
    "HookPoint.add_perma_hook",
    "HookPoint.has_hooks",
    "HookPoint.remove_hooks",
)
@pytest.mark.parametrize("way", WAYS)
@every_layer
@every_cell
def test_a_hook_added_in_any_way_edits_the_unrolled_network(cell: str, layer: int, way: str) -> None:
    model = make_model(cell)
    expected = edited_logits(model, layer)
    assert_close(WAYS[way](model, f"blocks.{layer}.hook_hidden"), expected, **exact)
    assert_close(model(TOKENS), by_hand(model).logits, **exact)  # and nothing is left
    assert not torch.allclose(model(TOKENS), expected)
    assert model.list_hooks(including_permanent=True) == {}


@every_layer
@every_cell
def test_a_hook_on_a_step_point_edits_that_step_and_fires_once(cell: str, layer: int) -> None:
    model = make_model(cell)
    model.set_use_step_hooks(True, STEPS)
    shapes = []

    def hook(x: Tensor, hook: HookPoint) -> Tensor:
        shapes.append(tuple(x.shape))
        return halved(x)

    logits = model.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.{layer}.steps.{T}.hook_hidden", hook)])
    assert_close(logits, edited_logits(model, layer), **exact)
    assert shapes == [(BATCH, 4)]
    assert not torch.allclose(logits, by_hand(model, edits={("hidden", layer, T + 1): halved}).logits)


@every_cell
def test_hooks_nest_and_both_edit(cell: str) -> None:
    model = make_model(cell)
    with model.hooks(fwd_hooks=[("blocks.0.hook_out", whole)]):
        inner = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_hidden", at_one_step)], reset_hooks_end=False)
    edits: Any = {("out", 0, t): halved for t in range(STEPS)} | {("hidden", 1, T): halved}
    assert_close(inner, by_hand(model, edits=edits).logits, **exact)
    assert not torch.allclose(inner, edited_logits(model, 1))


@every_layer
@every_cell
def test_a_backward_hook_is_given_the_total_gradient(cell: str, layer: int) -> None:
    model = make_model(cell)
    seen = {}

    def keep(grad: Tensor, hook: HookPoint) -> None:
        seen["grad"] = grad.clone()

    with model.hooks(bwd_hooks=[(f"blocks.{layer}.hook_hidden", keep)]):
        score(model(TOKENS)).backward()
    unrolled = by_hand(model)
    expected = unrolled.gradient(score(unrolled.logits), "hidden", layer)
    assert_close(seen["grad"], expected, **exact)
    only_direct = torch.autograd.grad(score(unrolled.logits), unrolled.logits)[0] @ model.W_U.T
    assert not torch.allclose(expected, only_direct)  # not what goes straight to the readout alone


@works("HookedRootModule.add_caching_hooks", "HookedRootModule.cache_all", "HookedRootModule.cache_some")
@every_cell
def test_caching_hooks_fill_a_dictionary(cell: str, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(cell)
    expected = by_hand(model)
    ways: list[Callable[[dict[str, Tensor]], Any]] = [
        lambda cache: model.add_caching_hooks("blocks.1.hook_hidden", cache=cache),
        lambda cache: model.cache_some(cache, lambda name: name == "blocks.1.hook_hidden"),
        lambda cache: model.cache_all(cache),
    ]
    for way in ways:
        cache: dict[str, Tensor] = {}
        way(cache)
        model(TOKENS)
        model.reset_hooks()
        assert_close(cache["blocks.1.hook_hidden"], expected.stacked("hidden", 1).detach(), **exact)
        assert not torch.allclose(cache["blocks.1.hook_hidden"], expected.stacked("hidden", 0))


@works(
    "HookedRootModule",
    "HookedRootModule.setup",
    "HookedRootModule.hook_points",
    "HookedRootModule.clear_contexts",
    "HookIntrospectionMixin.*",
    "HookPoint.clear_context",
    "HookPoint.layer",
    "LensHandle",
)
@every_cell
def test_hook_points_know_where_they_are_and_what_hooks_they_have(cell: str) -> None:
    model = make_model(cell)
    model.set_use_step_hooks(True, STEPS)
    assert len(list(model.hook_points())) == len(model.hook_dict)
    for name, point in model.hook_dict.items():
        assert point.name == name
        if name.startswith("blocks."):
            assert point.layer() == int(name.split(".")[1])
    model.add_hook("blocks.1.hook_hidden", at_one_step, level=2)
    model.add_perma_hook("hook_embed", whole)
    assert set(model.list_hooks(including_permanent=True)) == {"blocks.1.hook_hidden", "hook_embed"}
    (handle,) = model.list_hooks()["blocks.1.hook_hidden"]
    assert (handle.user_hook, handle.context_level, handle.is_permanent) == (at_one_step, 2, False)
    model.hook_dict["hook_embed"].ctx["note"] = 1
    model.clear_contexts()
    assert model.hook_dict["hook_embed"].ctx == {}


@works("HookPoint", "HookPoint.forward", "HookFunction")
def test_a_hook_point_alone_is_the_identity() -> None:
    point = make_model("gru").hook_embed
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert point.forward(x) is x
    assert point(x) is x


class Transposed(BaseTensorConversion):
    """Hooks see [batch, d, pos]."""

    def handle_conversion(self, input_value: Any, *full_context: Any) -> Any:
        return input_value.transpose(1, 2)

    def revert(self, input_value: Any, *full_context: Any) -> Any:
        return input_value.transpose(1, 2)


@works("HookPoint.enable_reshape")
@every_cell
def test_a_hook_may_be_given_another_layout(cell: str) -> None:
    model = make_model(cell)
    model.hook_dict["blocks.0.hook_hidden"].enable_reshape(Transposed())

    def hook(x: Tensor, hook: HookPoint) -> Tensor:
        assert x.shape == (BATCH, 4, STEPS)
        edited = x.clone()
        edited[:, :, T] = halved(x[:, :, T])
        return edited

    logits = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_hidden", hook)])
    assert_close(logits, edited_logits(model, 0), **exact)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blocks.0.hook_resid_pre", "no residual stream.*nearest: 'hook_embed'"),
        ("blocks.1.hook_resid_pre", r"no residual stream.*nearest: 'blocks\.0\.hook_out'"),
        ("blocks.1.hook_resid_post", r"no residual stream.*nearest: 'blocks\.1\.hook_out'"),
        ("blocks.1.hook_resid_mid", "no residual stream"),
        ("blocks.0.attn.hook_z", r"no attention.*nearest: 'blocks\.0\.hook_recurrent'"),
        ("blocks.1.attn.hook_pattern", r"no attention.*nearest: 'blocks\.1\.hook_recurrent'"),
        ("blocks.1.hook_attn_out", r"no attention.*nearest: 'blocks\.1\.hook_recurrent'"),
        ("blocks.0.mlp.hook_pre", r"no MLP.*nearest: 'blocks\.0\.hook_preact'"),
        ("blocks.0.mlp.hook_post", r"no MLP.*nearest: 'blocks\.0\.hook_hidden'"),
        ("blocks.1.hook_mlp_out", r"no MLP.*nearest: 'blocks\.1\.hook_hidden'"),
        ("blocks.0.ln1.hook_scale", "no layer norm$"),
        ("ln_final.hook_normalized", "no layer norm$"),
        ("hook_pos_embed", "no embedding of positions$"),
        ("embed.hook_out", "nearest: 'hook_embed'"),
        ("unembed.hook_out", "nearest: 'hook_logits'"),
        ("blocks.7.attn.hook_z", "no attention.*hook_recurrent$"),
        ("blocks.0.hook_hiden", r"nearest: .*'blocks\.0\.hook_hidden'"),
    ],
)
def test_a_transformer_s_hook_point_is_refused_with_its_counterpart(name: str, says: str) -> None:
    model = make_model("tanh")
    for attempt in (
        lambda: model.run_with_hooks(TOKENS, fwd_hooks=[(name, whole)]),
        lambda: model.run_with_hooks(TOKENS, bwd_hooks=[(name, whole)]),
        lambda: model.add_hook(name, whole),
        lambda: model.add_caching_hooks(name),
        lambda: model.run_with_cache(TOKENS, names_filter=[name]),
        lambda: model.run_with_cache(TOKENS)[1][name],
    ):
        with pytest.raises(UnknownHookPointError, match=says):
            attempt()
    assert model.list_hooks() == {}


def test_a_counterpart_is_named_only_where_it_is() -> None:
    with pytest.raises(UnknownHookPointError, match=r"its neurons are hook_hidden$"):
        make_model("lstm").add_hook("blocks.0.mlp.hook_pre", whole)


def test_the_loss_has_the_edit_in_it() -> None:
    model = make_model("lstm")
    hooks: Any = [("blocks.0.hook_cell", at_one_step)]
    loss = model.run_with_hooks(TOKENS, return_type="loss", labels=LABELS, fwd_hooks=hooks)
    logits = edited_logits(model, 0, "cell")
    assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten()), **exact)
