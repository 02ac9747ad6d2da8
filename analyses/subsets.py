"""Every subset of some frequencies removed at one site: the whole lattice, and what it says of each frequency.

A lattice is a tensor of 2^K values; bit i of an index says whether frequency i is removed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional

from analyses.ablation import Curve, Spread, frequency_hook
from analyses.adder import Adder
from analyses.errors import FamilyError, FrequencyError
from analyses.fourier import FourierBasis, check_distinct
from analyses.grid import keep_on_grid
from analyses.removal import check_mode, replacement
from analyses.weight_removal import removed_from_weight, weight_without
from hooked_rnn import HookedRNN
from hooked_rnn.errors import choices
from hooked_rnn.prefixes import PrefixTrie, has_hooks, last_logits

MOST_FREQUENCIES = 20
"""Beyond these, a million subsets, nobody waits for the end."""
VALUES = ("accuracy", "loss")


@dataclass(frozen=True)
class Lattice:
    """Accuracy and loss without each subset of some frequencies, at one site."""

    site: str
    frequencies: tuple[int, ...]
    """Bit i of an index is frequency i of these."""
    accuracy: Float[Tensor, " subsets"]
    """On all pairs, without the frequencies of the index; in float64."""
    loss: Float[Tensor, " subsets"]
    """Mean cross entropy in nats on all pairs, likewise."""
    control: "Lattice | None" = None
    """The same of as many random frequencies, drawn from all others; None where there are not as many, or not asked for."""

    def index(self, removed: Iterable[int]) -> int:
        """Where the subset without these frequencies is.

        Raises:
            FrequencyError: one that is not of the lattice, or that stands twice.
        """
        removed = check_distinct(removed)
        if not set(removed) <= set(self.frequencies):
            raise FrequencyError(f"frequencies {removed}: expected some of {list(self.frequencies)}")
        return sum(1 << i for i, k in enumerate(self.frequencies) if k in removed)

    def values(self, value: str = "accuracy") -> Float[Tensor, " subsets"]:
        """Accuracy or loss by subset."""
        if value not in VALUES:
            raise FamilyError(f"unknown value {value!r}: expected {choices(VALUES)}")
        return self.accuracy if value == "accuracy" else self.loss

    def by_number_removed(self, value: str = "accuracy") -> Curve:
        """Mean, least and largest over the subsets of each size."""
        values, sizes = self.values(value), _sizes(len(self.frequencies))
        return {n: Spread.of(values[sizes == n].tolist()) for n in range(len(self.frequencies) + 1)}

    def shapley(self, value: str = "accuracy") -> dict[int, float]:
        """What removing each frequency does to the value, averaged over all orders of removing them one by one.

        They sum to the value without all less the value without none; see :func:`shapley_values`.
        """
        return dict(zip(self.frequencies, shapley_values(self.values(value)).tolist(), strict=True))


def shapley_values(values: Float[Tensor, " subsets"]) -> Float[Tensor, " players"]:
    """Shapley values of a game of K players, from its 2^K values: exact.

    phi_i = sum over S without i of |S|! (K - |S| - 1)! / K! (v(S and i) - v(S)) (Shapley 1953).
    """
    n_players = max(len(values).bit_length() - 1, 0)
    if len(values) != 1 << n_players:
        raise FamilyError(f"{len(values)} values: expected one for each subset, a power of two")
    subsets, sizes = torch.arange(len(values)), _sizes(n_players)
    total = factorial(n_players)
    weights = [factorial(n) * factorial(n_players - n - 1) / total for n in range(n_players)] + [0.0]
    values = values.double().cpu()
    weight = torch.tensor(weights, dtype=torch.float64)[sizes]
    each = []
    for i in range(n_players):
        without = subsets[subsets >> i & 1 == 0]
        each.append((weight[without] * (values[without | 1 << i] - values[without])).sum())
    return torch.stack(each) if each else values.new_zeros(0)


@torch.no_grad()
def removal_lattice(
    adder: Adder,
    frequencies: Iterable[int],
    site: str = "W_E",
    family: str = "sum",
    positions: int | Sequence[int] = -1,
    mode: str = "zero",
    seed: int = 0,
    control: bool = True,
    not_in_control: Iterable[int] = (),
    tick: Callable[[], object] = lambda: None,
) -> Lattice:
    """Remove every subset of some frequencies, on all pairs.

    Where the logits are a sum over frequencies, at "W_U" and "logits", a subset costs a subtraction. At "W_E" of a
    HookedRNN without hooks it is a pass over shared prefixes; of any other model, and at a hook point, a plain forward.
    Memory is that of K + 1 tensors of logits at most, however many subsets there are.

    Args:
        adder: the model and its task.
        frequencies: K of them, each in 1..p//2, at most 20.
        site: "W_E", "W_U" (see :mod:`analyses.weight_removal`; the logits must be x W_U + b_U, which hooks of the user's
            own past W_U would change), "logits" or the name of a hook point (see
            :func:`analyses.ablation.frequency_hook`).
        family: of what is removed at the logits or a hook point.
        positions: where, at a hook point.
        mode: what takes the part's place: "zero", "mean" or "resample".
        seed: of the control's draw, and of "resample".
        control: whether to do the same to as many random other frequencies.
        not_in_control: which others the control must not draw either, such as the key frequencies left out.
        tick: called after each subset, for a progress bar.

    Raises:
        FrequencyError: a frequency outside 1..p//2, or too many.
        FamilyError: an unknown family or mode.
        GridError: at the logits or a hook point, a task whose sequences are not the p*p pairs.
        UnknownHookPointError: (of a HookedRNN) a site that is no hook point.
    """
    chosen = tuple(FourierBasis(adder.p).check(frequencies))
    if len(chosen) > MOST_FREQUENCIES:
        raise FrequencyError(
            f"{len(chosen)} frequencies have 2^{len(chosen)} subsets: expected at most {MOST_FREQUENCIES}"
        )
    check_mode(mode)
    labels = adder.labels
    accuracy, loss = (torch.zeros(1 << len(chosen), dtype=torch.float64) for _ in VALUES)
    for subset, logits in _logits_of_all(adder, chosen, site, family, positions, mode, seed):
        accuracy[subset] = (logits.argmax(-1) == labels).double().mean()
        loss[subset] = functional.cross_entropy(logits, labels)
        tick()
    others = [k for k in FourierBasis(adder.p).frequencies if k not in {*chosen, *not_in_control}]
    matched = None
    if control and len(others) >= len(chosen):
        order = torch.randperm(len(others), generator=Generator().manual_seed(seed))[: len(chosen)]
        drawn = [others[i] for i in order]
        matched = removal_lattice(adder, drawn, site, family, positions, mode, seed, control=False, tick=tick)
    return Lattice(site, chosen, accuracy, loss, matched)


Subsets = Iterator[tuple[int, Float[Tensor, "pairs p"]]]
"""Every subset, and the logits without it; a tensor is good until the next is asked for."""


def _logits_of_all(
    adder: Adder,
    frequencies: tuple[int, ...],
    site: str,
    family: str,
    positions: int | Sequence[int],
    mode: str,
    seed: int,
) -> Subsets:
    if site == "W_U":
        logits = adder.logits()
        return sums(logits, _parts_at_W_U(adder, logits, frequencies, mode, seed))
    if site == "logits":
        logits = adder.logits()
        kept = (keep_on_grid(logits, adder.p, [k], family, adder.task.operands) for k in frequencies)
        return sums(logits, [part - replacement(part, mode, seed) for part in kept])
    return _one_by_one(frequencies, _without(adder, site, family, positions, mode, seed))


def _parts_at_W_U(
    adder: Adder, logits: Float[Tensor, "pairs p"], frequencies: Sequence[int], mode: str, seed: int
) -> list[Float[Tensor, "pairs p"]]:
    """What the logits x W_U + b_U lose with each frequency of W_U: x W_U multiplied by what W_U is multiplied by."""
    bias = getattr(adder.model, "b_U", None)
    linear = logits if bias is None else logits - bias.detach()[: adder.p]
    kept = (FourierBasis(adder.p).keep(linear, [k], dim=1) for k in frequencies)
    return [(part - replacement(part.T, mode, seed).T).contiguous() for part in kept]


def sums(whole: Float[Tensor, "pairs p"], parts: Sequence[Float[Tensor, "pairs p"]]) -> Subsets:
    """The whole less every subset of the parts; one subtraction each, and no rounding gathers on the way.

    A walk of the binary tree whose level i says whether part i stays. The whole and K tensors is all that it holds.
    """
    rooms = [torch.empty_like(whole) for _ in parts]

    def walk(level: int, logits: Tensor, subset: int) -> Subsets:
        if level == len(parts):
            yield subset, logits
            return
        yield from walk(level + 1, logits, subset)
        yield from walk(level + 1, torch.sub(logits, parts[level], out=rooms[level]), subset | 1 << level)

    return walk(0, whole, 0)


def _one_by_one(frequencies: Sequence[int], without: Callable[[list[int]], Tensor]) -> Subsets:
    for subset in range(1 << len(frequencies)):
        yield subset, without([k for i, k in enumerate(frequencies) if subset >> i & 1])


def _without(
    adder: Adder, site: str, family: str, positions: int | Sequence[int], mode: str, seed: int
) -> Callable[[list[int]], Float[Tensor, "pairs p"]]:
    """The logits without some frequencies, by a forward pass."""
    model: Any = adder.model
    if site != "W_E":
        operands = adder.task.operands
        return lambda removed: adder.logits(
            [(site, frequency_hook(adder.p, removed, family, positions, mode, seed, operands))]
        )
    if isinstance(model, HookedRNN) and not has_hooks(model) and adder.position in (-1, adder.task.n_ctx - 1):
        trie = PrefixTrie.of(adder.tokens)
        return lambda removed: last_logits(
            model, trie, W_E=weight_without(adder, "W_E", removed, mode=mode, seed=seed)
        )[:, : adder.p]

    def by_forward(removed: list[int]) -> Tensor:
        with removed_from_weight(adder, "W_E", removed, mode=mode, seed=seed):
            return adder.logits()

    return by_forward


def _sizes(n: int) -> Int[Tensor, " subsets"]:
    """How many are in each subset."""
    subsets = torch.arange(1 << n)
    return sum((subsets >> i & 1 for i in range(n)), start=torch.zeros_like(subsets))
