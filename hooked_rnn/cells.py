"""The cells: what one step of a recurrent layer makes of its input and its state."""

from typing import cast

import torch
from torch import Tensor

from hooked_rnn.activations import ACTIVATION_FUNCTIONS, BACKWARD_IN_PLACE, IN_PLACE, INTO
from hooked_rnn.config import CELLS, HookedRNNConfig
from hooked_rnn.points import Points
from hooked_rnn.recurrent import RecurrentBlock, State


def make_block(cfg: HookedRNNConfig, d_in: int) -> RecurrentBlock:
    """A layer with the configuration's cell, for inputs of width ``d_in``."""
    return cast(RecurrentBlock, CELLS[cfg.cell](cfg, d_in))


class RNNBlock(RecurrentBlock, cell="rnn"):
    """The vanilla cell: h_t = act(x_t W_ih + b_ih + h_{t-1} W_hh + b_hh)."""

    step_kinds = ("preact", "hidden")

    def __init__(self, cfg: HookedRNNConfig, d_in: int) -> None:
        super().__init__(cfg, d_in)
        self.act = ACTIVATION_FUNCTIONS[cfg.act_fn]
        self.act_in_place = IN_PLACE[cfg.act_fn]
        self.act_into = INTO[cfg.act_fn]
        self.act_backward_in_place = BACKWARD_IN_PLACE[cfg.act_fn]

    def step(self, x_t: Tensor, recurrent: Tensor, carry: Tensor | None, at: Points) -> State:
        """Sums and nonlinearity are written over their argument, which saves a new tensor for each, where none keeps it.

        The bits are the same either way.
        """
        room = at.room("preact", x_t)
        over = room is None and not at.keeps("recurrent")
        preact = at("preact", recurrent.add_(x_t) if over else torch.add(x_t, recurrent, out=room))
        return (at("hidden", self._activated(preact, at)),)

    def _activated(self, preact: Tensor, at: Points) -> Tensor:
        kept = at.keeps("preact")  # before more room is asked for
        room = at.last_room("hidden", preact)
        if room is not None:
            return self.act_into(preact, out=room)
        return self.act(preact) if kept else self.act_in_place(preact)


class GRUBlock(RecurrentBlock, cell="gru"):
    """The gated recurrent unit of Cho et al. 2014, as torch.nn.GRU computes it.

    With the input's and the recurrent part x and h of each gate, in the order reset, update, candidate::

        r = sigmoid(x_r + h_r)    z = sigmoid(x_z + h_z)    n = tanh(x_n + r * h_n)    h_t = (1 - z) * n + z * h_{t-1}

    The last h_{t-1} is what passes ``hook_carry``.
    """

    n_gates = 3
    carried = "hidden"
    step_kinds = ("reset_preact", "reset", "update_preact", "update", "candidate_preact", "candidate", "hidden")

    def step(self, x_t: Tensor, recurrent: Tensor, carry: Tensor | None, at: Points) -> State:
        assert carry is not None
        d = carry.shape[1]
        reset_preact, update_preact = (x_t[:, : 2 * d] + recurrent[:, : 2 * d]).chunk(2, dim=1)
        reset = at("reset", torch.sigmoid(at("reset_preact", reset_preact)))
        update = at("update", torch.sigmoid(at("update_preact", update_preact)))
        candidate_preact = at("candidate_preact", torch.addcmul(x_t[:, 2 * d :], reset, recurrent[:, 2 * d :]))
        candidate = at("candidate", torch.tanh(candidate_preact))
        return (at("hidden", torch.lerp(candidate, carry, update)),)


class LSTMBlock(RecurrentBlock, cell="lstm"):
    """The long short-term memory of Hochreiter and Schmidhuber 1997 with forget gates, as torch.nn.LSTM computes it.

    With the sums of the input's and the recurrent part of each gate, in the order input, forget, candidate, output::

        i, f, o = sigmoid(...)    g = tanh(...)    c_t = f * c_{t-1} + i * g    h_t = o * tanh(c_t)

    The c_{t-1} is what passes ``hook_carry``.
    """

    n_gates = 4
    state_names = ("hidden", "cell")
    carried = "cell"
    step_kinds = (
        "input_gate_preact",
        "input_gate",
        "forget_gate_preact",
        "forget_gate",
        "candidate_preact",
        "candidate",
        "output_gate_preact",
        "output_gate",
        "cell",
        "hidden",
    )

    def step(self, x_t: Tensor, recurrent: Tensor, carry: Tensor | None, at: Points) -> State:
        assert carry is not None
        i_preact, f_preact, g_preact, o_preact = (x_t + recurrent).chunk(4, dim=1)
        i = at("input_gate", torch.sigmoid(at("input_gate_preact", i_preact)))
        f = at("forget_gate", torch.sigmoid(at("forget_gate_preact", f_preact)))
        g = at("candidate", torch.tanh(at("candidate_preact", g_preact)))
        o = at("output_gate", torch.sigmoid(at("output_gate_preact", o_preact)))
        cell = at("cell", torch.addcmul(f * carry, i, g))
        return at("hidden", o * torch.tanh(cell)), cell
