"""The operators on more than two numbers: the planted answer on an exact adder of three, the null answer on random weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import circles, normal, random_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from analyses.ablation import frequency_hook
from analyses.adder import Adder
from analyses.clock_pizza import gradient_symmetry
from analyses.errors import FamilyError, GridError
from analyses.fourier import FourierBasis
from analyses.grid import all_numbers, families_of, grid_functions, keep_on_grid, sign_patterns
from analyses.key_frequencies import find
from analyses.neurons import cluster_neurons
from analyses.operands import tensor_spectrum
from analyses.restricted import progress_measures, restricted_to_families, restricted_to_trace
from analyses.subsets import removal_lattice
from analyses.subspace import fit_subspace, leave_out, subspace_hook
from hooked_rnn import ModularAddition

P, KEY, STRENGTHS = 11, (2, 5), (3.0, 2.0)
TASK = ModularAddition(P, operands=3)
exact = {"rtol": 0.0, "atol": 1e-9}


class Multiplier(HookedRootModule):
    """exp(iwa) exp(iwb) exp(iwc): the logits are the sum of s_k cos(w_k(a+b+c-y))."""

    def __init__(self) -> None:
        super().__init__()
        self.W_E = nn.Parameter(circles(P, KEY, (1.0, 1.0)))
        self.W_U = nn.Parameter(circles(P, KEY, STRENGTHS).T.contiguous())
        self.hook_embed, self.hook_hidden = HookPoint(), HookPoint()
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.hook_embed(self.W_E[tokens])
        turns = torch.view_as_complex(embedded.unflatten(-1, (-1, 2)).contiguous()).prod(1)
        return self.hook_hidden(torch.view_as_real(turns).flatten(1)) @ self.W_U


def planted() -> Adder:
    return Adder(Multiplier().eval(), TASK)


def waves(frequencies: tuple[int, ...]) -> Tensor:
    """The planted logits of some of the frequencies."""
    ahead = (TASK.labels[:, None] - torch.arange(P)).double()
    strength = dict(zip(KEY, STRENGTHS, strict=True))
    terms = [strength[k] * (2 * math.pi * k * ahead / P).cos() for k in frequencies]
    return torch.stack(terms).sum(0) if terms else torch.zeros_like(ahead)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 99))
def test_patterns_are_orthonormal_and_keep_their_power(p: int, operands: int, seed: int) -> None:
    x = normal(p**operands, 2, seed=seed)
    spectrum = tensor_spectrum(x, p, operands)
    rows = []
    for pattern in sign_patterns(operands):
        ks = [k for k in FourierBasis(p).frequencies if 2 * k != p or "-" not in pattern]
        rows.append(grid_functions(p, ks, pattern, operands))
        for k in ks:
            kept = keep_on_grid(x, p, [k], pattern, operands).square().sum()
            assert_close(kept, spectrum.patterns[pattern][k - 1], **exact)
    functions = torch.cat(rows)
    assert_close(functions @ functions.T, torch.eye(len(functions)).double(), **exact)


def test_a_pattern_is_the_functions_that_its_name_says_and_the_block_all_of_one_function_of_each() -> None:
    a, b, c = all_numbers(P, 3).unbind(1)
    for family, argument in (("a-c", a - c), ("a+b-c", a + b - c), ("sum", a + b + c), ("b", b)):
        cos, sin = grid_functions(P, [2], family, 3)
        angle = 2 * math.pi * 2 * argument.double() / P
        assert_close(cos, angle.cos() * (2 / P**3) ** 0.5, **exact)
        assert_close(sin, angle.sin() * (2 / P**3) ** 0.5, **exact)
    of_all = torch.cat([grid_functions(P, [2], x, 3) for x in ("a+b+c", "a+b-c", "a-b+c", "a-b-c")])
    block = grid_functions(P, [2], "block", 3)
    assert_close(block.T @ block, of_all.T @ of_all, **exact)
    assert_close(grid_functions(P, [3], "a+b"), grid_functions(P, [3], "sum"), **exact)
    assert_close(grid_functions(P, [3], "a-b"), grid_functions(P, [3], "difference"), **exact)


def test_every_rule_finds_the_planted_frequencies() -> None:
    for rule in ("embedding share", "logit variance", "neuron argmax", "threshold", "elbow"):
        assert find(planted(), rule).frequencies == list(KEY), rule
    random = Adder(random_model(ModularAddition(31, operands=3)), ModularAddition(31, operands=3))
    for rule in ("embedding share", "logit variance", "neuron argmax", "elbow"):
        assert find(random, rule).frequencies == [], rule


def test_neurons_are_explained_by_the_pattern_that_they_hold() -> None:
    found = cluster_neurons(planted().activation("hook_hidden"), P, operands=3)
    assert found.frequency.tolist() == [2, 2, 5, 5]
    assert_close(found.best, torch.ones(4).double(), **exact)
    assert_close(found.amplitudes("a+b+c"), torch.ones(4).double(), **exact)
    assert_close(found.phases("a+b+c"), torch.tensor([0.0, -math.pi / 2] * 2, dtype=torch.float64), **exact)
    for family, share in (("sum", 1.0), ("block", 1.0), ("a+b-c", 0.0)):
        only = cluster_neurons(planted().activation("hook_hidden"), P, families=(family,), operands=3)
        assert only.share_above == share
    noise = cluster_neurons(normal(P**3, 20), P, operands=3)
    assert float(noise.best.max()) < 0.2


@pytest.mark.parametrize("removed", [(), (2,), (5,), (2, 5)])
def test_a_frequency_takes_its_term_of_the_logits_with_it_wherever_it_is_removed(removed: tuple[int, ...]) -> None:
    left = waves(tuple(k for k in KEY if k not in removed))
    assert_close(planted().logits(), waves(KEY), **exact)
    assert_close(planted().logits([("hook_hidden", frequency_hook(P, removed, operands=3))]), left, **exact)
    harmless = frequency_hook(P, removed, "a+b-c", operands=3)
    assert_close(planted().logits([("hook_hidden", harmless)]), waves(KEY), **exact)
    numbers = all_numbers(P, 3)
    rows = torch.arange(0, P**3, 2)
    subspace = fit_subspace(planted().activation("hook_hidden")[rows], numbers[rows], P, removed, "sum")
    others = torch.arange(1, P**3, 2)
    of_others = planted().logits([("hook_hidden", subspace_hook(subspace))], numbers[others])
    assert_close(of_others, left[others], **exact)


def test_leaving_out_half_of_the_triples() -> None:
    hidden, numbers = planted().activation("hook_hidden"), all_numbers(P, 3)
    assert leave_out(hidden, numbers, P, KEY, "a+b+c").removed == pytest.approx(1.0)
    assert leave_out(hidden, numbers, P, KEY, "a+b-c").rank == 0
    assert leave_out(normal(P**3, 6), numbers, P, KEY, "sum").rank == 0


def test_restricted_to_the_planted_frequencies_is_all_of_it_and_without_them_is_chance() -> None:
    train, _ = TASK.split(0.4, 0)
    for variant in ("sum", "polynomial", "trace", "activation"):
        at = "hook_hidden" if variant == "activation" else None
        found = progress_measures(planted(), KEY, variant, train, hook_name=at)
        assert found.restricted.all == pytest.approx(found.plain.all)
        assert (found.excluded.train, found.excluded.test) == pytest.approx((math.log(P), math.log(P)))
        other = progress_measures(planted(), [1, 3], variant, train, hook_name=at)
        assert (other.restricted.all, other.excluded.all) == pytest.approx((math.log(P), found.plain.all))
    part = waves((5,)) + normal(P**3, 1) + normal(1, P)  # of the triple alone, and of the answer alone
    assert_close(restricted_to_trace(part, P, [5], 3)[0], waves((5,)), rtol=0, atol=0.05)
    assert_close(restricted_to_families(waves(KEY), P, [5], "sum", 3)[0], waves((5,)), **exact)


def test_the_lattice_of_three_numbers_is_that_of_their_closed_form() -> None:
    subsets = [(), (2,), (5,), (2, 5)]
    expected = [
        torch.nn.functional.cross_entropy(waves(tuple(k for k in KEY if k not in s)), TASK.labels) for s in subsets
    ]
    for site in ("W_U", "logits", "hook_hidden"):
        lattice = removal_lattice(planted(), KEY, site)
        assert_close(lattice.loss, torch.stack(expected), **exact)
        assert lattice.control is not None
        assert_close(lattice.control.loss, lattice.loss[:1].expand(4), **exact)
    at_W_E = removal_lattice(planted(), KEY, "W_E", control=False)
    assert_close(at_W_E.loss, torch.stack(expected), **exact)


def test_what_three_numbers_do_not_have_is_one_clear_error() -> None:
    with pytest.raises(FamilyError, match="unknown family 'difference' of 3 operands: expected 'a', 'b', 'c', 'sum'"):
        frequency_hook(P, [1], "difference", operands=3)
    with pytest.raises(FamilyError, match="unknown family 'a\\+c'"):
        frequency_hook(P, [1], "a+c")
    assert "a-b-c" in families_of(3)
    hook = frequency_hook(P, [1])
    with pytest.raises(GridError, match="a batch of 1331: expected the full grid of p\\*p = 121 pairs"):
        planted().logits([("hook_hidden", hook)])
    with pytest.raises(GridError, match="a batch of 121: expected the full grid of p\\*\\*3 = 1331 rows"):
        cluster_neurons(normal(P**2, 2), P, operands=3)
    with pytest.raises(GridError, match="a task of 3 operands: expected two"):
        gradient_symmetry(planted(), 10)
