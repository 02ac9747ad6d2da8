"""All that a run must know to go on: what a checkpoint holds."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from hooked_rnn.architectures import architecture_of
from hooked_rnn.checkpoints import TRAINING, weights_in
from hooked_rnn.errors import CheckpointError
from hooked_rnn.training.batches import Minibatches
from hooked_rnn.training.config import TrainConfig

OPTIMIZER = f"{TRAINING}optimizer."
"""What the names of the optimizer's tensors begin with: "training.optimizer.exp_avg.embed.W_E"."""


@dataclass
class TrainState:
    """A run between two steps."""

    model: nn.Module
    config: TrainConfig
    minibatches: Minibatches
    optimizer: AdamW
    step: int = 0
    """The last step that was taken."""
    seconds: float = 0.0
    """Spent so far, over all the times that the run was gone on with."""
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def fresh(cls, model: nn.Module, config: TrainConfig, minibatches: Minibatches) -> "TrainState":
        """Before the first step."""
        return cls(model, config, minibatches, make_optimizer(model, config, 1))

    def tensors(self) -> dict[str, Tensor]:
        """Everything, as named tensors."""
        kind = architecture_of(self.model)
        moments = {
            f"{OPTIMIZER}{key}.{name}": value
            for name, parameter in kind.trained_parameters(self.model).items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {
            **kind.weights_of(self.model),
            **moments,
            f"{TRAINING}rng": self.minibatches.state_after(self.step),
            f"{TRAINING}step": torch.tensor(self.step),
            f"{TRAINING}history_length": torch.tensor(len(self.history)),
            f"{TRAINING}seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }

    def restore(self, tensors: Mapping[str, Tensor], history: list[dict[str, Any]]) -> None:
        """Become what :meth:`tensors` was made of.

        Args:
            tensors: from a checkpoint.
            history: at least as many rows as there were then; later ones are forgotten.

        Raises:
            CheckpointError: a tensor is missing or unknown, has another shape or dtype, or the history is too short.
        """
        step = int(tensors.get(f"{TRAINING}step", torch.tensor(0)))
        optimizer = make_optimizer(self.model, self.config, max(step, 1))
        if step > 0:
            _prepare(optimizer)
        _check_same(tensors, dataclasses.replace(self, optimizer=optimizer, step=step).tensors())
        n_rows = int(tensors[f"{TRAINING}history_length"])
        if len(history) < n_rows:
            raise CheckpointError(f"the history has {len(history)} rows: expected at least {n_rows}")
        self.optimizer, self.step = optimizer, step
        kind = architecture_of(self.model)
        with torch.no_grad():
            kind.set_weights(self.model, weights_in(tensors))
            for name, parameter in kind.trained_parameters(self.model).items():
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    value.copy_(tensors[f"{OPTIMIZER}{key}.{name}"])
        self.minibatches.restore(tensors[f"{TRAINING}rng"], step)
        self.seconds = float(tensors[f"{TRAINING}seconds"])
        self.history = history[:n_rows]


def make_optimizer(model: nn.Module, config: TrainConfig, step: int) -> AdamW:
    """A new AdamW for the phase that this step is in."""
    orthogonal = step <= config.orthogonal_steps
    return AdamW(
        list(architecture_of(model).trained_parameters(model).values()),
        lr=config.orthogonal_lr if orthogonal else config.lr,
        weight_decay=config.orthogonal_weight_decay if orthogonal else config.weight_decay,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def _prepare(optimizer: AdamW) -> None:
    """Have AdamW make its state, of whatever kind it keeps for these parameters, ready to be written over."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    kept = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)


def _check_same(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for problem, names in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has unknown", tensors.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(f"it {problem} {', '.join(sorted(names))}")
    for name, tensor in expected.items():
        got, wanted = [(x.dtype, list(x.shape)) for x in (tensors[name], tensor)]
        if got != wanted:
            raise CheckpointError(f"{name} is {got[0]} {got[1]}: expected {wanted[0]} {wanted[1]}")
