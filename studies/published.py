"""The published figures of networks that add modulo 113, beside the same quantities of ours, by named operators, over seeds.

    hooked-rnn train --model transformer ... --seed 0 --out runs/transformer-0     (and so on; the options are in COMMANDS)
    python -m studies.published --measure runs/*                                   # studies/published.csv
    python -m studies.published --write-page                                       # docs/published.md

A row is a run directory, or an embedded model.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from analyses.adder import Adder
from analyses.attribution import hidden_fit
from analyses.key_frequencies import find, neuron_hook
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.neurons import EXPLAINED, cluster_neurons
from analyses.places import last_place, read
from analyses.seeds import read_csv, write_csv
from hooked_rnn import HookedRNN, load_model, model_config
from hooked_rnn.pretrained import embedded_names, local_directory, read_training
from hooked_rnn.tasks import task_from_dict
from hooked_rnn.training.run_directory import read_history

TABLE = Path(__file__).with_name("published.csv")
PAGE = Path(__file__).parent.parent / "docs" / "published.md"
COMMANDS = {
    "rnn": "hooked-rnn train --recipe fast --eval-every 10 --threads 1",
    "mlp": "hooked-rnn train --model mlp --orthogonal-steps 300 --steps 600 --eval-every 10 --threads 1",
    "transformer": "hooked-rnn train --model transformer --equals-token --orthogonal-lr 3e-3 --orthogonal-steps 120 --steps 420 "
    "--eval-every 20 --threads 1",
}
"""What made the runs, but for the seed."""


@torch.no_grad()
def figures_of(run: str) -> dict[str, Any]:
    """The row of one run directory, or of an embedded model."""
    directory = local_directory(run)
    record = read_training(directory) if directory else None
    if directory is None or record is None:
        raise SystemExit(f"{run} is no run directory")
    model = load_model(run)
    adder, train = Adder(model, task_from_dict(record["task"])), record["train"]
    history = read_history(directory)
    key, by_logits = find(adder), find(adder, "logit variance")
    state = read(adder, last_place(adder))
    errors = sorted(hidden_fit(state, adder.W_U, k).relative for k in by_logits.frequencies)
    weights = {"W_E": adder.W_E, "W_U": adder.W_U}
    if isinstance(model, HookedRNN):
        weights |= {"W_ih": model.blocks[0].W_ih, "W_hh": model.blocks[0].W_hh}
    held = {
        f"energy {name}": held_by_first(cumulative_energy(w), 2 * len(key.frequencies)) for name, w in weights.items()
    }
    return {
        "model": model_config(model).architecture,
        "name": run if run in embedded_names() else f"{model_config(model).architecture} seed {train['seed']}",
        "seed": train["seed"],
        "accuracy": float((adder.logits().argmax(-1) == adder.labels).double().mean()),
        "steps": history[-1]["step"],
        "steps_to_95": next((row["step"] for row in history if row["test_accuracy"] >= 0.95), None),
        "n_key": len(key.frequencies),
        "key_frequencies": " ".join(map(str, key.by_share)),
        "n_key logits": len(by_logits.frequencies),
        "key_frequencies logits": " ".join(map(str, by_logits.by_share)),
        "n_key neurons": len(find(adder, "neuron argmax").frequencies),
        "logits_explained": by_logits.spectrum.share_of(by_logits.frequencies),
        "neurons_explained": cluster_neurons(adder.activation(neuron_hook(adder)), adder.p).share_above,
        **held,
        "least_fit_error": errors[0] if errors else None,
        "largest_fit_error": errors[-1] if errors else None,
    }


@dataclass(frozen=True)
class Quantity:
    """A published figure, and what of ours stands beside it."""

    source: str
    text: str
    """What it is."""
    published: str
    operator: str
    """The function of this project that measures it on ours, with its threshold."""
    columns: Sequence[str]
    """Of the table; the least and the largest of several are over all of them."""
    form: Callable[[float], str] = "{:.1%}".format


COUNT = "{:g}".format
KEY = "key_frequencies.find, 'embedding share': more than 2/(p//2) of the embedding's power"
LOGIT_KEY = "key_frequencies.find, 'logit variance': more than 1% of the logits' variance on cos(w(a+b-c))"
ENERGY = "low_rank.cumulative_energy of the first 2K components, K by 'embedding share'"
EXPLAINED_BY = "key_frequencies.logit_spectrum, summed over those of 'logit variance'"
QUANTITIES = (
    Quantity("Rangamani 2025, C2 (RNN)", "energy in the significant singular components of W_E", "85.4-95.5%, which matrices is not said", ENERGY, ("energy W_E",)),
    Quantity("", "of W_ih", "", ENERGY, ("energy W_ih",)),
    Quantity("", "of W_hh", "", ENERGY, ("energy W_hh",)),
    Quantity("", "of W_U", "", ENERGY, ("energy W_U",)),
    Quantity("Rangamani 2025, C3 (RNN)", "dominant frequencies", "6", KEY, ("n_key",), COUNT),
    Quantity("Rangamani 2025, C6 (RNN)", "relative error of the last state's projections, least", "1e-3 to 1e-2", "attribution.hidden_fit at the key frequencies, relative", ("least_fit_error",), "{:.3f}".format),
    Quantity("", "largest", "", "the same", ("largest_fit_error",), "{:.3f}".format),
    Quantity("Nanda et al. 2023 (transformer, 30%)", "key frequencies", "3-6", LOGIT_KEY, ("n_key logits",), COUNT),
    Quantity("", "the same, by the embedding", "", KEY, ("n_key",), COUNT),
    Quantity("", "logits' variance explained by cos(w(a+b-c))", "95%", EXPLAINED_BY, ("logits_explained",)),
    Quantity("", "neurons of which one frequency explains over 85%", "84.6%", f"neurons.cluster_neurons, families a, b, block, above {EXPLAINED}", ("neurons_explained",)),
    Quantity("", "steps to 95% test accuracy", "grokking at about 10,000 (AdamW)", "first evaluation of the history with 95%; ours with the orthogonal gradient first, on 40%", ("steps_to_95",), COUNT),
    Quantity("Chughtai et al. 2023 (30%, 4 seeds)", "key frequencies of the MLP; of the transformer", "10-15; 3-4", LOGIT_KEY, ("n_key logits",), COUNT),
    Quantity("", "logits' variance explained: MLP; transformer", "92.7-98.1%; 95.2-97.9%", EXPLAINED_BY, ("logits_explained",)),
    Quantity("Prieto et al. 2025 (MLP, 40%)", "steps to 95% test accuracy with the orthogonal gradient", "150-155", "first evaluation with 95% test accuracy", ("steps_to_95",), COUNT),
)  # fmt: skip


def rows_of(model: str) -> list[Mapping[str, Any]]:
    """The table's rows of a kind of model."""
    return [row for row in read_csv(TABLE) if row["model"] == model]


