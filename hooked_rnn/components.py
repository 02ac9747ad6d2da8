"""The parts of a HookedRNN: embedding, recurrent layer, unembedding. Row vectors times weights."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional

from hooked_rnn.config import HookedRNNConfig
from hooked_rnn.hook_points import IsolatedHookPoint, StepHookPoint, StepLoop

ACTIVATION_FUNCTIONS = {"relu": torch.relu, "tanh": torch.tanh}
IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_}
INTO: dict[str, Callable[..., Tensor]] = {"relu": partial(torch.clamp_min, min=0), "tanh": torch.tanh}
"""Those that take ``out``: torch.relu, which is clamp_min, does not."""


def _relu_backward(gradient: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(gradient, out, 0.0, grad_input=gradient)


def _tanh_backward(gradient: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward.grad_input(gradient, out, grad_input=gradient)


BACKWARD_IN_PLACE = {"relu": _relu_backward, "tanh": _tanh_backward}
"""From the gradient by a nonlinearity's output, and the output, to that by its argument, written over the first."""


class Embed(nn.Module):
    """Token ids to vectors."""

    def __init__(self, cfg: HookedRNNConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))
        self.init_scale = cfg.init_scale

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in)."""
        _draw(self.W_E, self.init_scale, generator)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return functional.embedding(tokens, self.W_E)


class RNNBlock(nn.Module):
    """One vanilla recurrent layer: h_t = act(x_t W_ih + b_ih + h_{t-1} W_hh + b_hh)."""

    def __init__(self, cfg: HookedRNNConfig, d_in: int) -> None:
        super().__init__()
        d_preact = cfg.n_gates * cfg.d_hidden
        self.W_ih = nn.Parameter(torch.empty(d_in, d_preact))
        self.W_hh = nn.Parameter(torch.empty(cfg.d_hidden, d_preact))
        self.b_ih = nn.Parameter(torch.empty(d_preact)) if cfg.bias else None
        self.b_hh = nn.Parameter(torch.empty(d_preact)) if cfg.bias else None
        self.init_scale = cfg.init_scale
        self.act = ACTIVATION_FUNCTIONS[cfg.act_fn]
        self.act_in_place = IN_PLACE[cfg.act_fn]
        self.act_into = INTO[cfg.act_fn]
        self.act_backward_in_place = BACKWARD_IN_PLACE[cfg.act_fn]

        self.hook_input = IsolatedHookPoint()  # [batch, pos, n_gates*d_hidden]
        self.hook_recurrent = StepHookPoint()  # [batch, pos, n_gates*d_hidden]
        self.hook_preact = StepHookPoint()  # [batch, pos, d_hidden]
        self.hook_hidden = StepHookPoint()  # [batch, pos, d_hidden]
        self.hook_out = IsolatedHookPoint()  # [batch, pos, d_hidden]

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in); biases are zero."""
        _draw(self.W_ih, self.init_scale, generator)
        _draw(self.W_hh, self.init_scale, generator)
        for bias in (self.b_ih, self.b_hh):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self, x: Float[Tensor, "batch pos d_in"], state: Float[Tensor, "batch d_hidden"] | None = None
    ) -> tuple[Float[Tensor, "batch pos d_hidden"], Float[Tensor, "batch d_hidden"]]:
        """What the layer sends upward, and its state after the last step.

        Args:
            x: the layer's input at every position.
            state: the state before the first step; None for zeros.
        """
        inputs = self.hook_input(self.project(x))
        if state is None:
            # The zero state is the same for the whole batch, so it is multiplied once and broadcast.
            state = inputs.new_zeros(1, self.W_hh.shape[0])
        hidden, state = self._steps(inputs, state)
        return self.hook_out(hidden), state

    def project(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_preact"]:
        """x_t W_ih + b_ih."""
        return _affine(x, self.W_ih, self.b_ih)

    def recur(
        self, h: Float[Tensor, "batch d_hidden"], out: Float[Tensor, "batch d_preact"] | None = None
    ) -> Float[Tensor, "batch d_preact"]:
        """h_{t-1} W_hh + b_hh."""
        return _affine(h, self.W_hh, self.b_hh, out)

    def _steps(
        self, inputs: Float[Tensor, "batch pos d_preact"], h: Float[Tensor, "_ d_hidden"]
    ) -> tuple[Float[Tensor, "batch pos d_hidden"], Float[Tensor, "batch d_hidden"]]:
        """The loop over time: the hidden state at every step, and the last.

        Sums and nonlinearity are written over their argument, which saves a new tensor for each, unless a
        hook may have kept it, or where a hook that only looks would copy them. The bits are the same
        either way.
        """
        batch, n_steps, _ = inputs.shape
        hook_recurrent, hook_preact, hook_hidden = self._loops(n_steps)
        hidden = []
        for t, x_t in enumerate(inputs.unbind(1)):
            is_whole = len(h) == batch  # not one row, of the zero state, for the whole batch
            room = hook_recurrent.room(x_t, t) if is_whole else None
            recurrent = self.recur(h, room)
            recurrent = hook_recurrent(recurrent if is_whole else recurrent.expand(batch, -1), t)
            kept = room is not None or not is_whole or self.hook_recurrent.may_edit
            room = hook_preact.room(x_t, t)
            over = not kept and room is None
            preact = hook_preact(recurrent.add_(x_t) if over else torch.add(x_t, recurrent, out=room), t)
            kept = room is not None or self.hook_preact.may_edit
            # A product depends on its argument's strides, in its last bits and its speed: earlier ones are copied.
            room = hook_hidden.room(preact, t) if t == n_steps - 1 else None
            h = hook_hidden(self._activated(preact, kept, room), t)
            hidden.append(h)
        return hook_hidden.stacked(hidden), h

    def _activated(self, preact: Tensor, kept: bool, room: Tensor | None) -> Tensor:
        if room is not None:
            return self.act_into(preact, out=room)
        return self.act(preact) if kept else self.act_in_place(preact)

    def _loops(self, n_steps: int) -> list[StepLoop]:
        """One pass of the three points inside the loop; where none has a hook, one that does nothing at all."""
        points = (self.hook_recurrent, self.hook_preact, self.hook_hidden)
        if not any(point.is_hooked for point in points):
            return [StepLoop()] * 3
        return [point.loop(n_steps) for point in points]


class Unembed(nn.Module):
    """Hidden states to logits."""

    def __init__(self, cfg: HookedRNNConfig) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(cfg.d_hidden, cfg.d_vocab_out))
        self.b_U = nn.Parameter(torch.empty(cfg.d_vocab_out)) if cfg.unembed_bias else None
        self.init_scale = cfg.init_scale

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in); the bias is zero."""
        _draw(self.W_U, self.init_scale, generator)
        if self.b_U is not None:
            nn.init.zeros_(self.b_U)

    def forward(self, x: Float[Tensor, "*batch d_hidden"]) -> Float[Tensor, "*batch d_vocab_out"]:
        return _affine(x, self.W_U, self.b_U)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.matmul(x, weight, out=out)
    return torch.add(x @ weight, bias, out=out)


def _draw(weight: Tensor, scale: float, generator: Generator | None) -> None:
    with torch.no_grad():
        weight.normal_(std=scale * weight.shape[0] ** -0.5, generator=generator)
