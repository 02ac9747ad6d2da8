"""Shared prefixes change what is computed twice, not what is computed."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrizations, prune

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, prefix_gradients
from hooked_rnn.prefix_gradients import LabelledTrie, Step, backward
from hooked_rnn.prefixes import PrefixTrie, has_hooks, last_logits, needs_plain_forward
from hooked_rnn.side_by_side import lead
from hooked_rnn.training.batches import Sequences


def model_of(
    task: ModularAddition,
    n_layers: int = 1,
    bias: bool = True,
    act_fn: str = "relu",
    dtype: torch.dtype = torch.float64,
) -> HookedRNN:
    cfg = HookedRNNConfig(
        d_vocab=task.d_vocab,
        d_vocab_out=task.p,
        d_model=5,
        d_hidden=6,
        n_layers=n_layers,
        bias=bias,
        act_fn=act_fn,
        dtype=dtype,
    )
    model = HookedRNN(cfg)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases begin at zero, which would hide a wrong one
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@given(
    operands=st.integers(1, 3),
    equals_token=st.booleans(),
    n_layers=st.integers(1, 3),
    bias=st.booleans(),
    act_fn=st.sampled_from(["relu", "tanh"]),
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_same_logits_and_gradients_as_the_plain_forward(
    operands: int, equals_token: bool, n_layers: int, bias: bool, act_fn: str, seed: int
) -> None:
    task = ModularAddition(5, operands, equals_token)
    model = model_of(task, n_layers, bias, act_fn)
    # Any order, and some sequences twice: the trie must put each of them back in its place.
    generator = torch.Generator().manual_seed(seed)
    tokens = task.tokens[torch.randint(len(task.tokens), (17,), generator=generator)]
    by_prefix = last_logits(model, PrefixTrie.of(tokens))
    plain = model(tokens, logits_to_keep=1)[:, 0]
    torch.testing.assert_close(by_prefix, plain, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(gradients(model, by_prefix), gradients(model, plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def gradients(model: HookedRNN, logits: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view(logits.shape)
    return list(torch.autograd.grad((logits * weights).sum(), list(model.parameters())))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@given(
    operands=st.integers(1, 4),
    equals_token=st.booleans(),
    n_layers=st.integers(1, 3),
    bias=st.booleans(),
    act_fn=st.sampled_from(["relu", "tanh"]),
    chunk=st.sampled_from([1, 5, 1024]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_the_loss_and_its_gradient_are_those_of_the_plain_forward(
    operands: int,
    equals_token: bool,
    n_layers: int,
    bias: bool,
    act_fn: str,
    chunk: int,
    threads: int,
    seed: int,
    dtype: torch.dtype,
    rtol: float,
) -> None:
    task = ModularAddition(5, operands, equals_token)
    model = model_of(task, n_layers, bias, act_fn, dtype)
    chosen = torch.randint(len(task.tokens), (17,), generator=torch.Generator().manual_seed(seed))
    tokens, labels = task.tokens[chosen], task.labels[chosen]
    with mock.patch.object(prefix_gradients, "CHUNK", chunk):
        batch = LabelledTrie.parts_of(PrefixTrie.of(tokens), labels, threads)
    assert len(batch) == threads
    if threads == 1:
        assert len(batch[0].last) == {1: 17, 5: 4, 1024: 1}[chunk]
    losses, gradients = [], []
    for plain in (True, False):
        model.zero_grad()
        if plain:
            loss = model(tokens, return_type="loss", labels=labels)
            loss.backward()
        else:
            loss = lead(threads, partial(backward, model, batch))
        losses.append(loss.detach())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0], rtol=rtol, atol=0)
    for mine, theirs in zip(*reversed(gradients), strict=True):
        # Relative to the gradient's size: single entries cancel.
        assert float((mine - theirs).norm()) <= rtol * float(theirs.norm()) + 1e-30


@given(operands=st.integers(1, 4), n_parts=st.integers(1, 5), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_parts_have_every_sequence_once(operands: int, n_parts: int, seed: int) -> None:
    task = ModularAddition(5, operands)
    chosen = torch.randint(len(task.tokens), (40,), generator=torch.Generator().manual_seed(seed))
    numbers = torch.arange(40)  # as labels, they tell which sequence is which
    found = {}
    for part in LabelledTrie.parts_of(PrefixTrie.of(task.tokens[chosen]), numbers, n_parts):
        for step, positions in part.last:
            for node, number in enumerate(positions // len(positions)):
                assert int(number) not in found
                found[int(number)] = read_back(part.inner, int(step.parents[node]), int(step.tokens[node]))
    assert found == {i: tokens.tolist() for i, tokens in enumerate(task.tokens[chosen])}


def read_back(inner: list[Step], node: int, token: int) -> list[int]:
    """The tokens of a prefix: its last one, and those of the node before it."""
    if not inner:
        return [token]
    *before, step = inner
    return [*read_back(before, int(step.parents[node]), int(step.tokens[node])), token]


def test_gradients_add_up_and_frozen_parameters_have_none() -> None:
    task = ModularAddition(5)
    model = model_of(task)
    batch = LabelledTrie.parts_of(PrefixTrie.of(task.tokens), task.labels)
    model.blocks[0].W_ih.requires_grad_(False)
    backward(model, batch)
    once = model.W_E.grad.clone()
    backward(model, batch)
    torch.testing.assert_close(model.W_E.grad, 2 * once)
    assert model.blocks[0].W_ih.grad is None


def test_a_wrong_label_changes_the_loss_and_the_gradient() -> None:
    """The control of the comparison with the plain forward: it would see one label of 25."""
    task = ModularAddition(5)
    model, results = model_of(task), []
    for labels in (task.labels, task.labels.index_fill(0, torch.tensor([7]), 0)):
        model.zero_grad()
        results.append((backward(model, LabelledTrie.parts_of(PrefixTrie.of(task.tokens), labels)), model.W_U.grad))
    assert abs(float(results[0][0] - results[1][0])) > 1e-3 * float(results[0][0])
    assert float((results[0][1] - results[1][1]).norm()) > 1e-3 * float(results[0][1].norm())


@given(operands=st.integers(1, 4), equals_token=st.booleans(), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_restricted_trie_is_the_trie_of_those_sequences(operands: int, equals_token: bool, seed: int) -> None:
    task = ModularAddition(4, operands, equals_token)
    chosen = torch.randint(len(task.tokens), (9,), generator=torch.Generator().manual_seed(seed))
    restricted, fresh = PrefixTrie.of(task.tokens).restricted(chosen), PrefixTrie.of(task.tokens[chosen])
    for mine, theirs in zip(
        [*restricted.tokens, *restricted.parents, restricted.leaves],
        [*fresh.tokens, *fresh.parents, fresh.leaves],
        strict=True,
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("operands", "equals_token"), [(2, False), (2, True), (3, False)])
def test_a_prefix_is_computed_once(operands: int, equals_token: bool) -> None:
    task = ModularAddition(7, operands, equals_token)
    trie = PrefixTrie.of(task.tokens)
    numbers = [7**n for n in range(1, operands + 1)]
    assert [len(nodes) for nodes in trie.tokens] == numbers + numbers[-1:] * equals_token


def test_following_the_parents_spells_every_sequence() -> None:
    tokens = ModularAddition(5, 3).tokens[torch.randperm(125, generator=torch.Generator().manual_seed(0))[:40]]
    trie, node, spelt = PrefixTrie.of(tokens), None, []
    node = trie.leaves
    for level, parents in zip(reversed(trie.tokens), reversed(trie.parents), strict=True):
        spelt.append(level[node])
        node = parents[node]
    assert torch.equal(torch.stack(spelt[::-1], dim=1), tokens)


def test_another_embedding_in_place_of_the_models_own() -> None:
    task = ModularAddition(5)
    model, trie = model_of(task), PrefixTrie.of(task.tokens)
    other = torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    swapped = last_logits(model, trie, W_E=other)
    before = last_logits(model, trie)
    with torch.no_grad():
        model.W_E.copy_(other)
    assert torch.equal(last_logits(model, trie), swapped)
    assert not torch.allclose(before, swapped)


# Whoever looks, or edits, is given what the plain forward gives: by the prefixes where that can be, else without them

MASK = torch.zeros(6, dtype=torch.float64).index_fill(0, torch.tensor([1, 4]), 1.0)


def edit(x: torch.Tensor, hook: object) -> torch.Tensor:
    """Not linear, and another one for every sequence."""
    return x * torch.linspace(0.5, 1.5, x[..., 0].numel(), dtype=x.dtype).view(x.shape[:-1])[..., None] + x**2


def scale_gradient(grad: torch.Tensor, hook: object) -> torch.Tensor:
    return grad * torch.linspace(0.5, 1.5, grad.shape[0], dtype=grad.dtype).view(-1, *[1] * (grad.ndim - 1))


def trained_on(model: HookedRNN, plain: bool, task: ModularAddition) -> tuple[list[torch.Tensor], int]:
    """Loss, gradients and evaluated logits, by the sequences of training or by the plain forward; and how often that ran."""
    chosen = torch.randint(len(task.tokens), (17,), generator=torch.Generator().manual_seed(0))
    sequences = Sequences.of(task.tokens, task.labels, torch.device("cpu")).chosen(chosen)
    model.zero_grad()
    if plain:
        loss = model(sequences.tokens, return_type="loss", labels=sequences.labels, logits_to_keep=1)
        loss.backward()
        logits, forwards = model(sequences.tokens, logits_to_keep=1)[:, 0], 0
    else:
        with mock.patch.object(type(model), "__call__", autospec=True, side_effect=type(model).__call__) as called:
            loss, logits = sequences.backward(model), sequences.last_logits(model)
        forwards = called.call_count
    return [loss.detach(), logits.detach(), *(p.grad.clone() for p in model.parameters())], forwards


def checked_against_plain(model: HookedRNN, task: ModularAddition) -> tuple[list[torch.Tensor], int]:
    """What :func:`trained_on` gives by the sequences of training, after it was found to be what the plain forward gives."""
    (mine, forwards), (theirs, _) = trained_on(model, False, task), trained_on(model, True, task)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    return mine, forwards


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_a_hook_at_any_point_has_its_effect_in_training_and_evaluation(cell: str, direction: str) -> None:
    task = ModularAddition(5)
    bare = HookedRNN(dataclasses.replace(model_of(task).cfg, cell=cell, n_layers=2))
    without, forwards = trained_on(bare, False, task)
    assert forwards == 0
    for name in bare.hook_dict:
        model = HookedRNN(bare.cfg)
        model.load_state_dict(bare.state_dict())
        model.add_hook(name, edit if direction == "fwd" else scale_gradient, dir=direction)
        mine, forwards = checked_against_plain(model, task)
        assert forwards == (0 if name in ("blocks.1.hook_out", "hook_logits") else 2), name
        same = [torch.allclose(a, b) for a, b in zip(mine, without, strict=True)]
        assert not all(same), name  # the control: the hook does something


@pytest.mark.parametrize("name", ["blocks.0.hook_out", "hook_logits"])
def test_what_a_hook_after_the_loop_is_given_has_every_sequence(name: str) -> None:
    task, seen = ModularAddition(5, 3), []
    model = model_of(task)
    model.add_hook(name, lambda x, hook: seen.append(x.clone()))
    tokens = task.tokens[torch.randint(125, (17,), generator=torch.Generator().manual_seed(1))]
    Sequences.of(tokens, tokens.sum(1) % 5, torch.device("cpu")).last_logits(model)
    model(tokens, logits_to_keep=1)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-10, atol=1e-12)


def test_no_hook_but_those_after_the_loop_needs_the_plain_forward() -> None:
    model = model_of(ModularAddition(5))
    needing = set()
    assert not has_hooks(model)
    for name in model.hook_dict:
        model.add_hook(name, lambda x, hook: None)
        assert has_hooks(model)
        needing |= {name} if needs_plain_forward(model) else set()
        model.reset_hooks()
    assert needing == model.hook_dict.keys() - {"blocks.0.hook_out", "hook_logits"}
    assert not needs_plain_forward(model)


def pruned(model: HookedRNN) -> None:
    prune.custom_from_mask(model.unembed, "W_U", MASK[:, None].expand(6, 5))


def orthogonal(model: HookedRNN) -> None:
    parametrizations.orthogonal(model.blocks[0], "W_hh")


def normed(model: HookedRNN) -> None:
    parametrizations.weight_norm(model.unembed, "W_U")


def masked_gradient(model: HookedRNN) -> None:
    model.W_U.register_hook(lambda grad: grad * MASK[:, None])


def masked_after_accumulation(model: HookedRNN) -> None:
    def mask(parameter: torch.Tensor) -> None:
        parameter.grad *= MASK[:, None]

    model.W_U.register_post_accumulate_grad_hook(mask)


def hooked_by_torch(model: HookedRNN) -> None:
    model.unembed.register_forward_hook(lambda module, inputs, output: output * 2)


def hooked_before_by_torch(model: HookedRNN) -> None:
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2, *inputs[1:]))


@pytest.mark.parametrize(
    "change",
    [
        pruned,
        orthogonal,
        normed,
        masked_gradient,
        masked_after_accumulation,
        hooked_by_torch,
        hooked_before_by_torch,
    ],
)
def test_what_torch_does_to_modules_and_parameters_counts(change: Callable[[HookedRNN], None]) -> None:
    task = ModularAddition(5)
    without, _ = trained_on(model_of(task), False, task)
    model = model_of(task)
    change(model)
    mine, _ = checked_against_plain(model, task)
    assert len(mine) != len(without) or any(
        a.shape != b.shape or not torch.allclose(a, b) for a, b in zip(mine, without, strict=True)
    )  # the control: the change is one


class Shifted(HookedRNN):
    """A network with a forward pass of its own."""

    def forward(self, tokens: Any, **kwargs: Any) -> Any:
        return super().forward((tokens + 1) % 5, **kwargs)


def test_a_forward_pass_of_its_own_counts() -> None:
    task = ModularAddition(5)
    assert checked_against_plain(Shifted(model_of(task).cfg), task)[1] == 2
