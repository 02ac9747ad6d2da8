"""The gated cells are torch's, in value and in gradient; another cell is one small class."""

from pathlib import Path
from typing import Any

import pytest
import torch
from causality import (
    LABELS,
    STEPS,
    TOKENS,
    by_hand,
    every_cell,
    exact,
    gated_cells,
    integers,
    make_model,
    nonlinear,
    parts_of,
    random,
    random_state,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import LOOP_KINDS
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, RecurrentBlock, TrainConfig, train
from hooked_rnn.cells import RNNBlock
from hooked_rnn.errors import ConfigError, ConversionError
from hooked_rnn.points import Points
from hooked_rnn.prefix_gradients import is_written_out
from hooked_rnn.recurrent import State
from hooked_rnn.training.batches import Sequences

TORCH = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

few_examples = settings(max_examples=30, deadline=None, derandomize=True)


def torch_twin(model: HookedRNN) -> nn.RNNBase:
    """torch's own layers with the same weights (it multiplies from the left)."""
    cfg = model.cfg
    twin = TORCH[cfg.cell](
        cfg.d_model, cfg.d_hidden, cfg.n_layers, bias=cfg.bias, batch_first=True, dtype=torch.float64
    )
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            for kind in ("ih", "hh"):
                getattr(twin, f"weight_{kind}_l{layer}").copy_(getattr(block, f"W_{kind}").T)
                if cfg.bias:
                    getattr(twin, f"bias_{kind}_l{layer}").copy_(getattr(block, f"b_{kind}"))
    return twin


@few_examples
@given(
    cell=st.sampled_from(["rnn", "gru", "lstm"]),
    n_layers=st.integers(1, 3),
    bias=st.booleans(),
    batch=st.integers(1, 4),
    n_steps=st.integers(1, 7),
    with_state=st.booleans(),
    hooked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_all_gradients_are_those_of_torch(
    cell: str, n_layers: int, bias: bool, batch: int, n_steps: int, with_state: bool, hooked: bool, seed: int
) -> None:
    model = make_model(n_layers, "tanh", bias, seed, cell)
    if hooked:
        model.add_hook(lambda name: True, lambda x, hook: None)
    tokens, weighting = integers(batch, n_steps, seed=seed), random(batch, n_steps, 6, seed=seed)
    state = random_state(model, batch=batch) if with_state else None
    twin, embedded = torch_twin(model), model.W_E.detach()[tokens].requires_grad_()
    starts = [part.requires_grad_() for part in parts_of(state)] if with_state else []
    twin_starts = [part.detach().clone().requires_grad_() for part in starts]
    twin_state = (tuple(twin_starts) if cell == "lstm" else twin_starts[0]) if with_state else None

    logits, final = model(tokens, initial_state=state, return_state=True)
    hidden, twin_final = twin(embedded, twin_state)
    twin_logits = hidden @ model.W_U.detach() + model.b_U.detach()
    assert_close(logits, twin_logits, **exact)
    assert_close(parts_of(final), parts_of(twin_final), **exact)

    ((logits * weighting).sum() + sum(part.sin().sum() for part in parts_of(final))).backward()
    ((twin_logits * weighting).sum() + sum(part.sin().sum() for part in parts_of(twin_final))).backward()
    for layer, block in enumerate(model.blocks):
        for kind in ("ih", "hh"):
            assert_close(getattr(block, f"W_{kind}").grad, getattr(twin, f"weight_{kind}_l{layer}").grad.T, **exact)
            if bias:
                assert_close(getattr(block, f"b_{kind}").grad, getattr(twin, f"bias_{kind}_l{layer}").grad, **exact)
    by_token = torch.zeros_like(model.W_E).index_add(0, tokens.flatten(), embedded.grad.flatten(0, 1))
    assert_close(model.W_E.grad, by_token, **exact)
    assert_close([part.grad for part in starts], [part.grad for part in twin_starts], **exact)


@gated_cells
def test_with_two_gates_exchanged_it_is_another_network(cell: str) -> None:
    """The control of the comparison with torch: it would see gates in another order."""
    model = make_model(cell=cell)
    plain, d = model(TOKENS), model.cfg.d_hidden
    for first, second in ((0, 1), (1, 2), (0, 2)):
        order = list(range(model.cfg.n_gates))
        order[first], order[second] = order[second], order[first]
        gates = torch.cat([torch.arange(g * d, (g + 1) * d) for g in order])
        other = make_model(cell=cell)
        with torch.no_grad():
            other.blocks[1].W_hh.copy_(model.blocks[1].W_hh[:, gates])
        assert not torch.allclose(other(TOKENS), plain)


@every_cell
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_two_references_agree(cell: str, n_layers: int, bias: bool) -> None:
    model = make_model(n_layers, "tanh", bias, cell=cell)
    unrolled, start = by_hand(model, initial_state=random_state(model)), random_state(model)
    hidden, state = torch_twin(model)(model.W_E[TOKENS], start)
    assert_close(unrolled.stacked("hidden", n_layers - 1), hidden, **exact)
    assert_close(parts_of(unrolled.state), parts_of(state), **exact)


@every_cell
def test_parameters_and_points_are_those_of_the_table(cell: str) -> None:
    model = make_model(cell=cell)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    assert model.cfg.n_gates == gates
    assert {name: tuple(p.shape) for name, p in model.blocks[1].named_parameters()} == {
        "W_ih": (4, 4 * gates),
        "W_hh": (4, 4 * gates),
        "b_ih": (4 * gates,),
        "b_hh": (4 * gates,),
    }
    assert model.W_hh.shape == (2, 4, 4 * gates)
    kinds = ("input", *LOOP_KINDS[cell], "out")
    assert [name for name in model.hook_dict if name.startswith("blocks.0.")] == [f"blocks.0.hook_{k}" for k in kinds]
    _, cache = model.run_with_cache(TOKENS)
    for kind in kinds:
        width = 4 * gates if kind in ("input", "recurrent") else 4
        assert cache[kind, 1].shape == (3, STEPS, width)


@pytest.mark.parametrize("name", ["gruu", "GRU", "", None, 3])
@pytest.mark.usefixtures("unchecked")
def test_a_cell_that_nobody_knows_is_refused_with_the_choices(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"cell=.*: expected 'rnn', 'gru', 'lstm'"):
        HookedRNNConfig(d_vocab=3, d_vocab_out=3, d_model=2, d_hidden=2, cell=name)


# Dtypes


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_everything_follows_the_dtype(cell: str, dtype: torch.dtype) -> None:
    model = make_model(cell=cell)
    wanted = model(TOKENS)
    model.to(dtype)
    assert model.cfg.dtype == dtype
    state = random_state(model, dtype)
    (loss, final), cache = model.run_with_cache(
        TOKENS, return_type="loss", labels=LABELS, initial_state=state, return_state=True
    )
    assert {x.dtype for x in (loss, *parts_of(final), *cache.values())} == {dtype}
    assert_close(model(TOKENS).double(), wanted, rtol=0, atol=0.1)
    model.run_with_cache(TOKENS, return_type="loss", labels=LABELS, incl_bwd=True)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {dtype}


@every_cell
@pytest.mark.parametrize("start", [False, True])
def test_autocast_runs_hooked_or_not(cell: str, start: bool) -> None:
    model = make_model(cell=cell).float()
    state = random_state(model, torch.float32) if start else None
    wanted = model(TOKENS, initial_state=state)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(TOKENS, initial_state=state)
        logits, cache = model.run_with_cache(TOKENS, initial_state=state)
        with torch.no_grad():
            _, without = model.run_with_cache(TOKENS, initial_state=state)
    assert torch.equal(logits, plain)
    assert_close(logits.float(), wanted, rtol=0, atol=0.05)
    assert all(torch.equal(cache[name], without[name]) for name in cache)


# Saving


@every_cell
@pytest.mark.parametrize("signals", [False, True])
def test_saved_and_loaded_is_the_same_model(cell: str, signals: bool, tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"d_vocab": 7}
    if signals:
        inputs = {"input": "continuous", "d_in": 2, "embed_bias": True}
    model = HookedRNN(HookedRNNConfig(**inputs, d_vocab_out=6, d_model=3, d_hidden=4, cell=cell, n_layers=2, bias=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += random(*parameter.shape)
    model.set_use_step_hooks(True, STEPS)  # they hold no weights
    model.save_pretrained(tmp_path)
    loaded = HookedRNN.from_pretrained(tmp_path)
    assert loaded.cfg == model.cfg
    source = random(3, STEPS, 2).float() if signals else TOKENS
    assert torch.equal(loaded(source), model(source))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_model_in_float64_keeps_its_bits_where_it_is_asked_for_in_float64(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    assert torch.equal(HookedRNN.from_pretrained(tmp_path, dtype=torch.float64)(TOKENS), model(TOKENS))
    assert torch.equal(HookedRNN.from_pretrained(tmp_path)(TOKENS), model.float()(TOKENS))


# Training


@every_cell
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("operands", [2, 3])
def test_by_shared_prefixes_the_gradients_are_those_of_the_plain_forward(
    cell: str, n_layers: int, operands: int
) -> None:
    task = ModularAddition(7, operands)
    rows = torch.randint(len(task.tokens), (30,), generator=torch.Generator().manual_seed(0))
    sequences = Sequences.of(task.tokens[rows], task.labels[rows], torch.device("cpu"))
    model = make_model(n_layers, cell=cell)
    plain = HookedRNN(HookedRNNConfig.from_dict({**model.cfg.to_dict(), "d_vocab_out": 7})).double()
    model = HookedRNN(plain.cfg)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            theirs += random(*theirs.shape) / 3
            mine.copy_(theirs)
    loss = plain(sequences.tokens, return_type="loss", labels=sequences.labels)
    loss.backward()
    assert_close(sequences.backward(model), loss.detach(), **exact)
    assert_close(sequences.last_logits(model), plain(sequences.tokens)[:, -1], **exact)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad, **exact)


@gated_cells
@pytest.mark.parametrize("recipe", ["fast", "adamw"])
def test_a_gated_network_trains(cell: str, recipe: str, tmp_path: Path) -> None:
    task = ModularAddition(7)

    def run(hooked: bool, out: Path | None = None) -> Any:
        cfg = HookedRNNConfig(d_vocab=7, d_vocab_out=7, d_model=8, d_hidden=12, cell=cell, n_ctx=2, dtype=torch.float64)
        model = HookedRNN(cfg)
        if hooked:
            model.set_use_step_hooks(True)
            model.add_hook("blocks.0.steps.1.hook_hidden", lambda x, hook: None)
        options = {"orthogonal_steps": 10} if recipe == "fast" else {}
        config = TrainConfig.recipe(recipe, steps=60, eval_every=20, train_fraction=0.6, seed=0, **options)
        return train(model, task, config, out, progress=False)

    by_prefixes, step_by_step = run(False, tmp_path / "run"), run(True)
    losses = [row["train_loss"] for row in by_prefixes.history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05
    assert_close(losses, [row["train_loss"] for row in step_by_step.history], rtol=1e-6, atol=1e-9)
    loaded = HookedRNN.from_pretrained(tmp_path / "run", dtype=torch.float64)
    assert torch.equal(loaded(task.tokens), by_prefixes.model(task.tokens))


# A cell of one's own


class MinimalGatedBlock(RecurrentBlock, cell="test-minimal-gated"):
    """The minimal gated unit of Zhou et al. 2016, with its gate after the product, and a second state that counts."""

    n_gates = 2
    state_names = ("hidden", "total")
    carried = "hidden"
    step_kinds = ("gate", "candidate", "hidden")

    def step(self, x_t: Tensor, recurrent: Tensor, carry: Tensor | None, at: Points) -> State:
        (x_f, x_n), (h_f, h_n) = x_t.chunk(2, dim=1), recurrent.chunk(2, dim=1)
        gate = at("gate", torch.sigmoid(x_f + h_f))
        candidate = at("candidate", torch.tanh(x_n + gate * h_n))
        hidden = at("hidden", (1 - gate) * carry + gate * candidate)
        return hidden, hidden.cumsum(1)


def minimal_model() -> HookedRNN:
    cfg = HookedRNNConfig(
        d_vocab=7, d_vocab_out=6, d_model=3, d_hidden=4, n_layers=2, bias=True, cell="test-minimal-gated"
    )
    model = HookedRNN(cfg).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += random(*parameter.shape) / 3
    return model


def minimal_by_hand(model: HookedRNN, edit: tuple[str, int, int] | None, start: State | None = None) -> Tensor:
    """The logits, where one kind, layer and step is edited."""
    hidden = list(torch.zeros(2, 3, 4, dtype=torch.float64) if start is None else start[0])
    logits = []
    for t in range(STEPS):
        x = model.W_E[TOKENS[:, t]]
        for layer, block in enumerate(model.blocks):
            see = lambda kind, x, at=(layer, t): nonlinear(x) if edit == (kind, *at) else x  # noqa: E731
            x_f, x_n = (x @ block.W_ih + block.b_ih).chunk(2, dim=1)
            h_f, h_n = see("recurrent", hidden[layer] @ block.W_hh + block.b_hh).chunk(2, dim=1)
            carry = see("carry", hidden[layer])
            gate = see("gate", torch.sigmoid(x_f + h_f))
            candidate = see("candidate", torch.tanh(x_n + gate * h_n))
            x = hidden[layer] = see("hidden", carry - gate * carry + gate * candidate)
        logits.append(x @ model.W_U + model.b_U)
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("view", ["whole", "step"])
def test_a_new_cell_has_every_point(grad: bool, view: str) -> None:
    model = minimal_model()
    model.set_use_step_hooks(True, STEPS)
    plain = minimal_by_hand(model, None)
    with torch.set_grad_enabled(grad):
        assert_close(model(TOKENS), plain, **exact)
        for kind in ("recurrent", "carry", "gate", "candidate", "hidden"):
            for layer, t in ((0, 0), (0, 2), (1, 1), (1, 3)):

                def whole(x: Tensor, hook: HookPoint, t: int = t) -> Tensor | None:
                    return nonlinear(x) if hook.step == t else None

                hook = (f"blocks.{layer}.hook_{kind}", whole)
                if view == "step":
                    hook = (f"blocks.{layer}.steps.{t}.hook_{kind}", lambda x, hook: nonlinear(x))
                expected = minimal_by_hand(model, (kind, layer, t))
                assert not torch.allclose(expected, plain)
                assert_close(model.run_with_hooks(TOKENS, fwd_hooks=[hook]), expected, **exact)


def test_a_new_cell_has_states_gradients_shared_prefixes_and_saving(tmp_path: Path) -> None:
    model = minimal_model()
    whole, final = model(TOKENS, return_state=True)
    first, state = model(TOKENS[:, :2], return_state=True)
    second, end = model(TOKENS[:, 2:], initial_state=state, return_state=True)
    assert_close(torch.cat([first, second], dim=1), whole, **exact)
    assert_close(end, final, **exact)
    assert [tuple(part.shape) for part in final] == [(2, 3, 4)] * 2

    model(TOKENS, return_type="loss", labels=LABELS).backward()
    by_hand_loss = nn.functional.cross_entropy(minimal_by_hand(model, None).flatten(0, 1), LABELS.flatten())
    wanted = torch.autograd.grad(by_hand_loss, list(model.parameters()))
    assert_close([parameter.grad for parameter in model.parameters()], list(wanted), **exact)

    sequences = Sequences.of(TOKENS, LABELS[:, -1], torch.device("cpu"))
    assert_close(sequences.last_logits(model), whole[:, -1], **exact)
    model.save_pretrained(tmp_path)
    assert torch.equal(HookedRNN.from_pretrained(tmp_path, dtype=torch.float64)(TOKENS), whole)
    with pytest.raises(ConversionError, match=r"no module for the cell 'test-minimal-gated': expected 'rnn', 'gru'"):
        model.to_torch()


class ShiftedBlock(RNNBlock, cell="test-shifted"):
    """The vanilla cell with another step."""

    def step(self, x_t: Tensor, recurrent: Tensor, carry: Tensor | None, at: Points) -> State:
        return (at("hidden", self.act(at("preact", x_t + 2 * recurrent))),)


def test_a_class_of_the_vanilla_cell_has_its_own_gradients_by_shared_prefixes() -> None:
    models = [
        HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=6, d_model=3, d_hidden=4, cell="test-shifted")).double()
        for _ in range(2)
    ]
    sequences = Sequences.of(TOKENS, LABELS[:, -1], torch.device("cpu"))
    assert not is_written_out(models[0])
    sequences.backward(models[0])
    models[1](TOKENS, return_type="loss", labels=LABELS[:, -1]).backward()
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert_close(mine.grad, theirs.grad, **exact)
