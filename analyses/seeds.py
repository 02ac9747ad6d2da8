"""Several runs side by side, and which of them may be embedded."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyses.adder import Adder
from analyses.claims import judge
from analyses.errors import ReportError
from analyses.key_frequencies import find
from analyses.measure import Measurements, Subject, load_subject, measure
from analyses.metrics import Absent, Metrics, run_metrics
from hooked_rnn import HookedRNN, load_model
from hooked_rnn.architectures import architecture_of
from hooked_rnn.pretrained import local_directory, read_training
from hooked_rnn.tasks import task_from_dict
from hooked_rnn.weights import digest

SEEDS = "seeds.csv"
"""The table beside an embedded model: every seed that was tried."""

LEAST_ACCURACY = 0.999
"""Of an embedded model: accuracy on all pairs."""
KEY_FREQUENCIES = (3, 9)
"""Of an embedded model: fewest and most key frequencies."""
LEAST_WITHOUT_ONE = 0.85
"""Of an embedded model: mean accuracy with one key frequency removed from W_E, to be exceeded."""
MOST_WITHOUT_ALL = 0.06
"""Of an embedded model: accuracy with all of them removed from W_E, to stay below."""


@dataclass(frozen=True)
class Rule:
    """How one of several runs is chosen to be embedded."""

    text: str
    """In words, as the model's card has it."""
    admits: Callable[[Mapping[str, Any]], bool]
    """Whether a row may be chosen at all."""
    order: Callable[[Mapping[str, Any]], Any] = lambda row: row["seed"]
    """Of those that may, the one with the least of this is chosen."""


def _is_accurate(row: Mapping[str, Any]) -> bool:
    return row["accuracy"] >= LEAST_ACCURACY


def _is_usual(row: Mapping[str, Any]) -> bool:
    least, most = KEY_FREQUENCIES
    return (
        _is_accurate(row)
        and least <= row["n_key"] <= most
        and row["W_E without 1"] > LEAST_WITHOUT_ONE
        and row["W_E without all"] < MOST_WITHOUT_ALL
    )


def _cleanness(row: Mapping[str, Any]) -> tuple[int, float]:
    return sum(row[claim] != "holds" for claim in ("C2", "C6", "C7")), row["largest_fit_error"]


RULES = {
    "mod-add-113": Rule(
        f"the lowest seed whose model has at least {LEAST_ACCURACY:.1%} accuracy on all pairs, {KEY_FREQUENCIES[0]} to "
        f"{KEY_FREQUENCIES[1]} key frequencies, a mean accuracy above {LEAST_WITHOUT_ONE:.0%} with one of them removed from "
        f"W_E, and below {MOST_WITHOUT_ALL:.0%} with all of them",
        _is_usual,
    ),
    "mod-add-113-adamw": Rule(
        f"the lowest seed whose model has at least {LEAST_ACCURACY:.1%} accuracy on all pairs", _is_accurate
    ),
    "mod-add-113-transformer": Rule(
        f"the lowest seed whose model has at least {LEAST_ACCURACY:.1%} accuracy on all pairs", _is_accurate
    ),
    "mod-add-113-clean": Rule(
        f"of the seeds whose models have at least {LEAST_ACCURACY:.1%} accuracy on all pairs, the one of which most of C2, C6 and C7 "
        "hold, and among equals the one whose largest fit error (C6) is the least",
        _is_accurate,
        _cleanness,
    ),
}
"""By the embedded model's name. Each was fixed before the runs that it chose from."""


def tabulate(runs: Iterable[str]) -> list[dict[str, Any]]:
    """A row of every metric for each run directory, in the order of their seeds.

    Raises:
        ReportError: a run without ``train.json``, or one that the report cannot be about.
    """
    return sorted((row_of(run) for run in runs), key=lambda row: int(row["seed"]))


def row_of(run: str) -> dict[str, Any]:
    """Every metric of one run directory: of a recurrent network the report's, of another model :mod:`analyses.metrics`'s."""
    directory = local_directory(run)
    record = read_training(directory) if directory else None
    if record is None:
        raise ReportError(f"{run} has no train.json: expected the directory of a run")
    model = load_model(run)
    if isinstance(model, HookedRNN):
        subject = load_subject(run)
        return row(subject, measure(subject), record["train"])
    adder, train = Adder(model, task_from_dict(record["task"])), record["train"]
    trained_on, _ = adder.task.split(train["train_fraction"], train["seed"])
    return baseline_row(adder, run_metrics(adder, trained_on), train)


