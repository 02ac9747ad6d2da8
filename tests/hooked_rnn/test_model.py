"""The model without its hooks: torch.nn.RNN's numbers, and one clear error for each thing that cannot be."""

import copy
import json
import math
import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import unroll
from torch import Tensor, nn
from torch.testing import assert_close

from hooked_rnn import HookedRNN, HookedRNNConfig
from hooked_rnn.errors import (
    ConfigError,
    HookedRNNError,
    LabelError,
    ReturnTypeError,
    StateError,
    TokenError,
    UnknownHookPointError,
)

VOCAB, ANSWERS = 8, 7
SIZES: dict[str, Any] = {"d_vocab": VOCAB, "d_vocab_out": ANSWERS, "d_model": 3, "d_hidden": 5}
exact = {"rtol": 0.0, "atol": 1e-10}
few_examples = settings(max_examples=40, deadline=None, derandomize=True)


def make_model(**fields: Any) -> HookedRNN:
    """A small network in float64, with biases that are not zero."""
    model = HookedRNN(HookedRNNConfig(**{**SIZES, "dtype": torch.float64, **fields}))
    generator = torch.Generator().manual_seed(model.cfg.seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".b_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    return model


def integers(*shape: int, high: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOKENS = integers(3, 4)
LABELS = integers(3, 4, high=ANSWERS, seed=1)


def by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each label, from its definition."""
    chosen = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels < 0, torch.zeros_like(chosen), logits.logsumexp(-1) - chosen)


# torch.nn.RNN


def torch_twin(model: HookedRNN) -> nn.RNN:
    """torch's own network with the same weights (it multiplies from the left)."""
    cfg = model.cfg
    twin = nn.RNN(
        cfg.d_model,
        cfg.d_hidden,
        num_layers=cfg.n_layers,
        nonlinearity=cfg.act_fn,
        bias=cfg.bias,
        batch_first=True,
        dtype=torch.float64,
    )
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            getattr(twin, f"weight_ih_l{layer}").copy_(block.W_ih.T)
            getattr(twin, f"weight_hh_l{layer}").copy_(block.W_hh.T)
            if cfg.bias:
                getattr(twin, f"bias_ih_l{layer}").copy_(block.b_ih)
                getattr(twin, f"bias_hh_l{layer}").copy_(block.b_hh)
    return twin


@few_examples
@given(
    n_layers=st.integers(1, 3),
    act_fn=st.sampled_from(["relu", "tanh"]),
    bias=st.booleans(),
    batch=st.integers(1, 4),
    n_steps=st.integers(1, 6),
    with_state=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_all_gradients_are_those_of_torch_nn_rnn(
    n_layers: int, act_fn: str, bias: bool, batch: int, n_steps: int, with_state: bool, seed: int
) -> None:
    model = make_model(n_layers=n_layers, act_fn=act_fn, bias=bias, seed=seed)
    tokens, weighting = integers(batch, n_steps, seed=seed), normal(batch, n_steps, ANSWERS, seed=seed)
    state = normal(n_layers, batch, 5, seed=seed).requires_grad_() if with_state else None
    twin = torch_twin(model)
    embedded = model.W_E.detach()[tokens].requires_grad_()
    twin_state = None if state is None else state.detach().clone().requires_grad_()

    logits, final = model(tokens, initial_state=state, return_state=True)
    hidden, twin_final = twin(embedded, twin_state)
    twin_logits = hidden @ model.W_U.detach() + model.b_U.detach()
    assert_close(logits, twin_logits, **exact)
    assert_close(final, twin_final, **exact)

    ((logits * weighting).sum() + final.sum()).backward()
    ((twin_logits * weighting).sum() + twin_final.sum()).backward()
    for layer, block in enumerate(model.blocks):
        assert_close(block.W_ih.grad, getattr(twin, f"weight_ih_l{layer}").grad.T, **exact)
        assert_close(block.W_hh.grad, getattr(twin, f"weight_hh_l{layer}").grad.T, **exact)
        if bias:
            assert_close(block.b_ih.grad, getattr(twin, f"bias_ih_l{layer}").grad, **exact)
            assert_close(block.b_hh.grad, getattr(twin, f"bias_hh_l{layer}").grad, **exact)
    by_token = torch.zeros_like(model.W_E).index_add(0, tokens.flatten(), embedded.grad.flatten(0, 1))
    assert_close(model.W_E.grad, by_token, **exact)
    assert state is None or torch.allclose(state.grad, twin_state.grad, **exact)
    assert_close(model.W_U.grad, hidden.detach().flatten(0, 1).T @ weighting.flatten(0, 1), **exact)


@few_examples
@given(
    n_layers=st.integers(1, 3), act_fn=st.sampled_from(["relu", "tanh"]), bias=st.booleans(), n_steps=st.integers(1, 5)
)
def test_the_two_references_agree(n_layers: int, act_fn: str, bias: bool, n_steps: int) -> None:
    model = make_model(n_layers=n_layers, act_fn=act_fn, bias=bias)
    tokens = integers(2, n_steps)
    unrolled = unroll(dict(model.named_parameters()), tokens, n_layers=n_layers, act_fn=act_fn)
    assert_close(unrolled.stacked("hidden", n_layers - 1), torch_twin(model)(model.W_E[tokens])[0], **exact)
    assert_close(unrolled.logits, model(tokens), **exact)


def test_a_network_with_other_weights_gives_other_numbers() -> None:
    model = make_model(n_layers=2)
    logits = model(TOKENS)
    for parameter in model.parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(normal(*parameter.shape))
        assert not torch.allclose(model(TOKENS), logits)
        with torch.no_grad():
            parameter.copy_(before)
    assert torch.equal(model(TOKENS), logits)


# States


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_two_halves_are_the_whole(cut: int, hooked: bool) -> None:
    model = make_model(n_layers=3, act_fn="tanh", bias=True)
    if hooked:
        model.add_hook(lambda name: True, lambda x, hook: x * 1.25)
    whole, final = model(TOKENS, return_state=True)
    first, state = model(TOKENS[:, :cut], return_state=True)
    second, end = model(TOKENS[:, cut:], initial_state=state, return_state=True)
    assert_close(torch.cat([first, second], dim=1), whole, **exact)
    assert_close(end, final, **exact)
    assert not torch.allclose(model(TOKENS[:, cut:]), whole[:, cut:])  # without the state


def test_gradients_flow_through_the_state() -> None:
    model = make_model(n_layers=2, act_fn="tanh")
    whole = torch.autograd.grad(model(TOKENS)[:, -1].sum(), list(model.parameters()))
    _, state = model(TOKENS[:, :2], return_type=None, return_state=True)
    halves = torch.autograd.grad(model(TOKENS[:, 2:], initial_state=state)[:, -1].sum(), list(model.parameters()))
    for left, right in zip(halves, whole, strict=True):
        assert_close(left, right, **exact)


def test_no_state_is_a_state_of_zeros() -> None:
    model = make_model(n_layers=2, bias=True)
    assert_close(model(TOKENS, initial_state=torch.zeros(2, 3, 5, dtype=torch.float64)), model(TOKENS), **exact)


def test_the_initial_state_is_left_as_it_was() -> None:
    model, state = make_model(n_layers=2), normal(2, 3, 5)
    before = state.clone()
    model(TOKENS, initial_state=state)
    model.run_with_cache(TOKENS, initial_state=state)
    assert torch.equal(state, before)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("state", "said"),
    [
        (normal(1, 3, 5), "[1, 3, 5]: expected [2, 3, 5]"),
        (normal(2, 2, 5), "[2, 2, 5]: expected [2, 3, 5]"),
        (normal(2, 3, 4), "[2, 3, 4]: expected [2, 3, 5]"),
        (normal(2, 3), "[2, 3]: expected [2, 3, 5]"),
        (normal(2, 3, 5).float(), "float32"),
        (normal(2, 3, 5).long(), "int64"),
        (normal(2, 3, 5).to("meta"), "meta"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state: Tensor, said: str) -> None:
    with pytest.raises(StateError, match=re.escape(said)):
        make_model(n_layers=2)(TOKENS, initial_state=state)


# Outputs and losses


def test_return_types() -> None:
    model = make_model()
    logits = model(TOKENS)
    loss = model(TOKENS, return_type="loss", labels=LABELS)
    both = model(TOKENS, return_type="both", labels=LABELS)
    assert logits.shape == (3, 4, ANSWERS)
    assert torch.equal(both.logits, logits)
    assert torch.equal(both.loss, loss)
    assert both == (both.logits, both.loss)  # unpacks as in TransformerLens
    assert model(TOKENS, return_type=None) is None
    none, state = model(TOKENS, return_type=None, return_state=True)
    assert none is None
    assert state.shape == (1, 3, 5)
    (logits_again, loss_again), state_again = model(TOKENS, return_type="both", labels=LABELS, return_state=True)
    assert torch.equal(logits_again, logits)
    assert torch.equal(loss_again, loss)
    assert torch.equal(state_again, state)


def test_the_loss_is_the_mean_cross_entropy_of_every_position() -> None:
    model = make_model()
    each = by_hand(model(TOKENS), LABELS)
    assert_close(model(TOKENS, return_type="loss", labels=LABELS), each.mean(), **exact)
    assert_close(model(TOKENS, return_type="loss", labels=LABELS, loss_per_token=True), each, **exact)


def test_labels_of_the_last_position_ask_for_the_last_logits() -> None:
    model, labels = make_model(), LABELS[:, -1]
    each = by_hand(model(TOKENS)[:, -1], labels)
    assert_close(model(TOKENS, return_type="loss", labels=labels), each.mean(), **exact)
    assert_close(model(TOKENS, return_type="loss", labels=labels, loss_per_token=True), each, **exact)


def test_ignored_labels_count_neither_in_the_sum_nor_in_the_number() -> None:
    model, labels = make_model(), LABELS.clone()
    labels[0, 1:] = labels[2] = -100
    each = by_hand(model(TOKENS), labels)
    assert_close(model(TOKENS, return_type="loss", labels=labels), each.sum() / 5, **exact)
    assert_close(model(TOKENS, return_type="loss", labels=labels, loss_per_token=True), each, **exact)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    model = make_model()
    expected = model(TOKENS, return_type="loss", labels=LABELS)
    assert torch.equal(model(TOKENS, return_type="loss", labels=LABELS.to(dtype)), expected)


@pytest.mark.parametrize(("asked", "kept"), [(None, 4), (0, 4), (1, 1), (3, 3), (4, 4), (9, 4)])
def test_logits_to_keep_unembeds_the_last_positions(asked: int | None, kept: int) -> None:
    model = make_model(n_layers=2)
    logits = model(TOKENS)
    assert_close(model(TOKENS, logits_to_keep=asked), logits[:, -kept:], **exact)
    _, cache = model.run_with_cache(TOKENS, logits_to_keep=asked)
    assert cache["hook_logits"].shape[1] == kept
    assert cache["hook_embed"].shape[1] == 4
    each = by_hand(logits, LABELS)[:, -kept:]
    kwargs = {"labels": LABELS, "logits_to_keep": asked, "return_type": "loss"}
    assert_close(model(TOKENS, **kwargs), each.mean(), **exact)
    assert_close(model(TOKENS, **kwargs, loss_per_token=True), each, **exact)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("asked", [-1, 1.0, True, "1"])
def test_an_impossible_logits_to_keep_is_refused(asked: Any) -> None:
    with pytest.raises(ReturnTypeError, match=re.escape(f"logits_to_keep={asked!r}")):
        make_model()(TOKENS, logits_to_keep=asked)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("asked", ["logit", "Loss", 1, False, ["loss"]])
def test_an_unknown_return_type_is_refused_with_the_choices(asked: Any) -> None:
    with pytest.raises(ReturnTypeError, match=r"'logits', 'loss', 'both' or None"):
        make_model()(TOKENS, return_type=asked)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("return_type", ["loss", "both"])
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "NoneType: expected an integer tensor"),
        (LABELS.double(), "float64"),
        (LABELS.bool(), "bool"),
        (LABELS.tolist(), "list: expected an integer tensor"),
        (LABELS[:2], "expected [3] (of the last position) or [3, 4]"),
        (LABELS[:, :2], "expected [3] (of the last position) or [3, 4]"),
        (LABELS[..., None], "expected [3] (of the last position) or [3, 4]"),
        (LABELS[0], "expected [3] (of the last position) or [3, 4]"),
        (torch.full((3, 4), -100), "every label is -100"),
        (torch.full((3,), ANSWERS), f"label {ANSWERS}: expected 0 to {ANSWERS - 1}"),
        (torch.full((3,), -1), "label -1"),
        (LABELS.to("meta"), "meta"),
    ],
)
def test_labels_that_do_not_fit_are_refused(return_type: Any, labels: Tensor | None, said: str) -> None:
    with pytest.raises(LabelError, match=re.escape(said)):
        make_model()(TOKENS, return_type=return_type, labels=labels)


def test_a_loss_of_ignored_positions_alone_is_refused() -> None:
    labels = LABELS.clone()
    labels[:, 2:] = -100
    model = make_model()
    assert model(TOKENS, return_type="loss", labels=labels, logits_to_keep=3).isfinite()
    with pytest.raises(LabelError, match="every label is -100"):
        model(TOKENS, return_type="loss", labels=labels, logits_to_keep=2)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"return_type": "both", "labels": LABELS},
        {"return_type": None},
        {"return_type": "loss", "labels": LABELS, "loss_per_token": True},
        {"return_type": "loss", "labels": LABELS, "return_state": True},
    ],
)
def test_gradients_are_cached_of_a_mean_loss_only(kwargs: dict[str, Any]) -> None:
    model = make_model()
    with pytest.raises(ReturnTypeError, match="return_type='loss'"):
        model.run_with_cache(TOKENS, incl_bwd=True, **kwargs)
    assert model.list_hooks() == {}


