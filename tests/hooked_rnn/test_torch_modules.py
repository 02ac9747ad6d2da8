"""From torch modules and back: the same numbers, the same bits; what HookedRNN does not have is refused by name."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from causality import by_hand, exact, integers, make_model, nonlinear, random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

from hooked_rnn import HookedRNN, HookedRNNConfig
from hooked_rnn.errors import ConversionError, HookedRNNError, SignalError

VOCAB, ANSWERS, D_IN, D_MODEL, D_HIDDEN = 7, 6, 2, 3, 4

RNN: dict[str, Callable[..., nn.RNNBase]] = {
    "relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
    "tanh": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}
CELL: dict[str, Callable[..., nn.RNNCellBase]] = {
    "relu": lambda *args, **kwargs: nn.RNNCell(*args, nonlinearity="relu", **kwargs),
    "tanh": nn.RNNCell,
    "gru": nn.GRUCell,
    "lstm": nn.LSTMCell,
}

every_kind = pytest.mark.parametrize("kind", RNN)
few_examples = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def seeded() -> Any:
    """torch draws its modules' weights from its global state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def embedding(source: str = "tokens", bias: bool = True) -> nn.Module | None:
    if source == "raw":
        return None
    return nn.Embedding(VOCAB, D_MODEL) if source == "tokens" else nn.Linear(D_IN, D_MODEL, bias=bias)


def readout(bias: bool = True) -> nn.Linear:
    return nn.Linear(D_HIDDEN, ANSWERS, bias=bias)


def inputs(source: str, batch: int = 3, n_steps: int = 5) -> Tensor:
    width = {"signals": D_IN, "raw": D_MODEL}
    return integers(batch, n_steps) if source == "tokens" else random(batch, n_steps, width[source]).float()


def run_torch(embed: nn.Module | None, rnn: nn.RNNBase, out: nn.Linear, x: Tensor) -> Tensor:
    x = x if embed is None else embed(x)
    hidden = rnn(x)[0] if rnn.batch_first else rnn(x.transpose(0, 1))[0].transpose(0, 1)
    return out(hidden)


def run_cells(embed: nn.Module, cells: list[Any], out: nn.Linear, x: Tensor) -> Tensor:
    """Step by step, layer by layer."""
    states: list[Any] = [None] * len(cells)
    logits = []
    for x_t in embed(x).unbind(1):
        for layer, cell in enumerate(cells):
            states[layer] = cell(x_t, states[layer])
            x_t = states[layer][0] if isinstance(cell, nn.LSTMCell) else states[layer]
        logits.append(out(x_t))
    return torch.stack(logits, dim=1)


# The same numbers


@few_examples
@given(
    kind=st.sampled_from(list(RNN)),
    source=st.sampled_from(["tokens", "signals", "raw"]),
    n_layers=st.integers(1, 3),
    bias=st.booleans(),
    readout_bias=st.booleans(),
    batch_first=st.booleans(),
    n_steps=st.integers(1, 6),
)
def test_the_same_logits_and_gradients(
    kind: str, source: str, n_layers: int, bias: bool, readout_bias: bool, batch_first: bool, n_steps: int
) -> None:
    embed, out = embedding(source, bias), readout(readout_bias)
    rnn = RNN[kind](D_MODEL, D_HIDDEN, num_layers=n_layers, bias=bias, batch_first=batch_first)
    model, x = HookedRNN.from_torch(embed, rnn, out), inputs(source, n_steps=n_steps)
    assert (model.cfg.bias, model.cfg.unembed_bias) == (bias, readout_bias)
    assert model.cfg.input == ("tokens" if source == "tokens" else "continuous")
    expected = run_torch(embed, rnn, out, x)
    logits = model(x)
    assert_close(logits, expected, rtol=0, atol=1e-6)
    hooked, _ = model.run_with_cache(x)
    assert torch.equal(hooked, logits)

    logits.square().sum().backward()
    expected.square().sum().backward()
    for layer, block in enumerate(model.blocks):
        for part in ("ih", "hh"):
            wanted = getattr(rnn, f"weight_{part}_l{layer}").grad.T
            assert_close(getattr(block, f"W_{part}").grad, wanted, rtol=1e-4, atol=1e-5)
            if bias:
                wanted = getattr(rnn, f"bias_{part}_l{layer}").grad
                assert_close(getattr(block, f"b_{part}").grad, wanted, rtol=1e-4, atol=1e-5)
    assert_close(model.W_U.grad, out.weight.grad.T, rtol=1e-4, atol=1e-5)
    if source == "tokens":
        assert_close(model.W_E.grad, embed.weight.grad, rtol=1e-4, atol=1e-5)