def row(subject: Subject, m: Measurements, train: Mapping[str, Any]) -> dict[str, Any]:
    """Every metric of one run. Accuracies and energies are fractions of one, the loss is in nats."""
    measured: dict[str, Any] = {
        "seed": train["seed"],
        "steps": train["steps"],
        "train_fraction": train["train_fraction"],
        "accuracy": m.accuracy,
        "held_out_accuracy": m.held_out_accuracy,
        "loss": m.loss,
        "n_key": len(m.key.frequencies),
        "key_frequencies": " ".join(map(str, m.key.by_share)),
        "key_shares": " ".join(f"{m.key.spectrum.share(k):.3f}" for k in m.key.by_share),
    }
    measured |= {f"energy {name}": value for name, value in m.energy.items()}
    measured |= {f"purity {name}": a.mean_purity for name, a in m.attributions.items()}
    measured["embedding_explained"] = m.explained
    relative = sorted(fit.relative for fit in m.fits.values())
    measured |= {
        "least_fit_error": relative[0] if relative else None,
        "largest_fit_error": relative[-1] if relative else None,
    }
    for site, ablation in m.ablations.items():
        measured[f"{site} without 1"] = ablation.key[1].mean if ablation.key else None
        measured[f"{site} without all"] = ablation.key[max(ablation.key)].mean if ablation.key else None
        measured[f"{site} without as many others"] = (
            ablation.random[max(ablation.random)].mean if ablation.random else None
        )
    measured |= {claim.id: claim.holds for claim in judge(m)}
    measured["sha256"] = digest(subject.model.state_dict())[:16]
    return measured


def baseline_row(adder: Adder, m: Metrics, train: Mapping[str, Any]) -> dict[str, Any]:
    """Every metric of one run of a transformer or an MLP, in the same units; None for what it has not."""
    by_logits = find(adder, "logit variance")
    return {
        "seed": train["seed"],
        "steps": train["steps"],
        "train_fraction": train["train_fraction"],
        "accuracy": m.accuracy,
        "held_out_accuracy": _or_none(m.held_out_accuracy),
        "loss": m.loss,
        "n_key": len(m.key.frequencies),
        "key_frequencies": " ".join(map(str, m.key.by_share)),
        "key_shares": " ".join(f"{m.key.spectrum.share(k):.3f}" for k in m.key.by_share),
        "n_key logits": len(by_logits.frequencies),
        "key_frequencies logits": " ".join(map(str, by_logits.by_share)),
        **{f"energy {name}": _or_none(m.held(name)) for name in m.energy},
        **{f"purity {name}": value for name, value in m.purity.items()},
        "embedding_explained": m.explained,
        "neurons_explained": m.neurons.share_above,
        "logits_clock": None if isinstance(m.clock, Absent) else m.clock.explained,
        "logits_pizza": None if isinstance(m.pizza, Absent) else m.pizza.explained,
        **_removed(m),
        "restricted_loss": None if isinstance(m.losses, Absent) else m.losses.restricted.all,
        "excluded_loss": None if isinstance(m.losses, Absent) else m.losses.excluded.all,
        "gradient_symmetricity": None if isinstance(m.symmetry, Absent) else m.symmetry.symmetricity,
        "distance_irrelevance": _or_none(m.distance_irrelevance),
        "circularity": m.circularity,
        "sha256": digest(architecture_of(adder.model).weights_of(adder.model))[:16],
    }


def _removed(m: Metrics) -> dict[str, float]:
    """Mean accuracy with key frequencies removed from each site, and with as many others."""
    found = {}
    for site, ablation in {} if isinstance(m.removal, Absent) else m.removal.items():
        found[f"{site} without 1"] = ablation.key[1].mean
        found[f"{site} without all"] = ablation.key[max(ablation.key)].mean
        found[f"{site} without as many others"] = ablation.random[max(ablation.random)].mean
    return found


def _or_none(value: float | Absent) -> float | None:
    return None if isinstance(value, Absent) else value


def choose(rows: Sequence[Mapping[str, Any]], rule: Rule) -> Mapping[str, Any]:
    """The row that a rule chooses.

    Raises:
        ReportError: no seed fulfils it.
    """
    candidates = [row for row in rows if rule.admits(row)]
    if not candidates:
        raise ReportError(f"none of {len(rows)} seeds may be embedded: expected {rule.text}")
    return min(candidates, key=rule.order)


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that any of the rows has, in their order: runs of other depths have other matrices."""
    return list(dict.fromkeys(name for r in rows for name in r))


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows to a file of comma-separated values.

    Raises:
        ReportError: the file cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=columns(rows), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error}") from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a file that :func:`write_csv` wrote, as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
