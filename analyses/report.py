"""The report: measure, judge, draw, write. One function composes them, in that order."""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from analyses.ablation import Curve
from analyses.claims import Claim, judge
from analyses.errors import ReportError
from analyses.html import render_page
from analyses.key_frequencies import find
from analyses.measure import Measurements, Subject, load_subject, measure, n_ticks
from analyses.sections import Section, pictures, sections
from analyses.seeds import SEEDS, read_csv
from analyses.toolbox import PARTS, Toolbox, use_toolbox
from analyses.toolbox_json import toolbox_dict
from analyses.views import hidden_view
from hooked_rnn import HookedRNN
from hooked_rnn.files import write_atomically, write_text_atomically
from hooked_rnn.pretrained import WEIGHTS
from hooked_rnn.training.run_directory import read_history, versions


@dataclass(frozen=True)
class Report:
    """A model, what was measured on it, what the Fourier toolbox finds, and which claims hold."""

    subject: Subject
    measurements: Measurements
    toolbox: Toolbox
    claims: list[Claim]

    def to_dict(self) -> dict[str, Any]:
        """What ``report.json`` holds. Accuracies and energies are fractions of one, losses are in nats."""
        m = self.measurements
        sites = m.ablations
        return {
            "model": self.subject.name,
            "config": plain_config(getattr(self.subject.model, "cfg", None)),
            "task": self.subject.task.to_dict(),
            "notes": list(self.subject.notes),
            "versions": versions(),
            "accuracy": m.accuracy,
            "loss": m.loss,
            "held_out_accuracy": m.held_out_accuracy,
            "key_frequencies": m.key.frequencies,
            "key_frequency_threshold": m.key.threshold,
            "key_frequency_shares": {str(k): m.key.spectrum.share(k) for k in m.key.by_share},
            "spectra": {name: [round(share, 9) for share in s.shares.tolist()] for name, s in m.spectra.items()},
            "energy": m.energy,
            "energy_untrained": m.untrained_energy,
            "singular_vector_purity": {name: a.mean_purity for name, a in m.attributions.items()},
            "embedding_explained": m.explained,
            "hidden_fit": {str(k): {"relative": fit.relative, "squared": fit.squared} for k, fit in m.fits.items()},
            "ablation": {site: _curve(a.key) for site, a in sites.items()},
            "control": {site: _curve(a.random) for site, a in sites.items()},
            "control_equal_power": {site: _curve(a.equal_power) for site, a in sites.items()},
            "ablation_subsets": {
                site: [{"removed": list(subset), "accuracy": accuracy} for subset, accuracy in a.subsets.items()]
                for site, a in sites.items()
            },
            "toolbox": toolbox_dict(self.toolbox),
            "claims": [asdict(claim) for claim in self.claims],
        }

    @property
    def sections(self) -> list[Section]:
        """Tables and pictures, as the page and the terminal have them."""
        directory = self.subject.directory
        return sections(self.measurements, self.toolbox, self.claims, read_history(directory) if directory else [])

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def make_report(model: str | Subject, out: Path | None = None, progress: bool = True) -> Report:
    """Measure the claims on a model, use the Fourier toolbox on it and, where ``out`` is given, write JSON, figures and page there.

    Args:
        model: an embedded model, a run directory, a Hub id, a checkpoint file; or a model at hand, as :func:`analyses.measure.subject_of` takes it.
        out: a directory; it is made where it is missing, and may hold other files.
        progress: show a progress bar on standard error.

    Raises:
        ReportError: ``out`` cannot be written, or the model is not one of addition of two numbers.
        UnknownModelError, RunDirectoryError, WeightsError, ConfigError: as ``from_pretrained``.
    """
    if out is not None:
        make_writable(out)
    subject = load_subject(model) if isinstance(model, str) else model
    key = find(subject.adder)
    with progress_bar(n_ticks(len(key.frequencies)) + len(PARTS) + (out is not None), progress) as tick:
        measurements = measure(subject, tick)
        toolbox = use_toolbox(subject, key, tick)
        report = Report(subject, measurements, toolbox, judge(measurements))
        if out is not None:
            tick("figures and page")
            write_report(report, out)
    return report


