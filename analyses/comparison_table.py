"""Models side by side on the terminal."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from analyses.c9 import Judged
from analyses.claims import VERDICTS
from analyses.comparison import Comparison
from analyses.metrics import Absent
from analyses.terminal import STYLES, wide_console


def print_comparison(comparison: Comparison, out: Path | None) -> None:
    """The table, what there is to note, and where the files are."""
    screen = wide_console(least_width=max(120, 36 + 21 * len(comparison.models)))
    screen.print(comparison_table(comparison))
    for model in comparison.models:
        for note in model.notes:
            screen.print(Text(f"{model.name}: {note}", style="dim"))
    if out is not None:
        screen.print(Text(f"compare.json, compare.html and the figures are in {out}"))


def comparison_table(comparison: Comparison) -> Table:
    """A column for each model, a row for each criterion with what it means, and C9 in the last."""
    table = Table("", show_lines=True)
    table.columns[0].min_width, table.columns[0].ratio = 28, 3
    for i, model in enumerate(comparison.models):
        head = Text(model.name, style="bold").append(f"\n{model.kind}", style="not bold dim")
        if i == comparison.reference:
            head.append("\nthe reference", style="not bold dim")
        table.add_column(head, ratio=2, overflow="fold")
    for row in comparison.rows:
        cells = []
        for i, measured in enumerate(row.measured):
            cell = Text(measured)
            if i != comparison.reference:
                cell.append("\n").append(verdict_text(row.verdicts[i]))
                cell.append(f"\n{row.notes[i]}" if i in row.notes else "", style="dim")
            cells.append(cell)
        table.add_row(
            Text(row.criterion.name, style="bold").append(f"\n{row.criterion.meaning}", style="not bold dim"), *cells
        )
    overall = []
    for i in range(len(comparison.models)):
        if i == comparison.reference:
            overall.append(Text())
            continue
        verdict, text = comparison.overall(i)
        overall.append(verdict_text(verdict).append(f"\n{text}", style="not bold not italic dim"))
    table.add_row(Text("C9: the same strategy", style="bold"), *overall)
    return table


def verdict_text(verdict: Judged) -> Text:
    """A verdict in its colour; in brackets why there is none."""
    if isinstance(verdict, Absent):
        return Text(f"({verdict.reason})", style="dim")
    return Text(VERDICTS[verdict], style=f"bold {STYLES[verdict]}")