def test_nothing_is_computed_before_the_error() -> None:
    model, fired = make_model(), []
    model.add_hook("hook_embed", lambda x, hook: fired.append(hook.name))
    for wrong in ({"return_type": "loss"}, {"initial_state": normal(9, 9, 9)}, {"logits_to_keep": -1}):
        with pytest.raises(HookedRNNError):
            model(TOKENS, **wrong)
    assert fired == []


# Weights


@pytest.mark.parametrize(("bias", "unembed_bias"), [(False, None), (True, None), (False, True), (True, False)])
def test_parameters_are_those_of_the_table(bias: bool, unembed_bias: bool | None) -> None:
    model = make_model(n_layers=2, bias=bias, unembed_bias=unembed_bias)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    expected = {"embed.W_E": (VOCAB, 3), "unembed.W_U": (5, ANSWERS)}
    for layer, d_in in enumerate((3, 5)):
        expected |= {f"blocks.{layer}.W_ih": (d_in, 5), f"blocks.{layer}.W_hh": (5, 5)}
        expected |= {f"blocks.{layer}.b_{which}": (5,) for which in ("ih", "hh") if bias}
    if unembed_bias or (unembed_bias is None and bias):
        expected["unembed.b_U"] = (ANSWERS,)
    assert shapes == expected
    assert model.state_dict().keys() == expected.keys()
    assert model.b_U.any() == ("unembed.b_U" in expected)


