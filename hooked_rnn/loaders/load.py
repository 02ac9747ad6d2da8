"""From a model that someone has, in memory or on disk, to one that TransformerLens can hook."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_rnn import pretrained
from hooked_rnn.architectures import ARCHITECTURES, architecture_of, config_from_json, load_model
from hooked_rnn.checkpoints import CHECKPOINTS
from hooked_rnn.checkpoints import weights_in as without_training
from hooked_rnn.errors import ConversionError, TaskError, UnknownFormatError, UnknownModelError, WeightsError
from hooked_rnn.loaders import content as contents
from hooked_rnn.loaders.files import SAFETENSORS, SUFFIXES, read_file
from hooked_rnn.loaders.formats import Format, Known, Parts, StateDict, check_shapes
from hooked_rnn.loaders.grokking_paper import GROKKING_PAPER
from hooked_rnn.loaders.hooked_transformer import HOOKED_TRANSFORMER, NORM
from hooked_rnn.loaders.own import HOOKED_MLP, HOOKED_RNN
from hooked_rnn.loaders.plain_mlp import PLAIN_MLP
from hooked_rnn.loaders.task_form import task_of_sizes
from hooked_rnn.loaders.transformer_bridge import TRANSFORMER_BRIDGE
from hooked_rnn.tasks import ModularTask, task_from_dict

FORMATS: tuple[Format, ...] = (
    GROKKING_PAPER,
    HOOKED_TRANSFORMER,
    TRANSFORMER_BRIDGE,
    HOOKED_RNN,
    HOOKED_MLP,
    PLAIN_MLP,
)
"""The formats of files, in the order in which they are tried; no file is of two."""
MOST_COUNTED = 200_000
"""On more sequences than this it is not counted how often a surplus column has the largest logit."""
IN_MEMORY = "model in memory"
RUN = "hooked_rnn"
"""The format's name where the configuration was saved with the weights."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be hooked, and what is known of it."""

    model: Any
    """HookedRNN, TransformerBridge or HookedMLP, in eval mode."""
    format: str
    """What it was recognised as."""
    task: ModularTask
    """The task that it was trained on, as far as its sizes or its record tell: operands, and the '=' token."""
    source: str
    """Where it came from."""
    notes: tuple[str, ...]
    """What was assumed, left out or chosen."""

    @property
    def p(self) -> int:
        """The modulus."""
        return self.task.p


def load_checkpoint(
    source: Any, *, p: int | None = None, act_fn: str | None = None, epoch: int | None = None
) -> LoadedModel:
    """A model of modular addition, from whatever it is saved as.

    Args:
        source: a file of ``torch.save`` or safetensors in one of :data:`FORMATS`; an embedded model's name, a run directory or a
            Hub id; a state dict; or a HookedRNN, a TransformerBridge or a HookedMLP, which is put in eval mode and not copied.
        p: the modulus, where the sizes leave a choice.
        act_fn: the nonlinearity, of which weights tell nothing.
        epoch: which state dict, of a file that holds a list of them.

    Raises:
        UnknownModelError: no such file, directory or name.
        UnknownFormatError: weights of no known format.
        WeightsError: a file that cannot be read, or weights that do not fit together or are not finite.
        TaskError: a modulus that the sizes do not allow.
        RunDirectoryError, ConfigError: a directory that holds no model, or a wrong one.
    """
    if isinstance(source, Mapping):
        return _of_content(source, p, act_fn, epoch, "the state dict")
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_file():
            return _of_file(path, p, act_fn, epoch)
        if path.suffix in SUFFIXES:
            raise UnknownModelError(f"no file {str(path)!r}")
        return _of_name(source, p)
    return _of_model(source, p)


def _of_model(model: Any, p: int | None) -> LoadedModel:
    """A model in memory."""
    try:
        kind = architecture_of(model)
    except ConversionError as error:
        raise UnknownFormatError(f"{error}; or a file, a name or a state dict") from error
    source = f"the {type(model).__name__}"
    task = _task_of(model, kind.config.architecture, p, source)
    return LoadedModel(model.eval(), IN_MEMORY, task, source, _surplus(model, task))


def _of_name(name: str | Path, p: int | None) -> LoadedModel:
    """An embedded model, a run directory or a repository on the Hub."""
    model = load_model(name)
    directory = pretrained.local_directory(name)
    task = _task_of_run(model, directory, p, str(name))
    return LoadedModel(model, RUN, task, str(name), _surplus(model, task))


def _of_file(path: Path, p: int | None, act_fn: str | None, epoch: int | None) -> LoadedModel:
    """A file, by the configuration beside it where a run directory is around it, else by its content."""
    run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    if path.suffix == SAFETENSORS and (run / pretrained.CONFIG).is_file():
        cfg = pretrained.read_config(run, config_from_json)
        notes: list[str] = []
        weights = contents.weights_in(without_training(read_file(path)), epoch, str(path), notes)
        model = _built(Parts(cfg, weights), str(path))
        model.loaded_from = path
        task = _task_of_run(model, run, p, str(path))
        return LoadedModel(model, RUN, task, str(path), (*notes, *_surplus(model, task)))
    return _of_content(read_file(path), p, act_fn, epoch, str(path))


