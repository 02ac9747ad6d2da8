"""Networks that are driven by signals: the same hooks, the same causality, and clear errors."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from causality import (
    BATCH,
    LABELS,
    STEPS,
    TOKENS,
    assert_same_parameter_gradients,
    doubled_in_place,
    every_cell,
    exact,
    gradient_of,
    mean_loss,
    name_of,
    nonlinear,
    random,
)
from reference import Edits, Unrolled, points, unroll
from torch import Tensor
from torch.testing import assert_close

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, TrainConfig, train
from hooked_rnn.errors import ConfigError, HookedRNNError, SignalError, TokenError

D_IN = 2
SIZES: dict[str, Any] = {"input": "continuous", "d_in": D_IN, "d_vocab_out": 6, "d_model": 3, "d_hidden": 4}
SIGNALS = random(BATCH, STEPS, D_IN)


def make_model(cell: str = "rnn", **fields: Any) -> HookedRNN:
    """Two layers in float64, with biases that are not zero."""
    fields = {"bias": True, "embed_bias": True, **fields}
    model = HookedRNN(HookedRNNConfig(**SIZES, n_layers=2, act_fn="tanh", cell=cell, dtype=torch.float64, **fields))
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            if ".b_" in name:
                parameter.copy_(random(*parameter.shape, seed=seed) / 3)
    return model


def by_hand(model: HookedRNN, edits: Edits | None = None, signals: Tensor = SIGNALS) -> Unrolled:
    return unroll(dict(model.named_parameters()), signals, n_layers=2, cell=model.cfg.cell, edits=edits)


@every_cell
@pytest.mark.parametrize(("bias", "embed_bias"), [(True, True), (True, False), (False, True), (False, False)])
def test_every_activation_and_gradient_is_the_unrolled_network_s(cell: str, bias: bool, embed_bias: bool) -> None:
    model = make_model(cell, bias=bias, embed_bias=embed_bias)
    assert ("embed.b_E" in model.state_dict()) is embed_bias
    assert model.W_E.shape == (D_IN, 3)
    expected = by_hand(model)
    loss, cache = model.run_with_cache(SIGNALS, return_type="loss", labels=LABELS, incl_bwd=True)
    wanted = mean_loss(expected.logits)
    assert_close(loss, wanted, **exact)
    for point in points(2, cell):
        assert_close(cache[name_of(point)], expected.stacked(*point), **exact)
        assert_close(gradient_of(cache, point), expected.gradient(wanted, *point), **exact)
    again = model(SIGNALS, return_type="loss", labels=LABELS)
    assert_same_parameter_gradients(model, again, expected, wanted)


@every_cell
@pytest.mark.parametrize("grad", [True, False])
def test_an_edit_is_the_edit_of_the_unrolled_network(cell: str, grad: bool) -> None:
    model = make_model(cell)
    with torch.set_grad_enabled(grad):
        plain = model(SIGNALS)
        for point in points(2, cell):
            edits = {(*point, t): nonlinear for t in range(STEPS)}
            logits = model.run_with_hooks(SIGNALS, fwd_hooks=[(name_of(point), lambda x, hook: nonlinear(x))])
            assert_close(logits, by_hand(model, edits).logits, **exact)
            assert not torch.allclose(logits, plain)


def test_a_gradient_reaches_the_signals() -> None:
    for cell in ("rnn", "gru", "lstm"):
        model, signals, twin = make_model(cell), SIGNALS.clone().requires_grad_(), SIGNALS.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(signals).square().sum(), signals)
        (wanted,) = torch.autograd.grad(by_hand(model, signals=twin).logits.square().sum(), twin)
        assert_close(grad, wanted, **exact)


def test_the_signals_are_left_as_they_were() -> None:
    model, before = make_model(), SIGNALS.clone()
    model.add_hook("hook_embed", doubled_in_place)
    model(SIGNALS)
    model.run_with_cache(SIGNALS)
    assert torch.equal(SIGNALS, before)


def test_a_configuration_goes_to_json_and_back(tmp_path: Path) -> None:
    model = make_model("gru")
    assert HookedRNNConfig.from_json(model.cfg.to_json()) == model.cfg
    model.save_pretrained(tmp_path)
    assert torch.equal(HookedRNN.from_pretrained(tmp_path, dtype=torch.float64)(SIGNALS), model(SIGNALS))


BAD: list[tuple[Any, str]] = [
    (TOKENS, "signals have shape [3, 4]: expected [batch, pos, d_in] with d_in 2"),
    (random(BATCH, STEPS, 3), "signals have shape [3, 4, 3]: expected [batch, pos, d_in] with d_in 2"),
    (random(STEPS, D_IN), "signals have shape [4, 2]: expected [batch, pos, d_in]"),
    (random(0, STEPS, D_IN), "signals have shape [0, 4, 2]: expected at least one sequence of at least one step"),
    (random(BATCH, 0, D_IN), "signals have shape [3, 0, 2]: expected at least one sequence"),
    (SIGNALS.float(), "signals are torch.float32 on cpu: expected torch.float64 on cpu, as the model"),
    (SIGNALS.long(), "signals are torch.int64 on cpu: expected torch.float64"),
    (SIGNALS.to("meta"), "signals are torch.float64 on meta: expected torch.float64 on cpu"),
    (SIGNALS.tolist(), "signals are list: expected a float tensor [batch, pos, 2]"),
    ("1 + 2", "signals are str: expected a float tensor"),
    (None, "signals are NoneType: expected a float tensor"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("signals", "said"), BAD, ids=[said for _, said in BAD])
def test_what_is_no_batch_of_signals_is_refused(signals: Any, said: str) -> None:
    model = make_model()
    for call in (model, model.run_with_cache, model.run_with_hooks, model.to_input):
        with pytest.raises(SignalError, match=re.escape(said)) as caught:
            call(signals)
        assert isinstance(caught.value, HookedRNNError)


@pytest.mark.usefixtures("unchecked")
def test_tokens_and_signals_are_not_taken_for_each_other() -> None:
    with pytest.raises(TokenError, match=re.escape("this model has no tokens: expected signals [batch, pos, 2]")):
        make_model().to_tokens([[1, 2]])
    tokens = HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=6, d_model=3, d_hidden=4, dtype=torch.float64))
    with pytest.raises(TokenError):
        tokens(SIGNALS)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"d_in": None}, "d_in=None: expected a whole number of at least 1"),
        ({"d_in": 0}, "d_in=0: expected a whole number of at least 1"),
        ({"d_vocab": 5}, "d_vocab=5 with input='continuous': expected d_in alone"),
        ({"input": "tokens"}, "d_vocab=None: expected a whole number of at least 1"),
        ({"input": "tokens", "d_vocab": 5}, "d_in=2 with input='tokens': expected d_vocab alone"),
        ({"input": "tokens", "d_vocab": 5, "d_in": None, "embed_bias": True}, "embed_bias=True with input='tokens'"),
        ({"input": "signals"}, "input='signals': expected 'tokens' or 'continuous'"),
        ({"embed_bias": 1}, "embed_bias=1: expected True or False"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_configuration_that_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        HookedRNNConfig(**{**SIZES, **fields})


def test_a_task_of_tokens_does_not_train_a_network_of_signals() -> None:
    with pytest.raises(HookedRNNError):
        train(make_model(), ModularAddition(5), TrainConfig.recipe("adamw", steps=1), progress=False)
