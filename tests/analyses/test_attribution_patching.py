"""Attribution patching against a network unrolled by hand, finite differences, and patches that were really made."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import patching
from transformer_lens.hook_points import HookPoint

from analyses import attribution_patching
from analyses.attribution_patching import attribution_patch, exact_patch
from analyses.errors import MetricError, SourceError
from hooked_rnn import HookedRNN, HookedRNNConfig
from hooked_rnn.errors import UnknownHookPointError

BATCH, STEPS, LAYERS, VOCAB, ANSWERS, HIDDEN = 3, 4, 2, 7, 6, 5
KINDS = ("input", "recurrent", "preact", "hidden", "out")
exact = {"rtol": 0.0, "atol": 1e-12}

every_kind = pytest.mark.parametrize("kind", KINDS)
architectures = pytest.mark.parametrize(("act_fn", "bias"), list(itertools.product(("tanh", "relu"), (True, False))))


def make_model(
    n_layers: int = LAYERS, act_fn: str = "tanh", bias: bool = True, seed: int = 0, cell: str = "rnn"
) -> HookedRNN:
    cfg = HookedRNNConfig(
        d_vocab=VOCAB,
        d_vocab_out=ANSWERS,
        d_model=4,
        d_hidden=HIDDEN,
        n_layers=n_layers,
        cell=cell,
        act_fn=act_fn,
        bias=bias,
        seed=seed,
        dtype=torch.float64,
    )
    model = HookedRNN(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".b_" in name:
                parameter.copy_(normal(*parameter.shape, seed=seed + 1) / 3)
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


CLEAN, CORRUPTED = integers(BATCH, STEPS), integers(BATCH, STEPS, seed=5)


def curved(logits: Tensor) -> Tensor:
    """A metric of all positions, linear in nothing."""
    return logits.log_softmax(-1)[..., 1].mean() + logits.tanh().pow(2).mean()


def logit_difference(logits: Tensor) -> Tensor:
    """A linear metric of the last position."""
    return (logits[:, -1, 0] - logits[:, -1, 1]).mean()


Delta = dict[tuple[str, int], Tensor]


def unrolled(model: HookedRNN, tokens: Tensor, delta: Delta | None = None) -> tuple[Tensor, Delta]:
    """Logits and activations by hand, with something added to activations [batch, pos, d]."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    act = torch.tanh if model.cfg.act_fn == "tanh" else torch.relu
    values: dict[tuple[str, int], list[Tensor]] = {}

    def affine(x: Tensor, weight: str, bias: str) -> Tensor:
        return x @ weights[weight] + weights.get(bias, torch.zeros(()))

    def visit(kind: str, layer: int, t: int, x: Tensor) -> Tensor:
        x = x if delta is None else x + delta[kind, layer][:, t]
        values.setdefault((kind, layer), []).append(x)
        return x

    state = [torch.zeros(len(tokens), model.cfg.d_hidden, dtype=torch.float64)] * model.cfg.n_layers
    logits = []
    for t in range(tokens.shape[1]):
        x = weights["embed.W_E"][tokens[:, t]]
        for layer in range(model.cfg.n_layers):
            block = f"blocks.{layer}"
            below = visit("input", layer, t, affine(x, f"{block}.W_ih", f"{block}.b_ih"))
            before = visit("recurrent", layer, t, affine(state[layer], f"{block}.W_hh", f"{block}.b_hh"))
            state[layer] = visit("hidden", layer, t, act(visit("preact", layer, t, below + before)))
            x = visit("out", layer, t, state[layer])
        logits.append(affine(x, "unembed.W_U", "unembed.b_U"))
    return torch.stack(logits, dim=1), {key: torch.stack(steps, dim=1) for key, steps in values.items()}


def by_hand(
    model: HookedRNN, kind: str, metric: Callable, clean: Tensor = CLEAN, corrupted: Tensor = CORRUPTED
) -> Tensor:
    """(clean - corrupted) times the gradient, by autograd through the unrolled network, [layer, pos, d]."""
    _, at_clean = unrolled(model, clean)
    _, at_corrupted = unrolled(model, corrupted)
    delta = {key: torch.zeros_like(value, requires_grad=True) for key, value in at_corrupted.items()}
    keys = [(kind, layer) for layer in range(model.cfg.n_layers)]
    loss = metric(unrolled(model, corrupted, delta)[0])
    grads = torch.autograd.grad(loss, [delta[key] for key in keys], materialize_grads=True)
    return torch.stack([((at_clean[k] - at_corrupted[k]) * g).sum(0) for k, g in zip(keys, grads, strict=True)])


