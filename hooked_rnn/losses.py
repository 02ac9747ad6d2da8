"""The mean cross entropy of a HookedRNN's logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hooked_rnn.errors import LabelError
from hooked_rnn.transforms import values_are_hidden

IGNORED = -100
"""Label of a position that is left out of the loss."""


def checked_labels(
    labels: object, shape: tuple[int, int], device: torch.device, n_kept: int, d_vocab_out: int
) -> Int[Tensor, " batch"] | Int[Tensor, "batch pos"]:
    """The labels as int64, if they are integers, [batch] or [batch, pos], that fit the logits.

    Args:
        labels: what the caller passed.
        shape: batch and number of positions of the sequences that they are labels of.
        device: where the sequences are.
        n_kept: how many of the last positions have logits.
        d_vocab_out: number of classes.

    Raises:
        LabelError: they are missing, or do not fit.
    """
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        raise LabelError(f"labels are {getattr(labels, 'dtype', type(labels).__name__)}: expected an integer tensor")
    batch, n_positions = shape
    if labels.shape not in ((batch,), (batch, n_positions)):
        raise LabelError(
            f"labels have shape {list(labels.shape)}: expected [{batch}] (of the last position) or [{batch}, {n_positions}]"
        )
    if labels.device != device:
        raise LabelError(f"labels are on {labels.device}: expected {device}, where the input is")
    labels = labels.long()
    if values_are_hidden(labels):
        return labels
    kept = labels[..., -n_kept:] if labels.ndim == 2 else labels
    counted = kept[kept != IGNORED]
    if counted.numel() == 0:
        raise LabelError(
            f"every label is {IGNORED}, which is ignored: expected at least one from 0 to {d_vocab_out - 1}"
        )
    low, high = (int(x) for x in counted.aminmax())
    if low < 0 or high >= d_vocab_out:
        raise LabelError(
            f"label {low if low < 0 else high}: expected 0 to {d_vocab_out - 1}, or {IGNORED} to ignore a position"
        )
    return labels


def cross_entropy(
    logits: Float[Tensor, "batch pos d_vocab_out"],
    labels: Int[Tensor, " batch"] | Int[Tensor, "batch all_pos"],
    per_token: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, " batch"] | Float[Tensor, "batch pos"]:
    """Cross entropy in nats, as a mean over the labels that count or for each of them.

    Args:
        logits: for all positions, or for the last ones.
        labels: [batch] of the last position, or [batch, pos] of every position; -100 is ignored.
        per_token: keep the losses apart, in the labels' shape; an ignored label has loss 0.
    """
    if labels.ndim == 1:
        logits = logits[:, -1]
    else:
        labels = labels[:, -logits.shape[1] :]
    reduction = "none" if per_token else "mean"
    losses = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction=reduction
    )
    return losses.view(labels.shape) if per_token else losses
