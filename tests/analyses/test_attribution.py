"""Attribution: planted singular vectors are pure, planted circles are circles, planted projections are fitted."""

import math

import pytest
import torch
from planted import FREQUENCIES, circles, exact, fourier_adder, normal, orthonormal_rows, pairs, wave
from torch import Tensor
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.attribution import (
    Fit,
    SingularAttribution,
    circle,
    explained_by_circles,
    hidden_fit,
    hidden_projections,
    singular_attribution,
)
from analyses.errors import FrequencyError, GridError, ModulusError
from analyses.sites import unembedded
from hooked_rnn import ModularAddition


def planted_embedding(p: int = 31, strengths: tuple[float, float] = (2.0, 1.0)) -> Tensor:
    return circles(p, [7, 2], strengths) @ orthonormal_rows(4, 10)


def circulant_distance(points: Tensor) -> Tensor:
    """How far a set of points is from one circle around zero."""
    radius = points.norm(dim=1)
    return (radius / radius.mean() - 1).abs().max()


# Singular vectors


@pytest.mark.parametrize("dim", [0, 1])
def test_planted_singular_vectors_are_pure_and_have_their_frequency(dim: int) -> None:
    matrix = planted_embedding() if dim == 0 else planted_embedding().T
    found = singular_attribution(matrix, 31, components=4, dim=dim)
    assert found.frequency == [7, 7, 2, 2]
    assert_close(found.purity, torch.ones(4, dtype=torch.float64), **exact)
    assert_close(found.energy, torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64), **exact)
    assert found.mean_purity == pytest.approx(1.0)


def test_random_singular_vectors_are_not_pure() -> None:
    found = singular_attribution(normal(31, 10), 31, components=4, dim=0)
    assert float(found.purity.max()) < 0.6
    assert found.mean_purity < 0.5


def test_frequencies_of_equal_strength_mix_in_the_singular_vectors() -> None:
    mixed = planted_embedding(strengths=(1.0, 1.0 + 1e-9)) + 1e-6 * normal(31, 10)
    assert singular_attribution(mixed, 31, components=4, dim=0).mean_purity < 0.99


def test_shares_are_of_the_whole_vector_with_its_constant() -> None:
    matrix = 3.0 + torch.zeros(31, 10).double()
    found = singular_attribution(matrix + planted_embedding(), 31, components=5, dim=0)
    sums = found.shares.sum(1)
    assert float(sums[0]) < 0.01  # the first vector is the constant
    assert_close(sums[1:], torch.ones(4).double(), rtol=0.0, atol=0.02)
    assert ((found.shares >= 0) & (found.shares <= 1 + 1e-12)).all()


def test_the_mean_purity_is_weighted_by_energy() -> None:
    shares = torch.tensor([[1.0, 0.0], [0.3, 0.5]]).double()
    found = SingularAttribution(torch.tensor([0.6, 0.2]).double(), shares)
    assert_close(found.purity, torch.tensor([1.0, 0.5]).double(), **exact)
    assert found.frequency == [1, 2]
    assert found.mean_purity == pytest.approx((0.6 + 0.1) / 0.8)


def test_no_components_have_no_purity() -> None:
    found = singular_attribution(planted_embedding(), 31, components=0, dim=0)
    assert found.shares.shape == (0, 15)
    assert (found.frequency, found.mean_purity) == ([], 0.0)


def test_more_components_than_there_are_give_those_there_are() -> None:
    found = singular_attribution(normal(31, 3), 31, components=12, dim=0)
    assert found.shares.shape == (3, 15)
    assert float(found.energy.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("p", [6, 7])
def test_a_matrix_of_zeros_is_attributed_to_nothing_and_gives_no_nan(p: int) -> None:
    found = singular_attribution(torch.zeros(p, 4), p, components=2, dim=0)
    assert torch.equal(found.energy, torch.zeros(2, dtype=torch.float64))
    assert found.mean_purity == 0.0


def test_an_axis_of_another_length_is_an_error() -> None:
    with pytest.raises(ModulusError):
        singular_attribution(normal(30, 10), 31, components=2, dim=0)


# The embedding


def test_planted_circles_explain_all_of_the_embedding_and_random_weights_little() -> None:
    assert explained_by_circles(planted_embedding(), [7, 2]) == pytest.approx(1.0)
    assert explained_by_circles(planted_embedding(), [7]) == pytest.approx(4 / 5)
    assert explained_by_circles(planted_embedding(), [3]) == pytest.approx(0.0, abs=1e-12)
    assert explained_by_circles(normal(31, 64), [7, 2]) == pytest.approx(4 / 30, abs=0.04)


def test_variance_is_explained_and_the_mean_does_not_count() -> None:
    assert explained_by_circles(planted_embedding() + 5, [7, 2]) == pytest.approx(1.0)
    assert explained_by_circles(torch.ones(31, 4), [7]) == 0.0


@pytest.mark.parametrize("p", [12, 13])
def test_what_all_frequencies_explain_is_everything(p: int) -> None:
    assert explained_by_circles(normal(p, 5), list(range(1, p // 2 + 1))) == pytest.approx(1.0)
    assert explained_by_circles(normal(p, 5), []) == 0.0


def test_explained_is_the_r_squared_of_least_squares() -> None:
    W_E = normal(13, 5)
    functions = torch.cat([torch.ones(13, 1).double(), circles(13, [2, 5], (1.0, 1.0))], dim=1)
    residual = W_E - functions @ torch.linalg.lstsq(functions, W_E).solution
    r_squared = 1 - residual.square().sum() / (W_E - W_E.mean(0)).square().sum()
    assert explained_by_circles(W_E, [2, 5]) == pytest.approx(float(r_squared))


@pytest.mark.parametrize("k", [7, 2])
def test_a_planted_circle_is_shown_as_a_circle_in_the_order_of_its_frequency(k: int) -> None:
    points = circle(planted_embedding(), k)
    radius = {7: 2.0, 2: 1.0}[k]
    assert_close(points, radius * wave(31, k, torch.arange(31)), **exact)
    assert circulant_distance(points) < 1e-10


def test_a_skewed_circle_is_shown_undistorted() -> None:
    W_E = circles(31, [7], [1.0]) @ torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0]]).double()
    points = circle(W_E, 7)  # an ellipse: distances between tokens are those of the embedding
    assert_close(torch.cdist(points, points), torch.cdist(W_E, W_E), rtol=0.0, atol=1e-6)
    assert circulant_distance(points) > 0.1


def test_random_weights_show_no_circle() -> None:
    assert circulant_distance(circle(normal(31, 10), 7)) > 0.3


def test_noise_in_the_plane_is_shown() -> None:
    W_E = planted_embedding()
    other = wave(31, 5, torch.arange(31)) @ orthonormal_rows(4, 10)[:2]  # another frequency in the plane of 7
    assert circulant_distance(circle(W_E + 0.5 * other, 7)) > 0.1


def test_nyquist_is_shown_on_one_axis() -> None:
    assert circle(normal(12, 5), 6).shape == (12, 1)


def test_a_circle_of_a_frequency_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FrequencyError):
        circle(normal(11, 4), 6)


