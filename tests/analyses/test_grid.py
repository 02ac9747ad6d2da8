"""Families of functions on the grid of pairs: orthonormal, orthogonal to each other, and all of the power."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import exact, family_by_hand, normal, pairs, wave, without_by_hand
from torch import Tensor
from torch.testing import assert_close

from analyses.errors import FamilyError, FrequencyError, GridError
from analyses.fourier import FourierBasis
from analyses.grid import FAMILIES, family_power, grid_functions, keep_on_grid, remove_from_grid

ONE_AXIS = ("a", "b", "sum", "difference")
families = st.sampled_from(FAMILIES)
odd = st.integers(1, 6).map(lambda n: 2 * n + 1)
few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def projector(functions: Tensor) -> Tensor:
    return functions.T @ functions


@given(st.integers(2, 14), families)
@few_examples
def test_every_family_is_orthonormal_over_all_frequencies(p: int, family: str) -> None:
    functions = grid_functions(p, FourierBasis(p).frequencies, family)
    assert_close(functions @ functions.T, torch.eye(len(functions), dtype=torch.float64), **exact)


@pytest.mark.parametrize("p", [7, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_the_functions_that_its_name_says(p: int, family: str) -> None:
    for k in FourierBasis(p).frequencies:
        by_hand = family_by_hand(p, k, family)
        assert_close(by_hand @ torch.linalg.pinv(by_hand), projector(grid_functions(p, [k], family)), **exact)


@given(odd)
@few_examples
def test_sum_and_difference_together_span_the_block(p: int) -> None:
    for k in FourierBasis(p).frequencies:
        both = projector(grid_functions(p, [k], "sum")) + projector(grid_functions(p, [k], "difference"))
        assert_close(both, projector(grid_functions(p, [k], "block")), **exact)


@given(odd)
@few_examples
def test_a_b_sum_and_difference_are_orthogonal_to_each_other(p: int) -> None:
    frequencies = FourierBasis(p).frequencies
    for one, other in itertools.combinations(ONE_AXIS, 2):
        product = grid_functions(p, frequencies, one) @ grid_functions(p, frequencies, other).T
        assert_close(product, torch.zeros_like(product), **exact)


def test_at_nyquist_sum_difference_and_block_are_one_function() -> None:
    functions = [grid_functions(6, [3], family) for family in ("sum", "difference", "block")]
    assert all(f.shape == (1, 36) for f in functions)
    for function in functions[1:]:
        assert_close(projector(function), projector(functions[0]), **exact)
    assert grid_functions(6, [2], "block").shape == (4, 36)


@given(st.integers(2, 12), families, st.data())
@few_examples
def test_what_is_kept_and_what_is_removed_make_the_whole(p: int, family: str, data: st.DataObject) -> None:
    frequencies = data.draw(st.lists(st.integers(1, p // 2), unique=True))
    x = normal(p * p, 2, seed=p)
    kept, left = keep_on_grid(x, p, frequencies, family), remove_from_grid(x, p, frequencies, family)
    assert_close(kept + left, x, **exact)
    assert_close(keep_on_grid(kept, p, frequencies, family), kept, **exact)
    assert_close(keep_on_grid(left, p, frequencies, family), torch.zeros_like(x), **exact)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("p", [7, 8])
def test_removing_agrees_with_a_least_squares_fit(p: int, family: str) -> None:
    x = normal(p * p, 3)
    assert_close(remove_from_grid(x, p, [1, p // 2], family), without_by_hand(x, p, [1, p // 2], family), **exact)


@pytest.mark.parametrize("p", [7, 8])
def test_removing_a_is_removing_along_the_first_axis_what_does_not_depend_on_the_second(p: int) -> None:
    x, basis = normal(p * p, 2), FourierBasis(p)
    grid = x.view(p, p, 2)
    of_a = basis.keep(grid.mean(1, keepdim=True).expand(p, p, 2), [2], 0)
    of_b = basis.keep(grid.mean(0, keepdim=True).expand(p, p, 2), [2], 1)
    assert_close(keep_on_grid(x, p, [2], "a").view(p, p, 2), of_a, **exact)
    assert_close(keep_on_grid(x, p, [2], "b").view(p, p, 2), of_b, **exact)


@pytest.mark.parametrize("p", [7, 9])
def test_family_powers_are_those_of_torch_fft_in_two_dimensions(p: int) -> None:
    x = normal(p * p, 3)
    squares = torch.fft.fft2(x.view(p, p, 3), dim=(0, 1)).abs().square().sum(2) / p**2
    lines = {"a": (1, 0), "b": (0, 1), "sum": (1, 1), "difference": (1, -1)}
    for family, (i, j) in lines.items():
        powers = [squares[k * i % p, k * j % p] + squares[-k * i % p, -k * j % p] for k in FourierBasis(p).frequencies]
        assert_close(family_power(x, p)[family], torch.stack(powers), **exact)


@pytest.mark.parametrize("p", [6, 7, 8])
def test_families_constant_and_cross_terms_have_all_the_power(p: int) -> None:
    x = normal(p * p, 3)
    basis = FourierBasis(p)
    constant = x.mean(0).square().sum() * p**2
    cross = x.new_zeros(())
    for k, j in itertools.permutations(basis.frequencies, 2):
        functions = torch.kron(basis.functions([k]), basis.functions([j]))
        cross += (functions @ x).square().sum()
    families = sum(power.sum() for power in family_power(x, p).values())
    assert_close(families + constant + cross, x.square().sum(), **exact)


@pytest.mark.parametrize("p", [7, 8])
def test_the_power_of_a_family_is_what_keeping_it_keeps(p: int) -> None:
    x = normal(p * p, 3)
    for family, powers in family_power(x, p).items():
        for k in range(1, (p + 1) // 2):
            assert_close(keep_on_grid(x, p, [k], family).square().sum(), powers[k - 1], **exact)


@pytest.mark.parametrize("family", ONE_AXIS)
def test_a_planted_family_lands_in_its_own_power_only(family: str) -> None:
    p, k = 11, 3
    powers = family_power(family_by_hand(p, k, family), p)
    for name, power in powers.items():
        expected = torch.zeros(p // 2, dtype=torch.float64)
        expected[k - 1] = p * p if name == family else 0.0  # cos^2 + sin^2 of every pair
        assert_close(power, expected, **exact)


def test_nyquist_is_counted_once_and_as_sum() -> None:
    p = 6
    a, b = pairs(p)
    powers = family_power(wave(p, 3, a + b)[:, :1], p)
    assert_close(powers["sum"][2], torch.tensor(36.0).double(), **exact)
    assert_close(powers["difference"], torch.zeros(3).double(), **exact)


def test_the_grid_is_in_canonical_order_and_no_other() -> None:
    p, k = 7, 2
    a, b = pairs(p)
    assert torch.equal(a * p + b, torch.arange(p * p))
    of_a = wave(p, k, a)
    assert_close(remove_from_grid(of_a, p, [k], "a"), torch.zeros_like(of_a), **exact)
    assert_close(remove_from_grid(of_a, p, [k], "b"), of_a, **exact)  # the control: b is minor


def test_keeping_follows_the_dtype() -> None:
    x = normal(49, 2).float()
    assert keep_on_grid(x, 7, [1], "block").dtype == torch.float32
    assert {power.dtype for power in family_power(x, 7).values()} == {torch.float32}


@pytest.mark.parametrize("family", ["", "A", "product", "sums"])
def test_an_unknown_family_is_an_error(family: str) -> None:
    with pytest.raises(FamilyError, match="expected 'a', 'b', 'sum', 'difference', 'block', 'a\\+b' or 'a-b'"):
        grid_functions(7, [1], family)


@pytest.mark.parametrize("frequencies", [[0], [4], [-1], [2, 2], [True]])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frequency_that_does_not_exist_is_an_error(frequencies: list[int], family: str) -> None:
    with pytest.raises(FrequencyError):
        grid_functions(7, frequencies, family)


@pytest.mark.parametrize("n", [1, 7, 48, 50])
def test_a_batch_that_is_not_the_full_grid_is_an_error(n: int) -> None:
    for operator in (keep_on_grid, remove_from_grid):
        with pytest.raises(GridError, match=f"a batch of {n}: expected the full grid of p\\*p = 49 pairs"):
            operator(normal(n, 2), 7, [1], "sum")
    with pytest.raises(GridError):
        family_power(normal(n, 2), 7)


def test_families_of_no_frequency_keep_nothing() -> None:
    for family in FAMILIES:
        assert grid_functions(7, [], family).shape == (0, 49)
        x = normal(49, 2)
        assert torch.equal(remove_from_grid(x, 7, [], family), x)
