"""``cache_activation_and_gradient`` and ``capture_writer_outputs`` on a HookedRNN."""

import pytest
import torch
from tool_verdicts import works
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient, capture_writer_outputs
from unrolled_cells import (
    LAYERS,
    OTHERS,
    STEPS,
    TOKENS,
    by_hand,
    every_cell,
    exact,
    loop_kinds,
    make_model,
    score,
)

from hooked_rnn import HookedRNN
from hooked_rnn.errors import HookError


def with_steps(cell: str) -> HookedRNN:
    model = make_model(cell)
    model.set_use_step_hooks(True, STEPS)
    return model


@works("cache_activation_and_gradient", "GradientCache")
@every_cell
def test_gradients_where_a_hook_fires_once(cell: str) -> None:
    model = make_model(cell)
    names = [
        "hook_embed",
        "hook_logits",
        *(f"blocks.{layer}.hook_{k}" for layer in range(LAYERS) for k in ("input", "out")),
    ]
    result = cache_activation_and_gradient(model, TOKENS, score, names_filter=names)
    unrolled = by_hand(model)
    metric = score(unrolled.logits)
    assert_close(result.metric, metric.detach(), **exact)
    assert set(result.gradients) == set(names)
    for name in names:
        kind, layer = name.rsplit("hook_", 1)[1], int(name.split(".")[1]) if "blocks" in name else None
        assert_close(result.activations[name], unrolled.stacked(kind, layer).detach(), **exact)
        assert_close(result.gradients[name], unrolled.gradient(metric, kind, layer), **exact)
    assert all(p.grad is None for p in model.parameters())
    activations_only = cache_activation_and_gradient(model, TOKENS, score, names_filter=names, compute_gradient=False)
    assert set(activations_only.gradients.values()) == {None}


@every_cell
def test_gradients_at_step_points_are_autograd_s_on_the_unrolled_network(cell: str) -> None:
    model = with_steps(cell)
    unrolled = by_hand(model)
    metric = score(unrolled.logits)
    for kind in loop_kinds(model):
        if (kind, 0, 0) not in unrolled.values:
            continue
        steps = range(kind == "carry", STEPS)  # what is carried into the first step is a constant
        names = {f"blocks.{layer}.steps.{t}.hook_{kind}": (kind, layer, t) for layer in range(LAYERS) for t in steps}
        result = cache_activation_and_gradient(model, TOKENS, score, names_filter=list(names))
        for name, place in names.items():
            value = unrolled.values[place]
            assert_close(result.activations[name], value.detach(), **exact)
            (grad,) = torch.autograd.grad(metric, value, retain_graph=True)
            assert_close(result.gradients[name], grad, **exact)
    direct = torch.autograd.grad(metric, unrolled.logits, retain_graph=True)[0] @ model.W_U.T
    assert not torch.allclose(unrolled.gradient(metric, "hidden", 1), direct)  # later steps count


@every_cell
def test_first_order_patching_agrees_with_finite_differences(cell: str) -> None:
    """What attribution patching computes, at step points: (clean - corrupted) . gradient."""
    model = with_steps(cell)
    name = "blocks.0.steps.1.hook_hidden"
    corrupted = cache_activation_and_gradient(model, OTHERS, score, names_filter=name)
    clean = cache_activation_and_gradient(model, TOKENS, score, names_filter=name, compute_gradient=False)
    towards = clean.activations[name] - corrupted.activations[name]
    estimate = (towards * corrupted.gradients[name]).sum()

    def at(size: float) -> Tensor:
        return score(by_hand(model, OTHERS, {("hidden", 0, 1): lambda h: h + size * towards}).logits).detach()

    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    assert_close(estimate, slope, rtol=1e-6, atol=1e-8)


IN_LOOP = [
    ("relu", "preact"),
    ("tanh", "hidden"),
    ("gru", "update"),
    ("gru", "hidden"),
    ("lstm", "cell"),
    ("lstm", "hidden"),
]


@pytest.mark.parametrize(("cell", "kind"), IN_LOOP)
def test_inside_the_loop_a_point_has_its_gradients_where_the_pass_goes_on_to_the_embedding(
    cell: str, kind: str
) -> None:
    model = make_model(cell)
    names = [f"blocks.{layer}.hook_{kind}" for layer in range(LAYERS)]
    unrolled = by_hand(model)
    result = cache_activation_and_gradient(model, TOKENS, score, names_filter=["hook_embed", *names])
    for layer, name in enumerate(names):
        assert_close(result.activations[name], unrolled.stacked(kind, layer).detach(), **exact)
        assert_close(result.gradients[name], unrolled.gradient(score(unrolled.logits), kind, layer), **exact)
    # By itself it has none: the tensor that the hook was given is not the network's own.
    assert cache_activation_and_gradient(model, TOKENS, score, names_filter=names[0]).gradients == {names[0]: None}


@pytest.mark.parametrize(("cell", "kind"), [("relu", "recurrent"), ("lstm", "recurrent")])
def test_a_pass_that_ends_inside_the_loop_is_refused(cell: str, kind: str) -> None:
    """Nothing of step 0 leads on to the embedding, so its gradient would be left at zero."""
    model = make_model(cell)
    name = f"blocks.0.hook_{kind}"
    with pytest.raises(HookError, match=rf"{name}.*step 0.*step points.*incl_bwd"):
        cache_activation_and_gradient(model, TOKENS, score, names_filter=["hook_embed", name])
    assert model.list_hooks() == {}


@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_a_pass_that_ends_at_a_step_point_is_refused_for_the_whole_sequence(cell: str) -> None:
    model = with_steps(cell)
    names = ["blocks.0.steps.2.hook_hidden", "blocks.0.hook_hidden"]
    with pytest.raises(HookError, match="step 1"):
        cache_activation_and_gradient(model, TOKENS, score, names_filter=names)


def test_nothing_is_refused_of_a_backward_hook_alone() -> None:
    """A user may differentiate with respect to one step, and watch the gradients on the way there."""
    model = with_steps("gru")
    seen, steps = {}, []

    def keep(x: Tensor, hook: object) -> Tensor:
        seen["x"] = x
        return x

    model.add_hook("blocks.0.steps.2.hook_hidden", keep)
    model.add_hook("blocks.0.hook_hidden", lambda grad, hook: steps.append(hook.step), dir="bwd")
    (grad,) = torch.autograd.grad(score(model(TOKENS)), seen["x"])
    unrolled = by_hand(model)
    assert_close(grad, unrolled.gradient(score(unrolled.logits), "hidden", 0)[:, 2], **exact)
    assert steps == [3, 2]


@works("capture_writer_outputs")
@every_cell
def test_named_activations_are_captured(cell: str) -> None:
    model = with_steps(cell)
    names = ["blocks.0.hook_out", "blocks.1.hook_hidden", "blocks.1.steps.2.hook_hidden"]
    captured = capture_writer_outputs(model, TOKENS, names_filter=names)
    unrolled = by_hand(model)
    assert_close(captured[names[0]], unrolled.stacked("out", 0).detach(), **exact)
    assert_close(captured[names[1]], unrolled.stacked("hidden", 1).detach(), **exact)
    assert_close(captured[names[2]], unrolled.values["hidden", 1, 2].detach(), **exact)
    assert not torch.allclose(captured[names[0]], captured[names[1]])
