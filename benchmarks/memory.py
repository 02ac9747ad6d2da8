"""The most memory that tensors take while a function runs."""

from collections.abc import Callable

from torch.autograd.profiler import profile


def peak_bytes(function: Callable[[], object]) -> int:
    """Bytes above those at the start, at the worst moment, as the CPU's allocator reports them: no estimate."""
    with profile(profile_memory=True) as profiler:
        _result = function()  # alive until the profiler stops
    changes = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        now += change.nbytes()
        peak = max(peak, now)
    return peak
