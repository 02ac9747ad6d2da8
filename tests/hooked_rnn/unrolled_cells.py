"""Every cell written out by hand, one step after another, in plain torch; and small models of each.

As reference.py, which is the vanilla cell: an edit is a function on the [batch, d] value of one place.
"""

from typing import Any

import pytest
import torch
from reference import Edits, Place, Unrolled, unroll
from torch import Tensor

from hooked_rnn import HookedRNN, HookedRNNConfig

BATCH, STEPS, LAYERS, VOCAB, ANSWERS, D_MODEL, D_HIDDEN = 3, 4, 2, 7, 6, 3, 4

CELLS = {
    "relu": {"cell": "rnn", "act_fn": "relu"},
    "tanh": {"cell": "rnn", "act_fn": "tanh"},
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
}

exact = {"rtol": 0.0, "atol": 1e-12}
every_cell = pytest.mark.parametrize("cell", CELLS)
every_layer = pytest.mark.parametrize("layer", range(LAYERS))


def integers(*shape: int, high: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOKENS = integers(BATCH, STEPS)
OTHERS = integers(BATCH, STEPS, seed=2)
LABELS = integers(BATCH, STEPS, high=ANSWERS, seed=1)


def make_model(cell: str, **fields: Any) -> HookedRNN:
    """A small network in float64 and eval mode, with biases that are not zero."""
    sizes = {"d_vocab": VOCAB, "d_vocab_out": ANSWERS, "d_model": D_MODEL, "d_hidden": D_HIDDEN, "n_layers": LAYERS}
    cfg = HookedRNNConfig(**{**sizes, **CELLS[cell], "bias": True, "dtype": torch.float64, **fields})
    model = HookedRNN(cfg).eval()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            if ".b_" in name:
                parameter.copy_(normal(*parameter.shape, seed=seed) / 3)
    return model


def loop_kinds(model: HookedRNN) -> tuple[str, ...]:
    return tuple(model.blocks[0].loop_kinds())


def by_hand(model: HookedRNN, tokens: Tensor = TOKENS, edits: Edits | None = None) -> Unrolled:
    """The network that ``model`` should be, unrolled."""
    weights = dict(model.named_parameters())
    if model.cfg.cell == "rnn":
        return unroll(weights, tokens, n_layers=model.cfg.n_layers, act_fn=model.cfg.act_fn, edits=edits)
    values: dict[Place, Tensor] = {}

    def visit(kind: str, layer: int | None, t: int, value: Tensor) -> Tensor:
        value = value.clone()
        if edits is not None and (kind, layer, t) in edits:
            value = edits[kind, layer, t](value).clone()
        values[kind, layer, t] = value
        return value

    def gru(layer: int, t: int, x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        h = visit("carry", layer, t, h)
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), r.chunk(3, 1)
        reset = visit("reset", layer, t, visit("reset_preact", layer, t, x_r + h_r).sigmoid())
        update = visit("update", layer, t, visit("update_preact", layer, t, x_z + h_z).sigmoid())
        candidate = visit("candidate", layer, t, visit("candidate_preact", layer, t, x_n + reset * h_n).tanh())
        return visit("hidden", layer, t, (1 - update) * candidate + update * h), c

    def lstm(layer: int, t: int, x: Tensor, r: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        c = visit("carry", layer, t, c)
        i, f, g, o = (x + r).chunk(4, 1)
        i = visit("input_gate", layer, t, visit("input_gate_preact", layer, t, i).sigmoid())
        f = visit("forget_gate", layer, t, visit("forget_gate_preact", layer, t, f).sigmoid())
        g = visit("candidate", layer, t, visit("candidate_preact", layer, t, g).tanh())
        o = visit("output_gate", layer, t, visit("output_gate_preact", layer, t, o).sigmoid())
        c = visit("cell", layer, t, f * c + i * g)
        return visit("hidden", layer, t, o * c.tanh()), c

    step = {"gru": gru, "lstm": lstm}[model.cfg.cell]
    zeros = torch.zeros(len(tokens), model.cfg.d_hidden, dtype=torch.float64)
    h, c, logits = [zeros] * model.cfg.n_layers, [zeros] * model.cfg.n_layers, []
    for t in range(tokens.shape[1]):
        x = visit("embed", None, t, weights["embed.W_E"][tokens[:, t]])
        for layer in range(model.cfg.n_layers):
            W_ih, W_hh, b_ih, b_hh = (weights[f"blocks.{layer}.{name}"] for name in ("W_ih", "W_hh", "b_ih", "b_hh"))
            x = visit("input", layer, t, x @ W_ih + b_ih)
            recurrent = visit("recurrent", layer, t, h[layer] @ W_hh + b_hh)
            h[layer], c[layer] = step(layer, t, x, recurrent, h[layer], c[layer])
            x = visit("out", layer, t, h[layer])
        logits.append(visit("logits", None, t, x @ weights["unembed.W_U"] + weights["unembed.b_U"]))
    return Unrolled(values, torch.stack(logits, 1), torch.stack(h))


def score(logits: Tensor) -> Tensor:
    """Some number that depends on every position."""
    weights = torch.arange(1.0, 1.0 + logits[0].numel(), dtype=logits.dtype).view_as(logits[0])
    return (logits * weights.sin()).sum() / len(logits)
