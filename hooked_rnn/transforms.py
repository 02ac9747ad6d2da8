"""What runs Python code as something else: ``torch.func``, forward mode, ``torch.compile``."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def is_transformed() -> bool:
    """Whether operations mean more than values and a graph: forward mode or a transform of ``torch.func`` is running."""
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def values_are_hidden(tensor: Tensor) -> bool:
    """Whether ``torch.func.vmap`` runs over the tensor: then no number can be read of it, nor checked or compared."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Have ``torch.compile`` run a function as it is.

    Compiled code is for the hooks that there were when it was made: torch does not look whether one was added or
    removed since, so it would be left out in silence.
    """
    outside: Callable[Arguments, Result] | None = None

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        nonlocal outside
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if outside is None:  # not before: it takes seconds to import
            outside = torch.compiler.disable(function)
        return outside(*args, **kwargs)

    return run
