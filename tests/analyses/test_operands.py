"""Spectra by family and by operand: planted waves land where their name says, and all of the power is somewhere."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import exact, family_by_hand, fourier_adder, normal, random_model
from test_adder import transformer
from torch import Tensor
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.errors import ActivationError, GridError, ModulusError
from analyses.grid import block_power, family_power
from analyses.operands import activation_spectrum, tensor_spectrum
from analyses.spectra import family_spectrum
from hooked_rnn import ModularAddition

few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
THREE = {
    "a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1), "a+b": (1, 1, 0), "a-b": (1, -1, 0), "a+c": (1, 0, 1), "a-c": (1, 0, -1),
    "b+c": (0, 1, 1), "b-c": (0, 1, -1), "a+b+c": (1, 1, 1), "a+b-c": (1, 1, -1), "a-b+c": (1, -1, 1), "a-b-c": (1, -1, -1),
}  # fmt: skip


def wave_of(p: int, multiples: tuple[int, ...]) -> Tensor:
    """cos and sin of 2 pi (m_1 a + m_2 b + ...) / p, over the grid, as two columns."""
    numbers = torch.cartesian_prod(*[torch.arange(p)] * len(multiples)).view(-1, len(multiples))
    angle = 2 * math.pi * (numbers * torch.tensor(multiples)).sum(1).double() / p
    return torch.stack([angle.cos(), angle.sin()], dim=1)


# Two operands


@given(st.integers(2, 12), st.integers(0, 5))
@few_examples
def test_the_families_have_all_the_power(p: int, seed: int) -> None:
    x = normal(p * p, 3, seed=seed) + 1.0
    found = family_spectrum(x, p)
    assert found.total == pytest.approx(float(x.square().sum()))
    assert found.constant == pytest.approx(float(p * p * x.mean(0).square().sum()))
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert block_power(x, p).sum((0, 1)) == pytest.approx(x.square().sum(0).tolist())


@given(st.integers(3, 12), st.data())
@few_examples
def test_a_planted_family_has_all_of_it(p: int, data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(["a", "b", "sum", "difference"]))
    k = data.draw(st.integers(1, (p - 1) // 2))
    found = family_spectrum(7.0 + family_by_hand(p, k, family), p)
    assert found.shares == pytest.approx({name: float(name == family) for name in found.shares}, abs=1e-12)
    assert found.spectrum(family).share(k) == pytest.approx(1.0)


def test_a_product_of_two_frequencies_is_cross_and_has_its_place() -> None:
    p = 11
    x = family_by_hand(p, 2, "a")[:, :1] * family_by_hand(p, 5, "b")[:, 1:]
    found = family_spectrum(x, p)
    assert found.shares == pytest.approx({"a": 0, "b": 0, "sum": 0, "difference": 0, "cross": 1}, abs=1e-12)
    assert float(found.cross[1, 4]) == pytest.approx(float(x.square().sum()))
    assert family_spectrum(x * 0, p).shares == dict.fromkeys(found.shares, 0.0)


def test_the_oracle_is_of_its_frequencies_and_noise_is_of_all() -> None:
    p, ks = 31, [5, 12, 3]
    adder = Adder(fourier_adder(), ModularAddition(p))
    preact = family_spectrum(adder.activation("blocks.0.hook_preact"), p)
    assert preact.shares == pytest.approx({"a": 0.5, "b": 0.5, "sum": 0, "difference": 0, "cross": 0}, abs=1e-9)
    hidden = family_spectrum(adder.activation("blocks.0.hook_hidden"), p)
    for family in ("a", "b", "sum", "difference"):
        assert hidden.spectrum(family).strongest(3) == set(ks)
    assert hidden.shares["cross"] < 0.06
    noise = family_spectrum(normal(p * p, 16), p)
    assert noise.shares["cross"] > 0.8
    assert max(float(noise.spectrum(family).shares.max()) for family in ("a", "b", "sum", "difference")) < 0.2


# Any number of operands


@given(st.integers(2, 7), st.integers(1, 4), st.integers(0, 5))
@few_examples
def test_patterns_and_cross_terms_have_all_the_power(p: int, operands: int, seed: int) -> None:
    x = normal(p**operands, 2, seed=seed) + 1.0
    found = tensor_spectrum(x, p, operands)
    assert found.total == pytest.approx(float(x.square().sum()))
    assert len(found.patterns) == (3**operands - 1) // 2
    assert len(found.by_operands) == 2**operands - 1


@pytest.mark.parametrize("p", [7, 8])
def test_for_two_operands_they_are_the_families(p: int) -> None:
    x = normal(p * p, 70)  # more columns than are transformed at a time
    found, families = tensor_spectrum(x, p), family_power(x, p)
    for pattern, family in (("a", "a"), ("b", "b"), ("a+b", "sum"), ("a-b", "difference")):
        assert_close(found.patterns[pattern], families[family], **exact)
    assert found.cross == pytest.approx({"ab": float(family_spectrum(x, p).cross.sum())})
    assert found.constant == pytest.approx(family_spectrum(x, p).constant)
    assert_close(found.sum, families["sum"], **exact)


@pytest.mark.parametrize(("pattern", "signs"), THREE.items())
def test_a_planted_pattern_of_three_operands_has_all_of_it(pattern: str, signs: tuple[int, ...]) -> None:
    p, k = 7, 2
    found = tensor_spectrum(wave_of(p, tuple(k * s for s in signs)) @ normal(2, 3), p, 3)
    assert set(found.patterns) == set(THREE)
    total = found.total
    for name, power in found.patterns.items():
        assert float(power[k - 1]) == pytest.approx(total if name == pattern else 0.0, abs=1e-9 * total)
    involved = "".join(letter for letter, s in zip("abc", signs, strict=True) if s)
    assert found.by_operands[involved] == pytest.approx(total)


def test_terms_of_several_frequencies_are_cross_terms_of_the_operands_that_they_involve() -> None:
    for multiples, involved in (((1, 2, 0), "ab"), ((1, 0, 3), "ac"), ((1, 1, 2), "abc")):
        found = tensor_spectrum(wave_of(7, multiples), 7, 3)
        assert found.cross[involved] == pytest.approx(2 * found.total / 2)
        assert sum(float(power.sum()) for power in found.patterns.values()) < 1e-9


def test_at_nyquist_signs_make_no_difference_and_all_count_as_plus() -> None:
    for signs in itertools.product((1, -1), repeat=3):
        found = tensor_spectrum(wave_of(6, tuple(3 * s for s in signs))[:, :1], 6, 3)
        assert float(found.sum[2]) == pytest.approx(found.total)


def test_any_activation_of_a_model_of_three_operands() -> None:
    task = ModularAddition(5, operands=3)
    adder = Adder(random_model(task), task)
    found = activation_spectrum(adder, "blocks.0.hook_hidden")
    assert found.total == pytest.approx(float(adder.activation("blocks.0.hook_hidden").double().square().sum()))
    first = activation_spectrum(adder, "blocks.0.hook_hidden", position=0)  # knows the first operand alone
    assert first.by_operands == pytest.approx(
        {**dict.fromkeys(first.by_operands, 0.0), "a": first.by_operands["a"]}, abs=1e-6
    )


def test_what_does_not_fit_is_one_clear_error() -> None:
    for rows, p, operands in ((48, 7, 2), (49, 7, 3), (7, 7, 0), (49, 8, 2)):
        with pytest.raises(GridError, match=f"a batch of {rows}: expected the full grid"):
            tensor_spectrum(normal(rows, 2), p, operands)
    for spectrum in (family_spectrum, block_power):
        with pytest.raises(GridError, match="a batch of 48"):
            spectrum(normal(48, 2), 7)
    with pytest.raises(ModulusError):
        tensor_spectrum(normal(1, 2), 1, 2)
    with pytest.raises(ActivationError, match="hook_pattern has shape"):
        activation_spectrum(Adder(transformer(7), ModularAddition(7, equals_token=True)), "blocks.0.attn.hook_pattern")
