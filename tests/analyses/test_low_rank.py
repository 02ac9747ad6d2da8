"""Energy of the first singular components: Eckart and Young, against an explicit truncation."""

import pytest
import torch
from planted import exact, normal
from torch.testing import assert_close

from analyses.low_rank import cumulative_energy, held_by_first


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 4)])
def test_the_energy_held_is_what_the_truncated_svd_holds(shape: tuple[int, int]) -> None:
    matrix = normal(*shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    cumulative = cumulative_energy(matrix)
    assert len(cumulative) == min(shape)
    for n in range(1, min(shape) + 1):
        truncated = left[:, :n] @ values[:n].diag() @ right[:n]
        assert held_by_first(cumulative, n) == pytest.approx(float(truncated.square().sum() / matrix.square().sum()))
        missed = float((matrix - truncated).square().sum() / matrix.square().sum())
        assert held_by_first(cumulative, n) == pytest.approx(1 - missed)


def test_no_other_approximation_of_that_rank_holds_more() -> None:
    matrix, cumulative = normal(8, 7), cumulative_energy(normal(8, 7))
    for seed in range(20):
        rows = torch.linalg.qr(normal(7, 3, seed=seed)).Q  # the best approximation with these rows is a projection
        held = (matrix @ rows).square().sum() / matrix.square().sum()
        assert float(held) < held_by_first(cumulative, 3)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_matrix_of_rank_r_is_held_by_r_components_and_not_by_fewer(rank: int) -> None:
    cumulative = cumulative_energy(normal(9, rank) @ normal(rank, 8, seed=1))
    assert held_by_first(cumulative, rank) == pytest.approx(1.0)
    assert held_by_first(cumulative, rank - 1) < 0.999
    assert held_by_first(cumulative_energy(normal(9, 8)), rank) < 0.999  # the control


def test_no_component_holds_nothing_and_more_than_there_are_hold_all() -> None:
    cumulative = cumulative_energy(normal(4, 6))
    assert held_by_first(cumulative, 0) == 0.0
    assert held_by_first(cumulative, 4) == held_by_first(cumulative, 400) == pytest.approx(1.0)


def test_energy_grows_and_does_not_depend_on_scale_side_or_dtype() -> None:
    matrix = normal(6, 9)
    cumulative = cumulative_energy(matrix)
    assert (cumulative.diff() >= 0).all()
    assert_close(cumulative_energy(-7 * matrix), cumulative, **exact)
    assert_close(cumulative_energy(matrix.T), cumulative, **exact)
    assert cumulative_energy(matrix.float()).dtype == torch.float64


def test_a_matrix_of_zeros_has_no_energy_anywhere() -> None:
    assert torch.equal(cumulative_energy(torch.zeros(3, 4)), torch.zeros(3, dtype=torch.float64))
