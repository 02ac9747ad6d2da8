"""Models side by side: each measured by the same runner, every pair with the reference judged, the swap made where it is asked for."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from analyses.c9 import Judged, Row, judge_rows, overall
from analyses.compared import Compared, check_number, check_same_task, labelled, reference_of
from analyses.key_frequencies import find
from analyses.metrics import Absent, Metrics, n_ticks, run_metrics
from analyses.stitching import SwapTest, swap_test
from hooked_rnn.training.run_directory import versions


@dataclass(frozen=True)
class Comparison:
    """Several models, what was measured of each, and what it says of C9."""

    models: list[Compared]
    metrics: list[Metrics]
    """Of each."""
    reference: int
    """Which of them the others are held against."""
    rows: list[Row]
    swaps: dict[int, list[SwapTest]]
    """By the other model's place: the swap into the reference, and the one out of it. Empty where none was asked for."""

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return [model.name for model in self.models]

    @property
    def others(self) -> list[int]:
        """The places of all but the reference."""
        return [i for i in range(len(self.models)) if i != self.reference]

    def overall(self, model: int) -> tuple[Judged, str]:
        """C9 of a model and the reference, and how many rows say what."""
        return overall(self.rows, model)

    def to_dict(self) -> dict[str, Any]:
        """What ``compare.json`` holds. Shares and accuracies are fractions of one, losses are in nats."""
        names = self.names
        return {
            "versions": versions(),
            "reference": names[self.reference],
            "models": {
                model.name: {
                    "kind": model.kind,
                    "task": model.adder.task.to_dict(),
                    "notes": list(model.notes),
                    "metrics": metrics.to_dict(),
                }
                for model, metrics in zip(self.models, self.metrics, strict=True)
            },
            "rows": [self._row(row) for row in self.rows],
            "C9": {names[i]: _verdict(*self.overall(i)) for i in self.others},
            "swaps": {
                names[i]: {"into the reference": into.to_dict(), "out of it": out.to_dict()}
                for i, (into, out) in self.swaps.items()
            },
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def _row(self, row: Row) -> dict[str, Any]:
        criterion, names = row.criterion, self.names
        return {
            "name": criterion.name,
            "meaning": criterion.meaning,
            "operator": criterion.operator,
            "counts": criterion.counts,
            "measured": dict(zip(names, row.measured, strict=True)),
            "verdicts": {names[i]: _verdict(verdict, row.notes.get(i)) for i, verdict in row.verdicts.items()},
        }


def compare(
    models: Sequence[Compared], swap_splits: int = 0, tick: Callable[[str], object] = lambda _: None
) -> Comparison:
    """Compare models that are at hand, each with the first transformer among them, or with the first model if there is none.

    Args:
        models: at least two of one task; :func:`analyses.compared.random_copy` makes a control.
        swap_splits: in how many splits of the pairs the swap test is made, of the reference and each other model; 0 for none.
        tick: called with the name of what comes next, for a progress bar; :func:`total_ticks` times.

    Raises:
        CompareError: fewer than two models, or models of different tasks.
    """
    check_number(models)
    check_same_task(models)
    models = labelled(models)
    reference = reference_of(models)
    metrics = [
        run_metrics(model.adder, model.train, tick=lambda what, name=model.name: tick(f"{name}: {what}"))
        for model in models
    ]
    swaps: dict[int, list[SwapTest]] = {}
    for i, model in enumerate(models) if swap_splits else ():
        if i == reference:
            continue
        for source, target in ((i, reference), (reference, i)):
            tick(f"{model.name}: swap")
            swaps.setdefault(i, []).append(
                swap_test(models[source].adder, models[target].adder, seeds=range(swap_splits))
            )
    return Comparison(models, metrics, reference, judge_rows(metrics, reference, swaps), swaps)


def total_ticks(models: Sequence[Compared], swap_splits: int) -> int:
    """How often :func:`compare` calls its ``tick``."""
    each = [n_ticks(len(find(model.adder).frequencies)) for model in models]
    return sum(each) + 2 * (len(models) - 1) * (swap_splits > 0)


def _verdict(verdict: Judged, note: str | None = None) -> dict[str, Any]:
    absent = isinstance(verdict, Absent)
    return {
        "holds": None if absent else verdict,
        "why_null": verdict.reason if isinstance(verdict, Absent) else None,
        "note": note,
    }
