"""What each hyperparameter does to the two recipes, one changed at a time.

python -m studies.recipes --recipe fast --seeds 0 1      (and --recipe adamw; goes on where it was cut off)
python -m studies.recipes --write-page                     (docs/recipes.md from the tables)
"""

import argparse
from typing import Any

import torch

from analyses.adder import Adder
from analyses.attribution import hidden_fit
from analyses.key_frequencies import find
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.measure import matrices
from analyses.places import last_place, read
from hooked_rnn import Run
from hooked_rnn.training.config import RECIPES
from studies.study import EVAL_EVERY, FOLDER, P, Study

PAGE = FOLDER.parent / "docs" / "recipes.md"

BASE: dict[str, dict[str, Any]] = {
    "fast": {"steps": 3000, "orthogonal_steps": 1500, "train_fraction": 0.4, "lr": 3e-3, "weight_decay": 1.0},
    "adamw": {"steps": 3000, "orthogonal_steps": 0, "train_fraction": 0.6, "lr": 3e-3, "weight_decay": 1.0},
}
"""What the settings depart from. The recipes' defaults were then chosen from the results, so these are not they."""

COMMON: dict[str, dict[str, Any]] = {
    "base": {},
    "betas 0.9, 0.95": {"betas": (0.9, 0.95)},
    "betas 0.9, 0.999": {"betas": (0.9, 0.999)},
    "initial scale 0.5": {"init_scale": 0.5},
    "initial scale 2": {"init_scale": 2.0},
    "learning rate 1e-3": {"lr": 1e-3},
    "weight decay 0.5": {"weight_decay": 0.5},
    "weight decay 2": {"weight_decay": 2.0},
    "d_hidden 128": {"d_hidden": 128},
    "d_hidden 512": {"d_hidden": 512},
    "'=' token": {"equals_token": True},
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {
        **COMMON,
        "30% of the pairs": {"train_fraction": 0.3},
        "60% of the pairs": {"train_fraction": 0.6},
        "80% of the pairs": {"train_fraction": 0.8},
        "orthogonal learning rate 5e-3": {"orthogonal_lr": 5e-3},
        "orthogonal learning rate 2e-2": {"orthogonal_lr": 2e-2},
        "400 orthogonal steps": {"orthogonal_steps": 400},
    },
    "adamw": {
        **COMMON,
        "40% of the pairs": {"train_fraction": 0.4},
        "80% of the pairs": {"train_fraction": 0.8},
    },
}
"""By recipe and setting, what is not the recipe's."""

FIGURES = {
    "steps_to_99": "steps to 99%",
    "test_accuracy": "test accuracy",
    "n_key": "key frequencies",
    "energy W_E": "W_E",
    "energy W_ih": "W_ih",
    "energy W_hh": "W_hh",
    "energy W_U": "W_U",
    "least_fit_error": "least fit error",
    "largest_fit_error": "largest fit error",
}
"""Of a row, and their heads on the page."""


@torch.no_grad()
def figures_of(run: Run) -> dict[str, Any]:
    """The figures of a run; energies in the first 2K singular components, relative errors of the hidden fits."""
    model, task = run.model, run.task
    adder = Adder(model, task)
    key = find(adder)
    hidden = read(adder, last_place(adder))
    errors = sorted(hidden_fit(hidden, model.W_U, k).relative for k in key.frequencies)
    held = {
        f"energy {name}": round(held_by_first(cumulative_energy(matrix), 2 * len(key.frequencies)), 4)
        for name, matrix in matrices(model).items()
        if f"energy {name}" in FIGURES
    }
    return {
        "steps_to_99": next((row["step"] for row in run.history if row["test_accuracy"] >= 0.99), ""),
        "test_accuracy": round(run.history[-1]["test_accuracy"], 5),
        "n_key": len(key.frequencies),
        "key_frequencies": " ".join(map(str, key.by_share)),
        **held,
        "least_fit_error": round(errors[0], 4) if errors else "",
        "largest_fit_error": round(errors[-1], 4) if errors else "",
        "seconds": round(run.history[-1]["seconds"], 1),
    }


STUDIES = {
    recipe: Study(
        f"recipes-{recipe}",
        f"python -m studies.recipes --recipe {recipe}",
        recipe,
        BASE[recipe],
        SETTINGS[recipe],
        figures_of,
        FIGURES,
    )
    for recipe in RECIPES
}
"""By recipe."""


def page() -> str:
    """docs/recipes.md: for each setting the median over the seeds, and least and largest."""
    return "\n".join(
        [*_head(), *(line for recipe in RECIPES for line in ("", f"## {recipe}", "", *STUDIES[recipe].section()))]
    )


def _head() -> list[str]:
    return [
        "# What each hyperparameter does",
        "",
        f"Addition modulo {P}, two numbers, d_model 128, d_hidden 256, one thread; the base but for the one setting that a row names.",
        "Each cell is the median over the seeds with the least and the largest. `steps to 99%`: the first evaluation (every",
        f"{EVAL_EVERY} steps) with 99% test accuracy; the share of the seeds that came there, where not all did. W_E to W_U: share of the matrix's",
        "energy in its first 2K singular components, K the number of key frequencies. Fit errors: the least and the largest, over the key",
        "frequencies, relative error of the last hidden state's projections on cos and sin of w_k(a+b) (claim C6).",
        "",
        "From these rows the defaults were chosen: weight decay 2 in place of 1 more than halves the least fit errors and raises the energy of W_hh and",
        "W_U in both recipes. 1,500 orthogonal steps are what 30% of the pairs take; on 40% they are more than enough, and 400 give better fits. For AdamW",
        "alone betas of 0.9 and 0.999 do about as well as weight decay 2; 0.98 was kept, so that the two recipes differ in the orthogonal gradient",
        "alone. Two seeds are few: where the ranges of two rows overlap, take them to be alike.",
        "Where low rank, Fourier multiplication and removal hold most clearly is [a page of its own](clean.md).",
        "",
        "This page is written by `python -m studies.recipes --write-page` from `studies/recipes-*.csv`, which have every run.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--write-page", action="store_true")
    arguments = parser.parse_args()
    if arguments.recipe:
        STUDIES[arguments.recipe].fill(arguments.seeds)
    if arguments.write_page:
        PAGE.write_text(page() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
