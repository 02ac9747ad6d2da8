"""Figures of training: a run's history, and every measure at every checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from analyses.neurons import EXPLAINED
from analyses.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, colours_of, plain, symbol
from analyses.progress import Progress


def training_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy and loss over training, on the pairs trained on and on the others."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    steps = [row["step"] for row in history]
    for axes, measure in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for part, colour in (("train", BLUE), ("test", ORANGE)):
            values = [row[f"{part}_{measure}"] for row in history]
            if None not in values:
                axes.plot(steps, values, color=colour, label=f"{part} pairs", linewidth=2)
        axes.set(xlabel="optimizer step", ylabel="loss (nats)" if measure == "loss" else measure)
        plain(axes)
    accuracy, loss = figure.axes
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    loss.set_yscale("log")
    accuracy.legend(frameon=False, loc="lower right")
    figure.suptitle("Training, on the pairs trained on and on those held out")
    return figure


def progress_figure(progress: Progress) -> Figure:
    """A run over its checkpoints: losses, key frequencies, sparseness, norms, fits, the circuit, removal, and clock or pizza."""
    figure = Figure(figsize=(13, 12), layout="constrained")
    (losses, shares, gini), (norms, fits, symmetry), (attributed, errors, removed) = panels = figure.subplots(3, 3)
    points, steps = progress.checkpoints, [point.step for point in progress.checkpoints]
    some_test = [point.test for point in points if point.test is not None]
    for name, measured, style, colour in (
        ("train", [point.train for point in points], "-", BLUE),
        ("test", some_test, "-", ORANGE),
    ):
        if measured:
            losses.plot(steps, [m.plain for m in measured], style, color=colour, label=f"{name} pairs", linewidth=2)
            losses.plot(steps, [m.restricted for m in measured], "--", color=colour, label=f"{name}, restricted")
            losses.plot(
                steps, [m.excluded for m in measured], ":", color=colour, label=f"{name}, excluded", linewidth=2
            )
    losses.set(title="loss, with all, none but, and all but the key frequencies", ylabel="loss (nats)")
    _log_where_needed(losses)
    _legend_below(losses, columns=2)

    colours = colours_of(progress.key.by_share)
    for k, colour in colours.items():
        shares.plot(steps, [point.shares[k] for point in points], color=colour, linewidth=2)
    shares.axhline(progress.key.threshold, color=GREY, linestyle=":", linewidth=1.2)
    threshold = {"xy": (steps[-1], progress.key.threshold), "xytext": (-2, -9), "textcoords": "offset points"}
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    shares.annotate("above this a key frequency", **threshold, ha="right", color=GREY, fontsize=8, bbox=behind)
    shares.set(title="key frequencies of the end, in $W_E W_{ih}$", ylabel="share of the power", ylim=(0, None))
    shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if not colours:
        shares.text(0.5, 0.5, "no key frequency", ha="center", va="center", color=GREY, transform=shares.transAxes)
    _label_ends(shares, steps[-1], {f"k = {k}": (points[-1].shares[k], colour) for k, colour in colours.items()})

    _over_steps(gini, steps, {symbol(name): [point.gini[name] for point in points] for name in points[-1].gini})
    gini.set(title="sparseness of the power by frequency", ylabel="Gini coefficient", ylim=(0, 1.02))
    _over_steps(norms, steps, {symbol(name): [point.norms[name] for point in points] for name in points[-1].norms})
    norms.set(title="norms of the weights", ylabel="Frobenius norm")
    _log_where_needed(norms)

    fve = {
        "clock: $\\cos w(a+b-c)$": [point.clock for point in points],
        "pizza: $|\\cos w(a-b)/2|\\,\\cos w(a+b-c)$": [point.pizza for point in points],
    }
    _over_steps(fits, steps, fve)
    fits.set(title="logits explained by a closed form", ylabel="share of the variance", ylim=(-0.02, 1.02))
    fits.yaxis.set_major_formatter(PercentFormatter(1))
    measures = {
        "gradient symmetricity": [point.symmetricity for point in points],
        "the same, operands exchanged": [point.exchanged for point in points],
        "distance irrelevance": [
            float("nan") if point.distance_irrelevance is None else point.distance_irrelevance for point in points
        ],
        "circularity": [point.circularity for point in points],
    }
    _over_steps(symmetry, steps, measures)
    lowest = min(min(measures["gradient symmetricity"]), min(measures["the same, operands exchanged"]), 0.0)
    symmetry.set(title="clock or pizza", ylabel="measure", ylim=(lowest - 0.05, 1.05))

    of_parts = {f"neurons above {EXPLAINED:.0%}": [point.neurons_above for point in points]}
    for name in points[-1].purity:
        of_parts[f"purity of {symbol(name)}'s pairs"] = [point.purity[name] for point in points]
        of_parts[f"energy of {symbol(name)} in 2K"] = [point.energy[name] for point in points]
    _over_steps(attributed, steps, of_parts, columns=2)
    attributed.set(title="neurons and singular vectors by frequency", ylabel="share", ylim=(0, 1.02))
    attributed.yaxis.set_major_formatter(PercentFormatter(1))
    of_stages = {text: [point.errors[stage] for point in points] for stage, text in _stages(points[-1].errors)}
    _over_steps(errors, steps, of_stages, columns=3)
    errors.set(title="the circuit: what its closed forms leave", ylabel="relative error", ylim=(0, 1.02))
    sites = {"W_E": "from $W_E$", "hidden": "from the last state", "W_U": "from $W_U$"}
    _over_steps(removed, steps, {text: [point.removed[site] for point in points] for site, text in sites.items()})
    removed.set(title="without the key frequencies", ylabel="accuracy on all pairs", ylim=(0, 1.02))
    removed.yaxis.set_major_formatter(PercentFormatter(1))

    for axes in panels.flat:
        _steps_axis(axes, steps)
        for line in axes.lines:
            if len(line.get_xdata()) == 1:
                line.set_marker("o")  # of one checkpoint no line can be drawn
        for step in progress.changes:
            axes.axvline(step, color=GREY, linewidth=1, alpha=0.5)
        axes.title.set_fontsize(10)
        plain(axes)
    changed = f"; grey line: the optimizer changes, at step {progress.changes[0]:,}" if progress.changes else ""
    figure.suptitle(f"{len(points)} checkpoint{'s' * (len(points) > 1)} of {progress.directory.name}{changed}")
    return figure


def _stages(errors: Iterable[str]) -> list[tuple[str, str]]:
    """Five stages of a circuit to be shown, and what to call them; none of none."""
    stages = list(errors)
    if not stages:
        return []
    texts = ("embedding of a", "carried by $W_{hh}$", "added", "last state", "logits")
    hidden = [stage for stage in stages if ".hook_hidden" in stage]
    first = ("hook_embed[0]", "blocks.0.hook_recurrent[1]", "blocks.0.hook_preact[1]", hidden[-1], stages[-1])
    return list(zip(first, texts, strict=True))


def _over_steps(
    axes: Axes, steps: Sequence[int], lines: Mapping[str, Sequence[float]], columns: int | None = None
) -> None:
    for colour, (name, values) in zip((BLUE, ORANGE, GREEN, RED, PURPLE, "black"), lines.items(), strict=False):
        axes.plot(steps, values, color=colour, label=name, linewidth=2)
    _legend_below(axes, columns or (2 if len(lines) < 5 else 5))


def _legend_below(axes: Axes, columns: int) -> None:
    """Where no line can be in its way."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "borderaxespad": 0.0}
    axes.legend(**place, ncols=columns, frameon=False, fontsize=8, handlelength=1.6, columnspacing=1.2)


def _steps_axis(axes: Axes, steps: Sequence[int]) -> None:
    """Steps on a logarithmic axis from the first after 0 on, where that is needed to see the beginning."""
    first = next((step for step in steps if step > 0), 1)
    axes.set_xlabel("optimizer step")
    axes.set_xlim(steps[0] - (len(steps) == 1), steps[-1] + (len(steps) == 1))
    if steps[-1] >= 10 * first:
        axes.set_xscale("symlog", linthresh=first, linscale=0.5)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _log_where_needed(axes: Axes) -> None:
    """A logarithmic scale for values that differ tenfold."""
    values = [float(y) for line in axes.lines for y in np.asarray(line.get_ydata())]
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


def _label_ends(axes: Axes, x: int, ends: Mapping[str, tuple[float, str]]) -> None:
    """A label at the end of each line, moved apart where they would overlap."""
    height = axes.get_ylim()[1] - axes.get_ylim()[0]
    lowest = float("-inf")
    for label, (y, colour) in sorted(ends.items(), key=lambda end: end[1][0]):
        lowest = max(y, lowest + 0.055 * height)
        axes.annotate(
            label, (x, lowest), (4, 0), textcoords="offset points", color=colour, va="center", annotation_clip=False
        )
