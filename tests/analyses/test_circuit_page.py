"""The page on the circuit: its functions exist, and its table is what is measured."""

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from analyses.adder import Adder
from analyses.circuit import Circuit, read_circuit
from analyses.clock_pizza import ClockOrPizza, clock_or_pizza
from analyses.measure import key_frequencies_of, load_subject

PAGE = (Path(__file__).parents[2] / "docs" / "circuit.md").read_text(encoding="utf-8")
MODELS = ("mod-add-113", "mod-add-113-adamw", "mod-add-113-clean")


@cache
def measured(name: str) -> tuple[Circuit, ClockOrPizza]:
    subject = load_subject(name)
    key = key_frequencies_of(subject.model, subject.task).by_share
    return read_circuit(subject.model, subject.task, key), clock_or_pizza(Adder(subject.model, subject.task))


def test_its_functions_exist() -> None:
    named = re.findall(
        r"`(circuit|clock_pizza|progress|restricted|attribution|measure)\.(?!csv|png)([a-zA-Z_]+)[`(.]", PAGE
    )
    assert len(named) > 8
    for module, function in named:
        assert hasattr(importlib.import_module(f"analyses.{module}"), function), (module, function)


@pytest.mark.parametrize("column", range(3))
def test_its_table_is_what_is_measured(column: int) -> None:
    circuit, measures = measured(MODELS[column])
    stage = circuit.stage
    hidden, symmetry = stage("blocks.0.hook_hidden", 1), measures.symmetry
    meetings = circuit.phases.values()
    assert measures.distance_irrelevance is not None
    shares = [
        [stage("hook_embed", 0).share("a")],
        [stage("blocks.0.hook_input", 1).share("b")],
        [stage("blocks.0.hook_hidden", 0).share(family) for family in ("a", "double a")],
        [stage("blocks.0.hook_recurrent", 1).share("a")],
        [stage("blocks.0.hook_preact", 1).share(family) for family in ("a", "b")],
        [hidden.explained, hidden.share("sum"), hidden.share("difference")],
        [stage("hook_logits", 1).share("sum")],
        [circuit.clock.explained, circuit.pizza.explained],
    ]
    numbers = [
        [extreme(meeting.overlap for meeting in meetings) for extreme in (min, max)],
        [extreme(meeting.agreement for meeting in meetings) for extreme in (min, max)],
        [max(meeting.concentration for meeting in meetings)],
        [symmetry.symmetricity, symmetry.exchanged],
        [symmetry.ratio],
        [measures.distance_irrelevance],
        [measures.circularity],
    ]
    rows = PAGE.split("| | mod-add-113 | mod-add-113-adamw | mod-add-113-clean |\n")[1].splitlines()[1:]
    cells = [row.strip("| ").split(" | ")[1 + column] for row in rows[: len(shares) + len(numbers)]]
    for cell, expected in zip(cells[: len(shares)], shares, strict=True):
        assert [float(x) / 100 for x in re.findall(r"[\d.]+", cell)] == pytest.approx(expected, abs=6e-4)
    for cell, expected in zip(cells[len(shares) :], numbers, strict=True):
        given = [float(x) for x in re.findall(r"-?\d[\d.]*", cell)]
        if len(given) == 1:
            expected = expected[:1]  # least and most are the same, to two digits
        assert given == pytest.approx(expected, abs=6e-3)
