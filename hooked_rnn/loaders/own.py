"""The weights of a HookedRNN or a HookedMLP in a file of their own, without the configuration beside it."""

import re

from hooked_rnn.activations import ACTIVATION_FUNCTIONS
from hooked_rnn.baselines.mlp import ACTIVATIONS, HookedMLPConfig
from hooked_rnn.config import CELLS, HookedRNNConfig
from hooked_rnn.errors import WeightsError
from hooked_rnn.loaders.formats import Format, Known, Parts, StateDict, check_activation, check_ndim


def is_hooked_rnn(weights: StateDict) -> bool:
    return {"embed.W_E", "blocks.0.W_ih", "blocks.0.W_hh", "unembed.W_U"} <= weights.keys()


def read_hooked_rnn(weights: StateDict, known: Known, notes: list[str]) -> Parts:
    """The cell follows from the number of gates: one is a vanilla cell's, three a GRU's, four an LSTM's."""
    check_ndim(weights, dict.fromkeys(("embed.W_E", "blocks.0.W_ih", "blocks.0.W_hh", "unembed.W_U"), 2), known.source)
    d_hidden, width = weights["blocks.0.W_hh"].shape
    gates = {CELLS[name].n_gates: name for name in ("rnn", "gru", "lstm")}
    cell = gates.get(width // d_hidden) if width % d_hidden == 0 else None
    if cell is None:
        raise WeightsError(
            f"{known.source}: blocks.0.W_hh has shape {[d_hidden, width]}, expected [d, n * d] with n in {list(gates)}"
        )
    d_vocab, d_model = weights["embed.W_E"].shape
    cfg = HookedRNNConfig(
        d_vocab=d_vocab,
        d_vocab_out=weights["unembed.W_U"].shape[1],
        d_model=d_model,
        d_hidden=d_hidden,
        n_layers=1 + max(int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))),
        cell=cell,
        act_fn=check_activation(known.activation(notes) if cell == "rnn" else "relu", tuple(ACTIVATION_FUNCTIONS)),
        bias="blocks.0.b_ih" in weights,
        unembed_bias="unembed.b_U" in weights,
    )
    return Parts(cfg, weights)


def is_hooked_mlp(weights: StateDict) -> bool:
    return {"embed.W_E", "blocks.0.mlp.W_in", "unembed.W_U"} <= weights.keys() and "blocks.0.attn.W_Q" not in weights


def read_hooked_mlp(weights: StateDict, known: Known, notes: list[str]) -> Parts:
    """Sum or concatenation follows from the width that the hidden layer reads; a shared embedding is one of two operands."""
    check_ndim(weights, dict.fromkeys(("blocks.0.mlp.W_in", "unembed.W_U"), 2), known.source)
    W_E, W_in = weights["embed.W_E"], weights["blocks.0.mlp.W_in"]
    if W_E.ndim not in (2, 3):
        raise WeightsError(f"{known.source}: embed.W_E has shape {list(W_E.shape)}, expected 2 or 3 axes")
    n_ctx = len(W_E) if W_E.ndim == 3 else max(2, len(W_in) // W_E.shape[-1])
    cfg = HookedMLPConfig(
        d_vocab=W_E.shape[-2],
        d_vocab_out=weights["unembed.W_U"].shape[1],
        d_model=W_E.shape[-1],
        d_mlp=W_in.shape[1],
        n_ctx=n_ctx,
        combine="sum" if len(W_in) == W_E.shape[-1] else "concat",
        shared_embedding=W_E.ndim == 2,
        act_fn=check_activation(known.activation(notes), tuple(ACTIVATIONS)),
        bias="blocks.0.mlp.b_in" in weights,
        unembed_bias="unembed.b_U" in weights,
    )
    return Parts(cfg, weights)


HOOKED_RNN = Format(
    "HookedRNN", "embed.W_E, blocks.0.W_ih, blocks.0.W_hh and unembed.W_U", is_hooked_rnn, read_hooked_rnn
)
HOOKED_MLP = Format("HookedMLP", "embed.W_E, blocks.0.mlp.W_in and unembed.W_U", is_hooked_mlp, read_hooked_mlp)
