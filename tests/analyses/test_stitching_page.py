"""The page on the swap test: its functions exist, its example runs, and its table has what is measured."""

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from analyses.adder import Adder
from analyses.stitching import CONTROLS, LIMITED, SwapTest, swap_test
from hooked_rnn import HookedRNN, ModularAddition

PAGE = (Path(__file__).parents[2] / "docs" / "stitching.md").read_text(encoding="utf-8")
ROWS = [
    row.strip("| ").split(" | ")
    for row in PAGE.split("| survives, others |\n")[1].split("\n\n")[0].splitlines()[1:]
    if "transformer" not in row  # not among the embedded models
]


@cache
def adder(name: str) -> Adder:
    return Adder(HookedRNN.from_pretrained(name), ModularAddition(113))


def test_its_functions_exist() -> None:
    named = re.findall(r"`(linear_map|places|stitching)\.([a-zA-Z_]+)`", PAGE)
    assert len(named) > 5
    for module, function in named:
        assert hasattr(importlib.import_module(f"analyses.{module}"), function), (module, function)
    for name in (*CONTROLS, *LIMITED):
        assert f"\n| {name} | " in PAGE


def test_its_example_runs() -> None:
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)
    assert isinstance(names["swap"], SwapTest)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} to {row[1]}")
def test_its_table_is_what_is_measured(row: list[str]) -> None:
    source, target, shared, *cells = row
    swap = swap_test(adder(source.strip("`")), adder(target.strip("`")), seeds=(0,))  # one of the five
    both = sorted(set(swap.source_frequencies) & set(swap.target_frequencies))
    assert shared == ", ".join(map(str, both))
    trial = swap.trials[0]
    survives = {k: trial.survives(k) or 0.0 for k in swap.target_frequencies}
    measured = [
        [trial.swapped.accuracy],
        [trial.others["circles"].accuracy],
        [trial.others["shared circles"].accuracy],
        [survives[k] for k in both],
        [survives[k] for k in swap.target_frequencies if k not in both],
    ]
    for cell, values in zip(cells, measured, strict=True):
        numbers = [float(x) / 100 for x in re.findall(r"-?[\d.]+(?=%)", cell)]
        for value in values:
            assert min(numbers) - 2e-3 <= value <= max(numbers) + 2e-3
    assert max(trial.others[name].accuracy for name in CONTROLS) < 0.018
    assert trial.others["own circles"].accuracy == 1.0
