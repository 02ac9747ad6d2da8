"""The transformer to compare with computes what its named weights say, and is the same from the same seed."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from hooked_rnn import TransformerConfig, build_model, model_config
from hooked_rnn.architectures import ARCHITECTURES
from hooked_rnn.errors import ConfigError, ConversionError

TRANSFORMER = ARCHITECTURES["transformer"]
SIZES: dict[str, Any] = {"d_vocab": 6, "d_vocab_out": 5, "d_model": 8, "n_heads": 2, "d_mlp": 12, "n_layers": 2}


def by_hand(weights: dict[str, Tensor], tokens: Tensor, n_layers: int) -> Tensor:
    """The logits of a transformer without normalisation, from the weights as HookedTransformer names them."""

    def bias(name: str) -> Tensor:
        return weights.get(name, torch.zeros(()))

    n = tokens.shape[1]
    x = weights["embed.W_E"][tokens] + weights["pos_embed.W_pos"][:n]
    hidden = torch.ones(n, n).triu(1).bool()
    for layer in range(n_layers):
        attn, mlp = f"blocks.{layer}.attn.", f"blocks.{layer}.mlp."
        mixed = bias(f"{attn}b_O")
        for head in range(weights[f"{attn}W_Q"].shape[0]):
            q, k, v = (
                x @ weights[f"{attn}W_{letter}"][head]
                + (weights[f"{attn}b_{letter}"][head] if f"{attn}b_{letter}" in weights else 0)
                for letter in "QKV"
            )
            scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(hidden, -math.inf)
            mixed = mixed + scores.softmax(-1) @ v @ weights[f"{attn}W_O"][head]
        x = x + mixed
        post = torch.relu(x @ weights[f"{mlp}W_in"] + bias(f"{mlp}b_in"))
        x = x + post @ weights[f"{mlp}W_out"] + bias(f"{mlp}b_out")
    return x @ weights["unembed.W_U"] + bias("unembed.b_U")


@pytest.mark.parametrize("fields", [{}, {"bias": True}, {"bias": True, "d_head": 3}])
def test_it_computes_what_its_weights_say(fields: dict[str, Any]) -> None:
    cfg = TransformerConfig(**SIZES, **fields)
    model = build_model(cfg)
    model.to(torch.float64, print_details=False)
    with torch.no_grad():
        for name, parameter in TRANSFORMER.trained_parameters(model).items():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        tokens = torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.tensor([5]))
        torch.testing.assert_close(model(tokens), by_hand(TRANSFORMER.weights_of(model), tokens, cfg.n_layers))


def test_without_biases_they_are_zero_and_stay_so() -> None:
    model = build_model(TransformerConfig(**SIZES))
    trained = TRANSFORMER.trained_parameters(model)
    assert not any(name.endswith("bias") for name in [*trained, *TRANSFORMER.weights_of(model)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([[1, 2, 5]]))[0, -1].logsumexp(0).backward()
    optimizer.step()
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 * 6 + 1
    assert not any(bias.any() for bias in biases)
    assert all(p.grad is not None for p in trained.values())


def test_every_bias_is_trained_where_there_are_any() -> None:
    model = build_model(TransformerConfig(**SIZES, bias=True))
    model(torch.tensor([[1, 2, 5]]))[0, -1, 0].backward()
    trained = TRANSFORMER.trained_parameters(model)
    assert [len(list(model.parameters())), "unembed.bias" in trained] == [len(trained), True]
    assert all(isinstance(p, nn.Parameter) and p.grad is not None for p in trained.values())


def test_the_seed_alone_decides_the_weights() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (build_model(TransformerConfig(**SIZES, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = TRANSFORMER.weights_of(one)
    torch.manual_seed(99)
    assert all(torch.equal(weight, TRANSFORMER.weights_of(again)[name]) for name, weight in weights.items())
    assert not any(torch.equal(weight, TRANSFORMER.weights_of(other)[name]) for name, weight in weights.items())
    torch.random.set_rng_state(before)


def test_the_initial_weights_have_the_papers_scale() -> None:
    model = build_model(TransformerConfig(d_vocab=114, d_vocab_out=113, init_scale=2.0))
    for name, weight in TRANSFORMER.weights_of(model).items():
        expected = 2 * (113 if name == "unembed.W_U" else 128) ** -0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.1), name  # W_pos has 384 numbers, so 4% of scatter


def test_its_configuration_can_be_had_from_it() -> None:
    for fields in ({}, {"bias": True, "d_head": 3, "seed": 5, "init_scale": 0.5}):
        cfg = TransformerConfig(**SIZES, **fields)
        assert model_config(build_model(cfg)) == cfg
        assert TransformerConfig.from_json(cfg.to_json()) == cfg


def test_a_transformer_of_the_users_own_has_one_too() -> None:
    own = {**SIZES, "d_head": 4, "n_ctx": 3, "act_fn": "relu", "seed": 0}
    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**own, normalization_type=None))
    assert model_config(bridge) == TransformerConfig(**SIZES, bias=True)
    normed = TransformerBridge.boot_native(TransformerBridgeConfig(**own, normalization_type="LN"))
    with pytest.raises(ConversionError, match="normalization_type='LN': expected None"):
        model_config(normed)


def test_transformer_lens_can_hook_it() -> None:
    model = build_model(TransformerConfig(**SIZES)).eval()
    tokens = torch.tensor([[1, 2, 5]])
    logits, cache = model.run_with_cache(tokens)
    assert isinstance(cache, ActivationCache)
    assert cache["post", 1].shape == (1, 3, 12)
    zeroed = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: x * 0)])
    assert not zeroed.any()
    assert logits.any()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_mlp": 0}, "d_mlp=0: expected a whole number of at least 1"),
        ({"n_ctx": None}, "n_ctx=None: expected a whole number"),
        ({"n_heads": 3}, "n_heads=3 with d_model=8: expected one that divides it"),
        ({"act_fn": "tanh"}, "act_fn='tanh': expected 'relu'"),
        ({"bias": 1}, "bias=1: expected True or False"),
        ({"seed": -1}, "seed=-1"),
        ({"init_scale": 0}, "init_scale=0"),
        ({"d_hidden": 3}, "unknown key 'd_hidden' in the model's configuration; nearest: 'd_head'"),
        ({"architecture": "mlp"}, "architecture 'mlp', expected 'transformer'; hooked_rnn.load_model"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerConfig.from_dict({**SIZES, **fields})
