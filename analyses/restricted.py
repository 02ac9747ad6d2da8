"""Restricted and excluded loss: with the key frequencies alone, and with all but them.

The literature has several operators by these two names. Here each has one of its own, and is held to its formula. With
L(a, b, c) the logits of all pairs, P the projection of functions of the pair on the families said, over all key
frequencies, and mean the mean over all pairs:

- "sum": families cos, sin w_k(a+b). Restricted: mean L + P L; excluded: L - P L. Nanda et al. 2023 (arXiv 2301.05217),
  section 5.1, as their released notebook computes it ("trig loss" there, with its bias correction, and "full excluded
  loss"); they state the excluded loss on the training pairs. The text's "20 terms" for five frequencies may also be read
  as the family "block", which holds the difference a-b too.
- "polynomial": families a, b and block, eight functions for a frequency: every polynomial of degree 2 in cos and sin of
  w_k a and w_k b that has no constant. Restricted: mean L + P L, the "113 * 113 - 40" ablation of Nanda et al. 2023,
  section 4.4; excluded: L - P L. (Of k operands every pattern of one frequency, and "sum" is cos, sin w_k(a+b+...).)
- "trace": with M the logits less their mean over the answers, u_k(a, b, c) = cos(w_k(a+b-c)) scaled to norm 1 in R^(p*p*p),
  which is the trace of the frequency's representation at a + b - c: restricted sum_k <M, u_k> u_k; excluded what that
  leaves of M. The logit-level metric in the code of Chughtai et al. 2023 (arXiv 2302.03025), which says there that it is not
  used in the paper; on the training pairs where excluded, on all where restricted.
- "activation": P of "sum" on an activation x at a hook point, and the model run on from there by an ordinary hook.
  Restricted: mean x + P x; excluded: x - P x. At the MLP's activations the excluded loss is that of TransformerLens'
  Grokking demo (training pairs), and the restricted loss, with the mean, is so but for the residual stream beside the MLP:
  a hook leaves it as it is, the demo puts its mean (test pairs). Without the mean, and at the last hidden layer of a model
  that has nothing beside it, both are those of the code of Chughtai et al. 2023 (restricted: all pairs, excluded: training).

Where the logits are affine in the activation, "activation" with the mean is "sum" exactly. The projection of "sum" and
"trace" needs all pairs whatever pairs the loss is then of, so a loss on the training pairs depends on the others too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from analyses.adder import Adder
from analyses.errors import FamilyError, GridError
from analyses.fourier import FourierBasis
from analyses.grid import all_numbers, check_logits, keep_on_grid, letters, sign_patterns
from analyses.removal import hook_at
from hooked_rnn.errors import choices

LOGIT_VARIANTS = ("sum", "polynomial")
"""The variants that project the logits as functions of the pair."""
VARIANTS = (*LOGIT_VARIANTS, "trace", "activation")


@dataclass(frozen=True)
class Losses:
    """Mean cross entropy in nats."""

    train: float | None
    """On the pairs that were trained on; None where they are not known."""
    test: float | None
    """On the others."""
    all: float
    """On all pairs."""


@dataclass(frozen=True)
class ProgressMeasures:
    """The losses with a model's key frequencies alone, and without them, by one variant."""

    variant: str
    frequencies: list[int]
    plain: Losses
    """Of the model as it is."""
    restricted: Losses
    """With the key frequencies alone."""
    excluded: Losses
    """With all but the key frequencies."""


def progress_measures(
    adder: Adder,
    frequencies: Iterable[int],
    variant: str = "sum",
    train: Int[Tensor, " n_train"] | None = None,
    hook_name: str | None = None,
    position: int = -1,
    keep_mean: bool = True,
) -> ProgressMeasures:
    """Restricted and excluded loss, on the training pairs, the others, and all.

    Args:
        adder: the model and its task, of any number of operands.
        frequencies: the key frequencies, each in 1..p//2.
        variant: "sum", "polynomial", "trace" or "activation"; see the module.
        train: indices of the pairs that were trained on, as ``task.split(...)[0]``.
        hook_name: where, for "activation", and only there.
        position: of that activation.
        keep_mean: whether "activation" keeps the mean in what is restricted.

    Raises:
        FamilyError: an unknown variant, or one without the hook point that it needs.
        FrequencyError: a frequency outside 1..p//2.
        GridError: training pairs beyond those of the task.
        ActivationError: an activation that the hook cannot edit.
    """
    if variant not in VARIANTS:
        raise FamilyError(f"unknown variant {variant!r}: expected {choices(VARIANTS)}")
    if (hook_name is not None) != (variant == "activation"):
        raise FamilyError(
            f"variant {variant!r} with hook_name={hook_name!r}: expected a hook point for 'activation', and none otherwise"
        )
    frequencies = FourierBasis(adder.p).check(frequencies)
    plain = adder.logits()
    if hook_name is not None:
        restricted, excluded = _by_hook(adder, frequencies, hook_name, position, keep_mean)
    elif variant == "trace":
        restricted, excluded = restricted_to_trace(plain, adder.p, frequencies, adder.task.operands)
    else:
        restricted, excluded = restricted_to_families(plain, adder.p, frequencies, variant, adder.task.operands)
    chosen = _split(adder, train)
    losses = (_losses(logits, adder.labels, chosen) for logits in (plain, restricted, excluded))
    return ProgressMeasures(variant, frequencies, *losses)