def effect(
    model: HookedRNN, kind: str, layer: int, t: int, metric: Callable, size: float = 1.0, neuron: Any = slice(None)
) -> float:
    """What a patch adds that goes so far of the way from the corrupted to the clean value."""
    name = f"blocks.{layer}.hook_{kind}"
    _, cache = model.run_with_cache(CLEAN, names_filter=name)

    def patch(x: Tensor, hook: HookPoint) -> Tensor:
        edited = x.clone()
        edited[:, t, neuron] += size * (cache[name][:, t, neuron] - x[:, t, neuron])
        return edited

    with torch.no_grad():
        patched = model.run_with_hooks(CORRUPTED, fwd_hooks=[(name, patch)])
        return float(metric(patched) - metric(model(CORRUPTED)))


def effects(model: HookedRNN, kind: str, metric: Callable, size: float = 1.0) -> Tensor:
    cells = [[effect(model, kind, layer, t, metric, size) for t in range(STEPS)] for layer in range(LAYERS)]
    return torch.tensor(cells, dtype=torch.float64)


# The estimate


@every_kind
@architectures
def test_it_is_the_difference_times_the_gradient_of_the_unrolled_network(kind: str, act_fn: str, bias: bool) -> None:
    model = make_model(act_fn=act_fn, bias=bias)
    for metric in (curved, logit_difference):
        got = attribution_patch(model, CLEAN, CORRUPTED, metric, activation=f"hook_{kind}")
        expected = by_hand(model, kind, metric)
        assert_close(got.per_neuron, expected, **exact)
        assert_close(got.summed(), expected.sum(-1), **exact)
        assert_close(got.clean, metric(model(CLEAN)).detach(), **exact)
        assert_close(got.corrupted, metric(model(CORRUPTED)).detach(), **exact)
        assert got.per_neuron.abs().max() > 1e-3
        for wrong in (
            -expected,
            expected.roll(1, dims=1),
            expected.flip(0),
            by_hand(model, kind, metric, CORRUPTED, CLEAN),
        ):
            assert not torch.allclose(got.per_neuron, wrong, atol=1e-6)


@every_kind
def test_it_agrees_with_finite_differences_of_each_neuron(kind: str) -> None:
    model, h = make_model(), 1e-5
    got = attribution_patch(model, CLEAN, CORRUPTED, curved, activation=kind).per_neuron
    measured = torch.zeros_like(got)
    for layer, t, neuron in itertools.product(range(LAYERS), range(STEPS), range(HIDDEN)):
        up, down = (effect(model, kind, layer, t, curved, size, neuron) for size in (h, -h))
        measured[layer, t, neuron] = (up - down) / (2 * h)
    assert_close(got, measured, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(got, -measured, rtol=1e-2, atol=1e-6)
    assert not torch.allclose(got, measured.roll(1, dims=1), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("gru", "hidden"),
        ("gru", "reset"),
        ("gru", "carry"),
        ("lstm", "hidden"),
        ("lstm", "cell"),
        ("lstm", "forget_gate"),
    ],
)
def test_in_a_gated_cell_too(cell: str, kind: str) -> None:
    model, size = make_model(cell=cell), 1e-5
    got = attribution_patch(model, CLEAN, CORRUPTED, curved, activation=kind)
    _, clean = model.run_with_cache(CLEAN)
    _, corrupted = model.run_with_cache(CORRUPTED)
    expected = torch.zeros_like(got.per_neuron)
    for layer, pos, neuron in itertools.product(*map(range, expected.shape)):
        direction = (clean[kind, layer] - corrupted[kind, layer])[:, pos, neuron]

        def moved(by: float, pos: int = pos, neuron: int = neuron, direction: Tensor = direction) -> Callable:
            def hook(x: Tensor, hook: HookPoint) -> None:
                if hook.step == pos:
                    x[:, pos, neuron] += by * direction

            return hook

        name = f"blocks.{layer}.hook_{kind}"
        up, down = (curved(model.run_with_hooks(CORRUPTED, fwd_hooks=[(name, moved(by))])) for by in (size, -size))
        expected[layer, pos, neuron] = (up - down).detach() / (2 * size)
    assert_close(got.per_neuron, expected, rtol=1e-5, atol=1e-10)
    assert not torch.allclose(got.per_neuron, expected.roll(1, dims=1), rtol=1e-2, atol=1e-8)


