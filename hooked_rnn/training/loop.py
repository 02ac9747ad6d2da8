"""Training: the one function that makes a model."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm.auto import tqdm

from hooked_rnn.architectures import architecture_of, model_config
from hooked_rnn.errors import ConfigError, TaskError, TrainingDivergedError
from hooked_rnn.losses import cross_entropy
from hooked_rnn.side_by_side import lead
from hooked_rnn.tasks import ModularTask
from hooked_rnn.training.batches import Minibatches, Sequences
from hooked_rnn.training.config import TrainConfig
from hooked_rnn.training.interrupts import Interrupts
from hooked_rnn.training.logs import WriteRow, check_log, open_log
from hooked_rnn.training.orthogonal import orthogonalize_gradients
from hooked_rnn.training.run_directory import RunDirectory
from hooked_rnn.training.state import TrainState, make_optimizer
from hooked_rnn.training.stopping import StopRule

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Run(Generic[Model]):
    """A finished training run."""

    model: Model
    """The trained model, in eval mode."""
    task: ModularTask
    """What it was trained on."""
    config: TrainConfig
    """How."""
    history: list[dict[str, Any]]
    """Rows of step, seconds, train_loss, test_loss, train_accuracy, test_accuracy (None without test sequences)."""
    directory: Path | None
    """Where the run was written, if anywhere."""


def train(
    model: Model,
    task: ModularTask,
    config: TrainConfig,
    out: str | Path | None = None,
    progress: bool = True,
    resume: bool = False,
    log: str | None = None,
) -> Run[Model]:
    """Train a model in place on a share of a task's sequences.

    The same model, task, configuration, machine and number of threads give the same bits, also where a run
    was killed and gone on with. Ctrl-C ends the step that is under way, saves, and then raises.

    Args:
        model: a HookedRNN, HookedMLP or TransformerBridge whose sizes fit the task; trained where it is, in its own dtype.
        task: its sequences, labels and split.
        config: every hyperparameter; see :meth:`TrainConfig.recipe`.
        out: a run directory, or None to keep everything in memory.
        progress: show a progress bar with losses and accuracies.
        resume: if ``out`` holds this very run, go on from its last checkpoint; a finished one is read and returned.
        log: "tensorboard", to write the history there too.

    Raises:
        ConversionError: a model of another kind, or a transformer that TransformerConfig cannot describe.
        TaskError: the model's sizes do not fit the task.
        ConfigError: more in a minibatch than there is, a stop rule about an empty test set, an unknown log.
        RunDirectoryError: ``out`` is in use, holds another run, or cannot be written; what was saved stays whole.
        TrainingDivergedError: the loss became NaN or infinite.
        KeyboardInterrupt: after Ctrl-C; the message says what was saved.
    """
    _check_sizes(model, task)
    train_set, test_set = task.split(config.train_fraction, config.seed)
    _check_config(config, len(train_set), len(test_set))
    path = None if out is None else Path(out)
    check_log(log, path)
    device = next(model.parameters()).device
    everything = Sequences.of(task.tokens, task.labels, device)
    minibatches = Minibatches(everything.chosen(train_set.to(device)), config.batch_size, config.seed)
    state = TrainState.fresh(model, config, minibatches)

    directory = None if path is None else RunDirectory(path, model, task, config, resume)
    with directory or nullcontext():
        if directory is not None:
            directory.restore(state)
        if directory is None or not directory.is_finished:
            with open_log(log, path or Path(), state.step) as write_row:
                _take_steps(state, _Evaluation(everything, train_set, test_set), directory, write_row, progress)
            if directory is not None:
                directory.finish(state.history[-1])
    model.eval()
    return Run(model, task, config, state.history, path)


@dataclass(frozen=True)
class _Evaluation:
    """What a run is evaluated on."""

    everything: Sequences
    train_set: Int[Tensor, " n_train"]
    test_set: Int[Tensor, " n_test"]

    def row(self, state: TrainState) -> dict[str, Any]:
        """The history's row for now."""
        figures = evaluate(state.model, self.everything, self.train_set, self.test_set)
        return {"step": state.step, "seconds": round(state.seconds, 3), **figures}


