"""Figures. Each takes results and draws them; nothing is computed here that a table could quote."""

from analyses.plots.attributing import (
    circles_figure,
    energy_figure,
    low_rank_figure,
    neurons_figure,
    singular_pairs_figure,
)
from analyses.plots.circuit import circuit_figure, clock_or_pizza_figure, hidden_fit_figure
from analyses.plots.finding import families_figure, frequencies_figure, rules_figure, weights_figure
from analyses.plots.removing import losses_figure, removal_figure, subsets_figure
from analyses.plots.training import progress_figure, training_figure

__all__ = [
    "circles_figure",
    "circuit_figure",
    "clock_or_pizza_figure",
    "energy_figure",
    "families_figure",
    "frequencies_figure",
    "hidden_fit_figure",
    "losses_figure",
    "low_rank_figure",
    "neurons_figure",
    "progress_figure",
    "removal_figure",
    "rules_figure",
    "singular_pairs_figure",
    "subsets_figure",
    "training_figure",
    "weights_figure",
]
