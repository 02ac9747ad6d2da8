"""Figures of models side by side. Each takes results and draws them; nothing is computed here that a table could quote."""

import math
import re
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from analyses.ablation import Curve
from analyses.c9 import IRRELEVANCE, LOGITS_FORM, SYMMETRICITY
from analyses.claims import C2_ENERGY
from analyses.key_frequencies import LOGITS
from analyses.metrics import ENDS, LAST_STATE, Absent, Metrics
from analyses.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from analyses.sites import SITES
from analyses.spectra import Spectrum
from analyses.stitching import NEGLIGIBLE, SwapTest

COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, "#56B4E9", "#B8A900", "black")
"""Of the models, in turn."""
COMPONENTS = 40
"""How many singular components are shown."""
ORIGINALS = {"pizza": (0.99, 0.17), "clock": (0.33, 0.85)}
"""Gradient symmetricity and distance irrelevance of the two networks of Zhong et al. 2023."""


def spectra_figure(names: Sequence[str], metrics: Sequence[Metrics]) -> Figure:
    """Which frequencies each model has, at its input, in its last state, and in its answers; key frequencies in red."""
    figure = Figure(figsize=(12, 0.9 + 1.55 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 3, sharex=True, squeeze=False)
    for row, name, m in zip(panels, names, metrics, strict=True):
        shown = (m.key.spectrum, m.spectra[LAST_STATE], m.spectra[LOGITS])
        for axes, spectrum in zip(row, shown, strict=True):
            _stems(axes, spectrum, m.key.frequencies)
        row[0].axhline(m.key.threshold, color=GREY, linestyle=":", linewidth=1)
        row[0].set_ylabel(_wrapped(name), fontsize=9)
    for axes, title in zip(panels[0], ("the embedding", "the last state", "the logits, on cos(w(a+b-c))"), strict=True):
        axes.set_title(title, fontsize=11)
    for axes in panels[-1]:
        axes.set_xlabel("frequency k")
    figure.suptitle("Share of the power (of the logits' variance) at each frequency; key frequencies in red")
    return figure


def energy_figure(names: Sequence[str], metrics: Sequence[Metrics]) -> Figure:
    """How much the first singular components of the embedding and the unembedding hold; a dot at two for each key frequency."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, weight in zip(figure.subplots(1, len(ENDS), sharey=True), ENDS, strict=True):
        axes.axhspan(C2_ENERGY, 0.955, color=GREY, alpha=0.18, linewidth=0, label="published range")
        for name, m, colour in zip(names, metrics, _colours(names), strict=True):
            held = [0.0, *m.energy[weight][:COMPONENTS].tolist()]
            axes.plot(range(len(held)), held, color=colour, linewidth=1.8, label=name)
            if 0 < m.components < len(held):
                axes.plot(m.components, held[m.components], "o", color=colour, markersize=7)
        axes.set(
            title=f"${weight[0]}_{weight[2]}$",
            xlabel="first n singular components",
            ylim=(0, 1.03),
            xlim=(0, COMPONENTS),
        )
        _plain(axes)
    first = figure.axes[0]
    first.set_ylabel("share of the energy")
    first.yaxis.set_major_formatter(PercentFormatter(1))
    _legend_below(figure, first)
    figure.suptitle("Low rank; the dot is at two components for each key frequency")
    return figure


def removal_figure(names: Sequence[str], metrics: Sequence[Metrics]) -> Figure:
    """Accuracy with frequencies removed from each model at each site, and with the two matched controls."""
    figure = Figure(figsize=(max(6.5, 1.2 + 2.5 * len(names)), 7.4), layout="constrained")
    panels = figure.subplots(len(SITES), len(names), sharey=True, squeeze=False)
    titles = {"W_E": "from $W_E$", "hidden": "from the last state", "W_U": "from $W_U$"}
    for column, (name, m) in enumerate(zip(names, metrics, strict=True)):
        panels[0][column].set_title(_wrapped(name), fontsize=9)
        for axes, site in zip(panels[:, column], SITES, strict=True):
            axes.set_ylim(-0.03, 1.05)
            _plain(axes)
            if isinstance(m.removal, Absent):
                axes.text(
                    0.5, 0.5, _wrapped(m.removal.reason), ha="center", va="center", color=GREY, transform=axes.transAxes
                )
                axes.set_xticks([])
                continue
            ablation = m.removal[site]
            _band(axes, ablation.equal_power, ORANGE, "o-", "as much power, random directions")
            _band(axes, ablation.key, RED, "o-", "key frequencies")
            _band(axes, ablation.random, "0.3", "s--", "as many other frequencies")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    for axes, site in zip(panels[:, 0], SITES, strict=True):
        axes.set_ylabel(f"accuracy,\n{titles[site]}")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in panels[-1]:
        axes.set_xlabel("frequencies removed", fontsize=9)
    _legend_below(figure, next((axes for axes in figure.axes if axes.lines), figure.axes[0]))
    figure.suptitle("Accuracy without some frequencies (mean, least to most)")
    return figure


def neurons_figure(names: Sequence[str], metrics: Sequence[Metrics]) -> Figure:
    """How much of each neuron's variance its own frequency explains."""
    figure = Figure(figsize=(max(6.5, 1.2 + 2.5 * len(names)), 2.9), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name, m, colour in zip(panels, names, metrics, _colours(names), strict=True):
        best = m.neurons.best.tolist()
        axes.hist(best, bins=20, range=(0, 1), weights=[1 / len(best)] * len(best), color=colour)
        axes.axvline(m.neurons.threshold, color=GREY, linestyle=":", linewidth=1.5)
        axes.set_title(_wrapped(name), fontsize=9)
        above = f"{m.neurons.share_above:.1%}\nabove {m.neurons.threshold:.0%}"
        axes.text(0.04, 0.95, above, ha="left", va="top", fontsize=9, transform=axes.transAxes)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xticks([0, 0.5, 1])
        _plain(axes)
    panels[0].set_ylabel("share of neurons")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.supxlabel("share of a neuron's variance that one frequency explains", fontsize=10)
    figure.suptitle("Neurons by frequency")
    return figure


def losses_figure(names: Sequence[str], metrics: Sequence[Metrics]) -> Figure:
    """The loss as it is, with the key frequencies of the sum alone, and without them."""
    figure = Figure(figsize=(max(6.5, 1.6 + 1.9 * len(names)), 3.8), layout="constrained")
    axes = figure.subplots()
    bars = (
        ("as it is", "plain", GREY),
        ("restricted to the key frequencies", "restricted", BLUE),
        ("key frequencies excluded", "excluded", RED),
    )
    lowest = 1.0
    for offset, (label, which, colour) in enumerate(bars):
        found = [(i, getattr(m.losses, which).all) for i, m in enumerate(metrics) if not isinstance(m.losses, Absent)]
        lowest = min([lowest, *(loss for _, loss in found if loss > 0)])
        axes.bar(
            [i + 0.26 * (offset - 1) for i, _ in found], [loss for _, loss in found], 0.24, color=colour, label=label
        )
    for i, m in enumerate(metrics):
        if isinstance(m.losses, Absent):
            axes.text(i, lowest, m.losses.reason, ha="center", va="bottom", color=GREY, fontsize=9)
    axes.axhline(math.log(metrics[0].p), color="black", linestyle=":", linewidth=1, label="log p: a guess")
    axes.set_yscale("log")
    axes.set_ylim(lowest / 3, None)
    axes.set_xticks(range(len(names)), [_wrapped(name) for name in names], fontsize=9)
    axes.set_ylabel("loss on all pairs (nats)")
    _plain(axes)
    _legend_below(figure, axes, columns=2)
    figure.suptitle("Restricted and excluded loss")
    return figure


def clock_pizza_figure(names: Sequence[str], metrics: Sequence[Metrics]) -> Figure:
    """Clock or pizza: by the measures of Zhong et al. 2023, and by which form explains the logits."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    plane, logits = figure.subplots(1, 2)
    for form, (symmetricity, irrelevance) in ORIGINALS.items():
        plane.plot(symmetricity, irrelevance, "*", color=GREY, markersize=13, zorder=1)
        plane.annotate(
            f"their {form}", (symmetricity, irrelevance), (0, -15), textcoords="offset points", color=GREY, ha="center"
        )
    plane.axvline(SYMMETRICITY, color=GREY, linestyle=":", linewidth=1)
    plane.axhline(IRRELEVANCE, color=GREY, linestyle=":", linewidth=1)
    logits.axvline(LOGITS_FORM, color=GREY, linestyle=":", linewidth=1)
    logits.axhline(LOGITS_FORM, color=GREY, linestyle=":", linewidth=1)
    logits.plot([0, 1], [0, 1], color=GREY, linewidth=0.7)
    for name, m, colour in zip(names, metrics, _colours(names), strict=True):
        marker = {"color": colour, "markersize": 9, "label": name, "alpha": 0.85, "linestyle": "none", "marker": "o"}
        if not isinstance(m.symmetry, Absent) and not isinstance(m.distance_irrelevance, Absent):
            plane.plot(m.symmetry.symmetricity, m.distance_irrelevance, **marker)
        else:
            plane.plot([], [], **marker)
        if not isinstance(m.clock, Absent) and not isinstance(m.pizza, Absent):
            logits.plot(m.clock.explained, m.pizza.explained, **marker)
    plane.set(xlabel="gradient symmetricity", ylabel="distance irrelevance", xlim=(-0.25, 1.08), ylim=(-0.05, 1.12))
    plane.set_title("Zhong et al. 2023", fontsize=11)
    logits.set(
        xlabel="cos(w(a+b-c)): the clock",
        ylabel="|cos(w(a-b)/2)| cos(w(a+b-c)): the pizza",
        xlim=(-0.03, 1.05),
        ylim=(-0.03, 1.05),
    )
    logits.set_title("share of the logits' variance", fontsize=11)
    for axis in (logits.xaxis, logits.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    for axes in (plane, logits):
        _plain(axes)
    _legend_below(figure, plane)
    figure.suptitle("Clock or pizza")
    return figure


def swap_figure(reference: str, swaps: Mapping[str, Sequence[SwapTest]]) -> Figure:
    """What survives of each of the target's frequencies where the other's activation is put in, both ways."""
    figure = Figure(figsize=(10, 0.9 + 2.3 * len(swaps)), layout="constrained")
    panels = figure.subplots(len(swaps), 2, sharey=True, squeeze=False)
    for row, (name, directions) in zip(panels, swaps.items(), strict=True):
        for axes, swap, title in zip(
            row, directions, (f"{name} into {reference}", f"{reference} into {name}"), strict=True
        ):
            shared = set(swap.source_frequencies) & set(swap.target_frequencies)
            own = swap.trials[0].plain.amplitudes
            ks = [k for k in swap.target_frequencies if own[k - 1].abs() > NEGLIGIBLE * own.abs().max()]
            found = [swap.range(lambda trial, k=k: trial.survives(k) or 0.0) for k in ks]
            colours = [RED if k in shared else GREY for k in ks]
            axes.bar(range(len(ks)), [r.median for r in found], color=colours, width=0.6)
            axes.errorbar(
                range(len(ks)), [r.median for r in found],
                [[r.median - r.min for r in found], [r.max - r.median for r in found]],
                fmt="none", ecolor="black", elinewidth=1,
            )  # fmt: skip
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_xticks(range(len(ks)), map(str, ks))
            accuracy = swap.range(lambda trial: trial.swapped.accuracy).median
            axes.set_title(_wrapped(f"{title}: accuracy {accuracy:.1%}", 56), fontsize=9)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            _plain(axes)
        row[0].set_ylabel("survives")
    for axes in panels[-1]:
        axes.set_xlabel("key frequency of the target (red: of the source too)")
    figure.suptitle("Swap test: share of each frequency's amplitude in the logits that survives")
    return figure


def _stems(axes: Axes, spectrum: Spectrum, key: Sequence[int]) -> None:
    for k in range(1, len(spectrum.shares) + 1):
        colour, share, width = (RED, spectrum.share(k), 2) if k in key else (GREY, spectrum.share(k), 1)
        axes.plot([k, k], [0, share], color=colour, linewidth=width)
        axes.plot(k, share, "o", color=colour, markersize=4.5 if k in key else 1.8)
    for k in key:
        label = axes.annotate(
            str(k),
            (k, spectrum.share(k)),
            (0, 5),
            textcoords="offset points",
            ha="center",
            color=RED,
            fontsize=8,
            zorder=5,
        )
        # A taller neighbour's stem may cross it.
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axes.set_ylim(0, 1.3 * float(spectrum.shares.max()) or 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    _plain(axes)


def _band(axes: Axes, curve: Curve, colour: str, style: str, label: str) -> None:
    numbers, spreads = list(curve), list(curve.values())
    axes.fill_between(numbers, [s.min for s in spreads], [s.max for s in spreads], color=colour, alpha=0.2, linewidth=0)
    axes.plot(numbers, [s.mean for s in spreads], style, color=colour, label=label, linewidth=1.6, markersize=4)


def _legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _colours(names: Sequence[str]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(names))]


def _wrapped(name: str, width: int = 22) -> str:
    """A name in lines short enough for a panel, broken where it has a space, a dash, a slash or an underscore."""
    lines = [""]
    for part in re.findall(r"[^ /_-]*[ /_-]?", name):
        if len(lines[-1]) + len(part.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
