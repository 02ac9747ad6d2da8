"""Time two functions in turn, A B A B ..., and report the ratio round by round."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """Seconds of one thing over seconds of another, round by round."""

    name: str
    threads: int
    rounds: int
    ratio_min: float
    ratio_median: float
    ratio_max: float
    seconds_median: float
    """Of the thing measured."""
    baseline_seconds_median: float
    """Of what it is compared with."""

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def compare(
    name: str, measured: Callable[[], object], baseline: Callable[[], object], threads: int, rounds: int = 15
) -> Comparison:
    """Run both in turn, after two rounds that do not count."""
    pairs = [(_seconds(measured), _seconds(baseline)) for _ in range(rounds + 2)][2:]
    ratios = sorted(a / b for a, b in pairs)
    return Comparison(
        name,
        threads,
        rounds,
        ratios[0],
        median(ratios),
        ratios[-1],
        median(a for a, _ in pairs),
        median(b for _, b in pairs),
    )


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
