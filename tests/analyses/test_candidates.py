"""What each matrix holds by each rule: planted ranks and singular values are counted, and the table says so."""

import math

import pytest
import torch
from planted import normal, random_model
from test_adder import MLP
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.candidates import COUNTS, PUBLISHED, Candidate, candidate_matrices, candidates
from analyses.errors import ReportError, RuleError
from analyses.key_frequencies import find
from analyses.oracle import fourier_adder
from hooked_rnn import HookedRNN, ModularAddition

P = 31
TASK = ModularAddition(P)


def with_values(shape: tuple[int, int], values: list[float]) -> torch.Tensor:
    """A random matrix with these singular values."""
    left, _, right = torch.linalg.svd(normal(*shape), full_matrices=False)
    return left[:, : len(values)] @ torch.tensor(values).double().diag() @ right[: len(values)]


def row(found: list[Candidate], matrix: str, rule: str) -> Candidate:
    return next(r for r in found if (r.matrix, r.rule) == (matrix, rule))


def test_the_oracles_weights_have_twice_as_many_components_as_frequencies() -> None:
    model = fourier_adder(P, [5, 12], [1.0, 0.7], d_model=12)
    found = candidates(Adder(model, TASK))
    assert found.key.by_share == [5, 12]
    for matrix in ("W_E", "W_ih", "W_hh", "W_U", "W_E W_ih", "h_1 W_hh", "W_ih W_hh", "W_E W_ih W_hh"):
        of_2k = row(found.rows, matrix, "2K")
        assert (of_2k.components, of_2k.rank) == (4, 4), matrix
        assert of_2k.holds == pytest.approx({"energy": 1.0, "nuclear": 1.0})
        assert not of_2k.in_range()
    assert row(found.rows, "h_1", "2K").rank > 4  # the ReLU makes harmonics
    for matrix in ("W_hh W_U", "W_E W_ih W_hh W_U"):  # nothing gets there but through the ReLU
        assert (row(found.rows, matrix, "12").rank, row(found.rows, matrix, "12").holds["energy"]) == (0, 0.0)


@torch.no_grad()
def test_every_rule_counts_planted_singular_values() -> None:
    model = random_model(TASK, d_model=32, d_hidden=24).double()
    values = [8.0] * 4 + [1.0] * 8
    model.embed.W_E.copy_(with_values((P, 32), values))
    key = find(Adder(fourier_adder(P, [5, 12, 3]), TASK))  # K = 3
    found = candidates(Adder(model, TASK), key).rows
    shares = torch.tensor([8.0] * 4 + [1.0] * 8).double() / 40
    entropy = math.exp(-float((shares * shares.log()).sum()))
    expected = {
        "2K": 6,
        "12": 12,
        "elbow": 4,
        "effective rank": round(entropy),
        "above noise": 4,
        "a tenth of the largest": 12,
    }
    assert list(expected) == list(COUNTS)
    for rule, n in expected.items():
        candidate = row(found, "W_E", rule)
        assert (candidate.components, candidate.rank) == (n, 12), rule
        assert candidate.holds["energy"] == pytest.approx(sum(v * v for v in values[:n]) / sum(v * v for v in values))
        assert candidate.holds["nuclear"] == pytest.approx(sum(values[:n]) / sum(values))


@torch.no_grad()
def test_the_elbow_is_not_looked_for_in_the_smaller_half() -> None:
    model = random_model(TASK, d_model=32, d_hidden=24).double()
    model.embed.W_E.copy_(with_values((P, 32), [8.0] * 4 + [4.0] * 7 + [0.01]))
    assert row(candidates(Adder(model, TASK)).rows, "W_E", "elbow").components == 4


def test_random_weights_have_no_frequencies_and_nothing_above_noise() -> None:
    found = candidates(Adder(random_model(TASK), TASK))
    assert found.key.frequencies == []
    assert found.fitting("2K") == []
    for matrix in ("W_E", "W_ih", "W_hh", "W_U"):
        assert row(found.rows, matrix, "2K").holds == {"energy": 0.0, "nuclear": 0.0}
        assert row(found.rows, matrix, "above noise").components <= 1
    # what a table of trained weights has to be held against: products of white noise are low rank by themselves
    held = [row(found.rows, name, "12").holds["energy"] for name in ("W_E", "W_E W_ih", "W_E W_ih W_hh W_U")]
    assert held == sorted(held)
    assert held[0] < 0.8 < 0.95 < held[2]


def test_matrices_are_the_products_that_they_are_called() -> None:
    for task in (TASK, ModularAddition(P, equals_token=True)):
        model = random_model(task, bias=True)
        block = model.blocks[0]
        W_E, W_ih, W_hh, W_U = model.W_E[:P], block.W_ih, block.W_hh, model.W_U
        h_1 = torch.relu(W_E @ W_ih + block.b_ih + block.b_hh)
        found = candidate_matrices(Adder(model, task))
        by_hand = {
            "W_E": W_E, "W_ih": W_ih, "W_hh": W_hh, "W_U": W_U, "[W_ih; W_hh]": torch.cat([W_ih, W_hh]), "W_E W_ih": W_E @ W_ih,
            "h_1": h_1, "h_1 W_hh": h_1 @ W_hh, "W_ih W_hh": W_ih @ W_hh, "W_E W_ih W_hh": W_E @ W_ih @ W_hh,
            "W_hh W_U": W_hh @ W_U, "W_E W_ih W_hh W_U": W_E @ W_ih @ W_hh @ W_U,
        }  # fmt: skip
        assert list(found) == list(by_hand)
        for name, matrix in found.items():
            assert_close(matrix, by_hand[name].detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("share", "inside"), [(0.8534, False), (0.8535, True), (0.9, True), (0.9554, True), (0.9556, False)]
)
def test_the_range_is_that_published_to_its_last_digit(share: float, inside: bool) -> None:
    assert PUBLISHED == (0.854, 0.955)
    candidate = Candidate("W_E", "2K", 12, 113, {"energy": share, "nuclear": 0.9})
    assert candidate.in_range() is inside
    assert candidate.in_range("nuclear")


def test_the_table_has_every_matrix_and_rule_and_marks_what_is_in_range() -> None:
    found = candidates(Adder(fourier_adder(P, [5, 12], noise=0.05), TASK))
    for measure in ("energy", "nuclear"):
        lines = found.to_markdown(measure).splitlines()
        assert lines[0] == f"| matrix | {' | '.join(COUNTS)} |"
        assert len(lines) == 2 + 12
        assert lines[2].startswith("| W_E (rank 4) |")
        for line in lines[2:]:
            cells = dict(zip(COUNTS, line.split(" | ")[1:], strict=True))
            name = line.split(" (rank")[0].removeprefix("| ")
            for rule, cell in cells.items():
                assert cell.startswith("**") == (name in found.fitting(rule, measure)), (name, rule)
    with pytest.raises(RuleError, match="unknown measure 'rank': expected 'energy' or 'nuclear'"):
        found.to_markdown("rank")


@pytest.mark.parametrize("model", [random_model(TASK, n_layers=2), random_model(TASK, cell="gru"), MLP(P)])
def test_another_kind_of_model_is_an_error(model: HookedRNN | MLP) -> None:
    with pytest.raises(ReportError, match="expected a HookedRNN with cell='rnn', n_layers=1"):
        candidates(Adder(model, TASK))
