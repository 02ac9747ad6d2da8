"""From torch modules and back: the same logits, the same bits, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from hooked_rnn import HookedRNN, HookedRNNConfig
from hooked_rnn.errors import ConversionError

KINDS: dict[str, Any] = {
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
    "tanh": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}
CELLS: dict[str, Any] = {
    "relu": lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k),
    "tanh": nn.RNNCell,
    "gru": nn.GRUCell,
    "lstm": nn.LSTMCell,
}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def tokens_of(batch: int = 3, n_steps: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(7, (batch, n_steps), generator=torch.Generator().manual_seed(seed))


def signals_of(d_in: int, seed: int = 0) -> Tensor:
    return torch.randn(3, 5, d_in, generator=torch.Generator().manual_seed(seed))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    readout_bias=st.booleans(),
    batch_first=st.booleans(),
    from_signals=st.booleans(),
)
def test_the_same_logits_and_the_same_bits(
    kind: str, layers: int, bias: bool, readout_bias: bool, batch_first: bool, from_signals: bool
) -> None:
    embedding = nn.Linear(2, 4, bias=bias) if from_signals else nn.Embedding(7, 4)
    rnn = KINDS[kind](4, 6, num_layers=layers, bias=bias, batch_first=batch_first)
    readout = nn.Linear(6, 8, bias=readout_bias)
    model = HookedRNN.from_torch(embedding, rnn, readout)
    x = signals_of(2) if from_signals else tokens_of()
    h = embedding(x)
    out = rnn(h)[0] if batch_first else rnn(h.transpose(0, 1))[0].transpose(0, 1)
    assert_close(model(x), readout(out), rtol=1e-6, atol=1e-6)
    assert (model.cfg.bias, model.cfg.unembed_bias) == (bias, readout_bias)
    again = model.to_torch(batch_first=batch_first)
    assert all(same_bits(a, b) for a, b in zip(again, (embedding, rnn, readout), strict=True))
    assert again.rnn.batch_first == batch_first
    assert same_bits(HookedRNN.from_torch(*again), model)


@kinds
@pytest.mark.parametrize("stacked", [False, True])
def test_cells(kind: str, stacked: bool) -> None:
    cells = [CELLS[kind](4, 6), *([CELLS[kind](6, 6)] if stacked else [])]
    embedding, readout = nn.Embedding(7, 4), nn.Linear(6, 8)
    x = tokens_of()
    states: list[Any] = [None] * len(cells)
    logits = []
    for t in range(x.shape[1]):
        h = embedding(x[:, t])
        for layer, cell in enumerate(cells):
            states[layer] = cell(h, states[layer])
            h = states[layer][0] if kind == "lstm" else states[layer]
        logits.append(readout(h))
    expected = torch.stack(logits, dim=1)
    for given_as in (cells, nn.ModuleList(cells), *(cells if not stacked else [])):
        assert_close(HookedRNN.from_torch(embedding, given_as, readout)(x), expected, rtol=1e-6, atol=1e-6)
    rnn = HookedRNN.from_torch(embedding, cells, readout).to_torch().rnn
    assert_close(readout(rnn(embedding(x))[0]), expected, rtol=1e-6, atol=1e-6)


@kinds
def test_signals_that_go_straight_in(kind: str) -> None:
    rnn, readout = KINDS[kind](3, 6, batch_first=True), nn.Linear(6, 2)
    model = HookedRNN.from_torch(None, rnn, readout)
    x = signals_of(3)
    assert_close(model(x), readout(rnn(x)[0]), rtol=1e-6, atol=1e-6)
    assert torch.equal(model.W_E, torch.eye(3))


def test_the_parameters_are_copies_and_no_random_state_is_touched() -> None:
    embedding, rnn, readout = nn.Embedding(7, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 8)
    before = torch.get_rng_state()
    model = HookedRNN.from_torch(embedding, rnn, readout)
    modules = model.to_torch()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        rnn.weight_ih_l0.zero_()
        modules.readout.weight.zero_()
    assert model.blocks[0].W_ih.abs().min() > 0
    assert model.W_U.abs().min() > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_dtype_come_along(training: bool) -> None:
    rnn = nn.GRU(4, 6).double().train(training)
    model = HookedRNN.from_torch(nn.Embedding(7, 4).double(), rnn, nn.Linear(6, 8).double())
    assert (model.training, model.cfg.dtype) == (training, torch.float64)
    assert all(module.training == training for module in model.to_torch())
    assert model.to_torch().rnn.weight_ih_l0.dtype == torch.float64


def parts(**changed: Any) -> tuple[Any, Any, Any]:
    usual = {"embedding": nn.Embedding(7, 4), "rnn": nn.GRU(4, 6), "readout": nn.Linear(6, 8)}
    return tuple({**usual, **changed}.values())  # type: ignore[return-value]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rnn": nn.GRU(4, 6, bidirectional=True)}, "bidirectional=True: expected False"),
        ({"rnn": nn.LSTM(4, 6, proj_size=3)}, "proj_size=3: expected 0"),
        ({"rnn": nn.GRU(4, 6, num_layers=2, dropout=0.25)}, "dropout=0.25 and is in training: expected dropout=0"),
        ({"embedding": nn.Embedding(7, 4, max_norm=1.0)}, "max_norm=1.0: expected None"),
        ({"embedding": nn.Embedding(7, 5)}, "output has width 5: expected 4, the rnn's input_size"),
        ({"embedding": nn.Linear(2, 5)}, "output has width 5: expected 4, the rnn's input_size"),
        ({"embedding": nn.Conv1d(1, 4, 1)}, "the embedding is Conv1d: expected nn.Embedding, nn.Linear, or None"),
        ({"readout": nn.Linear(5, 8)}, "takes width 5: expected 6, the rnn's hidden_size"),
        ({"readout": nn.Identity()}, "the readout is Identity: expected nn.Linear"),
        ({"rnn": nn.Conv1d(4, 6, 1)}, "is Conv1d: expected nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell"),
        ({"rnn": []}, "the recurrent part is empty"),
        ({"rnn": [nn.GRUCell(4, 6), nn.LSTMCell(6, 6)]}, "a LSTMCell above a GRUCell: expected cells of one kind"),
        ({"rnn": [nn.GRUCell(4, 6), nn.GRUCell(5, 6)]}, "has input_size=5: expected 6"),
        ({"rnn": [nn.GRUCell(4, 6), nn.GRUCell(6, 6, bias=False)]}, "has bias=False: expected True"),
        ({"rnn": [nn.RNNCell(4, 6), nn.RNNCell(6, 6, nonlinearity="relu")]}, "has nonlinearity=relu: expected tanh"),
        ({"rnn": nn.GRU(4, 6).double()}, "expected one dtype and one device"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    HookedRNN.from_torch(*parts())  # the control
    with pytest.raises(ConversionError) as caught:
        HookedRNN.from_torch(*parts(**changed))
    assert said in str(caught.value)


def test_dropout_does_nothing_in_eval_mode() -> None:
    embedding, rnn, readout = parts(rnn=nn.GRU(4, 6, num_layers=2, dropout=0.25, batch_first=True).eval())
    assert_close(HookedRNN.from_torch(embedding, rnn, readout)(tokens_of()), readout(rnn(embedding(tokens_of()))[0]))


def test_a_cell_that_torch_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HookedRNN(HookedRNNConfig(d_vocab=7, d_vocab_out=8, d_model=4, d_hidden=6))
    monkeypatch.setattr("hooked_rnn.torch_modules.RECURRENT_MODULES", {"gru": nn.GRU})
    with pytest.raises(ConversionError, match="no module for the cell 'rnn': expected 'gru'"):
        model.to_torch()
