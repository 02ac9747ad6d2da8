"""Every error that this package raises on bad input, one class for each kind of mistake.

A message states the value it was given, what was expected, and the choices. The command line prints
the message alone; Python code can catch the class, or ``HookedRNNError`` for all of them.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class HookedRNNError(Exception):
    """Base of all errors about what a caller passed in or a file held."""


class ConfigError(HookedRNNError, ValueError):
    """A configuration with an unknown key, or a value that cannot be."""


class TaskError(HookedRNNError, ValueError):
    """A task, or a split of it, that cannot be made."""


class TokenError(HookedRNNError, ValueError):
    """An input that is not a batch of sequences of known token ids."""


class SignalError(HookedRNNError, ValueError):
    """A continuous input that does not fit the model."""


class LabelError(HookedRNNError, ValueError):
    """Labels that are missing, or do not fit the logits."""


class ConversionError(HookedRNNError, ValueError):
    """Modules that cannot be made into a HookedRNN, or a HookedRNN that torch has no modules for."""


class StateError(HookedRNNError, ValueError):
    """An initial state that does not fit the model and the batch."""


class ReturnTypeError(HookedRNNError, ValueError):
    """A request for an output that the model cannot give."""


class HookError(HookedRNNError, ValueError):
    """A hook that returned something that cannot take the activation's place."""


class UnknownHookPointError(HookedRNNError, KeyError):
    """A name or a filter that matches no hook point."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the message's repr


class TransformerOnlyError(HookedRNNError):
    """A tool that asks for something that only a transformer has."""


class TransformerOnlyAttributeError(TransformerOnlyError, AttributeError):
    """The same, asked for as an attribute: ``hasattr`` is False."""


class UnknownModelError(HookedRNNError, ValueError):
    """A name that is no embedded model, no directory and no Hub repository."""


class RunDirectoryError(HookedRNNError, OSError):
    """A directory that is not a run, or cannot be written as one."""


class WeightsError(HookedRNNError, ValueError):
    """A weights file that is cut short, altered, or of another architecture."""


class UnknownFormatError(HookedRNNError, ValueError):
    """A file, or an object, that no loader knows how to make a model of."""


class CheckpointError(HookedRNNError, ValueError):
    """A checkpoint that a run cannot go on from."""


class TrainingDivergedError(HookedRNNError, ArithmeticError):
    """A loss that became NaN or infinite."""


class HookedRNNWarning(UserWarning):
    """Something that a user should know of and that is no error."""


def choices(names: Iterable[object], most: int = 32) -> str:
    """Names as they stand in an error message: ``'a', 'b' or 'c'``; where there are very many, the first ones and how many."""
    quoted = [repr(name) for name in names]
    if len(quoted) > most:
        return f"{', '.join(quoted[:most])} or another of {len(quoted)}"
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """The known names closest to a misspelt one, else those that contain it, else all of them."""
    known = list(known)
    containing = [candidate for candidate in known if name and name in candidate]
    return choices(get_close_matches(name, known, n=most, cutoff=0.5) or containing or known)
