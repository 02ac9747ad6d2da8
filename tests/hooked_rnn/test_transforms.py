"""torch.func and torch.compile around a hooked network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from causality import ANSWERS, BATCH, STEPS, TOKENS, Point, every_cell, exact, integers, make_model, nonlinear
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from hooked_rnn import HookedRNN
from hooked_rnn.errors import LabelError, TokenError


def look(x: Tensor, hook: HookPoint) -> None:
    """A hook that may edit, and does not."""


def edit_one_step(x: Tensor, hook: HookPoint) -> Tensor | None:
    return nonlinear(x) if hook.step == 2 else None


def write_in_one_step(x: Tensor, hook: HookPoint) -> None:
    if hook.step == 1:
        x[:, 1] *= 0.5


HOOKS: dict[str, list[tuple[str, Callable[..., Any]]]] = {
    "none": [],
    "look": [("blocks.0.hook_hidden", look), ("hook_embed", look)],
    "edit": [("blocks.0.hook_hidden", edit_one_step), ("blocks.1.hook_recurrent", write_in_one_step)],
}


@every_cell
@pytest.mark.parametrize("hooks", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, STEPS)], ids=["last", "all"])
def test_gradients_of_each_sequence_by_vmap(cell: str, hooks: list[tuple[str, Any]], shape: tuple[int, ...]) -> None:
    model, labels = make_model(cell=cell), integers(*shape, high=ANSWERS)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], tokens: Tensor, label: Tensor) -> Tensor:
        options = {"return_type": "loss", "labels": label[None]}
        return torch.func.functional_call(model, parameters, tokens[None], options)

    with model.hooks(fwd_hooks=hooks):
        of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, TOKENS, labels)
        for row in range(BATCH):
            wanted = torch.autograd.grad(loss(parameters, TOKENS[row], labels[row]), list(parameters.values()))
            for got, expected in zip(of_each.values(), wanted, strict=True):
                assert_close(got[row], expected, **exact)


def test_outside_vmap_token_ids_and_labels_are_still_checked_under_torch_func() -> None:
    model = make_model()
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], tokens: Tensor, labels: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, tokens, {"return_type": "loss", "labels": labels})

    labels = integers(BATCH, high=ANSWERS)
    with pytest.raises(TokenError, match="token id 99"):
        torch.func.grad(loss)(parameters, torch.full_like(TOKENS, 99), labels)
    with pytest.raises(LabelError, match="label 99"):
        torch.func.grad(loss)(parameters, TOKENS, torch.full_like(labels, 99))


POINTS: list[Point] = [("hidden", 0), ("out", 1)]


def test_compiled_or_not_a_hook_acts_from_when_it_is_added_until_it_is_removed() -> None:
    model = make_model()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = compiled(TOKENS)
        assert torch.equal(plain, model(TOKENS))
        for kind, layer in POINTS:
            with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_{kind}", lambda x, hook: 2 * x)]):
                hooked = compiled(TOKENS)
                assert torch.equal(hooked, model(TOKENS))
            assert not torch.allclose(hooked, plain)
            assert torch.equal(compiled(TOKENS), plain)
        _, cache = compiled.run_with_cache(TOKENS)
    assert isinstance(compiled, torch.nn.Module)
    assert torch.equal(cache["hidden", 1], model.run_with_cache(TOKENS)[1]["hidden", 1])
    assert isinstance(compiled._orig_mod, HookedRNN)