def _of_content(content: Any, p: int | None, act_fn: str | None, epoch: int | None, source: str) -> LoadedModel:
    """What a file of a known format held."""
    notes: list[str] = []
    weights = contents.weights_in(content, epoch, source, notes)
    config = contents.config_in(content)
    found = _format_of(weights, source)
    parts = found.read(weights, Known(source, config, act_fn), notes)
    model = _built(parts, source)
    if p is None and isinstance(config.get("p"), int):
        p = config["p"]
    if config.get("fn_name", "add") != "add":
        notes.append(
            f"its configuration says fn_name={config['fn_name']!r}: the task is taken to be addition all the same"
        )
    task = _task_of(model, parts.cfg.architecture, p, source)
    if parts.cfg.d_vocab_out > task.p:
        notes.append(_surplus_left_out(model, task))
        model = _built(_without_surplus(parts, task.p), source)
    return LoadedModel(model, found.name, task, source, tuple(notes))


def _format_of(weights: StateDict, source: str) -> Format:
    for candidate in FORMATS:
        if candidate.fits(weights):
            return candidate
    known = "; ".join(f"{each.name} ({each.recognised_by})" for each in FORMATS)
    raise UnknownFormatError(f"{source} is of no known format: {contents.found_in(weights)}. Known are: {known}")


def _built(parts: Parts, source: str) -> Any:
    """The model, in eval mode and in the weights' dtype, once names and shapes are seen to fit."""
    cfg, weights = parts.cfg, parts.weights
    kind = ARCHITECTURES[cfg.architecture]
    if cfg.architecture == "transformer":
        from hooked_rnn.baselines import transformer  # takes seconds to import

        own = {name: tensor for name, tensor in weights.items() if not NORM.fullmatch(name)}
        check_shapes(own, transformer.weight_shapes(cfg), source, optional=".b_")
        model = transformer.build_transformer(cfg, parts.normalization_type)
    else:
        model = kind.build(cfg)
        check_shapes(weights, {name: tuple(w.shape) for name, w in kind.weights_of(model).items()}, source)
    model = kind.move(model, "cpu", weights["embed.W_E"].dtype)
    try:
        kind.set_weights(model, weights)
    except (RuntimeError, ValueError) as error:  # of a layer norm
        raise WeightsError(f"{source} does not fit normalization_type={parts.normalization_type!r}: {error}") from error
    return model.eval()


def _without_surplus(parts: Parts, p: int) -> Parts:
    """Without the output columns that are no answer."""
    weights = {
        name: tensor[..., :p] if name.startswith("unembed.") else tensor for name, tensor in parts.weights.items()
    }
    return dataclasses.replace(parts, cfg=dataclasses.replace(parts.cfg, d_vocab_out=p), weights=weights)


@torch.no_grad()
def _surplus_left_out(model: Any, task: ModularTask) -> str:
    """What to say of an output column that is left out."""
    note = f"surplus output column {task.p} left out"
    n_sequences = task.p**task.operands
    if n_sequences > MOST_COUNTED:
        return note
    n = sum(int((_last(model(some)).argmax(-1) >= task.p).sum()) for some in task.tokens.split(1 << 14))
    return f"{note}: it has the largest logit of {f'{n} of the {n_sequences} sequences' if n else 'no sequence'}"


def _last(logits: Tensor) -> Tensor:
    """Where the answer is read, [batch, d_vocab_out]."""
    return logits[:, -1] if logits.ndim == 3 else logits


def _surplus(model: Any, task: ModularTask) -> tuple[str, ...]:
    """What to say of a model that is taken as it stands."""
    d_vocab_out = model.W_U.shape[1]
    return (f"output column {task.p} is no answer, and is kept",) if d_vocab_out > task.p else ()


def _task_of(model: Any, architecture: str, p: int | None, source: str) -> ModularTask:
    if getattr(model.cfg, "input", "tokens") != "tokens":
        raise TaskError(f"{source} has input={model.cfg.input!r}: expected tokens")
    n_ctx = getattr(model.cfg, "n_ctx", None)
    return task_of_sizes(
        model.W_E.shape[0], model.W_U.shape[1], n_ctx, p, ends_in_equals=architecture == "transformer", source=source
    )


def _task_of_run(model: Any, directory: Path | None, p: int | None, source: str) -> ModularTask:
    """The task that the run's record names; by the sizes where there is no record."""
    record = None if directory is None else pretrained.read_training(directory)
    if record is None or "task" not in record:
        return _task_of(model, architecture_of(model).config.architecture, p, source)
    task = task_from_dict(record["task"])
    if p not in (None, task.p):
        raise TaskError(f"p={p}: expected {task.p}, as {source} was trained on {task!r}")
    return task
