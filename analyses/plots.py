"""Figures. Each takes results and draws them; nothing is computed here that a table could quote."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from analyses.ablation import Ablation, Curve
from analyses.attribution import Fit, SingularAttribution
from analyses.claims import C2_ENERGY, VERDICTS, Claim
from analyses.neurons import EXPLAINED
from analyses.progress import Progress
from analyses.spectra import KeyFrequencies, Spectrum

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8A8A"
MOST_PANELS = 9
"""Most key frequencies that a figure with a panel for each shows, the strongest first."""


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
        _plain(axes)
    accuracy, loss = figure.axes
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    loss.set_yscale("log")
    accuracy.legend(frameon=False, loc="lower right")
    figure.suptitle("Training, on the pairs trained on and on those held out")
    return figure


def frequencies_figure(claim: Claim, key: KeyFrequencies, hidden: Spectrum, output: Spectrum) -> Figure:
    """C3: the share of the power at each frequency, in the input, the hidden state and the output."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = (
        (key.spectrum, f"input: {_symbol(key.of)} over tokens (key: above the dotted line)"),
        (hidden, "last hidden state over pairs"),
        (output, "output: $W_U$ over answers"),
    )
    rows = figure.subplots(3, 1, sharex=True)
    for axes, (spectrum, title) in zip(rows, panels, strict=True):
        for k in range(1, len(spectrum.shares) + 1):
            is_key = k in key.frequencies
            colour, share = (RED if is_key else GREY), spectrum.share(k)
            axes.plot([k, k], [0, share], color=colour, linewidth=2 if is_key else 1)
            axes.plot(k, share, "o", color=colour, markersize=6 if is_key else 2.5)
            if is_key:
                axes.annotate(str(k), (k, share), (0, 6), textcoords="offset points", ha="center", color=RED)
        axes.set_title(title, loc="left", fontsize=10)
        highest = max(float(spectrum.shares.max()), key.threshold if spectrum is key.spectrum else 0.0)
        axes.set_ylim(0, 1.22 * highest or 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _plain(axes)
    rows[0].axhline(key.threshold, color=GREY, linestyle=":", linewidth=1)
    rows[1].set_ylabel("share of the power at all frequencies")
    rows[2].set_xlabel("frequency k")
    _headline(figure, claim, "the same few frequencies (red) at the input, in the hidden state and at the output")
    return figure


def low_rank_figure(claim: Claim, cumulative: Mapping[str, Float[Tensor, " rank"]], components: int) -> Figure:
    """C2: the energy that the first singular components of each matrix hold."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    colours = itertools.cycle((BLUE, ORANGE, RED, GREEN, PURPLE, "#56B4E9", "#F0E442", "black"))
    for colour, (name, held) in zip(colours, cumulative.items(), strict=False):
        first = [0.0, *held[:64].tolist()]
        axes.plot(range(len(first)), first, color=colour, linewidth=2, label=_symbol(name))
    axes.axhspan(C2_ENERGY, 0.955, color=GREY, alpha=0.18, linewidth=0, label="published range")
    if components:
        axes.axvline(components, color=GREY, linestyle="--", linewidth=1.2)
        axes.annotate(f" 2K = {components}", (components, 0.03), color=GREY)
    axes.set(xlabel="first n singular components", ylabel="share of the energy", xlim=(0, 64), ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False, loc="lower right")
    _plain(axes)
    _headline(figure, claim, "two components per key frequency hold most of the energy")
    return figure


def singular_vectors_figure(
    claim: Claim, attributions: Mapping[str, SingularAttribution], key: KeyFrequencies
) -> Figure:
    """C4: which frequency each of the first singular vectors is made of."""
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    _headline(figure, claim, "each singular vector is made of one frequency (one dark cell a row)")
    if not key.frequencies:
        return _without_key_frequency(figure)
    for axes, (name, attribution) in zip(figure.subplots(1, len(attributions)), attributions.items(), strict=True):
        columns = [attribution.shares[:, k - 1] for k in key.by_share]
        columns.append(1 - torch.stack(columns).sum(0))
        image = axes.imshow(torch.stack(columns, 1).numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), [*map(str, key.by_share), "other"])
        axes.set_yticks(range(len(attribution.shares)), [str(i + 1) for i in range(len(attribution.shares))])
        axes.set(xlabel="frequency", title=f"{_symbol(name)}: mean purity {attribution.mean_purity:.1%}")
        axes.tick_params(length=0)
    figure.axes[0].set_ylabel("singular vector")
    figure.colorbar(image, ax=figure.axes, label="share of the vector's power", format=PercentFormatter(1))
    return figure


def circles_figure(claim: Claim, circles: Mapping[int, Float[Tensor, "p axes"]], key: KeyFrequencies) -> Figure:
    """C5: the tokens in the plane of each key frequency; the colour is where cos and sin would put them."""
    shown = [k for k in key.by_share if circles[k].shape[1] == 2][:MOST_PANELS]
    figure, panels = _panels(len(shown), claim, "the numbers lie on a circle for each key frequency")
    for axes, k in zip(panels, shown, strict=True):
        points = circles[k]
        turn = k * torch.arange(len(points)) % len(points) / len(points)
        axes.scatter(points[:, 0], points[:, 1], c=_hues(turn), s=22)
        radius = 1.15 * float(points.norm(dim=1).max())
        axes.set(
            xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal", title=f"k = {k}", xticks=[0], yticks=[0]
        )
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    figure.supxlabel("cosine axis; colour: $2\\pi k a/p$", fontsize=10)
    figure.supylabel("sine axis", fontsize=10)
    return figure


def hidden_fit_figure(claim: Claim, fits: Mapping[int, Fit], key: KeyFrequencies) -> Figure:
    """C6: the last hidden state's projection on the cosine of each key frequency, for all pairs, and its fit."""
    shown = key.by_share[:MOST_PANELS]
    figure, panels = _panels(len(shown), claim, "the last hidden state projects to the cosine of a + b")
    for axes, k in zip(panels, shown, strict=True):
        fit = fits[k]
        order = fit.argument.argsort()
        scale = float(fit.projections[:, 0].abs().max()) or 1.0
        axes.plot(
            fit.argument, fit.projections[:, 0] / scale, ".", color=BLUE, markersize=1, alpha=0.25, rasterized=True
        )
        axes.plot(fit.argument[order], fit.fitted[order, 0] / scale, color=RED, linewidth=1.5)
        axes.set(title=f"k = {k}: relative error {fit.relative:.3f}", ylim=(-1.05, 1.05), yticks=[-1, 0, 1])
        _plain(axes)
    figure.supxlabel("k(a+b) modulo p", fontsize=10)
    figure.supylabel("projection, over its largest (blue); its fit (red)", fontsize=10)
    return figure


def removal_figure(claim: Claim, ablations: Mapping[str, Ablation]) -> Figure:
    """C7: accuracy with frequencies removed, and with the two matched controls."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    _headline(figure, claim, "without one key frequency the network still adds, without several it does not")
    if not any(ablation.key for ablation in ablations.values()):
        return _without_key_frequency(figure)
    titles = {"W_E": "removed from $W_E$", "hidden": "removed from the last hidden state", "W_U": "removed from $W_U$"}
    panels = figure.subplots(1, len(ablations), sharey=True)
    for axes, (site, ablation) in zip(panels, ablations.items(), strict=True):
        _band(axes, ablation.equal_power, ORANGE, "o-", "as much power, random directions")
        _band(axes, ablation.key, RED, "o-", "key frequencies")
        _band(axes, ablation.random, "0.3", "s--", "as many other frequencies")
        axes.set(title=titles[site], xlabel="frequencies removed (mean, min to max)", ylim=(-0.03, 1.05))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes)
    panels[0].set_ylabel("accuracy on all pairs")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
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

    cycle = (BLUE, ORANGE, GREEN, RED, PURPLE, "#56B4E9", "black", "#B8A900")
    colours = {k: cycle[i % len(cycle)] for i, k in enumerate(progress.key.by_share)}
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

    _over_steps(gini, steps, {_symbol(name): [point.gini[name] for point in points] for name in points[-1].gini})
    gini.set(title="sparseness of the power by frequency", ylabel="Gini coefficient", ylim=(0, 1.02))
    _over_steps(norms, steps, {_symbol(name): [point.norms[name] for point in points] for name in points[-1].norms})
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
        of_parts[f"purity of {_symbol(name)}'s pairs"] = [point.purity[name] for point in points]
        of_parts[f"energy of {_symbol(name)} in 2K"] = [point.energy[name] for point in points]
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
        _plain(axes)
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


def _headline(figure: Figure, claim: Claim, text: str) -> None:
    """What the figure is to show, and whether it does."""
    figure.suptitle(f"{claim.id} {VERDICTS[claim.holds]}: {text}")


def _band(axes: Axes, curve: Curve, colour: str, style: str, label: str) -> None:
    numbers = list(curve)
    spreads = list(curve.values())
    axes.fill_between(numbers, [s.min for s in spreads], [s.max for s in spreads], color=colour, alpha=0.2, linewidth=0)
    axes.plot(numbers, [s.mean for s in spreads], style, color=colour, label=label, linewidth=1.8, markersize=5)


def _panels(n: int, claim: Claim, text: str) -> tuple[Figure, list[Axes]]:
    """A figure of n panels in rows of three; a word instead, for none."""
    rows = max(1, -(-n // 3))
    figure = Figure(figsize=(9, 0.9 + 2.7 * rows), layout="constrained")
    _headline(figure, claim, text)
    if n == 0:
        return _without_key_frequency(figure), []
    panels = list(figure.subplots(rows, min(n, 3), squeeze=False).flat)
    for unused in panels[n:]:
        unused.set_visible(False)
    return figure, panels[:n]


def _without_key_frequency(figure: Figure) -> Figure:
    figure.text(0.5, 0.5, "no key frequency", ha="center", va="center", color=GREY)
    return figure


def _hues(turn: Float[Tensor, " n"]) -> Any:
    ones = torch.ones_like(turn)
    return hsv_to_rgb(torch.stack([turn, 0.75 * ones, 0.85 * ones], 1).numpy())


def _symbol(name: str) -> str:
    """A matrix's name as mathematics: W_E W_ih becomes $W_{E} W_{ih}$."""
    parts = (re.fullmatch(r"W_(\w+)(\[\d+\])?", part) for part in name.split())
    return "$" + r"\,".join(f"W_{{{m[1]}}}{m[2] or ''}" for m in parts if m) + "$"


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
