"""Ablation: the hook and every site against removal by hand, and controls that are what they are called."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from planted import (
    FREQUENCIES,
    OwnAnswers,
    P,
    accuracy,
    circles,
    exact,
    family_by_hand,
    fourier_adder,
    normal,
    orthonormal_rows,
    random_model,
    unchecked,
    without_by_hand,
)
from torch import Generator, Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from analyses.ablation import (
    CONTROL_DRAWS,
    Part,
    Site,
    Spread,
    ablate,
    equal_power_part,
    frequency_hook,
    numbers_removed,
)
from analyses.adder import Adder
from analyses.errors import ActivationError, FamilyError, FrequencyError, GridError, ModulusError
from analyses.fourier import FourierBasis
from analyses.grid import FAMILIES
from analyses.sites import SITES, sites, unembedded
from hooked_rnn import HookedRNN, ModularAddition, ModularTask

FEW = 7
HIDDEN = "blocks.0.hook_hidden"
TASK = ModularAddition(FEW)
EQUALS = ModularAddition(FEW, equals_token=True)
KINDS: dict[str, tuple[ModularTask, dict[str, Any]]] = {
    "plain": (TASK, {}),
    "equals": (EQUALS, {}),
    "two layers": (TASK, {"n_layers": 2}),
    "biases": (TASK, {"bias": True}),
    "all of it": (EQUALS, {"n_layers": 2, "bias": True, "act_fn": "tanh"}),
}
of_each_kind = pytest.mark.parametrize("kind", KINDS)


def network(kind: str) -> tuple[HookedRNN, ModularTask]:
    """Random weights in float64, and the task of saying what they say."""
    task, fields = KINDS[kind]
    model = random_model(task, dtype=torch.float64, **fields)
    if model.cfg.bias:
        with torch.no_grad():  # no answer is ahead on average, or a network with biases would always say the same
            model.unembed.b_U -= model(task.tokens)[:, -1].mean(0)
    return model, OwnAnswers.of(model, task)


def states(model: HookedRNN, task: ModularTask, edit: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """The last layer's last state in a loop by hand, where every state is edited as it is made: edit(h, layer, t)."""
    hidden = [torch.zeros(1, model.cfg.d_hidden).double()] * model.cfg.n_layers
    act = torch.relu if model.cfg.act_fn == "relu" else torch.tanh
    for t in range(task.n_ctx):
        x = model.W_E[task.tokens[:, t]]
        for layer, block in enumerate(model.blocks):
            biases = block.b_ih + block.b_hh if model.cfg.bias else 0.0
            hidden[layer] = x = edit(act(x @ block.W_ih + hidden[layer] @ block.W_hh + biases), layer, t)
    return hidden[-1]


def hooked_logits(model: HookedRNN, task: ModularTask, name: str, hook: Callable[..., Any]) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(task.tokens, fwd_hooks=[(name, hook)])


def save_hidden(model: HookedRNN, task: ModularTask, *hooks: Callable[..., Any]) -> Tensor:
    """The hidden states after some hooks."""
    with torch.no_grad(), model.hooks([(HIDDEN, hook) for hook in hooks]):
        return model.run_with_cache(task.tokens)[1]["hidden", 0]


# The hook


@of_each_kind
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_hook_is_removal_by_hand_and_going_on_by_hand(kind: str, family: str) -> None:
    model, task = network(kind)
    for layer, position in itertools.product(range(model.cfg.n_layers), range(task.n_ctx)):

        def edit(h: Tensor, at: int, t: int, here: tuple[int, int] = (layer, position)) -> Tensor:
            return without_by_hand(h, FEW, [1, 3], family) if (at, t) == here else h

        hook = frequency_hook(FEW, [1, 3], family, positions=position)
        logits = hooked_logits(model, task, f"blocks.{layer}.hook_hidden", hook)[:, -1]
        assert_close(logits, states(model, task, edit) @ model.W_U + model.b_U, **exact)


