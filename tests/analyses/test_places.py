"""What is put in at a place is what the rest of the network runs on: three kinds of network, written out by hand."""

from typing import Any

import pytest
import torch
from planted import exact, normal, random_model, unchecked
from test_adder import MLP, transformer
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from analyses.adder import Adder
from analyses.errors import ActivationError
from analyses.places import Place, last_place, logits_with, read
from hooked_rnn import HookedRNN, ModularAddition

P = 7
PLAIN, EQUALS = ModularAddition(P), ModularAddition(P, equals_token=True)
SOME = torch.tensor([3, 11, 30, 48])


def deep_rnn() -> HookedRNN:
    return random_model(EQUALS, d_hidden=10, n_layers=2, bias=True).double()


def deep_transformer() -> Any:
    cfg = TransformerBridgeConfig(
        n_layers=11, n_heads=1, d_model=4, d_head=4, d_mlp=4, act_fn="relu", normalization_type=None,
        n_ctx=3, d_vocab=P + 1, d_vocab_out=P, seed=0, device="cpu",
    )  # fmt: skip
    return TransformerBridge.boot_native(cfg).eval()


def test_the_last_place_of_every_kind_of_model() -> None:
    stepped = deep_rnn()
    stepped.set_use_step_hooks(True, 3)
    for model, task, name in (
        (deep_rnn(), EQUALS, "blocks.1.hook_hidden"),
        (stepped, EQUALS, "blocks.1.hook_hidden"),
        (transformer(P), EQUALS, "blocks.0.hook_resid_post"),
        (deep_transformer(), EQUALS, "blocks.10.hook_resid_post"),
        (MLP(P), PLAIN, "hook_hidden"),
    ):
        assert last_place(Adder(model, task)) == Place(name, -1)
    assert last_place(Adder(deep_rnn(), EQUALS, position=1)).position == 1


def test_a_recurrent_network_runs_on_with_what_is_put_in() -> None:
    model = deep_rnn()
    adder, rows = Adder(model, EQUALS), normal(len(SOME), 10)
    for layer in (0, 1):
        for position in (0, 1, 2):
            h = [torch.zeros(len(SOME), 10).double() for _ in range(2)]
            for t in range(3):
                x = model.W_E[EQUALS.tokens[SOME, t]]
                for i in (0, 1):
                    block = model.blocks[i]
                    h[i] = torch.relu(x @ block.W_ih + block.b_ih + h[i] @ block.W_hh + block.b_hh)
                    if (i, t) == (layer, position):
                        h[i] = rows
                    x = h[i]
            by_hand = h[1] @ model.W_U + model.b_U
            for negative in (0, 3):
                place = Place(f"blocks.{layer}.hook_hidden", position - negative)
                assert_close(logits_with(adder, place, rows, SOME), by_hand, **exact)


def test_a_transformer_runs_on_with_what_is_put_in() -> None:
    model = transformer(P)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(normal(*parameter.shape, seed=len(name)))
    adder, rows = Adder(model, EQUALS), normal(len(SOME), 12).float()
    mlp, W_U, b_U = model.blocks[0].mlp, model.W_U, model.b_U

    def answers(resid: Tensor) -> Tensor:
        return (resid @ W_U + b_U)[:, :P]

    def add_mlp(resid: Tensor, of: Tensor) -> Tensor:
        return answers(resid + torch.relu(of @ mlp.W_in + mlp.b_in) @ mlp.W_out + mlp.b_out)

    before, mid = (read(adder, Place(f"blocks.0.hook_resid_{name}", -1))[SOME] for name in ("pre", "mid"))
    close = {"rtol": 1e-4, "atol": 1e-4}
    with torch.no_grad():
        for name, expected in (
            ("resid_post", answers(rows)),
            ("attn_out", add_mlp(before + rows, before + rows)),
            ("resid_mid", add_mlp(mid, rows)),  # TransformerBridge's is what the MLP reads, not the stream itself
        ):
            assert_close(logits_with(adder, Place(f"blocks.0.hook_{name}", -1), rows, SOME), expected, **close)
    beside = Place("blocks.0.hook_resid_post", 0)  # where nothing is read
    assert_close(logits_with(adder, beside, rows, SOME), adder.logits()[SOME], **close)


def test_an_mlp_runs_on_with_what_is_put_in() -> None:
    model, rows = MLP(P), normal(len(SOME), 12).float()
    assert_close(logits_with(Adder(model, PLAIN), Place("hook_hidden", -1), rows, SOME), (rows @ model.W_U).detach())


@pytest.mark.parametrize(
    "name", ["blocks.0.hook_resid_mid", "blocks.0.hook_attn_out", "blocks.0.mlp.hook_post", "blocks.0.attn.hook_z"]
)
def test_its_own_activation_changes_nothing(name: str) -> None:
    adder = Adder(transformer(P), EQUALS)
    place = Place(name, 2)
    own = read(adder, place)
    assert_close(logits_with(adder, place, own[SOME], SOME), adder.logits()[SOME])
    assert not torch.allclose(logits_with(adder, place, own[SOME].flip(0), SOME), adder.logits()[SOME])


def test_a_place_that_is_none_is_an_error() -> None:
    rnn, lens = Adder(random_model(PLAIN), PLAIN), Adder(transformer(P), EQUALS)
    with unchecked():
        with pytest.raises(
            ActivationError, match=r"no hook point 'blocks.0.hook_hiden': expected 'blocks.0.hook_hidden'"
        ):
            read(rnn, Place("blocks.0.hook_hiden", -1))
        for adder, name, position in ((rnn, "blocks.0.hook_hidden", 2), (lens, "blocks.0.hook_resid_post", -4)):
            with pytest.raises(
                ActivationError, match=rf"position {position} of {name}: expected -{adder.task.n_ctx} to"
            ):
                read(adder, Place(name, position))
        with pytest.raises(ActivationError, match="hook_pattern has shape"):
            read(lens, Place("blocks.0.attn.hook_pattern", -1))


def test_a_model_without_such_a_place_is_an_error() -> None:
    class Named(MLP):
        def setup(self) -> None:
            self.hook_dict = {}

    with pytest.raises(ActivationError, match="no hook point whose name ends in 'hook_resid_post', 'hook_hidden'"):
        last_place(Adder(Named(P), PLAIN))
