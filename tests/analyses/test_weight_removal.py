"""Removal from weights: against the hook that does the same, closed forms, and the weight that comes back."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from planted import FREQUENCIES, STRENGTHS, P, accuracy, exact, fourier_adder, normal, random_model, wave
from test_adder import MLP, transformer
from torch import Tensor
from torch.testing import assert_close

from analyses.ablation import frequency_hook
from analyses.adder import Adder
from analyses.errors import FamilyError, FrequencyError, RemovalSiteError
from analyses.fourier import FourierBasis
from analyses.subspace import Subspace, subspace_hook
from analyses.weight_removal import (
    WEIGHTS,
    input_after_one_token,
    live_weight,
    removed_from_weight,
    token_directions,
    weight_without,
)
from hooked_rnn import ModularAddition

FEW = 7
close = {"rtol": 1e-4, "atol": 1e-5}


def rnn(**fields: Any) -> Adder:
    task = ModularAddition(FEW, equals_token=fields.pop("equals_token", False))
    return Adder(random_model(task, dtype=torch.float64, bias=True, **fields), task)


def transformer_adder() -> Adder:
    return Adder(transformer(FEW), ModularAddition(FEW, equals_token=True))


def planted_adder() -> Adder:
    return Adder(fourier_adder(), ModularAddition(P))


def contribution(frequency: int, strength: float) -> Tensor:
    """A frequency's term of the planted adder's logits: the whole logits of an adder made of it alone."""
    return Adder(fourier_adder(P, [frequency], [strength]), ModularAddition(P)).logits()


def contributions(frequencies: list[int]) -> Tensor:
    """The planted logits of these frequencies alone."""
    strength = dict(zip(FREQUENCIES, STRENGTHS, strict=True))
    return sum((contribution(k, strength[k]) for k in frequencies), start=torch.zeros(P * P, P).double())


@pytest.mark.parametrize("mode", ["zero", "mean"])
@pytest.mark.parametrize("make", [rnn, lambda: rnn(equals_token=True), lambda: rnn(n_layers=2), transformer_adder])
def test_from_w_e_is_the_hooks_at_the_embedding(make: Any, mode: str) -> None:
    adder = make()
    hooks = [("hook_embed", frequency_hook(FEW, [1, 3], family, i, mode)) for i, family in enumerate(("a", "b"))]
    with removed_from_weight(adder, "W_E", [1, 3], mode=mode):
        logits = adder.logits()
    assert_close(logits, adder.logits(hooks), **close)
    assert not torch.allclose(logits, adder.logits(), atol=1e-2)
    assert not torch.allclose(logits, adder.logits(hooks[:1]), atol=1e-3)


def test_from_w_e_is_a_copy_that_was_edited_by_hand() -> None:
    adder = Adder(MLP(FEW), ModularAddition(FEW))
    edited = copy.deepcopy(adder.model)
    functions = wave(FEW, 2, torch.arange(FEW)).float()
    with torch.no_grad():
        edited.W_E -= functions @ (torch.linalg.pinv(functions) @ edited.W_E)
    with removed_from_weight(adder, "W_E", [2]):
        assert_close(adder.logits(), edited(adder.tokens).detach(), **close)


@pytest.mark.parametrize("make", [rnn, transformer_adder, lambda: Adder(MLP(FEW), ModularAddition(FEW))])
def test_from_w_u_is_the_logits_less_their_waves_over_the_answers(make: Any) -> None:
    adder = make()
    plain = adder.logits()
    bias = adder.model.b_U[:FEW].detach() if hasattr(adder.model, "b_U") else 0
    with removed_from_weight(adder, "W_U", [1, 2]):
        logits = adder.logits()
    assert_close(logits, FourierBasis(FEW).remove(plain - bias, [1, 2], dim=1) + bias, **close)
    assert not torch.allclose(logits, plain, atol=1e-2)


@pytest.mark.parametrize("weight", ["W_E", "W_U"])
def test_resampling_gives_another_number_its_part(weight: str) -> None:
    adder = rnn()
    plain, other = (
        live_weight(adder.model, weight).detach(),
        weight_without(adder, weight, [1], mode="resample", seed=4),
    )
    zero = weight_without(adder, weight, [1])
    part, moved = ((plain - zero), (other - zero)) if weight == "W_E" else ((plain - zero).T, (other - zero).T)
    order = torch.randperm(FEW, generator=torch.Generator().manual_seed(4))
    assert_close(moved, part[order], **exact)
    assert not torch.allclose(moved, part)


def as_subspace(directions: Tensor) -> Subspace:
    return Subspace(directions, torch.zeros(len(directions)).to(directions), torch.zeros(1).to(directions))


@pytest.mark.parametrize("equals_token", [False, True])
def test_from_w_ih_is_the_subspace_hook_at_the_embedding(equals_token: bool) -> None:
    adder = rnn(equals_token=equals_token)
    directions = token_directions(adder.W_E, [2])
    assert directions.shape == (32, 2)
    hook = subspace_hook(as_subspace(directions), range(adder.task.n_ctx))
    with removed_from_weight(adder, "W_ih", [2]):
        assert_close(adder.logits(), adder.logits([("hook_embed", lambda x, hook: x)]), **exact)
        logits = adder.logits()
    assert_close(logits, adder.logits([("hook_embed", hook)]), **exact)
    assert not torch.allclose(logits, adder.logits(), atol=1e-2)


@pytest.mark.parametrize("equals_token", [False, True])
def test_from_w_hh_is_the_subspace_hook_at_the_states_that_go_on(equals_token: bool) -> None:
    adder = rnn(equals_token=equals_token)
    directions = token_directions(input_after_one_token(adder, "W_hh"), [2])
    hook = subspace_hook(as_subspace(directions), range(adder.task.n_ctx - 1))
    with removed_from_weight(adder, "W_hh", [2]):
        logits = adder.logits()
    assert_close(logits, adder.logits([("blocks.0.hook_hidden", hook)]), **exact)
    assert not torch.allclose(logits, adder.logits(), atol=1e-2)


def test_from_w_hh_of_a_gated_cell_what_is_carried_over_keeps_it() -> None:
    adder = rnn(cell="gru")
    x = input_after_one_token(adder, "W_hh")
    Q = token_directions(x, [2])
    with removed_from_weight(adder, "W_hh", [2]):
        recurrent, carried = (adder.activation(f"blocks.0.hook_{kind}", 1) for kind in ("recurrent", "carry"))
    block, first = adder.model.blocks[0], x[adder.tokens[:, 0]]
    assert_close(carried, first, **exact)
    assert_close(recurrent, ((first - first @ Q @ Q.T) @ block.W_hh + block.b_hh).detach(), **exact)


def test_a_layer_above_is_given_the_state_of_the_layer_below() -> None:
    adder = rnn(n_layers=2)
    first = adder.activation("blocks.0.hook_hidden", 0).view(FEW, FEW, -1)
    assert_close(input_after_one_token(adder, "W_ih", 1), first[:, 0], **exact)
    assert_close(first[:, 0], first[:, 3], **exact)  # whatever comes after
    hook = subspace_hook(as_subspace(token_directions(first[:, 0], [2])), [0, 1])
    with removed_from_weight(adder, "W_ih", [2], layer=1):
        logits = adder.logits()
    assert_close(logits, adder.logits([("blocks.0.hook_out", hook)]), **exact)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_what_was_removed_from_is_without_it_and_the_model_comes_back_to_the_bit(weight: str) -> None:
    adder = rnn()
    state, plain = copy.deepcopy(adder.model.state_dict()), adder.logits()
    without = weight_without(adder, weight, [1, 3])
    assert all(torch.equal(adder.model.state_dict()[name], state[name]) for name in state)  # it was only asked for

    def interrupted() -> None:
        with removed_from_weight(adder, weight, [1, 3]):
            assert torch.equal(live_weight(adder.model, weight), without)
            assert not torch.allclose(adder.logits(), plain)
            assert_close(weight_without(adder, weight, [1, 3]), without, rtol=0.0, atol=1e-9)  # nothing is left
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(adder.model.state_dict()[name], state[name]) for name in state)
    assert torch.equal(adder.logits(), plain)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_no_frequency_changes_nothing(weight: str) -> None:
    adder = rnn()
    assert_close(weight_without(adder, weight, []), live_weight(adder.model, weight).detach(), **exact)


# The planted network


@pytest.mark.parametrize("weight", ["W_E", "W_ih", "W_U"])
@pytest.mark.parametrize("removed", [[5], [12, 3], list(FREQUENCIES)])
def test_a_planted_frequency_takes_its_term_of_the_logits_with_it(weight: str, removed: list[int]) -> None:
    adder = planted_adder()
    with removed_from_weight(adder, weight, removed):
        logits = adder.logits()
    rest = [k for k in FREQUENCIES if k not in removed]
    assert_close(logits, contributions(rest), rtol=0.0, atol=1e-8)


def test_without_a_frequency_of_w_hh_the_network_forgets_the_first_number() -> None:
    adder = Adder(fourier_adder(P, [5], [1.0]), ModularAddition(P))
    with removed_from_weight(adder, "W_hh", [5]):
        logits = adder.logits().view(P, P, P)
        assert accuracy(adder.model, adder.task) < 2 / P
    assert_close(logits, logits[:1].expand_as(logits), rtol=0.0, atol=0.1)
    b, c = torch.arange(P)[:, None], torch.arange(P)
    # relu(cos x) has second harmonic 2/(3 pi) cos 2x, and 32 phases sum 16 times a product of harmonics.
    closed = 16 * 2 / (3 * math.pi) * wave(P, 5, 2 * b - c)[..., 0]
    assert_close(logits.mean(0), closed, rtol=0.0, atol=0.1)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_frequencies_that_are_not_there_hardly_matter(weight: str) -> None:
    # Noise would have directions too, and those of W_ih and W_hh would take with them what else lies there.
    adder = Adder(fourier_adder(noise=0.0 if weight in ("W_ih", "W_hh") else 1e-4), ModularAddition(P))
    with removed_from_weight(adder, weight, [1, 8, 14]):
        assert accuracy(adder.model, adder.task) == 1.0
    with removed_from_weight(adder, weight, list(FREQUENCIES)):
        gone = adder.logits().norm() < 1e-9  # then rounding answers, and no better than it does
        assert gone or accuracy(adder.model, adder.task) < 0.1


# Directions


def test_directions_are_those_of_the_frequency_and_rounding_is_none() -> None:
    axes = torch.linalg.qr(normal(9, 9)).Q
    x = wave(11, 3, torch.arange(11)) @ axes[:2] + 5 * wave(11, 4, torch.arange(11)) @ axes[2:4] + axes[5]
    found = token_directions(x, [3])
    assert_close(found @ found.T, axes[:2].T @ axes[:2], **exact)
    assert token_directions(x, [2]).shape == (9, 0)
    assert token_directions(x, [3, 2, 4]).shape == (9, 4)


# Errors


def test_what_cannot_be_removed_is_one_clear_error() -> None:
    adder = rnn()
    with pytest.raises(RemovalSiteError, match="unknown weight 'W_Q': expected 'W_E', 'W_ih', 'W_hh' or 'W_U'"):
        weight_without(adder, "W_Q", [1])
    with pytest.raises(
        RemovalSiteError, match="no W_hh in layer 1: expected a recurrent network and a layer from 0 to 0"
    ):
        weight_without(adder, "W_hh", [1], layer=1)
    with pytest.raises(RemovalSiteError, match="no W_ih in layer 0"):
        weight_without(transformer_adder(), "W_ih", [1])
    with pytest.raises(FamilyError, match="mode 'mean' of W_hh: expected 'zero'"):
        weight_without(adder, "W_hh", [1], mode="mean")
    for weight in WEIGHTS:
        with pytest.raises(FrequencyError, match="frequency 4"):
            weight_without(adder, weight, [4])


def test_a_weight_that_is_made_anew_cannot_be_written_in() -> None:
    model = MLP(FEW)
    scaled = SimpleNamespace(W_E=2 * model.W_E, parameters=model.parameters)
    with pytest.raises(RemovalSiteError, match="made anew"):
        live_weight(scaled, "W_E")