def test_it_is_exact_to_first_order() -> None:
    model = make_model()
    estimate = attribution_patch(model, CLEAN, CORRUPTED, curved).summed()

    def errors(slope: Tensor) -> list[Tensor]:
        return [(effects(model, "hidden", curved, size) - size * slope).norm() for size in (2e-2, 1e-2, 5e-3)]

    right, wrong = errors(estimate), errors(1.1 * estimate)
    for coarse, fine in itertools.pairwise(right):
        assert float(coarse / fine) == pytest.approx(4, rel=0.05)
    for coarse, fine in itertools.pairwise(wrong):
        assert float(coarse / fine) == pytest.approx(2, rel=0.1)


def test_it_is_exact_where_the_metric_is_linear_along_the_patch() -> None:
    model = make_model()
    estimate = attribution_patch(model, CLEAN, CORRUPTED, logit_difference, activation="hook_out")
    for by_neuron, got in ((False, estimate.summed()), (True, estimate.per_neuron)):
        measured = exact_patch(model, CLEAN, CORRUPTED, logit_difference, activation="hook_out", by_neuron=by_neuron)
        assert_close(got[-1], measured[-1], **exact)
        assert not torch.allclose(got[0], measured[0], atol=1e-4)  # a nonlinear layer lies between
    assert_close(estimate.summed()[-1].sum(), estimate.clean - estimate.corrupted, **exact)
    curve = attribution_patch(model, CLEAN, CORRUPTED, curved, activation="hook_out").summed()
    assert not torch.allclose(
        curve[-1], exact_patch(model, CLEAN, CORRUPTED, curved, activation="hook_out")[-1], atol=1e-4
    )


def test_what_a_metric_of_an_early_position_cannot_see_has_no_effect() -> None:
    model = make_model()
    got = attribution_patch(model, CLEAN, CORRUPTED, lambda logits: logits[:, 1, 0].mean()).per_neuron
    assert not got[:, 2:].any()
    assert got[:, :2].any(dim=-1).all()
    last = attribution_patch(model, CLEAN, CORRUPTED, logit_difference, logits_to_keep=1).per_neuron
    assert_close(last, attribution_patch(model, CLEAN, CORRUPTED, logit_difference).per_neuron, **exact)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_networks_of_any_depth_and_length(data: st.DataObject) -> None:
    batch, n_steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    model = make_model(
        data.draw(st.integers(1, 4)), data.draw(st.sampled_from(["tanh", "relu"])), data.draw(st.booleans())
    )
    kind, metric = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from([curved, logit_difference]))
    clean, corrupted = integers(batch, n_steps, seed=1), integers(batch, n_steps, seed=2)
    got = attribution_patch(model, clean, corrupted, metric, activation=kind)
    assert_close(got.per_neuron, by_hand(model, kind, metric, clean, corrupted), **exact)
    alike = attribution_patch(model, clean, clean, metric, activation=kind)
    assert not alike.per_neuron.any()
    assert alike.clean == alike.corrupted


# The measurement


