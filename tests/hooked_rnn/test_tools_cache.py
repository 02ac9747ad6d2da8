"""TransformerLens's ActivationCache, of a HookedRNN."""

from typing import Any

import pytest
import torch
from tool_verdicts import works
from torch.testing import assert_close
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice, get_act_name
from unrolled_cells import (
    ANSWERS,
    BATCH,
    LABELS,
    LAYERS,
    STEPS,
    TOKENS,
    by_hand,
    every_cell,
    exact,
    integers,
    loop_kinds,
    make_model,
    normal,
)

from hooked_rnn.caching import RNNActivationCache
from hooked_rnn.errors import TransformerOnlyError, UnknownHookPointError


def with_steps(cell: str, **fields: Any) -> Any:
    model = make_model(cell, **fields)
    model.set_use_step_hooks(True, STEPS)
    return model


@works(
    "HookedRootModule.run_with_cache",
    "ActivationCache",
    "ActivationCache.keys",
    "ActivationCache.values",
    "ActivationCache.items",
)
@every_cell
def test_the_cache_holds_every_value_of_the_unrolled_network(cell: str) -> None:
    model = with_steps(cell)
    _, cache = model.run_with_cache(TOKENS)
    expected = by_hand(model)
    assert isinstance(cache, ActivationCache)
    assert set(cache) == set(cache.keys()) == set(model.hook_dict)
    assert len(cache) == len(cache.values()) == len(cache.items())
    for kind in ("input", *loop_kinds(model), "out"):
        if (kind, 0, 0) not in expected.values:
            assert (cell, kind) in {("relu", "carry"), ("tanh", "carry")}
            continue
        for layer in range(LAYERS):
            wanted = expected.stacked(kind, layer).detach()
            assert_close(cache[kind, layer], wanted, **exact)
            assert not torch.allclose(cache[kind, layer], wanted.flip(1))
            for t in range(STEPS if kind in loop_kinds(model) else 0):
                assert_close(cache[f"blocks.{layer}.steps.{t}.hook_{kind}"], wanted[:, t], **exact)
                assert cache[kind, layer - LAYERS, f"steps.{t}"] is cache[f"blocks.{layer}.steps.{t}.hook_{kind}"]
    for kind in ("embed", "logits"):
        assert_close(cache[kind], expected.stacked(kind, None).detach(), **exact)


@works("get_act_name")
@every_cell
def test_get_act_name_names_every_hook_point(cell: str) -> None:
    model = with_steps(cell)
    names = {get_act_name(kind) for kind in ("embed", "logits")}
    for layer in range(LAYERS):
        names |= {get_act_name(kind, layer) for kind in ("input", "out", *loop_kinds(model))}
        names |= {get_act_name(kind, layer, f"steps.{t}") for kind in loop_kinds(model) for t in range(STEPS)}
    assert names == set(model.hook_dict)


@works("ActivationCache.stack_activation")
@every_cell
def test_stack_activation_stacks_the_layers(cell: str) -> None:
    model = with_steps(cell, n_layers=3)
    _, cache = model.run_with_cache(TOKENS)
    expected = by_hand(model)
    for kind in ("hidden", "out", "recurrent"):
        stacked = torch.stack([expected.stacked(kind, layer) for layer in range(3)]).detach()
        assert_close(cache.stack_activation(kind), stacked, **exact)
        assert_close(cache.stack_activation(kind, layer=2), stacked[:2], **exact)
        assert not torch.allclose(cache.stack_activation(kind), stacked.flip(0))
    at_2 = torch.stack([expected.values["hidden", layer, 2] for layer in range(3)]).detach()
    assert_close(cache.stack_activation("hidden", sublayer_type="steps.2"), at_2, **exact)


@works("ActivationCache.apply_slice_to_batch_dim", "Slice", "Slice.apply")
@pytest.mark.parametrize("batch_slice", [1, (0, 2), [2, 0], torch.tensor([1])], ids=str)
@every_cell
def test_a_slice_of_the_cache_is_the_cache_of_the_slice(cell: str, batch_slice: Any) -> None:
    model = with_steps(cell)
    _, cache = model.run_with_cache(TOKENS)
    rows = Slice(batch_slice).apply(torch.arange(BATCH)).reshape(-1)
    _, wanted = model.run_with_cache(TOKENS[rows], remove_batch_dim=isinstance(batch_slice, int))
    sliced = cache.apply_slice_to_batch_dim(batch_slice)
    assert isinstance(sliced, RNNActivationCache)
    assert sliced.has_batch_dim == wanted.has_batch_dim
    assert sliced.keys() == cache.keys()
    for name in cache:
        assert_close(sliced[name], wanted[name], **exact)
    assert not torch.allclose(sliced["hidden", 1], cache["hidden", 1][[0]])
    with pytest.raises(TransformerOnlyError):
        sliced.accumulated_resid()