@every_kind
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind_of_list", [list, tuple, nn.ModuleList])
def test_cells_one_for_each_layer(kind: str, n_layers: int, bias: bool, kind_of_list: Any) -> None:
    cells = [CELL[kind](D_MODEL if layer == 0 else D_HIDDEN, D_HIDDEN, bias=bias) for layer in range(n_layers)]
    embed, out, x = embedding(), readout(), inputs("tokens")
    model = HookedRNN.from_torch(embed, kind_of_list(cells), out)
    assert model.cfg.n_layers == n_layers
    assert_close(model(x), run_cells(embed, cells, out, x), rtol=0, atol=1e-6)
    if n_layers == 1:
        assert torch.equal(HookedRNN.from_torch(embed, cells[0], out)(x), model(x))


@every_kind
def test_what_was_made_from_torch_has_every_hook(kind: str) -> None:
    rnn = RNN[kind](D_MODEL, D_HIDDEN, num_layers=2).double()
    model = HookedRNN.from_torch(embedding().double(), rnn, readout().double())
    tokens = integers(3, 4)
    expected = by_hand(model, {("hidden", 0, 1): nonlinear}, tokens)
    model.set_use_step_hooks(True, 4)
    hook = ("blocks.0.steps.1.hook_hidden", lambda x, hook: nonlinear(x))
    assert_close(model.run_with_hooks(tokens, fwd_hooks=[hook]), expected.logits, **exact)


# There and back


