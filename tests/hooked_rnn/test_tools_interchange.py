"""TransformerLens's interchange interventions and distributed alignment search, on a HookedRNN."""

from typing import Any

import pytest
import torch
from tool_verdicts import works
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.tools.analysis import interchange
from unrolled_cells import (
    BATCH,
    OTHERS,
    STEPS,
    TOKENS,
    by_hand,
    every_cell,
    every_layer,
    exact,
    integers,
    make_model,
    normal,
)

from hooked_rnn import HookedRNN, HookedRNNConfig

POSITIONS = torch.tensor([2, 0, 3])
WHOLE = interchange.SubspaceInterchange(torch.eye(4))


def with_steps(cell: str, **fields: Any) -> HookedRNN:
    model = make_model(cell, **fields)
    model.set_use_step_hooks(True, STEPS)
    return model


def last_logits(model: HookedRNN) -> Any:
    return lambda tokens: model(tokens)[:, -1]


@works("collect_activations")
@every_layer
@every_cell
def test_activations_are_those_of_the_unrolled_network(cell: str, layer: int) -> None:
    model = with_steps(cell)
    unrolled = by_hand(model)
    task = last_logits(model)
    for t in range(STEPS):
        name = f"blocks.{layer}.steps.{t}.hook_hidden"
        collected = interchange.collect_activations(model, name, TOKENS, task, batch_size=2)
        assert_close(collected, unrolled.values["hidden", layer, t].detach(), **exact)
    name = f"blocks.{layer}.hook_out"
    collected = interchange.collect_activations(model, name, TOKENS, task, positions=POSITIONS, batch_size=2)
    wanted = unrolled.stacked("out", layer)[torch.arange(BATCH), POSITIONS].detach()
    assert_close(collected, wanted, **exact)
    assert not torch.allclose(collected, unrolled.stacked("hidden", 1 - layer)[torch.arange(BATCH), POSITIONS])


@every_cell
def test_inside_the_loop_a_hook_fires_at_each_step_and_is_refused(cell: str) -> None:
    model = with_steps(cell)
    with pytest.raises(RuntimeError, match=r"blocks\.0\.hook_hidden fired 4 times in one forward pass"):
        interchange.collect_activations(model, "blocks.0.hook_hidden", TOKENS, last_logits(model), positions=POSITIONS)
    with pytest.raises(RuntimeError, match="fired 4 times"):
        interchange.intervened_logits(
            model, "blocks.0.hook_hidden", WHOLE, TOKENS, normal(BATCH, 4), last_logits(model), positions=POSITIONS
        )


BASES = {
    "all": torch.eye(4, dtype=torch.float64),
    "two neurons": interchange.neuron_basis(4, [3, 1]).double(),
    "random": interchange.random_basis(4, 2, seed=0).double(),
    "random neuron": interchange.random_neuron_basis(4, 1, seed=0, exclude=[0]).double(),
}


@works(
    "intervened_logits",
    "run_with_intervention",
    "SubspaceInterchange",
    "random_basis",
    "neuron_basis",
    "random_neuron_basis",
)
@pytest.mark.parametrize("basis", BASES)
@every_layer
@every_cell
def test_an_interchange_is_the_unrolled_network_with_that_part_of_the_state_swapped(
    cell: str, layer: int, basis: str
) -> None:
    model = with_steps(cell)
    task = last_logits(model)
    B = BASES[basis]
    swap = interchange.SubspaceInterchange(B)
    for kind, t in [("hidden", 1), ("hidden", STEPS - 1), ("recurrent", 2)]:
        if kind == "recurrent" and cell in ("gru", "lstm"):
            kind = "carry"  # as wide as the basis
        source = by_hand(model, OTHERS).values[kind, layer, t].detach()
        edit = {(kind, layer, t): lambda h, source=source: h + (source - h) @ B @ B.T}
        wanted = by_hand(model, edits=edit).logits[:, -1].detach()
        name = f"blocks.{layer}.steps.{t}.hook_{kind}"
        found = interchange.intervened_logits(model, name, swap, TOKENS, source, task, batch_size=2)
        assert_close(found, wanted, **exact)
        assert_close(
            interchange.run_with_intervention(model, name, swap, TOKENS, source, task).detach(), wanted, **exact
        )
        if cell == "relu" and basis == "random neuron":
            continue  # which may be at zero in both
        assert not torch.allclose(found, by_hand(model).logits[:, -1])  # something is swapped
        if t < STEPS - 1:
            without_recurrence = by_hand(model, edits={("out", layer, t): edit[kind, layer, t]}).logits[:, -1]
            assert not torch.allclose(found, without_recurrence)  # and it goes on to later steps


