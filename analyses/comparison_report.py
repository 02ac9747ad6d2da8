"""The comparison, from names to files: load, compare, draw, write. One function composes them, in that order."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analyses import comparison_plots as plots
from analyses.compared import check_number, check_same_task, load_compared, random_copy, reference_of
from analyses.comparison import Comparison, compare, total_ticks
from analyses.comparison_html import render_comparison
from analyses.errors import ReportError
from analyses.report import make_writable, progress_bar, to_png
from hooked_rnn.files import write_atomically, write_text_atomically


def make_comparison(
    models: Sequence[str],
    out: Path | None = None,
    swap_splits: int = 0,
    control: bool = False,
    progress: bool = True,
) -> Comparison:
    """Load models by name, compare them and, where ``out`` is given, write JSON, figures and page there.

    Args:
        models: at least two: embedded models, run directories, Hub ids, checkpoint files.
        out: a directory; it is made where it is missing, and may hold other files.
        swap_splits: in how many splits of the pairs the swap test is made, of the reference and each other model; 0 for none.
        control: whether a copy of the reference with random weights is laid beside them.
        progress: show a progress bar on standard error.

    Raises:
        CompareError: fewer than two models, or models of different tasks.
        ReportError: ``out`` cannot be written, or a model is not one of addition of two numbers.
        HookedRNNError: a model that cannot be loaded.
    """
    check_number(models)
    if out is not None:
        make_writable(out)
    compared = load_compared(models)
    check_same_task(compared)
    if control:
        compared.append(random_copy(compared[reference_of(compared)]))
    with progress_bar(total_ticks(compared, swap_splits) + (out is not None), progress) as tick:
        comparison = compare(compared, swap_splits, tick)
        if out is not None:
            tick("figures and page")
            write_comparison(comparison, out)
    return comparison


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write ``compare.json``, the figures as PNG, and ``compare.html``, which needs no other file and no network.

    Raises:
        ReportError: a file cannot be written.
    """
    pictures = {name: to_png(figure) for name, figure in draw(comparison).items()}
    try:
        for name, picture in pictures.items():
            write_atomically(out / f"{name}.png", lambda path, picture=picture: path.write_bytes(picture))
        write_text_atomically(out / "compare.html", render_comparison(comparison, pictures))
        write_text_atomically(out / "compare.json", comparison.to_json() + "\n")
    except OSError as error:
        raise ReportError(f"cannot write the comparison to {out}: {error}") from error


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The figures, by file name."""
    names, metrics = comparison.names, comparison.metrics
    figures = {
        "spectra": plots.spectra_figure(names, metrics),
        "removal": plots.removal_figure(names, metrics),
        "low_rank": plots.energy_figure(names, metrics),
        "neurons": plots.neurons_figure(names, metrics),
        "losses": plots.losses_figure(names, metrics),
        "clock_pizza": plots.clock_pizza_figure(names, metrics),
    }
    if comparison.swaps:
        swaps = {names[i]: swaps for i, swaps in comparison.swaps.items()}
        figures["swap"] = plots.swap_figure(names[comparison.reference], swaps)
    return figures
