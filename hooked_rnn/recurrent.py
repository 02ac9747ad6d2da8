"""The loop over time that every recurrent layer is, around one step of its cell."""

from typing import ClassVar

from jaxtyping import Float
from torch import Generator, Tensor, nn

from hooked_rnn.affine import affine, draw, undrawn
from hooked_rnn.config import CELLS, HookedRNNConfig
from hooked_rnn.errors import HookError
from hooked_rnn.hook_points import IsolatedHookPoint, StepHookPoint
from hooked_rnn.points import HookedPoints, Points, StepPoints

State = tuple[Float[Tensor, "_batch d_hidden"], ...]
"""What a layer hands to its next step: the hidden state, and whatever else its cell keeps."""


class RecurrentBlock(nn.Module):
    """One recurrent layer. A cell is a subclass that says what one step makes of its inputs.

    ``class MyBlock(RecurrentBlock, cell="mine")`` can be asked for as ``HookedRNNConfig(cell="mine")``. It
    sets the four class variables below and writes :meth:`step`.
    """

    n_gates: ClassVar[int] = 1
    """How many vectors of width d_hidden the input and the recurrent weights make."""
    state_names: ClassVar[tuple[str, ...]] = ("hidden",)
    """What the state is made of. The hidden state, first, is what goes upward and through W_hh."""
    carried: ClassVar[str | None] = None
    """Which part of the state the next step also uses as it is, past W_hh; it passes ``hook_carry``."""
    hook_out_is_single_residual_stream: ClassVar[bool] = True
    """What ``transformer_lens.tools.analysis.logit_readout`` asks: ``hook_out`` is one [batch, pos, d], in the top
    layer the one that is unembedded. (It is no residual stream: what needs one, the cache refuses.)"""
    step_kinds: ClassVar[tuple[str, ...]] = ()
    """What :meth:`step` hands to hook points, in firing order, without "hook_": the hidden state last."""

    def __init_subclass__(cls, cell: str | None = None) -> None:
        super().__init_subclass__()
        if cell is not None:
            CELLS[cell] = cls

    def __init__(self, cfg: HookedRNNConfig, d_in: int) -> None:
        super().__init__()
        d_preact = self.n_gates * cfg.d_hidden
        self.W_ih = undrawn(d_in, d_preact)
        self.W_hh = undrawn(cfg.d_hidden, d_preact)
        self.b_ih = undrawn(d_preact) if cfg.bias else None
        self.b_hh = undrawn(d_preact) if cfg.bias else None
        self.init_scale = cfg.init_scale

        self.hook_input = IsolatedHookPoint()  # [batch, pos, n_gates*d_hidden]
        # hook_recurrent is [batch, pos, n_gates*d_hidden], the others are [batch, pos, d_hidden]
        for kind in self.loop_kinds():
            setattr(self, f"hook_{kind}", StepHookPoint())
        self.hook_out = IsolatedHookPoint()  # [batch, pos, d_hidden]
        self.set_step_points(0)

    @classmethod
    def loop_kinds(cls) -> tuple[str, ...]:
        """All kinds of activation inside the loop, in firing order, without "hook_"."""
        return ("recurrent", *(["carry"] if cls.carried else []), *cls.step_kinds)

    def set_step_points(self, n_steps: int) -> None:
        """Have points of their own for the first steps, which fire once: ``steps.{t}.hook_*``; 0 for none."""
        if n_steps:
            self.steps = nn.ModuleList(StepPoints(self.loop_kinds()) for _ in range(n_steps)).train(self.training)
        elif hasattr(self, "steps"):
            del self.steps

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw the weights anew, with standard deviation init_scale/sqrt(fan in); biases are zero."""
        draw(self.W_ih, self.init_scale, generator)
        draw(self.W_hh, self.init_scale, generator)
        for bias in (self.b_ih, self.b_hh):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self, x: Float[Tensor, "batch pos d_in"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch pos d_hidden"], State]:
        """What the layer sends upward, and its state after the last step.

        Args:
            x: the layer's input at every position.
            state: the state before the first step, each part [batch, d_hidden]; None for zeros.
        """
        inputs = self.hook_input(self.project(x))
        points = self._points(inputs.shape[1])
        hidden, state = self._loop(inputs, self.zero_state(inputs) if state is None else state, points)
        return self.hook_out(points.stacked("hidden", hidden)), state

    def step(
        self,
        x_t: Float[Tensor, "batch d_preact"],
        recurrent: Float[Tensor, "batch d_preact"],
        carry: Float[Tensor, "batch d_hidden"] | None,
        at: Points,
    ) -> State:
        """One step of the cell: the new state.

        Args:
            x_t: x_t W_ih + b_ih, not to be written over.
            recurrent: h_{t-1} W_hh + b_hh, not to be written over where ``at.keeps("recurrent")``.
            carry: the ``carried`` part of the state before this step, where there is one; not to be written over.
            at: the hook points: what goes on of an activation is ``at(kind, activation)``.
        """
        raise NotImplementedError

    def project(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_preact"]:
        """x_t W_ih + b_ih."""
        return affine(x, self.W_ih, self.b_ih)

    def recur(
        self, h: Float[Tensor, "batch d_hidden"], out: Float[Tensor, "batch d_preact"] | None = None
    ) -> Float[Tensor, "batch d_preact"]:
        """h_{t-1} W_hh + b_hh."""
        return affine(h, self.W_hh, self.b_hh, out)

    def zero_state(self, like: Tensor) -> State:
        """The state before the first step: one row, as it is the same for the whole batch, so multiplied once."""
        return tuple(like.new_zeros(1, self.W_hh.shape[0]) for _ in self.state_names)

    def carry_of(self, state: State) -> Tensor | None:
        """The part of the state that is carried over as it is."""
        return state[self.state_names.index(self.carried)] if self.carried else None

    def _loop(
        self, inputs: Float[Tensor, "batch pos d_preact"], state: State, at: Points
    ) -> tuple[list[Tensor], State]:
        """The hidden state at every step, and the last state."""
        batch = len(inputs)
        hidden = []
        for t, x_t in enumerate(inputs.unbind(1)):
            at.begin(t)
            recurrent = at("recurrent", self._recurrent(state[0], x_t, at))
            carry = self.carry_of(state)
            if carry is not None:
                carry = at("carry", carry if len(carry) == batch else carry.expand(batch, -1))
            state = self.step(x_t, recurrent, carry, at)
            hidden.append(state[0])
        return hidden, state

    def _recurrent(self, h: Tensor, x_t: Tensor, at: Points) -> Tensor:
        if len(h) == len(x_t):
            return self.recur(h, at.room("recurrent", x_t))
        at.keep("recurrent")
        return self.recur(h).expand(len(x_t), -1)

    def _points(self, n_steps: int) -> Points:
        """One pass of the points inside the loop; where none has a hook, one that does nothing at all."""
        points = {kind: getattr(self, f"hook_{kind}") for kind in self.loop_kinds()}
        steps = list(self.steps) if hasattr(self, "steps") else []
        for step in steps[n_steps:]:
            for point in step.children():
                if point.may_edit:
                    raise HookError(
                        f"{point.name} has a hook: expected none beyond the {n_steps} positions of the sequence"
                    )
        in_steps = (point for step in steps[:n_steps] for point in step.children())
        if not any(point.is_hooked for point in (*points.values(), *in_steps)):
            return Points()
        return HookedPoints(points, steps, n_steps)  # all steps: a hook may add one to a later step
