"""Training, full batch: the one function that makes a model."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import AdamW
from tqdm.auto import tqdm

from hooked_rnn.errors import TaskError, TrainingDivergedError
from hooked_rnn.losses import cross_entropy
from hooked_rnn.model import HookedRNN
from hooked_rnn.prefixes import PrefixTrie, has_hooks, last_logits
from hooked_rnn.tasks import ModularTask
from hooked_rnn.training.config import TrainConfig
from hooked_rnn.training.orthogonal import orthogonalize_gradients
from hooked_rnn.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    model: HookedRNN
    """The trained model, in eval mode."""
    task: ModularTask
    """What it was trained on."""
    config: TrainConfig
    """How."""
    history: list[dict[str, Any]]
    """Rows of step, seconds, train_loss, test_loss, train_accuracy, test_accuracy (None without test sequences)."""
    directory: Path | None
    """Where the run was written, if anywhere."""


@dataclass(frozen=True)
class Sequences:
    """Some of a task's sequences on the model's device, with their prefixes found once."""

    tokens: Int[Tensor, "n pos"]
    labels: Int[Tensor, " n"]
    trie: PrefixTrie

    @classmethod
    def of(cls, task: ModularTask, device: torch.device, chosen: Int[Tensor, " n"] | None = None) -> "Sequences":
        """All sequences of the task, or the chosen ones."""
        tokens, labels = (x if chosen is None else x[chosen] for x in (task.tokens, task.labels))
        tokens, labels = tokens.to(device), labels.to(device)
        return cls(tokens, labels, PrefixTrie.of(tokens))

    def last_logits(self, model: HookedRNN) -> Float[Tensor, "n d_vocab_out"]:
        """The logits at the last position, by way of the prefixes unless a hook wants to see the steps."""
        if has_hooks(model):
            return model(self.tokens, logits_to_keep=1)[:, 0]
        return last_logits(model, self.trie)


def train(
    model: HookedRNN, task: ModularTask, config: TrainConfig, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Train a model in place on a share of a task's sequences.

    The same model, task, configuration, machine and number of threads give the same bits.

    Args:
        model: whose sizes fit the task; trained where it is, in its own dtype.
        task: its sequences, labels and split.
        config: every hyperparameter; see :meth:`TrainConfig.recipe`.
        out: a new run directory, or None to keep everything in memory.
        progress: show a progress bar with losses and accuracies.

    Raises:
        TaskError: the model's sizes do not fit the task.
        RunDirectoryError: ``out`` holds a run already, or cannot be written.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    _check_sizes(model, task)
    train_set, test_set = task.split(config.train_fraction, config.seed)
    directory = None if out is None else RunDirectory(Path(out), model, task, config)
    history: list[dict[str, Any]] = []
    everything = Sequences.of(task, model.cfg.device)
    trained_on = Sequences.of(task, model.cfg.device, train_set)

    model.train()
    started = time.perf_counter()
    with tqdm(total=config.steps, disable=not progress, unit="step", desc=f"train ({config.name})") as bar:
        for step in range(1, config.steps + 1):
            if step in (1, config.orthogonal_steps + 1):
                optimizer = make_optimizer(model, config, step)
            take_step(model, optimizer, trained_on, config, step)
            bar.update()
            if step % config.eval_every == 0 or step == config.steps:
                seconds = round(time.perf_counter() - started, 3)
                row = {"step": step, "seconds": seconds, **evaluate(model, everything, train_set, test_set)}
                history.append(row)
                bar.set_postfix_str(_summary(row))
                if directory is not None:
                    directory.add_row(row)
            if directory is not None and (step % config.checkpoint_every == 0 or step == config.steps):
                directory.save_checkpoint(step)
    model.eval()
    if directory is not None:
        directory.finish(history[-1])
    return Run(model, task, config, history, None if directory is None else directory.path)


def make_optimizer(model: HookedRNN, config: TrainConfig, step: int) -> AdamW:
    """A new AdamW for the phase that begins with this step."""
    orthogonal = step <= config.orthogonal_steps
    return AdamW(
        model.parameters(),
        lr=config.orthogonal_lr if orthogonal else config.lr,
        weight_decay=config.orthogonal_weight_decay if orthogonal else config.weight_decay,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def take_step(model: HookedRNN, optimizer: AdamW, batch: Sequences, config: TrainConfig, step: int) -> None:
    """One optimizer step on the whole batch."""
    optimizer.zero_grad()
    loss = cross_entropy(batch.last_logits(model).unsqueeze(1), batch.labels)
    loss.backward()
    if not math.isfinite(loss.item()):
        norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
        raise TrainingDivergedError(
            f"the loss became {loss.item()} at step {step} (learning rate {optimizer.param_groups[0]['lr']:g}, "
            f"gradient norm {norm.item():g}): expected a finite loss; try a lower learning rate"
        )
    if step <= config.orthogonal_steps:
        orthogonalize_gradients(model.parameters())
    optimizer.step()


@torch.no_grad()
def evaluate(
    model: HookedRNN, everything: Sequences, train_set: Int[Tensor, " n_train"], test_set: Int[Tensor, " n_test"]
) -> dict[str, float | None]:
    """Mean loss (nats) and accuracy (a fraction of one) on the two parts of a task; None for an empty part."""
    logits, labels = everything.last_logits(model), everything.labels
    losses = cross_entropy(logits.unsqueeze(1).float(), labels, per_token=True).double()
    correct = (logits.argmax(-1) == labels).double()
    parts = {"train": train_set.to(labels.device), "test": test_set.to(labels.device)}
    measures = {"loss": losses, "accuracy": correct}
    return {
        f"{part}_{name}": values[index].mean().item() if len(index) else None
        for name, values in measures.items()
        for part, index in parts.items()
    }


def _check_sizes(model: HookedRNN, task: ModularTask) -> None:
    for name in ("d_vocab", "d_vocab_out"):
        if getattr(model.cfg, name) != getattr(task, name):
            raise TaskError(
                f"the model has {name}={getattr(model.cfg, name)}: expected {getattr(task, name)}, as {task!r}"
            )


def _summary(row: dict[str, Any]) -> str:
    def pair(name: str, form: str) -> str:
        values: Sequence[float | None] = (row[f"train_{name}"], row[f"test_{name}"])
        return " / ".join("none" if value is None else format(value, form) for value in values)

    return f"train / test: loss {pair('loss', '.2e')}, accuracy {pair('accuracy', '.1%')}"