@every_kind
@pytest.mark.parametrize("source", ["tokens", "signals"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("bias", "readout_bias"), list(itertools.product((True, False), repeat=2)))
def test_there_and_back_is_the_same_bits(
    kind: str, source: str, batch_first: bool, bias: bool, readout_bias: bool
) -> None:
    modules = (
        embedding(source, bias),
        RNN[kind](D_MODEL, D_HIDDEN, num_layers=2, bias=bias, batch_first=batch_first),
        readout(readout_bias),
    )
    model = HookedRNN.from_torch(*modules)
    back = model.to_torch(batch_first=batch_first)
    for before, after in zip(modules, back, strict=True):
        assert type(before) is type(after)
        assert repr(before) == repr(after)
        assert before.state_dict().keys() == after.state_dict().keys()
        assert all(torch.equal(after.state_dict()[name], weight) for name, weight in before.state_dict().items())
    again = HookedRNN.from_torch(*back)
    assert again.cfg == model.cfg
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
    x = inputs(source)
    assert_close(run_torch(*back, x), model(x), rtol=0, atol=1e-6)


@every_kind
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_cells_there_and_back_are_the_same_bits(kind: str, n_layers: int, bias: bool) -> None:
    cells = nn.ModuleList(
        CELL[kind](D_MODEL if layer == 0 else D_HIDDEN, D_HIDDEN, bias=bias) for layer in range(n_layers)
    )
    embed, out, x = embedding(), readout(), inputs("tokens")
    model = HookedRNN.from_torch(embed, cells, out)
    back = model.to_torch(cells=True)
    assert repr(back.rnn) == repr(cells)
    assert back.rnn.state_dict().keys() == cells.state_dict().keys()
    assert all(torch.equal(back.rnn.state_dict()[name], weight) for name, weight in cells.state_dict().items())
    assert_close(run_cells(back.embedding, list(back.rnn), back.readout, x), model(x), rtol=0, atol=1e-6)
    assert torch.equal(HookedRNN.from_torch(*model.to_torch())(x), model(x))  # and by way of one module


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_to_torch_gives_the_same_logits_in_float64(cell: str) -> None:
    model, tokens = make_model(3, cell=cell), integers(3, 4)
    for batch_first in (True, False):
        assert_close(run_torch(*model.to_torch(batch_first), tokens), model(tokens), **exact)


def test_signals_that_go_straight_in_come_back_by_way_of_the_identity() -> None:
    model = HookedRNN.from_torch(None, nn.GRU(D_MODEL, D_HIDDEN), readout())
    assert torch.equal(model.W_E, torch.eye(D_MODEL))
    back = model.to_torch()
    assert torch.equal(back.embedding.weight, torch.eye(D_MODEL))
    x = inputs("raw")
    assert_close(run_torch(*back, x), model(x), rtol=0, atol=1e-6)


def test_parameters_are_copies_both_ways() -> None:
    embed, rnn, out = embedding(), nn.LSTM(D_MODEL, D_HIDDEN), readout()
    model, x = HookedRNN.from_torch(embed, rnn, out), inputs("tokens")
    logits, back = model(x), model.to_torch()
    with torch.no_grad():
        for parameter in [*embed.parameters(), *rnn.parameters(), *out.parameters()]:
            parameter.fill_(9.0)
        assert torch.equal(model(x), logits)
        for parameter in itertools.chain(*(module.parameters() for module in back)):
            parameter.fill_(9.0)
    assert torch.equal(model(x), logits)
    assert all(parameter.requires_grad for module in back for parameter in module.parameters())


def test_the_global_random_state_is_left_alone() -> None:
    modules = embedding(), nn.GRU(D_MODEL, D_HIDDEN), readout()
    before = torch.get_rng_state()
    HookedRNN.from_torch(*modules).to_torch()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_recurrent_part_s(training: bool) -> None:
    for rnn in (nn.GRU(D_MODEL, D_HIDDEN).train(training), [nn.GRUCell(D_MODEL, D_HIDDEN).train(training)]):
        model = HookedRNN.from_torch(embedding(), rnn, readout())
        assert all(module.training is training for module in model.modules())
        assert all(module.training is training for module in model.to_torch())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_dtype_is_the_modules(dtype: torch.dtype) -> None:
    model = HookedRNN.from_torch(embedding().to(dtype), nn.GRU(D_MODEL, D_HIDDEN).to(dtype), readout().to(dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype} == {model.cfg.dtype}
    assert {p.dtype for module in model.to_torch() for p in module.parameters()} == {dtype}


def test_weights_that_are_made_otherwise_are_taken_as_they_are() -> None:
    out = nn.utils.parametrizations.weight_norm(readout())
    with torch.no_grad():
        out.parametrizations.weight.original0.mul_(3)
    embed, rnn, x = embedding(), nn.GRU(D_MODEL, D_HIDDEN, batch_first=True), inputs("tokens")
    assert_close(HookedRNN.from_torch(embed, rnn, out)(x), run_torch(embed, rnn, out, x), rtol=0, atol=1e-6)


# What is refused


class Doubling(nn.LSTM):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        return super().forward(2 * x, state)


class DoublingCell(nn.GRUCell):
    def forward(self, x: Tensor, state: Any = None) -> Any:
        return super().forward(2 * x, state)


class DoublingReadout(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def gru(*args: Any, **kwargs: Any) -> nn.GRU:
    return nn.GRU(D_MODEL, D_HIDDEN, *args, **kwargs)


REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], str]] = {
    "bidirectional": (
        lambda: (embedding(), nn.LSTM(D_MODEL, D_HIDDEN, bidirectional=True), nn.Linear(2 * D_HIDDEN, ANSWERS)),
        "the rnn has bidirectional=True: expected False",
    ),
    "projections": (
        lambda: (embedding(), nn.LSTM(D_MODEL, 8, proj_size=D_HIDDEN), readout()),
        f"the rnn has proj_size={D_HIDDEN}: expected 0",
    ),
    "dropout in training": (
        lambda: (embedding(), gru(num_layers=2, dropout=0.5), readout()),
        "the rnn has dropout=0.5 and is in training: expected dropout=0, or rnn.eval() first",
    ),
    "max_norm": (
        lambda: (nn.Embedding(VOCAB, D_MODEL, max_norm=1.0), gru(), readout()),
        "the embedding has max_norm=1.0: expected None",
    ),
    "embedding of another kind": (
        lambda: (nn.Conv1d(D_MODEL, D_MODEL, 1), gru(), readout()),
        "the embedding is Conv1d: expected nn.Embedding, nn.Linear, or None",
    ),
    "recurrent part of another kind": (
        lambda: (embedding(), nn.Sequential(gru()), readout()),
        "the recurrent part is Sequential: expected nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell",
    ),
    "no recurrent part": (lambda: (embedding(), None, readout()), "the recurrent part is NoneType: expected nn.RNN"),
    "no layers": (lambda: (embedding(), [], readout()), "the recurrent part is empty: expected at least one layer"),
    "a module in a list": (
        lambda: (embedding(), [nn.LSTM(D_MODEL, D_HIDDEN)], readout()),
        "the recurrent part is a list with LSTM in it: expected that by itself, or a list of cells",
    ),
    "a bidirectional module in a list": (
        lambda: (embedding(), [nn.GRU(D_MODEL, 2, bidirectional=True)], readout()),
        "the recurrent part is a list with GRU in it",
    ),
    "stacked modules": (
        lambda: (embedding(), nn.ModuleList([gru(), nn.GRU(D_HIDDEN, D_HIDDEN)]), readout()),
        "the recurrent part is a list with GRU in it",
    ),
    "a readout of another kind": (
        lambda: (embedding(), gru(), nn.Sequential(readout())),
        "the readout is Sequential: expected nn.Linear",
    ),
    "an embedding too wide": (
        lambda: (nn.Embedding(VOCAB, 5), gru(), readout()),
        f"the embedding's output has width 5: expected {D_MODEL}, the rnn's input_size",
    ),
    "an input layer too wide": (
        lambda: (nn.Linear(D_IN, 5), gru(), readout()),
        f"the embedding's output has width 5: expected {D_MODEL}, the rnn's input_size",
    ),
    "a readout too wide": (
        lambda: (embedding(), gru(), nn.Linear(5, ANSWERS)),
        f"the readout takes width 5: expected {D_HIDDEN}, the rnn's hidden_size",
    ),
    "cells of two kinds": (
        lambda: (embedding(), [nn.GRUCell(D_MODEL, D_HIDDEN), nn.LSTMCell(D_HIDDEN, D_HIDDEN)], readout()),
        "a LSTMCell above a GRUCell: expected cells of one kind",
    ),
    "a cell that does not fit the one below": (
        lambda: (embedding(), [nn.GRUCell(D_MODEL, D_HIDDEN), nn.GRUCell(5, D_HIDDEN)], readout()),
        f"a stacked cell has input_size=5: expected {D_HIDDEN}, as the one below",
    ),
    "cells of two widths": (
        lambda: (embedding(), [nn.GRUCell(D_MODEL, D_HIDDEN), nn.GRUCell(D_HIDDEN, 5)], readout()),
        f"a stacked cell has hidden_size=5: expected {D_HIDDEN}, as the one below",
    ),
    "one cell with a bias": (
        lambda: (embedding(), [nn.GRUCell(D_MODEL, D_HIDDEN), nn.GRUCell(D_HIDDEN, D_HIDDEN, bias=False)], readout()),
        "a stacked cell has bias=False: expected True",
    ),
    "two nonlinearities": (
        lambda: (embedding(), [CELL["tanh"](D_MODEL, D_HIDDEN), CELL["relu"](D_HIDDEN, D_HIDDEN)], readout()),
        "a stacked cell has nonlinearity=relu: expected tanh",
    ),
    "two dtypes": (
        lambda: (embedding(), gru().double(), readout()),
        "the parameters are torch.float32 on cpu, torch.float64 on cpu: expected one dtype and one device",
    ),
    "two devices": (
        lambda: (embedding(), gru(device="meta"), readout()),
        "the parameters are torch.float32 on cpu, torch.float32 on meta: expected one dtype and one device",
    ),
    "a forward of its own": (
        lambda: (embedding(), Doubling(D_MODEL, D_HIDDEN), readout()),
        "Doubling has a forward of its own: expected nn.LSTM's",
    ),
    "a cell with a forward of its own": (
        lambda: (embedding(), [DoublingCell(D_MODEL, D_HIDDEN)], readout()),
        "DoublingCell has a forward of its own: expected nn.GRUCell's",
    ),
    "a readout with a forward of its own": (
        lambda: (embedding(), gru(), DoublingReadout(D_HIDDEN, ANSWERS)),
        "DoublingReadout has a forward of its own: expected nn.Linear's",
    ),
}


