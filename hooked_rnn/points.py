"""The hook points inside the loop over time, as a cell's step meets them.

Two views of one activation, which compose in this order: first the step's own point
(``steps.{t}.hook_*``, [batch, d], fires once), then the point of the whole sequence (``hook_*``,
[batch, pos, d], called at each step). So what the second is shown has all edits of the first in it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_rnn.hook_points import IsolatedHookPoint, StepHookPoint


class OneStepHookPoint(IsolatedHookPoint):
    """The point of one step: fires once in a forward pass, on [batch, d].

    The loop has later steps yet, so it goes on with a copy of what a hook made: a hook may write in its tensor
    at a later step, as one does that adds up steps in the first of them.
    """

    def _once(self, hook_id: int, function: Callable[..., Any], x: Tensor) -> Tensor:
        left = super()._once(hook_id, function, x)
        return left if left is x else left.clone()


class StepPoints(nn.Module):
    """The points of one step of one layer."""

    def __init__(self, kinds: Iterable[str]) -> None:
        super().__init__()
        for kind in kinds:
            setattr(self, f"hook_{kind}", OneStepHookPoint())

    def point(self, kind: str) -> OneStepHookPoint:
        return cast(OneStepHookPoint, getattr(self, f"hook_{kind}"))


class Points:
    """One forward pass of a layer's points inside the loop; here, of a layer that has no hooks there."""

    def __init__(self) -> None:
        self.kept: set[str] = set()

    def begin(self, step: int) -> None:
        """Go on to the next step; they come in time order."""
        self.kept.clear()

    def __call__(self, kind: str, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """What goes on of this step's activation of a kind."""
        return x

    def room(self, kind: str, like: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"] | None:
        """Where to write what will arrive at a point in this step, to save a copy; None for wherever."""
        return None

    def last_room(self, kind: str, like: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"] | None:
        """The same, but at the last step alone.

        For what goes into another product at the next step: in its last bits and its speed, a product
        depends on its argument's strides.
        """
        return None

    def keep(self, kind: str) -> None:
        """Have nobody write over this step's activation of a kind: others use its memory."""
        self.kept.add(kind)

    def keeps(self, kind: str) -> bool:
        """Whether what left a point in this step must not be written over, as somebody may have kept it."""
        return kind in self.kept

    def stacked(self, kind: str, left: list[Tensor]) -> Float[Tensor, "batch pos d"]:
        """All that left a point, of every step in time order, not to be written over either."""
        return torch.stack(left, dim=1)


class HookedPoints(Points):
    """One forward pass of a layer's points inside the loop."""

    def __init__(self, points: dict[str, StepHookPoint], steps: Sequence[nn.Module], n_steps: int) -> None:
        super().__init__()
        self.points = points
        self.loops = {kind: point.loop(n_steps) for kind, point in points.items()}
        self.steps = cast(Sequence[StepPoints], steps)
        self.n_steps = n_steps
        self.now = 0

    def begin(self, step: int) -> None:
        super().begin(step)
        self.now = step

    def __call__(self, kind: str, x: Tensor) -> Tensor:
        if self._is_step_hooked(kind):
            self.keep(kind)  # before the hooks run, as one may keep its tensor and then remove itself
            x = self.steps[self.now].point(kind)(x)
        return self.loops[kind](x, self.now)

    def room(self, kind: str, like: Tensor) -> Tensor | None:
        if self._is_step_hooked(kind):
            return None
        room = self.loops[kind].room(like, self.now)
        if room is not None:
            self.keep(kind)
        return room

    def last_room(self, kind: str, like: Tensor) -> Tensor | None:
        return self.room(kind, like) if self.now == self.n_steps - 1 else None

    def keeps(self, kind: str) -> bool:
        return super().keeps(kind) or self.points[kind].may_edit

    def stacked(self, kind: str, left: list[Tensor]) -> Tensor:
        return self.loops[kind].stacked(left)

    def _is_step_hooked(self, kind: str) -> bool:
        return self.now < len(self.steps) and self.steps[self.now].point(kind).is_hooked