def test_by_default_the_hook_takes_the_sum_from_the_last_position() -> None:
    model, task = network("equals")
    expected = hooked_logits(model, task, HIDDEN, frequency_hook(FEW, [2], "sum", positions=2, mode="zero"))
    assert_close(hooked_logits(model, task, HIDDEN, frequency_hook(FEW, [2])), expected, rtol=0.0, atol=0.0)
    assert not torch.allclose(expected, model(task.tokens))


def test_the_family_matters() -> None:
    model, task = network("plain")
    logits = [hooked_logits(model, task, HIDDEN, frequency_hook(FEW, [2], family)) for family in FAMILIES]
    for one, other in itertools.combinations(logits, 2):
        assert not torch.allclose(one, other)


@of_each_kind
def test_earlier_positions_are_untouched(kind: str) -> None:
    model, task = network(kind)
    plain, edited = save_hidden(model, task), save_hidden(model, task, frequency_hook(FEW, [1], "block", positions=1))
    assert torch.equal(edited[:, 0], plain[:, 0])
    assert not torch.allclose(edited[:, 1], plain[:, 1])
    assert_close(edited[:, 1], without_by_hand(plain[:, 1], FEW, [1], "block"), **exact)


def test_a_removal_reaches_the_later_steps() -> None:
    model, task = network("plain")
    plain, edited = save_hidden(model, task), save_hidden(model, task, frequency_hook(FEW, [1], "a", positions=0))
    assert_close(edited[:, 0], without_by_hand(plain[:, 0], FEW, [1], "a"), **exact)
    assert not torch.allclose(edited[:, 1], plain[:, 1])


@pytest.mark.parametrize("positions", [[0, 2], (2, 0), [-3, -1], [0, -1, 2, 2]])
def test_several_positions_are_several_hooks(positions: Sequence[int]) -> None:
    model, task = network("equals")
    one_by_one = [frequency_hook(FEW, [1], "block", positions=t) for t in (0, 2)]
    at_once = save_hidden(model, task, frequency_hook(FEW, [1], "block", positions=positions))
    assert_close(at_once, save_hidden(model, task, *one_by_one), **exact)


@pytest.mark.parametrize("negative", [-1, -2, -3])
def test_negative_positions_count_from_the_end(negative: int) -> None:
    model, task = network("equals")
    expected = hooked_logits(model, task, HIDDEN, frequency_hook(FEW, [1], "block", positions=3 + negative))
    assert torch.equal(hooked_logits(model, task, HIDDEN, frequency_hook(FEW, [1], "block", negative)), expected)


def test_no_position_and_no_frequency_change_nothing() -> None:
    model, task = network("plain")
    plain = model(task.tokens)
    assert_close(hooked_logits(model, task, HIDDEN, frequency_hook(FEW, [1], positions=[])), plain, **exact)
    assert_close(hooked_logits(model, task, HIDDEN, frequency_hook(FEW, [])), plain, **exact)


@pytest.mark.parametrize("name", ["hook_embed", "blocks.0.hook_input", "blocks.0.hook_out", "hook_logits"])
def test_outside_the_loop_the_hook_edits_its_positions_and_no_other(name: str) -> None:
    model, task = network("equals")
    with torch.no_grad():
        plain = model.run_with_cache(task.tokens)[1][name]
        with model.hooks([(name, frequency_hook(FEW, [2], "b", positions=1))]):
            edited = model.run_with_cache(task.tokens)[1][name]
    assert_close(edited[:, 1], without_by_hand(plain[:, 1], FEW, [2], "b"), **exact)
    assert torch.equal(edited[:, 0], plain[:, 0])
    if name != "hook_logits":
        assert torch.equal(edited[:, 2], plain[:, 2])


@pytest.mark.parametrize("kind", ["preact", "recurrent"])
def test_inside_the_loop_the_hook_edits_what_arrives(kind: str) -> None:
    model, task = network("plain")
    name = f"blocks.0.hook_{kind}"
    with torch.no_grad():
        plain = model.run_with_cache(task.tokens)[1][name]
        with model.hooks([(name, frequency_hook(FEW, [2], "a"))]):
            edited = model.run_with_cache(task.tokens)[1][name]
    assert_close(edited[:, 1], without_by_hand(plain[:, 1], FEW, [2], "a"), **exact)
    assert torch.equal(edited[:, 0], plain[:, 0])


