"""Put one of several trained runs into the package as an embedded model, with its card.

    hooked-rnn train --recipe fast --seed 0 --threads 1 --out runs/seed-0     (and so on, for every seed)
    python tools/embed_model.py mod-add-113 --command "hooked-rnn train --recipe fast --threads 1" runs/seed-*

Which run is embedded is decided by the rule of that name in ``analyses.seeds.RULES``, not by hand. ``--command`` is what
the card says that the runs were made with, but for the seed.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from analyses.seeds import RULES, SEEDS, choose, tabulate, write_csv
from hooked_rnn import TransformerConfig, load_model, model_config, save_model
from hooked_rnn.architectures import architecture_of
from hooked_rnn.files import write_text_atomically
from hooked_rnn.pretrained import EMBEDDED, TRAINING, read_training
from hooked_rnn.training.run_directory import HISTORY

SPREAD_OF = (
    "accuracy",
    "held_out_accuracy",
    "n_key",
    "energy W_E",
    "energy W_ih",
    "energy W_hh",
    "energy W_U",
    "embedding_explained",
    "least_fit_error",
    "largest_fit_error",
    "W_E without 1",
    "W_E without all",
    "n_key logits",
    "neurons_explained",
    "logits_clock",
    "logits_pizza",
    "restricted_loss",
    "excluded_loss",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(RULES), help="name of the embedded model")
    parser.add_argument("--command", required=True, help="such as 'hooked-rnn train --recipe fast --threads 1'")
    parser.add_argument("runs", nargs="+", help="run directories that differ in the seed alone")
    arguments = parser.parse_args()

    rows = tabulate(arguments.runs)
    chosen = choose(rows, RULES[arguments.name])
    by_seed = {read_training(Path(run))["train"]["seed"]: Path(run) for run in arguments.runs}
    source, target = by_seed[chosen["seed"]], EMBEDDED / arguments.name
    target.mkdir(parents=True, exist_ok=True)
    save_model(load_model(source), target)
    for file in (TRAINING, HISTORY):
        shutil.copyfile(source / file, target / file)
    write_csv(rows, target / SEEDS)
    write_text_atomically(
        target / "README.md", card(arguments.name, arguments.command, read_training(source), rows, chosen)
    )
    print(f"{target}: seed {chosen['seed']} of {len(rows)}")


def card(
    name: str,
    command: str,
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
) -> str:
    """The model card, every number of it from the table."""
    train, task, versions = record["train"], record["task"], record["versions"]
    model = load_model(EMBEDDED / name)
    cfg, parameters = model_config(model), architecture_of(model).weights_of(model)
    tokens = "tokens a, b, =" if task["equals_token"] else "tokens a, b"
    return f"""---
license: mit
library_name: hooked-rnn
tags: [interpretability, transformer-lens, {cfg.architecture}, modular-addition]
---

# {name}

{_kind(cfg)} that adds two numbers modulo {task["p"]}, trained by hooked_rnn: {tokens}; {_sizes(cfg)};
{"with" if cfg.bias else "no"} biases; {sum(w.numel() for w in parameters.values()):,} parameters.

| | |
| --- | --- |
| command | `{command} --seed {chosen["seed"]}` |
| seed | {chosen["seed"]} (initial weights and split) |
| versions | {", ".join(f"{package} {version}" for package, version in versions.items())} |
| trained on | {train["train_fraction"]:.0%} of the {task["p"] ** 2:,} pairs, full batch, {record["dtype"]} on {record["device"]} |
| recipe | {_recipe(train)}; betas {tuple(train["betas"])} |
| accuracy | {chosen["accuracy"]:.2%} of all pairs, {chosen["held_out_accuracy"]:.2%} of those not trained on |
| key frequencies | {chosen["key_frequencies"].replace(" ", ", ")} (strongest first; shares {chosen["key_shares"].replace(" ", ", ")} of the power of {_embedding(cfg)}) |
| weights | SHA-256 of names, shapes and bytes begins {chosen["sha256"]} |

The same command gives the same bits on the same kind of machine with the same versions; on another one rounding differs,
and with it, sometimes, the frequencies.

## How it was chosen

Seeds {", ".join(str(row["seed"]) for row in rows)} were trained and measured. The rule, fixed before: {RULES[name].text}.

## Every seed

{_legend(cfg)}

{_table([_turned(row) for row in rows], [str(row["seed"]) + (" (this one)" if row is chosen else "") for row in rows])}

## Spread over the seeds

| metric | min | median | max |
| --- | --- | --- | --- |
{chr(10).join(_spread(metric, rows) for metric in SPREAD_OF if metric in rows[0])}
"""


def _kind(cfg: Any) -> str:
    return "A transformer" if isinstance(cfg, TransformerConfig) else "A vanilla RNN"


def _sizes(cfg: Any) -> str:
    width = (
        f"{cfg.n_heads} heads, d_mlp {cfg.d_mlp}" if isinstance(cfg, TransformerConfig) else f"d_hidden {cfg.d_hidden}"
    )
    return f"d_model {cfg.d_model}, {width}, {cfg.n_layers} layer, {cfg.act_fn}"


def _embedding(cfg: Any) -> str:
    return "W_E" if isinstance(cfg, TransformerConfig) else "W_E W_ih"


def _legend(cfg: Any) -> str:
    common = """Accuracies and energies are fractions of one. `energy X`: share of X's energy in its first 2K singular components, K the
number of key frequencies. `without 1`, `without all`: mean accuracy with so many key frequencies removed there."""
    if isinstance(cfg, TransformerConfig):
        return f"""{common}
`n_key logits`: frequencies with more than 1% of the logits' variance on cos(w(a+b-c)). `neurons_explained`: share of the neurons of
whose variance one frequency explains more than 85%. `logits_clock`, `logits_pizza`: share of the logits' variance that the form
explains at the key frequencies. Losses in nats. Operators: `analyses/metrics.py`. The same numbers, with full digits: `seeds.csv`."""
    return f"""{common}
`fit error`: relative error of the last hidden state's projections (claim C6), the least and the largest over the key frequencies.
C1 to C7: whether the claim holds by `analyses/claims.py`. The same numbers, with full digits: `seeds.csv`."""


def _recipe(train: Mapping[str, Any]) -> str:
    orthogonal = train["orthogonal_steps"]
    adamw = f"AdamW (lr {train['lr']:g}, weight decay {train['weight_decay']:g})"
    if not orthogonal:
        return f"{train['steps']:,} steps of {adamw}"
    before = f"lr {train['orthogonal_lr']:g}, weight decay {train['orthogonal_weight_decay']:g}"
    return f"{orthogonal:,} steps of AdamW on the orthogonal gradient ({before}), then {train['steps'] - orthogonal:,} of {adamw}"


def _turned(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items() if key != "seed"
    }


def _table(columns: Sequence[Mapping[str, str]], heads: Sequence[str]) -> str:
    lines = [f"| seed | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    return "\n".join(lines + [f"| {key} | {' | '.join(column[key] for column in columns)} |" for key in columns[0]])


def _spread(metric: str, rows: Sequence[Mapping[str, Any]]) -> str:
    values = [row[metric] for row in rows if row[metric] is not None]
    return f"| {metric} | {min(values):.4g} | {median(values):.4g} | {max(values):.4g} |"


if __name__ == "__main__":
    main()