def test_weights_go_by_their_transformer_lens_names() -> None:
    model = make_model(n_layers=3)
    assert model.W_E is model.embed.W_E
    assert model.W_U is model.unembed.W_U
    assert torch.equal(model.W_hh, torch.stack([block.W_hh for block in model.blocks]))
    assert torch.equal(model.b_U, torch.zeros(ANSWERS, dtype=torch.float64))
    biased = make_model(unembed_bias=True)
    assert biased.b_U is biased.unembed.b_U


def test_a_gradient_reaches_each_layer_through_the_stack() -> None:
    model = make_model(n_layers=2)
    (model.W_hh * torch.tensor([1.0, 2.0])[:, None, None]).sum().backward()
    assert [block.W_hh.grad.unique().tolist() for block in model.blocks] == [[1.0], [2.0]]


# Seeds


def test_the_seed_alone_makes_the_weights() -> None:
    torch.manual_seed(1)
    first = HookedRNN(HookedRNNConfig(**SIZES, seed=3)).state_dict()
    torch.manual_seed(2)
    again = HookedRNN(HookedRNNConfig(**SIZES, seed=3)).state_dict()
    other = HookedRNN(HookedRNNConfig(**SIZES, seed=4)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.usefixtures("unchecked")  # beartype itself draws from the random module
def test_global_random_states_are_neither_read_nor_changed() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = HookedRNN(HookedRNNConfig(**SIZES, n_layers=2, bias=True))
    model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_initial_weights_have_standard_deviation_one_over_the_root_of_the_fan_in() -> None:
    cfg = HookedRNNConfig(d_vocab=200, d_vocab_out=300, d_model=100, d_hidden=400, n_layers=2, bias=True)
    model = HookedRNN(cfg)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any()
        else:
            assert math.isclose(parameter.std().item(), parameter.shape[0] ** -0.5, rel_tol=0.05), name


# Devices and dtypes


def test_the_configuration_follows_the_model_and_the_one_passed_in_stays() -> None:
    cfg = HookedRNNConfig(**SIZES)
    model = HookedRNN(cfg)
    assert model.double().cfg.dtype == torch.float64
    assert model(TOKENS).dtype == torch.float64
    assert model.to(torch.bfloat16).cfg.dtype == torch.bfloat16
    assert model.to("meta").cfg.device == torch.device("meta")
    assert (cfg.device, cfg.dtype) == (torch.device("cpu"), torch.float32)
    assert model.cfg == cfg  # the same architecture


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_model_is_made_with_the_dtype_asked_for(dtype: torch.dtype) -> None:
    model = HookedRNN(HookedRNNConfig(**SIZES, dtype=dtype))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.cfg.dtype == dtype
    assert model.b_U.dtype == dtype


def test_torch_s_default_device_and_dtype_change_no_weight() -> None:
    cfg = HookedRNNConfig(**SIZES, bias=True)
    model = HookedRNN(cfg)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            other = HookedRNN(cfg)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (other.cfg.device, other.cfg.dtype) == (torch.device("cpu"), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("hooked", [False, True])
def test_bfloat16_runs_and_is_near(hooked: bool) -> None:
    model = HookedRNN(HookedRNNConfig(**SIZES, n_layers=2, bias=True))
    near = copy.deepcopy(model).bfloat16()
    if hooked:
        near.add_hook("blocks.0.hook_hidden", lambda x, hook: x * 1.0)
    logits, state = near(TOKENS, return_state=True)
    assert logits.dtype == state.dtype == torch.bfloat16
    assert_close(logits.float(), model(TOKENS), rtol=0.1, atol=0.1)
    assert not torch.equal(logits.float(), model(TOKENS))


def test_sequences_may_be_longer_than_those_trained_on() -> None:
    model = make_model(n_ctx=2)
    assert model(integers(2, 50)).shape == (2, 50, ANSWERS)


def test_a_deep_copy_is_a_model_of_its_own() -> None:
    model = make_model(n_layers=2)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(TOKENS), model(TOKENS))
    steps: list[int | None] = []
    with twin.hooks(fwd_hooks=[("blocks.1.hook_hidden", lambda x, hook: steps.append(hook.step))]):
        model(TOKENS)
        assert steps == []
        twin(TOKENS)
    assert steps == [0, 1, 2, 3]
    with torch.no_grad():
        twin.W_E.zero_()
    assert not torch.equal(twin(TOKENS), model(TOKENS))
    assert twin.double().cfg is not model.cfg


def test_a_model_loads_its_own_state_dict() -> None:
    model, other = make_model(n_layers=2, bias=True), make_model(n_layers=2, bias=True, seed=9)
    assert not torch.equal(model(TOKENS), other(TOKENS))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), other(TOKENS))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_cpu_s_numbers() -> None:
    model = make_model(n_layers=2, act_fn="tanh", bias=True)
    on_gpu = copy.deepcopy(model).cuda()
    tokens, labels = TOKENS.cuda(), LABELS.cuda()
    assert on_gpu.cfg.device == tokens.device
    hooks = [("blocks.0.hook_hidden", lambda x, hook: x * 2 if hook.step == 1 else None)]
    kwargs: dict[str, Any] = {"return_type": "loss", "incl_bwd": True}
    with model.hooks(fwd_hooks=hooks), on_gpu.hooks(fwd_hooks=hooks):
        loss, cache = model.run_with_cache(TOKENS, labels=LABELS, **kwargs)
        loss_gpu, cache_gpu = on_gpu.run_with_cache(tokens, labels=labels, **kwargs)
        _, cache_moved = on_gpu.run_with_cache(tokens, labels=labels, device="cpu", **kwargs)
    assert_close(loss_gpu.cpu(), loss, **exact)
    for name in cache:
        assert cache_gpu[name].device == tokens.device
        assert_close(cache_gpu[name].cpu(), cache[name], **exact)
        assert_close(cache_moved[name], cache[name], **exact)
    assert on_gpu.to_tokens("1 + 2").device == tokens.device
    with pytest.raises(TokenError, match="cpu"):
        on_gpu(TOKENS)
    with pytest.raises(LabelError, match="cpu"):
        on_gpu(tokens, return_type="loss", labels=LABELS)