def restricted_to_families(
    logits: Float[Tensor, "pairs p"], p: int, frequencies: Iterable[int], variant: str = "sum", operands: int = 2
) -> tuple[Float[Tensor, "pairs p"], Float[Tensor, "pairs p"]]:
    """Restricted and excluded logits of variant "sum" or "polynomial". Their sum is the logits and their mean.

    Raises:
        GridError: not the p**operands rows, or not p answers.
        FamilyError: another variant.
    """
    check_logits(logits, p, operands)
    if variant not in LOGIT_VARIANTS:
        raise FamilyError(f"variant {variant!r}: expected {choices(LOGIT_VARIANTS)}")
    frequencies = FourierBasis(p).check(frequencies)
    if variant == "sum":
        kept = keep_on_grid(logits, p, frequencies, "sum", operands)
    else:
        families = [*letters(operands), "block"] if operands == 2 else list(sign_patterns(operands))
        kept = torch.stack([_kept(logits, p, frequencies, family, operands) for family in families]).sum(0)
    return logits.mean(0) + kept, logits - kept


def _kept(logits: Tensor, p: int, frequencies: list[int], family: str, operands: int) -> Tensor:
    """For even p and p/2 signs make no difference, and the pattern of plus signs has it already."""
    distinct = [k for k in frequencies if 2 * k != p or "-" not in family]
    return keep_on_grid(logits, p, distinct, family, operands)


def restricted_to_trace(
    logits: Float[Tensor, "pairs p"], p: int, frequencies: Iterable[int], operands: int = 2
) -> tuple[Float[Tensor, "pairs p"], Float[Tensor, "pairs p"]]:
    """Restricted and excluded logits of variant "trace". Their sum is the logits less their mean over the answers.

    Raises:
        GridError: not the p**operands rows, or not p answers.
    """
    check_logits(logits, p, operands)
    centered = logits - logits.mean(1, keepdim=True)
    argument = (all_numbers(p, operands).sum(1, keepdim=True) - torch.arange(p)) % p
    kept = torch.zeros_like(centered)
    for k in FourierBasis(p).check(frequencies):
        cosine = FourierBasis(p).functions([k], like=logits)[0]
        u = cosine[argument.to(logits.device)] / p ** (
            operands / 2
        )  # each value of the argument occurs p**operands times
        kept += (centered * u).sum() * u
    return kept, centered - kept


def _by_hook(
    adder: Adder, frequencies: list[int], hook_name: str, position: int, keep_mean: bool
) -> tuple[Tensor, Tensor]:
    operands = adder.task.operands

    def restrict(x: Float[Tensor, "pairs d"]) -> Float[Tensor, "pairs d"]:
        return keep_on_grid(x, adder.p, frequencies, "sum", operands) + (x.mean(0) if keep_mean else 0)

    def exclude(x: Float[Tensor, "pairs d"]) -> Float[Tensor, "pairs d"]:
        return x - keep_on_grid(x, adder.p, frequencies, "sum", operands)

    restricted, excluded = (adder.logits([(hook_name, hook_at(position, edit))]) for edit in (restrict, exclude))
    return restricted, excluded


def _split(adder: Adder, train: Tensor | None) -> Tensor | None:
    """Which pairs were trained on, as booleans."""
    if train is None:
        return None
    n = len(adder.labels)
    if len(train) and not 0 <= int(train.min()) <= int(train.max()) < n:
        raise GridError(
            f"training pairs from {int(train.min())} to {int(train.max())}: expected indices from 0 to {n - 1}"
        )
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[train.cpu()] = True
    return chosen.to(adder.labels.device)


def _losses(logits: Tensor, labels: Tensor, train: Tensor | None) -> Losses:
    """In float64: of a loss near zero float32 keeps few digits."""
    each = functional.cross_entropy(logits.double(), labels, reduction="none")
    if train is None:
        return Losses(None, None, float(each.mean()))
    trained, other = (float(each[which].mean()) if which.any() else None for which in (train, ~train))
    return Losses(trained, other, float(each.mean()))
