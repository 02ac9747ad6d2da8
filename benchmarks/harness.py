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
    goal: float | None = None
    """What the median ratio is to be at most, where there is such a goal."""
    note: str = ""
    """What the numbers alone do not say."""

    @classmethod
    def of(
        cls, name: str, pairs: list[tuple[float, float]], threads: int, goal: float | None = None, note: str = ""
    ) -> "Comparison":
        """From the seconds of both sides in each round."""
        ratios = sorted(a / b for a, b in pairs)
        return cls(
            name,
            threads,
            len(pairs),
            ratios[0],
            median(ratios),
            ratios[-1],
            median(a for a, _ in pairs),
            median(b for _, b in pairs),
            goal,
            note,
        )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def compare(
    name: str,
    measured: Callable[[], object],
    baseline: Callable[[], object],
    threads: int,
    rounds: int = 15,
    goal: float | None = None,
    note: str = "",
    in_a_row: bool = False,
) -> Comparison:
    """Run both in turn, after two rounds that do not count.

    Args:
        name: of the row.
        measured: what is timed.
        baseline: what it is compared with.
        threads: for the record.
        rounds: how many count.
        goal: what the median ratio is to be at most.
        note: for the record.
        in_a_row: run each side twice a round and time its second run, as in a row of steps. Its first then
            finds the caches as the other side left them, and torch's other threads spinning for some 10 ms.
    """

    def seconds(side: Callable[[], object]) -> float:
        if in_a_row:
            side()
        return seconds_of(side)

    pairs = [(seconds(measured), seconds(baseline)) for _ in range(rounds + 2)][2:]
    return Comparison.of(name, pairs, threads, goal, note)


def seconds_of(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
