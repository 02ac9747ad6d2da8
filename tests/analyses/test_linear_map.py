"""Least squares maps: normal equations, what is best of its rank, and random maps that keep what they say they keep."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import exact, normal, unchecked
from torch.testing import assert_close

from analyses.errors import StitchingError
from analyses.linear_map import (
    explained,
    fit_linear_map,
    gaussian,
    of_rank,
    permutation,
    random_rotation,
    rotated,
)


@settings(deadline=None)
@given(
    n=st.integers(8, 20),
    d_source=st.integers(1, 6),
    d_target=st.integers(1, 6),
    ridge=st.sampled_from([0.0, 1e-3, 0.5]),
    mean=st.booleans(),
)
def test_the_normal_equations_hold(n: int, d_source: int, d_target: int, ridge: float, mean: bool) -> None:
    X, Y = normal(n, d_source) + 2, normal(n, d_target, seed=1) - 1
    fitted = fit_linear_map(X, Y, ridge, mean)
    x, y = (X.mean(0), Y.mean(0)) if mean else (X[0] * 0, Y[0] * 0)
    residual, centred = Y - fitted(X), X - x
    assert_close(centred.T @ residual, ridge * centred.square().sum() / d_source * fitted.weight, **exact)
    assert_close(fitted(x[None])[0], y, **exact)
    if mean:
        assert_close(residual.mean(0), torch.zeros(d_target).double(), **exact)


def test_without_ridge_it_is_least_squares_with_a_column_of_ones() -> None:
    X, Y = normal(30, 4) + 3, normal(30, 3, seed=1)
    ones = torch.ones(30, 1).double()
    for mean, columns in ((True, torch.cat([X, ones], 1)), (False, X)):
        by_hand = columns @ torch.linalg.lstsq(columns, Y).solution
        assert_close(fit_linear_map(X, Y, mean=mean)(X), by_hand, **exact)
    assert explained(fit_linear_map(X, Y)(X), Y) > explained(fit_linear_map(X, Y, mean=False)(X), Y)


def test_the_ridge_has_no_unit() -> None:
    X, Y = normal(30, 4), normal(30, 3, seed=1)
    assert_close(fit_linear_map(100 * X, Y, ridge=0.1)(100 * X), fit_linear_map(X, Y, ridge=0.1)(X), **exact)


def test_a_dead_unit_of_the_source_is_left_out() -> None:
    X = normal(30, 4)
    X[:, 2] = 0
    A = normal(4, 3, seed=1)
    fitted = fit_linear_map(X, X @ A)
    assert_close(fitted(X), X @ A, **exact)
    assert_close(fitted.weight[2], torch.zeros(3).double(), **exact)
    single = fit_linear_map(X.float() + torch.tensor([0.0, 0.0, 1.0, 0.0]), (X @ A).float())
    assert single.weight[2].abs().max() < 1e-3


def test_columns_are_fitted_one_by_one() -> None:
    X, Y, Z = normal(30, 4), normal(30, 3, seed=1), normal(30, 2, seed=2)
    together = fit_linear_map(X, torch.cat([Y, Z], 1), ridge=0.1).split([3, 2])
    for piece, target in zip(together, (Y, Z), strict=True):
        assert_close(piece(X), fit_linear_map(X, target, ridge=0.1)(X), **exact)


def test_the_map_of_low_rank_is_the_best_of_that_rank() -> None:
    X, Y = normal(40, 6), normal(40, 5, seed=1)
    full = fit_linear_map(X, Y)
    errors = []
    for rank in range(6):
        low = of_rank(full, X, rank)
        assert torch.linalg.matrix_rank(low.weight) == rank
        errors.append(float((Y - low(X)).square().sum()))
        singular = torch.linalg.svdvals(full(X) - full.target_mean)
        missed = float((Y - full(X)).square().sum() + singular[rank:].square().sum())
        assert errors[-1] == pytest.approx(missed)  # Eckart and Young
        for seed in range(5):  # any other map of that rank is no better
            other = full.weight @ (V := random_rotation(5, seed)[:, :rank]) @ V.T
            assert float((Y - full.target_mean - (X - full.source_mean) @ other).square().sum()) >= errors[-1] - 1e-9
    assert_close(of_rank(full, X, 5).weight, full.weight, **exact)
    assert errors == sorted(errors, reverse=True)


def test_random_maps_keep_what_they_promise() -> None:
    X = normal(40, 6) + 1
    full = fit_linear_map(X, normal(40, 5, seed=1))
    turned, drawn = rotated(full, X, 0), gaussian(full, X, 0)
    covariances = [(rows - rows.mean(0)).T @ (rows - rows.mean(0)) for rows in (turned(X), full(X))]
    assert_close(*covariances, **exact)
    assert_close((drawn(X) - full.target_mean).norm(), (full(X) - full.target_mean).norm(), **exact)
    for other in (turned, drawn):
        assert_close(other(X).mean(0), full(X).mean(0), **exact)
        assert not torch.allclose(other.weight, full.weight)
    Q = random_rotation(6, 0)
    assert_close(Q @ Q.T, torch.eye(6).double(), **exact)
    assert not torch.equal(Q, random_rotation(6, 1))
    assert permutation(50, 0).sort().values.tolist() == list(range(50)) != permutation(50, 0).tolist()


def test_explained_is_one_for_all_and_zero_for_the_mean() -> None:
    Y = normal(20, 3)
    assert explained(Y, Y) == 1.0
    assert explained(Y.mean(0).expand_as(Y), Y) == pytest.approx(0.0, abs=1e-12)
    assert explained(-Y, Y) < 0
    assert explained(torch.ones(4, 2), torch.ones(4, 2)) == 0.0


@pytest.mark.parametrize("mean", [True, False])
def test_too_few_pairs_are_an_error_without_ridge(mean: bool) -> None:
    X, Y = normal(4 + mean, 4), normal(4 + mean, 2, seed=1)
    assert_close(fit_linear_map(X, Y, mean=mean)(X), Y, **exact)  # as many numbers as equations: exact, and no more
    with unchecked(), pytest.raises(StitchingError, match=rf"{3 + mean} pairs to fit {4 + mean} numbers .*or a ridge"):
        fit_linear_map(X[1:], Y[1:], mean=mean)
    fit_linear_map(X[1:], Y[1:], ridge=1e-6, mean=mean)


@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf")])
def test_a_ridge_that_is_none_is_an_error(ridge: float) -> None:
    with pytest.raises(StitchingError, match=r"ridge=.*: expected a finite number of at least 0"):
        fit_linear_map(normal(5, 2), normal(5, 2), ridge)
