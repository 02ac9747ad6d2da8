"""Figures of which frequency a singular vector, a weight, an embedding or a neuron belongs to."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter
from torch import Tensor

from analyses.claims import C2_ENERGY, Claim
from analyses.neurons import Neurons
from analyses.plots.style import (
    BLUE,
    GREEN,
    GREY,
    MOST_PANELS,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    colours_of,
    headline,
    hues,
    panels_of,
    plain,
    symbol,
)  # fmt: skip
from analyses.singular_pairs import SingularPairs
from analyses.spectra import KeyFrequencies


def low_rank_figure(claim: Claim, cumulative: Mapping[str, Float[Tensor, " rank"]], components: int) -> Figure:
    """C2: the energy that the first singular components of each matrix hold."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    colours = itertools.cycle((BLUE, ORANGE, RED, GREEN, PURPLE, "#56B4E9", "#B8A900", "black"))
    styles = itertools.cycle(["-"] * 8 + ["--"] * 8)
    for colour, style, (name, held) in zip(colours, styles, cumulative.items(), strict=False):
        first = [0.0, *held[:64].tolist()]
        axes.plot(range(len(first)), first, style, color=colour, linewidth=2, label=symbol(name))
    axes.axhspan(C2_ENERGY, 0.955, color=GREY, alpha=0.18, linewidth=0, label="published range")
    if components:
        axes.axvline(components, color=GREY, linestyle="--", linewidth=1.2)
        axes.annotate(f" 2K = {components}", (components, 0.03), color=GREY)
    axes.set(xlabel="first n singular components", ylabel="share of the energy", xlim=(0, 64), ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False, loc="lower right", ncols=1 + (len(cumulative) > 8))
    plain(axes)
    headline(figure, claim, "two components per key frequency hold most of the energy")
    return figure


