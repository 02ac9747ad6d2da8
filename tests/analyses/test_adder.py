"""The toolbox's view of a model, on a recurrent network, a transformer and an MLP."""

from typing import Any

import pytest
import torch
from planted import fourier_adder, random_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens import HookedRootModule
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from analyses.adder import Adder
from analyses.errors import ActivationError, ModulusError
from hooked_rnn import ModularAddition

P = 7


class MLP(HookedRootModule):
    """Two embeddings summed, one hidden layer."""

    def __init__(self, p: int, d: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W_E, self.W_U = (nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((p, d), (d, p)))
        self.hook_hidden = HookPoint()
        self.setup()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.hook_hidden(torch.relu(self.W_E[tokens].sum(1))) @ self.W_U


def transformer(p: int) -> Any:
    cfg = TransformerBridgeConfig(
        n_layers=1, n_heads=3, d_model=12, d_head=4, d_mlp=16, act_fn="relu", normalization_type=None,
        n_ctx=3, d_vocab=p + 1, d_vocab_out=p + 1, seed=0, device="cpu",
    )  # fmt: skip
    return TransformerBridge.boot_native(cfg).eval()


def adders() -> list[tuple[Adder, str, int]]:
    rnn = random_model(ModularAddition(P), d_model=12, d_hidden=24)
    return [
        (Adder(rnn, ModularAddition(P)), "blocks.0.hook_hidden", 24),
        (Adder(transformer(P), ModularAddition(P, equals_token=True)), "blocks.0.mlp.hook_post", 16),
        (Adder(transformer(P), ModularAddition(P, equals_token=True)), "blocks.0.attn.hook_z", 12),
        (Adder(MLP(P), ModularAddition(P)), "hook_hidden", 12),
    ]


@pytest.mark.parametrize(("adder", "name", "width"), adders())
def test_every_kind_of_model(adder: Adder, name: str, width: int) -> None:
    assert adder.W_E.shape == (P, 12)
    assert adder.W_U.shape[1] == P
    with torch.no_grad():
        logits = adder.model(adder.tokens)
    assert_close(adder.logits(), (logits[:, -1] if logits.ndim == 3 else logits)[:, :P])
    assert adder.activation(name).shape == (P * P, width)
    rows = torch.tensor([3, 11, 30])
    assert_close(adder.logits(tokens=adder.tokens[rows]), adder.logits()[rows])
    assert_close(adder.activation(name, tokens=adder.tokens[rows]), adder.activation(name)[rows])
    zeroed = adder.logits([(name, lambda x, hook: torch.zeros_like(x))])
    assert not torch.allclose(zeroed, adder.logits())
    assert zeroed.std(dim=0).max() < adder.logits().std(dim=0).max()


def test_another_modulus_is_an_error() -> None:
    model = fourier_adder(P, (1, 2), (1.0, 1.0))
    Adder(model, ModularAddition(P))
    for task in (ModularAddition(P + 2), ModularAddition(P - 2), ModularAddition(P, equals_token=True)):
        with pytest.raises(ModulusError, match="W_E has 7 rows: expected"):
            Adder(model, task)


def test_an_activation_without_a_position_axis_is_an_error() -> None:
    adder = Adder(transformer(P), ModularAddition(P, equals_token=True))
    with pytest.raises(ActivationError, match=r"hook_pattern has shape \[49, 3, 3, 3\]"):
        adder.activation("blocks.0.attn.hook_pattern")
    with pytest.raises(ActivationError, match="position 3"):
        adder.activation("blocks.0.mlp.hook_post", position=3)
