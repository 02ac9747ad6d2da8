"""What every format has: how it is recognised, and how a model is made of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hooked_rnn.errors import WeightsError, choices

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Known:
    """What is known about the weights from elsewhere."""

    source: str
    """What to call the file in an error."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The configuration that stood beside the weights, if any."""
    act_fn: str | None = None
    """The nonlinearity, where the caller said it."""

    def activation(self, notes: list[str], default: str = "relu") -> str:
        """The nonlinearity: the caller's, or the configuration's, or the default with a note that weights do not tell."""
        stored = self.config.get("act_fn", self.config.get("act_type"))
        if self.act_fn is not None:
            return self.act_fn
        if isinstance(stored, str):
            return stored.lower()
        notes.append(f"the weights do not tell the nonlinearity: taken to be {default!r} (act_fn says otherwise)")
        return default


@dataclass(frozen=True)
class Parts:
    """What a model is made of."""

    cfg: Any
    """HookedRNNConfig, TransformerConfig or HookedMLPConfig; its sizes are the weights'."""
    weights: StateDict
    """By the names, and in the shapes, that :func:`hooked_rnn.save_model` writes."""
    normalization_type: str | None = None
    """Of a transformer: its layer norm, by TransformerLens's name."""


@dataclass(frozen=True)
class Format:
    """A way in which models are saved."""

    name: str
    recognised_by: str
    """In words, for the error about a file of no known format."""
    fits: Callable[[StateDict], bool]
    """Whether weights with these names and shapes are of this format."""
    read: Callable[[StateDict, Known, list[str]], Parts]
    """What the model is made of; what a user should know is added to the list of notes."""


def check_names(weights: StateDict, required: Sequence[str], source: str) -> None:
    """Raise WeightsError where the weights lack one of these names."""
    missing = [name for name in required if name not in weights]
    if missing:
        raise WeightsError(f"{source} lacks {', '.join(missing)}: it has {', '.join(weights)}")


def check_shapes(weights: StateDict, expected: Mapping[str, tuple[int, ...]], source: str, optional: str = "") -> None:
    """Raise WeightsError unless the weights have the expected names and shapes.

    Args:
        weights: the weights.
        expected: names and shapes.
        source: what to call the file in an error.
        optional: what the names contain that may be missing.
    """
    unknown = [name for name in weights if name not in expected]
    if unknown:
        raise WeightsError(f"{source} has {', '.join(unknown)} beside what this format has: {', '.join(expected)}")
    required = [name for name in expected if not optional or optional not in name]
    check_names(weights, required, source)
    for name, tensor in weights.items():
        if tuple(tensor.shape) != expected[name]:
            raise WeightsError(
                f"{source}: {name} has shape {list(tensor.shape)}, expected {list(expected[name])} by the shapes of the others"
            )


def check_ndim(weights: StateDict, dims: Mapping[str, int], source: str) -> None:
    """Raise WeightsError unless these weights are there with so many axes."""
    check_names(weights, list(dims), source)
    for name, ndim in dims.items():
        if weights[name].ndim != ndim or 0 in weights[name].shape:
            raise WeightsError(
                f"{source}: {name} has shape {list(weights[name].shape)}, expected {ndim} axes, none empty"
            )


def check_activation(act_fn: str, known: Sequence[str]) -> str:
    """The nonlinearity, or a WeightsError that says which there are."""
    if act_fn not in known:
        raise WeightsError(f"act_fn={act_fn!r}: expected {choices(known)}")
    return act_fn