# Tokens


@pytest.mark.parametrize(
    ("source", "ids"),
    [
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ([1, 2, 3], [[1, 2, 3]]),
        (((1, 2), (3, 4)), [[1, 2], [3, 4]]),
        ("1 + 2", [[1, 2]]),
        ("1+2", [[1, 2]]),
        ("1 2 3", [[1, 2, 3]]),
        ("1, 2", [[1, 2]]),
        ("5", [[5]]),
        ("1 + 2 =", [[1, 2, ANSWERS]]),
        (["1 + 2 =", "3 + 4 ="], [[1, 2, ANSWERS], [3, 4, ANSWERS]]),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor([[1, 2]], dtype=torch.uint8), [[1, 2]]),
        (torch.tensor([[1, 2]], dtype=torch.uint16), [[1, 2]]),
        (torch.tensor([[1, 2]], dtype=torch.int32), [[1, 2]]),
    ],
    ids=str,
)
def test_tokens_are_read_from_tensors_lists_and_strings(source: Any, ids: list[list[int]]) -> None:
    model = make_model()
    assert model.to_tokens(source).tolist() == ids
    assert torch.equal(model(source), model(torch.tensor(ids)))


def test_a_tensor_of_tokens_is_not_copied() -> None:
    assert make_model().to_tokens(TOKENS) is TOKENS


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        (TOKENS.double(), "float64: expected an integer dtype"),
        (TOKENS.to(torch.complex64), "complex64: expected an integer dtype"),
        (TOKENS.bool(), "bool: expected an integer dtype"),
        (torch.tensor([[0, VOCAB]]), f"token id {VOCAB}: expected 0 to {VOCAB - 1}"),
        (torch.tensor([[0, -1]]), "token id -1"),
        (torch.empty(0, 2, dtype=torch.long), "[0, 2]: expected at least one sequence of at least one token"),
        (torch.empty(2, 0, dtype=torch.long), "[2, 0]: expected at least one sequence of at least one token"),
        (TOKENS[0], "[4]: expected [batch, pos]"),
        (TOKENS[None], "[1, 3, 4]: expected [batch, pos]"),
        (TOKENS.to("meta"), "meta"),
        ([], "[]: expected"),
        (None, "None: expected"),
        (3, "3: expected"),
        ([[1.0, 2.0]], "float32: expected an integer dtype"),
        ([[True, False]], "bool: expected an integer dtype"),
        ([None], "[None]"),
        ([[1, "2"]], "[[1, '2']]"),
        ([[]], "expected at least one sequence of at least one token"),
        ([[1, 2], [3]], "one length"),
        ([[10**30]], "1000000"),
        ([[1, VOCAB]], f"token id {VOCAB}"),
        (["1 + 2", "3"], "one length"),
        ("", "cannot read ''"),
        ("one + two", "cannot read 'one + two'"),
        ("1 - 2", "cannot read '1 - 2'"),
        ("1 + ", "cannot read"),
        ("1.5 + 2", "cannot read"),
        (f"1 + {VOCAB}", f"token id {VOCAB}"),
    ],
    ids=str,
)
def test_what_is_no_batch_of_tokens_is_refused(source: Any, said: str) -> None:
    model = make_model()
    for call in (model.to_tokens, model, model.run_with_cache, model.run_with_hooks):
        with pytest.raises(TokenError, match=re.escape(said)):
            call(source)