def test_the_hook_works_on_any_hook_point_of_transformer_lens() -> None:
    point = HookPoint()
    point.name = "somewhere"
    point.add_hook(frequency_hook(FEW, [1, 2], "difference", positions=[0, -1]))
    x = normal(FEW**2, 3, 4)
    kept = x.clone()
    edited = point(x)
    for position in (0, 2):
        assert_close(edited[:, position], without_by_hand(x[:, position], FEW, [1, 2], "difference"), **exact)
    assert torch.equal(edited[:, 1], x[:, 1])
    assert torch.equal(x, kept)  # what it was given is not written on


def test_the_hook_leaves_nothing_of_the_family_and_all_of_the_rest() -> None:
    model, task = network("plain")
    hidden = save_hidden(model, task, frequency_hook(FEW, [1], "sum"))[:, -1]
    functions = family_by_hand(FEW, 1, "sum")
    assert_close(functions.T @ hidden, torch.zeros(2, hidden.shape[1]).double(), **exact)
    plain = save_hidden(model, task)[:, -1]
    for family, k in (("sum", 2), ("difference", 1), ("a", 1), ("b", 1)):
        other = family_by_hand(FEW, k, family)
        assert_close(other.T @ hidden, other.T @ plain, **exact)


def test_inside_the_loop_the_hook_computes_nothing_at_other_steps() -> None:
    hook, x, point = frequency_hook(FEW, [1], positions=[0, 2]), normal(FEW**2, 3, 4), HookPoint()
    for step, position in ((0, 0), (1, None), (2, 2)):
        point.step = step
        edited = hook(x, hook=point)
        assert (edited is None) == (position is None)
        if edited is not None:
            assert [t for t in range(3) if not torch.equal(edited[:, t], x[:, t])] == [position]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hook_follows_the_dtype(dtype: torch.dtype) -> None:
    model, task = random_model(TASK, dtype=dtype), TASK
    assert hooked_logits(model, task, HIDDEN, frequency_hook(FEW, [1])).dtype == dtype


def test_gradients_flow_through_the_hook() -> None:
    x = normal(FEW**2, 1, 3).requires_grad_()
    point = HookPoint()
    frequency_hook(FEW, [1])(x, hook=point).square().sum().backward()
    assert_close(x.grad, 2 * without_by_hand(x.detach()[:, 0], FEW, [1], "sum").unsqueeze(1), **exact)


@pytest.mark.parametrize("mode", ["median", "Zero", ""])
def test_an_unknown_mode_is_an_error_at_once(mode: str) -> None:
    with pytest.raises(FamilyError, match="unknown mode"):
        frequency_hook(FEW, [1], mode=mode)


def test_an_unknown_family_is_an_error_at_once() -> None:
    with pytest.raises(FamilyError, match="unknown family 'product'"):
        frequency_hook(FEW, [1], family="product")


@pytest.mark.parametrize("frequencies", [[0], [4], [1, 1], [-1]])
def test_a_frequency_that_does_not_exist_is_an_error_at_once(frequencies: list[int]) -> None:
    with pytest.raises(FrequencyError):
        frequency_hook(FEW, frequencies)


def test_an_impossible_modulus_is_an_error_at_once() -> None:
    with pytest.raises(ModulusError):
        frequency_hook(1, [1])


@pytest.mark.parametrize("chosen", [slice(0, 48), slice(0, 7), slice(0, 1)])
def test_a_batch_that_is_not_the_full_grid_is_an_error(chosen: slice) -> None:
    model, task = network("plain")
    with pytest.raises(GridError, match="expected the full grid of p\\*p = 49 pairs"):
        model.run_with_hooks(task.tokens[chosen], fwd_hooks=[(HIDDEN, frequency_hook(FEW, [1]))])


