"""States and signals: a sequence in two halves is the sequence; what does not fit is refused."""

from typing import Any

import pytest
import torch
from causality import BATCH, STEPS, TOKENS, by_hand, every_cell, exact, make_model, random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN, HookedRNNConfig
from hooked_rnn.errors import ConfigError, SignalError, StateError, TokenError


def parts_of(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@settings(max_examples=30, deadline=None)
@given(
    cell=st.sampled_from(["rnn", "gru", "lstm"]),
    n_layers=st.integers(1, 3),
    cut=st.integers(1, STEPS - 1),
    hooked=st.booleans(),
)
def test_two_halves_are_the_whole(cell: str, n_layers: int, cut: int, hooked: bool) -> None:
    model = make_model(n_layers=n_layers, cell=cell)
    if hooked:
        model.add_perma_hook(
            lambda name: "hook_hidden" in name or "hook_recurrent" in name, lambda x, hook: 0.9 * x + 0.1
        )
    whole, last = model(TOKENS, return_state=True)
    first, between = model(TOKENS[:, :cut], return_state=True)
    second, end = model(TOKENS[:, cut:], initial_state=between, return_state=True)
    assert_close(torch.cat([first, second], dim=1), whole, **exact)
    for got, expected in zip(parts_of(end), parts_of(last), strict=True):
        assert_close(got, expected, **exact)
    assert not torch.allclose(model(TOKENS[:, cut:]), second)  # without the state of the first half


@every_cell
def test_a_state_is_that_of_the_unrolled_network(cell: str) -> None:
    model = make_model(cell=cell)
    start = tuple(random(2, BATCH, 4, seed=i) for i in range(2))
    start = start if cell == "lstm" else start[0]
    logits, state = model(TOKENS, initial_state=start, return_state=True)
    expected = by_hand(model, initial_state=start)
    assert_close(logits, expected.logits, **exact)
    assert isinstance(state, tuple) == (cell == "lstm")
    for got, wanted in zip(parts_of(state), parts_of(expected.state), strict=True):
        assert_close(got, wanted, **exact)


def test_a_state_carries_gradients() -> None:
    model = make_model(cell="lstm")
    start = tuple(random(2, BATCH, 4, seed=i).requires_grad_() for i in range(2))
    model(TOKENS, initial_state=start)[:, -1].sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in start)


ZEROS = torch.zeros(2, BATCH, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("cell", "state", "said"),
    [
        ("rnn", ZEROS[:1], r"initial_state has shape \[1, 3, 4\]: expected \[2, 3, 4\], \[layer, batch, d_hidden\]"),
        ("gru", ZEROS[:, :1], r"initial_state has shape \[2, 1, 4\]: expected"),
        ("gru", (ZEROS, ZEROS), "initial_state is 2 tensors: expected a tensor, as the cell is 'gru'"),
        ("lstm", ZEROS, r"initial_state is a tensor: expected a tuple of 2, \(hidden, cell\), as the cell is 'lstm'"),
        ("lstm", (ZEROS,), r"initial_state is 1 tensors: expected a tuple of 2"),
        ("lstm", (ZEROS, ZEROS[..., :3]), r"the cell state of initial_state has shape \[2, 3, 3\]: expected"),
        (
            "lstm",
            (ZEROS.float(), ZEROS),
            "the hidden state of initial_state is torch.float32 on cpu: expected torch.float64",
        ),
        ("lstm", (ZEROS, ZEROS.to("meta")), "the cell state of initial_state is torch.float64 on meta: expected"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(cell: str, state: Any, said: str) -> None:
    model = make_model(cell=cell)
    with pytest.raises(StateError, match=said):
        model(TOKENS, initial_state=state)


def driven(**fields: Any) -> HookedRNN:
    cfg = HookedRNNConfig(**{"input": "continuous", "d_in": 3, "d_vocab_out": 2, "d_model": 4, "d_hidden": 5, **fields})
    return HookedRNN(cfg).double()


@every_cell
@pytest.mark.parametrize("embed_bias", [False, True])
def test_a_network_driven_by_signals(cell: str, embed_bias: bool, tmp_path: Any) -> None:
    model = driven(cell=cell, embed_bias=embed_bias, n_layers=2)
    if embed_bias:
        torch.nn.init.normal_(model.embed.b_E, generator=torch.Generator().manual_seed(0))
    x = random(BATCH, STEPS, 3)
    assert_close(model(x), by_hand(model, tokens=x).logits, **exact)

    def double(x: Tensor, hook: HookPoint) -> Tensor:
        return 2 * x

    edited = model.run_with_hooks(x, fwd_hooks=[("hook_embed", double)])
    assert not torch.allclose(edited, model(x))
    if not embed_bias:
        assert_close(edited, model(2 * x))
    logits, cache = model.run_with_cache(x)
    assert cache["hidden", 1].shape == (BATCH, STEPS, 5)
    loss = model(x, return_type="loss", labels=torch.zeros(BATCH, dtype=torch.int64))
    assert_close(loss, torch.nn.functional.cross_entropy(logits[:, -1], torch.zeros(BATCH, dtype=torch.int64)))
    model.save_pretrained(tmp_path)
    assert_close(HookedRNN.from_pretrained(tmp_path, dtype=torch.float64)(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("signals", "said"),
    [
        (random(2, 3), r"signals have shape \[2, 3\]: expected \[batch, pos, d_in\] with d_in 3"),
        (random(2, 3, 4), r"signals have shape \[2, 3, 4\]: expected"),
        (random(2, 0, 3), "expected at least one sequence of at least one step"),
        (random(2, 2, 3).float(), "signals are torch.float32 on cpu: expected torch.float64 on cpu"),
        (torch.zeros(2, 2, 3, dtype=torch.int64), "signals are torch.int64 on cpu"),
        ([[1.0]], r"signals are list: expected a float tensor"),
    ],
)
def test_signals_that_do_not_fit_are_refused(signals: Any, said: str) -> None:
    with pytest.raises(SignalError, match=said):
        driven()(signals)


def test_tokens_and_signals_are_not_taken_for_each_other() -> None:
    with pytest.raises(TokenError, match="this model has no tokens: expected signals"):
        driven().to_tokens("1 + 2")
    with pytest.raises(TokenError, match=r"torch\.float64: expected an integer dtype"):
        make_model()(random(2, 3))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"d_in": None}, "d_in=None: expected a whole number"),
        ({"d_vocab": 3}, "d_vocab=3 with input='continuous': expected d_in alone"),
        ({"input": "tokens", "d_vocab": 3}, "d_in=3 with input='tokens': expected d_vocab alone"),
        ({"input": "tokens", "d_in": None}, "d_vocab=None: expected a whole number"),
        ({"input": "tokens", "d_in": None, "d_vocab": 3, "embed_bias": True}, "embed_bias=True with input='tokens'"),
        ({"embed_bias": 1}, "embed_bias=1: expected True or False"),
        ({"input": "audio"}, "input='audio': expected 'tokens' or 'continuous'"),
    ],
)
def test_a_configuration_of_two_inputs_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        driven(**fields)
    assert said in str(caught.value)