@every_layer
@every_cell
def test_an_interchange_of_what_goes_upward_takes_a_position_for_each_sequence(cell: str, layer: int) -> None:
    model = make_model(cell)
    B = BASES["random"]
    source = normal(BATCH, 4)

    def swapped(t: int) -> Any:
        here = (t == POSITIONS)[:, None]
        return lambda x: torch.where(here, x + (source - x) @ B @ B.T, x)

    wanted = by_hand(model, edits={("out", layer, t): swapped(t) for t in range(STEPS)}).logits.flatten(1)
    found = interchange.intervened_logits(
        model,
        f"blocks.{layer}.hook_out",
        interchange.SubspaceInterchange(B),
        TOKENS,
        source,
        lambda tokens: model(tokens).flatten(1),
        positions=POSITIONS,
    )
    assert_close(found, wanted.detach(), **exact)
    assert not torch.allclose(found, by_hand(model).logits.flatten(1))


@works("NormMatchedPlacebo")
@every_cell
def test_the_placebo_moves_the_state_as_far_elsewhere(cell: str) -> None:
    model = with_steps(cell)
    swap = interchange.SubspaceInterchange(BASES["two neurons"])
    B = interchange.random_basis(4, 2, seed=3).double()
    placebo = interchange.NormMatchedPlacebo(swap, B)
    source = by_hand(model, OTHERS).values["hidden", 0, 1].detach()

    def moved(h: Tensor) -> Tensor:
        distance = (swap(h, source) - h).norm(dim=-1, keepdim=True)
        move = (source - h) @ B @ B.T
        return h + move * distance / move.norm(dim=-1, keepdim=True)

    found = interchange.intervened_logits(
        model, "blocks.0.steps.1.hook_hidden", placebo, TOKENS, source, last_logits(model)
    )
    assert_close(found, by_hand(model, edits={("hidden", 0, 1): moved}).logits[:, -1].detach(), **exact)


# Distributed alignment search


def planted(cell: str) -> tuple[HookedRNN, Tensor]:
    """A network that says, at its second step, whether the *first* token was 0 or 1, and the direction it keeps that in.

    Its state also holds the second token, and the first token's other bit, which it never reads.
    """
    d = 16
    directions = torch.linalg.qr(normal(d, d, seed=7))[0]
    cfg = HookedRNNConfig(
        d_vocab=4, d_vocab_out=2, d_model=2, d_hidden=d, cell=cell, act_fn="tanh", bias=True, dtype=torch.float64
    )
    model = HookedRNN(cfg).eval()
    bit, other, now = directions[:3]
    signs = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)  # of tokens 0 to 3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E.copy_(signs)
        W_ih, W_hh, b_ih = model.blocks[0].W_ih, model.blocks[0].W_hh, model.blocks[0].b_ih
        # Small, so that every nonlinearity is almost linear: the state is about 0.1 (bit, other) of the last token
        # but what it was in direction ``now`` is what was in ``bit`` a step before.
        into = 0.1 * torch.stack([bit, other])
        shift = torch.outer(bit, now)
        if cell == "gru":
            candidate = slice(2 * d, 3 * d)
            b_ih[d : 2 * d] = -20.0  # the update gate is shut: the candidate is the state
            b_ih[:d] = 20.0  # and the reset gate open
        else:
            candidate = slice(0, d)
        W_ih[:, candidate] = into
        W_hh[:, candidate] = shift
        model.unembed.W_U.copy_(torch.stack([-15 * now, 15 * now], 1))
    model.set_use_step_hooks(True, 2)
    return model, bit