@pytest.mark.parametrize(("name", "shape"), [("attn.hook_pattern", (49, 3, 2, 2)), ("somewhere", (49,))])
def test_an_activation_without_positions_is_an_error(name: str, shape: tuple[int, ...]) -> None:
    point = HookPoint()
    point.name = name
    point.add_hook(frequency_hook(FEW, [1]))
    with unchecked(), pytest.raises(ActivationError, match=rf"at {name}: expected \[batch, pos, d\]"):
        point(normal(*shape))


@pytest.mark.parametrize("position", [2, -3, 100])
@pytest.mark.parametrize("name", ["hook_embed", HIDDEN])
def test_a_position_that_the_activation_does_not_have_is_an_error(position: int, name: str) -> None:
    model, task = network("plain")
    hook = frequency_hook(FEW, [1], positions=[0, position])
    with pytest.raises(FamilyError, match=f"position {position}: expected -2 to 1 at {name}"):
        model.run_with_hooks(task.tokens, fwd_hooks=[(name, hook)])


# The sites


@of_each_kind
@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_without_is_the_value_less_its_part_at_every_site(kind: str, site: str) -> None:
    model, task = network(kind)
    place = sites(Adder(model, task))[site]
    assert place.accuracy_less(place.part([])) == 1.0
    found = set()
    for subset in ([1], [2, 3], [3, 1, 2]):
        assert place.accuracy_without(subset) == place.accuracy_less(place.part(subset))
        found.add(place.accuracy_without(subset))
    assert min(found) < 1.0  # the control: these removals do something


@of_each_kind
@torch.no_grad()
def test_w_e_without_is_a_model_whose_embedding_was_edited(kind: str) -> None:
    model, task = network(kind)
    edited = copy.deepcopy(model)
    edited.embed.W_E[:FEW] -= circles_of(model.W_E[:FEW], [1, 3])
    assert sites(Adder(model, task))["W_E"].accuracy_without([1, 3]) == accuracy(edited, task) < 1.0
    assert torch.equal(edited.W_E[FEW:], model.W_E[FEW:])  # the '=' token stays


@of_each_kind
@torch.no_grad()
def test_w_u_without_is_a_model_whose_unembedding_was_edited(kind: str) -> None:
    model, task = network(kind)
    edited = copy.deepcopy(model)
    edited.unembed.W_U -= circles_of(model.W_U.T, [1, 3]).T
    assert sites(Adder(model, task))["W_U"].accuracy_without([1, 3]) == accuracy(edited, task) < 1.0


@of_each_kind
@torch.no_grad()
def test_hidden_without_is_the_hook_over_whole_sequences(kind: str) -> None:
    model, task = network(kind)
    name = f"blocks.{model.cfg.n_layers - 1}.hook_hidden"
    logits = hooked_logits(model, task, name, frequency_hook(FEW, [1, 3]))[:, -1]
    agreement = float((logits.argmax(-1) == task.labels).double().mean())
    assert sites(Adder(model, task))["hidden"].accuracy_without([1, 3]) == agreement < 1.0


@of_each_kind
def test_the_last_hidden_state_is_that_of_a_loop_by_hand(kind: str) -> None:
    model, task = network(kind)
    assert_close(unembedded(Adder(model, task)), states(model, task, lambda h, layer, t: h), **exact)


def circles_of(x: Tensor, frequencies: Sequence[int]) -> Tensor:
    """The part of x [p, d] that these frequencies fit, by least squares."""
    functions = circles(len(x), frequencies, [1.0] * len(frequencies))
    return functions @ (torch.linalg.pinv(functions) @ x)


@pytest.mark.parametrize("site", ["W_E", "W_U"])
def test_removing_all_planted_frequencies_destroys_and_removing_others_does_not(site: str) -> None:
    place = sites(Adder(fourier_adder(noise=1e-3), ModularAddition(P)))[site]
    others = [k for k in FourierBasis(P).frequencies if k not in FREQUENCIES]
    assert place.accuracy_without(list(FREQUENCIES)) < 0.06
    assert place.accuracy_without(FREQUENCIES[:1]) > 0.95
    assert place.accuracy_without(others) == 1.0
    assert place.accuracy_without([]) == 1.0


