"""Figures of the circuit: what is written at each step, what is read in the end, and whether it is a clock or a pizza."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analyses.attribution import Fit
from analyses.circuit import WAVES, Circuit, LogitFit, Stage
from analyses.claims import Claim
from analyses.clock_pizza import ClockOrPizza
from analyses.plots.style import (
    BLUE,
    FAMILY_COLOURS,
    GREY,
    MOST_PANELS,
    PALE,
    RED,
    colours_of,
    panels_of,
    plain,
    without,
)  # fmt: skip
from analyses.spectra import KeyFrequencies

ORIGINALS = {"gradient symmetricity": (0.33, 0.99), "distance irrelevance": (0.85, 0.17)}
"""The clock's and the pizza's of Zhong et al. 2023."""


def circuit_figure(circuit: Circuit, key: KeyFrequencies) -> Figure:
    """C6 step by step: of what waves each activation is made, and the errors of the closed form."""
    stages = circuit.stages
    width = 0.45 * max(len(circuit.frequencies), 3)
    figure = Figure(figsize=(9.5 + width, 1.7 + 0.47 * len(stages)), layout="constrained")
    figure.suptitle("C6 step by step: what is written where, at the key frequencies")
    if not circuit.frequencies:
        return without(figure, "no key frequency")
    bars, errors = figure.subplots(1, 2, sharey=True, width_ratios=(7, width))
    left = torch.zeros(len(stages))
    for family in WAVES:
        shares = torch.tensor([stage.share(family) for stage in stages])
        bars.barh(
            range(len(stages)),
            shares.numpy(),
            left=left.numpy(),
            color=FAMILY_COLOURS[family],
            label=family,
            height=0.7,
        )
        left = left + shares
    bars.barh(
        range(len(stages)), (1 - left).clamp(min=0).numpy(), left=left.numpy(), color=PALE, label="else", height=0.7
    )
    for y, stage in enumerate(stages):
        bars.annotate(f"{stage.relative_error:.3f}", (1.01, y), va="center", fontsize=9, annotation_clip=False)
    bars.annotate("relative\nerror", (1.01, -0.6), va="bottom", fontsize=8, color="0.35", annotation_clip=False)
    bars.set_yticks(range(len(stages)), [_name(stage) for stage in stages], fontsize=9)
    bars.set(xlim=(0, 1), ylim=(len(stages) - 0.4, -0.6), xlabel="share of the centred variance")
    bars.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside lower center", ncols=7, frameon=False, fontsize=9, columnspacing=1.2)
    plain(bars)
    _errors_by_frequency(errors, stages, circuit.frequencies, key)
    return figure


def _errors_by_frequency(axes: Axes, stages: Sequence[Stage], frequencies: list[int], key: KeyFrequencies) -> None:
    table = torch.tensor([[stage.errors[k] for k in frequencies] for stage in stages])
    axes.imshow(table.numpy(), cmap="Oranges", vmin=0, vmax=max(0.5, float(table.max())), aspect="auto")
    for y, row in enumerate(table.tolist()):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.4 else "black"
            )
    axes.set_xticks(range(len(frequencies)), list(map(str, frequencies)))
    for label, k in zip(axes.get_xticklabels(), frequencies, strict=True):
        label.set_color(colours_of(key.by_share).get(k, "black"))
    axes.set_title("error where written", fontsize=9)
    axes.set_xlabel("frequency")
    axes.tick_params(length=0, labelleft=False)


def _name(stage: Stage) -> str:
    return f"{stage.text}\n{stage.point.removeprefix('blocks.')} at {stage.position}"


def hidden_fit_figure(claim: Claim, fits: Mapping[int, Fit], key: KeyFrequencies) -> Figure:
    """C6: the last hidden state's projection on the cosine of each key frequency, for all pairs, and its fit."""
    shown = key.by_share[:MOST_PANELS]
    figure, panels = panels_of(len(shown), claim, "the last hidden state projects to the cosine of a + b")
    colours = colours_of(key.by_share)
    for axes, k in zip(panels, shown, strict=True):
        fit = fits[k]
        order = fit.argument.argsort()
        scale = float(fit.projections[:, 0].abs().max()) or 1.0
        axes.plot(
            fit.argument, fit.projections[:, 0] / scale, ".", color=BLUE, markersize=1, alpha=0.25, rasterized=True
        )
        axes.plot(fit.argument[order], fit.fitted[order, 0] / scale, color=RED, linewidth=1.5)
        axes.set(ylim=(-1.05, 1.05), yticks=[-1, 0, 1])
        axes.set_title(f"k = {k}: error {fit.relative:.3f}, squared {fit.squared:.4f}", fontsize=10, color=colours[k])
        plain(axes)
    if panels:
        figure.supxlabel("k(a+b) modulo p", fontsize=10)
        figure.supylabel("projection, over its largest (blue); its fit (red)", fontsize=10)
    return figure


def clock_or_pizza_figure(
    clock: LogitFit, pizza: LogitFit, measures: ClockOrPizza | None, key: KeyFrequencies
) -> Figure:
    """The logits by either closed form, frequency by frequency; and the measures, beside those of the original networks."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    figure.suptitle("Clock or pizza")
    fits, axes = figure.subplots(1, 2, width_ratios=(1, 1.25))
    bottom, colours = [0.0, 0.0], colours_of(key.by_share)
    for k in key.by_share:
        height = [clock.shares[k], pizza.shares[k]]
        fits.bar([0, 1], height, bottom=bottom, color=colours[k], width=0.6, label=f"k = {k}")
        bottom = [b + h for b, h in zip(bottom, height, strict=True)]
    for x, total in enumerate(bottom):
        fits.annotate(f"{total:.1%}", (x, total), (0, 3), textcoords="offset points", ha="center")
    fits.set_xticks([0, 1], ["clock", "pizza"])
    fits.set(ylim=(0, 1.1), xlim=(-0.5, 2.2), ylabel="variance of the logits explained", title="logits by closed form")
    fits.yaxis.set_major_formatter(PercentFormatter(1))
    if key.by_share:
        fits.legend(frameon=False, fontsize=8, loc="center right")
    plain(fits)
    if measures is None:
        axes.set_axis_off()
        return figure
    values = {
        "gradient symmetricity": measures.symmetry.symmetricity,
        "the same, operands exchanged": measures.symmetry.exchanged,
        "distance irrelevance": measures.distance_irrelevance,
        "circularity": measures.circularity,
    }
    for y, (name, value) in enumerate(values.items()):
        for original, (label, marker) in zip(ORIGINALS.get(name, ()), (("clock", "o"), ("pizza", "s")), strict=False):
            axes.plot(original, y, marker, color=GREY, markersize=8, markerfacecolor="white")
            axes.annotate(label, (original, y), (0, 8), textcoords="offset points", ha="center", fontsize=8, color=GREY)
        if value is not None:
            axes.plot(value, y, "D", color=BLUE, markersize=8)
            axes.annotate(
                f"{value:.2f}", (value, y), (0, -16), textcoords="offset points", ha="center", fontsize=9, color=BLUE
            )
    lowest = min(0.0, *(value for value in values.values() if value is not None))
    axes.set_yticks(range(len(values)), list(values))
    axes.set(
        ylim=(len(values) - 0.4, -0.6),
        xlim=(lowest - 0.08, 1.08),
        title="measures (blue); hollow: those of Zhong et al. 2023",
    )
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    plain(axes)
    return figure
