"""Where the structure is cleanest: low rank (C2), Fourier multiplication (C6) and removal (C7), by setting.

python -m studies.clean --seeds 0 1 2      (goes on where it was cut off)
python -m studies.clean --write-page         (docs/clean.md from the table)
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from analyses.adder import Adder
from analyses.attribution import hidden_fit
from analyses.claims import C2_ENERGY, C6_RELATIVE, C7_ALL_REMOVED, C7_ONE_REMOVED
from analyses.key_frequencies import find
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.measure import matrices
from analyses.places import last_place, read
from analyses.seeds import read_csv
from analyses.sites import SITES, sites
from hooked_rnn import HookedRNN, ModularTask, Run
from hooked_rnn.pretrained import EMBEDDED as MODELS
from studies.study import FOLDER, P, Study

PAGE = FOLDER.parent / "docs" / "clean.md"

SETTINGS: dict[str, dict[str, Any]] = {
    "40% of the pairs, 1,500 + 1,500 steps": {},
    "40%, 400 + 3,000": {"orthogonal_steps": 400, "steps": 3400},
    "40%, 400 + 6,000": {"orthogonal_steps": 400, "steps": 6400},
    "40%, 400 + 3,000, weight decay 3": {"orthogonal_steps": 400, "steps": 3400, "weight_decay": 3.0},
    "60%, 200 + 3,000": {"orthogonal_steps": 200, "steps": 3200, "train_fraction": 0.6},
    "60%, 150 + 5,000, width 512, learning rate 1e-3, weight decay 1": {
        "orthogonal_steps": 150,
        "steps": 5150,
        "train_fraction": 0.6,
        "d_hidden": 512,
        "lr": 1e-3,
        "weight_decay": 1.0,
    },
    "60%, 0 + 3,000": {"orthogonal_steps": 0, "train_fraction": 0.6},
}
"""By how many steps of the orthogonal gradient and of AdamW."""
CLEAN = "40%, 400 + 3,000"
"""The setting that ``mod-add-113-clean`` was chosen from."""

FIGURES = {
    "n_key": "key frequencies",
    "energy W_E": "W_E",
    "energy W_ih": "W_ih",
    "energy W_hh": "W_hh",
    "energy W_U": "W_U",
    "least_fit_error": "least fit error",
    "largest_fit_error": "largest fit error",
    "W_E without all": "W_E without all",
    "hidden without all": "hidden without all",
    "W_U without all": "W_U without all",
    "W_U without doubles": "and doubles",
}
"""Of a row, and their heads on the page."""


def figures_of(run: Run) -> dict[str, Any]:
    """The figures of a run."""
    return figures_of_model(run.model, run.task)


@torch.no_grad()
def figures_of_model(model: HookedRNN, task: ModularTask) -> dict[str, Any]:
    """Accuracy, energies, fit errors and removals as ``analyses.seeds.row`` has them, without its controls.

    And one more, ``X without doubles``: accuracy without the key frequencies and without twice each of them, which a ReLU makes.
    """
    adder = Adder(model, task)
    hidden, key = read(adder, last_place(adder)), find(adder).by_share
    correct = adder.logits().argmax(-1) == adder.labels
    errors = sorted(hidden_fit(hidden, model.W_U, k).relative for k in key)
    figures: dict[str, Any] = {"accuracy": float(correct.double().mean()), "n_key": len(key)}
    figures["key_frequencies"] = " ".join(map(str, key))
    for name, matrix in matrices(model).items():
        figures[f"energy {name}"] = held_by_first(cumulative_energy(matrix), 2 * len(key))
    figures |= {"least_fit_error": errors[0], "largest_fit_error": errors[-1]}
    for name, site in sites(adder).items():
        figures[f"{name} without 1"] = sum(site.accuracy_without([k]) for k in key) / len(key)
        figures[f"{name} without all"] = site.accuracy_without(key)
        figures[f"{name} without doubles"] = site.accuracy_without(sorted({*key, *doubles(key, task.p)}))
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}


def doubles(frequencies: list[int], p: int) -> list[int]:
    """Twice each frequency, folded into 1..p//2."""
    return [min(2 * k % p, -2 * k % p) for k in frequencies]


STUDY = Study("clean", "python -m studies.clean", "fast", {}, SETTINGS, figures_of, FIGURES)


def holds(row: Mapping[str, str]) -> dict[str, bool]:
    """Whether C2 holds for W_hh and for every matrix, and C7 at each site and at all, but for C7's control."""
    energies = {name: float(row[name]) >= C2_ENERGY for name in row if name.startswith("energy ")}
    sites = {
        site: float(row[f"{site} without 1"]) >= C7_ONE_REMOVED and float(row[f"{site} without all"]) <= C7_ALL_REMOVED
        for site in SITES
    }
    C2, C7 = all(energies.values()), all(sites.values())
    return {
        "C2, W_hh": energies["energy W_hh"],
        "C2, all matrices": C2,
        **{f"C7, {site}": held for site, held in sites.items()},
        "C7, all three": C7,
        "C2 and C7": C2 and C7,
    }