@every_kind
def test_measured_effects_are_those_of_transformer_lens(kind: str) -> None:
    model = make_model()
    _, cache = model.run_with_cache(CLEAN)
    theirs = patching.generic_activation_patch(
        model, CORRUPTED, cache, curved, patching.layer_pos_patch_setter, kind, index_axis_names=("layer", "pos")
    ).detach()
    ours = exact_patch(model, CLEAN, CORRUPTED, curved, activation=kind)
    baseline = curved(model(CORRUPTED)).detach()
    assert_close((ours + baseline).float(), theirs, rtol=1e-5, atol=1e-6)  # which keeps float32
    assert_close(ours, effects(model, kind, curved), **exact)
    assert ours.abs().max() > 1e-2


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_neurons_are_patched_one_by_one_however_many_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution_patching, "ROWS", rows)
    model = make_model()
    got = exact_patch(model, CLEAN, CORRUPTED, curved, by_neuron=True)
    assert got.shape == (LAYERS, STEPS, HIDDEN)
    for layer, t, neuron in itertools.product(range(LAYERS), range(STEPS), range(HIDDEN)):
        alone = effect(model, "hidden", layer, t, curved, neuron=neuron)
        assert float(got[layer, t, neuron]) == pytest.approx(alone, abs=1e-12)
    together = effects(model, "hidden", curved)
    assert_close(exact_patch(model, CLEAN, CORRUPTED, curved), together, **exact)
    assert not torch.allclose(got.sum(-1), together, atol=1e-4)


def test_both_start_from_the_state_that_the_model_is_given() -> None:
    model, state = make_model(), normal(LAYERS, BATCH, HIDDEN, seed=4)
    for function in (
        lambda **k: attribution_patch(model, CLEAN, CORRUPTED, logit_difference, activation="out", **k).summed(),
        lambda **k: exact_patch(model, CLEAN, CORRUPTED, logit_difference, activation="out", **k),
    ):
        assert not torch.allclose(function(initial_state=state), function())
    estimate = attribution_patch(model, CLEAN, CORRUPTED, logit_difference, activation="out", initial_state=state)
    measured = exact_patch(model, CLEAN, CORRUPTED, logit_difference, activation="out", initial_state=state)
    assert_close(estimate.summed()[-1], measured[-1], **exact)


# The model is left as it was, and its own hooks act


def state_of(model: HookedRNN) -> tuple:
    return model.training, model.list_hooks(), [p.grad for p in model.parameters()], model.context_level


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_frozen_or_not_in_any_mode_it_is_the_same(training: bool, frozen: bool, mode: Callable) -> None:
    model = make_model().train(training).requires_grad_(not frozen)
    expected = by_hand(model, "hidden", curved)
    marks = [torch.full_like(parameter, 7.0) for parameter in model.parameters()]
    for parameter, mark in zip(model.parameters(), marks, strict=True):
        parameter.grad = mark
    with mode():
        got = attribution_patch(model, CLEAN.clone(), CORRUPTED.clone(), curved)
        exact_patch(model, CLEAN, CORRUPTED, curved)
    assert_close(got.per_neuron, expected, **exact)
    assert not got.per_neuron.requires_grad
    assert not got.corrupted.requires_grad
    for parameter, mark in zip(model.parameters(), marks, strict=True):
        assert parameter.grad is mark
        assert (mark == 7.0).all()
    assert model.training is training


