"""What all figures share: colours, names, axes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from analyses.claims import VERDICTS, Claim

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8A8A"
PALE = "#D5D5D5"
FREQUENCY_COLOURS = (
    "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#8B5A2B", "#1B1B1B", "#7A9A01",
)  # fmt: skip
"""Of the key frequencies, the strongest first; the same in every figure."""
FAMILY_COLOURS = {
    "a": "#1F4E79", "b": "#7FB2DD", "sum": "#2E7D32", "difference": "#A5CF8B", "double a": "#8E5A2B", "double b": "#D9B38C",
    "cross": "#8A8A8A",
}  # fmt: skip
"""Of the families of functions on the grid."""
MOST_PANELS = 9
"""Most key frequencies that a figure with a panel for each shows, the strongest first."""


def colours_of(by_share: Sequence[int]) -> dict[int, str]:
    """A colour for each key frequency."""
    return {k: FREQUENCY_COLOURS[i % len(FREQUENCY_COLOURS)] for i, k in enumerate(by_share)}


def headline(figure: Figure, claim: Claim, text: str) -> None:
    """What the figure is to show, and whether it does."""
    figure.suptitle(f"{claim.id} {VERDICTS[claim.holds]}: {text}")


def panels_of(n: int, claim: Claim, text: str) -> tuple[Figure, list[Axes]]:
    """A figure of n panels in rows of three; a word instead, for none."""
    rows = max(1, -(-n // 3))
    figure = Figure(figsize=(9, 0.9 + 2.7 * rows), layout="constrained")
    headline(figure, claim, text)
    if n == 0:
        return without(figure, "no key frequency"), []
    panels = list(figure.subplots(rows, min(n, 3), squeeze=False).flat)
    for unused in panels[n:]:
        unused.set_visible(False)
    return figure, panels[:n]


def without(figure: Figure, why: str) -> Figure:
    """A figure of nothing, that says why."""
    figure.text(0.5, 0.5, why, ha="center", va="center", color=GREY)
    return figure


def stems(
    axes: Axes,
    shares: Float[Tensor, " n_frequencies"],
    key: Iterable[int],
    colours: Mapping[int, str],
    highest: float = 0.0,
) -> None:
    """A spectrum as stems, the key frequencies in their colours and with their numbers; ``highest`` must fit too."""
    marked = set(key)
    for k, share in enumerate(shares.tolist(), start=1):
        colour = colours.get(k, "black") if k in marked else GREY
        axes.plot([k, k], [0, share], color=colour, linewidth=2 if k in marked else 1, solid_capstyle="butt")
        axes.plot(k, share, "o", color=colour, markersize=5.5 if k in marked else 2)
    axes.set_ylim(0, 1.25 * max(float(shares.max()), highest) or 1)
    axes.set_xlim(0, len(shares) + 1)
    _label(axes, shares, sorted(marked), colours)
    plain(axes)


def hues(turn: Float[Tensor, " n"]) -> Any:
    """Colours around the circle."""
    ones = torch.ones_like(turn)
    return hsv_to_rgb(torch.stack([turn, 0.75 * ones, 0.85 * ones], 1).numpy())


def symbol(name: str) -> str:
    """A matrix's name as mathematics: W_E W_ih becomes $W_{E} W_{ih}$."""
    spelled = re.sub(r"W_([A-Za-z]+)", r"W_{\1}", name)
    return "$" + re.sub(r"h_(\d)", r"h_{\1}", spelled).replace(" ", r"\,") + "$"


def plain(axes: Axes) -> None:
    """Without a frame above and at the right."""
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: Axes, shares: Tensor, frequencies: list[int], colours: Mapping[int, str]) -> None:
    """The numbers above their stems, one line higher where the one before is too near."""
    last, level = -1e9, 0
    for k in frequencies:
        level = (level + 1) % 2 if k - last < 0.03 * len(shares) else 0
        where: Any = {"xytext": (0, 5 + 10 * level), "textcoords": "offset points", "ha": "center", "fontsize": 9}
        axes.annotate(str(k), (k, float(shares[k - 1])), **where, color=colours.get(k, "black"))
        last = k