def page() -> str:
    """docs/clean.md: what was looked for, the tables, and what they say."""
    rows = STUDY.rows()
    return "\n".join([*_HEAD, *STUDY.section(), "", *_verdicts(rows), "", *_what_they_say(rows)])


_HEAD = [
    "# Where the structure is cleanest",
    "",
    "Low rank (C2), Fourier multiplication (C6) and removal (C7) are the claims that depend most on how a network was trained. Each row is a setting:",
    "share of the pairs, steps on the orthogonal gradient + steps of AdamW (learning rate 3e-3, weight decay 2 and betas 0.9, 0.98 but where it says",
    "otherwise). Medians over the seeds, least to most. W_E to W_U: share of the matrix's energy in its first 2K singular components, K the number of key",
    f"frequencies; C2 holds from {C2_ENERGY:.1%}. Fit errors: the least and the largest over the key frequencies; C6 holds at {C6_RELATIVE:g}. `without all`: accuracy",
    "on all pairs without the key frequencies in W_E, in the last hidden state, in W_U; C7 holds up to "
    f"{C7_ALL_REMOVED:.0%}, with at least {C7_ONE_REMOVED:.0%} without one of them.",
    "`and doubles`: in W_U without twice each key frequency as well. This page is written by `python -m studies.clean --write-page` from",
    "`studies/clean.csv`, which has every run.",
    "",
]


def _verdicts(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    fits = sum(float(row["largest_fit_error"]) <= C6_RELATIVE for row in rows)
    yield from (f"In how many of the seeds a claim holds (C6, of all {len(rows)} runs: in {fits}):", "")
    heads = list(holds(rows[0]))
    yield f"| setting | seeds | {' | '.join(heads)} |"
    yield "| --- |" + " --- |" * (1 + len(heads))
    for setting in SETTINGS:
        held = [holds(row) for row in rows if row["setting"] == setting]
        if held:
            yield f"| {setting} | {len(held)} | {' | '.join(str(sum(h[head] for h in held)) for head in heads)} |"


def _what_they_say(rows: Sequence[Mapping[str, str]]) -> list[str]:
    def figures(name: str, chosen: Sequence[Mapping[str, str]] = rows) -> list[float]:
        return [float(row[name]) for row in chosen]

    def span(values: list[float], digits: str) -> str:
        return f"{min(values):{digits}} to {max(values):{digits}}"

    seeds = len({row["seed"] for row in rows})
    both = [row for row in rows if holds(row)["C2 and C7"]]
    by_setting = {setting: [row["seed"] for row in both if row["setting"] == setting] for setting in SETTINGS}
    held = "; ".join(f"{setting}: seed {', '.join(of)}" for setting, of in by_setting.items() if of)
    turned = [row for row in rows if SETTINGS[row["setting"]].get("orthogonal_steps") != 0]
    wide = [row for row in rows if "width" in row["setting"]]
    card = read_csv(MODELS / "mod-add-113-clean" / "seeds.csv")
    of_card = [row["seed"] for row in card if row["C2"] == row["C7"] == "holds"]
    return [
        f"- **C6 is out of reach here.** Of all {len(rows)} runs the least error of any key frequency is {min(figures('least_fit_error')):.3f} and the smallest "
        f"largest one {min(figures('largest_fit_error')):.3f}; the published range ends at {C6_RELATIVE:g}.",
        f"- **C2, with W_hh, and C7 do hold together**, in {len(both)} runs ({held}). No setting has it in all {seeds} seeds."
        if max(map(len, by_setting.values())) < seeds
        else f"- **C2, with W_hh, and C7 do hold together**, in {len(both)} runs ({held}).",
        "- **What remains without the key frequencies is their doubles.** A ReLU of a wave of frequency k has 2k in it, and W_U reads it: 2k of all key",
        "  frequencies names the answer as well as k does, so that a faint remainder decides if it is clean. Where the orthogonal gradient was used, "
        f"{span(figures('W_U without all', turned), '.1%')}",
        f"  of the pairs are right without the key frequencies in W_U, and {span(figures('W_U without doubles', turned), '.1%')} without their doubles too; chance is "
        f"{1 / P:.1%}.",
        f"- **Width 512 is no cleaner**, at the smaller learning rate and weight decay that are usual: 2K components hold {span(figures('energy W_U', wide), '.1%')} of W_U, and the",
        f"  largest fit errors are {span(figures('largest_fit_error', wide), '.3f')}.",
        f"- **`mod-add-113-clean`** is of {CLEAN}. Of its {len(card)} seeds C2 and C7 hold in seed {', '.join(of_card)}, which its rule then chose. It begins as `mod-add-113` does "
        "(the same initial weights,",
        "  pairs and first 400 steps) and has the same key frequencies: it is the same solution, cleaned for longer, and no independent network.",
        "- `mod-add-113` and `mod-add-113-adamw` are of the first and the last setting. They were trained on another kind of processor, where rounding differs:",
        "  their cards have the figures of their own seeds.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--write-page", action="store_true")
    arguments = parser.parse_args()
    if arguments.seeds:
        STUDY.fill(arguments.seeds)
    if arguments.write_page:
        PAGE.write_text(page() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