@works("fit_das", "DASResult.*", "LearnedSubspace.*", "mean_difference_basis", "probe_basis")
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_das_finds_the_planted_direction(cell: str) -> None:
    model, bit = planted(cell)
    task = last_logits(model)
    bases, sources = integers(200, 2, high=4), integers(200, 2, high=4, seed=1)
    assert torch.equal(task(bases).argmax(-1), bases[:, 0] // 2)  # the network does what it should
    targets = sources[:, 0] // 2
    name = "blocks.0.steps.0.hook_hidden"
    result = interchange.fit_das(model, name, bases, sources, targets, task, rank=1, epochs=80, lr=0.05)
    found = result.basis.double()
    assert (found[:, 0] @ bit).abs() > 0.99
    assert result.losses[-1] < result.losses[0] / 2
    state = interchange.collect_activations(model, name, sources, task)

    def accuracy(basis: Tensor) -> float:
        swap = interchange.SubspaceInterchange(basis)
        logits = interchange.intervened_logits(model, name, swap, bases, state, task)
        return (logits.argmax(-1) == targets).double().mean().item()

    assert accuracy(found) == 1.0
    assert accuracy(interchange.mean_difference_basis(state, targets.tolist())) == 1.0
    assert accuracy(interchange.probe_basis(bit[None])) == 1.0
    chance = (bases[:, 0] // 2 == targets).double().mean().item()
    for seed in range(3):
        assert accuracy(interchange.random_basis(16, 1, seed=seed)) < (1 + chance) / 2
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@works("arbitrary_targets")
def test_das_does_not_find_what_is_not_there() -> None:
    model, _ = planted("rnn")
    task = last_logits(model)
    bases, sources = integers(200, 2, high=4), integers(200, 2, high=4, seed=1)
    targets = interchange.arbitrary_targets([f"{i}" for i in range(200)], n_classes=2, seed=0)
    result = interchange.fit_das(
        model, "blocks.0.steps.0.hook_hidden", bases, sources, targets, task, rank=1, epochs=20, lr=0.05
    )
    assert result.losses[-1] > result.losses[0] / 2


def test_das_at_a_point_that_fires_once_takes_positions() -> None:
    """What goes upward does not reach the next step, so there only the last position is read."""
    model, _ = planted("rnn")
    task = last_logits(model)
    bases, sources = integers(200, 2, high=4), integers(200, 2, high=4, seed=1)
    last = torch.ones(200, dtype=torch.long)
    result = interchange.fit_das(
        model,
        "blocks.0.hook_out",
        bases,
        sources,
        sources[:, 0] // 2,
        task,
        rank=1,
        base_positions=last,
        source_positions=last,
        epochs=80,
        lr=0.05,
    )
    now = torch.linalg.qr(normal(16, 16, seed=7))[0][2]
    assert (result.basis[:, 0].double() @ now).abs() > 0.99


@works("reinitialized")
@every_cell
def test_reinitialized_is_the_same_network_with_other_weights(cell: str) -> None:
    model = make_model(cell)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first, again, other = (interchange.reinitialized(model, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert isinstance(first, HookedRNN)
    assert_close(first(TOKENS), by_hand(first).logits, **exact)
    assert torch.equal(first(TOKENS), again(TOKENS))
    assert not torch.allclose(first(TOKENS), other(TOKENS))
    assert not torch.allclose(first(TOKENS), model(TOKENS))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
        assert not torch.allclose(first.state_dict()[name], weight)