@works("ActivationCache.remove_batch_dim", "remove_batch_dim")
@every_cell
def test_the_batch_axis_goes_of_whole_sequences_and_of_single_steps(cell: str) -> None:
    model = with_steps(cell)
    _, cache = model.run_with_cache(TOKENS[:1])
    _, without = model.run_with_cache(TOKENS[:1], remove_batch_dim=True)
    expected = by_hand(model, TOKENS[:1])
    removed = cache.remove_batch_dim()
    assert removed is cache
    assert not cache.has_batch_dim
    for found in (removed, without):
        assert_close(found["hidden", 1], expected.stacked("hidden", 1)[0].detach(), **exact)
        assert_close(found["hidden", 1, "steps.3"], expected.values["hidden", 1, 3][0].detach(), **exact)
    _, three = model.run_with_cache(TOKENS)
    with pytest.raises(AssertionError, match="batch size 3"):
        three.remove_batch_dim()


@works("ActivationCache.to")
def test_the_cache_moves() -> None:
    _, cache = with_steps("gru").run_with_cache(TOKENS)
    assert {x.device.type for x in cache.values()} == {"cpu"}
    moved = cache.to("meta")
    assert isinstance(moved, RNNActivationCache)
    assert {x.device.type for x in moved.values()} == {"meta"}


@works("ActivationCache.toggle_autodiff")
def test_toggle_autodiff_is_torch_s_switch() -> None:
    model = make_model("tanh")
    _, cache = model.run_with_cache(TOKENS)
    assert model(TOKENS).requires_grad
    with torch.enable_grad():
        cache.toggle_autodiff(False)
        assert not model(TOKENS).requires_grad
        assert_close(model(TOKENS), by_hand(model).logits, **exact)


@works("ActivationCache.ssm_layers")
@every_cell
def test_no_layer_is_a_state_space_model(cell: str) -> None:
    _, cache = make_model(cell).run_with_cache(TOKENS)
    assert cache.ssm_layers() == []


# Positions


@works("HookedRootModule.get_caching_hooks", "Slice.unwrap", "Slice.indices", "to_python_int")
@pytest.mark.parametrize("pos_slice", [1, -1, (1, 3), [3, 0], torch.tensor([2])], ids=str)
@every_cell
def test_pos_slice_keeps_positions_and_leaves_step_points_whole(cell: str, pos_slice: Any) -> None:
    model = with_steps(cell)
    kept = Slice.unwrap(pos_slice).indices(STEPS).tolist()
    kwargs: dict[str, Any] = {"return_type": "loss", "labels": LABELS, "incl_bwd": True}
    _, whole = model.run_with_cache(TOKENS, **kwargs)
    _, cache = model.run_with_cache(TOKENS, pos_slice=pos_slice, **kwargs)
    assert cache.keys() == whole.keys()
    for name in cache:
        assert_close(cache[name], whole[name] if ".steps." in name else whole[name][:, kept], **exact)
    # the trap: as if a step point's first axis were the position
    assert cache["hidden", 0, "steps.2"].shape == (BATCH, 4)


def test_pos_slice_and_the_removed_batch_axis_go_together() -> None:
    model = with_steps("lstm")
    _, cache = model.run_with_cache(TOKENS[:1], remove_batch_dim=True, pos_slice=[3, 1])
    expected = by_hand(model, TOKENS[:1])
    assert_close(cache["cell", 1], expected.stacked("cell", 1)[0, [3, 1]].detach(), **exact)
    assert_close(cache["cell", 1, "steps.2"], expected.values["cell", 1, 2][0].detach(), **exact)


# What a cache lacks


