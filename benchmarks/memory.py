"""The memory that tensors take while a function runs, and after it."""

from collections.abc import Callable
from typing import NamedTuple

from torch.autograd.profiler import profile


class Memory(NamedTuple):
    """Bytes above those at the start, as the CPU's allocator reports them: no estimate."""

    peak: int
    """At the worst moment."""
    held: int
    """At the end, while the result is alive."""


def memory_of(function: Callable[[], object]) -> Memory:
    """What a function takes at its peak, and what its result holds."""
    with profile(profile_memory=True) as profiler:
        _result = function()  # alive until the profiler stops
    changes = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        now += change.nbytes()
        peak = max(peak, now)
    return Memory(peak, now)
