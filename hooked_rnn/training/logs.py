"""Other places that the rows of a history can go to while a run goes on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hooked_rnn.errors import ConfigError, choices

LOGS = ("tensorboard",)

WriteRow = Callable[[Mapping[str, Any]], None]


def check_log(name: str | None, directory: Path | None) -> None:
    """Refuse a log that cannot be written.

    Raises:
        ConfigError: an unknown name, a missing package, or no run directory.
    """
    if name is None:
        return
    if name not in LOGS:
        raise ConfigError(f"unknown log {name!r}: expected {choices(LOGS)}")
    if directory is None:
        raise ConfigError(f"log={name!r} without a run directory: expected out to say where it goes")
    try:
        import torch.utils.tensorboard  # noqa: F401 (whether it can be)
    except ImportError as error:
        raise ConfigError(f"log={name!r} needs the tensorboard package: pip install tensorboard ({error})") from error


@contextmanager
def open_log(name: str | None, directory: Path, step: int) -> Iterator[WriteRow]:
    """A function that writes a row of the history to TensorBoard, through torch's own writer; to nothing, for None.

    Args:
        name: a name that :func:`check_log` let pass.
        directory: the log goes to ``directory / name``.
        step: the step after which the run goes on; rows that the log has of later ones are dropped.
    """
    if name is None:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory / name), purge_step=step + 1) as writer:

        def write_row(row: Mapping[str, Any]) -> None:
            for figure, value in row.items():
                if figure not in ("step", "seconds") and value is not None:
                    part, measure = figure.split("_")
                    writer.add_scalar(f"{measure}/{part}", value, row["step"])
            writer.flush()

        yield write_row
