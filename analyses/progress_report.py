"""A run's progress: measure, draw, write. One function composes them, in that order."""

import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bar

from analyses.errors import ReportError
from analyses.plots import progress_figure
from analyses.progress import Progress, progress
from analyses.report import to_png
from analyses.seeds import write_csv
from hooked_rnn.files import write_atomically


def make_progress(run_dir: str | Path, out: Path | None = None, bar: bool = True) -> Progress:
    """Measure every checkpoint of a run and, where ``out`` is given, write table and figure there.

    Args:
        run_dir: a run directory, finished or not.
        out: a directory; it is made where it is missing, and may hold other files.
        bar: show a progress bar on standard error.

    Raises:
        ReportError: ``out`` cannot be written, or as :func:`analyses.progress.progress`.
        RunDirectoryError, ConfigError: as :func:`analyses.progress.progress`.
    """
    if out is not None:
        _make_writable(out)
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not (bar and console.is_terminal)) as shown:
        row = shown.add_task("checkpoints", total=None)
        measured = progress(run_dir, tick=lambda done, total: shown.update(row, completed=done, total=total))
    if out is not None:
        write_progress(measured, out)
    return measured


def write_progress(measured: Progress, out: Path) -> None:
    """Write ``progress.csv``, a row for each checkpoint with every measure, and ``progress.png``.

    Raises:
        ReportError: a file cannot be written.
    """
    picture = to_png(progress_figure(measured))
    write_csv(measured.rows, out / "progress.csv")
    try:
        write_atomically(out / "progress.png", lambda path: path.write_bytes(picture))
    except OSError as error:
        raise ReportError(f"cannot write {out / 'progress.png'}: {error}") from error


def _make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ReportError(f"cannot write to {out}: {error}") from error
