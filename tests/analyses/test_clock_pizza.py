"""A clock, a pizza and random weights, told apart by measures that are known of the first two."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import FREQUENCIES, P, circles, clock_adder, fourier_adder, normal, pairs, random_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens import HookedRootModule
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from analyses.adder import Adder
from analyses.circuit import logit_fit
from analyses.clock_pizza import (
    CHUNK,
    circularity,
    clock_or_pizza,
    distance_irrelevance,
    gradient_symmetry,
    operand_gradients,
)
from analyses.errors import ActivationError, GridError
from hooked_rnn import ModularAddition


class Circles(HookedRootModule):
    """Numbers on circles of radius 1, complex products of which the logits are made."""

    def __init__(self, p: int, frequencies: tuple[int, ...]) -> None:
        super().__init__()
        self.W_E = nn.Parameter(circles(p, frequencies, [1.0] * len(frequencies)))
        self.W_U = nn.Parameter(self.W_E.detach().T.clone())
        self.hook_embed = HookPoint()
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.hook_embed(self.W_E[tokens])
        a, b = (torch.view_as_complex(x[:, t].reshape(len(x), -1, 2)) for t in (0, 1))
        return torch.view_as_real(self.combined(a, b)).flatten(1) @ self.W_U

    def combined(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError


class Clock(Circles):
    """exp(iwa) exp(iwb): the logits are the sum of cos(w(a+b-c))."""

    def combined(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class Pizza(Circles):
    """s = exp(iwa) + exp(iwb), and s^2/|s|: the logits are twice the sum of |cos(w(a-b)/2)| cos(w(a+b-c))."""

    def combined(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b) ** 2 / (a + b).abs()


class Unordered(Clock):
    """A clock whose second operand is seen through a reflection of the plane: its operands do not commute."""

    def combined(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b + 2 * b.conj()


class MLP(HookedRootModule):
    """Two embeddings side by side, one hidden layer; the embedding is hooked at the place asked for."""

    def __init__(self, p: int, flat: bool = False) -> None:
        super().__init__()
        self.W_E, self.W_in, self.W_U = (
            nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate([(p, 5), (10, 16), (16, p)])
        )
        self.flat = flat
        self.hook_embed = HookPoint()
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.W_E[tokens]
        x = self.hook_embed(x.flatten(1)) if self.flat else self.hook_embed(x).flatten(1)
        return torch.relu(x @ self.W_in) @ self.W_U


def transformer(p: int) -> Any:
    cfg = TransformerBridgeConfig(
        n_layers=1, n_heads=3, d_model=12, d_head=4, d_mlp=16, act_fn="relu", normalization_type=None,
        n_ctx=3, d_vocab=p + 1, d_vocab_out=p + 1, seed=0, device="cpu",
    )  # fmt: skip
    return TransformerBridge.boot_native(cfg).eval()


def adder_of(kind: str, p: int) -> Adder:
    if kind == "transformer":
        return Adder(transformer(p), ModularAddition(p, equals_token=True))
    if kind == "mlp":
        return Adder(MLP(p), ModularAddition(p))
    equals = kind == "rnn with ="
    task = ModularAddition(p, equals_token=equals)
    return Adder(random_model(task, n_layers=2, bias=True).double(), task)


def test_a_pizza_has_one_gradient_for_both_operands_and_logits_that_depend_on_their_distance() -> None:
    measured = clock_or_pizza(Adder(Pizza(P, FREQUENCIES), ModularAddition(P)), triples=500)
    assert measured.symmetry.symmetricity == pytest.approx(1.0)
    assert measured.symmetry.exchanged == pytest.approx(1.0)
    assert measured.symmetry.ratio == pytest.approx(1.0)
    assert measured.distance_irrelevance == pytest.approx(0.0, abs=1e-9)


def test_a_clock_has_gradients_that_are_orthogonal_on_the_mean_yet_commutes() -> None:
    # The gradients are conj(exp(iwb) exp(-iwc)) and conj(exp(iwa) exp(-iwc)): their cosine is the mean of cos(w(a-b)).
    adder = Adder(Clock(7, (1, 2)), ModularAddition(7))
    measured = clock_or_pizza(adder, triples=None)
    assert measured.symmetry.symmetricity == pytest.approx(0.0, abs=1e-9)
    assert measured.symmetry.exchanged == pytest.approx(1.0)
    assert measured.distance_irrelevance is None  # every correct logit is 2
    a, b, c = torch.tensor([3]), torch.tensor([5]), torch.tensor([1])
    first, second = operand_gradients(adder, a, b, c)
    cosine = float(torch.cosine_similarity(first, second))
    assert cosine == pytest.approx(sum(math.cos(2 * math.pi * k * (3 - 5) / 7) for k in (1, 2)) / 2)
    assert_close(first, circles(7, (1, 2), (1.0, 1.0))[[(1 - 5) % 7]])


def test_exchange_tells_the_order_of_the_operands_from_the_clock() -> None:
    symmetry = gradient_symmetry(Adder(Unordered(P, FREQUENCIES), ModularAddition(P)), triples=500)
    assert abs(symmetry.exchanged) < 0.5
    assert symmetry.ratio < 0.8


def test_the_fourier_adder_is_a_pizza_though_its_operands_enter_one_after_the_other() -> None:
    measured = clock_or_pizza(Adder(fourier_adder(), ModularAddition(P)), triples=2000)
    assert measured.symmetry.symmetricity == pytest.approx(1.0, abs=1e-3)
    assert measured.symmetry.exchanged == pytest.approx(1.0, abs=1e-3)
    assert measured.distance_irrelevance is not None
    assert measured.distance_irrelevance < 0.02


@pytest.mark.parametrize("scale", [0.5, 1.6])
def test_operands_of_unequal_weight_do_not_commute_though_the_logits_are_a_clocks(scale: float) -> None:
    model = clock_adder(P, FREQUENCIES)
    with torch.no_grad():
        model.blocks[0].W_hh *= scale
    adder = Adder(model, ModularAddition(P))
    assert logit_fit(adder.logits(), P, FREQUENCIES).explained > 0.999
    symmetry = gradient_symmetry(adder, 1000)
    assert abs(symmetry.symmetricity) < 0.1
    assert 0.7 < symmetry.exchanged < 0.9
    assert (symmetry.ratio < 0.9) == (scale > 1)


def test_random_weights_are_neither() -> None:
    measured = clock_or_pizza(Adder(random_model(ModularAddition(P), 64, 64), ModularAddition(P)), triples=2000)
    assert abs(measured.symmetry.symmetricity) < 0.15
    assert abs(measured.symmetry.exchanged) < 0.2
    assert measured.circularity < 0.5
    # As high as a clock's: distance irrelevance alone is no sign of one.
    assert measured.distance_irrelevance is not None
    assert measured.distance_irrelevance > 0.9


@pytest.mark.parametrize("kind", ["rnn", "rnn with =", "mlp", "transformer"])
def test_gradients_are_finite_differences_of_the_embedding(kind: str) -> None:
    p = 7
    adder = adder_of(kind, p)
    a, b, c = torch.tensor([2]), torch.tensor([4]), torch.tensor([6])
    gradients = operand_gradients(adder, a, b, c)
    step = 1e-2 if kind == "transformer" else 1e-6  # of which the parameters are in float32
    direction = normal(adder.W_E.shape[1], seed=1).to(adder.W_E)

    def logit(position: int, sign: int) -> float:
        def moved(x: Tensor, hook: Any) -> Tensor:
            x[:, position] += sign * step * direction
            return x

        return float(adder.logits([("hook_embed", moved)], tokens=adder.tokens[a * p + b])[0, c])

    for position, gradient in enumerate(gradients):
        slope = (logit(position, 1) - logit(position, -1)) / (2 * step)
        expected = float(gradient @ direction.double())
        assert slope == pytest.approx(expected, rel=2e-2 if kind == "transformer" else 1e-4)


@pytest.mark.parametrize("kind", ["rnn", "transformer"])
def test_the_mean_is_over_the_triples_whatever_the_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = 5
    adder = adder_of(kind, p)
    cosines = []
    for a in range(p):
        for b in range(p):
            for c in range(p):
                one = operand_gradients(adder, *(torch.tensor([x]) for x in (a, b, c)))
                cosines.append(float(torch.cosine_similarity(*one, eps=1e-30)))
    expected = gradient_symmetry(adder, triples=None)
    assert expected.symmetricity == pytest.approx(sum(cosines) / p**3, abs=1e-5)
    assert p**3 < CHUNK
    monkeypatch.setattr("analyses.clock_pizza.CHUNK", 13)
    chunked = gradient_symmetry(adder, triples=None)
    assert vars(chunked) == pytest.approx(vars(expected), abs=1e-5)


def test_the_draw_is_its_seeds_alone() -> None:
    adder = adder_of("rnn", 7)
    before = torch.random.get_rng_state()
    first, again, other = (gradient_symmetry(adder, 100, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in adder.model.parameters())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8).map(lambda n: 2 * n + 1), st.floats(0, 5), st.floats(0.1, 5), st.integers(0, 99))
def test_distance_irrelevance_of_a_sum_of_the_two_dependences(p: int, f: float, g: float, seed: int) -> None:
    # For an odd p (a + b, a - b) takes every value once: sqrt(var f / (var f + var g)).
    (a, b), logits = pairs(p), normal(p * p, p, seed=seed)  # of the answers that are wrong nothing counts
    of_sum, of_distance = f * normal(p, seed=seed + 1), g * normal(p, seed=seed + 2)
    logits[torch.arange(p * p), (a + b) % p] = of_sum[(a + b) % p] + of_distance[(a - b) % p]
    variances = [float(x.var(correction=0)) for x in (of_sum, of_distance)]
    assert distance_irrelevance(logits, p) == pytest.approx(math.sqrt(variances[0] / sum(variances)), abs=1e-6)


def test_circles_are_circular_where_their_radii_tell_them_apart() -> None:
    assert circularity(circles(P, FREQUENCIES, (1.0, 0.8, 0.6)) + 3.0) == pytest.approx(1.0)
    assert circularity(normal(P, 32)) < 0.5
    # Of equal radii any mixture of the circles is a principal component; this is the measure's own blind spot.
    assert circularity(circles(P, FREQUENCIES, (1.0, 1.0, 1.0)) + 1e-6 * normal(P, 6)) < 0.95


@given(st.integers(3, 40), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_circularity_is_its_formula(p: int, seed: int) -> None:
    W_E = normal(p, 6, seed=seed)
    left, values, _ = torch.linalg.svd(W_E - W_E.mean(0), full_matrices=False)
    per_component = []
    for v in left[:, : min(4, p)].T:
        transform = torch.fft.fft(v.to(torch.complex128)).abs().square()[1 : p // 2 + 1] * 2 / p / v.square().sum()
        if p % 2 == 0:
            transform[-1] /= 2  # the line of frequency p/2 is met once, not twice
        per_component.append(float(transform.max()))
    if values[min(4, p) - 1] > 1e-9:  # less its mean it has at most p - 1 components
        assert circularity(W_E) == pytest.approx(sum(per_component) / len(per_component))


def test_bad_input_is_one_clear_error() -> None:
    adder = adder_of("rnn", 5)
    with pytest.raises(ActivationError, match="no hook point 'hook_embedd': expected 'hook_embed'"):
        gradient_symmetry(adder, 10, point="hook_embedd")
    with pytest.raises(ActivationError, match=r"hook_embed has shape \[10, 10\]: expected \[batch, 2, d\]"):
        gradient_symmetry(Adder(MLP(5, flat=True), ModularAddition(5)), 10)
    with pytest.raises(GridError, match="0 triples: expected at least one, or None for all 125"):
        gradient_symmetry(adder, 0)
    with pytest.raises(GridError, match="a batch of 24"):
        distance_irrelevance(torch.zeros(24, 5), 5)
