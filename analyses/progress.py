"""What a network is made of, over its training: every measure at every checkpoint of a run."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from analyses.ablation import frequency_hook
from analyses.adder import Adder
from analyses.circuit import logit_fit, read_circuit
from analyses.clock_pizza import circularity, distance_irrelevance, gradient_symmetry
from analyses.errors import ReportError
from analyses.key_frequencies import RULES, find
from analyses.low_rank import cumulative_energy, held_by_first
from analyses.measure import key_frequencies_of, layers, matrices
from analyses.neurons import EXPLAINED, cluster_neurons
from analyses.restricted import restricted_to_families
from analyses.singular_pairs import singular_pairs
from analyses.spectra import KeyFrequencies, weight_spectrum
from analyses.subsets import removal_lattice
from analyses.weight_removal import removed_from_weight
from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, ModularTask
from hooked_rnn.checkpoints import checkpoint_paths, weights_in
from hooked_rnn.errors import HookedRNNWarning, TaskError, WeightsError
from hooked_rnn.pretrained import WEIGHTS, read_config, read_training
from hooked_rnn.tasks import task_from_dict
from hooked_rnn.weights import load_weights

Rule = Callable[[HookedRNN, ModularTask], KeyFrequencies]
"""How the key frequencies of a network are found."""
TRIPLES = 2_000
"""How many (a, b, c) the gradient symmetricity of each checkpoint is the mean over."""
OTHER_RULES = tuple(name for name in RULES if name != "embedding share")
"""What else than the report's own rule finds key frequencies."""
IN_LATTICE = 6
"""Of so many final key frequencies, the strongest, every subset is removed from W_U."""


@dataclass(frozen=True)
class Losses:
    """Mean cross entropy in nats, of logits as they are and as two operators leave them."""

    plain: float
    restricted: float
    """With the key frequencies alone: variant "sum" of :mod:`analyses.restricted`."""
    excluded: float
    """With all but the key frequencies, by the same variant."""
    accuracy: float
    """Of the logits as they are."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything measured at one step."""

    step: int
    """Optimizer steps taken."""
    train: Losses
    """On the pairs trained on."""
    test: Losses | None
    """On the others; None where there are none."""
    own_key: KeyFrequencies
    """The key frequencies that the network has at this step."""
    shares: dict[int, float]
    """By final key frequency: its share in the spectrum that ``own_key`` was found in."""
    gini: dict[str, float]
    """By matrix: :func:`gini` of its power by frequency."""
    norms: dict[str, float]
    """By matrix: Frobenius norm."""
    clock: float
    """Fraction of the logits' variance that cos(w(a+b-c)) of the final key frequencies explains."""
    pizza: float
    """The same of the pizza's form: see :func:`analyses.circuit.logit_fit`."""
    symmetricity: float
    """Gradient symmetricity: see :func:`analyses.clock_pizza.gradient_symmetry`."""
    exchanged: float
    """The same with the operands exchanged."""
    distance_irrelevance: float | None
    """See :func:`analyses.clock_pizza.distance_irrelevance`."""
    circularity: float
    """Of the embedding."""
    energy: dict[str, float]
    """By matrix: share of its energy in the first 2K singular components, for the K final key frequencies."""
    purity: dict[str, float]
    """By matrix with an axis of numbers: mean purity of those components' pairs, see :mod:`analyses.singular_pairs`."""
    neurons_above: float
    """Share of the last state's neurons of which one frequency explains more than 85%: see :func:`cluster_neurons`."""
    errors: dict[str, float]
    """By stage of the circuit, as "0.hook_hidden[1]" for layer 0's at position 1: relative error of its closed form, at the final
    key frequencies (see :func:`analyses.circuit.read_circuit`); empty for a gated cell."""
    removed: dict[str, float]
    """By site: accuracy on all pairs without the final key frequencies in W_E, in the family "sum" of the last state, in W_U."""
    key_by_rule: dict[str, list[int]]
    """By every other rule of :mod:`analyses.key_frequencies`, at its default threshold: this step's key frequencies."""
    shapley: dict[int, float]
    """By final key frequency, the six strongest: what its removal from W_U adds to the loss, averaged over all orders of removing
    them (the Shapley value of :mod:`analyses.subsets`, in nats)."""

    def row(self) -> dict[str, Any]:
        """As a row of a table; what there is not is None."""
        parts: dict[str, Any] = {"step": self.step}
        for name, losses in (("train", self.train), ("test", self.test)):
            parts |= {
                f"{name}_loss": losses and losses.plain,
                f"{name}_accuracy": losses and losses.accuracy,
                f"{name}_restricted_loss": losses and losses.restricted,
                f"{name}_excluded_loss": losses and losses.excluded,
            }
        parts |= {"n_key": len(self.own_key.frequencies), "key_frequencies": " ".join(map(str, self.own_key.by_share))}
        parts |= {f"share {k}": share for k, share in self.shares.items()}
        parts |= {f"gini {name}": value for name, value in self.gini.items()}
        parts |= {f"norm {name}": value for name, value in self.norms.items()}
        return parts | {
            "clock_fve": self.clock,
            "pizza_fve": self.pizza,
            "gradient_symmetricity": self.symmetricity,
            "gradient_symmetricity_exchanged": self.exchanged,
            "distance_irrelevance": self.distance_irrelevance,
            "circularity": self.circularity,
            **{f"energy {name}": value for name, value in self.energy.items()},
            **{f"purity {name}": value for name, value in self.purity.items()},
            f"neurons above {EXPLAINED:.0%}": self.neurons_above,
            **{f"error {stage}": value for stage, value in self.errors.items()},
            **{f"accuracy without key {site}": value for site, value in self.removed.items()},
            **{f"key by {rule}": " ".join(map(str, found)) for rule, found in self.key_by_rule.items()},
            **{f"shapley loss {k}": value for k, value in self.shapley.items()},
        }


