"""Singular vectors in pairs: planted circles are found whole, random weights are no circles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import circles, normal, orthonormal_rows, random_model
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.errors import ModulusError
from analyses.fourier import FourierBasis
from analyses.oracle import fourier_adder
from analyses.singular_pairs import singular_pairs, weight_pairs
from hooked_rnn import ModularAddition

few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
odd = st.sampled_from([11, 13, 15, 17, 23, 31])


@given(odd, st.floats(0.0, 1e-3), st.data())
@few_examples
def test_the_oracles_weights_are_the_planted_pairs(p: int, noise: float, data: st.DataObject) -> None:
    ks = data.draw(st.lists(st.integers(1, p // 2), min_size=1, max_size=3, unique=True))
    strengths = [1.0, 0.7, 0.5][: len(ks)]
    model = fourier_adder(p, ks, strengths, neurons=32, noise=noise, check=False)
    found = weight_pairs(Adder(model, ModularAddition(p)), components=2 * len(ks))
    del found["W_hh W_U"]  # zero here: W_U reads the second harmonic, which the ReLU makes of W_hh's first
    assert list(found) == ["W_E", "W_E W_ih", "W_U"]
    total = sum(s * s for s in strengths)
    for name, pairs in found.items():
        assert [pair.frequency for pair in pairs.pairs] == ks, name
        assert [pair.components for pair in pairs.pairs] == [(2 * i, 2 * i + 1) for i in range(len(ks))]
        for pair, s in zip(pairs.pairs, strengths, strict=True):
            assert pair.consecutive
            assert pair.purity > 0.99
            assert max(pair.angles) < 6.0
            assert pair.energy == pytest.approx(s * s / total, abs=0.02)
            assert float(pairs.energy_by_frequency[pair.frequency]) == pytest.approx(s * s / total, abs=0.02)
        assert pairs.mean_purity > 0.99


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_are_no_circles(seed: int) -> None:
    adder = Adder(random_model(ModularAddition(31), seed=seed), ModularAddition(31))
    for pairs in weight_pairs(adder, components=6).values():
        assert pairs.mean_purity < 0.6
        assert min(max(pair.angles) for pair in pairs.pairs) > 25
        assert float(pairs.energy_by_frequency.max()) < 2.5 / 15


@given(st.integers(2, 20), st.integers(1, 8), st.integers(0, 5))
@few_examples
def test_energies_sum_to_all_and_purities_agree_with_the_angles(p: int, d: int, seed: int) -> None:
    weight = normal(p, d, seed=seed) + 0.5
    found = singular_pairs(weight, p)
    assert float(found.energy_by_frequency.sum()) == pytest.approx(1.0)
    assert sum(pair.energy for pair in found.pairs) == pytest.approx(1.0)
    assert sorted(i for pair in found.pairs for i in pair.components) == list(range(min(p, d)))
    left = torch.linalg.svd(weight, full_matrices=False).U
    for pair in found.pairs:
        functions = FourierBasis(p).functions([pair.frequency])
        for i, purity in zip(pair.components, pair.purities, strict=True):
            assert float((functions @ left[:, i]).square().sum()) == pytest.approx(purity)
        if 2 * pair.frequency < p:
            assert pair.purity == pytest.approx(sum(pair.purities) / len(pair.purities))


def test_a_quarter_turned_plane_has_its_principal_angles() -> None:
    p = 13
    cosine, sine = FourierBasis(p).functions([2])
    other = FourierBasis(p).functions([5])[0]
    tilted = (sine + 0.5 * other) / 1.25**0.5
    found = singular_pairs(torch.stack([2 * cosine, tilted], dim=1), p)
    assert found.pairs[0].components == (0, 1)
    assert found.pairs[0].angles == pytest.approx((0.0, 26.565), abs=1e-3)  # atan(1/2)


def test_pairs_need_not_be_consecutive_and_a_vector_may_have_no_partner() -> None:
    p = 13
    functions = torch.cat([FourierBasis(p).functions([2]), FourierBasis(p).functions([5])])
    weight = functions[[0, 2, 1]].T * torch.tensor([3.0, 2.0, 1.0])
    found = singular_pairs(weight, p).pairs
    assert [(pair.frequency, pair.components, pair.consecutive) for pair in found] == [
        (2, (0, 2), False),
        (5, (1,), False),
    ]


def test_equal_strengths_mix_in_the_vectors_and_not_in_the_energy_by_frequency() -> None:
    weight = circles(31, [7, 2], [1.0, 1.0 + 1e-9]) @ orthonormal_rows(4, 10) + 1e-6 * normal(31, 10)
    found = singular_pairs(weight, 31, components=4)
    assert found.mean_purity < 0.99
    assert_close(found.energy_by_frequency[[7, 2]], torch.tensor([0.5, 0.5]).double(), rtol=0.0, atol=1e-6)


def test_nyquist_has_no_partner_and_zeros_have_no_pairs() -> None:
    found = singular_pairs(torch.tensor([1.0, -1.0]).repeat(3)[:, None], 6)
    assert [(pair.frequency, pair.components, pair.purity) for pair in found.pairs] == [(3, (0,), pytest.approx(1.0))]
    nothing = singular_pairs(torch.zeros(6, 2), 6)
    assert (nothing.pairs, nothing.mean_purity, float(nothing.energy_by_frequency.sum())) == ([], 0.0, 0.0)


def test_two_vectors_that_are_both_mostly_nyquist_are_no_pair() -> None:
    (nyquist,), others = FourierBasis(6).functions([3]), FourierBasis(6).functions([1, 2])[[0, 2]].sum(0) / 2**0.5
    weight = torch.stack([2 * (nyquist + others), nyquist - others], dim=1)
    assert [(pair.frequency, pair.components) for pair in singular_pairs(weight, 6).pairs] == [(3, (0,)), (3, (1,))]


def test_rows_that_are_not_the_numbers_are_an_error() -> None:
    with pytest.raises(ModulusError, match="expected length p=13"):
        singular_pairs(normal(12, 4), 13)
