"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.claims import VERDICTS, Claim, Verdict
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.measure import accuracy_of, key_frequencies_of, load_subject, matrices
from analyses.report import Report, facts
from analyses.seeds import columns
from hooked_rnn.pretrained import embedded_names

STYLES: dict[Verdict, str] = {"holds": "green", "partly": "yellow", "no": "red"}
LEAST_WIDTH = 120
"""Columns that a table of claims needs; a file or a pipe gets them whatever it says of itself."""


def print_report(report: Report, out: Path | None) -> None:
    """The facts, the table of claims, and where the files are."""
    console = _console()
    for name, value in facts(report).items():
        console.print(Text(f"{name:>16}  ", style="dim").append(value, style="not dim"))
    console.print(claims_table(report.claims))
    if out is not None:
        console.print(Text(f"report.json, report.html and the figures are in {out}"))


def claims_table(claims: Sequence[Claim]) -> Table:
    """One row a claim: claim, published, measured, definition used, verdict (by part where there are several)."""
    table = Table("", "claim", "published", "measured", "definition used", "verdict", show_lines=True)
    for column, ratio in zip(table.columns[1:], (4, 3, 6, 6, 3), strict=True):
        column.ratio = ratio
    for claim in claims:
        verdict = Text(VERDICTS[claim.holds], style=f"bold {STYLES[claim.holds]}")
        for part, holds in claim.by_part.items():
            verdict.append(f"\n{part}: {VERDICTS[holds]}", style=f"not bold {STYLES[holds]}")
        texts = (claim.id, claim.claim, claim.published, claim.measured, claim.definition)
        table.add_row(*(Text(text) for text in texts), verdict)
    return table


def print_embedded() -> None:
    """The embedded models, with figures that are measured on their weights here and now."""
    table = Table(
        "model", "p", "d_model", "d_hidden", "parameters", "accuracy", "key frequencies", "energy of 2K components"
    )
    for name in embedded_names():
        subject = load_subject(name)
        cfg, key = subject.model.cfg, key_frequencies_of(subject.model, subject.task).frequencies
        held = {n: held_by_first(cumulative_energy(m), 2 * len(key)) for n, m in matrices(subject.model).items()}
        table.add_row(
            name,
            str(subject.task.p),
            str(cfg.d_model),
            str(cfg.d_hidden),
            f"{sum(w.numel() for w in subject.model.parameters()):,}",
            f"{accuracy_of(subject):.2%}",
            " ".join(map(str, key)),
            ", ".join(f"{n} {share:.1%}" for n, share in held.items()),
        )
    _console().print(table)


def print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as a table that stands on its side: a column for each row, a line for each metric that any row has."""
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    for _ in rows:
        table.add_column(overflow="fold", min_width=10)
    for name in columns(rows):
        table.add_row(name, *(_shown(row.get(name, "")) for row in rows))
    _console(least_width=36 + 13 * len(rows)).print(table)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _console(least_width: int = LEAST_WIDTH) -> Console:
    console = Console()
    return console if console.width >= least_width else Console(width=least_width)
