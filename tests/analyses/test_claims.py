"""Claims: each criterion just met and just missed."""

import math
from collections.abc import Sequence

import pytest
import torch

from analyses.ablation import Ablation, Curve, Spread
from analyses.attribution import Fit, SingularAttribution
from analyses.claims import (
    C1_ACCURACY,
    C2_ENERGY,
    C3_FREQUENCIES,
    C3_SHARED,
    C4_PURITY,
    C5_EXPLAINED,
    C5_SPARSE,
    C6_RELATIVE,
    C7_ALL_REMOVED,
    C7_CONTROL,
    C7_ONE_REMOVED,
    C7_PARTLY_DROP,
    VERDICTS,
    judge_attribution,
    judge_embedding,
    judge_fit,
    judge_generalisation,
    judge_low_rank,
    judge_removal,
    judge_sparsity,
)
from analyses.spectra import KeyFrequencies, Spectrum, key_frequencies


def below(value: float) -> float:
    return math.nextafter(value, -1)


def above(value: float) -> float:
    return math.nextafter(value, 2)


def spectrum(frequencies: Sequence[int], n: int = 40) -> Spectrum:
    """All power on some frequencies, the first of them the strongest."""
    shares = torch.zeros(n, dtype=torch.float64)
    for strength, k in enumerate(reversed(frequencies), start=len(frequencies) + 1):
        shares[k - 1] = strength
    return Spectrum(shares / shares.sum() if frequencies else shares)


def keys(n: int) -> KeyFrequencies:
    return key_frequencies(spectrum(range(1, n + 1)))


def fit(relative: float) -> Fit:
    """A fit of this relative error."""
    return Fit(
        torch.zeros(1, dtype=torch.long), torch.ones(1, 1).double(), torch.tensor([[1 - relative]], dtype=torch.float64)
    )


def purity(value: float) -> SingularAttribution:
    shares = torch.tensor([[value, 0.0]], dtype=torch.float64)
    return SingularAttribution(torch.ones(1, dtype=torch.float64), shares)


def curve(*means: float) -> Curve:
    return {n: Spread(mean, mean, mean) for n, mean in enumerate(means, start=1)}


def ablation(key: Curve, random: Curve) -> Ablation:
    return Ablation(key, {}, random, {})


def test_the_criteria_are_those_fixed_before_the_weights() -> None:
    assert C1_ACCURACY == {"holds": 0.99, "partly": 0.90}
    assert (C2_ENERGY, C3_FREQUENCIES, C3_SHARED) == (0.854, (3, 9), {"holds": 1.0, "partly": 0.5})
    assert C4_PURITY == {"holds": 0.90, "partly": 0.60}
    assert (C5_EXPLAINED, C5_SPARSE, C6_RELATIVE) == ({"holds": 0.85, "partly": 0.50}, 0.25, 1e-2)
    assert (C7_ONE_REMOVED, C7_ALL_REMOVED, C7_CONTROL, C7_PARTLY_DROP) == (0.85, 0.06, 0.85, 0.50)


def test_every_verdict_has_its_words() -> None:
    assert VERDICTS == {"holds": "holds", "partly": "holds partly", "no": "does not hold"}


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [(1.0, "holds"), (0.99, "holds"), (below(0.99), "partly"), (0.90, "partly"), (below(0.90), "no"), (0.0, "no")],
)
def test_c1_by_accuracy(accuracy: float, verdict: str) -> None:
    claim = judge_generalisation(accuracy, "held-out pairs")
    assert (claim.id, claim.holds) == ("C1", verdict)
    assert "held-out pairs" in claim.measured


@pytest.mark.parametrize(
    ("W_E", "W_hh", "verdict"),
    [(0.854, 0.854, "holds"), (0.99, below(0.854), "partly"), (below(0.854), below(0.854), "no")],
)
def test_c2_by_matrix(W_E: float, W_hh: float, verdict: str) -> None:
    energy = {"W_E": W_E, "W_hh": W_hh}
    claim = judge_low_rank(energy, {"W_E": 0.1, "W_hh": 0.2}, components=12)
    assert (claim.id, claim.holds) == ("C2", verdict)
    assert claim.by_part == {name: "holds" if held >= 0.854 else "no" for name, held in energy.items()}
    assert "2K = 12" in claim.definition
    assert "untrained 20%" in claim.measured


def test_c2_does_not_hold_of_no_components() -> None:
    assert judge_low_rank({"W_E": 1.0}, {"W_E": 1.0}, components=0).holds == "no"


@pytest.mark.parametrize(
    ("n", "verdict"), [(0, "no"), (2, "partly"), (3, "holds"), (6, "holds"), (9, "holds"), (10, "partly")]
)
def test_c3_by_number_of_key_frequencies(n: int, verdict: str) -> None:
    key = keys(n)
    assert len(key.frequencies) == n
    claim = judge_sparsity(key, key.spectrum, key.spectrum)
    assert (claim.id, claim.holds) == ("C3", verdict)
    assert claim.by_part["number"] == ("holds" if 3 <= n <= 9 else "no")


