"""Spectra: planted frequencies are found, white noise has none."""

import pytest
import torch
from planted import circles, exact, family_by_hand, normal, orthonormal_rows
from torch.testing import assert_close

from analyses.spectra import TIMES_UNIFORM, Spectrum, grid_spectrum, key_frequencies, weight_spectrum


def planted(p: int = 31, noise: float = 0.0) -> torch.Tensor:
    return circles(p, [7, 2, 15], [3.0, 2.0, 1.0]) @ orthonormal_rows(6, 10) + noise * normal(p, 10)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_planted_frequencies_are_found_with_their_shares(dim: int) -> None:
    weight = planted() if dim == 0 else planted().T
    key = key_frequencies(weight_spectrum(weight, 31, dim))
    assert key.by_share == [7, 2]  # the third has 1/14 of the power, below twice 1/15
    assert key.frequencies == [2, 7]
    for k, share in ((7, 9 / 14), (2, 4 / 14), (15, 1 / 14), (1, 0.0)):
        assert key.spectrum.share(k) == pytest.approx(share, abs=1e-12)


def test_planted_frequencies_are_found_under_noise() -> None:
    assert set(key_frequencies(weight_spectrum(planted(noise=0.1), 31)).by_share) == {7, 2}


@pytest.mark.parametrize("p", [23, 31, 32])
@pytest.mark.parametrize("seed", range(5))
def test_white_noise_has_no_key_frequency(p: int, seed: int) -> None:
    assert key_frequencies(weight_spectrum(normal(p, 64, seed=seed), p)).frequencies == []


@pytest.mark.parametrize("p", [22, 23])
def test_shares_sum_to_one_and_leave_out_the_constant(p: int) -> None:
    weight = normal(p, 5)
    shares = weight_spectrum(weight, p).shares
    assert len(shares) == p // 2
    assert_close(shares.sum(), torch.ones((), dtype=torch.float64), **exact)
    assert_close(weight_spectrum(weight + 100, p).shares, shares, rtol=0.0, atol=1e-9)


def test_the_threshold_is_in_the_result_and_decides() -> None:
    spectrum = Spectrum(torch.tensor([0.5, 0.3, 0.2, 0.0]).double())
    assert TIMES_UNIFORM == 2.0
    assert key_frequencies(spectrum).threshold == 2 / 4
    assert key_frequencies(spectrum).frequencies == []  # above the threshold, not at it
    for times, found in ((1.9, [1]), (1.0, [1, 2]), (0.5, [1, 2, 3])):
        key = key_frequencies(spectrum, times)
        assert (key.threshold, key.frequencies) == (times / 4, found)
        assert key.spectrum is spectrum


def test_frequencies_by_share_are_the_strongest_first_and_ties_by_number() -> None:
    spectrum = Spectrum(torch.tensor([0.2, 0.4, 0.2, 0.2]).double())
    assert spectrum.by_share == [2, 1, 3, 4]
    assert spectrum.strongest(2) == {2, 1}
    assert spectrum.strongest(0) == set()
    assert spectrum.share_of([1, 2]) == pytest.approx(0.6)
    assert spectrum.share_of([]) == 0.0


@pytest.mark.parametrize("family", ["a", "b", "sum", "difference", "block"])
def test_the_grid_spectrum_finds_a_frequency_in_any_family(family: str) -> None:
    spectrum = grid_spectrum(family_by_hand(13, 4, family) @ normal(family_by_hand(13, 4, family).shape[1], 5), 13)
    assert spectrum.share(4) == pytest.approx(1.0)
    assert_close(spectrum.shares.sum(), torch.ones((), dtype=torch.float64), **exact)


def test_the_grid_spectrum_of_noise_has_no_key_frequency() -> None:
    assert key_frequencies(grid_spectrum(normal(23 * 23, 16), 23)).frequencies == []


def test_what_is_constant_has_no_shares_and_no_key_frequency() -> None:
    for spectrum in (weight_spectrum(torch.zeros(7, 2), 7), grid_spectrum(torch.zeros(49, 2), 7)):
        assert torch.equal(spectrum.shares, torch.zeros(3, dtype=torch.float64))
        assert key_frequencies(spectrum).frequencies == []
