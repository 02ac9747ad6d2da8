"""What every study is: settings times seeds, one run a row, kept as a table that grows row by row.

A row is one run on addition modulo 113, d_model 128, one thread; what a setting says may be a field of the
task, of the network or of the training.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, Run, TrainConfig, train
from hooked_rnn.training.run_directory import versions

FOLDER = Path(__file__).parent
P = 113
EVAL_EVERY = 25
MODEL = ("init_scale", "d_hidden")
"""What a setting may say of the network."""
TASK = ("equals_token",)
"""What a setting may say of the task."""
WHOLE = ("steps_to_99", "n_key")
"""Figures that are whole numbers."""


@dataclass(frozen=True)
class Study:
    """Settings times seeds."""

    name: str
    """Of its files: ``studies/NAME.csv``, and beside it a .json of command, versions and base."""
    command: str
    """What fills the table, but for the seeds."""
    recipe: str
    base: Mapping[str, Any]
    """What every row has otherwise than the recipe."""
    settings: Mapping[str, Mapping[str, Any]]
    """By name, what is not the base's."""
    measure: Callable[[Run], dict[str, Any]]
    """The figures of a run; its keys are the columns."""
    shown: Mapping[str, str]
    """Which of them the page has, and their heads there."""

    @property
    def table(self) -> Path:
        return FOLDER / f"{self.name}.csv"

    @property
    def record(self) -> Path:
        return self.table.with_suffix(".json")

    def run(self, setting: str, seed: int) -> Run:
        """The run of one row."""
        changed = {**self.base, **self.settings[setting]}
        task = ModularAddition(P, **{key: changed[key] for key in TASK if key in changed})
        sizes = {"d_model": 128, "d_hidden": 256, **{key: changed[key] for key in MODEL if key in changed}}
        cfg = HookedRNNConfig(d_vocab=task.d_vocab, d_vocab_out=P, n_ctx=task.n_ctx, seed=seed, **sizes)
        fields = {key: value for key, value in changed.items() if key not in MODEL + TASK}
        config = TrainConfig.recipe(self.recipe, seed=seed, eval_every=EVAL_EVERY, **fields)
        return train(HookedRNN(cfg), task, config, progress=False)

    def rows(self) -> list[dict[str, str]]:
        """The rows that there are."""
        if not self.table.is_file():
            return []
        with self.table.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def fill(self, seeds: list[int]) -> None:
        """Add the rows that are missing, seed by seed."""
        torch.set_num_threads(1)
        done = {(row["setting"], int(row["seed"])) for row in self.rows()}
        self._write_record(seeds)
        for seed in seeds:
            for setting in self.settings:
                if (setting, seed) not in done:
                    self._append({"setting": setting, "seed": seed, **self.measure(self.run(setting, seed))})

    def section(self) -> Iterator[str]:
        """The lines of the page: how the table was made, and for each setting the figures over its seeds."""
        record = json.loads(self.record.read_text(encoding="utf-8"))
        base = record["recipe"]
        shown = ", ".join(f"{key} {base[key]}" for key in base if key not in ("name", "seed", "stop_at", "batch_size"))
        made_with = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        yield from (f"`{record['command']}`, with {made_with}. The base: {shown}.", "")
        yield f"| setting | seeds | {' | '.join(self.shown.values())} |"
        yield "| --- |" + " --- |" * (1 + len(self.shown))
        rows = self.rows()
        for setting in self.settings:
            chosen = [row for row in rows if row["setting"] == setting]
            if chosen:
                cells = " | ".join(_cell(figure, [row[figure] for row in chosen]) for figure in self.shown)
                yield f"| {setting} | {len(chosen)} | {cells} |"

    def _write_record(self, seeds: list[int]) -> None:
        record = {
            "command": f"{self.command} --seeds {' '.join(map(str, seeds))}",
            "versions": versions(),
            "threads": 1,
            "recipe": TrainConfig.recipe(self.recipe, **self.base).to_dict(),
        }
        self.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _append(self, row: Mapping[str, Any]) -> None:
        begins = not self.table.is_file()
        with self.table.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
            if begins:
                writer.writeheader()
            writer.writerow(row)
        print(dict(row), flush=True)


def _cell(figure: str, texts: list[str]) -> str:
    values = [float(text) for text in texts if text]
    if not values:
        return "none"
    digits = "{:g}" if figure in WHOLE else "{:.3f}"
    middle, least, largest = (digits.format(value) for value in (median(values), min(values), max(values)))
    some = f", {len(values)} of {len(texts)}" if len(values) < len(texts) else ""
    return f"{middle} ({least} to {largest}{some})"
