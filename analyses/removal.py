"""What it is to remove a part of an activation: what takes its place, and the ordinary hook that does it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.errors import ActivationError, FamilyError
from hooked_rnn.errors import choices

MODES = ("zero", "mean", "resample")
"""What takes the place of a removed part: nothing, its mean over the rows, or the part of another row."""
WITHOUT_POSITIONS = ("hook_pattern", "hook_attn_scores")
"""Ends of the names of points whose axes after the batch are heads and pairs of positions."""

Edit = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]
"""What becomes of an activation at one position, a row for each sequence of the batch."""


def replacement(part: Float[Tensor, "n d"], mode: str, seed: int = 0) -> Float[Tensor, "n d"]:
    """What takes the place of a part.

    Args:
        part: what is removed, a row for each sequence (or token, or answer).
        mode: "zero"; "mean": the mean of the part over the rows; "resample": the part of another row, by one
            permutation of the rows drawn from the seed, the same for every part with so many rows.

    Raises:
        FamilyError: an unknown mode.
    """
    check_mode(mode)
    if mode == "zero":
        return torch.zeros_like(part)
    if mode == "mean":
        return part.mean(0).expand_as(part)
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    return part.index_select(0, order.to(part.device))


def check_mode(mode: str) -> None:
    """Raise FamilyError for an unknown mode."""
    if mode not in MODES:
        raise FamilyError(f"unknown mode {mode!r}: expected {choices(MODES)}")


def hook_at(positions: int | Sequence[int], edit: Edit) -> Callable[..., Tensor | None]:
    """An ordinary hook function that edits an activation at some positions.

    Args:
        positions: where; negative ones count from the end. An activation [batch, d], of a step point or of a
            model without positions, has one place only, which is edited whatever they are (unless there are none).
        edit: what becomes of it there. Heads and the like are side by side in its d columns.

    Returns:
        The hook, of an activation [batch, pos, d], [batch, pos, head, d_head] or [batch, d].

    Raises:
        ActivationError: from the hook, for an activation of another kind.
        FamilyError: from the hook, for a position that the activation does not have.
    """
    wanted = [positions] if isinstance(positions, int) else list(positions)

    def edit_positions(activation: Tensor, hook: Any) -> Tensor | None:
        name = str(hook.name)
        if activation.ndim not in (2, 3, 4) or name.endswith(WITHOUT_POSITIONS):
            raise ActivationError(
                f"an activation of shape {list(activation.shape)} at {name}: "
                "expected [batch, pos, d], [batch, pos, head, d_head] or [batch, d]"
            )
        if activation.ndim == 2:
            return edit(activation) if wanted else None
        n_positions = activation.shape[1]
        for position in wanted:
            if not -n_positions <= position < n_positions:
                raise FamilyError(f"position {position}: expected {-n_positions} to {n_positions - 1} at {name}")
        here = {position % n_positions for position in wanted}
        step = getattr(hook, "step", None)
        if step is not None:
            here &= {step}  # inside the time loop only this position counts
        if not here:
            return None
        edited = activation.clone()
        for position in here:
            x = activation[:, position]
            edited[:, position] = edit(x.flatten(1)).view(x.shape)
        return edited

    return edit_positions
