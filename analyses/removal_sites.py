"""Key frequencies removed at every place of a model that has them, with what may take their place, and a control."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

from analyses.ablation import Spread
from analyses.adder import Adder
from analyses.errors import ActivationError
from analyses.fourier import FourierBasis
from analyses.grid import keep_on_grid
from analyses.places import last_place, read
from analyses.removal import replacement
from analyses.sites import drawn_pairs, logits_from_state, own_logits
from analyses.subspace import LeaveOut, fit_subspace, leave_out, without_subspace
from analyses.weight_removal import removed_from_weight
from hooked_rnn import HookedRNN

BESIDE = ("a", "b", "sum", "difference")
"""Families that a subspace is fitted beside, so that other frequencies do not leak into it."""
CONTROL_DRAWS = 3
"""Seeded draws of as many other frequencies."""


@dataclass(frozen=True)
class Removal:
    """What is left of a model without its key frequencies at one place, by one operator."""

    site: str
    """A weight, "hidden" (the last place before W_U), "hidden, by subspace", or "logits"."""
    mode: str
    """What takes their place: "zero", "mean" or "resample"."""
    one: Spread
    """Accuracy without each of the key frequencies alone: mean, least, most."""
    accuracy: float
    """Accuracy without all of them."""
    loss: float
    """Mean cross entropy in nats without all of them."""
    control: Spread | None
    """Accuracy without as many random other frequencies ("zero" only); None where there are not as many."""


@dataclass(frozen=True)
class SiteRemovals:
    """Removal at every place, and how clean the subspace is that stands for the family "sum" on any batch."""

    removals: list[Removal]
    """Over all pairs, but for the subspace: fitted on half of the pairs, applied to the others, whose accuracy it is."""
    leave_out: LeaveOut | None
    """Of the subspace with all key frequencies; None where half of the pairs are too few to fit one."""


Without = Callable[[Sequence[int], str], Float[Tensor, "n p"]]
"""The logits without some frequencies, in a mode."""


@torch.no_grad()
def removal_sites(adder: Adder, frequencies: Sequence[int], seed: int = 0) -> SiteRemovals:
    """Remove each frequency alone, all of them, and as many random others, at every place.

    - Weights: :func:`analyses.weight_removal.removed_from_weight`; W_ih and W_hh by the directions of what they are given,
      "zero" only. A W_E that is no parameter, as where each position has its own, is left out.
    - "hidden": what :func:`analyses.ablation.frequency_hook` does, family "sum", at :func:`analyses.places.last_place`.
    - "hidden, by subspace": :func:`analyses.subspace.fit_subspace` of the family "sum" on a random half of the pairs.
    - "logits": the same family of the logits.

    On the full grid every family has mean zero, so that "mean" is "zero" there and is not listed twice; a subspace's
    "mean" is the fit's constant.

    Args:
        adder: the model and its task.
        frequencies: K of them, each in 1..p//2, at least one.
        seed: of the control's draws, of "resample" and of the halves.

    Raises:
        FrequencyError: a frequency outside 1..p//2.
        ActivationError: the model has no last place.
    """
    frequencies = FourierBasis(adder.p).check(frequencies)
    others = [k for k in FourierBasis(adder.p).frequencies if k not in frequencies]
    generator = Generator().manual_seed(seed)
    draws = [
        [others[i] for i in torch.randperm(len(others), generator=generator)[: len(frequencies)]]
        for _ in range(CONTROL_DRAWS * (len(others) >= len(frequencies)))
    ]
    removals = [
        _measure(without, site, mode, frequencies, draws if mode == "zero" else [], adder.labels)
        for site, modes, without in _sites(adder, seed)
        for mode in modes
    ]
    try:
        subspace = _by_subspace(adder, frequencies, draws, seed)
    except ActivationError:  # half of so small a grid has fewer pairs than there are functions
        return SiteRemovals(removals, None)
    return SiteRemovals([*removals, *subspace.removals], subspace.leave_out)


def _sites(adder: Adder, seed: int) -> Iterator[tuple[str, tuple[str, ...], Without]]:
    """Each place, the modes that mean something there, and the removal."""

    own = own_logits(adder)

    def weight(name: str, layer: int = 0) -> Without:
        def without(frequencies: Sequence[int], mode: str) -> Tensor:
            with removed_from_weight(adder, name, frequencies, layer, mode, seed):
                return own()

        return without

    if _is_parameter(adder, adder.model.W_E):
        yield "W_E", ("zero", "resample"), weight("W_E")
    for layer in range(adder.model.cfg.n_layers if isinstance(adder.model, HookedRNN) else 0):
        for name in ("W_ih", "W_hh"):
            yield f"{name}[{layer}]" if layer else name, ("zero",), weight(name, layer)
    yield "W_U", ("zero", "resample"), weight("W_U")
    state, plain, every = read(adder, last_place(adder)), adder.logits(), drawn_pairs(adder)
    from_state = logits_from_state(adder, state)

    def hidden(frequencies: Sequence[int], mode: str) -> Tensor:
        part = keep_on_grid(state, adder.p, frequencies, "sum")
        return from_state(state - part + replacement(part, mode, seed), every)

    def logits(frequencies: Sequence[int], mode: str) -> Tensor:
        part = keep_on_grid(plain, adder.p, frequencies, "sum")
        return plain - part + replacement(part, mode, seed)

    yield "hidden", ("zero", "resample"), hidden
    yield "logits", ("zero", "resample"), logits


def _by_subspace(adder: Adder, frequencies: list[int], draws: list[list[int]], seed: int) -> SiteRemovals:
    """Fitted on half of the pairs; the other half's logits, with the subspace removed where the answer is read from."""
    x, p = read(adder, last_place(adder)), adder.p
    from_state = logits_from_state(adder, x)
    order = torch.randperm(len(x), generator=Generator().manual_seed(seed)).to(x.device)
    fitted, held_out = order[: len(x) // 2], order[len(x) // 2 :]
    numbers = adder.tokens[:, :2]
    found = {}

    def without(removed: Sequence[int], mode: str) -> Tensor:
        key = tuple(removed)
        if key not in found:
            found[key] = fit_subspace(x[fitted], numbers[fitted], p, removed, "sum", BESIDE)
        return from_state(without_subspace(x[held_out], found[key], mode, seed), held_out)

    labels, site = adder.labels[held_out], "hidden, by subspace"
    removals = [
        _measure(without, site, mode, frequencies, draws if mode == "zero" else [], labels)
        for mode in ("zero", "mean", "resample")
    ]
    return SiteRemovals(removals, leave_out(x, numbers, p, frequencies, "sum", BESIDE, seed=seed))


def _measure(
    without: Without, site: str, mode: str, frequencies: list[int], draws: list[list[int]], labels: Tensor
) -> Removal:
    def accuracy(logits: Tensor) -> float:
        return float((logits.argmax(-1) == labels).double().mean())

    every = without(frequencies, mode)
    one = [accuracy(without([k], mode)) for k in frequencies] if len(frequencies) > 1 else [accuracy(every)]
    control = [accuracy(without(drawn, mode)) for drawn in draws]
    loss = float(functional.cross_entropy(every.double(), labels))
    return Removal(site, mode, Spread.of(one), accuracy(every), loss, Spread.of(control) if control else None)


def _is_parameter(adder: Adder, weight: Tensor) -> bool:
    return weight.untyped_storage().data_ptr() in {p.untyped_storage().data_ptr() for p in adder.model.parameters()}
