"""Figures of what a model is made of: spectra."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from analyses.claims import Claim
from analyses.plots.style import FAMILY_COLOURS, GREY, PALE, colours_of, headline, plain, stems, symbol, without
from analyses.spectra import FamilySpectrum, KeyFrequencies, Spectrum

LEAST_SHOWN = 1e-6
"""Of the power over the grid: smaller shares have the colour of this one."""


def frequencies_figure(claim: Claim, key: KeyFrequencies, hidden: Spectrum, output: Spectrum) -> Figure:
    """C3: the share of the power at each frequency, in the input, the hidden state and the output."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = (
        (key.spectrum, f"input: {symbol(key.of)} over tokens (key: above the dotted line)", key.threshold),
        (hidden, "last hidden state over pairs", 0.0),
        (output, "output: $W_U$ over answers", 0.0),
    )
    rows = figure.subplots(3, 1, sharex=True)
    for axes, (spectrum, title, highest) in zip(rows, panels, strict=True):
        stems(axes, spectrum.shares, key.frequencies, colours_of(key.by_share), highest)
        axes.set_title(title, loc="left", fontsize=10)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    rows[0].axhline(key.threshold, color=GREY, linestyle=":", linewidth=1)
    rows[1].set_ylabel("share of the power at all frequencies")
    rows[2].set_xlabel("frequency k")
    headline(figure, claim, "the same few frequencies at the input, in the hidden state and at the output")
    return figure


def rules_figure(rules: Mapping[str, KeyFrequencies], key: KeyFrequencies) -> Figure:
    """Which frequencies are key by each rule: the spectrum that it looks at, its threshold, and what is above."""
    figure = Figure(figsize=(9, 0.8 + 1.9 * max(len(rules), 1)), layout="constrained")
    figure.suptitle("Key frequencies by every rule: above the dotted line")
    if not rules:
        return without(figure, "no rule could look at this model")
    rows = figure.subplots(len(rules), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (rule, found) in zip(rows, rules.items(), strict=True):
        stems(axes, found.spectrum.shares, found.frequencies, colours_of(key.by_share), found.threshold)
        axes.axhline(found.threshold, color=GREY, linestyle=":", linewidth=1.2)
        what = symbol(found.of) if found.of.startswith("W_") else found.of.removeprefix("blocks.")
        axes.set_title(
            f"{rule}, of {what}: {len(found.frequencies)} above {found.threshold:.2%}", loc="left", fontsize=10
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    rows[-1].set_xlabel("frequency k")
    figure.supylabel("share", fontsize=10)
    return figure


def weights_figure(weights: Mapping[str, Spectrum], key: KeyFrequencies) -> Figure:
    """The spectrum of every weight that has an axis of numbers."""
    rows = -(-len(weights) // 2)
    figure = Figure(figsize=(11, 0.8 + 1.9 * rows), layout="constrained")
    figure.suptitle(f"Spectra of the weights over the numbers; coloured: key by {symbol(key.of)}")
    panels = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
    for axes in panels[len(weights) :]:
        axes.set_visible(False)
    for axes, (name, spectrum) in zip(panels, weights.items(), strict=False):
        stems(axes, spectrum.shares, key.frequencies, colours_of(key.by_share))
        share = f": {spectrum.share_of(key.frequencies):.1%} at the key frequencies" if key.frequencies else ""
        axes.set_title(f"{symbol(name)}{share}", loc="left", fontsize=10)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in panels[max(len(weights) - 2, 0) : len(weights)]:
        axes.set_xlabel("frequency k")
        axes.tick_params(labelbottom=True)
    figure.supylabel("share of the power at all frequencies", fontsize=10)
    return figure


def families_figure(families: Mapping[str, FamilySpectrum], key: KeyFrequencies) -> Figure:
    """2-D spectra over the grid of pairs: where the power is, and which families and frequencies have it."""
    figure = Figure(figsize=(11, 0.9 + 4.1 * len(families)), layout="constrained")
    figure.suptitle("2-D spectra over all pairs")
    colours = colours_of(key.by_share)
    panels = figure.subplots(len(families), 2, squeeze=False, width_ratios=(1.1, 1))
    for (heat, bars), (name, spectrum) in zip(panels, families.items(), strict=True):
        power = _grid(spectrum)
        shares = (power / power.sum().clamp(min=torch.finfo(power.dtype).tiny)).clamp(min=LEAST_SHOWN)
        image = heat.imshow(
            shares.numpy(), cmap="magma_r", norm=LogNorm(LEAST_SHOWN, 1), origin="lower", interpolation="nearest"
        )
        figure.colorbar(image, ax=heat, label="share of the variance", shrink=0.85)
        ticks = _apart(sorted(key.frequencies), 0.045 * len(power))
        for axis in (heat.xaxis, heat.yaxis):
            axis.set_ticks([0, *ticks], ["0", *map(str, ticks)], fontsize=8)
        heat.set(
            title=name.removeprefix("blocks."), xlabel="frequency of b (0: constant in b)", ylabel="frequency of a"
        )
        bottom = torch.zeros(len(spectrum.families))
        names, total = list(spectrum.families), sum(spectrum.powers.values()) or 1.0
        for k in key.by_share:
            height = torch.tensor([float(spectrum.families[family][k - 1]) / total for family in names])
            bars.bar(names, height.numpy(), bottom=bottom.numpy(), color=colours[k], label=f"k = {k}", width=0.65)
            bottom = bottom + height
        rest = torch.tensor([spectrum.shares[family] for family in names]) - bottom
        bars.bar(names, rest.clamp(min=0).numpy(), bottom=bottom.numpy(), color=PALE, label="other k", width=0.65)
        bars.bar(
            ["cross"], [spectrum.shares["cross"]], color=FAMILY_COLOURS["cross"], label="two frequencies", width=0.65
        )
        for i, (_, share) in enumerate(spectrum.shares.items()):
            bars.annotate(f"{share:.1%}", (i, share), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        bars.set(title="by family", ylim=(0, 1.12 * max(spectrum.shares.values()) or 1), ylabel="share of the variance")
        bars.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plain(bars)
    panels[0][1].legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def _grid(spectrum: FamilySpectrum) -> Float[Tensor, "n n"]:
    """Power by frequency of a (row) and of b (column), 0 first; without the constant."""
    inner = spectrum.cross + (spectrum.families["sum"] + spectrum.families["difference"]).diag_embed()
    grid = inner.new_zeros(len(inner) + 1, len(inner) + 1)
    grid[1:, 1:], grid[1:, 0], grid[0, 1:] = inner, spectrum.families["a"], spectrum.families["b"]
    return grid


def _apart(numbers: list[int], least: float) -> list[int]:
    """The numbers, without those that are too near the one before (or zero) to be written beside it."""
    kept: list[int] = []
    for n in numbers:
        if n - (kept[-1] if kept else 0) >= least:
            kept.append(n)
    return kept
