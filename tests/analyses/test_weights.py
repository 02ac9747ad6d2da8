"""Weights with an axis of numbers, on every kind of model: by name, and turned so that the numbers are rows."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted import circles, fourier_adder, normal, random_model
from test_adder import MLP, transformer
from torch import nn
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.singular_pairs import weight_pairs
from analyses.spectra import weight_spectra
from analyses.weights import number_weights
from hooked_rnn import ModularAddition

P = 7
ATTENTION = ["W_E W_Q", "W_E W_K", "W_E W_V", "W_E W_in", "W_E W_V W_O", "W_O W_U", "W_out W_U"]


class WideMLP(MLP):
    """One whose hidden layer has weights of its own, by their usual names."""

    def __init__(self, p: int) -> None:
        super().__init__(p)
        self.W_in, self.W_out = nn.Parameter(normal(12, 20).float()), nn.Parameter(normal(20, 12).float())


def adder_of(model: Any) -> Adder:
    return Adder(model, ModularAddition(P, equals_token=len(model.W_E) > P))


MODELS = {
    "rnn": (lambda: random_model(ModularAddition(P)), ["W_E W_ih", "W_hh W_U"]),
    "deep": (lambda: random_model(ModularAddition(P), n_layers=2), ["W_E W_ih", "W_hh W_U"]),
    "gru": (lambda: random_model(ModularAddition(P), cell="gru"), ["W_E W_ih"]),
    "transformer": (lambda: transformer(P), ATTENTION),
    "mlp": (lambda: MLP(P), []),
    "wide mlp": (lambda: WideMLP(P), ["W_E W_in", "W_out W_U"]),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_weight_by_name_has_the_numbers_for_rows(kind: str) -> None:
    make, names = MODELS[kind]
    adder = adder_of(make())
    weights = number_weights(adder)
    assert list(weights) == ["W_E", *names, "W_U"]
    assert all(len(weight) == P and not weight.requires_grad for weight in weights.values())
    spectra = weight_spectra(adder)
    for name, spectrum in spectra.items():
        assert float(spectrum.shares.sum()) == pytest.approx(1.0)
        # the null answer: white noise has near 1/3 at each of three frequencies
        assert 0.05 < float(spectrum.shares.min()) <= float(spectrum.shares.max()) < 0.75, name


@pytest.mark.parametrize("kind", MODELS)
def test_a_planted_frequency_is_found_in_whatever_it_reaches(kind: str) -> None:
    make, _ = MODELS[kind]
    model = make()
    with torch.no_grad():  # in: 2, out: 3
        model.W_E[:P] = (circles(P, [2], [1.0]) @ normal(2, model.W_E.shape[1])).to(model.W_E)
        model.W_U[:, :P] = (circles(P, [3], [1.0]) @ normal(2, model.W_U.shape[0])).T.to(model.W_U)
    adder = adder_of(model)
    for name, spectrum in weight_spectra(adder).items():
        assert spectrum.share(2 if name.startswith("W_E") else 3) == pytest.approx(1.0), name
    for name, found in weight_pairs(adder, components=2).items():
        assert [pair.frequency for pair in found.pairs] == [2 if name.startswith("W_E") else 3], name
        assert found.pairs[0].purity == pytest.approx(1.0)


def test_compositions_are_products() -> None:
    model = transformer(P)
    weights = number_weights(adder_of(model))
    W_E, W_V, W_O = model.W_E[:P], model.W_V[0], model.W_O[0]
    for head in range(3):
        assert_close(weights["W_E W_V"][:, 4 * head : 4 * head + 4], W_E @ W_V[head])
        assert_close(weights["W_E W_V W_O"][:, 12 * head : 12 * head + 12], W_E @ W_V[head] @ W_O[head])
        assert_close(weights["W_O W_U"][:, 4 * head : 4 * head + 4], (W_O[head] @ model.W_U[:, :P]).T)
    assert_close(weights["W_out W_U"], (model.W_out[0] @ model.W_U[:, :P]).T)
    rnn = random_model(ModularAddition(P))
    assert_close(number_weights(adder_of(rnn))["W_E W_ih"], rnn.W_E @ rnn.blocks[0].W_ih, rtol=0.0, atol=1e-6)
    assert_close(number_weights(adder_of(rnn))["W_hh W_U"], (rnn.blocks[0].W_hh @ rnn.W_U).T, rtol=0.0, atol=1e-6)


def test_layers_above_the_first_have_their_number() -> None:
    model = transformer(P)
    stacked = {name: torch.cat([getattr(model, name)] * 2) for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")}
    two = SimpleNamespace(W_E=model.W_E, W_U=model.W_U, **stacked)
    weights = number_weights(adder_of(two))
    assert [name for name in weights if name.endswith("[1]")] == [f"{name}[1]" for name in ATTENTION]
    for name in ATTENTION:
        assert torch.equal(weights[f"{name}[1]"], weights[name])
    attention_alone = SimpleNamespace(W_E=model.W_E, W_U=model.W_U, W_V=stacked["W_V"], W_O=stacked["W_O"])
    assert "W_E W_V W_O[1]" in number_weights(adder_of(attention_alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_that_is_rounding_is_zero(dtype: torch.dtype) -> None:
    # the oracle's W_U reads the second harmonic of the phases, which the ReLU makes of the first that W_hh writes
    weights = number_weights(adder_of(fourier_adder(P, (1, 2), (1.0, 1.0), phases=8, dtype=dtype)))
    assert not weights["W_hh W_U"].any()
    assert weights["W_E W_ih"].any()
    noisy = fourier_adder(P, (1, 2), (1.0, 1.0), phases=8, dtype=dtype, noise=1e-4)
    assert number_weights(adder_of(noisy))["W_hh W_U"].any()
