"""The page on comparing: its example runs, and its rows are the criteria."""

import re
from pathlib import Path

from analyses import c9
from analyses.comparison import Comparison
from analyses.metrics import REMOVAL_DRAWS, REMOVAL_PAIRS

PAGE = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text(encoding="utf-8")


def test_its_example_runs() -> None:
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)
    comparison = names["comparison"]
    assert isinstance(comparison, Comparison)
    assert comparison.overall(1)[0] == "partly"


def test_its_rows_are_the_criteria_with_their_numbers() -> None:
    table = PAGE.split("| row | holds | partly |\n")[1].split("\n\n")[0]
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()[1:]}
    removals = "removal from W_E, from the last state, from W_U"
    assert {criterion.name for criterion in c9.CRITERIA if not criterion.name.startswith("removal")} == set(rows) - {
        removals
    }
    for name, thresholds in (
        ("neurons of one frequency", c9.NEURONS),
        ("logits of the sum", c9.LOGITS_EXPLAINED),
        ("circles in the embedding", c9.C5_EXPLAINED),
        ("adds", c9.C1_ACCURACY),
        ("singular vectors of one frequency", c9.C4_PURITY),
    ):
        for value in thresholds.values():
            assert f"{100 * value:g}%" in rows[name], name
    for name, number in (("gradients of one form", c9.SYMMETRICITY), ("distance of one form", c9.IRRELEVANCE)):
        assert str(number) in rows[name]
    assert f"{c9.SWAP_CONTROL:g}/p" in rows["swap test"]
    assert f"{REMOVAL_PAIRS:,} pairs" in PAGE
    assert f"in {REMOVAL_DRAWS}\ndraws" in PAGE
