"""Restricted and excluded loss: each variant against its formula by hand, and what ties them together."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import FREQUENCIES, P, exact, family_by_hand, fourier_adder, normal, random_model, without_by_hand
from test_adder import MLP, transformer
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.errors import ActivationError, FamilyError, FrequencyError, GridError
from analyses.restricted import VARIANTS, progress_measures, restricted_to_families, restricted_to_trace
from hooked_rnn import ModularAddition

FEW = 7
HIDDEN = "blocks.0.hook_hidden"


def rnn() -> Adder:
    return Adder(random_model(ModularAddition(FEW), bias=True, dtype=torch.float64), ModularAddition(FEW))


def planted() -> Adder:
    return Adder(fourier_adder(), ModularAddition(P))


def trace_by_hand(logits: Tensor, p: int, frequencies: list[int]) -> Tensor:
    """The part of logits along cos(w_k(a+b-c)) of each frequency, by least squares over all a, b and c at once."""
    centered = logits - logits.mean(1, keepdim=True)
    a, b, c = torch.meshgrid(*[torch.arange(p)] * 3, indexing="ij")
    angle = 2 * math.pi / p * (a + b - c).double()
    waves = torch.stack([(k * angle).cos().flatten() for k in frequencies], dim=1)
    return (waves @ (torch.linalg.pinv(waves) @ centered.flatten())).view_as(logits)


@st.composite
def some(draw: st.DrawFn) -> tuple[int, list[int], Tensor]:
    p = draw(st.integers(2, 9))
    frequencies = draw(st.lists(st.integers(1, p // 2), unique=True, min_size=1, max_size=3))
    return p, frequencies, normal(p * p, p, seed=draw(st.integers(0, 99))) + 1


@given(some(), st.sampled_from(["sum", "polynomial"]))
@settings(max_examples=30, deadline=None)
def test_restricted_and_excluded_share_the_logits_out(case: tuple[int, list[int], Tensor], variant: str) -> None:
    p, frequencies, logits = case
    restricted, excluded = restricted_to_families(logits, p, frequencies, variant)
    assert_close(restricted + excluded, logits + logits.mean(0), **exact)
    assert_close(restricted.mean(0), logits.mean(0), **exact)
    # Parseval: they are orthogonal but for the mean that both have.
    power = [(x - logits.mean(0)).square().sum() for x in (restricted, excluded, logits)]
    assert_close(power[0] + power[1], power[2], **exact)
    families = ["sum"] if variant == "sum" else ["a", "b", "block"]
    by_hand = logits
    for family in families:
        by_hand = without_by_hand(by_hand, p, frequencies, family)
    assert_close(excluded, by_hand, **exact)


@given(some())
@settings(max_examples=30, deadline=None)
def test_the_trace_by_hand_and_as_a_part_of_the_sum(case: tuple[int, list[int], Tensor]) -> None:
    p, frequencies, logits = case
    restricted, excluded = restricted_to_trace(logits, p, frequencies)
    assert_close(restricted, trace_by_hand(logits, p, frequencies), **exact)
    assert_close(restricted + excluded, logits - logits.mean(1, keepdim=True), **exact)
    assert_close((restricted * excluded).sum(), torch.zeros(()).double(), **exact)
    of_sum, _ = restricted_to_families(logits, p, frequencies)
    assert_close(restricted_to_trace(of_sum, p, frequencies)[0], restricted, **exact)


@pytest.mark.parametrize("variant", ["sum", "polynomial", "trace"])
def test_losses_are_of_the_pairs_they_are_called_after(variant: str) -> None:
    adder = rnn()
    train, test = adder.task.split(0.3, 0)
    found = progress_measures(adder, [1, 3], variant, train)
    logits = adder.logits()
    pair = (
        restricted_to_trace(logits, FEW, [1, 3])
        if variant == "trace"
        else restricted_to_families(logits, FEW, [1, 3], variant)
    )
    for losses, by_hand in zip((found.plain, found.restricted, found.excluded), (logits, *pair), strict=True):
        assert losses.train == pytest.approx(float(functional.cross_entropy(by_hand[train], adder.labels[train])))
        assert losses.test == pytest.approx(float(functional.cross_entropy(by_hand[test], adder.labels[test])))
        assert losses.all == pytest.approx(float(functional.cross_entropy(by_hand, adder.labels)))
    assert found.restricted != found.excluded
    without_split = progress_measures(adder, [1, 3], variant)
    assert (without_split.excluded.train, without_split.excluded.test) == (None, None)
    assert without_split.excluded.all == found.excluded.all
    everything = progress_measures(adder, [1, 3], variant, torch.arange(FEW**2))
    assert (everything.excluded.train, everything.excluded.test) == (pytest.approx(found.excluded.all), None)


@pytest.mark.parametrize("make", [rnn, lambda: Adder(MLP(FEW), ModularAddition(FEW))])
def test_where_logits_are_affine_in_the_activation_both_places_are_one(make: Any) -> None:
    adder = make()
    name = HIDDEN if adder.model.__class__.__name__ == "HookedRNN" else "hook_hidden"
    of_logits = progress_measures(adder, [1, 3], "sum")
    of_hidden = progress_measures(adder, [1, 3], "activation", hook_name=name)
    assert of_hidden.restricted.all == pytest.approx(of_logits.restricted.all, rel=1e-5)
    assert of_hidden.excluded.all == pytest.approx(of_logits.excluded.all, rel=1e-5)
    without_mean = progress_measures(adder, [1, 3], "activation", hook_name=name, keep_mean=False)
    assert without_mean.excluded == of_hidden.excluded
    assert abs(without_mean.restricted.all - of_hidden.restricted.all) > 1e-3


def test_past_a_residual_stream_they_are_not() -> None:
    adder = Adder(transformer(FEW), ModularAddition(FEW, equals_token=True))
    of_logits = progress_measures(adder, [1, 3], "sum")
    of_hidden = progress_measures(adder, [1, 3], "activation", hook_name="blocks.0.mlp.hook_post")
    assert abs(of_hidden.excluded.all - of_logits.excluded.all) > 1e-7
    at_the_end = progress_measures(adder, [1, 3], "activation", hook_name="blocks.0.hook_resid_post")
    assert at_the_end.excluded.all == pytest.approx(of_logits.excluded.all, rel=1e-5)


# The planted network


def test_the_planted_frequencies_are_all_of_it() -> None:
    found = {v: progress_measures(planted(), FREQUENCIES, v, planted().task.split(0.3, 0)[0]) for v in ("sum", "trace")}
    for measures in found.values():
        assert measures.plain.test < 0.5
        assert measures.restricted.test < measures.plain.test  # the |cos(w(a-b)/2)| about its mean is only in the way
        assert measures.excluded.train > 1.0
    # Its logits are s |cos(w(a-b)/2)| cos(w(a+b-c)): of a family of a+b just the trace, and no linear term.
    assert found["sum"].restricted.all == pytest.approx(found["trace"].restricted.all, rel=0.1)
    restricted, _ = restricted_to_families(planted().logits(), P, [5])
    by_sum = restricted.view(P, P, P)
    mean = float((math.pi * 5 / P * torch.arange(P).double()).cos().abs().mean())
    at_zero = planted_alone().view(P, P, P)[0, 0]  # a = b = 0, where |cos| is one
    assert_close(by_sum[0, 0], mean * at_zero, rtol=0.0, atol=0.05)
    assert_close(by_sum[1, 4], by_sum[5, 0], rtol=0.0, atol=1e-9)


def planted_alone() -> Tensor:
    return Adder(fourier_adder(P, [5], [1.0]), ModularAddition(P)).logits()


def test_random_frequencies_of_the_planted_network_are_none_of_it() -> None:
    for variant in ("sum", "trace", "polynomial"):
        measures = progress_measures(planted(), [1, 8, 14], variant)
        assert measures.excluded.all == pytest.approx(measures.plain.all, rel=0.2)
        assert measures.restricted.all == pytest.approx(math.log(P), rel=0.1)


def test_random_weights_learned_nothing_by_any_frequency() -> None:
    adder = rnn()
    for variant in ("sum", "trace", "polynomial"):
        measures = progress_measures(adder, [1, 3], variant)
        assert measures.restricted.all > 0.8 * math.log(FEW)


def test_sums_by_hand_span_what_is_kept() -> None:
    logits = rnn().logits()
    restricted, _ = restricted_to_families(logits, FEW, [2])
    functions = torch.cat([family_by_hand(FEW, 2, "sum"), torch.ones(FEW**2, 1).double()], 1)
    assert_close(functions @ (torch.linalg.pinv(functions) @ restricted), restricted, **exact)


# Errors


def test_what_cannot_be_measured_is_one_clear_error() -> None:
    adder = rnn()
    with pytest.raises(FamilyError, match="unknown variant 'product': expected 'sum', 'polynomial', 'trace' or"):
        progress_measures(adder, [1], "product")
    with pytest.raises(FamilyError, match="variant 'activation' with hook_name=None"):
        progress_measures(adder, [1], "activation")
    with pytest.raises(FamilyError, match="expected a hook point for 'activation', and none otherwise"):
        progress_measures(adder, [1], "sum", hook_name=HIDDEN)
    with pytest.raises(GridError, match="training pairs from 0 to 49: expected indices from 0 to 48"):
        progress_measures(adder, [1], train=torch.arange(50))
    logits = rnn().logits()
    for operator in (restricted_to_families, restricted_to_trace):
        with pytest.raises(GridError, match="a batch of 48"):
            operator(logits[1:], FEW, [1])
        with pytest.raises(GridError, match="logits of 6 answers: expected 7"):
            operator(logits[:, 1:], FEW, [1])
    with pytest.raises(FamilyError, match="variant 'trace': expected 'sum' or 'polynomial'"):
        restricted_to_families(logits, FEW, [1], "trace")
    for variant in VARIANTS:
        where = HIDDEN if variant == "activation" else None
        with pytest.raises(FrequencyError, match="frequency 4"):
            progress_measures(adder, [4], variant, hook_name=where)
    heads = Adder(transformer(FEW), ModularAddition(FEW, equals_token=True))
    with pytest.raises(ActivationError, match="hook_pattern"):
        progress_measures(heads, [1], "activation", hook_name="blocks.0.attn.hook_pattern")