def circles_figure(claim: Claim, circles: Mapping[int, Float[Tensor, "p axes"]], key: KeyFrequencies) -> Figure:
    """C5: the tokens in the plane of each key frequency; the colour is where cos and sin would put them."""
    shown = [k for k in key.by_share if circles[k].shape[1] == 2][:MOST_PANELS]
    figure, panels = panels_of(len(shown), claim, "the numbers lie on a circle for each key frequency")
    colours = colours_of(key.by_share)
    for axes, k in zip(panels, shown, strict=True):
        points = circles[k]
        p = len(points)
        turn = k * torch.arange(p) % p / p
        around = torch.linspace(0, 2 * math.pi, 200)
        mean = float(points.norm(dim=1).mean())
        axes.plot(mean * around.cos(), mean * around.sin(), color="0.75", linewidth=1, zorder=1)
        axes.scatter(points[:, 0], points[:, 1], c=hues(turn), s=22, zorder=2)
        radius = 1.3 * float(points.norm(dim=1).max())
        inverse = pow(k, -1, p) if math.gcd(k, p) == 1 else 1
        for number in sorted({round(p * i / 8) * inverse % p for i in range(8)}):  # spread around the circle
            direction = points[number] / points[number].norm().clamp(min=1e-9) * 1.15 * float(points.norm(dim=1).max())
            axes.annotate(str(number), direction.tolist(), ha="center", va="center", fontsize=7, color="0.35")
        axes.set(xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal", xticks=[0], yticks=[0])
        axes.set_xticklabels([])
        axes.set_yticklabels([])
        axes.set_title(f"k = {k}", color=colours[k], fontweight="bold")
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    if panels:
        figure.supxlabel("cosine axis; written: some of the numbers a; colour: the angle $2\\pi k a/p$", fontsize=10)
        figure.supylabel("sine axis", fontsize=10)
    return figure


def singular_pairs_figure(claim: Claim, weights: Mapping[str, SingularPairs], key: KeyFrequencies) -> Figure:
    """C4: the singular vectors of every weight, each in the colour of its frequency."""
    rows = -(-len(weights) // 2)
    figure = Figure(figsize=(11, 1.0 + 2.5 * max(rows, 1)), layout="constrained")
    headline(figure, claim, "each singular vector is made of one frequency, and they come in pairs")
    panels = list(figure.subplots(max(rows, 1), 2, squeeze=False).flat)
    for axes in panels[len(weights) :]:
        axes.set_visible(False)
    colours = colours_of(key.by_share)
    for axes, (name, found) in zip(panels, weights.items(), strict=False):
        _pairs(axes, found, colours)
        axes.set_title(f"{symbol(name)}: mean purity {found.mean_purity:.1%}", fontsize=10, loc="left")
    figure.supxlabel(
        "singular vector; solid: the part at its frequency, pale: the rest; written: frequency and purity, of the pair or of a vector that stands apart from its partner",
        fontsize=9,
    )
    figure.supylabel("share of the energy", fontsize=10)
    return figure


def _pairs(axes: Axes, found: SingularPairs, colours: Mapping[int, str]) -> None:
    last, heights = 0, [0.0]
    for pair in found.pairs:
        colour = colours.get(pair.frequency, GREY)
        each = pair.energy / len(pair.components)
        heights.append(each)
        for component, purity in zip(pair.components, pair.purities, strict=True):
            axes.bar(component + 1, each, color=PALE, width=0.8)
            axes.bar(component + 1, each * purity, color=colour, width=0.8)
            last = max(last, component + 1)
        if pair.frequency not in colours:
            continue
        apart = len(pair.components) == 2 and not pair.consecutive
        labels = (
            zip(pair.components, pair.purities, strict=True)
            if apart
            else [(sum(pair.components) / len(pair.components), pair.purity)]
        )
        for place, purity in labels:
            where: Any = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{pair.frequency}\n{purity:.0%}", (place + 1, each), **where, color=colour, linespacing=0.95)
    axes.set_xlim(0.3, last + 0.7)
    axes.xaxis.set_major_locator(FixedLocator(range(1, last + 1, 1 + (last > 16))))
    axes.set_ylim(0, 1.35 * max(heights) or 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    plain(axes)


def energy_figure(weights: Mapping[str, SingularPairs], key: KeyFrequencies) -> Figure:
    """The energy of every weight by frequency, which needs no singular vectors."""
    figure = Figure(figsize=(9, 1.3 + 0.42 * len(weights)), layout="constrained")
    figure.suptitle("Energy of every weight by frequency of the numbers")
    axes, names = figure.subplots(), [symbol(name) for name in weights]
    left = torch.zeros(len(weights), dtype=torch.float64)
    energies = torch.stack([found.energy_by_frequency.cpu().double() for found in weights.values()])
    parts = [(f"k = {k}", energies[:, k], colour) for k, colour in colours_of(key.by_share).items()]
    others = [k for k in range(1, energies.shape[1]) if k not in key.frequencies]
    parts += [("other k", energies[:, others].sum(1), PALE), ("constant", energies[:, 0], "0.45")]
    for label, width, colour in parts:
        axes.barh(names, width.numpy(), left=left.numpy(), color=colour, label=label, height=0.7)
        left = left + width
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the energy")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plain(axes)
    return figure


def neurons_figure(neurons: Neurons, key: KeyFrequencies) -> Figure:
    """Neurons by frequency: how much it explains of each, at which phases, and which frequencies share neurons."""
    figure = Figure(figsize=(12, 4.3), layout="constrained")
    explained, phases, sharing = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    figure.suptitle(
        f"{neurons.share_above:.1%} of {len(neurons.best)} neurons have more than {neurons.threshold:.0%} of their variance at one frequency"
    )
    colours = colours_of(key.by_share)
    _explained(explained, neurons, colours)
    for k, colour in colours.items():
        own = (neurons.frequency == k) & (neurons.best > neurons.threshold)
        phases.plot(neurons.phases("a")[own], neurons.phases("b")[own], "o", color=colour, markersize=3.5, alpha=0.8)
    ticks = ([-math.pi, 0, math.pi], ["$-\\pi$", "0", "$\\pi$"])
    phases.set(title="phases, of those above", xlabel="of its wave of a", ylabel="of its wave of b", aspect="equal")
    phases.set_xlim(-math.pi, math.pi)
    phases.set_ylim(-math.pi, math.pi)
    phases.set_xticks(*ticks)
    phases.set_yticks(*ticks)
    shown = sorted(key.frequencies)[:12]
    if not shown:
        sharing.set_axis_off()
        sharing.text(0.5, 0.5, "no key frequency", ha="center", va="center", color=GREY, transform=sharing.transAxes)
        return figure
    overlap = neurons.overlap(shown).cpu()
    sharing.imshow(overlap.numpy(), cmap="Greys", vmin=0, vmax=1)
    for i, j in itertools.product(range(len(shown)), repeat=2):
        value = float(overlap[i, j])
        if len(shown) <= 8:
            sharing.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black"
            )
    sharing.set_xticks(range(len(shown)), list(map(str, shown)))
    sharing.set_yticks(range(len(shown)), list(map(str, shown)))
    for label, k in zip([*sharing.get_xticklabels(), *sharing.get_yticklabels()], [*shown, *shown], strict=True):
        label.set_color(colours[k])
    sharing.set(title="sharing of neurons (cosine)", xlabel="frequency", ylabel="frequency")
    sharing.tick_params(length=0)
    return figure


def _explained(axes: Axes, neurons: Neurons, colours: Mapping[int, str]) -> None:
    """A dot for each neuron, cluster by cluster."""
    start = 0
    frequency, best = neurons.frequency.cpu(), neurons.best.cpu()
    groups = [(k, frequency == k) for k in sorted(colours)]
    others = (
        torch.stack([frequency != k for k in colours]).all(0)
        if colours
        else torch.ones_like(frequency, dtype=torch.bool)
    )
    for k, chosen in [*groups, (0, others)]:
        values = best[chosen].sort(descending=True).values
        if len(values) == 0:
            continue
        colour = colours.get(k, GREY)
        axes.plot(range(start, start + len(values)), values, "o", color=colour, markersize=3)
        text = f"{k}\n{len(values)}" if k else f"other\n{len(values)}"
        axes.annotate(text, (start + len(values) / 2, 1.03), ha="center", fontsize=8, color=colour, linespacing=0.95)
        start += len(values) + 2
    axes.axhline(neurons.threshold, color=GREY, linestyle=":", linewidth=1.2)
    axes.set(
        title="variance explained; above: frequency, neurons",
        xlabel="neurons, by frequency",
        ylim=(0, 1.17),
        xlim=(-2, start + 1),
    )
    axes.set_yticks([0, 0.25, 0.5, 0.75, neurons.threshold, 1.0])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xticks([])
    plain(axes)