def _take_steps(
    state: TrainState, evaluation: _Evaluation, directory: RunDirectory | None, write_row: WriteRow, progress: bool
) -> None:
    """From where the state is to the end of the run."""
    config = state.config
    rules = [StopRule.parse(rule) for rule in config.stop_at]
    stopped = bool(state.history) and state.history[-1]["step"] == state.step and _met(rules, state.history[-1])
    started = time.perf_counter() - state.seconds
    state.model.train()
    bar = tqdm(total=config.steps, initial=state.step, disable=not progress, unit="step", desc=f"train ({config.name})")
    with bar, Interrupts() as interrupts:
        while state.step < config.steps and not stopped:
            step = state.step + 1
            if step == config.orthogonal_steps + 1:
                state.optimizer = make_optimizer(state.model, config, step)
            take_step(state.model, state.optimizer, state.minibatches.at(step), config, step)
            state.step, state.seconds = step, time.perf_counter() - started
            bar.update()
            if step % config.eval_every == 0 or step == config.steps:
                row = evaluation.row(state)
                state.history.append(row)
                bar.set_postfix_str(_summary(row))
                write_row(row)
                if directory is not None:
                    directory.add_row(row)
                stopped = _met(rules, row)
            if directory is not None and (
                step % config.checkpoint_every == 0 or step == config.steps or stopped or interrupts.asked
            ):
                directory.save(state)
            if interrupts.asked and step < config.steps and not stopped:
                where = "nothing was saved" if directory is None else f"saved in {directory.path}, to resume from"
                raise KeyboardInterrupt(f"interrupted after step {step}; {where}")


def take_step(model: nn.Module, optimizer: AdamW, batch: Sequences, config: TrainConfig, step: int) -> None:
    """One optimizer step on a batch, by as many threads as torch has."""
    threads, backward = batch.plan_backward(model)
    lead(threads, partial(_take_step, model, optimizer, backward, config, step))


def _take_step(
    model: nn.Module, optimizer: AdamW, backward: Callable[[], Tensor], config: TrainConfig, step: int
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = None
    lr = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = backward().item()
    if not math.isfinite(loss):
        norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        raise TrainingDivergedError(
            f"the loss became {loss} at step {step} (learning rate {lr:g}, gradient norm {norm.item():g}): "
            "expected a finite loss; try a lower learning rate"
        )
    if step <= config.orthogonal_steps:
        orthogonalize_gradients(parameters)
    optimizer.step()


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step: that of its phase, after a linear warm-up at the phase's beginning."""
    orthogonal = step <= config.orthogonal_steps
    lr = config.orthogonal_lr if orthogonal else config.lr
    step_of_phase = step if orthogonal else step - config.orthogonal_steps
    return lr * min(1.0, step_of_phase / config.warmup_steps) if config.warmup_steps else lr


@torch.no_grad()
def evaluate(
    model: nn.Module, everything: Sequences, train_set: Int[Tensor, " n_train"], test_set: Int[Tensor, " n_test"]
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


def _check_sizes(model: nn.Module, task: ModularTask) -> None:
    cfg = model_config(model)
    wrong = [name for name in ("d_vocab", "d_vocab_out") if getattr(cfg, name) != getattr(task, name)]
    if not architecture_of(model).runs_on(cfg, task.n_ctx):
        wrong.append("n_ctx")
    for name in wrong:
        raise TaskError(f"the model has {name}={getattr(cfg, name)}: expected {getattr(task, name)}, as {task!r}")


def _check_config(config: TrainConfig, n_train: int, n_test: int) -> None:
    if config.batch_size is not None and config.batch_size > n_train:
        raise ConfigError(f"batch_size={config.batch_size}: expected at most {n_train}, the sequences to train on")
    for rule in config.stop_at:
        if not n_test and StopRule.parse(rule).figure.startswith("test"):
            raise ConfigError(f"stop rule {rule!r} is about test sequences: expected train_fraction below 1")


def _met(rules: Sequence[StopRule], row: dict[str, Any]) -> bool:
    return any(rule.met_by(row) for rule in rules)


def _summary(row: dict[str, Any]) -> str:
    def pair(name: str, form: str) -> str:
        values: Sequence[float | None] = (row[f"train_{name}"], row[f"test_{name}"])
        return " / ".join("none" if value is None else format(value, form) for value in values)

    return f"train / test: loss {pair('loss', '.2e')}, accuracy {pair('accuracy', '.1%')}"
