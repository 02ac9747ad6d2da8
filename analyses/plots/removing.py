"""Figures of what removing frequencies does: by number, by subset, and to the loss."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from analyses.ablation import Ablation, Curve
from analyses.claims import Claim
from analyses.plots.style import BLUE, GREEN, GREY, ORANGE, RED, colours_of, headline, plain, without
from analyses.restricted import ProgressMeasures
from analyses.spectra import KeyFrequencies
from analyses.subsets import Lattice

SITES = {
    "W_E": "$W_E$", "hidden": "the last hidden state", "W_U": "$W_U$", "logits": "the logits (family sum)",
}  # fmt: skip
"""Sites in words."""


def removal_figure(claim: Claim, ablations: Mapping[str, Ablation]) -> Figure:
    """C7: accuracy with frequencies removed, and with the two matched controls."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    headline(figure, claim, "without one key frequency the network still adds, without several it does not")
    if not any(ablation.key for ablation in ablations.values()):
        return without(figure, "no key frequency")
    panels = figure.subplots(1, len(ablations), sharey=True, squeeze=False)[0]
    for axes, (site, ablation) in zip(panels, ablations.items(), strict=True):
        _band(axes, ablation.equal_power, ORANGE, "o-", "as much power, random directions")
        _band(axes, ablation.key, RED, "o-", "key frequencies")
        _band(axes, ablation.random, "0.3", "s--", "as many other frequencies")
        axes.set(
            title=f"removed from {SITES[site]}", xlabel="frequencies removed (mean, min to max)", ylim=(-0.03, 1.05)
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain(axes)
    panels[0].set_ylabel("accuracy")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def subsets_figure(lattices: Mapping[str, Lattice], key: KeyFrequencies) -> Figure:
    """The whole lattice: a column for each subset, a square where a frequency is removed; and Shapley values beside it."""
    figure = Figure(figsize=(12, 4.6 + 1.2 * max(len(lattices) - 1, 0)), layout="constrained")
    figure.suptitle("Accuracy without every subset of the key frequencies")
    if not lattices:
        return without(figure, "no key frequency")
    first = next(iter(lattices.values()))
    n, colours = len(first.frequencies), colours_of(key.by_share)
    columns = _columns(list(lattices.values()))
    heights = [1.5] * len(lattices) + [0.3 + 0.19 * n]
    panels = figure.subplots(len(lattices) + 1, 2, squeeze=False, width_ratios=(4, 1), height_ratios=heights)
    for (dots, bars), (site, lattice) in zip(panels[:-1], lattices.items(), strict=True):
        _accuracies(dots, lattice, columns, site)
        _shapley(bars, lattice, colours)
    panels[0][1].set_title("Shapley value (grey: control)", fontsize=9)
    _squares(panels[-1][0], first.frequencies, columns, colours)
    panels[-1][1].set_axis_off()
    return figure


def _columns(lattices: Sequence[Lattice]) -> list[int]:
    """The subsets by how many they remove, and then by what is left: the mean accuracy over the sites, the most first."""
    mean = torch.stack([lattice.accuracy for lattice in lattices]).mean(0)
    return sorted(range(len(mean)), key=lambda subset: (subset.bit_count(), -float(mean[subset])))


def _accuracies(axes: Axes, lattice: Lattice, columns: list[int], site: str) -> None:
    accuracy = [float(lattice.accuracy[subset]) for subset in columns]
    axes.vlines(range(len(columns)), 0, accuracy, color="0.8", linewidth=1)
    axes.plot(range(len(columns)), accuracy, "o", color=BLUE, markersize=4.5 if len(columns) <= 32 else 3.5)
    if lattice.control is not None:
        for number, spread in lattice.control.by_number_removed().items():
            of_number = [x for x, subset in enumerate(columns) if subset.bit_count() == number]
            axes.plot(
                [of_number[0] - 0.4, of_number[-1] + 0.4], [spread.mean] * 2, color=GREY, linestyle="--", linewidth=1.2
            )
    _separate(axes, columns)
    axes.set(xlim=(-0.8, len(columns) - 0.2), ylim=(0, 1.08), xticks=[])
    axes.set_title(
        f"removed from {SITES.get(site, site)} (dashed: as many random others, mean)", loc="left", fontsize=9
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    plain(axes)


def _shapley(axes: Axes, lattice: Lattice, colours: Mapping[int, str]) -> None:
    values, places = lattice.shapley(), range(len(lattice.frequencies))
    axes.barh(
        places, [values[k] for k in lattice.frequencies], color=[colours[k] for k in lattice.frequencies], height=0.55
    )
    if lattice.control is not None:
        axes.plot(list(lattice.control.shapley().values()), places, "|", color="0.3", markersize=9, markeredgewidth=2)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(places, [str(k) for k in lattice.frequencies], fontsize=8)
    axes.set_ylim(len(lattice.frequencies) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="x", labelsize=8)
    plain(axes)


def _squares(axes: Axes, frequencies: Sequence[int], columns: list[int], colours: Mapping[int, str]) -> None:
    size = min(8.0, 420 / max(len(columns), 1))
    for y, k in enumerate(frequencies):
        gone = [x for x, subset in enumerate(columns) if subset >> y & 1]
        stays = [x for x, subset in enumerate(columns) if not subset >> y & 1]
        axes.plot(stays, [y] * len(stays), "s", color="0.92", markersize=size)
        axes.plot(gone, [y] * len(gone), "s", color=colours[k], markersize=size)
    _separate(axes, columns)
    numbers = sorted({subset.bit_count() for subset in columns})
    middles = [[x for x, subset in enumerate(columns) if subset.bit_count() == number] for number in numbers]
    axes.set_xticks([sum(xs) / len(xs) for xs in middles], [str(number) for number in numbers])
    axes.set(
        xlim=(-0.8, len(columns) - 0.2),
        ylim=(len(frequencies) - 0.4, -0.6),
        xlabel="how many are removed; coloured: which",
    )
    axes.set_yticks(range(len(frequencies)), [f"k = {k}" for k in frequencies], fontsize=9)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _separate(axes: Axes, columns: list[int]) -> None:
    """A line between subsets of different sizes."""
    for x in range(1, len(columns)):
        if columns[x].bit_count() != columns[x - 1].bit_count():
            axes.axvline(x - 0.5, color="0.88", linewidth=0.8, zorder=0)


def losses_figure(losses: Sequence[ProgressMeasures], p: int) -> Figure:
    """Restricted and excluded loss by variant, on the pairs trained on and on the others."""
    figure = Figure(figsize=(9, 1.9 + 0.62 * max(len(losses), 2)), layout="constrained")
    figure.suptitle("Loss with the key frequencies alone (restricted), and without them (excluded)")
    if not losses:
        return without(figure, "no key frequency")
    axes = figure.subplots()
    kinds = (("plain", GREY, "the model"), ("restricted", GREEN, "restricted"), ("excluded", RED, "excluded"))
    for kind, colour, text in kinds:
        for part, marker, shift in (("train", "o", -0.12), ("test", "D", 0.12), ("all", "o", 0.0)):
            values = [getattr(getattr(measured, kind), part) for measured in losses]
            shown = [(value, y + shift) for y, value in enumerate(values) if value is not None]
            if part == "all" and losses[0].plain.train is not None:
                continue  # it is between the two
            where = {"train": "pairs trained on", "test": "other pairs", "all": "all pairs"}[part]
            if shown:
                xs, ys = zip(*shown, strict=True)
                axes.plot(
                    xs,
                    ys,
                    marker,
                    color=colour,
                    markersize=7,
                    markerfacecolor="white" if part == "test" else colour,
                    label=f"{text}, {where}",
                )
    axes.axvline(math.log(p), color=GREY, linestyle=":", linewidth=1.2)
    axes.annotate(
        "uniform guess: ln p",
        (math.log(p), -0.55),
        (-3, 0),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=GREY,
    )
    axes.set_yticks(range(len(losses)), [measured.variant for measured in losses])
    axes.set(ylim=(len(losses) - 0.5, -0.7), xscale="log", xlabel="mean cross entropy (nats)", ylabel="variant")
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    plain(axes)
    return figure


def _band(axes: Axes, curve: Curve, colour: str, style: str, label: str) -> None:
    numbers = list(curve)
    spreads = list(curve.values())
    axes.fill_between(numbers, [s.min for s in spreads], [s.max for s in spreads], color=colour, alpha=0.2, linewidth=0)
    axes.plot(numbers, [s.mean for s in spreads], style, color=colour, label=label, linewidth=1.8, markersize=5)
