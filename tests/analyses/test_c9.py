"""C9, row by row: what is planted alike passes, what differs fails where it differs, and what has learned nothing passes nothing."""

import itertools
from functools import cache

import pytest
import torch
from planted import P, clock_adder, random_model
from test_adder import MLP

from analyses.adder import Adder
from analyses.c9 import CRITERIA, NEITHER, Row, chance_of_common, judge_rows, overall
from analyses.metrics import Absent, Metrics, run_metrics
from analyses.oracle import fourier_adder
from analyses.stitching import swap_test
from hooked_rnn import ModularAddition

TASK = ModularAddition(P)
PIZZA, OTHER_PIZZA, SAME_PIZZA, CLOCK, RANDOM, OTHER_RANDOM, TABLE = range(7)


def table() -> MLP:
    """Right on all pairs by rote: a unit for each two numbers, which fires if no other number is there.

    The unit of i and j fires for (i, i) and (j, j) too, so that the unit of i alone has to speak louder.
    """
    pairs = torch.combinations(torch.arange(P), with_replacement=True)
    model = MLP(P)
    is_there = (torch.arange(P)[:, None, None] == pairs).any(-1).double()
    answers = torch.nn.functional.one_hot(pairs.sum(1) % P, P).double()
    model.W_E = torch.nn.Parameter(is_there - 0.75)  # two numbers of the unit's: 0.5; one of them, or none: below 0
    model.W_U = torch.nn.Parameter(20 * answers * torch.where(pairs[:, 0] == pairs[:, 1], 3.0, 1.0)[:, None])
    return model


@cache
def adders() -> list[Adder]:
    models = [
        fourier_adder(P, [5, 12, 3], [1.0, 0.9, 0.8]),
        fourier_adder(P, [4, 7, 9], [1.0, 0.9, 0.8]),
        fourier_adder(P, [5, 12, 3], [0.8, 1.0, 0.9], phases=0.4, seed=1),
        clock_adder(P, [5, 12, 3], phases=9),
        random_model(TASK),
        random_model(TASK, seed=1),
        table(),
    ]
    return [Adder(model, TASK) for model in models]


@cache
def metrics(i: int) -> Metrics:
    return run_metrics(adders()[i], draws=2)


@cache
def verdicts(i: int, j: int) -> dict[str, object]:
    rows = judge_rows([metrics(i), metrics(j)], 0)
    return {row.criterion.name: row.verdicts[1] for row in rows}


def row(name: str, rows: list[Row]) -> Row:
    return next(row for row in rows if row.criterion.name == name)


def test_two_oracles_of_other_frequencies_have_one_strategy() -> None:
    found = verdicts(PIZZA, OTHER_PIZZA)
    assert found["which frequencies"] == "no"  # and counts for nothing
    for name in (
        "adds", "few key frequencies", "circles in the embedding", "the same throughout", "low rank",
        "neurons of one frequency", "removal from W_E", "restricted loss", "excluded loss", "logits of one form",
        "gradients of one form", "distance of one form", "operands alike",
    ):  # fmt: skip
        assert found[name] == "holds", name


def test_a_clock_and_a_pizza_differ_in_their_form_and_in_nothing_else_that_the_clock_does_well() -> None:
    found = verdicts(PIZZA, CLOCK)
    assert found["which frequencies"] == "holds"
    for name in ("logits of one form", "gradients of one form", "distance of one form"):
        assert found[name] == "no", name
    assert found["neurons of one frequency"] == found["operands alike"] == "holds"


@pytest.mark.parametrize("reference", [PIZZA, CLOCK])
@pytest.mark.parametrize("other", [RANDOM])
def test_random_weights_do_not_pass(reference: int, other: int) -> None:
    rows = judge_rows([metrics(reference), metrics(other)], 0)
    counted = [row.verdicts[1] for row in rows if row.criterion.counts]
    assert "holds" not in counted
    assert "partly" not in counted
    assert counted.count("no") >= 12
    assert overall(rows, 1)[0] == "no"


def test_two_that_have_learned_nothing_have_nothing_in_common() -> None:
    rows = judge_rows([metrics(RANDOM), metrics(OTHER_RANDOM)], 0)
    assert row("adds", rows).verdicts[1] == NEITHER
    assert overall(rows, 1)[0] == Absent("no row applies")


def test_a_table_that_is_right_by_rote_fails_most_rows() -> None:
    rows = judge_rows([metrics(PIZZA), metrics(TABLE)], 0)
    assert metrics(TABLE).accuracy == 1.0
    assert row("adds", rows).verdicts[1] == "holds"
    counted = [row.verdicts[1] for row in rows if row.criterion.counts]
    assert counted.count("no") > len(counted) / 2
    assert overall(rows, 1)[0] == "no"


@pytest.mark.parametrize(("i", "j"), [*itertools.combinations([PIZZA, OTHER_PIZZA, CLOCK, RANDOM, TABLE], 2)])
def test_the_verdict_is_the_same_in_either_order(i: int, j: int) -> None:
    def kind(found: dict[str, object]) -> dict[str, object]:
        return {name: "absent" if isinstance(verdict, Absent) else verdict for name, verdict in found.items()}

    assert kind(verdicts(i, j)) == kind(verdicts(j, i))


@pytest.mark.parametrize("i", [PIZZA, CLOCK])
def test_a_model_and_itself_hold_wherever_the_model_does_it(i: int) -> None:
    found = verdicts(i, i)
    assert "no" not in found.values()
    assert found["which frequencies"] == "holds"


def test_the_swap_is_judged_by_the_common_frequencies() -> None:
    source, target = adders()[PIZZA], adders()[SAME_PIZZA]
    swaps = [swap_test(source, target, seeds=(0,)), swap_test(target, source, seeds=(0,))]

    def with_swap(i: int, j: int) -> Row:
        return row("swap test", judge_rows([metrics(i), metrics(j)], 0, {1: swaps}))

    alike = with_swap(PIZZA, SAME_PIZZA)
    assert alike.verdicts[1] == "holds"
    assert "3: 100%" in alike.notes[1]
    assert with_swap(PIZZA, OTHER_PIZZA).verdicts[1] == Absent("no common key frequency")
    assert with_swap(PIZZA, RANDOM).verdicts[1] == Absent("a model does not add")
    assert verdicts(PIZZA, SAME_PIZZA)["swap test"] == Absent("not asked for")


def test_the_chance_of_common_frequencies_is_that_of_random_sets() -> None:
    sets = [set(chosen) for chosen in itertools.combinations(range(7), 3)]
    for n in range(4):
        drawn = [len({0, 1} & chosen) >= n for chosen in sets]
        assert chance_of_common(7, 2, 3, n) == pytest.approx(sum(drawn) / len(drawn))
    assert "none in common, as random sets have" in judge_rows([metrics(PIZZA), metrics(OTHER_PIZZA)], 0)[-1].notes[1]


def test_every_row_says_what_it_means_and_how_it_is_judged() -> None:
    assert len({criterion.name for criterion in CRITERIA}) == len(CRITERIA)
    for criterion in CRITERIA:
        assert criterion.meaning.endswith(".")
        assert len(criterion.operator) > 20
    assert [criterion.name for criterion in CRITERIA if not criterion.counts] == ["which frequencies"]