@every_kind
@pytest.mark.parametrize("frozen", [True, False])
def test_hooks_that_are_on_the_model_act_and_stay(kind: str, frozen: bool) -> None:
    model = make_model().requires_grad_(not frozen)
    constant = normal(BATCH, STEPS, HIDDEN, seed=8)
    model.add_hook("blocks.0.hook_hidden", lambda x, hook: constant.clone() if hook.step == 1 else 1.2 * x)
    model.add_hook("blocks.1.hook_recurrent", lambda x, hook: 0.5 * x)
    before = state_of(model)
    got = attribution_patch(model, CLEAN, CORRUPTED, logit_difference, activation=kind)
    assert state_of(model) == before
    h = 1e-5
    slopes = (effects(model, kind, logit_difference, h) - effects(model, kind, logit_difference, -h)) / (2 * h)
    assert_close(got.summed(), slopes, rtol=1e-6, atol=1e-9)
    assert_close(exact_patch(model, CLEAN, CORRUPTED, curved, activation=kind), effects(model, kind, curved), **exact)
    assert state_of(model) == before
    plain = attribution_patch(make_model(), CLEAN, CORRUPTED, logit_difference, activation=kind)
    assert not torch.allclose(plain.summed(), slopes, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_what_a_hook_cuts_off_has_no_effect_and_what_lies_above_has_its_own(frozen: bool) -> None:
    model = make_model().requires_grad_(not frozen)
    model.add_hook("blocks.0.hook_out", lambda x, hook: torch.ones_like(x))
    got = attribution_patch(model, CLEAN, CORRUPTED, curved, activation="preact").summed()
    assert not got.any()  # nothing of layer 0 is seen above, where both runs are then the same
    model.reset_hooks()
    model.add_hook("blocks.1.hook_preact", lambda x, hook: x.detach())
    h = 1e-5
    for kind in ("preact", "hidden"):
        got = attribution_patch(model, CLEAN, CORRUPTED, logit_difference, activation=kind).summed()
        assert not got[0].any()
        up, down = (effects(model, kind, logit_difference, size)[1, -1] for size in (h, -h))
        assert_close(got[1, -1], (up - down) / (2 * h), rtol=1e-6, atol=1e-9)
        assert got[1, -1].abs() > 1e-3


def test_a_hook_that_counts_on_its_batch_is_given_it() -> None:
    model, shapes = make_model(), []
    model.add_hook("blocks.1.hook_out", lambda x, hook: shapes.append(tuple(x.shape)))
    attribution_patch(model, CLEAN, CORRUPTED, curved)
    exact_patch(model, CLEAN, CORRUPTED, curved, by_neuron=True)
    assert set(shapes) == {(BATCH, STEPS, HIDDEN)}
    assert len(shapes) == 2 + 2 + LAYERS * STEPS * HIDDEN


def test_nothing_is_left_behind_by_a_hook_or_a_metric_that_raises() -> None:
    model = make_model()
    model.add_hook("blocks.0.hook_hidden", lambda x, hook: None)
    before = state_of(model)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    for function in (attribution_patch, exact_patch):
        with pytest.raises(RuntimeError, match="no"):
            function(model, CLEAN, CORRUPTED, fail)
        with pytest.raises(RuntimeError, match="no"), model.hooks(fwd_hooks=[("hook_logits", fail)]):
            function(model, CLEAN, CORRUPTED, curved)
        assert state_of(model) == before
    with pytest.raises(RuntimeError, match="no"), model.hooks(bwd_hooks=[("hook_logits", fail)]):
        attribution_patch(model, CLEAN, CORRUPTED, curved)
    assert state_of(model) == before


# Refusals


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits: float(logits.mean()), "the metric gave float: expected a floating point scalar tensor"),
        (lambda logits: logits.mean((1, 2)), r"float64 of shape \[3\]"),
        (lambda logits: logits.argmax(), "int64 of shape"),
        (lambda logits: None, "NoneType"),
    ],
)
def test_a_metric_that_gives_no_scalar_is_refused(metric: Callable, message: str) -> None:
    for function in (attribution_patch, exact_patch):
        with pytest.raises(MetricError, match=message):
            function(make_model(), CLEAN, CORRUPTED, metric)


def test_a_metric_without_a_gradient_can_be_measured_but_not_estimated() -> None:
    model, weight = make_model(), torch.ones((), dtype=torch.float64, requires_grad=True)
    for metric in (
        lambda logits: (logits.argmax(-1) == 2).double().mean(),
        lambda logits: logits.detach().mean() * weight,
        lambda logits: torch.zeros(()),
    ):
        with pytest.raises(MetricError, match="no gradient"):
            attribution_patch(model, CLEAN, CORRUPTED, metric)
        assert exact_patch(model, CLEAN, CORRUPTED, metric).shape == (LAYERS, STEPS)


def test_an_activation_that_not_every_layer_has_is_refused() -> None:
    for function in (attribution_patch, exact_patch):
        for wrong in ("hook_hiden", "hiden"):
            with pytest.raises(UnknownHookPointError, match="nearest: 'hook_hidden'"):
                function(make_model(), CLEAN, CORRUPTED, curved, activation=wrong)
        with pytest.raises(UnknownHookPointError, match="'hook_logits'"):
            function(make_model(), CLEAN, CORRUPTED, curved, activation="hook_logits")


def test_tokens_of_two_shapes_are_refused() -> None:
    for function in (attribution_patch, exact_patch):
        with pytest.raises(SourceError, match=r"\[3, 3\]: expected \[3, 4\]"):
            function(make_model(), CLEAN[:, 1:], CORRUPTED, curved)
