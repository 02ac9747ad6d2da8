"""Cells: the gated ones against torch's, every point against the unrolled network, and one of a user's own."""

import pickle
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from causality import (
    BATCH,
    STEPS,
    TOKENS,
    by_hand,
    edit_at,
    exact,
    gated_cells,
    integers,
    make_model,
    name_of,
    nonlinear,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LOOP_KINDS, points
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, RecurrentBlock, TrainConfig, train
from hooked_rnn.config import CELLS
from hooked_rnn.errors import ConfigError
from hooked_rnn.points import Points
from hooked_rnn.recurrent import State
from hooked_rnn.training.batches import Sequences


@settings(max_examples=40, deadline=None)
@given(
    cell=st.sampled_from(["gru", "lstm"]),
    n_layers=st.integers(1, 3),
    bias=st.booleans(),
    batch=st.integers(1, 4),
    n_steps=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_torchs(
    cell: str, n_layers: int, bias: bool, batch: int, n_steps: int, seed: int
) -> None:
    model = make_model(n_layers=n_layers, bias=bias, seed=seed, cell=cell)
    embedding, rnn, readout = model.to_torch()
    tokens = integers(batch, n_steps, seed=seed)
    logits, state = model(tokens, return_state=True)
    out, final = rnn(embedding(tokens))
    expected = readout(out)
    assert_close(logits, expected, **exact)
    for ours, theirs in zip(as_tuple(state), as_tuple(final), strict=True):
        assert_close(ours, theirs, **exact)
    weighting = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (logits * weighting).sum().backward()
    (expected * weighting).sum().backward()
    assert_close(model.blocks[0].W_ih.grad, rnn.weight_ih_l0.grad.T, **exact)
    assert_close(model.blocks[n_layers - 1].W_hh.grad, getattr(rnn, f"weight_hh_l{n_layers - 1}").grad.T, **exact)
    assert_close(model.W_E.grad, embedding.weight.grad, **exact)
    assert_close(model.W_U.grad, readout.weight.grad.T, **exact)
    if bias:
        assert_close(model.blocks[0].b_ih.grad, rnn.bias_ih_l0.grad, **exact)
        assert_close(model.blocks[0].b_hh.grad, rnn.bias_hh_l0.grad, **exact)


def as_tuple(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@gated_cells
def test_every_point_of_a_gated_cell_is_edited_exactly(cell: str) -> None:
    model = make_model(cell=cell)
    _, cache = model.run_with_cache(TOKENS)
    clean = by_hand(model)
    for kind, layer in points(2, cell):
        assert_close(cache[name_of((kind, layer))], clean.stacked(kind, layer).detach(), **exact)
        for step in range(STEPS):

            def edit(x: Tensor, hook: HookPoint, step: int = step) -> None:
                if hook.step in (None, step):
                    x[:, step] = nonlinear(x[:, step].clone())

            got = model.run_with_hooks(TOKENS, fwd_hooks=[(name_of((kind, layer)), edit)])
            expected = by_hand(model, edit_at((kind, layer), [step], nonlinear))
            assert_close(got, expected.logits, **exact)
            nothing_to_forget = kind.startswith("forget_gate") and step == 0
            if kind in LOOP_KINDS[cell] and step < STEPS - 1 and not nothing_to_forget:
                assert not torch.allclose(got[:, step + 1 :], clean.logits[:, step + 1 :], rtol=0, atol=1e-9)


@gated_cells
def test_points_fire_in_the_documented_order(cell: str) -> None:
    fired: list[str] = []
    model = make_model(n_layers=1, cell=cell)
    model.run_with_hooks(
        TOKENS[:, :1], fwd_hooks=[(lambda name: True, lambda x, hook: fired.append(hook.name.rpartition("hook_")[2]))]
    )
    assert fired == ["embed", "input", *LOOP_KINDS[cell], "out", "logits"]


class LeakyBlock(RecurrentBlock):
    """h_t = 0.9 h_{t-1} + 0.1 tanh(x_t W_ih + h_{t-1} W_hh)."""

    carried = "hidden"
    step_kinds = ("preact", "hidden")

    def step(self, x_t: Tensor, recurrent: Tensor, carry: Tensor | None, at: Points) -> State:
        preact = at("preact", x_t + recurrent)
        return (at("hidden", 0.9 * carry + 0.1 * preact.tanh()),)


@pytest.fixture
def leaky() -> Iterator[str]:
    class Registered(LeakyBlock, cell="leaky"):
        """For this test alone."""

    yield "leaky"
    del CELLS["leaky"]


def leaky_by_hand(model: HookedRNN, tokens: Tensor, doubled_at: int | None = None) -> Tensor:
    h = [torch.zeros(len(tokens), model.cfg.d_hidden, dtype=torch.float64) for _ in model.blocks]
    logits = []
    for t in range(tokens.shape[1]):
        x = model.W_E[tokens[:, t]]
        for layer, block in enumerate(model.blocks):
            h[layer] = 0.9 * h[layer] + 0.1 * torch.tanh(x @ block.W_ih + h[layer] @ block.W_hh)
            if t == doubled_at and layer == 0:
                h[layer] = 2 * h[layer]
            x = h[layer]
        logits.append(x @ model.W_U)
    return torch.stack(logits, dim=1)


def test_another_cell_is_one_small_class(leaky: str, tmp_path: object) -> None:
    model = make_model(cell=leaky, bias=False)
    assert_close(model(TOKENS), leaky_by_hand(model, TOKENS), **exact)

    def double(x: Tensor, hook: HookPoint) -> Tensor:
        return 2 * x

    model.set_use_step_hooks(True, STEPS)
    got = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.steps.1.hook_hidden", double)])
    assert_close(got, leaky_by_hand(model, TOKENS, doubled_at=1), **exact)
    assert not torch.allclose(got, model(TOKENS))
    _, cache = model.run_with_cache(TOKENS)
    assert_close(cache["carry", 1][:, 1:], cache["hidden", 1][:, :-1])
    trie = Sequences.of(TOKENS, TOKENS[:, 0], torch.device("cpu"))
    assert_close(trie.last_logits(model), model(TOKENS)[:, -1], **exact)
    model.save_pretrained(tmp_path)
    assert_close(HookedRNN.from_pretrained(tmp_path)(TOKENS), model.float()(TOKENS))


@pytest.mark.parametrize("cell", ["gruu", "", "GRU"])
def test_a_cell_that_nobody_knows_is_an_error(cell: str) -> None:
    with pytest.raises(ConfigError, match=f"cell='{cell}': expected 'rnn', 'gru' or 'lstm'"):
        HookedRNNConfig(d_vocab=2, d_vocab_out=2, d_model=2, d_hidden=2, cell=cell)


@gated_cells
def test_shared_prefixes_and_training(cell: str) -> None:
    task = ModularAddition(7)
    model = HookedRNN(
        HookedRNNConfig(d_vocab=7, d_vocab_out=7, d_model=8, d_hidden=12, n_layers=2, cell=cell, bias=True)
    ).double()
    plain = deepcopy(model)
    Sequences.of(task.tokens, task.labels, torch.device("cpu")).backward(model)
    plain(task.tokens, labels=task.labels, return_type="loss").backward()
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, expected.grad, rtol=1e-10, atol=1e-12)
    config = TrainConfig.recipe("fast", steps=30, orthogonal_steps=20, eval_every=10, train_fraction=0.8)
    run = train(model, task, config, progress=False)
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"]


@gated_cells
def test_saved_loaded_copied_and_pickled(cell: str, tmp_path: object) -> None:
    model = make_model(cell=cell).float()
    model.save_pretrained(tmp_path)
    for again in (HookedRNN.from_pretrained(tmp_path), deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(TOKENS), model(TOKENS))
        assert again.cfg.cell == cell
    assert model(TOKENS).shape == (BATCH, STEPS, 6)
    assert isinstance(model.to(torch.bfloat16)(TOKENS), Tensor)


def test_torch_has_more_gates_than_a_vanilla_cell() -> None:
    """The widths that design and torch agree on."""
    for cell, module in (("rnn", nn.RNN), ("gru", nn.GRU), ("lstm", nn.LSTM)):
        cfg = HookedRNNConfig(d_vocab=2, d_vocab_out=2, d_model=3, d_hidden=5, cell=cell)
        assert cfg.n_gates * 5 == module(3, 5).weight_ih_l0.shape[0]