@pytest.mark.parametrize(("shared", "verdict"), [(4, "holds"), (3, "partly"), (2, "partly"), (1, "no"), (0, "no")])
def test_c3_by_what_is_shared_with_state_and_output(shared: int, verdict: str) -> None:
    other = spectrum([*range(1, shared + 1), *range(30, 34 - shared)])
    claim = judge_sparsity(keys(4), spectrum([4, 3, 2, 1]), other)
    assert claim.by_part == {"number": "holds", "hidden": "holds", "W_U": verdict}
    assert claim.holds == ("holds" if verdict == "holds" else "partly")
    assert judge_sparsity(keys(4), other, spectrum([1, 2, 3, 4])).by_part["hidden"] == verdict


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.90, "holds"), (below(0.90), "partly"), (0.60, "partly"), (below(0.60), "no")]
)
def test_c4_by_purity(value: float, verdict: str) -> None:
    claim = judge_attribution({"W_E": purity(value), "W_U": purity(value)})
    assert (claim.id, claim.holds) == ("C4", verdict)
    mixed = judge_attribution({"W_E": purity(1.0), "W_U": purity(value)})
    assert mixed.by_part == {"W_E": "holds", "W_U": verdict}
    assert mixed.holds == ("holds" if verdict == "holds" else "partly")


@pytest.mark.parametrize(
    ("explained", "verdict"), [(0.85, "holds"), (below(0.85), "partly"), (0.50, "partly"), (below(0.50), "no")]
)
def test_c5_by_variance_explained(explained: float, verdict: str) -> None:
    claim = judge_embedding(explained, n_key=10, n_frequencies=40)
    assert (claim.id, claim.holds) == ("C5", verdict)


@pytest.mark.parametrize(("n_key", "verdict"), [(0, "no"), (1, "holds"), (10, "holds"), (11, "no")])
def test_c5_is_about_a_sparse_set(n_key: int, verdict: str) -> None:
    assert judge_embedding(1.0, n_key, n_frequencies=40).holds == verdict


MET, MISSED = C6_RELATIVE * (1 - 1e-9), C6_RELATIVE * (1 + 1e-9)
SQUARE_MET, SQUARE_MISSED = (math.sqrt(C6_RELATIVE) * (1 + sign * 1e-9) for sign in (-1, 1))


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ([], "no"),
        ([MET, MET, MET], "holds"),
        ([MET, MISSED, 0.9], "partly"),
        ([SQUARE_MET, SQUARE_MET, 0.9, 0.9], "partly"),
        ([SQUARE_MET, SQUARE_MISSED, 0.9, 0.9], "no"),
        ([SQUARE_MISSED], "no"),
    ],
)
def test_c6_by_relative_error(errors: list[float], verdict: str) -> None:
    claim = judge_fit({k: fit(error) for k, error in enumerate(errors, start=1)})
    assert (claim.id, claim.holds) == ("C6", verdict)
    parts = ["holds" if error <= C6_RELATIVE else "partly" if error**2 <= C6_RELATIVE else "no" for error in errors]
    assert list(claim.by_part.values()) == parts


@pytest.mark.parametrize(
    ("one", "every", "control", "verdict"),
    [
        (0.85, 0.06, 0.85, "holds"),
        (below(0.85), 0.06, 0.85, "partly"),
        (0.85, above(0.06), 0.85, "partly"),
        (0.85, 0.06, below(0.85), "partly"),
        (0.75, 0.25, 0.85, "partly"),
        (0.75, above(0.25), 0.85, "no"),
        (1.0, 1.0, 1.0, "no"),
        (0.03, 0.03, 1.0, "no"),
    ],
)
def test_c7_by_one_all_and_control(one: float, every: float, control: float, verdict: str) -> None:
    removed = ablation(curve(one, 0.5, every), curve(1.0, 1.0, control))
    claim = judge_removal({"W_E": removed})
    assert (claim.id, claim.holds) == ("C7", verdict)
    assert claim.by_part == {"W_E": verdict}


def test_c7_needs_every_site_and_a_control() -> None:
    good = ablation(curve(0.9, 0.0), curve(1.0, 1.0))
    assert judge_removal({"W_E": good, "W_U": good}).holds == "holds"
    assert judge_removal({"W_E": good, "W_U": ablation({}, {})}).holds == "partly"
    assert judge_removal({"W_E": ablation(curve(0.9, 0.0), {})}).holds == "partly"


def test_c7_without_key_frequencies_says_so() -> None:
    claim = judge_removal({site: ablation({}, {}) for site in ("W_E", "hidden", "W_U")})
    assert claim.holds == "no"
    assert "no key frequency" in claim.measured


def test_every_claim_says_what_was_published_and_by_which_definition() -> None:
    good, one = ablation(curve(0.9, 0.0), curve(1.0, 1.0)), keys(4)
    claims = [
        judge_generalisation(1.0, "all pairs"),
        judge_low_rank({"W_E": 1.0}, {"W_E": 0.5}, 8),
        judge_sparsity(one, one.spectrum, one.spectrum),
        judge_attribution({"W_E": purity(1.0)}),
        judge_embedding(1.0, 4, 40),
        judge_fit({1: fit(0.0)}),
        judge_removal({"W_E": good}),
    ]
    assert [claim.id for claim in claims] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    assert {claim.holds for claim in claims} == {"holds"}
    for claim in claims:
        assert all((claim.claim, claim.published, claim.measured, claim.definition))
