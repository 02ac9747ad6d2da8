"""Shared prefixes change what is computed twice, not what is computed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition
from hooked_rnn.prefixes import PrefixTrie, has_hooks, last_logits


def model_of(task: ModularAddition, n_layers: int = 1, bias: bool = True, act_fn: str = "relu") -> HookedRNN:
    cfg = HookedRNNConfig(
        d_vocab=task.d_vocab,
        d_vocab_out=task.p,
        d_model=5,
        d_hidden=6,
        n_layers=n_layers,
        bias=bias,
        act_fn=act_fn,
        dtype=torch.float64,
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


def test_a_hook_is_seen() -> None:
    model = model_of(ModularAddition(5))
    assert not has_hooks(model)
    model.add_hook("hook_embed", lambda x, hook: None)
    assert has_hooks(model)
