"""The Fourier basis: orthonormal, Parseval, agreement with torch.fft, and projections that add up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import exact, normal, unchecked, wave
from torch import Tensor
from torch.testing import assert_close

from analyses.errors import FrequencyError, ModulusError
from analyses.fourier import FourierBasis

moduli = st.integers(2, 40)
few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def by_fft(x: Tensor) -> Tensor:
    """Power by frequency 0..p//2 along the first axis: both members of each pair of conjugates, over p."""
    p = len(x)
    squares = torch.fft.fft(x, dim=0).abs().square().reshape(p, -1).sum(1) / p
    return torch.stack([squares[sorted({k, -k % p})].sum() for k in range(p // 2 + 1)])


@given(moduli)
@few_examples
def test_the_basis_is_orthonormal(p: int) -> None:
    basis = FourierBasis(p).matrix
    assert_close(basis @ basis.T, torch.eye(p, dtype=torch.float64), **exact)


@given(moduli, st.integers(0, 9))
@few_examples
def test_parseval_by_coefficient_and_by_frequency(p: int, seed: int) -> None:
    x = normal(p, 3, seed=seed)
    basis = FourierBasis(p)
    assert_close(basis.coefficients(x).square().sum(), x.square().sum(), **exact)
    assert_close(basis.power(x).sum(), x.square().sum(), **exact)


@given(moduli, st.integers(0, 9))
@few_examples
def test_the_power_of_each_frequency_is_that_of_torch_fft(p: int, seed: int) -> None:
    x = normal(p, 3, seed=seed)
    assert_close(FourierBasis(p).power(x), by_fft(x), **exact)


@pytest.mark.parametrize("p", [7, 8])
def test_coefficients_are_the_real_and_imaginary_parts_of_torch_fft(p: int) -> None:
    x = normal(p)
    transformed = torch.fft.rfft(x)
    coefficients = FourierBasis(p).coefficients(x)
    for k in range(1, (p + 1) // 2):
        scale = (2 / p) ** 0.5  # of cos(wa) = (exp(iwa) + exp(-iwa)) / 2, whose norm is sqrt(p/2)
        assert_close(coefficients[2 * k - 1], scale * transformed[k].real, **exact)
        assert_close(coefficients[2 * k], -scale * transformed[k].imag, **exact)


@given(moduli, st.data())
@few_examples
def test_what_is_kept_and_what_is_removed_make_the_whole(p: int, data: st.DataObject) -> None:
    frequencies = data.draw(st.lists(st.integers(1, p // 2), unique=True))
    x, basis = normal(p, 2, seed=p), FourierBasis(p)
    kept, left = basis.keep(x, frequencies), basis.remove(x, frequencies)
    assert_close(kept + left, x, **exact)
    assert_close(basis.keep(kept, frequencies), kept, **exact)
    assert_close(basis.remove(left, frequencies), left, **exact)
    assert_close(basis.keep(left, frequencies), torch.zeros_like(x), **exact)
    assert_close((kept * left).sum(), torch.zeros((), dtype=torch.float64), **exact)


@given(moduli, st.data())
@few_examples
def test_keeping_takes_the_power_of_these_frequencies_and_no_other(p: int, data: st.DataObject) -> None:
    frequencies = data.draw(st.lists(st.integers(1, p // 2), unique=True))
    x, basis = normal(p, 2, seed=p), FourierBasis(p)
    wanted = torch.zeros(p // 2 + 1, dtype=torch.float64).index_fill(0, torch.tensor(frequencies).long(), 1.0)
    assert_close(basis.power(basis.keep(x, frequencies)), basis.power(x) * wanted, **exact)
    assert_close(basis.power(basis.remove(x, frequencies)), basis.power(x) * (1 - wanted), **exact)


def test_removing_every_frequency_leaves_the_mean_and_removing_none_leaves_all() -> None:
    for p in (7, 8):
        x, basis = normal(p, 3), FourierBasis(p)
        assert_close(basis.remove(x, basis.frequencies), x.mean(0).expand(p, -1), **exact)
        assert_close(basis.remove(x, []), x, **exact)


def test_a_planted_wave_has_one_frequency_and_its_shifted_control_another() -> None:
    p, basis = 11, FourierBasis(11)
    for k in basis.frequencies:
        power = basis.power(wave(p, k, torch.arange(p)))
        assert int(power.argmax()) == k
        assert_close(power[k], power.sum(), **exact)
        assert_close(basis.keep(wave(p, k % 5 + 1, torch.arange(p)), [k]), torch.zeros(p, 2).double(), **exact)


def test_rows_of_an_odd_modulus_are_pairs_of_cosine_and_sine() -> None:
    basis = FourierBasis(5)
    assert list(basis.frequencies) == [1, 2]
    assert basis.rows([2, 1]) == [3, 4, 1, 2]
    assert_close(basis.functions([2]).T * (5 / 2) ** 0.5, wave(5, 2, torch.arange(5)), **exact)


def test_the_last_row_of_an_even_modulus_is_the_cosine_of_nyquist_alone() -> None:
    basis = FourierBasis(6)
    assert list(basis.frequencies) == [1, 2, 3]
    assert basis.rows([3]) == [5]
    alternating = torch.tensor([1.0, -1, 1, -1, 1, -1]).double() / 6**0.5
    assert_close(basis.functions([3])[0], alternating, **exact)
    assert_close(basis.power(alternating), torch.tensor([0.0, 0, 0, 1]).double(), **exact)


@pytest.mark.parametrize(("dim", "negative"), [(0, -3), (1, -2), (2, -1)])
def test_any_axis_by_a_positive_or_negative_number(dim: int, negative: int) -> None:
    shape = [2, 3, 4]
    shape[dim] = 7
    x, basis = normal(*shape), FourierBasis(7)
    operators: list[Callable[[Tensor, int], Tensor]] = [
        lambda x, dim: basis.coefficients(x, dim),
        lambda x, dim: basis.keep(x, [1, 3], dim),
        lambda x, dim: basis.remove(x, [1, 3], dim),
    ]
    for apply in operators:
        first = apply(x.movedim(dim, 0), 0).movedim(0, dim)
        assert_close(apply(x, dim), first, **exact)
        assert_close(apply(x, negative), first, **exact)
    assert_close(basis.power(x, dim), basis.power(x.movedim(dim, 0)), **exact)
    assert_close(basis.power(x, negative), basis.power(x, dim), **exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_dtype_of_what_they_are_of(dtype: torch.dtype) -> None:
    x, basis = normal(7, 2).to(dtype), FourierBasis(7)
    results = [basis.coefficients(x), basis.power(x), basis.keep(x, [2]), basis.remove(x, [2])]
    assert {result.dtype for result in results} == {dtype}
    assert basis.functions([1], like=x).dtype == dtype
    assert basis.functions([1]).dtype == torch.float64


@pytest.mark.parametrize("p", [0, 1, -3, True])
def test_an_impossible_modulus_is_an_error(p: int) -> None:
    with pytest.raises(ModulusError, match=f"p={p}: expected"):
        FourierBasis(p)


@pytest.mark.parametrize("p", [7.0, "7", None])
def test_a_modulus_of_another_type_is_an_error(p: Any) -> None:
    with unchecked(), pytest.raises(ModulusError, match="whole number"):
        FourierBasis(p)


@pytest.mark.parametrize("k", [0, -1, 4, 7, True])
@pytest.mark.parametrize("method", ["rows", "functions", "check"])
def test_a_frequency_that_the_modulus_does_not_have_is_an_error(k: int, method: str) -> None:
    with pytest.raises(FrequencyError, match=f"frequency {k}: expected a whole number from 1 to 3"):
        getattr(FourierBasis(7), method)([1, k])


@pytest.mark.parametrize("k", [1.0, "1", None])
def test_a_frequency_of_another_type_is_an_error(k: Any) -> None:
    with unchecked(), pytest.raises(FrequencyError, match="whole number"):
        FourierBasis(7).keep(normal(7), [k])


def test_one_frequency_where_several_are_expected_is_an_error() -> None:
    with unchecked(), pytest.raises(FrequencyError, match=r"frequencies 2: expected several of them, such as \[1\]"):
        FourierBasis(7).keep(normal(7), 2)


def test_a_frequency_that_stands_twice_is_an_error() -> None:
    with pytest.raises(FrequencyError, match="each of them once"):
        FourierBasis(7).keep(normal(7), [1, 2, 1])


@pytest.mark.parametrize(("shape", "dim"), [((6, 2), 0), ((7, 2), 1), ((7, 2), 2), ((7, 2), -3)])
def test_an_axis_of_another_length_is_an_error(shape: tuple[int, ...], dim: int) -> None:
    with pytest.raises(ModulusError, match="expected length p=7"):
        FourierBasis(7).remove(normal(*shape), [1], dim)
