"""A run on disk: a ``save_pretrained`` directory that also says how the model came to be.

config.json  model.safetensors  train.json  history.jsonl  checkpoints/step-000100.safetensors
"""

import json
import platform
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from hooked_rnn import pretrained
from hooked_rnn.architectures import architecture_of, config_from_json, model_config
from hooked_rnn.checkpoints import CHECKPOINTS, checkpoint_paths, load_checkpoints, refuse, save_checkpoint
from hooked_rnn.errors import CheckpointError, ConfigError, HookedRNNWarning, RunDirectoryError
from hooked_rnn.files import TEMPORARY, append_line, write_text_atomically
from hooked_rnn.tasks import ModularTask
from hooked_rnn.training.config import TrainConfig
from hooked_rnn.training.state import TrainState
from hooked_rnn.weights import load_weights, save_weights

HISTORY = "history.jsonl"
LOCK = ".lock"


class RunDirectory:
    """Writes a run as it goes. Every file but the history, which grows by whole lines, is replaced atomically.

    While it is entered no other process can enter the same directory.
    """

    def __init__(self, path: Path, model: nn.Module, task: ModularTask, config: TrainConfig, resume: bool) -> None:
        """Nothing is touched before it is entered.

        Args:
            path: the directory.
            model, task, config: what is trained, on what and how.
            resume: go on with the run that the directory holds, if it holds one.
        """
        self.path = path
        self.model = model
        self.resume = resume
        self.record: dict[str, Any] = {
            "task": task.to_dict(),
            "train": config.to_dict(),
            **circumstances(model),
            "result": None,
        }

    def __enter__(self) -> "RunDirectory":
        """Lock the directory, and write what is known before the first step or check it against what is there.

        Raises:
            RunDirectoryError: it is in use, cannot be written, holds a run that is not to be gone on with, or
                one of another configuration.
        """
        with ExitStack() as stack, self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(self._lock())
            self._check_what_is_there()
            self._remove_what_was_half_written()
            if not checkpoint_paths(self.path) and not self.is_finished:
                self._write_record()
                write_text_atomically(self.path / pretrained.CONFIG, model_config(self.model).to_json())
                write_text_atomically(self.path / HISTORY, "")
                (self.path / CHECKPOINTS).mkdir(exist_ok=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.record["result"] is not None

    def restore(self, state: TrainState) -> None:
        """Bring a state to the newest checkpoint that it can go on from; where there is none, save its beginning.

        A finished run needs no checkpoint: its weights and its history are read.
        """
        history = read_history(self.path)
        if self.is_finished:
            architecture_of(state.model).set_weights(state.model, load_weights(self.path / pretrained.WEIGHTS))
            state.history = history
            return
        for path, tensors in load_checkpoints(self.path):
            try:
                state.restore(tensors, history)
            except CheckpointError as error:
                refuse(CheckpointError(f"{path} cannot be gone on from: {error}"))
            else:
                break
        with self._writing():
            lines = [json.dumps(row) + "\n" for row in state.history]
            write_text_atomically(self.path / HISTORY, "".join(lines))
        if state.step == 0:
            self.save(state)

    def add_row(self, row: dict[str, Any]) -> None:
        """Append one row to the history."""
        with self._writing():
            append_line(self.path / HISTORY, json.dumps(row))

    def save(self, state: TrainState) -> None:
        """Write a checkpoint."""
        with self._writing():
            save_checkpoint(self.path, state.step, state.tensors())

    def finish(self, result: dict[str, Any]) -> None:
        """Write the final weights and the last row of the history."""
        with self._writing():
            save_weights(self.path / pretrained.WEIGHTS, architecture_of(self.model).weights_of(self.model))
            self.record["result"] = result
            self._write_record()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            with FileLock(self.path / LOCK, blocking=False):
                yield
        except Timeout as error:
            raise RunDirectoryError(
                f"{self.path} is being written by another process: expected a directory of its own for every run"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except RunDirectoryError:
            raise
        except OSError as error:
            saved = [path.name for path in checkpoint_paths(self.path)[:1]]
            remedy = (
                f"{saved[0]} and all before it are whole, resume goes on from there" if saved else "nothing is saved"
            )
            raise RunDirectoryError(f"cannot write a run to {self.path}: {error}; {remedy}") from error

    def _check_what_is_there(self) -> None:
        """Refuse a directory that may not be written to, or whose run is not the one that is asked for."""
        path = self.path
        present = [
            file for file in (pretrained.WEIGHTS, pretrained.CONFIG, pretrained.TRAINING) if (path / file).exists()
        ]
        if not present:
            return
        if not self.resume:
            what = "a run" if pretrained.WEIGHTS in present else "a run that did not finish"
            raise RunDirectoryError(
                f"{path} holds {what} already: expected a new or empty directory, or resume to go on with it"
            )
        there = pretrained.read_training(path)  # written before all else
        if there is None:
            raise RunDirectoryError(f"{path} holds {present[0]} but no {pretrained.TRAINING}: no run to go on with")
        differences = self._differences(there)
        if differences:
            raise RunDirectoryError(f"{path} holds a run of another configuration: {'; '.join(differences)}")
        for name in ("threads", "versions"):
            if there[name] != self.record[name]:
                warnings.warn(
                    f"{path} was begun with {name} {there[name]} and goes on with {self.record[name]}: rounding may differ",
                    HookedRNNWarning,
                    stacklevel=5,
                )
        self.record = there

    def _differences(self, there: dict[str, Any]) -> list[str]:
        """In words, what the run on disk has otherwise than the one that is asked for."""
        try:
            old = {
                "task": there["task"],
                "train": TrainConfig.from_dict(there["train"]).to_dict(),
                "run": {name: there[name] for name in ("device", "dtype", "threads", "versions")},
            }
        except (KeyError, TypeError, ConfigError) as error:
            raise RunDirectoryError(f"{self.path / pretrained.TRAINING} is no record of a run: {error}") from error
        new = {"task": self.record["task"], "train": self.record["train"], "run": self.record}
        if (self.path / pretrained.CONFIG).exists():
            theirs, ours = pretrained.read_config(self.path, config_from_json), model_config(self.model)
            if theirs.architecture != ours.architecture:
                return [f"model architecture is {theirs.architecture!r} there and {ours.architecture!r} here"]
            old["model"], new["model"] = theirs.to_dict(), ours.to_dict()
        return [
            f"{part} {name} is {old[part].get(name)!r} there and {new[part].get(name)!r} here"
            for part in old
            for name in old[part]
            if name not in ("threads", "versions") and old[part][name] != new[part].get(name)
        ]

    def _remove_what_was_half_written(self) -> None:
        for folder in (self.path, self.path / CHECKPOINTS):
            for path in folder.glob(f".*{TEMPORARY}"):
                path.unlink()

    def _write_record(self) -> None:
        write_text_atomically(self.path / pretrained.TRAINING, json.dumps(self.record, indent=2) + "\n")


def read_history(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's history; none where there is no such file.

    A last line that is not whole, of a run that was killed or is writing it, is left out.

    Raises:
        RunDirectoryError: a whole line is no JSON object.
    """
    path = directory / HISTORY
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [dict(json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise RunDirectoryError(f"{path} holds a line that is no JSON object: {error}") from error


def circumstances(model: nn.Module) -> dict[str, Any]:
    """What a run's bits depend on beside its configuration."""
    weight = next(model.parameters())
    return {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
    }


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    packages = {name: metadata.version(name) for name in ("hooked-rnn", "torch", "transformer-lens", "numpy")}
    return {"python": platform.python_version(), **packages}
