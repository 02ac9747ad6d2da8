"""Everything that the claims are judged by, measured on one model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.ablation import SITES, Ablation, ablate, last_hidden, numbers_removed
from analyses.attribution import (
    Fit,
    SingularAttribution,
    circle,
    explained_by_circles,
    hidden_fit,
    singular_attribution,
)
from analyses.errors import ReportError
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.spectra import KeyFrequencies, Spectrum, grid_spectrum, key_frequencies, weight_spectrum
from hooked_rnn import HookedRNN, ModularAddition, ModularTask
from hooked_rnn.errors import TaskError
from hooked_rnn.losses import cross_entropy
from hooked_rnn.pretrained import local_directory, read_training
from hooked_rnn.recurrent import RecurrentBlock
from hooked_rnn.tasks import task_from_dict


@dataclass(frozen=True)
class Subject:
    """A model, the task that it was trained on, and which pairs it did not see."""

    name: str
    """What the user called it."""
    model: HookedRNN
    """In eval mode."""
    task: ModularTask
    """Two operands."""
    held_out: Float[Tensor, " pairs"] | None
    """1 for pairs that were not trained on, 0 for the others; None where the split is not known or empty."""
    directory: Path | None
    """Where it came from, if from a directory."""
    training: dict[str, Any] | None = None
    """What ``train.json`` says of the run, if there is one."""


@dataclass(frozen=True)
class Measurements:
    """What was measured on one model; every field is one function's result."""

    accuracy: float
    """On all pairs."""
    loss: float
    """Mean cross entropy on all pairs, in nats."""
    held_out_accuracy: float | None
    """On the pairs that were not trained on, where they are known."""
    key: KeyFrequencies
    """From the power of W_E W_ih."""
    spectra: dict[str, Spectrum]
    """Of every weight with a token or answer axis, and of the last layer's and position's activations over the grid."""
    cumulative_energy: dict[str, Float[Tensor, " rank"]]
    """By matrix: share of the energy in the first 1, 2, ... singular components."""
    untrained_energy: dict[str, float]
    """By matrix: what the first 2K hold of the model's initial weights."""
    attributions: dict[str, SingularAttribution]
    """By matrix with a token or answer axis."""
    explained: float
    """Share of W_E's variance that the key frequencies' circles explain."""
    fits: dict[int, Fit]
    """By key frequency: the last hidden state's projections on cos and sin of w_k(a+b)."""
    circles: dict[int, Float[Tensor, "p axes"]]
    """By key frequency: the tokens in the plane of the embedding in which it turns."""
    ablations: dict[str, Ablation]
    """By site."""

    @property
    def hidden_spectrum(self) -> Spectrum:
        """Of the last hidden state on the grid of pairs."""
        return self.spectra["hook_hidden"]

    @property
    def output_spectrum(self) -> Spectrum:
        """Of W_U over the answers."""
        return self.spectra["W_U"]

    @property
    def components(self) -> int:
        """2K: a cosine and a sine for each of the K key frequencies."""
        return 2 * len(self.key.frequencies)

    @property
    def energy(self) -> dict[str, float]:
        """By matrix: share of the energy in the first 2K singular components."""
        return {name: held_by_first(held, self.components) for name, held in self.cumulative_energy.items()}


