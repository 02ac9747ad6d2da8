"""Frequencies removed: from weights, from activations by an ordinary hook; and the matched controls."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from analyses.fourier import FourierBasis
from analyses.grid import check_grid, grid_functions
from analyses.removal import check_mode, hook_at, replacement

SUBSETS_OF = 6
"""Every subset of this many strongest key frequencies is removed."""
CONTROL_DRAWS = 20
"""Seeded draws of each control."""


def frequency_hook(
    p: int,
    frequencies: Iterable[int],
    family: str = "sum",
    positions: int | Sequence[int] = -1,
    mode: str = "zero",
    seed: int = 0,
    operands: int = 2,
) -> Callable[..., Tensor | None]:
    """An ordinary hook function that removes frequencies from an activation on the full grid of pairs.

    It goes wherever TransformerLens takes a hook: ``model.run_with_hooks(task.tokens, fwd_hooks=[
    ("blocks.0.hook_hidden", frequency_hook(113, [14, 35]))])``. The batch must be all p*p pairs in
    canonical order (a major), since the functions that it projects out are functions of the pair.

    With the family's orthonormal functions as the rows of B, the part of x is P x = B^T B x, and what goes on is
    x - P x + R, where R is, by mode,

    - "zero": 0;
    - "mean": the mean of P x over the grid. Every function of every family has mean zero there, so this is "zero":
      what is constant stays in either, since it is in no family;
    - "resample": P x of the pairs in another order, one seeded permutation of the grid.

    Args:
        p: the modulus.
        frequencies: what to remove, each in 1..p//2.
        family: "a", "b", "sum", "difference" or "block", or a pattern such as "a+b-c"; see :mod:`analyses.grid`.
        positions: where to remove it; see :func:`analyses.removal.hook_at`.
        mode: what takes its place: "zero", "mean" or "resample".
        seed: of the permutation of "resample".
        operands: of how many numbers the grid is; all p**operands sequences in canonical order then.

    Returns:
        The hook, of an activation [pairs, pos, d], [pairs, pos, head, d_head] or [pairs, d].

    Raises:
        ModulusError, FrequencyError, FamilyError: at once, for what does not exist.
        GridError: from the hook, for a batch that is not the p*p pairs.
        ActivationError: from the hook, for an activation of another kind, such as an attention pattern.
        FamilyError: from the hook, for a position that the activation does not have.
    """
    check_mode(mode)
    functions = grid_functions(p, frequencies, family, operands)

    def remove(x: Float[Tensor, "pairs d"]) -> Float[Tensor, "pairs d"]:
        check_grid(x, p, operands)
        B = functions.to(x)
        part = B.T @ (B @ x)
        return x - part if mode == "zero" else x - part + replacement(part, mode, seed)

    return hook_at(positions, remove)


@dataclass(frozen=True)
class Spread:
    """Accuracy over several removals of the same number of frequencies."""

    mean: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(sum(values) / len(values), min(values), max(values))


Curve = dict[int, Spread]
"""Accuracy by the number of frequencies removed."""


class Part(NamedTuple):
    """Part of a tensor [n, d], as a product whose inner axis may be short: what is linear in it is cheap."""

    left: Float[Tensor, "n r"]
    right: Float[Tensor, "r d"]

    def tensor(self) -> Float[Tensor, "n d"]:
        """The product."""
        return self.left @ self.right


@dataclass(frozen=True)
class Site:
    """Somewhere that frequencies can be removed from: a tensor whose rows are indexed by what a frequency is of."""

    value: Float[Tensor, "n d"]
    """Rows: tokens (W_E), pairs (hidden), answers (W_U); columns: features."""
    part: Callable[[Sequence[int]], Part]
    """The part of the value that these frequencies account for."""
    accuracy_less: Callable[[Part], float]
    """Accuracy on all pairs with a part subtracted from the value."""
    accuracy_without: Callable[[Sequence[int]], float]
    """Accuracy on all pairs without these frequencies; at the hidden state, by the hook."""


@dataclass(frozen=True)
class Ablation:
    """What removing frequencies at one site does, and what the two controls do."""

    key: Curve
    """Every subset of the strongest key frequencies, and all of them."""
    subsets: dict[tuple[int, ...], float]
    """The same, subset by subset."""
    random: Curve
    """As many random frequencies that are no key frequencies."""
    equal_power: Curve
    """As much power as a random subset of the key frequencies holds, in random directions of feature space."""


@torch.no_grad()
def ablate(
    site: Site,
    by_share: list[int],
    p: int,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
    draws: int = CONTROL_DRAWS,
) -> Ablation:
    """Remove every subset of the strongest key frequencies, all of them, and the matched controls.

    Args:
        site: where to remove them.
        by_share: the key frequencies, the strongest first.
        p: the modulus.
        seed: seed of the controls' draws.
        tick: called after each number of frequencies removed, for a progress bar.
        draws: of each control, for each number of frequencies.
    """
    strongest = by_share[:SUBSETS_OF]
    others = [k for k in FourierBasis(p).frequencies if k not in by_share]
    generator = torch.Generator().manual_seed(seed)
    subsets: dict[tuple[int, ...], float] = {}
    random, equal_power = Curve(), Curve()
    equal = _EqualPower(site, by_share)
    for n in numbers_removed(by_share):
        candidates = [tuple(by_share)] if n > len(strongest) else list(itertools.combinations(strongest, n))
        subsets |= {subset: site.accuracy_without(subset) for subset in candidates}
        if n <= len(others):
            drawn = [_draw(others, n, generator) for _ in range(draws)]
            random[n] = Spread.of([site.accuracy_less(site.part(ks)) for ks in drawn])
        equal_power[n] = Spread.of([equal.accuracy_without(candidates, generator) for _ in range(draws)])
        tick()
    key = {n: Spread.of([a for s, a in subsets.items() if len(s) == n]) for n in numbers_removed(by_share)}
    return Ablation(key, subsets, random, equal_power)


def numbers_removed(by_share: list[int]) -> list[int]:
    """How many frequencies are removed at a time: 1 to 6 (or as many as there are), and all of them."""
    few = list(range(1, min(SUBSETS_OF, len(by_share)) + 1))
    return few + [len(by_share)] * (len(by_share) > SUBSETS_OF)


def equal_power_part(
    x: Float[Tensor, "n d"], power: float, generator: Generator, gram: Float[Tensor, "d d"] | None = None
) -> Part:
    """The part of x to be removed, in random directions of feature space, for x to have so much less power.

    The columns' means stay. Directions are taken from a random orthonormal basis of the d features, each
    wholly, until the power is gone; of the last one as much as is missing (to lose the share s of its
    power, a coordinate is multiplied by sqrt(1 - s)).

    Args:
        x: rows are observations, columns features.
        power: by how much the sum of squares sinks; at most to that of the means.
        generator: what the basis is drawn from.
        gram: ``centered.T @ centered`` of x less its columns' means, where it is known already.
    """
    centered = x - x.mean(0)
    gram = centered.T @ centered if gram is None else gram
    directions = torch.linalg.qr(torch.randn(gram.shape, generator=generator, dtype=x.dtype).to(x.device)).Q
    powers = (directions * (gram @ directions)).sum(0).clamp(min=0)
    missing = (power - powers.cumsum(0) + powers).clamp(min=0)  # before each direction
    share = torch.where(powers > 0, (missing / powers).clamp(max=1), 0)
    return Part(centered, (directions * (1 - (1 - share).sqrt())) @ directions.T)


class _EqualPower:
    """Removal of as much power as key frequencies hold, with what all draws at a site share."""

    def __init__(self, site: Site, by_share: list[int]) -> None:
        self.site = site
        centered = site.value - site.value.mean(0)
        self.gram = centered.T @ centered
        self.power = {k: float(site.part([k]).tensor().square().sum()) for k in by_share}  # frequencies are orthogonal

    def accuracy_without(self, subsets: list[tuple[int, ...]], generator: Generator) -> float:
        """Accuracy without the power of one of the subsets, drawn at random."""
        subset = subsets[int(torch.randint(len(subsets), (), generator=generator))]
        power = sum(self.power[k] for k in subset)
        return self.site.accuracy_less(equal_power_part(self.site.value, power, generator, self.gram))


def _draw(frequencies: list[int], n: int, generator: Generator) -> list[int]:
    return [frequencies[i] for i in torch.randperm(len(frequencies), generator=generator)[:n]]