def doubling_from_outside(out: nn.Linear) -> nn.Linear:
    out.forward = lambda x: 2 * nn.Linear.forward(out, x)
    return out


def with_hook(module: Any, hook: Callable[..., Any]) -> Any:
    module.register_forward_hook(hook)
    return module


def double_the_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


REFUSED |= {
    "a forward put in from outside": (
        lambda: (embedding(), gru(), doubling_from_outside(readout())),
        "Linear has a forward of its own: expected nn.Linear's",
    ),
    "a hook": (
        lambda: (with_hook(embedding(), double_the_output), gru(), readout()),
        "Embedding has the hook <function double_the_output",
    ),
    "a hook on one cell": (
        lambda: (embedding(), [with_hook(nn.GRUCell(D_MODEL, D_HIDDEN), double_the_output)], readout()),
        "GRUCell has the hook <function double_the_output",
    ),
    "weights that a hook makes anew": (
        lambda: (embedding(), gru(), prune.l1_unstructured(readout(), "weight", 0.5)),
        "Linear has the hook <torch.nn.utils.prune.L1Unstructured object",
    ),
}


def test_a_pruned_module_is_taken_once_the_pruning_is_made_permanent() -> None:
    embed, rnn, x = embedding(), gru(batch_first=True), inputs("tokens")
    out = prune.remove(prune.l1_unstructured(readout(), "weight", 0.5), "weight")
    assert_close(HookedRNN.from_torch(embed, rnn, out)(x), run_torch(embed, rnn, out, x), rtol=0, atol=1e-6)


