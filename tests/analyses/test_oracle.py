"""The oracle is exactly right where it says so, wrong or refused elsewhere, and made of what was planted."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planted import accuracy, exact
from torch import Tensor
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.errors import FrequencyError, ModulusError, OracleError
from analyses.fourier import FourierBasis
from analyses.oracle import aliasing, fourier_adder, least_neurons
from hooked_rnn import HookedRNN, ModularAddition

few_examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
odd = st.integers(1, 12).map(lambda n: 2 * n + 1)


def logits(model: HookedRNN, p: int) -> Tensor:
    return Adder(model, ModularAddition(p)).logits()


def lead(model: HookedRNN, p: int) -> float:
    """By how much the right answer's logit exceeds the next, on the pair where that is least; relative to the largest."""
    x, labels = logits(model, p), ModularAddition(p).labels[:, None]
    others = x.scatter(1, labels, -math.inf).max(1).values
    return float((x.gather(1, labels)[:, 0] - others).min() / x.abs().max())


@given(odd, st.data())
@few_examples
def test_it_is_right_on_all_pairs_with_the_fewest_neurons_that_it_asks_for(p: int, data: st.DataObject) -> None:
    frequencies = data.draw(st.lists(st.integers(1, p // 2), min_size=1, max_size=4, unique=True))
    assume(math.gcd(p, *frequencies) == 1)
    n = len(frequencies)
    strengths = data.draw(st.lists(st.floats(0.1, 10.0), min_size=n, max_size=n))
    phases = data.draw(st.lists(st.floats(-4.0, 4.0), min_size=n, max_size=n))
    extra = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    neurons = [least_neurons(p, k) + 2 * e for k, e in zip(frequencies, extra, strict=True)]
    model = fourier_adder(p, frequencies, strengths, neurons, phases)
    assert model.cfg.d_hidden == sum(neurons)
    assert lead(model, p) > 1e-9


def test_it_is_right_modulo_113() -> None:
    assert accuracy(fourier_adder(113, [14, 35, 41], dtype=torch.float32), ModularAddition(113)) == 1.0


def test_too_few_neurons_are_an_error_and_would_be_wrong() -> None:
    assert least_neurons(31, 5) > 6
    with pytest.raises(OracleError, match="6 neurons for frequency 5: expected an even number of at least"):
        fourier_adder(31, [5], neurons=6)
    assert accuracy(fourier_adder(31, [5], neurons=6, check=False), ModularAddition(31)) < 1.0


@pytest.mark.parametrize(("p", "frequency"), [(31, 5), (113, 56), (45, 9), (45, 15)])
def test_the_least_number_of_neurons_is_the_least_even_one_of_the_bound(p: int, frequency: int) -> None:
    n, bound = least_neurons(p, frequency), math.sin(math.pi * math.gcd(frequency, p) / p)
    assert n % 2 == 0
    assert aliasing(n) < bound
    assert n == 6 or aliasing(n - 2) >= bound


def test_an_odd_number_of_neurons_is_an_error() -> None:
    with pytest.raises(OracleError, match="33 neurons for frequency 2: expected an even number"):
        fourier_adder(31, [5, 2], neurons=[32, 33])


@pytest.mark.parametrize("p", [4, 6, 10, 12])
def test_an_even_modulus_is_an_error_and_would_be_wrong_whatever_the_frequencies(p: int) -> None:
    for n in (1, 2):
        for frequencies in itertools.combinations(FourierBasis(p).frequencies, n):
            with pytest.raises(OracleError, match=f"p={p}: expected an odd modulus"):
                fourier_adder(p, frequencies)
    model = fourier_adder(p, list(FourierBasis(p).frequencies), check=False)
    assert lead(model, p) < 1e-9
    a, c = p // 2, torch.tensor([0, p // 2])
    tied = logits(model, p)[a * p, (a + c) % p]  # a - b = p/2
    assert_close(tied[0], tied[1], **exact)


def test_frequencies_that_share_a_divisor_with_the_modulus_are_an_error_and_would_tie() -> None:
    with pytest.raises(OracleError, match="with 3, the answers c and c \\+ 5 are the same to them"):
        fourier_adder(15, [3, 6])
    assert lead(fourier_adder(15, [3, 6], check=False), 15) == pytest.approx(0.0, abs=1e-12)
    assert lead(fourier_adder(15, [3, 5]), 15) > 0  # together they tell all answers apart


@pytest.mark.parametrize("neurons", [6, 8, 16, 32])
def test_aliasing_is_the_sum_over_the_harmonics_that_look_like_the_second(neurons: int) -> None:
    harmonics = [j * neurons + sign * 2 for j in range(1, 20_000) for sign in (1, -1)]
    assert aliasing(neurons) == pytest.approx(sum(3 / (m * m - 1) for m in harmonics), rel=1e-3)
    assert aliasing(4) == math.inf


@given(st.floats(-4.0, 4.0))
@few_examples
def test_the_state_is_the_neurons_that_the_formula_says(phase: float) -> None:
    p, k, n = 13, 4, 12
    model = fourier_adder(p, [k], [1.5], n, phase, d_model=5)
    f = phase + 2 * math.pi * torch.arange(n).double() / n
    w = 2 * math.pi * k / p
    hidden = Adder(model, ModularAddition(p)).activation("blocks.0.hook_hidden")
    a, b = ModularAddition(p).tokens.double().T[:, :, None]
    assert_close(hidden, 1.5 * ((w * a + f).cos() + (w * b + f).cos()).relu(), **exact)


def test_strengths_neurons_and_width_are_the_planted_ones() -> None:
    p, frequencies, strengths, neurons = 31, [5, 12], [2.0, 1.0], [32, 24]
    model = fourier_adder(p, frequencies, strengths, neurons, d_model=7)
    assert (model.cfg.d_model, model.cfg.d_hidden) == (7, 56)
    read = model.W_E @ model.blocks[0].W_ih
    for weight, dim, units in ((model.W_E, 0, (2, 2)), (read, 0, neurons), (model.W_U, 1, neurons)):
        power = FourierBasis(p).power(weight.detach(), dim)
        expected = [s**2 * n * p / 2 for s, n in zip(strengths, units, strict=True)]
        assert_close(power[frequencies], torch.tensor(expected).double(), **exact)
        assert_close(power.sum(), power[frequencies].sum(), **exact)


def test_the_seed_turns_the_embedding_and_draws_the_noise_and_nothing_else() -> None:
    before = torch.random.get_rng_state()
    one, other, noisy = (
        fourier_adder(11, [1, 3], d_model=6, noise=noise, seed=seed) for noise, seed in ((0.0, 0), (0.0, 1), (0.1, 0))
    )
    assert not torch.allclose(one.W_E, other.W_E)
    assert_close(logits(one, 11), logits(other, 11), **exact)
    assert 0.05 < float((noisy.W_U - one.W_U).detach().std()) < 0.2
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frequencies": []}, "no frequencies"),
        ({"strengths": [1.0]}, r"strengths \[1.0\]: expected 2 of them"),
        ({"strengths": [1.0, 0.0]}, "expected numbers above 0"),
        ({"neurons": [32]}, r"neurons \[32\]: expected 2 of them"),
        ({"neurons": 0}, "expected at least 1 for each frequency"),
        ({"phases": [0.0, 0.0, 0.0]}, "phases"),
        ({"d_model": 3}, "d_model=3: expected at least 4"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(OracleError, match=message):
        fourier_adder(**{"p": 11, "frequencies": [1, 3], **arguments})


def test_what_does_not_exist_is_an_error() -> None:
    with pytest.raises(ModulusError):
        fourier_adder(1, [1])
    for frequencies in ([0], [6], [2, 2]):
        with pytest.raises(FrequencyError):
            fourier_adder(11, frequencies)