@dataclass(frozen=True)
class Progress:
    """A run, from its first checkpoint to its last."""

    directory: Path
    """The run directory."""
    key: KeyFrequencies
    """The final key frequencies: those of the last checkpoint."""
    checkpoints: list[Checkpoint]
    """In the order of their steps."""
    changes: list[int]
    """Steps at which the optimizer changed."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table."""
        return [checkpoint.row() for checkpoint in self.checkpoints]


@dataclass(frozen=True)
class _Run:
    """What a run directory holds beside its checkpoints."""

    directory: Path
    task: ModularTask
    train: Int[Tensor, " n_train"]
    test: Int[Tensor, " n_test"]
    changes: list[int]
    finished_at: int | None


def progress(
    run_dir: str | Path, rule: Rule = key_frequencies_of, tick: Callable[[int, int], object] = lambda done, total: None
) -> Progress:
    """Measure every checkpoint of a run; one that is unfinished or was killed will do.

    Restricted and excluded loss, shares and fits are about the key frequencies of the last checkpoint, as in Nanda et
    al. 2023; each checkpoint's own are in ``own_key``. A checkpoint that was cut short or altered is left out, with a
    warning. Weights of the end that are no checkpoint are measured too.

    Args:
        run_dir: a run directory.
        rule: how key frequencies are found.
        tick: called with the number of checkpoints that are done and of all.

    Raises:
        RunDirectoryError, ConfigError: no run directory, or one whose files are wrong.
        ReportError: no checkpoint that can be read, no record of the task and the split, or another task.
    """
    run = _read_run(Path(run_dir))
    model = HookedRNN(read_config(run.directory, HookedRNNConfig.from_json)).eval()
    _check_sizes(model, run)
    paths = _paths(run)
    final = next(_loaded(model, reversed(paths)), None)
    if final is None:
        raise ReportError(f"{run.directory} has no checkpoint that can be read: expected the directory of a run")
    key = rule(model, run.task)
    paths = [(step, path) for step, path in paths if step <= final]  # of later ones a warning has been given
    checkpoints: list[Checkpoint] = []
    for step in _loaded(model, paths):
        checkpoints.append(measure_checkpoint(model, run.task, run.train, run.test, key, step, rule))
        tick(len(checkpoints), len(paths))
    return Progress(run.directory, key, checkpoints, run.changes)


@torch.no_grad()
def measure_checkpoint(
    model: HookedRNN,
    task: ModularTask,
    train: Int[Tensor, " n_train"],
    test: Int[Tensor, " n_test"],
    key: KeyFrequencies,
    step: int = 0,
    rule: Rule = key_frequencies_of,
) -> Checkpoint:
    """Measure one network, on the grid of all pairs.

    Args:
        model: it.
        task: addition of two numbers.
        train, test: rows of the grid.
        key: the frequencies that everything is about, and the order in which they are listed.
        step: where in the training it is.
        rule: how its own key frequencies are found.
    """
    adder, p, ks = Adder(model, task), task.p, key.by_share
    logits = adder.logits().double()
    restricted, excluded = restricted_to_families(logits, p, ks)

    def losses(rows: Tensor) -> Losses:
        labels = adder.labels[rows]
        means = [float(cross_entropy(x[rows], labels)) for x in (logits, restricted, excluded)]
        return Losses(*means, accuracy=float((logits[rows].argmax(1) == labels).double().mean()))

    own = rule(model, task)
    symmetry = gradient_symmetry(adder, TRIPLES)
    of_numbers = {"W_E W_ih": adder.W_E @ layers(model)[0].W_ih.detach(), "W_U": adder.W_U.T}
    last_state = f"blocks.{model.cfg.n_layers - 1}.hook_hidden"
    return Checkpoint(
        step,
        losses(train),
        losses(test) if len(test) else None,
        own,
        {k: own.spectrum.share(k) for k in ks},
        {name: gini(weight_spectrum(weight, p).shares) for name, weight in of_numbers.items()},
        {name: float(matrix.norm()) for name, matrix in matrices(model).items()},
        logit_fit(logits, p, ks, "clock").explained,
        logit_fit(logits, p, ks, "pizza").explained,
        symmetry.symmetricity,
        symmetry.exchanged,
        distance_irrelevance(logits, p),
        circularity(adder.W_E),
        {name: held_by_first(cumulative_energy(matrix), 2 * len(ks)) for name, matrix in matrices(model).items()},
        {name: singular_pairs(weight, p, 2 * len(ks)).mean_purity for name, weight in of_numbers.items()},
        cluster_neurons(adder.activation(last_state), p).share_above,
        _closed_form_errors(model, task, ks),
        _accuracy_without(adder, ks, last_state),
        {rule: find(adder, rule).frequencies for rule in OTHER_RULES},
        removal_lattice(adder, ks[:IN_LATTICE], "W_U", control=False).shapley("loss"),
    )


