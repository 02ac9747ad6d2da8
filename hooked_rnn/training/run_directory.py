"""A run on disk: a ``save_pretrained`` directory that also says how the model came to be.

config.json  model.safetensors  train.json  history.jsonl  checkpoints/step-000100.safetensors
"""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hooked_rnn import pretrained
from hooked_rnn.errors import RunDirectoryError
from hooked_rnn.files import write_text_atomically
from hooked_rnn.model import HookedRNN
from hooked_rnn.tasks import ModularTask
from hooked_rnn.training.config import TrainConfig
from hooked_rnn.weights import save_weights

HISTORY = "history.jsonl"
CHECKPOINTS = "checkpoints"


class RunDirectory:
    """Writes a run as it goes. Every file but the history, which grows by whole lines, is replaced atomically."""

    def __init__(self, path: Path, model: HookedRNN, task: ModularTask, config: TrainConfig) -> None:
        """Make the directory and write what is known before the first step.

        Raises:
            RunDirectoryError: it holds a run already, or cannot be written.
        """
        self.path = path
        self.model = model
        self.record: dict[str, Any] = {
            "task": task.to_dict(),
            "train": config.to_dict(),
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "device": str(model.cfg.device),
            "dtype": str(model.cfg.dtype).removeprefix("torch."),
            "result": None,
        }
        present = [
            name for name in (pretrained.CONFIG, pretrained.WEIGHTS, pretrained.TRAINING) if (path / name).exists()
        ]
        if present:
            what = "a run" if pretrained.WEIGHTS in present else "a run that did not finish"
            raise RunDirectoryError(
                f"{path} holds {what} already ({', '.join(present)}): expected a new or empty directory"
            )
        try:
            (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            write_text_atomically(path / pretrained.CONFIG, model.cfg.to_json())
            self._write_record()
            (path / HISTORY).write_text("", encoding="utf-8")
        except OSError as error:
            raise RunDirectoryError(f"cannot write a run to {path}: {error}") from error

    def add_row(self, row: dict[str, Any]) -> None:
        """Append one row to the history."""
        with (self.path / HISTORY).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save_checkpoint(self, step: int) -> None:
        """Keep the weights as they are after a step."""
        save_weights(self.path / CHECKPOINTS / f"step-{step:06d}.safetensors", self.model.state_dict())

    def finish(self, result: dict[str, Any]) -> None:
        """Write the final weights and the last row of the history."""
        save_weights(self.path / pretrained.WEIGHTS, self.model.state_dict())
        self.record["result"] = result
        self._write_record()

    def _write_record(self) -> None:
        write_text_atomically(self.path / pretrained.TRAINING, json.dumps(self.record, indent=2) + "\n")


def read_history(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's history; none where there is no such file.

    Raises:
        RunDirectoryError: a line is no JSON object.
    """
    path = directory / HISTORY
    if not path.is_file():
        return []
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise RunDirectoryError(f"{path} holds a line that is no JSON object: {error}") from error


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    packages = {name: metadata.version(name) for name in ("hooked-rnn", "torch", "transformer-lens", "numpy")}
    return {"python": platform.python_version(), **packages}
