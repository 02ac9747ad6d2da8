"""The MLP to compare with computes what its named weights say; its hooks and errors are as HookedRNN's."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformer_lens import ActivationCache

from analyses.adder import Adder
from analyses.places import last_place
from analyses.weights import number_weights
from hooked_rnn import HookedMLP, HookedMLPConfig, ModularAddition
from hooked_rnn.errors import ConfigError, HookError, LabelError, ReturnTypeError, TokenError, UnknownHookPointError

KINDS = [{"combine": combine, "shared_embedding": shared} for combine in ("sum", "concat") for shared in (True, False)]


def small(**fields: Any) -> HookedMLP:
    cfg = HookedMLPConfig(d_vocab=5, d_vocab_out=5, d_model=4, d_mlp=7, dtype=torch.float64, **fields)
    model = HookedMLP(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".b_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_its_weights_say(kind: dict[str, Any], bias: bool) -> None:
    model, task = small(**kind, bias=bias), ModularAddition(5)
    W = model.state_dict()
    tables = [W["embed.W_E"]] * 2 if kind["shared_embedding"] else list(W["embed.W_E"])
    operands = [table[ids] for table, ids in zip(tables, task.tokens.T, strict=True)]
    read = sum(operands) if kind["combine"] == "sum" else torch.cat(operands, dim=1)
    pre = read @ W["blocks.0.mlp.W_in"] + (W["blocks.0.mlp.b_in"] if bias else 0)
    expected = pre.relu() @ W["unembed.W_U"] + (W["unembed.b_U"] if bias else 0)
    torch.testing.assert_close(model(task.tokens), expected)
    torch.testing.assert_close(  # what the analyses read: each position's part of the pre-activation
        model.W_E_in[0][task.tokens[:, 0]] + model.W_E_in[1][task.tokens[:, 1]] + model.b_in, pre
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_analyses_take_it(kind: dict[str, Any]) -> None:
    adder = Adder(small(**kind), ModularAddition(5))
    assert adder.logits().shape == (25, 5)
    place = last_place(adder)
    assert place.hook_name == "blocks.0.mlp.hook_post"
    assert adder.activation(place.hook_name).shape == (25, 7)
    found = number_weights(adder)
    assert list(found) == ["W_E", "W_E W_in", "W_U"]
    assert all(len(weight) == 5 for weight in found.values())
    both_positions_alike = kind == {"combine": "sum", "shared_embedding": True}
    assert found["W_E W_in"].shape == (5, 7 if both_positions_alike else 14)


def test_a_hook_sees_and_edits_what_the_network_uses() -> None:
    model = small()
    logits, cache = model.run_with_cache("1 + 2")
    assert isinstance(cache, ActivationCache)
    assert {name: tuple(x.shape) for name, x in cache.items()} == {
        "hook_embed": (1, 2, 4),
        "blocks.0.mlp.hook_in": (1, 8),
        "blocks.0.mlp.hook_pre": (1, 7),
        "blocks.0.mlp.hook_post": (1, 7),
        "hook_logits": (1, 5),
    }
    assert torch.equal(cache["post", 0] @ model.W_U, logits)

    def swap(x: torch.Tensor, hook: Any) -> torch.Tensor:
        return x.flip(1)

    swapped = model.run_with_hooks("1 + 2", fwd_hooks=[("hook_embed", swap)])
    assert torch.equal(swapped, model("2 + 1"))
    assert not torch.equal(swapped, logits)
    assert torch.equal(model("1 + 2"), logits)  # nothing is left behind
    with pytest.raises(HookError, match=r"blocks.0.mlp.hook_post returned a tensor of shape \(7,\)"):
        model.run_with_hooks("1 + 2", fwd_hooks=[("blocks.0.mlp.hook_post", lambda x, hook: x[0])])


def test_the_loss_is_the_mean_cross_entropy_and_has_gradients() -> None:
    model, task = small(bias=True), ModularAddition(5)
    logits, loss = model(task.tokens, return_type="both", labels=task.labels)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, task.labels))
    _, cache = model.run_with_cache(task.tokens, incl_bwd=True, return_type="loss", labels=task.labels)
    expected = (logits.softmax(-1) - functional.one_hot(task.labels, 5)) / 25
    torch.testing.assert_close(cache["hook_logits_grad"], expected.detach())
    with pytest.raises(LabelError):
        model(task.tokens, return_type="loss")
    with pytest.raises(ReturnTypeError, match="return_type='loss'"):
        model.run_with_cache(task.tokens, incl_bwd=True)


def test_the_seed_alone_decides_the_weights() -> None:
    before = torch.random.get_rng_state()
    one, again, other = small(seed=1), small(seed=1), small(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.W_in, again.W_in)
    assert not torch.equal(one.W_in, other.W_in)


def test_the_configuration_follows_the_model() -> None:
    model = small(shared_embedding=False, n_ctx=3)
    assert model.float().cfg.dtype == torch.float32
    assert HookedMLPConfig.from_json(model.cfg.to_json()) == model.cfg
    assert model.W_E.shape == (5, 12)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[1.0, 2.0]]), "tokens are torch.float32"),
        (torch.tensor([[1, 5]]), "token id 5: expected 0 to 4"),
        (torch.tensor([1, 2]), r"shape \[2\]: expected \[batch, pos\]"),
        (torch.zeros(0, 2).long(), "at least one sequence"),
        (torch.tensor([[1, 2, 3]]), r"shape \[1, 3\]: expected 2 positions, as n_ctx is"),
        ("1 + 2 =", "no token for it"),
        ([[1, 2], [3]], "of one length"),
    ],
)
def test_bad_tokens_are_refused(tokens: Any, message: str) -> None:
    model = small()
    for run in (model, model.run_with_cache):
        with pytest.raises(TokenError, match=message):
            run(tokens)


def test_a_name_that_no_hook_point_has_is_refused() -> None:
    model = small()
    with pytest.raises(UnknownHookPointError, match=r"nearest: 'blocks\.0\.mlp\.hook_post'"):
        model.run_with_cache("1 + 2", names_filter="blocks.0.mlp.hook_pots")
    with pytest.raises(UnknownHookPointError, match="nearest: 'hook_embed'"):
        model.run_with_hooks("1 + 2", fwd_hooks=[("hook_embd", lambda x, hook: None)])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"combine": "mean"}, "combine='mean': expected 'sum' or 'concat'"),
        ({"d_mlp": 0}, "d_mlp=0"),
        ({"n_ctx": None}, "n_ctx=None: expected a whole number"),
        ({"shared_embedding": "no"}, "shared_embedding='no': expected True or False"),
        ({"unembed_bias": 2}, "unembed_bias=2"),
        ({"act_fn": "sin"}, "act_fn='sin': expected 'relu', 'tanh' or 'gelu'"),
        ({"d_hidden": 2}, "unknown key 'd_hidden'"),
        ({"architecture": "rnn"}, "architecture 'rnn', expected 'mlp'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HookedMLPConfig.from_dict({"d_vocab": 5, "d_vocab_out": 5, **fields})
