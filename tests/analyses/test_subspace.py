"""Fitted subspaces: found where planted, nowhere in noise, and on held-out pairs what the grid operator is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import (
    FREQUENCIES,
    P,
    exact,
    family_by_hand,
    fourier_adder,
    normal,
    orthonormal_rows,
    pairs,
    random_model,
    unchecked,
)
from test_adder import MLP, transformer
from test_weight_removal import contributions
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from analyses.ablation import frequency_hook
from analyses.adder import Adder
from analyses.errors import ActivationError, FamilyError, FrequencyError, ModulusError
from analyses.grid import FAMILIES
from analyses.removal import MODES
from analyses.subspace import Subspace, fit_subspace, leave_out, subspace_hook
from hooked_rnn import ModularAddition

TASK = ModularAddition(P)
AB = torch.stack(pairs(P), 1)


def halves(seed: int = 0, p: int = P) -> tuple[Tensor, Tensor]:
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    return order[: len(order) // 2], order[len(order) // 2 :]


def edit(subspace: Subspace, x: Tensor, mode: str = "zero") -> Tensor:
    edited = subspace_hook(subspace, mode=mode)(x, hook=HookPoint())
    assert isinstance(edited, Tensor)
    return edited


@given(st.integers(3, 9), st.sampled_from(FAMILIES), st.sampled_from(["all", "some"]), st.integers(0, 99), st.data())
@settings(max_examples=40, deadline=None)
def test_planted_functions_are_found_and_only_they(
    p: int, family: str, which: str, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, p // 2))
    functions = family_by_hand(p, k, family)
    functions = functions[:, functions.norm(dim=0) > 1e-6]
    rank = int(torch.linalg.matrix_rank(functions))
    axes = orthonormal_rows(12, 12, seed=seed)
    x = functions @ axes[: functions.shape[1]] + 3 * axes[-1]
    rows = (
        torch.arange(p * p)
        if which == "all"
        else torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))[: max(6, p * p * 2 // 3)]
    )
    ab = torch.stack(pairs(p), 1)
    others = [family_by_hand(p, other, family) for other in range(1, p // 2 + 1) if other != k]
    beside = torch.cat([torch.ones(p * p, 1).double(), *others], dim=1)
    ranks = [int(torch.linalg.matrix_rank(f[rows])) for f in (torch.cat([functions, beside], 1), beside)]
    if ranks[0] < ranks[1] + rank:  # seldom, where few pairs leave out a number, say
        with pytest.raises(ActivationError, match="do not tell the functions of"):
            fit_subspace(x[rows], ab[rows], p, [k], family)
        return
    found = fit_subspace(x[rows], ab[rows], p, [k], family)
    assert found.directions.shape[1] == rank
    assert_close(edit(found, x), (3 * axes[-1]).expand_as(x), **exact)  # the constant is in another direction
    assert_close(edit(found, x, "mean"), (3 * axes[-1]).expand_as(x), **exact)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(5))
def test_white_noise_has_no_directions(family: str, seed: int) -> None:
    rows, _ = halves(seed)
    noise = normal(P * P, 24, seed=seed)[rows]
    found = fit_subspace(noise, AB[rows], P, [1, 4, 9], family)
    assert found.directions.shape == (24, 0)
    assert torch.equal(edit(found, noise), noise)
    everything = fit_subspace(noise, AB[rows], P, [1, 4, 9], family, chance=0.0)
    assert everything.directions.shape[1] == len(everything.strengths) > 0  # the control: there is something to refuse


@pytest.mark.parametrize("mode", MODES)
def test_the_hook_by_hand(mode: str) -> None:
    x = normal(40, 6) + 1
    Q, constant = orthonormal_rows(2, 6).T, normal(6, seed=3)
    edited = edit(Subspace(Q, constant, torch.ones(2).double()), x, mode)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    inside = {"zero": torch.zeros(40, 2).double(), "mean": (constant @ Q).expand(40, 2), "resample": (x @ Q)[order]}
    assert_close(edited @ Q, inside[mode], **exact)
    assert_close(edited - edited @ Q @ Q.T, x - x @ Q @ Q.T, **exact)  # all else stays


# The planted network: fitted on half of the pairs, applied to the others


@pytest.mark.parametrize("mode", ["zero", "mean"])
@pytest.mark.parametrize(("position", "family"), [(0, "a"), (1, "b")])
def test_at_the_embedding_it_acts_on_held_out_pairs_as_the_grid_operator(position: int, family: str, mode: str) -> None:
    adder = Adder(fourier_adder(), TASK)
    fitted, others = halves()
    x = adder.activation("hook_embed", position)
    subspace = fit_subspace(x[fitted], AB[fitted], P, [12], family)
    assert subspace.directions.shape == (16, 2)
    hook = subspace_hook(subspace, position, mode)
    of_grid = adder.logits([("hook_embed", frequency_hook(P, [12], family, position))])[others]
    assert_close(adder.logits([("hook_embed", hook)], TASK.tokens[others]), of_grid, rtol=0.0, atol=1e-8)
    # The control: without the other frequencies beside it the fit takes some of them for what was asked for.
    leaky = fit_subspace(x[fitted], AB[fitted], P, [12], family, beside=())
    of_leaky = adder.logits([("hook_embed", subspace_hook(leaky, position, mode))], TASK.tokens[others])
    assert float((of_leaky - of_grid).abs().max()) > 0.1


@pytest.mark.parametrize("removed", [[5], [3, 12], list(FREQUENCIES)])
def test_at_the_last_state_a_frequency_takes_its_term_of_the_logits_with_it(removed: list[int]) -> None:
    adder, name = Adder(fourier_adder(), TASK), "blocks.0.hook_hidden"
    x = adder.activation(name)
    rest = contributions([k for k in FREQUENCIES if k not in removed])
    gone = contributions(list(removed))
    fitted, others = halves()
    for rows, error in ((torch.arange(P * P), 0.01), (fitted, 0.35)):
        hook = subspace_hook(fit_subspace(x[rows], AB[rows], P, removed, beside=("a", "b", "sum")))
        logits = adder.logits([(name, hook)], TASK.tokens[others])
        assert float((logits - rest[others]).norm() / gone[others].norm()) < error
    # The grid operator is another: it takes the mean over a-b of |cos(w(a-b)/2)| cos(w(a+b)), and leaves what is about it.
    of_grid = adder.logits([(name, frequency_hook(P, removed))])[others]
    assert float((of_grid - rest[others]).norm() / gone[others].norm()) > 0.4


def test_frequencies_that_are_not_there_have_no_directions() -> None:
    adder = Adder(fourier_adder(), TASK)
    fitted, others = halves()
    for name, family in (("hook_embed", "a"), ("blocks.0.hook_hidden", "sum")):
        x = adder.activation(name, 0 if name == "hook_embed" else -1)
        subspace = fit_subspace(x[fitted], AB[fitted], P, [1, 8, 14], family)
        assert subspace.directions.shape[1] == 0
        logits = adder.logits([(name, subspace_hook(subspace, [0, 1]))], TASK.tokens[others])
        assert_close(logits, adder.logits()[others], **exact)


def test_leaving_out_half_of_the_pairs() -> None:
    x = Adder(fourier_adder(), TASK).activation("hook_embed", 0)
    planted = leave_out(x, AB, P, FREQUENCIES, "a")
    assert planted.rank == 6
    assert planted.removed == pytest.approx(1.0)
    random = leave_out(x, AB, P, [1, 8, 14], "a")
    assert (random.removed, random.collateral, random.rank) == (0.0, 0.0, 0)
    one = leave_out(x, AB, P, [5], "a")
    assert one.removed > 0.95
    assert one.collateral < 0.05  # the other frequencies stand in other directions
    crowded = leave_out(x @ normal(16, 3), AB, P, [5], "a")  # six functions in three directions
    assert crowded.collateral > 0.2


def test_leaving_out_is_seeded_and_the_hidden_state_of_random_weights_shows_nothing_beyond_chance() -> None:
    x = Adder(random_model(TASK, dtype=torch.float64), TASK).activation("blocks.0.hook_hidden")
    assert leave_out(x, AB, P, [2], "sum", seed=1) == leave_out(x, AB, P, [2], "sum", seed=1)
    assert leave_out(x, AB, P, [2, 7], "difference").rank == 0


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_it_is_an_ordinary_hook_of_other_models_on_any_batch(kind: str) -> None:
    p = 7
    adder = (
        Adder(transformer(p), ModularAddition(p, equals_token=True))
        if kind == "transformer"
        else Adder(MLP(p), ModularAddition(p))
    )
    name = "blocks.0.attn.hook_q" if kind == "transformer" else "hook_hidden"
    ab = torch.stack(pairs(p), 1)
    position = 0 if kind == "transformer" else -1
    subspace = fit_subspace(adder.activation(name, position), ab, p, [1, 2], "a", chance=0.0)
    assert subspace.directions.shape == (12, 4)
    batch = adder.tokens[torch.tensor([5, 40, 3])]
    with adder.model.hooks(fwd_hooks=[(name, subspace_hook(subspace, position))]):
        edited = adder.activation(name, position, batch)
    plain = adder.activation(name, position, batch)
    Q = subspace.directions
    assert_close(edited, plain - plain @ Q @ Q.T, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(edited, plain, atol=1e-3)


# Errors


def test_what_cannot_be_fitted_or_hooked_is_one_clear_error() -> None:
    x, ab = normal(49, 4), torch.stack(pairs(7), 1)
    with unchecked(), pytest.raises(ActivationError, match="of 48 rows and 49 pairs"):
        fit_subspace(x[:48], ab, 7, [1])
    with pytest.raises(ActivationError, match="more than the 3 functions"):
        fit_subspace(x[:3], ab[:3], 7, [1], beside=())
    with pytest.raises(ActivationError, match="more than the 25 functions"):
        fit_subspace(x[:9], ab[:9], 7, [1], beside=("a", "b", "sum", "difference"))
    with pytest.raises(ModulusError, match="numbers from 0 to 6: expected 0 to 4, as p is 5"):
        fit_subspace(x, ab, 5, [1])
    with pytest.raises(FrequencyError, match="frequency 4"):
        fit_subspace(x, ab, 7, [4])
    with pytest.raises(FamilyError, match="unknown family"):
        fit_subspace(x, ab, 7, [1], "product")
    with pytest.raises(FamilyError, match="unknown mode"):
        subspace_hook(fit_subspace(x, ab, 7, [1]), mode="half")
    with pytest.raises(ActivationError, match="width 5: expected 4"):
        edit(fit_subspace(x, ab, 7, [1]), normal(3, 5))
    with unchecked(), pytest.raises(ActivationError, match="of 49 rows and 48 pairs"):
        leave_out(x, ab[:48], 7, [1])
