"""The page of benchmarks is what the kept results say, and every benchmark has results."""

import json

from benchmarks.__main__ import BENCHMARKS
from benchmarks.harness import Comparison
from benchmarks.page import PAGE, RESULTS, page


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page() + "\n"


def test_every_benchmark_has_results_that_name_their_command() -> None:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    run = " ".join(record["command"] for record in records)
    assert all(name in run for name in BENCHMARKS)
    assert {result["threads"] for record in records for result in record["results"]} == {1, 2}
    for record in records:
        for result in record["results"]:
            assert result["ratio_min"] <= result["ratio_median"] <= result["ratio_max"]


def test_a_comparison_is_of_rounds_not_of_medians() -> None:
    result = Comparison.of("x", [(1.0, 2.0), (3.0, 2.0), (4.0, 1.0)], threads=1)
    assert (result.ratio_min, result.ratio_median, result.ratio_max) == (0.5, 1.5, 4.0)
    assert (result.seconds_median, result.baseline_seconds_median) == (3.0, 2.0)