def test_an_equals_sign_needs_a_token_of_its_own() -> None:
    with pytest.raises(TokenError, match="no token for it"):
        make_model(d_vocab_out=VOCAB)("1 + 2 =")


# Configurations


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("d_vocab", (0, -1, 1.0, True, "7", None)),
        ("d_vocab_out", (0,)),
        ("d_model", (0,)),
        ("d_hidden", (0,)),
        ("n_layers", (0, None, 1.5)),
        ("n_ctx", (0, 2.0)),
        ("cell", ("gruu", 1)),
        ("act_fn", ("gelu", None)),
        ("input", ("floats",)),
        ("bias", (1, None, "yes")),
        ("unembed_bias", (1, "no")),
        ("seed", (-1, 2**63, 0.0, None)),
        ("dtype", (torch.int64, "float32")),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, values: tuple[Any, ...]) -> None:
    for value in values:
        for make in (lambda fields: HookedRNNConfig(**fields), HookedRNNConfig.from_dict):
            with pytest.raises(ConfigError, match=re.escape(f"{field}={value!r}: expected")):
                make({**SIZES, field: value})


@pytest.mark.parametrize(
    ("key", "nearest"), [("d_hiden", "'d_hidden'"), ("n_layer", "'n_layers'"), ("dvocab", "d_vocab")]
)
def test_unknown_keys_are_refused_with_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*{nearest}"):
        HookedRNNConfig.from_dict({**SIZES, key: 1})


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="lacks d_model, d_hidden"):
        HookedRNNConfig.from_dict({"d_vocab": 3, "d_vocab_out": 3})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="JSON"):
        HookedRNNConfig.from_json(text)