def cell(quantity: Quantity, rows: Sequence[Mapping[str, Any]]) -> str:
    """Median, least and largest over the rows that have it."""
    values = [float(row[name]) for row in rows for name in quantity.columns if row.get(name)]
    if not values:
        return "none"
    middle, least, largest = (quantity.form(x) for x in (median(values), min(values), max(values)))
    return f"{middle} ({least} to {largest})"


def page() -> str:
    """docs/published.md."""
    kinds = [kind for kind in ("rnn", "transformer", "mlp") if rows_of(kind)]
    record = json.loads(TABLE.with_suffix(".json").read_text(encoding="utf-8"))
    heads = [f"our {kind}, {len(rows_of(kind))} seeds" for kind in kinds]
    lines = [
        "# Beside the published figures",
        "",
        "What others report of networks that add modulo 113, and the same quantity on ours: median (least to largest) over runs. The operator",
        "says how ours was measured, on 40% of the pairs; where the source has another threshold or training set, the two need not agree, and are set side by side,",
        "not compared by a test. Definitions: [operators and thresholds](definitions.md).",
        "",
        f"| source | quantity | published | {' | '.join(heads)} | operator |",
        "| --- | --- | --- |" + " --- |" * (len(heads) + 1),
    ]
    for q in QUANTITIES:
        cells = [cell(q, rows_of(kind)) for kind in kinds]
        lines.append(f"| {q.source} | {q.text} | {q.published} | {' | '.join(cells)} | {q.operator} |")
    lines += ["", *NOTES, "", "The runs:", ""]
    lines += [f"- {', '.join(row['name'] for row in rows_of(kind))}: `{COMMANDS[kind]}`" for kind in kinds]
    made_with = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines += ["", f"Made with {made_with}. {WRITTEN_BY}"]
    return "\n".join(lines)


NOTES = (
    "The seven rows of Rangamani 2025 are about the RNN; a transformer's last state is what its unembedding reads, an MLP's are",
    "its neurons. The steps of our runs are of the orthogonal gradient, but for what a transformer took beyond its first 120.",
    "",
    "A dominant frequency is not counted alike by all: `embedding share` looks at the embedding, `logit variance` at what the network says.",
)
WRITTEN_BY = (
    "This page is written by `python -m studies.published --write-page` from `studies/published.csv`, whose rows `python -m studies.published "
    "--measure RUN ...` measured."
)


def measure(runs: Sequence[str]) -> None:
    """Write the table of some runs."""
    from hooked_rnn.training.run_directory import versions

    torch.set_num_threads(1)
    rows = sorted((figures_of(run) for run in runs), key=lambda row: (row["model"], row["seed"]))
    write_csv(rows, TABLE)
    made = {kind: command for kind, command in COMMANDS.items() if any(row["model"] == kind for row in rows)}
    record = {"commands": made, "versions": versions(), "threads": 1}
    TABLE.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="+", metavar="RUN", default=[])
    parser.add_argument("--write-page", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    if arguments.write_page:
        PAGE.write_text(page() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