def test_removing_the_planted_sums_from_the_state_hurts_and_removing_others_does_not() -> None:
    place = sites(Adder(fourier_adder(noise=1e-3), ModularAddition(P)))["hidden"]
    others = [k for k in FourierBasis(P).frequencies if k not in FREQUENCIES]
    # Not to chance: the state holds |cos(w(a-b)/2)| cos(w(a+b)), of which the family "sum" is the mean over a-b alone.
    assert place.accuracy_without(list(FREQUENCIES)) < 0.3
    assert place.accuracy_without(others[:3]) == 1.0


# Numbers, subsets and controls


@pytest.mark.parametrize(
    ("n_key", "numbers"),
    [(0, []), (1, [1]), (3, [1, 2, 3]), (6, [1, 2, 3, 4, 5, 6]), (7, [1, 2, 3, 4, 5, 6, 7]), (8, [*range(1, 7), 8])],
)
def test_one_to_six_are_removed_and_all(n_key: int, numbers: list[int]) -> None:
    assert numbers_removed(list(range(1, n_key + 1))) == numbers


def recording_site(p: int = 23) -> tuple[Site, list[tuple[int, ...]], list[Tensor]]:
    """A site that writes down what was asked of it: whole frequencies removed, and other parts removed.

    All frequencies of its value are equally strong. It is half as accurate for each that is gone.
    """
    removed: list[tuple[int, ...]] = []
    parts: list[Tensor] = []
    basis = FourierBasis(p)
    value = circles(p, basis.frequencies, [1.0] * (p // 2)) @ orthonormal_rows(p - 1, p - 1)

    def accuracy_without(frequencies: Sequence[int]) -> float:
        removed.append(tuple(frequencies))
        return 0.5 ** len(frequencies)

    def accuracy_less(factors: Part) -> float:
        part = factors.tensor()
        gone = [k for k in basis.frequencies if part.square().sum() > 0 and basis.power(part)[k] > p - 1e-6]
        if torch.allclose(part, basis.keep(value, gone)):
            return accuracy_without(gone)
        parts.append(part)
        return 0.75

    def part_of(frequencies: Sequence[int]) -> Part:
        return Part(basis.keep(value, frequencies), torch.eye(p - 1, dtype=value.dtype))

    return Site(value, part_of, accuracy_less, accuracy_without), removed, parts


@pytest.mark.parametrize("by_share", [[4], [7, 2, 5], [6, 5, 4, 3, 2, 1], [8, 1, 7, 2, 6, 3, 5, 4]])
def test_every_subset_of_the_strongest_is_removed_once_and_all_together(by_share: list[int]) -> None:
    site, _, _ = recording_site()
    found = ablate(site, by_share, 23)
    strongest = by_share[:6]
    subsets = [s for n in range(1, len(strongest) + 1) for s in itertools.combinations(strongest, n)]
    subsets += [tuple(by_share)] * (len(by_share) > 6)
    assert list(found.subsets) == subsets
    assert {n: spread.mean for n, spread in found.key.items()} == {n: 0.5**n for n in numbers_removed(by_share)}
    assert all(found.subsets[subset] == 0.5 ** len(subset) for subset in subsets)


def test_controls_take_as_many_others_and_no_key_frequency() -> None:
    site, removed, _ = recording_site()
    by_share = [8, 1, 7]
    found = ablate(site, by_share, 23)
    controls = [ks for ks in removed if ks not in found.subsets]
    assert sorted(map(len, controls)) == [n for n in (1, 2, 3) for _ in range(CONTROL_DRAWS)]
    assert not set(by_share) & {k for ks in controls for k in ks}
    assert all(len(set(ks)) == len(ks) for ks in controls)
    assert len(set(controls)) > CONTROL_DRAWS  # drawn, not one and the same
    assert list(found.random) == [1, 2, 3]


def test_there_is_no_control_of_more_others_than_there_are() -> None:
    site, _, _ = recording_site()
    by_share = [8, 1, 7, 2, 6, 3, 5]  # of 11 frequencies, 4 are others
    found = ablate(site, by_share, 23)
    assert list(found.random) == [1, 2, 3, 4]
    assert list(found.key) == list(found.equal_power) == [1, 2, 3, 4, 5, 6, 7]


def test_the_equal_power_control_takes_the_power_of_as_many_key_frequencies() -> None:
    site, _, parts = recording_site()
    ablate(site, [8, 1, 7], 23)
    of_one = 23.0  # cos^2 + sin^2 of every number
    powers = [float(site.value.square().sum() - (site.value - part).square().sum()) for part in parts]
    assert powers == pytest.approx([n * of_one for n in (1, 2, 3) for _ in range(CONTROL_DRAWS)])


def test_ablation_is_seeded_and_touches_no_global_random_state() -> None:
    before = torch.random.get_rng_state()
    model, task = fourier_adder(11, [1, 3], [1.0, 0.8], noise=0.05), ModularAddition(11)
    site = sites(Adder(model, task))["W_E"]
    found = ablate(site, [1, 3], 11, seed=5)
    assert ablate(site, [1, 3], 11, seed=5) == found
    assert ablate(site, [1, 3], 11, seed=6) != found
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_ticks_once_for_each_number_removed() -> None:
    for by_share in ([], [1], [8, 1, 7]):
        ticks: list[None] = []
        ablate(recording_site()[0], by_share, 23, tick=lambda ticks=ticks: ticks.append(None))
        assert len(ticks) == len(numbers_removed(by_share))


def test_ablating_no_key_frequency_removes_nothing() -> None:
    site, removed, parts = recording_site()
    found = ablate(site, [], 23)
    assert (found.key, found.subsets, found.random, found.equal_power) == ({}, {}, {}, {})
    assert (removed, parts) == ([], [])


def test_a_spread_is_mean_least_and_most() -> None:
    assert Spread.of([0.5, 0.25, 0.75]) == Spread(0.5, 0.25, 0.75)


# Equal power


def part(x: Tensor, power: float, seed: int = 0) -> Tensor:
    return equal_power_part(x, power, Generator().manual_seed(seed)).tensor()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(31, 8), (8, 31)])
