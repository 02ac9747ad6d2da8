"""Neurons by frequency: the planted ones at their phases; white noise is explained by nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import exact, family_by_hand, normal, random_model
from torch import Tensor
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.errors import FamilyError, FrequencyError, GridError
from analyses.grid import grid_functions
from analyses.neurons import EXPLAINED, cluster_neurons
from analyses.oracle import fourier_adder
from hooked_rnn import ModularAddition

few_examples = settings(max_examples=15, deadline=None, derandomize=True, database=None)
HIDDEN = "blocks.0.hook_hidden"


def turned(x: Tensor, y: Tensor) -> Tensor:
    """How far two phases are apart."""
    return torch.remainder(x - y + math.pi, 2 * math.pi).sub(math.pi).abs()


@given(st.sampled_from([13, 17, 23]), st.floats(0.0, 1e-3), st.data())
@few_examples
def test_the_oracles_neurons_are_found_with_their_frequencies_and_phases(
    p: int, noise: float, data: st.DataObject
) -> None:
    ks = data.draw(st.lists(st.integers(1, p // 2), min_size=1, max_size=3, unique=True))
    counts = data.draw(st.lists(st.sampled_from([16, 24, 32]), min_size=len(ks), max_size=len(ks)))
    offsets = data.draw(st.lists(st.floats(-3.0, 3.0), min_size=len(ks), max_size=len(ks)))
    model = fourier_adder(p, ks, neurons=counts, phases=offsets, noise=noise, check=False)
    found = cluster_neurons(Adder(model, ModularAddition(p)).activation(HIDDEN), p)
    planted = [k for k, n in zip(ks, counts, strict=True) for _ in range(n)]
    assert found.frequency.tolist() == planted
    assert {c.frequency: len(c.neurons) for c in found.clusters} == dict(zip(ks, counts, strict=True))
    assert found.share_above == 1.0
    assert all(c.mean_explained > 0.88 and c.above == len(c.neurons) for c in found.clusters)
    f = torch.cat([o + 2 * math.pi / n * torch.arange(n).double() for n, o in zip(counts, offsets, strict=True)])
    for family, phase in (("a", f), ("b", f), ("sum", 2 * f), ("difference", 0 * f)):
        assert float(turned(found.phases(family), phase).max()) < 0.3, family
    shared = found.overlap(ks)
    assert_close(shared.diagonal(), torch.ones(len(ks)).double(), **exact)
    assert float((shared - torch.eye(len(ks))).max()) < 0.2


def test_noise_is_explained_by_nothing_and_shared_by_all() -> None:
    adder = Adder(random_model(ModularAddition(31)), ModularAddition(31))
    for x in (adder.activation(HIDDEN), normal(31 * 31, 16)):
        found = cluster_neurons(x, 31)
        assert found.share_above == 0.0
        assert float(found.best.max()) < 0.6
    assert float(found.best.max()) < 0.05
    assert float(found.overlap().min()) > 0.5


@pytest.mark.parametrize("p", [6, 7, 8])
def test_explained_is_a_least_squares_fit_of_the_centred_neuron(p: int) -> None:
    x = normal(p * p, 3) + 2.0
    centred = x - x.mean(0)
    for families in (("a", "b", "block"), ("a", "b", "sum", "difference"), ("sum",), ("block",)):
        found = cluster_neurons(x, p, families=families)
        for k in range(1, p // 2 + 1):
            functions = torch.cat([family_by_hand(p, k, family) for family in families], dim=1)
            fitted = functions @ (torch.linalg.pinv(functions) @ centred)
            assert_close(found.explained[:, k - 1], fitted.square().sum(0) / centred.square().sum(0), **exact)


def test_a_neuron_is_explained_by_the_families_that_are_asked_for() -> None:
    x = family_by_hand(11, 2, "sum")[:, :1]
    for families, explained in ((("a", "b", "block"), 1.0), (("sum",), 1.0), (("a", "b"), 0.0), (("difference",), 0.0)):
        found = cluster_neurons(x, 11, families=families)
        assert float(found.explained[0, 1]) == pytest.approx(explained, abs=1e-12)
        assert found.families == families


@given(st.floats(-3.0, 3.0), st.sampled_from(["a", "b", "sum", "difference"]))
@few_examples
def test_phase_and_amplitude_are_those_of_the_cosine(phase: float, family: str) -> None:
    cosine, sine = family_by_hand(11, 3, family).T
    x = 5.0 + 2.0 * (math.cos(phase) * cosine - math.sin(phase) * sine)  # 2 cos(wx + phase)
    found = cluster_neurons(x[:, None], 11)
    assert float(turned(found.phases(family), torch.tensor([phase]))) < 1e-6
    assert float(found.amplitudes(family)) == pytest.approx(2.0)


def test_the_threshold_is_in_the_result_and_decides() -> None:
    a, b = grid_functions(11, [2], "a")[0], grid_functions(11, [4], "b")[0]
    x = torch.stack([2 * a + b, 3 * a + b, b], dim=1)  # 80%, 90%, 100%
    assert EXPLAINED == 0.85
    found = cluster_neurons(x, 11)
    assert (found.threshold, found.share_above) == (0.85, pytest.approx(2 / 3))
    assert cluster_neurons(x, 11, threshold=0.75).share_above == 1.0
    assert [(c.frequency, c.neurons, c.above) for c in found.clusters] == [(2, [0, 1], 1), (4, [2], 1)]
    assert found.clusters[0].mean_explained == pytest.approx(0.85)
    assert found.to_markdown().splitlines()[-2:] == ["| 2 | 2 | 85.0% | 1 |", "| 4 | 1 | 100.0% | 1 |"]
    shares = found.explained[:, [1, 3]]
    by_hand = float((shares[:, 0] * shares[:, 1]).sum() / (shares[:, 0].norm() * shares[:, 1].norm()))
    assert float(found.overlap([2, 4])[0, 1]) == pytest.approx(by_hand)


def test_a_neuron_that_does_not_vary_has_no_frequency_and_counts_as_not_explained() -> None:
    x = torch.cat([torch.full((49, 1), 0.1), torch.zeros(49, 1), family_by_hand(7, 2, "a")[:, :1]], dim=1)
    found = cluster_neurons(x.float(), 7)
    assert found.frequency.tolist() == [0, 0, 2]
    assert found.share_above == pytest.approx(1 / 3)
    assert found.phases("a").isnan().tolist() == [True, True, False]
    assert not found.overlap().isnan().any()


def test_what_does_not_fit_is_one_clear_error() -> None:
    with pytest.raises(GridError, match="a batch of 48"):
        cluster_neurons(normal(48, 2), 7)
    for families in ((), ("a", "a"), ("sum", "a+b"), ("block", "sum"), ("difference", "block")):
        with pytest.raises(FamilyError, match="expected at least one, each once"):
            cluster_neurons(normal(49, 2), 7, families=families)
    with pytest.raises(FamilyError, match="unknown family 'cross'"):
        cluster_neurons(normal(49, 2), 7, families=("cross",))
    with pytest.raises(FamilyError, match="unknown family 'block'"):
        cluster_neurons(normal(49, 2), 7).phases("block")
    with pytest.raises(FrequencyError):
        cluster_neurons(normal(49, 2), 7).overlap([4])
