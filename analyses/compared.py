"""The models that are laid side by side: loaded by name, called by names that no two share, and of one task."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from analyses.adder import Adder
from analyses.errors import CompareError, GridError, ModulusError, StitchingError
from analyses.stitching import check_pair, untrained
from hooked_rnn import HookedMLP, HookedRNN
from hooked_rnn.checkpoints import CHECKPOINTS
from hooked_rnn.errors import TaskError
from hooked_rnn.loaders.load import LoadedModel, load_checkpoint
from hooked_rnn.pretrained import read_training


@dataclass(frozen=True)
class Compared:
    """One of the models."""

    name: str
    """What it is called in tables."""
    adder: Adder
    train: Int[Tensor, " n_train"] | None = None
    """Indices of the pairs that it was trained on, where they are known."""
    notes: tuple[str, ...] = ()
    """What its loader had to say of it."""

    @property
    def kind(self) -> str:
        """What kind of model it is, with its sizes."""
        return kind_of(self.adder.model)


def is_transformer(model: Any) -> bool:
    """Whether a model has attention."""
    return any(name.endswith("hook_pattern") for name in model.hook_dict)


def reference_of(models: Sequence[Compared]) -> int:
    """Which of them the others are held against: the first transformer, or the first model where there is none."""
    return next((i for i, model in enumerate(models) if is_transformer(model.adder.model)), 0)


def random_copy(model: Compared, seed: int = 0) -> Compared:
    """The control: the same sizes, random weights."""
    return Compared(f"{model.name} (random weights)", untrained(model.adder, seed))


def labelled(models: Sequence[Compared]) -> list[Compared]:
    """The models by names that no two share: what stands twice gets a number."""
    names = [model.name for model in models]
    numbered = [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    return [dataclasses.replace(model, name=name) for model, name in zip(models, numbered, strict=True)]


def short_names(names: Sequence[str]) -> list[str]:
    """Of names and paths, the last part of each where that tells them apart; file endings are left off."""
    short = [Path(name).stem if Path(name).is_file() else Path(name).name or name for name in names]
    return [
        part if short.count(part) == 1 or names.count(name) > 1 else name
        for part, name in zip(short, names, strict=True)
    ]


def check_number(models: Sequence[object]) -> None:
    """Raise CompareError for fewer than two models."""
    if len(models) < 2:
        raise CompareError(f"{len(models)} model{'s' * (len(models) != 1)}: expected at least two to compare")


def check_same_task(models: Sequence[Compared]) -> None:
    """Raise CompareError unless all models answer the same questions: same modulus, two operands, same answers."""
    first = models[0]
    for model in models[1:]:
        try:
            check_pair(first.adder, model.adder)
        except ModulusError as error:
            raise CompareError(
                f"{first.name} adds modulo {first.adder.p}, {model.name} modulo {model.adder.p}: expected the same modulus"
            ) from error
        except (GridError, StitchingError) as error:
            raise CompareError(f"{first.name} and {model.name}: {error}") from error


def kind_of(model: Any) -> str:
    """What kind of model it is, with its sizes."""
    cfg: Any = getattr(model, "cfg", None)
    if isinstance(model, HookedRNN):
        cell = f"{cfg.act_fn} RNN" if cfg.cell == "rnn" else cfg.cell.upper()
        return f"{_layers(cfg)}{cell}, {cfg.d_hidden} units"
    if isinstance(model, HookedMLP):
        return (
            f"{cfg.act_fn} MLP, {cfg.d_mlp} neurons, embeddings {'summed' if cfg.combine == 'sum' else 'side by side'}"
        )
    if is_transformer(model):
        return f"{_layers(cfg)}transformer, {cfg.n_heads} heads, {cfg.d_mlp} {cfg.act_fn} neurons"
    return type(model).__name__


def _layers(cfg: Any) -> str:
    return f"{cfg.n_layers}-layer "


def load_compared(names: Sequence[str]) -> list[Compared]:
    """Models by name.

    Args:
        names: embedded models, run directories, Hub ids, or files of any format of :mod:`hooked_rnn.loaders`.

    Raises:
        HookedRNNError: as :func:`hooked_rnn.loaders.load.load_checkpoint`.
        CompareError: a model that does not add two numbers.
    """
    return [_load(name, short) for name, short in zip(names, short_names(names), strict=True)]


def _load(name: str, short: str) -> Compared:
    loaded = load_checkpoint(name)
    if loaded.task.operands != 2:
        raise CompareError(f"{name} is of a task of {loaded.task.operands} operands: expected two")
    return Compared(short, Adder(loaded.model, loaded.task), trained_on(loaded), loaded.notes)


def trained_on(loaded: LoadedModel) -> Int[Tensor, " n_train"] | None:
    """The pairs that a run was trained on, by the record beside its weights; None where there is none."""
    file: Path | None = getattr(loaded.model, "loaded_from", None)
    if file is None:
        return None
    record = read_training(file.parent.parent if file.parent.name == CHECKPOINTS else file.parent)
    try:
        return (
            None if record is None else loaded.task.split(record["train"]["train_fraction"], record["train"]["seed"])[0]
        )
    except (KeyError, TypeError, TaskError) as error:
        raise CompareError(f"the train.json beside {file} does not say the split: {error!r}") from error
