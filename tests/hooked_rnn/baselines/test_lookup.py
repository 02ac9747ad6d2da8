"""The logits by lookup are those of the forward pass, with their gradients; and are not used where they would not be, or a hook is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from hooked_rnn import HookedMLPConfig, TransformerConfig, build_model
from hooked_rnn.architectures import architecture_of
from hooked_rnn.baselines import lookup

SIZES = {"d_vocab": 12, "d_vocab_out": 11, "d_model": 16, "d_mlp": 24, "n_ctx": 4}
CONFIGS = {
    "transformer": TransformerConfig(**SIZES, n_heads=2),
    "transformer with biases": TransformerConfig(**SIZES, n_heads=2, bias=True, act_fn="gelu"),
    "wide heads": TransformerConfig(**{**SIZES, "d_vocab_out": 12}, n_heads=3, d_head=5),
    "concat": HookedMLPConfig(**SIZES),
    "sum": HookedMLPConfig(**SIZES, combine="sum", bias=True),
    "embeddings of their own": HookedMLPConfig(**SIZES, shared_embedding=False, act_fn="tanh", bias=True),
    "sum of their own": HookedMLPConfig(**SIZES, shared_embedding=False, combine="sum"),
}
TOKENS = torch.randint(12, (50, 4), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(11, (50,), generator=torch.Generator().manual_seed(1))


def model_of(cfg: Any) -> Any:
    """In float64, with biases that are not zero if it has any."""
    model = build_model(cfg).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in architecture_of(model).trained_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def in_full(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    logits = model(tokens)
    return logits if logits.ndim == 2 else logits[:, -1]


def by_lookup(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    is_mlp = isinstance(architecture_of(model).config_of(model), HookedMLPConfig)
    return (lookup.mlp_logits if is_mlp else lookup.transformer_logits)(model, tokens)


def with_gradients(model: Any, logits: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    functional.cross_entropy(logits, LABELS).backward()
    trained = architecture_of(model).trained_parameters(model).values()
    return [logits.detach(), *(parameter.grad.clone() for parameter in trained)]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_the_forward_pass(name: str) -> None:
    model = model_of(CONFIGS[name])
    for tokens in (TOKENS, TOKENS[:, :1]) if isinstance(CONFIGS[name], TransformerConfig) else (TOKENS,):
        found, expected = (with_gradients(model, logits(model, tokens)) for logits in (by_lookup, in_full))
        assert len(found) == 1 + len(list(architecture_of(model).trained_parameters(model)))
        for ours, theirs in zip(found, expected, strict=True):
            assert (
                theirs.abs().max() > 0 or tokens.shape[1] == 1
            )  # one position attends to itself whatever its query is
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CONFIGS)
def test_in_float32_they_agree_to_rounding_and_are_what_training_uses(name: str) -> None:
    model = model_of(CONFIGS[name]).float()
    torch.testing.assert_close(by_lookup(model), in_full(model), rtol=1e-5, atol=1e-5)
    assert torch.equal(architecture_of(model).last_logits(model, TOKENS), by_lookup(model))


def test_with_two_blocks_it_would_not_be_true_and_is_not_used() -> None:
    model = model_of(TransformerConfig(**SIZES, n_heads=2, n_layers=2))
    assert not torch.allclose(by_lookup(model), in_full(model), rtol=1e-2)
    assert torch.equal(architecture_of(model).last_logits(model, TOKENS), in_full(model))


@pytest.mark.parametrize("name", ["transformer", "concat"])
@pytest.mark.parametrize(
    "hook",
    [
        lambda model: model.add_hook("blocks.0.mlp.hook_post", lambda x, hook: x),
        lambda model: model.add_hook("blocks.0.mlp.hook_pre", lambda grad, hook: None, dir="bwd"),
        lambda model: model.add_perma_hook("hook_embed", lambda x, hook: x),
        lambda model: model.blocks[0].register_forward_hook(lambda *_: None),
        lambda model: model.blocks[0].mlp.register_forward_pre_hook(lambda *_: None),
        lambda model: model.embed.register_full_backward_hook(lambda *_: None),
        lambda model: model.unembed.register_full_backward_pre_hook(lambda *_: None),
    ],
)
def test_with_any_hook_it_is_not_used(hook: Callable[[Any], Any], name: str) -> None:
    model = model_of(CONFIGS[name])
    in_full(model)  # from now on a transformer has hooks of its own
    assert not lookup.has_hooks(model)  # the control
    hook(model)
    assert lookup.has_hooks(model)


@pytest.mark.parametrize("name", ["transformer", "concat"])
def test_a_hook_edits_the_logits_that_are_trained_on(name: str) -> None:
    model = model_of(CONFIGS[name])
    without = in_full(model)
    model.add_hook("blocks.0.mlp.hook_post", lambda x, hook: 2 * x)
    found = architecture_of(model).last_logits(model, TOKENS)
    torch.testing.assert_close(found, in_full(model), rtol=1e-12, atol=0)
    assert not torch.allclose(found, without)