def write_report(report: Report, out: Path) -> None:
    """Write ``report.json``, the figures as PNG, and ``report.html``, which needs no other file and no network.

    Raises:
        ReportError: a file cannot be written.
    """
    drawn = {name: to_png(figure) for name, figure in draw(report).items()}
    view = hidden_view(report.subject.adder)
    page = render_page(report.subject.name, facts(report), report.claims, report.sections, drawn, view)
    try:
        for name, picture in drawn.items():
            write_atomically(out / f"{name}.png", lambda path, picture=picture: path.write_bytes(picture))
        write_text_atomically(out / "report.html", page)
        write_text_atomically(out / "report.json", report.to_json() + "\n")
    except OSError as error:
        raise ReportError(f"cannot write the report to {out}: {error}") from error


def draw(report: Report) -> dict[str, Figure]:
    """The figures, by file name."""
    return {picture.name: picture.draw() for picture in pictures(report.sections)}


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def facts(report: Report) -> dict[str, str]:
    """What a reader wants to know before the claims."""
    m, model = report.measurements, report.subject.model
    fixed = versions()
    return {
        "model": report.subject.name,
        "network": network(model),
        "task": f"addition of two numbers modulo {report.subject.task.p}",
        "training": _training(report.subject),
        "accuracy": f"{m.accuracy:.2%} of all {report.subject.task.p**2:,} pairs (loss {m.loss:.2e} nats)",
        "key frequencies": ", ".join(f"{k} ({m.key.spectrum.share(k):.1%})" for k in m.key.by_share) or "none",
        **({"notes": "; ".join(report.subject.notes)} if report.subject.notes else {}),
        "made with": ", ".join(f"{name} {version}" for name, version in fixed.items()),
    }


def network(model: Any) -> str:
    """What kind of network a model is, and its sizes, in words."""
    cfg: Any = getattr(model, "cfg", None)
    n_layers = getattr(cfg, "n_layers", 1)
    layers = f"{n_layers} layer{'s' * (n_layers > 1)}"
    biases = " with biases" if getattr(cfg, "bias", False) else ""
    if isinstance(model, HookedRNN):
        units = f"{cfg.act_fn} units" if cfg.cell == "rnn" else f"{cfg.cell.upper()} units"
        return f"{layers} of {cfg.d_hidden} {units}{biases}, embedding of {cfg.d_model}"
    if hasattr(cfg, "d_head"):
        neurons = "" if getattr(cfg, "attn_only", False) else f" and {cfg.d_mlp} {cfg.act_fn} neurons"
        norm = f", {cfg.normalization_type}" if cfg.normalization_type else ""
        return f"a transformer: {layers} of {cfg.n_heads} heads{neurons}, residual stream of {cfg.d_model}{norm}"
    sizes = ", ".join(f"{name} {getattr(cfg, name)}" for name in ("d_model", "d_mlp", "act_fn") if hasattr(cfg, name))
    return f"{type(model).__name__}{biases}" + f": {sizes}" * bool(sizes)


def plain_config(cfg: Any) -> dict[str, Any]:
    """A configuration as JSON can hold it; fields of other kinds are left out, and none is empty."""
    fields = cfg.to_dict() if hasattr(cfg, "to_dict") else vars(cfg) if cfg is not None else {}
    return {name: value for name, value in fields.items() if type(value) in (bool, int, float, str, type(None))}


def _training(subject: Subject) -> str:
    """How the model came to be, and among how many seeds it was chosen."""
    if subject.training is None:
        return "not recorded"
    train, table = subject.training["train"], subject.directory and subject.directory / SEEDS
    chosen = (
        f"; one of {len(read_csv(table))} seeds, chosen by the rule in its card" if table and table.is_file() else ""
    )
    how = "".join(f"{word} {train[key]}, " for key, word in (("name", "recipe"), ("steps", "steps")) if key in train)
    file = getattr(subject.model, "loaded_from", None)
    unfinished = f"; not finished, these are the weights of {file.name}" if file and file.name != WEIGHTS else ""
    return f"{how}{train['train_fraction']:.0%} of the pairs, seed {train['seed']}{chosen}{unfinished}"


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        row = bar.add_task("loading", total=total)

        def tick(what: str) -> None:
            bar.update(row, description=what, advance=1)

        yield tick


def make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ReportError(f"cannot write a report to {out}: {error}") from error


def _curve(curve: Curve) -> dict[str, dict[str, float]]:
    return {str(n): asdict(spread) for n, spread in curve.items()}