def load_subject(name: str) -> Subject:
    """A model by name or directory, with what ``train.json`` says of its task and split.

    Raises:
        UnknownModelError, RunDirectoryError, WeightsError, ConfigError: as ``from_pretrained``.
        ReportError: the model is not one of addition of two numbers.
    """
    model = HookedRNN.from_pretrained(name)
    directory = local_directory(name)
    record = read_training(directory) if directory else None
    if record is None:
        return Subject(name, model, task_of(model), None, directory)
    try:
        task = task_from_dict(record["task"])
        _, test = task.split(record["train"]["train_fraction"], record["train"]["seed"])
    except (KeyError, TypeError, TaskError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ReportError(f"{directory}/train.json does not say task and split: {what}") from error
    check_task(model, task)
    held_out = torch.zeros(len(task.labels)).index_fill(0, test, 1.0) if len(test) else None
    return Subject(name, model, task, held_out, directory, record)


def task_of(model: HookedRNN) -> ModularTask:
    """The task that a model's sizes speak of, where nothing else does.

    Raises:
        ReportError: no addition of two numbers has these sizes.
    """
    try:
        task = ModularAddition(model.cfg.d_vocab_out, equals_token=model.cfg.d_vocab == model.cfg.d_vocab_out + 1)
    except TaskError as error:
        raise ReportError(f"the model has d_vocab_out={model.cfg.d_vocab_out}, which is no modulus: {error}") from error
    check_task(model, task)
    return task


def check_task(model: HookedRNN, task: ModularTask) -> None:
    """Raise ReportError unless this is addition of two numbers, by a vanilla cell, and the model's sizes are its sizes."""
    cfg = model.cfg
    if cfg.cell != "rnn":
        raise ReportError(
            f"the model's cell is {cfg.cell!r}: expected 'rnn', the vanilla cell, which the paper's claims are about"
        )
    if not isinstance(task, ModularAddition) or task.operands != 2:
        raise ReportError(f"the task is {task!r}: expected modular addition of two numbers")
    if (cfg.d_vocab, cfg.d_vocab_out) != (task.d_vocab, task.d_vocab_out) or cfg.n_ctx not in (None, task.n_ctx):
        raise ReportError(
            f"the model has d_vocab={cfg.d_vocab}, d_vocab_out={cfg.d_vocab_out}, n_ctx={cfg.n_ctx}: expected "
            f"d_vocab={task.d_vocab}, d_vocab_out={task.d_vocab_out}, n_ctx={task.n_ctx}, for addition of two numbers modulo {task.p}"
        )


@torch.no_grad()
def measure(subject: Subject, tick: Callable[[str], object] = lambda _: None) -> Measurements:
    """Measure everything.

    Args:
        subject: the model and its task.
        tick: called with the name of what comes next, for a progress bar; :func:`n_ticks` times.
    """
    model, task = subject.model, subject.task
    tick("accuracy")
    hidden = last_hidden(model, task)
    logits = hidden @ model.W_U + model.b_U
    labels = task.labels.to(logits.device)
    correct = (logits.argmax(-1) == labels).double().cpu()

    tick("frequencies")
    key = key_frequencies_of(model, task)
    ks = key.frequencies
    components = 2 * len(ks)
    numbers = model.W_E[: task.p]
    composed = numbers @ layers(model)[0].W_ih
    attributions = {
        "W_E": singular_attribution(numbers, task.p, components, dim=0),
        "W_E W_ih": singular_attribution(composed, task.p, components, dim=0),
        "W_U": singular_attribution(model.W_U, task.p, components, dim=1),
    }

    ablations = {}
    for name, make_site in SITES.items():
        site = make_site(model, task)
        ablations[name] = ablate(site, key.by_share, task.p, tick=lambda name=name: tick(f"removal from {name}"))
    return Measurements(
        accuracy=float(correct.mean()),
        loss=float(cross_entropy(logits.unsqueeze(1).double(), labels)),
        held_out_accuracy=None if subject.held_out is None else float(correct[subject.held_out > 0].mean()),
        key=key,
        spectra=spectra_of(model, task),
        cumulative_energy={name: cumulative_energy(matrix) for name, matrix in matrices(model).items()},
        untrained_energy={
            name: held_by_first(cumulative_energy(matrix), components)
            for name, matrix in matrices(HookedRNN(model.cfg)).items()
        },
        attributions=attributions,
        explained=explained_by_circles(numbers, ks),
        fits={k: hidden_fit(hidden, model.W_U, k) for k in ks},
        circles={k: circle(numbers, k) for k in ks},
        ablations=ablations,
    )


@torch.no_grad()
def accuracy_of(subject: Subject) -> float:
    """Accuracy on all pairs."""
    logits = last_hidden(subject.model, subject.task) @ subject.model.W_U + subject.model.b_U
    return float((logits.argmax(-1) == subject.task.labels.to(logits.device)).double().mean())


def n_ticks(n_key_frequencies: int) -> int:
    """How often :func:`measure` calls its ``tick``."""
    return 2 + len(SITES) * len(numbers_removed(list(range(n_key_frequencies))))


def key_frequencies_of(model: HookedRNN, task: ModularTask) -> KeyFrequencies:
    """The default rule: frequencies by their share of the power of W_E W_ih, over the numbers' tokens."""
    return key_frequencies(weight_spectrum(model.W_E[: task.p] @ layers(model)[0].W_ih, task.p))


@torch.no_grad()
def spectra_of(model: HookedRNN, task: ModularTask) -> dict[str, Spectrum]:
    """Spectra of W_E, W_E W_ih and W_U, and of the activations of the last layer at the last position."""
    numbers = model.W_E[: task.p]
    weights = {
        "W_E": weight_spectrum(numbers, task.p),
        "W_E W_ih": weight_spectrum(numbers @ layers(model)[0].W_ih, task.p),
        "W_U": weight_spectrum(model.W_U, task.p, dim=1),
    }
    last = f"blocks.{model.cfg.n_layers - 1}."
    names = [f"{last}hook_recurrent", f"{last}hook_preact", f"{last}hook_hidden", "hook_logits"]
    _, cache = model.run_with_cache(task.tokens.to(model.cfg.device), names_filter=names, pos_slice=-1)
    return weights | {name.removeprefix(last): grid_spectrum(cache[name][:, -1].cpu(), task.p) for name in names}


def matrices(model: HookedRNN) -> dict[str, Float[Tensor, "_n _m"]]:
    """Every weight matrix by name, and W_E W_ih; layers above the first by number."""
    named = {"W_E": model.W_E}
    for layer, block in enumerate(layers(model)):
        suffix = f"[{layer}]" if layer else ""
        named |= {f"W_ih{suffix}": block.W_ih, f"W_hh{suffix}": block.W_hh}
    return named | {"W_U": model.W_U, "W_E W_ih": model.W_E @ layers(model)[0].W_ih}


def layers(model: HookedRNN) -> list[RecurrentBlock]:
    """The recurrent layers, from the lowest."""
    return cast(list[RecurrentBlock], list(model.blocks))
