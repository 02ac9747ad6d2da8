"""Everything that the claims are judged by, measured on one model."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.ablation import Ablation, ablate, numbers_removed
from analyses.adder import Adder, at_position
from analyses.attribution import (
    Fit,
    SingularAttribution,
    circle,
    explained_by_circles,
    hidden_fit,
    singular_attribution,
)
from analyses.compared import trained_on
from analyses.errors import ModulusError, RemovalSiteError, ReportError
from analyses.key_frequencies import NEURONS, find
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.places import last_place, read
from analyses.sites import SITES, drawn_pairs, embedding_site, state_site, unembedded, unembedding_site
from analyses.spectra import KeyFrequencies, Spectrum, grid_spectrum, weight_spectrum
from analyses.weights import layer_weight, n_layers, number_weights
from hooked_rnn import HookedRNN, ModularAddition, ModularTask, build_model, load_model, model_config
from hooked_rnn.errors import ConversionError, TaskError
from hooked_rnn.loaders.load import load_checkpoint
from hooked_rnn.losses import cross_entropy
from hooked_rnn.pretrained import local_directory, read_training
from hooked_rnn.recurrent import RecurrentBlock
from hooked_rnn.tasks import task_from_dict

REMOVAL_PAIRS = 2048
"""Of a model whose every removal from W_E is a forward pass, so many drawn pairs are run: its standard error is at most 1.1%."""


@dataclass(frozen=True)
class Subject:
    """A model, the task that it was trained on, and which pairs it did not see."""

    name: str
    """What the user called it."""
    model: Any
    """In eval mode: a HookedRNN, or what else an :class:`analyses.adder.Adder` takes."""
    task: ModularTask
    """Two operands."""
    held_out: Float[Tensor, " pairs"] | None
    """1 for pairs that were not trained on, 0 for the others; None where the split is not known or empty."""
    directory: Path | None
    """Where it came from, if from a directory."""
    training: dict[str, Any] | None = None
    """What ``train.json`` says of the run, if there is one."""
    notes: tuple[str, ...] = ()
    """What its loader had to say of a file."""

    @property
    def adder(self) -> Adder:
        """As the toolbox sees it."""
        return Adder(self.model, self.task)

    @property
    def train(self) -> Int[Tensor, " n_train"] | None:
        """Indices of the pairs that were trained on; None where the split is not known or empty."""
        return None if self.held_out is None else (self.held_out == 0).nonzero()[:, 0]


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
    """From the power of W_E W_ih; of another kind of model than a recurrent one, of W_E."""
    hidden: str
    """Which activation is the last hidden state, of :attr:`spectra`."""
    spectra: dict[str, Spectrum]
    """Of the weights with a token or answer axis, and of the last layer's activations over the grid, where it answers."""
    cumulative_energy: dict[str, Float[Tensor, " rank"]]
    """By matrix: share of the energy in the first 1, 2, ... singular components."""
    untrained_energy: dict[str, float]
    """By matrix: what the first 2K hold of weights that learned nothing, see :func:`untrained`."""
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
    drawn: int | None
    """On how many drawn pairs accuracy is taken without frequencies of W_E; None for all."""
    left_out: dict[str, str]
    """What this kind of model does not have, and why."""

    @property
    def hidden_spectrum(self) -> Spectrum:
        """Of the last hidden state on the grid of pairs."""
        return self.spectra[self.hidden]

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
    """A model by name or directory, with what ``train.json`` says of its task and split; or of a checkpoint file.

    Raises:
        UnknownModelError, RunDirectoryError, WeightsError, ConfigError: as :func:`hooked_rnn.load_model`.
        UnknownFormatError, TaskError: of a file, as :func:`hooked_rnn.loaders.load.load_checkpoint`.
        ReportError: the model is not one of addition of two numbers.
    """
    if Path(name).is_file():
        loaded = load_checkpoint(name)
        return subject_of(loaded.model, loaded.task, Path(name).name, trained_on(loaded), notes=loaded.notes)
    model = load_model(name)
    directory = local_directory(name)
    record = read_training(directory) if directory else None
    if record is None:
        return Subject(name, model, task_of(model), None, directory)
    try:
        task = task_from_dict(record["task"])
        train, _ = task.split(record["train"]["train_fraction"], record["train"]["seed"])
    except (KeyError, TypeError, TaskError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ReportError(f"{directory}/train.json does not say task and split: {what}") from error
    return subject_of(model, task, name, train, directory, record)


def subject_of(
    model: Any,
    task: ModularTask,
    name: str = "a model",
    train: Int[Tensor, " n_train"] | None = None,
    directory: Path | None = None,
    training: dict[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> Subject:
    """A model that is at hand, as what a report is about.

    Args:
        model: in eval mode; whatever an :class:`analyses.adder.Adder` takes.
        task: addition of two numbers.
        name: what to call it.
        train: indices of the pairs that it was trained on, as ``task.split(...)[0]``.
        directory, training: where it came from, and what ``train.json`` says there.
        notes: what its loader had to say of it.

    Raises:
        ReportError: another task, or a model of other sizes.
    """
    check_task(model, task)
    held_out = None if train is None else torch.ones(len(task.labels)).index_fill(0, train, 0.0)
    known = held_out if held_out is not None and held_out.any() else None
    return Subject(name, model, task, known, directory, training, notes)


def task_of(model: Any) -> ModularTask:
    """The task that a model's sizes speak of, where nothing else does.

    Raises:
        ReportError: no addition of two numbers has these sizes.
    """
    cfg = model.cfg
    is_recurrent = isinstance(model, HookedRNN)
    equals_token = cfg.d_vocab == cfg.d_vocab_out + 1 if is_recurrent else cfg.n_ctx == 3
    p = cfg.d_vocab_out if is_recurrent else cfg.d_vocab - equals_token  # of others an answer may be surplus
    try:
        task = ModularAddition(p, equals_token=equals_token)
    except TaskError as error:
        raise ReportError(f"the model has d_vocab_out={cfg.d_vocab_out}, which is no modulus: {error}") from error
    check_task(model, task)
    return task


def check_task(model: Any, task: ModularTask) -> None:
    """Raise ReportError unless this is addition of two numbers, and the model's sizes are its sizes."""
    if not isinstance(task, ModularAddition) or task.operands != 2:
        raise ReportError(f"the task is {task!r}: expected modular addition of two numbers")
    cfg = model.cfg if isinstance(model, HookedRNN) else None
    if cfg is None:
        try:
            Adder(model, task)
        except ModulusError as error:
            raise ReportError(str(error)) from error
    elif (cfg.d_vocab, cfg.d_vocab_out) != (task.d_vocab, task.d_vocab_out) or cfg.n_ctx not in (None, task.n_ctx):
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

    Raises:
        ActivationError: a model without a hook point that W_U, or a final norm before it, reads.
    """
    model, adder = subject.model, subject.adder
    tick("accuracy")
    logits, labels = adder.logits(), adder.labels
    correct = (logits.argmax(-1) == labels).double().cpu()

    tick("frequencies")
    key = find(adder)
    ks = key.frequencies
    components = 2 * len(ks)
    hidden, W_U = unembedded(adder).cpu(), adder.W_U.cpu()
    state, drawn, every = read(adder, last_place(adder)), drawn_pairs(adder, removal_pairs(model)), drawn_pairs(adder)
    make_site = {
        "W_E": lambda: embedding_site(adder, drawn),
        "hidden": lambda: state_site(adder, every, state),
        "W_U": lambda: unembedding_site(adder, every, state),
    }
    ablations, left_out = {}, {}
    for name in SITES:
        step = f"removal from {name}"
        try:
            site = make_site[name]()
        except RemovalSiteError as error:
            left_out[step] = str(error)
            for _ in numbers_removed(key.by_share):
                tick(step)
        else:
            ablations[name] = ablate(site, key.by_share, adder.p, tick=lambda step=step: tick(step))
    return Measurements(
        accuracy=float(correct.mean()),
        loss=float(cross_entropy(logits.unsqueeze(1).double(), labels)),
        held_out_accuracy=None if subject.held_out is None else float(correct[subject.held_out > 0].mean()),
        key=key,
        hidden=_short(last_place(adder).hook_name),
        spectra=spectra_of(adder),
        cumulative_energy={name: cumulative_energy(matrix) for name, matrix in matrices(model).items()},
        untrained_energy={
            name: held_by_first(cumulative_energy(matrix), components) for name, matrix in untrained(model).items()
        },
        attributions={
            name: singular_attribution(weight, adder.p, components, dim=0) for name, weight in claimed(adder).items()
        },
        explained=explained_by_circles(adder.W_E, ks),
        fits={k: hidden_fit(hidden, W_U, k) for k in ks},
        circles={k: circle(adder.W_E, k) for k in ks},
        ablations=ablations,
        drawn=None if len(drawn) == len(labels) else len(drawn),
        left_out=left_out,
    )


def removal_pairs(model: Any) -> int | None:
    """On how many drawn pairs accuracy is taken without frequencies of W_E: all (None) where prefixes are shared, so that it is cheap."""
    return None if isinstance(model, HookedRNN) else REMOVAL_PAIRS


@torch.no_grad()
def accuracy_of(subject: Subject) -> float:
    """Accuracy on all pairs."""
    adder = subject.adder
    return float((adder.logits().argmax(-1) == adder.labels).double().mean())


def n_ticks(n_key_frequencies: int) -> int:
    """How often :func:`measure` calls its ``tick``."""
    return 2 + len(SITES) * len(numbers_removed(list(range(n_key_frequencies))))


def key_frequencies_of(model: Any, task: ModularTask) -> KeyFrequencies:
    """The default rule: frequencies by their share of the power of W_E W_ih (or W_E), over the numbers' tokens."""
    return find(Adder(model, task))


def claimed(adder: Adder) -> dict[str, Float[Tensor, "p _d"]]:
    """The weights that C4 is judged by: all that have an axis of numbers, but W_hh W_U, which is a step away from either."""
    return {name: weight for name, weight in number_weights(adder).items() if name != "W_hh W_U"}


@torch.no_grad()
def spectra_of(adder: Adder) -> dict[str, Spectrum]:
    """Spectra of the weights of :func:`claimed`, and of activations of the last layer where the model answers."""
    points, last = adder.model.hook_dict, last_place(adder).hook_name
    kinds = ("hook_recurrent", "hook_preact") if isinstance(adder.model, HookedRNN) else NEURONS
    layer = last.rpartition(".")[0]
    names = [name for name in points if name.startswith(layer) and name.endswith(kinds) and ".steps." not in name]
    names = [*dict.fromkeys([*names, last])]
    _, cache = adder.model.run_with_cache(adder.tokens, names_filter=names)
    n_positions = adder.tokens.shape[1]
    found = {name: weight_spectrum(weight, adder.p) for name, weight in claimed(adder).items()}
    for name in names:
        found[_short(name)] = grid_spectrum(at_position(cache[name], adder.position, n_positions, name).cpu(), adder.p)
    return found | {"hook_logits": grid_spectrum(adder.logits().cpu(), adder.p)}


def matrices(model: Any) -> dict[str, Float[Tensor, "_n _m"]]:
    """Every weight matrix by name, and W_E W_ih; layers above the first by number, an attention's heads side by side."""
    if not isinstance(model, HookedRNN):
        return _residual_matrices(model)
    named = {"W_E": model.W_E}
    for layer, block in enumerate(layers(model)):
        suffix = f"[{layer}]" if layer else ""
        named |= {f"W_ih{suffix}": block.W_ih, f"W_hh{suffix}": block.W_hh}
    return named | {"W_U": model.W_U, "W_E W_ih": model.W_E @ layers(model)[0].W_ih}


def untrained(model: Any) -> dict[str, Float[Tensor, "_n _m"]]:
    """The same of the model's initial weights; Gaussian ones of those shapes, where no configuration of ours describes it."""
    try:
        return matrices(build_model(model_config(model)))
    except ConversionError:
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(matrix.shape, generator=generator) for name, matrix in matrices(model).items()}


def layers(model: HookedRNN) -> list[RecurrentBlock]:
    """The recurrent layers, from the lowest."""
    return cast(list[RecurrentBlock], list(model.blocks))


def _residual_matrices(model: Any) -> dict[str, Tensor]:
    """Of a transformer or an MLP, by the names that TransformerLens has for them."""
    named = {"W_E": model.W_E.detach()}
    for layer in range(n_layers(model)):
        for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
            weight = layer_weight(model, name, layer)
            if weight is None:
                continue
            if weight.ndim == 3:
                weight = torch.cat(list(weight), dim=0 if name == "W_O" else 1)
            named[f"{name}[{layer}]" if layer else name] = weight
    return named | {"W_U": model.W_U.detach()}


def _short(hook_name: str) -> str:
    """A hook point's name without the block's."""
    return re.sub(r"^blocks\.\d+\.", "", hook_name)