def test_a_name_that_the_cache_lacks_is_one_error_that_says_which_kind() -> None:
    model = make_model("gru")
    _, cache = model.run_with_cache(TOKENS, names_filter="hook_logits")
    with pytest.raises(UnknownHookPointError, match=r"does not hold 'blocks\.0\.hook_hidden', but 'hook_logits'"):
        cache["hidden", 0]
    with pytest.raises(UnknownHookPointError, match=r"hook_logits_grad.*incl_bwd=True"):
        cache["hook_logits_grad"]
    with pytest.raises(UnknownHookPointError, match=r"no hook point is named 'blocks\.0\.hook_hiden'; nearest"):
        cache["hiden", 0]
    with pytest.raises(
        UnknownHookPointError, match=r"'blocks\.1\.steps\.0\.hook_hidden': expected .*set_use_step_hooks"
    ):
        cache["hidden", 1, "steps.0"]
    cache.model = None
    with pytest.raises(UnknownHookPointError, match=r"nearest: 'hook_logits'"):
        cache["logit"]


def test_a_step_point_that_there_is_not_is_one_error_that_says_how_there_would_be() -> None:
    model = make_model("gru")
    model.set_use_step_hooks(True, 100)
    name = "blocks.0.steps.100.hook_hidden"
    with pytest.raises(UnknownHookPointError, match=r"expected model.set_use_step_hooks\(True, n_steps\) .* above 100"):
        model.add_hook(name, lambda x, hook: None)
    _, cache = model.run_with_cache(TOKENS)
    with pytest.raises(UnknownHookPointError, match=r"expected .* a sequence with a position 50") as caught:
        cache["hidden", 0, "steps.50"]
    assert len(str(caught.value)) < 2500
    with pytest.raises(UnknownHookPointError, match="or another of 1824") as caught:  # few of which are named
        model.run_with_cache(TOKENS, names_filter=lambda name: False)
    assert "'blocks.1.hook_hidden'" in str(caught.value)


# Direct logit attribution, of what the top layer sends up


@works(
    "ActivationCache.logit_attrs",
    "ActivationCache.apply_ln_to_stack",
)
@every_cell
def test_logit_attrs_splits_a_logit_into_what_each_neuron_adds(cell: str) -> None:
    model = make_model(cell)
    _, cache = model.run_with_cache(TOKENS)
    logits = by_hand(model).logits.detach()
    out = cache["out", -1]
    neurons = torch.stack([out * one for one in torch.eye(out.shape[-1], dtype=out.dtype)])
    assert torch.equal(cache.apply_ln_to_stack(neurons), neurons)

    def logit(classes: torch.Tensor) -> torch.Tensor:
        return logits.gather(-1, classes[..., None])[..., 0] - model.b_U[classes]

    for answers, wrong in [(LABELS, (LABELS + 1) % ANSWERS), (torch.tensor(4), torch.tensor(1))]:
        classes = answers.expand(BATCH, STEPS)
        found = cache.logit_attrs(neurons, answers if answers.ndim else 4)
        assert found.shape == (4, BATCH, STEPS)
        for neuron in range(4):
            assert_close(found[neuron], out[..., neuron] * model.W_U[neuron][classes], **exact)
        assert_close(found.sum(0), logit(classes), **exact)
        difference = cache.logit_attrs(neurons, answers, incorrect_tokens=wrong).sum(0)
        assert_close(difference, logit(classes) - logit(wrong.expand(BATCH, STEPS)), **exact)
    assert_close(cache.logit_attrs(neurons, LABELS[:, 0]).sum(0), logit(LABELS[:, :1].expand(BATCH, STEPS)), **exact)
    # control: the layer below has coordinates of its own
    assert not torch.allclose(cache.logit_attrs(cache["out", 0][None], LABELS)[0], logit(LABELS))
    with pytest.raises(TransformerOnlyError, match="'12' as a class"):
        cache.logit_attrs(neurons, "12")


def test_logit_attrs_takes_slices() -> None:
    model = make_model("lstm")
    _, cache = model.run_with_cache(TOKENS)
    parts = normal(5, BATCH, STEPS, 4)
    found = cache.logit_attrs(parts[:, :, 1:3], integers(2, 2, high=6), pos_slice=(1, 3), batch_slice=[0, 2])
    classes = integers(2, 2, high=6)
    expected = torch.stack([parts[:, 0, 1:3], parts[:, 2, 1:3]], 1) * model.W_U.T[classes]
    assert_close(found, expected.sum(-1), **exact)