def test_without_the_part_exactly_the_power_asked_for_is_gone(share: float, shape: tuple[int, int]) -> None:
    x = normal(*shape)
    power = share * float((x - x.mean(0)).square().sum())
    left = float((x - part(x, power)).square().sum())
    assert float(x.square().sum()) - left == pytest.approx(power, abs=1e-9)


def test_the_part_is_no_more_than_there_is() -> None:
    x = normal(31, 8)
    assert_close(part(x, 1e9), x - x.mean(0), **exact)


def test_the_columns_means_stay() -> None:
    x = normal(31, 8) + 3
    assert_close((x - part(x, 50.0)).mean(0), x.mean(0), **exact)


def test_the_part_is_whole_directions_and_a_share_of_one() -> None:
    x = normal(31, 8)
    centered = x - x.mean(0)
    taken = torch.linalg.lstsq(centered, part(x, 0.4 * float(centered.square().sum()))).solution
    assert_close(taken, taken.T, **exact)
    shares = torch.linalg.eigvalsh(taken)
    fractions = shares[(shares > 1e-9) & (shares < 1 - 1e-9)]
    assert len(fractions) <= 1
    assert 1 < int((shares >= 1 - 1e-9).sum()) < 7


def test_directions_are_random_and_seeded() -> None:
    x = normal(31, 8)
    assert torch.equal(part(x, 50.0, seed=1), part(x, 50.0, seed=1))
    assert not torch.allclose(part(x, 50.0, seed=1), part(x, 50.0, seed=2))


def test_a_constant_has_no_part_and_gives_no_nan() -> None:
    assert torch.equal(part(torch.ones(5, 3), 1.0), torch.zeros(5, 3))


def test_the_part_follows_the_dtype() -> None:
    assert part(normal(31, 8).float(), 1.0).dtype == torch.float32
