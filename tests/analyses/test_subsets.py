"""The lattice of removals: every subset by another way, Shapley's axioms, and the planted network."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import FREQUENCIES, P, exact, fourier_adder, normal, random_model
from test_adder import MLP, transformer
from test_weight_removal import contributions
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from analyses.ablation import Spread, frequency_hook
from analyses.adder import Adder
from analyses.errors import FamilyError, FrequencyError
from analyses.sites import sites
from analyses.subsets import Lattice, removal_lattice, shapley_values, sums
from analyses.weight_removal import removed_from_weight
from hooked_rnn import ModularAddition, ModularTask
from hooked_rnn.errors import UnknownHookPointError

FEW = 7
TASKS: dict[str, ModularTask] = {
    "rnn": ModularAddition(FEW),
    "two layers, =": ModularAddition(FEW, equals_token=True),
    "transformer": ModularAddition(FEW, equals_token=True),
    "mlp": ModularAddition(FEW),
}
HOOKS = {
    "rnn": "blocks.0.hook_hidden",
    "two layers, =": "blocks.1.hook_hidden",
    "transformer": "blocks.0.mlp.hook_post",
    "mlp": "hook_hidden",
}


def adder(kind: str) -> Adder:
    task = TASKS[kind]
    if kind == "transformer":
        return Adder(transformer(FEW), task)
    if kind == "mlp":
        return Adder(MLP(FEW), task)
    layers = 2 if kind == "two layers, =" else 1
    return Adder(random_model(task, bias=True, n_layers=layers, dtype=torch.float64), task)


def scores(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    return float((logits.argmax(-1) == labels).double().mean()), float(functional.cross_entropy(logits, labels))


def one_at_a_time(subject: Adder, removed: list[int], site: str, mode: str) -> Tensor:
    if site in ("W_E", "W_U"):
        with removed_from_weight(subject, site, removed, mode=mode, seed=2):
            return subject.logits()
    hook = frequency_hook(FEW, removed, "sum", mode=mode, seed=2)
    if site != "logits":
        return subject.logits([(site, hook)])
    edited = hook(subject.logits(), hook=type("Point", (), {"name": "logits"}))
    assert isinstance(edited, Tensor)
    return edited


@pytest.mark.parametrize("mode", ["zero", "resample"])
@pytest.mark.parametrize("site", ["W_E", "W_U", "logits", "hook"])
@pytest.mark.parametrize("kind", TASKS)
def test_every_subset_is_what_removing_it_alone_gives(kind: str, site: str, mode: str) -> None:
    subject, frequencies = adder(kind), [3, 1, 2]
    site = HOOKS[kind] if site == "hook" else site
    found = removal_lattice(subject, frequencies, site, mode=mode, seed=2, control=False)
    assert found.control is None
    assert found.frequencies == (3, 1, 2)
    different = set()
    for n in range(4):
        for removed in itertools.combinations(frequencies, n):
            accuracy, loss = scores(one_at_a_time(subject, list(removed), site, mode), subject.labels)
            i = found.index(removed)
            assert float(found.loss[i]) == pytest.approx(loss, rel=1e-4)
            if (
                site != "W_U" or n < 3
            ):  # without all of W_U's every answer has the same logit, and argmax is of rounding
                assert float(found.accuracy[i]) == pytest.approx(accuracy, abs=1.5 / FEW**2)  # ties, in float32
            different.add(round(loss, 9))
    assert len(different) == 8


def test_at_w_e_the_numbers_are_those_of_the_report() -> None:
    model, task = fourier_adder(noise=0.01), ModularAddition(P)
    found = removal_lattice(Adder(model, task), FREQUENCIES, "W_E", control=False)
    place = sites(Adder(model, task))["W_E"]
    for n in range(4):
        for removed in itertools.combinations(FREQUENCIES, n):
            assert float(found.accuracy[found.index(removed)]) == place.accuracy_without(removed)


def test_hooks_of_the_users_own_are_heeded_at_w_e() -> None:
    subject = adder("rnn")
    plain = removal_lattice(subject, [1, 2], "W_E", control=False)
    zero = frequency_hook(FEW, [3], "block")
    with subject.model.hooks(fwd_hooks=[("blocks.0.hook_hidden", zero)]):
        hooked = removal_lattice(subject, [1, 2], "W_E", control=False)
        with removed_from_weight(subject, "W_E", [2]):
            assert float(hooked.loss[2]) == pytest.approx(scores(subject.logits(), subject.labels)[1])
    assert not torch.allclose(hooked.loss, plain.loss)


# The walk


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_the_walk_meets_every_subset_once(n: int) -> None:
    whole, parts = normal(4, 3), [normal(4, 3, seed=i + 1) for i in range(n)]
    met = {}
    for subset, left in sums(whole, parts):
        assert subset not in met
        met[subset] = left.clone()
    assert sorted(met) == list(range(2**n))
    for subset, left in met.items():
        assert_close(left, whole - sum(part for i, part in enumerate(parts) if subset >> i & 1), **exact)
    assert_close(whole, normal(4, 3), **exact)  # nothing is written over


def test_no_rounding_gathers_over_a_thousand_subsets() -> None:
    whole, parts = normal(5, 4).float(), [normal(5, 4, seed=i + 1).float() for i in range(10)]
    last = max(sums(whole, parts), key=lambda met: met[0])[1]
    expected = whole
    for part in parts:
        expected = expected - part
    assert torch.equal(last, expected)


# Shapley


def by_orders(values: Tensor, n: int) -> list[float]:
    """The mean gain of each player over all orders of coming in."""
    gains = [0.0] * n
    for order in itertools.permutations(range(n)):
        come = 0
        for i in order:
            gains[i] += float(values[come | 1 << i] - values[come]) / math.factorial(n)
            come |= 1 << i
    return gains


games = st.integers(0, 5).flatmap(
    lambda n: st.lists(st.floats(-10, 10), min_size=2**n, max_size=2**n).map(
        lambda values: torch.tensor(values, dtype=torch.float64)
    )
)


@given(games)
@settings(max_examples=40, deadline=None)
def test_shapley_values_are_mean_gains_and_share_out_all_that_there_is(values: Tensor) -> None:
    n = len(values).bit_length() - 1
    found = shapley_values(values)
    assert found.tolist() == pytest.approx(by_orders(values, n), abs=1e-9)
    assert float(found.sum()) == pytest.approx(float(values[-1] - values[0]), abs=1e-9)


@given(games, st.integers(0, 4), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_shapley_axioms(values: Tensor, i: int, worth: float) -> None:
    n = len(values).bit_length() - 1
    subsets = torch.arange(len(values))
    # Additivity.
    other = values.flip(0) ** 2
    assert_close(shapley_values(values + other), shapley_values(values) + shapley_values(other), **exact)
    if i >= n:
        return
    # A dummy adds the same to whatever it joins: its value is that.
    dummy = values[subsets & ~(1 << i)] + worth * (subsets >> i & 1).double()
    assert float(shapley_values(dummy)[i]) == pytest.approx(worth, abs=1e-9)
    # Symmetry: who can be swapped gets as much.
    j = (i + 1) % n
    swapped = subsets & ~(1 << i) & ~(1 << j) | (subsets >> i & 1) << j | (subsets >> j & 1) << i
    even = shapley_values(values + values[swapped])
    assert float(even[i]) == pytest.approx(float(even[j]), abs=1e-9)


def test_a_number_of_values_that_is_no_power_of_two_is_an_error() -> None:
    for n in (0, 3, 6):
        with pytest.raises(FamilyError, match=f"{n} values: expected one for each subset"):
            shapley_values(torch.zeros(n))


# The planted network


@pytest.mark.parametrize("site", ["W_E", "W_U"])
def test_planted_frequencies_by_their_closed_form(site: str) -> None:
    task = ModularAddition(P)
    found = removal_lattice(Adder(fourier_adder(), task), FREQUENCIES, site, seed=3)
    every = {k: contributions([k]) for k in FREQUENCIES}
    for n in range(3):  # of all three there are no logits to speak of
        for removed in itertools.combinations(FREQUENCIES, n):
            accuracy, loss = scores(sum(every[k] for k in FREQUENCIES if k not in removed), task.labels)
            assert float(found.accuracy[found.index(removed)]) == accuracy
            assert float(found.loss[found.index(removed)]) == pytest.approx(loss, rel=1e-6)
    assert float(found.loss[-1]) == pytest.approx(math.log(P), rel=1e-6)
    gains = found.shapley("loss")
    assert list(gains) == list(FREQUENCIES)
    assert sum(gains.values()) == pytest.approx(float(found.loss[-1] - found.loss[0]))
    assert gains[5] > gains[12] > gains[3] > 0.1  # the strongest first
    assert found.control is not None
    assert not set(found.control.frequencies) & set(FREQUENCIES)
    assert found.control.by_number_removed()[3] == Spread(1.0, 1.0, 1.0)
    assert max(map(abs, found.control.shapley("loss").values())) < 1e-2


@pytest.mark.parametrize("site", ["W_E", "W_U", "logits", "blocks.0.hook_hidden"])
def test_of_random_weights_every_subset_is_at_chance(site: str) -> None:
    task = ModularAddition(P)
    found = removal_lattice(Adder(random_model(task), task), FREQUENCIES, site)
    assert found.control is not None
    for lattice in (found, found.control):
        assert float(lattice.accuracy.max()) < 0.08
        assert max(map(abs, lattice.shapley().values())) < 0.02


def test_by_number_removed() -> None:
    accuracy = torch.tensor([1.0, 0.5, 0.75, 0.25], dtype=torch.float64)
    lattice = Lattice("W_E", (4, 2), accuracy, 1 - accuracy)
    assert lattice.by_number_removed() == {
        0: Spread(1.0, 1.0, 1.0),
        1: Spread(0.625, 0.5, 0.75),
        2: Spread(0.25, 0.25, 0.25),
    }
    assert lattice.by_number_removed("loss")[1] == Spread(0.375, 0.25, 0.5)
    assert lattice.shapley() == pytest.approx({4: -0.5, 2: -0.25})
    assert [lattice.index(s) for s in ([], [4], [2], [2, 4])] == [0, 1, 2, 3]


def test_many_frequencies_at_once() -> None:
    subject = Adder(fourier_adder(), ModularAddition(P))
    found = removal_lattice(subject, range(1, 11), "W_U", control=False)
    assert len(found.loss) == 1024
    with removed_from_weight(subject, "W_U", range(1, 11)):
        assert float(found.loss[-1]) == pytest.approx(scores(subject.logits(), subject.labels)[1])


# Controls, progress, randomness


def test_the_control_is_seeded_matched_and_can_be_told_what_not_to_draw() -> None:
    subject, before = Adder(fourier_adder(), ModularAddition(P)), torch.random.get_rng_state()

    def drawn(seed: int, *others: int) -> tuple[int, ...]:
        found = removal_lattice(subject, [5, 12], "W_U", seed=seed, not_in_control=others).control
        assert found is not None
        return found.frequencies

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(6)}) > 3
    assert set(drawn(1, *range(3, 16))) == {1, 2}
    assert removal_lattice(subject, [5, 12], "W_U", not_in_control=range(2, 16)).control is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_ticks_once_for_each_subset() -> None:
    ticks: list[None] = []
    tick: Callable[[], object] = lambda: ticks.append(None)  # noqa: E731
    removal_lattice(adder("rnn"), [1, 2], "W_E", control=False, tick=tick)
    assert len(ticks) == 4


def test_no_frequency_leaves_one_subset() -> None:
    found = removal_lattice(adder("rnn"), [], "logits")
    assert (len(found.loss), found.shapley(), list(found.by_number_removed())) == (1, {}, [0])


# Errors


def test_what_cannot_be_removed_is_one_clear_error() -> None:
    subject = adder("rnn")
    for site in ("W_E", "W_U", "logits", "blocks.0.hook_hidden"):
        with pytest.raises(FrequencyError, match="frequency 4"):
            removal_lattice(subject, [4], site)
    with pytest.raises(FamilyError, match="unknown mode"):
        removal_lattice(subject, [1], mode="half")
    with pytest.raises(FamilyError, match="unknown family"):
        removal_lattice(subject, [1], "logits", family="product")
    with pytest.raises(UnknownHookPointError, match="hook_hiden"):
        removal_lattice(subject, [1], "blocks.0.hook_hiden")
    with pytest.raises(FrequencyError, match="21 frequencies have"):
        removal_lattice(Adder(random_model(ModularAddition(43)), ModularAddition(43)), range(1, 22))
    found = removal_lattice(subject, [1, 2], "W_U", control=False)
    with pytest.raises(FrequencyError, match=r"frequencies \[3\]: expected some of \[1, 2\]"):
        found.index([3])
    with pytest.raises(FrequencyError, match="expected each of them once"):
        found.index([1, 1])
    with pytest.raises(FamilyError, match="unknown value 'margin': expected 'accuracy' or 'loss'"):
        found.shapley("margin")
