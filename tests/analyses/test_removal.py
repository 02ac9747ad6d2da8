"""What takes a removed part's place, and the hook at every kind of point, on three kinds of model."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import exact, normal, random_model, unchecked
from test_adder import MLP, transformer
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from analyses.ablation import frequency_hook
from analyses.adder import Adder
from analyses.errors import ActivationError, FamilyError, GridError
from analyses.grid import FAMILIES, keep_on_grid, remove_from_grid
from analyses.removal import MODES, hook_at, replacement
from hooked_rnn import ModularAddition, ModularTask

P = 7
PLAIN, EQUALS = ModularAddition(P), ModularAddition(P, equals_token=True)
POINTS = [
    ("rnn", "blocks.0.hook_hidden", -1, "sum"),
    ("rnn", "blocks.0.steps.1.hook_hidden", -1, "sum"),
    ("transformer", "blocks.0.mlp.hook_post", -1, "block"),
    ("transformer", "blocks.0.attn.hook_v", 0, "a"),  # [pairs, pos, head, d_head]
    ("transformer", "blocks.0.hook_resid_post", -1, "b"),
    ("mlp", "hook_hidden", -1, "sum"),
]


def adder(kind: str) -> Adder:
    """Random weights of three architectures."""
    task: ModularTask = EQUALS if kind == "transformer" else PLAIN
    model: Any
    if kind == "rnn":
        model = random_model(task, d_model=12, d_hidden=16, bias=True)
        model.set_use_step_hooks(True)
    else:
        model = transformer(P) if kind == "transformer" else MLP(P)
    return Adder(model, task)


def point(name: str = "somewhere") -> HookPoint:
    made = HookPoint()
    made.name = name
    return made


@st.composite
def chosen(draw: st.DrawFn) -> tuple[int, list[int], str]:
    """A modulus, odd or even, prime or not, some of its frequencies, and a family."""
    p = draw(st.integers(2, 10))
    frequencies = draw(st.lists(st.integers(1, p // 2), unique=True, max_size=3))
    return p, frequencies, draw(st.sampled_from(FAMILIES))


@given(chosen(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_and_what_is_removed_is_all_and_the_mean_is_in_no_family(
    case: tuple[int, list[int], str], seed: int
) -> None:
    p, frequencies, family = case
    x = normal(p * p, 3, seed=seed) + 2
    kept = keep_on_grid(x, p, frequencies, family)
    zero, mean, resampled = (
        frequency_hook(p, frequencies, family, mode=mode, seed=seed)(x, hook=point()) for mode in MODES
    )
    assert_close(zero + kept, x, **exact)
    assert_close(mean, zero, **exact)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed))
    assert_close(resampled, x - kept + kept[order], **exact)
    assert_close(resampled.mean(0), x.mean(0), **exact)
    assert_close(frequency_hook(p, frequencies, family)(zero, hook=point()), zero, **exact)


@pytest.mark.parametrize("mode", ["zero", "resample"])
@pytest.mark.parametrize(("kind", "name", "position", "family"), POINTS)
def test_at_every_kind_of_point_the_activation_lacks_the_family_and_nothing_else(
    kind: str, name: str, position: int, family: str, mode: str
) -> None:
    subject = adder(kind)
    plain = subject.activation(name, position)
    hook = frequency_hook(P, [1, 3], family, position, mode, seed=3)
    with subject.model.hooks(fwd_hooks=[(name, hook)]):
        edited = subject.activation(name, position)
    part = keep_on_grid(plain, P, [1, 3], family)
    assert part.norm() > 1e-3 * plain.norm()
    assert_close(edited, plain - part + replacement(part, mode, 3), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(edited, plain, rtol=0.0, atol=1e-5)
    assert not torch.allclose(subject.logits([(name, hook)]), subject.logits(), rtol=0.0, atol=1e-6)


def test_a_step_point_and_a_position_are_the_same_place() -> None:
    subject = adder("rnn")
    at_position, at_step = (
        subject.logits([(name, frequency_hook(P, [2], "a", positions=0))])
        for name in ("blocks.0.hook_hidden", "blocks.0.steps.0.hook_hidden")
    )
    assert torch.equal(at_position, at_step)
    assert not torch.allclose(at_step, subject.logits())


def test_heads_stand_side_by_side() -> None:
    x = normal(P * P, 2, 3, 4)
    edited = frequency_hook(P, [1], "block", positions=0)(x, hook=point())
    assert_close(edited[:, 0].flatten(1), remove_from_grid(x[:, 0].flatten(1), P, [1], "block"), **exact)
    assert torch.equal(edited[:, 1], x[:, 1])


def test_resampling_is_seeded_and_does_something() -> None:
    x, before = normal(P * P, 4), torch.random.get_rng_state()
    one, again, other = (frequency_hook(P, [1], mode="resample", seed=seed)(x, hook=point()) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    part = keep_on_grid(x, P, [1], "sum")
    assert_close((one - x + part).sort(0).values, part.sort(0).values, **exact)  # the parts of other pairs
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_mean_of_a_part_that_has_one() -> None:
    part = normal(5, 3)
    assert_close(replacement(part, "mean"), part.mean(0).repeat(5, 1), **exact)
    assert not replacement(part, "zero").any()


def test_no_positions_edit_nothing() -> None:
    for shape in ((4, 3), (4, 2, 3), (4, 2, 2, 3)):
        assert hook_at([], torch.zeros_like)(normal(*shape), point()) is None


def test_a_point_without_positions_is_an_error() -> None:
    subject = adder("transformer")
    for name in ("blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores"):
        with pytest.raises(ActivationError, match=rf"shape \[49, 3, 3, 3\] at {name}"):
            subject.logits([(name, frequency_hook(P, [1]))])
    with unchecked(), pytest.raises(ActivationError, match=r"expected \[batch, pos, d\]"):
        hook_at(-1, torch.zeros_like)(normal(2, 2, 2, 2, 2), point())


def test_a_batch_that_is_not_the_grid_is_an_error() -> None:
    for kind, name, *_ in POINTS:
        subject = adder(kind)
        with pytest.raises(GridError, match="a batch of 48"):
            subject.logits([(name, frequency_hook(P, [1]))], subject.tokens[:48])
    with pytest.raises(GridError, match="as p is 5"):  # a hook of another modulus
        adder("mlp").logits([("hook_hidden", frequency_hook(5, [1]))])


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(FamilyError, match="unknown mode 'half': expected 'zero', 'mean' or 'resample'"):
        replacement(torch.zeros(2, 2), "half")


@pytest.mark.parametrize("mode", MODES)
def test_gradients_flow_through_every_mode(mode: str) -> None:
    x, other = normal(P * P, 2, 3).requires_grad_(), normal(P * P, 2, 3, seed=1)
    hook = frequency_hook(P, [1], mode=mode)
    hook(x, hook=point()).mul(other).sum().backward()
    # The operator is linear, so <A y, other> = <y, gradient> for whatever y.
    y = normal(P * P, 2, 3, seed=2)
    assert_close((hook(y, hook=point()) * other).sum(), (y * x.grad).sum(), **exact)