def test_weights_that_modules_share_are_two_weights_afterwards() -> None:
    out, x = nn.Linear(D_HIDDEN, VOCAB, bias=False), inputs("tokens")
    embed, rnn = nn.Embedding(VOCAB, D_HIDDEN), nn.GRU(D_HIDDEN, D_HIDDEN, batch_first=True)
    out.weight = embed.weight
    model = HookedRNN.from_torch(embed, rnn, out)
    assert_close(model(x), run_torch(embed, rnn, out, x), rtol=0, atol=1e-6)
    model(x).square().sum().backward()
    run_torch(embed, rnn, out, x).square().sum().backward()
    assert_close(model.W_E.grad + model.W_U.grad.T, embed.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("modules", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_the_same_is_refused_by_name(modules: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConversionError, match=re.escape(said)) as caught:
        HookedRNN.from_torch(*modules())
    assert isinstance(caught.value, HookedRNNError)


def test_dropout_in_eval_mode_does_nothing_and_is_taken() -> None:
    embed, rnn, out = embedding(), gru(num_layers=2, dropout=0.5, batch_first=True).eval(), readout()
    x = inputs("tokens")
    model = HookedRNN.from_torch(embed, rnn, out)
    assert_close(model(x), run_torch(embed, rnn, out, x), rtol=0, atol=1e-6)
    assert not torch.allclose(run_torch(embed, rnn.train(), out, x), model(x), rtol=0, atol=1e-6)  # why it is refused


@pytest.mark.usefixtures("unchecked")
def test_signals_of_another_width_than_the_recurrent_part_s_are_refused() -> None:
    model = HookedRNN.from_torch(None, gru(), readout())
    with pytest.raises(SignalError, match=f"d_in {D_MODEL}"):
        model(random(3, 4, D_MODEL + 1).float())


def test_a_recurrent_part_without_biases_under_a_readout_with_one() -> None:
    embed, rnn, out = embedding(), gru(bias=False, batch_first=True), readout()
    model, x = HookedRNN.from_torch(embed, rnn, out), inputs("tokens")
    assert (model.cfg.bias, model.cfg.unembed_bias) == (False, True)
    sizes = {"d_vocab": VOCAB, "d_vocab_out": ANSWERS, "d_model": D_MODEL, "d_hidden": D_HIDDEN}
    assert HookedRNNConfig(**sizes, cell="gru", bias=False, unembed_bias=True) == model.cfg
    assert_close(model(x), run_torch(embed, rnn, out, x), rtol=0, atol=1e-6)
    without = HookedRNN.from_torch(embed, rnn, readout(bias=False))
    assert without.b_U.eq(0).all()
