"""TransformerLens's own tools, on a HookedRNN, against a loop written by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import points, unroll
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache, patching
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient
from transformer_lens.tools.analysis.interchange import collect_activations, reinitialized
from transformer_lens.utilities import get_act_name

from hooked_rnn import HookedRNN, HookedRNNConfig
from hooked_rnn.errors import UnknownHookPointError

BATCH, STEPS, LAYERS = 3, 4, 2
exact = {"rtol": 0.0, "atol": 1e-12}

every_layer = pytest.mark.parametrize("layer", range(LAYERS))
every_kind = pytest.mark.parametrize("kind", ["input", "recurrent", "preact", "hidden", "out"])


def make_model(**fields: Any) -> HookedRNN:
    sizes = {"d_vocab": 7, "d_vocab_out": 6, "d_model": 3, "d_hidden": 4, "n_layers": LAYERS, "act_fn": "tanh"}
    return HookedRNN(HookedRNNConfig(**{**sizes, "bias": True, "dtype": torch.float64, **fields})).eval()


def integers(*shape: int, high: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


TOKENS = integers(BATCH, STEPS)
LABELS = integers(BATCH, STEPS, high=6, seed=1)


def by_hand(model: HookedRNN, tokens: Tensor = TOKENS, edits: Any = None) -> Any:
    cfg = model.cfg
    return unroll(dict(model.named_parameters()), tokens, n_layers=cfg.n_layers, act_fn=cfg.act_fn, edits=edits)


# The cache


@every_layer
@every_kind
def test_the_cache_answers_to_transformer_lens_s_short_names(kind: str, layer: int) -> None:
    model = make_model()
    _, cache = model.run_with_cache(TOKENS)
    expected = by_hand(model).stacked(kind, layer)
    assert isinstance(cache, ActivationCache)
    for key in ((kind, layer), (kind, layer - LAYERS), f"blocks.{layer}.hook_{kind}"):
        assert_close(cache[key], expected.detach(), **exact)
    assert not torch.allclose(cache[kind, 1 - layer], expected)


@every_layer
@every_kind
def test_get_act_name_names_the_hook_points(kind: str, layer: int) -> None:
    assert get_act_name(kind, layer) == f"blocks.{layer}.hook_{kind}"
    assert get_act_name(kind, layer) in make_model().hook_dict


@pytest.mark.parametrize("kind", ["embed", "logits"])
def test_the_cache_knows_what_is_outside_the_layers(kind: str) -> None:
    model = make_model()
    _, cache = model.run_with_cache(TOKENS)
    assert_close(cache[kind], by_hand(model).stacked(kind, None).detach(), **exact)


def test_the_cache_holds_no_graph_and_is_as_long_as_the_model_has_points() -> None:
    model = make_model()
    logits, cache = model.run_with_cache(TOKENS)
    assert list(cache.keys()) == list(model.hook_dict)
    assert len(cache) == len(points(LAYERS))
    assert logits.requires_grad
    assert not any(activation.requires_grad for activation in cache.values())
    assert torch.equal(logits, model(TOKENS))
    assert model.list_hooks() == {}


NAMES = ["blocks.0.hook_hidden", "hook_logits"]


@pytest.mark.parametrize(
    ("names_filter", "kept"),
    [
        ("hook_logits", NAMES[1:]),
        (NAMES, NAMES),
        (list(reversed(NAMES)), NAMES),
        (tuple(NAMES), NAMES),
        (set(NAMES), NAMES),
        (lambda name: name in NAMES, NAMES),
        (lambda name: name.endswith("hidden"), ["blocks.0.hook_hidden", "blocks.1.hook_hidden"]),
    ],
)
def test_names_filter_keeps_those_and_no_others(names_filter: Any, kept: list[str]) -> None:
    model = make_model()
    _, everything = model.run_with_cache(TOKENS, names_filter=None)
    _, cache = model.run_with_cache(TOKENS, names_filter=names_filter)
    assert list(cache.keys()) == kept
    assert all(torch.equal(cache[name], everything[name]) for name in kept)


def test_the_logits_are_cached_also_where_none_are_asked_for() -> None:
    model = make_model()
    output, cache = model.run_with_cache(TOKENS, return_type=None)
    assert output is None
    assert torch.equal(cache["hook_logits"], model(TOKENS))


def test_an_activation_that_the_cache_lacks_is_a_key_error() -> None:
    _, cache = make_model().run_with_cache(TOKENS, names_filter="hook_logits")
    with pytest.raises(KeyError):
        cache["hidden", 0]


@pytest.mark.parametrize(
    ("pos_slice", "kept"),
    [
        (None, [0, 1, 2, 3]),
        (-1, [3]),
        (0, [0]),
        ((1, 3), [1, 2]),
        ((0, 4, 2), [0, 2]),
        ([0, 3], [0, 3]),
        (torch.tensor([2, 1]), [2, 1]),
        (slice(2, None), [2, 3]),
    ],
    ids=str,
)
def test_pos_slice_keeps_those_positions(pos_slice: Any, kept: list[int]) -> None:
    model = make_model()
    kwargs: dict[str, Any] = {"return_type": "loss", "labels": LABELS, "incl_bwd": True}
    _, whole = model.run_with_cache(TOKENS, **kwargs)
    _, cache = model.run_with_cache(TOKENS, pos_slice=pos_slice, **kwargs)
    assert cache.keys() == whole.keys()
    for name in cache:
        assert torch.equal(cache[name], whole[name][:, kept])


def test_the_batch_axis_goes_on_request() -> None:
    model = make_model()
    _, with_batch = model.run_with_cache(TOKENS[:1])
    for tokens in (TOKENS[:1], TOKENS[0].tolist()):
        _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
        assert not cache.has_batch_dim
        assert all(torch.equal(cache[name], with_batch[name][0]) for name in with_batch)
    _, last = model.run_with_cache(TOKENS[:1], remove_batch_dim=True, pos_slice=-1)
    assert torch.equal(last["hidden", 1], with_batch["hidden", 1][0, -1:])
    assert torch.equal(with_batch.remove_batch_dim()["hidden", 0], cache["hidden", 0])
    with pytest.raises(AssertionError, match="batch size 3"):
        model.run_with_cache(TOKENS, remove_batch_dim=True)


def test_the_cache_goes_to_the_device_asked_for() -> None:
    model = make_model()
    _, here = model.run_with_cache(TOKENS, device="cpu")
    _, there = model.run_with_cache(TOKENS, device=torch.device("meta"))
    assert {x.device.type for x in here.values()} == {"cpu"}
    assert {x.device.type for x in there.values()} == {"meta"}
    assert {x.device.type for x in here.to("meta").values()} == {"meta"}


def test_gradients_are_cached_beside_the_activations() -> None:
    model = make_model()
    loss, cache = model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    expected = by_hand(model)
    wanted = torch.nn.functional.cross_entropy(expected.logits.flatten(0, 1), LABELS.flatten())
    assert_close(loss, wanted, **exact)
    assert set(cache.keys()) == {f"{name}{end}" for name in model.hook_dict for end in ("", "_grad")}
    for kind, layer in points(LAYERS):
        name = get_act_name(kind) if layer is None else get_act_name(kind, layer)
        assert_close(cache[f"{name}_grad"], expected.gradient(wanted, kind, layer), **exact)


def test_caching_hooks_stay_until_reset() -> None:
    model = make_model()
    cache = model.add_caching_hooks(["hook_embed"], incl_bwd=True)
    model(TOKENS).sum().backward()
    assert list(cache) == ["hook_embed", "hook_embed_grad"]
    first = cache["hook_embed"]
    model(TOKENS + 0)
    assert cache["hook_embed"] is not first
    model.reset_hooks()
    cache.clear()
    model(TOKENS)
    assert cache == {}


def test_caching_hooks_may_share_a_dictionary() -> None:
    model, mine = make_model(), {}
    cache, forward, backward = model.get_caching_hooks("hook_embed", incl_bwd=True, cache=mine)
    assert cache is mine
    with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
        model(TOKENS).sum().backward()
    assert list(mine) == ["hook_embed", "hook_embed_grad"]


@pytest.mark.parametrize("kind", ["hidden", "preact", "out"])
def test_stack_activation_stacks_the_layers(kind: str) -> None:
    model = make_model(n_layers=3)
    _, cache = model.run_with_cache(TOKENS)
    expected = by_hand(model)
    stacked = torch.stack([expected.stacked(kind, layer) for layer in range(3)])
    assert_close(cache.stack_activation(kind), stacked.detach(), **exact)
    assert_close(cache.stack_activation(kind, layer=2), stacked[:2].detach(), **exact)


# Patching

CORRUPTED = integers(BATCH, STEPS, seed=2)


def score(logits: Tensor) -> Tensor:
    """Some number that depends on every position."""
    weights = torch.arange(1.0, 1.0 + logits[0].numel(), dtype=logits.dtype).view_as(logits[0])
    return (logits * weights.sin()).sum() / len(logits)


def patch_in_place(activation: Tensor, index: list[int], clean: Tensor) -> Tensor:
    activation[:, index[1]] = clean[:, index[1]]
    return activation


def patch_a_copy(activation: Tensor, index: list[int], clean: Tensor) -> Tensor:
    return patch_in_place(activation.clone(), index, clean)


@every_kind
@pytest.mark.parametrize("setter", [patching.layer_pos_patch_setter, patch_in_place, patch_a_copy])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("act_fn", ["tanh", "relu"])
def test_patching_each_layer_and_position_is_the_patch_of_the_unrolled_network(
    kind: str, setter: Callable, grad: bool, act_fn: str
) -> None:
    model = make_model(act_fn=act_fn)
    _, clean_cache = model.run_with_cache(TOKENS)
    with torch.set_grad_enabled(grad):
        patched = patching.generic_activation_patch(
            model, CORRUPTED, clean_cache, score, setter, kind, index_axis_names=("layer", "pos")
        )
    clean = by_hand(model)
    expected = torch.zeros(LAYERS, STEPS)
    for layer in range(LAYERS):
        for t in range(STEPS):
            edit = {(kind, layer, t): lambda x, value=clean.values[kind, layer, t]: value}
            expected[layer, t] = score(by_hand(model, CORRUPTED, edit).logits).item()
    assert_close(patched.detach(), expected, rtol=1e-6, atol=1e-6)  # TransformerLens keeps the results in float32
    assert len(patched.unique()) > STEPS  # or all patches would be the same
    assert model.list_hooks() == {}


def test_patching_results_with_a_baseline_hold_every_example() -> None:
    model = make_model()
    _, clean_cache = model.run_with_cache(TOKENS)
    metrics = {"first": lambda logits: logits[:, -1, 0], "second": lambda logits: logits[:, -1, 1]}
    result = patching.generic_activation_patch(
        model,
        CORRUPTED,
        clean_cache,
        metrics,
        patching.layer_pos_patch_setter,
        "hidden",
        index_axis_names=("layer", "pos"),
        reduce="none",
        baseline=True,
    )
    assert result.values.shape == (2, LAYERS, STEPS, BATCH)
    assert_close(result.baseline[0], model(CORRUPTED)[:, -1, 0].float())
    # the last hidden state of the top layer is all that the last logits see
    assert_close(result.values[1, -1, -1], model(TOKENS)[:, -1, 1].float())


def test_patching_wants_a_model_in_evaluation_mode() -> None:
    model = make_model()
    _, clean_cache = model.run_with_cache(TOKENS)
    with pytest.raises(ValueError, match="eval"):
        patching.generic_activation_patch(
            model.train(),
            CORRUPTED,
            clean_cache,
            score,
            patching.layer_pos_patch_setter,
            "hidden",
            index_axis_names=("layer", "pos"),
        )


def test_patching_a_name_that_is_none_is_refused() -> None:
    model = make_model()
    _, clean_cache = model.run_with_cache(TOKENS)
    with pytest.raises(KeyError, match="hook_hiden"):
        patching.generic_activation_patch(
            model, CORRUPTED, clean_cache, score, patch_in_place, "hiden", index_axis_names=("layer", "pos")
        )
    with pytest.raises(UnknownHookPointError, match=r"nearest.*blocks\.0\.hook_hidden"):
        model.run_with_hooks(TOKENS, fwd_hooks=[(get_act_name("hiden", 0), patch_in_place)])


# Other tools


@pytest.mark.parametrize("kind", ["input", "preact", "hidden", "out"])
def test_a_metric_s_gradient_is_cached_where_it_goes_on_to_the_embedding(kind: str) -> None:
    model = make_model()
    names = ["hook_embed", *(get_act_name(kind, layer) for layer in range(LAYERS))]
    result = cache_activation_and_gradient(model, TOKENS, score, names_filter=names)
    expected = by_hand(model)
    for layer in range(LAYERS):
        name = get_act_name(kind, layer)
        assert_close(result.activations[name], expected.stacked(kind, layer).detach(), **exact)
        assert_close(result.gradients[name], expected.gradient(score(expected.logits), kind, layer), **exact)
    assert all(p.grad is None for p in model.parameters())


@every_layer
def test_activations_are_collected_where_a_hook_fires_once(layer: int) -> None:
    model = make_model()
    positions = torch.tensor([0, 3, 1])
    collected = collect_activations(
        model,
        get_act_name("out", layer),
        TOKENS,
        lambda tokens: model(tokens)[:, -1],
        positions=positions,
        batch_size=2,
    )
    expected = by_hand(model).stacked("out", layer)[torch.arange(BATCH), positions]
    assert_close(collected, expected.detach(), **exact)
    with pytest.raises(RuntimeError, match="fired 4 times"):
        collect_activations(
            model, get_act_name("hidden", layer), TOKENS, lambda tokens: model(tokens)[:, -1], positions=positions
        )


def test_reinitialized_depends_on_its_seed_alone() -> None:
    model = make_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first, again, other = (reinitialized(model, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(first(TOKENS), again(TOKENS))
    assert not torch.allclose(first(TOKENS), other(TOKENS))
    assert not torch.allclose(first(TOKENS), model(TOKENS))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
        assert first.state_dict()[name].dtype == weight.dtype
        if ".W_" in name:
            assert not torch.allclose(first.state_dict()[name], weight)
    assert isinstance(first, HookedRNN)
    assert first.cfg == model.cfg
