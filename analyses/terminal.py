"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.claims import VERDICTS, Claim, Verdict
from analyses.report import Report, facts
from hooked_rnn.pretrained import EMBEDDED, embedded_names, read_training

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
    """The embedded models, with the figures of their ``train.json``."""
    rows = []
    for name in embedded_names():
        record = read_training(EMBEDDED / name) or {}
        rows.append({"model": name, **record.get("figures", {})})
    print_rows(rows)


def print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of the same keys as a table."""
    table = Table(*(rows[0] if rows else ()))
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    _console().print(table)


def _console() -> Console:
    console = Console()
    return console if console.width >= LEAST_WIDTH else Console(width=LEAST_WIDTH)