def _closed_form_errors(model: HookedRNN, task: ModularTask, frequencies: list[int]) -> dict[str, float]:
    if model.cfg.cell != "rnn":  # of gates no closed form is known
        return {}
    stages = read_circuit(model, task, frequencies).stages
    return {f"{stage.point}[{stage.position}]": stage.relative_error for stage in stages}


def _accuracy_without(adder: Adder, frequencies: list[int], last_state: str) -> dict[str, float]:
    def accuracy(logits: Tensor) -> float:
        return float((logits.argmax(1) == adder.labels).double().mean())

    def without(weight: str) -> float:
        with removed_from_weight(adder, weight, frequencies):
            return accuracy(adder.logits())

    hook = frequency_hook(adder.p, frequencies)
    return {"W_E": without("W_E"), "hidden": accuracy(adder.logits([(last_state, hook)])), "W_U": without("W_U")}


def gini(values: Float[Tensor, " n"]) -> float:
    """Gini coefficient: sum_ij |x_i - x_j| / (2 n sum_i x_i), 0 where all are equal and 1 - 1/n where one has it all.

    Of the power by frequency here; Nanda et al. 2023 take the norms by Fourier component, which gives less. 0 for zeros.
    """
    ordered = values.double().sort().values
    n, total = len(ordered), float(ordered.sum())
    ranks = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=ordered.device) - n - 1
    return float((ranks * ordered).sum()) / (n * total) if total > 0 else 0.0


def _read_run(directory: Path) -> _Run:
    read_config(directory, HookedRNNConfig.from_json)  # whether it is a run at all
    record = read_training(directory)
    if record is None:
        raise ReportError(f"{directory} has no train.json: expected the directory of a run")
    try:
        task, how = task_from_dict(record["task"]), record["train"]
        train, test = task.split(how["train_fraction"], how["seed"])
        first = how.get("orthogonal_steps", 0)
        changes = [first] if 0 < first < how["steps"] else []
        result = record.get("result")
        finished_at = None if result is None else result["step"]
    except (KeyError, TypeError, AttributeError, TaskError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ReportError(f"{directory}/train.json does not say task and split: {what}") from error
    if not isinstance(task, ModularAddition) or task.operands != 2:
        raise ReportError(f"the task is {task!r}: expected modular addition of two numbers")
    return _Run(directory, task, train, test, changes, finished_at)


def _check_sizes(model: HookedRNN, run: _Run) -> None:
    cfg, task = model.cfg, run.task
    if (cfg.d_vocab, cfg.d_vocab_out) != (task.d_vocab, task.d_vocab_out):
        raise ReportError(
            f"{run.directory}: the model has d_vocab={cfg.d_vocab}, d_vocab_out={cfg.d_vocab_out}: expected "
            f"d_vocab={task.d_vocab}, d_vocab_out={task.d_vocab_out}, for addition modulo {task.p}"
        )


def _paths(run: _Run) -> list[tuple[int, Path]]:
    """Steps and files of the checkpoints, the oldest first, and the weights of the end where no checkpoint has them."""
    paths = [(int(path.stem.removeprefix("step-")), path) for path in reversed(checkpoint_paths(run.directory))]
    end = run.directory / WEIGHTS
    if run.finished_at is not None and end.is_file() and run.finished_at not in dict(paths):
        paths.append((run.finished_at, end))
    return sorted(paths)


def _loaded(model: HookedRNN, paths: Iterable[tuple[int, Path]]) -> Iterator[int]:
    """The steps whose weights can be read; at each, the model has them."""
    for step, path in paths:
        try:
            model.load_state_dict(weights_in(load_weights(path)))
        except (WeightsError, RuntimeError) as error:
            warnings.warn(f"{path.name} is left out: {error}", HookedRNNWarning, stacklevel=3)
        else:
            yield step
