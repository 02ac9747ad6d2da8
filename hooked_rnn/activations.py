"""The nonlinearities of the vanilla cell, in the forms that the loop and the shared prefixes need."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

ACTIVATION_FUNCTIONS = {"relu": torch.relu, "tanh": torch.tanh}
IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_}
INTO: dict[str, Callable[..., Tensor]] = {"relu": partial(torch.clamp_min, min=0), "tanh": torch.tanh}
"""Those that take ``out``: torch.relu, which is clamp_min, does not."""


def _relu_backward(gradient: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward.grad_input(gradient, out, 0.0, grad_input=gradient)


def _tanh_backward(gradient: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward.grad_input(gradient, out, grad_input=gradient)


BACKWARD_IN_PLACE = {"relu": _relu_backward, "tanh": _tanh_backward}
"""From the gradient by a nonlinearity's output, and the output, to that by its argument, written over the first."""
