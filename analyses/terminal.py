"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.adder import Adder
from analyses.circuit import WAVES, Circuit
from analyses.claims import VERDICTS, Claim, Verdict
from analyses.clock_pizza import ClockOrPizza
from analyses.key_frequencies import find
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.measure import matrices
from analyses.progress import Progress
from analyses.report import Report, facts
from analyses.sections import Section
from analyses.sections import Table as Results
from analyses.seeds import columns
from hooked_rnn import HookedRNN, load_model, model_config
from hooked_rnn.architectures import architecture_of
from hooked_rnn.pretrained import EMBEDDED, embedded_names, read_training
from hooked_rnn.tasks import task_from_dict

STYLES: dict[Verdict, str] = {"holds": "green", "partly": "yellow", "no": "red"}
LEAST_WIDTH = 120
"""Columns that a table of claims needs; a file or a pipe gets them whatever it says of itself."""


def print_report(report: Report, out: Path | None) -> None:
    """The facts, the table of claims, the toolbox's tables, and where the files are."""
    console = wide_console()
    for name, value in facts(report).items():
        console.print(Text(f"{name:>16}  ", style="dim").append(value, style="not dim"))
    console.print(claims_table(report.claims))
    for section in report.sections:
        print_section(console, section)
    if out is not None:
        console.print(Text(f"report.json, report.html and the figures are in {out}"))


def print_section(console: Console, section: Section) -> None:
    """Its tables, and what is left out; nothing where it holds pictures alone."""
    tables = [part for part in section.parts if isinstance(part, Results)]
    if not tables and not section.left_out:
        return
    console.print(Text(f"\n{section.title}", style="bold"))
    for results in tables:
        table = Table(*results.columns, caption=Text(results.caption, style="dim"), caption_justify="left")
        for row in results.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for line in section.left_out:
        console.print(Text(line, style="dim"))


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
    heads = (
        "model",
        "kind",
        "p",
        "d_model",
        "width",
        "parameters",
        "accuracy",
        "key frequencies",
        "energy of 2K components",
    )
    table = Table(*heads, caption="width: d_hidden of an rnn, d_mlp of a transformer")
    for name in embedded_names():
        model, record = load_model(name), read_training(EMBEDDED / name)
        assert record is not None  # every embedded model has one
        cfg, adder = model_config(model), Adder(model, task_from_dict(record["task"]))
        key = find(adder).frequencies
        weights = matrices(model) if isinstance(model, HookedRNN) else {"W_E": adder.W_E, "W_U": adder.W_U}
        held = {n: held_by_first(cumulative_energy(m), 2 * len(key)) for n, m in weights.items()}
        correct = adder.logits().argmax(-1) == adder.labels
        table.add_row(
            name,
            cfg.architecture,
            str(adder.p),
            str(cfg.d_model),
            str(cfg.d_hidden if isinstance(model, HookedRNN) else cfg.d_mlp),
            f"{sum(w.numel() for w in architecture_of(model).weights_of(model).values()):,}",
            f"{correct.double().mean():.2%}",
            " ".join(map(str, key)),
            ", ".join(f"{n} {share:.1%}" for n, share in held.items()),
        )
    wide_console().print(table)


def print_circuit(circuit: Circuit, measures: ClockOrPizza) -> None:
    """What is written at each step, a line a stage; then frequency by frequency; then clock or pizza."""
    console = wide_console(least_width=170)
    table = Table("step", "hook point", "what it is", title="Share of the centred variance at the key frequencies")
    for name in (*WAVES, "closed form", "relative error"):
        table.add_column(name, justify="right")
    for stage in circuit.stages:
        shares = ((family, stage.share(family)) for family in WAVES)
        cells = [Text(f"{x:.1%}", style="bold" if family in stage.closed_form else "dim") for family, x in shares]
        cells += [Text(f"{stage.explained:.2%}"), Text(f"{stage.relative_error:.3f}")]
        table.add_row(str(stage.position), stage.point, stage.text, *cells)
    console.print(table)
    table = Table("frequency", title="Frequency by frequency")
    last = circuit.stages[-1].position
    names = (
        "same units",
        "phases agree",
        "phase difference fixed",
        "error of W_hh's part",
        "error of W_U's",
        "coefficient",
    )
    for name in (*names, "logits: clock", "logits: pizza"):
        table.add_column(name, justify="right")
    for k in circuit.frequencies:
        carried = circuit.stage("blocks.0.hook_recurrent", 1).errors[k]
        meeting = circuit.phases[k]
        numbers = (meeting.overlap, meeting.agreement, meeting.concentration, carried, circuit.reads[k].relative)
        shares_of_logits = (circuit.clock.shares[k], circuit.pizza.shares[k])
        table.add_row(
            str(k),
            *(f"{x:.3f}" for x in (*numbers, circuit.clock.coefficients[k])),
            *(f"{x:.1%}" for x in shares_of_logits),
        )
    table.add_row("all", *[""] * len(names), f"{circuit.clock.explained:.2%}", f"{circuit.pizza.explained:.2%}")
    console.print(table)
    irrelevance = measures.distance_irrelevance
    for name, value in (
        ("gradient symmetricity", f"{measures.symmetry.symmetricity:.3f}"),
        ("with the operands exchanged", f"{measures.symmetry.exchanged:.3f}"),
        ("first operand's gradient over the second's", f"{measures.symmetry.ratio:.3f}"),
        (
            "distance irrelevance",
            "none: the correct logits are all the same" if irrelevance is None else f"{irrelevance:.3f}",
        ),
        ("circularity", f"{measures.circularity:.4f}"),
        ("answer read at position", str(last)),
    ):
        console.print(Text(f"{name:>44}  ", style="dim").append(value, style="not dim"))


def print_progress(progress: Progress, out: Path | None) -> None:
    """A line for each checkpoint."""
    console = wide_console(least_width=165)
    table = Table(title=f"Key frequencies of the end: {' '.join(map(str, progress.key.by_share)) or 'none'}")
    for name in (
        "step", "train loss", "test loss", "test accuracy", "restricted (test)", "excluded (train)", "keys now",
        "share", "Gini W_E W_ih", "Gini W_U", "logits: clock", "logits: pizza", "gradients alike", "exchanged",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for point in progress.checkpoints:
        test = point.test
        table.add_row(
            f"{point.step:,}",
            f"{point.train.plain:.1e}",
            "" if test is None else f"{test.plain:.1e}",
            "" if test is None else f"{test.accuracy:.1%}",
            "" if test is None else f"{test.restricted:.1e}",
            f"{point.train.excluded:.1e}",
            str(len(point.own_key.frequencies)),
            f"{sum(point.shares.values()):.1%}",
            f"{point.gini['W_E W_ih']:.2f}",
            f"{point.gini['W_U']:.2f}",
            f"{point.clock:.1%}",
            f"{point.pizza:.1%}",
            f"{point.symmetricity:.2f}",
            f"{point.exchanged:.2f}",
        )
    console.print(table)
    if out is not None:
        console.print(Text(f"progress.csv, with every measure, and progress.png are in {out}"))


def print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows as a table that stands on its side: a column for each row, a line for each metric that any row has."""
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    for _ in rows:
        table.add_column(overflow="fold", min_width=10)
    for name in columns(rows):
        table.add_row(name, *(_shown(row.get(name, "")) for row in rows))
    wide_console(least_width=36 + 13 * len(rows)).print(table)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def wide_console(least_width: int = LEAST_WIDTH) -> Console:
    """A console of at least so many columns."""
    console = Console()
    return console if console.width >= least_width else Console(width=least_width)
