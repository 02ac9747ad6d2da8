"""Tasks: every sequence of a small world, its label, and a seeded split.

Another operation is one small class: subclass :class:`ModularTask` and say in ``operation`` what the
operands make.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hooked_rnn.errors import TaskError, choices

MOST_SEQUENCES = 50_000_000
"""A whole world must fit in memory; beyond this it does not, and the error should say so."""


@dataclass(frozen=True)
class ModularTask(ABC):
    """All sequences of ``operands`` numbers modulo ``p``, in canonical order.

    Canonical order: the first operand is major, so that for two operands row ``a * p + b`` is (a, b).

    Raises:
        TaskError: p below 2, fewer than one operand, or more sequences than fit in memory.
    """

    p: int
    """The modulus; token ids 0 to p - 1 are the numbers."""
    operands: int = 2
    """How many numbers a sequence holds."""
    equals_token: bool = False
    """Whether the sequence ends in '=' (token id p), where the answer is then read."""

    def __post_init__(self) -> None:
        for name, least in (("p", 2), ("operands", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TaskError(f"{name}={value!r}: expected a whole number of at least {least}")
        if self.p**self.operands > MOST_SEQUENCES:
            raise TaskError(
                f"p={self.p} with operands={self.operands} makes {self.p**self.operands:,} sequences; at most {MOST_SEQUENCES:,} fit"
            )

    @abstractmethod
    def operation(self, numbers: Int[Tensor, "n operands"]) -> Int[Tensor, " n"]:
        """What the numbers of each row make; the label is this modulo p."""

    @property
    def d_vocab(self) -> int:
        """Number of token ids: the p numbers, and '=' where there is one."""
        return self.p + self.equals_token

    @property
    def d_vocab_out(self) -> int:
        """Number of answers."""
        return self.p

    @property
    def n_ctx(self) -> int:
        """Length of a sequence."""
        return self.operands + self.equals_token

    def to_dict(self) -> dict[str, Any]:
        """What :func:`task_from_dict` needs to make the task again."""
        return {"name": type(self).__name__, **asdict(self)}

    @cached_property
    def tokens(self) -> Int[Tensor, "n pos"]:
        """Every sequence, in canonical order."""
        numbers = torch.cartesian_prod(*[torch.arange(self.p)] * self.operands).view(-1, self.operands)
        if not self.equals_token:
            return numbers
        return torch.cat([numbers, torch.full((len(numbers), 1), self.p)], dim=1)

    @cached_property
    def labels(self) -> Int[Tensor, " n"]:
        """The answer to every sequence."""
        return self.operation(self.tokens[:, : self.operands]) % self.p

    def split(self, fraction: float, seed: int) -> tuple[Int[Tensor, " n_train"], Int[Tensor, " n_test"]]:
        """Indices of a random share of the sequences, and of the others; each in canonical order.

        Args:
            fraction: share of the sequences to train on, above 0 and at most 1. The count is rounded
                to the nearest, and is at least one.
            seed: seed of the choice; the global random state is neither read nor changed.

        Raises:
            TaskError: a fraction outside (0, 1].
        """
        if not isinstance(fraction, (int, float)) or isinstance(fraction, bool) or not 0 < fraction <= 1:
            raise TaskError(f"fraction={fraction!r}: expected a number above 0 and at most 1")
        n = len(self.tokens)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        n_train = max(1, round(fraction * n))
        return order[:n_train].sort().values, order[n_train:].sort().values


@dataclass(frozen=True)
class ModularAddition(ModularTask):
    """The sum of the operands modulo p."""

    def operation(self, numbers: Int[Tensor, "n operands"]) -> Int[Tensor, " n"]:
        return numbers.sum(dim=1)


TASKS: dict[str, type[ModularTask]] = {task.__name__: task for task in (ModularAddition,)}
"""The tasks that a run directory may name."""


def task_from_dict(values: Any) -> ModularTask:
    """Inverse of :meth:`ModularTask.to_dict`.

    Raises:
        TaskError: an unknown name, or fields that the task does not have.
    """
    if not isinstance(values, dict):
        raise TaskError(f"{values!r} does not make a task: expected a dictionary")
    fields = dict(values)
    name = fields.pop("name", None)
    if name not in TASKS:
        raise TaskError(f"unknown task {name!r}: expected {choices(TASKS)}")
    try:
        return TASKS[name](**fields)
    except TypeError as error:
        raise TaskError(f"{values!r} does not make a task: {error}") from error