@few_examples
@given(
    fields=st.fixed_dictionaries(
        {name: st.integers(1, 500) for name in SIZES},
        optional={
            "n_layers": st.integers(1, 9),
            "n_ctx": st.none() | st.integers(1, 99),
            "act_fn": st.sampled_from(["relu", "tanh"]),
            "bias": st.booleans(),
            "unembed_bias": st.none() | st.booleans(),
            "seed": st.integers(0, 2**63 - 1),
            "dtype": st.sampled_from([torch.float32, torch.float64]),
        },
    )
)
def test_json_and_back_is_the_same_configuration(fields: dict[str, Any]) -> None:
    cfg = HookedRNNConfig(**fields)
    assert HookedRNNConfig.from_json(cfg.to_json()) == cfg
    assert HookedRNNConfig.from_dict(cfg.to_dict()) == cfg
    assert {"device", "dtype"}.isdisjoint(json.loads(cfg.to_json()))
    assert (cfg.n_heads, cfg.n_gates) == (1, 1)
    assert cfg.unembed_bias is (cfg.bias if fields.get("unembed_bias") is None else fields["unembed_bias"])


def test_a_configuration_is_frozen() -> None:
    cfg = HookedRNNConfig(**SIZES)
    with pytest.raises(AttributeError):
        cfg.d_hidden = 9
    assert cfg.d_hidden == 5


def test_every_error_is_one_of_ours() -> None:
    for error in (ConfigError, LabelError, ReturnTypeError, StateError, TokenError, UnknownHookPointError):
        assert issubclass(error, HookedRNNError)