# The last hidden state


def planted_state(p: int, k: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """A state with the circle of a + b in its first two features, and what reads its frequency from there."""
    a, b = pairs(p)
    residual = noise * wave(p, k, a - b)  # orthogonal to what is fitted, and of the same norm
    return torch.cat([wave(p, k, a + b) + residual, normal(p * p, 3)], dim=1), torch.cat(
        [wave(p, k, torch.arange(p)).T, torch.zeros(3, p).double()]
    )


@pytest.mark.parametrize("p", [11, 12])
def test_a_planted_state_is_fitted_without_error(p: int) -> None:
    fit = hidden_fit(*planted_state(p, 3), 3)
    assert fit.relative == pytest.approx(0.0, abs=1e-12)
    assert_close(fit.fitted, fit.projections, **exact)


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0, 3.0])
def test_a_planted_residual_is_the_error_that_is_found(noise: float) -> None:
    fit = hidden_fit(*planted_state(11, 3, noise), 3)
    relative = noise / math.sqrt(1 + noise**2)  # residual over what is fitted, which holds the residual too
    assert fit.relative == pytest.approx(relative)
    assert fit.squared == pytest.approx(relative**2)


def test_a_constant_counts_as_error_since_nothing_is_centred() -> None:
    hidden, W_U = planted_state(11, 3)
    shifted = hidden + torch.tensor([1.0, 0, 0, 0, 0]).double()
    assert hidden_fit(shifted, W_U, 3).squared == pytest.approx(1 / (1 + 1))


def test_a_random_state_is_not_fitted() -> None:
    assert hidden_fit(normal(121, 8), normal(8, 11), 3).relative > 0.9


def test_the_fit_of_the_analytic_adder_misses_what_its_cosine_of_the_difference_does() -> None:
    model, task = fourier_adder(), ModularAddition(31)
    hidden = unembedded(Adder(model, task))
    a, b = pairs(31)
    for k in FREQUENCIES:
        factor = (math.pi * k * (a - b).double() / 31).cos().abs()  # |cos(w(a-b)/2)| varies, a fit has its mean
        missed = 1 - factor.mean() ** 2 / factor.square().mean()
        fit = hidden_fit(hidden, model.W_U, k)
        assert fit.squared == pytest.approx(float(missed), abs=0.01)
        assert fit.squared == pytest.approx(1 - 8 / math.pi**2, abs=0.01)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_argument_is_k_times_the_sum_modulo_p(k: int) -> None:
    argument = hidden_fit(normal(121, 4), normal(4, 11), k).argument.view(11, 11)
    for a, b in ((0, 0), (1, 0), (0, 1), (7, 9), (10, 10)):
        assert int(argument[a, b]) == k * (a + b) % 11


def test_the_fit_is_a_function_of_the_argument() -> None:
    fit = hidden_fit(normal(121, 4), normal(4, 11), 3)
    for value in range(11):
        fitted = fit.fitted[fit.argument == value]
        assert_close(fitted, fitted[:1].expand_as(fitted), **exact)


def test_projections_are_the_logits_fourier_coefficients_over_the_answers() -> None:
    hidden, W_U = normal(121, 4), normal(4, 11)
    transformed = torch.fft.rfft(hidden @ W_U, dim=1)[:, 3] * math.sqrt(2 / 11)
    expected = torch.stack([transformed.real, -transformed.imag], dim=1)
    assert_close(hidden_projections(hidden, W_U, 3), expected, **exact)


def test_the_fit_of_nothing_has_no_error() -> None:
    fit = hidden_fit(torch.zeros(49, 2), normal(2, 7), 1)
    assert (fit.relative, fit.squared) == (0.0, 0.0)


def test_nyquist_is_fitted_on_one_axis() -> None:
    assert hidden_fit(normal(36, 4), normal(4, 6), 3).projections.shape == (36, 1)


def test_squared_is_the_square() -> None:
    fit = Fit(torch.zeros(2).long(), torch.tensor([[3.0], [4.0]]), torch.tensor([[3.0], [1.0]]))
    assert fit.relative == pytest.approx(3 / 5)
    assert fit.squared == pytest.approx(9 / 25)


def test_a_state_that_is_not_of_the_full_grid_is_an_error() -> None:
    with pytest.raises(GridError, match="expected the full grid"):
        hidden_fit(normal(120, 4), normal(4, 11), 3)
