"""``transformer_lens.patching`` on a HookedRNN, against the unrolled network with the value replaced."""

from typing import Any

import pandas as pd
import pytest
import torch
from tool_verdicts import works
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import patching
from unrolled_cells import (
    BATCH,
    LAYERS,
    OTHERS,
    STEPS,
    TOKENS,
    by_hand,
    every_cell,
    loop_kinds,
    make_model,
    score,
)

from hooked_rnn import HookedRNN

close = {"rtol": 1e-5, "atol": 1e-6}  # TransformerLens keeps the results in float32
AXES = ("layer", "pos")


def each_score(logits: Tensor) -> Tensor:
    """A number for each sequence."""
    return torch.stack([score(sequence[None]) for sequence in logits])


def patched_logits(model: HookedRNN, kind: str, layer: int, t: int) -> Tensor:
    """OTHERS, with one value of TOKENS."""
    value = by_hand(model).values[kind, layer, t]
    return by_hand(model, OTHERS, {(kind, layer, t): lambda x: value}).logits.detach()


def expected(model: HookedRNN, kind: str) -> Tensor:
    """[layer, pos, batch]"""
    return torch.stack(
        [
            torch.stack([each_score(patched_logits(model, kind, layer, t)) for t in range(STEPS)])
            for layer in range(LAYERS)
        ]
    ).float()


def patch(model: HookedRNN, kind: str, metric: Any, **kwargs: Any) -> Any:
    _, clean_cache = model.run_with_cache(TOKENS)
    kwargs.setdefault("index_axis_names", None if "index_df" in kwargs else AXES)
    setter = kwargs.pop("patch_setter", patching.layer_pos_patch_setter)
    with torch.no_grad():
        return patching.generic_activation_patch(model, OTHERS, clean_cache, metric, setter, kind, **kwargs)


KINDS = [(cell, kind) for cell in ("relu", "tanh") for kind in ("input", "recurrent", "preact", "hidden", "out")]
KINDS += [("gru", kind) for kind in ("input", "carry", "update_preact", "candidate", "hidden", "out")]
KINDS += [("lstm", kind) for kind in ("input", "recurrent", "carry", "forget_gate", "cell", "hidden", "out")]


@works("generic_activation_patch", "layer_pos_patch_setter")
@pytest.mark.parametrize(("cell", "kind"), KINDS)
def test_a_number_for_each_layer_and_position(cell: str, kind: str) -> None:
    model = make_model(cell)
    assert kind in (*loop_kinds(model), "input", "out")
    wanted = expected(model, kind).mean(-1)
    assert_close(patch(model, kind, score), wanted, **close)
    assert_close(patch(model, kind, each_score, reduce="mean"), wanted, **close)
    assert wanted.unique().numel() > STEPS  # or all patches would be the same
    assert not torch.allclose(wanted, torch.full_like(wanted, score(by_hand(model, OTHERS).logits).item()))


@works(
    "PatchingResult",
    "PatchingResult.mean",
    "PatchingResult.stderr",
    "PatchingResult.effect",
    "PatchingResult.normalized",
    "PatchingResult.bootstrap_ci",
    "PatchingResult.permutation_pvalue",
    "PatchingResult.to_dataframe",
)
@every_cell
def test_a_number_for_each_example_metric_and_baseline(cell: str) -> None:
    model = make_model(cell)
    metrics = {"all": each_score, "first": lambda logits: logits[:, -1, 0]}
    result = patch(model, "hidden", metrics, reduce="none", baseline=True)
    wanted = expected(model, "hidden")
    before, clean = each_score(by_hand(model, OTHERS).logits).detach(), each_score(by_hand(model).logits).detach()
    one = result["all"]
    assert result.values.shape == (2, LAYERS, STEPS, BATCH)
    assert_close(one.values, wanted, **close)
    assert_close(one.mean(), wanted.mean(-1), **close)
    assert_close(one.stderr(), wanted.std(-1) / BATCH**0.5, **close)
    assert_close(one.effect(), wanted - before.float(), **close)
    recovered = (wanted - before) / (clean - before)
    assert_close(one.normalized(clean).double(), recovered, rtol=1e-3, atol=1e-4)
    low, high = one.bootstrap_ci()
    assert ((low <= one.mean() + 1e-6) & (one.mean() <= high + 1e-6)).all()
    assert one.permutation_pvalue().shape == (LAYERS, STEPS)
    frame = result.to_dataframe()
    row = frame.query("metric == 'all' and layer == 1 and pos == 2 and example == 1")
    assert_close(
        torch.tensor(row["value"].item()), wanted[1, 2, 1].double().float().double(), **close, check_dtype=False
    )
    # the last hidden state of the top layer is all that the last logits see
    assert_close(result["first"].values[-1, -1], by_hand(model).logits[:, -1, 0].float().detach(), **close)


@works("make_df_from_ranges")
@every_cell
def test_the_rows_of_a_data_frame(cell: str) -> None:
    model = make_model(cell)
    wanted = expected(model, "hidden").mean(-1)
    every = patching.make_df_from_ranges((LAYERS, STEPS), AXES)
    values, frame = patch(model, "hidden", score, return_index_df=True)
    assert frame.equals(every)
    assert_close(values.flatten(), patch(model, "hidden", score, index_df=every), **close)
    some = pd.DataFrame({"layer": [1, 0], "pos": [3, 1]})
    assert_close(patch(model, "hidden", score, index_df=some), torch.stack([wanted[1, 3], wanted[0, 1]]), **close)


@every_cell
def test_a_setter_of_one_s_own_can_take_one_neuron(cell: str) -> None:
    model = make_model(cell)

    def one_neuron(corrupted: Tensor, index: list[int], clean: Tensor) -> Tensor:
        _, t, neuron = index
        corrupted[:, t, neuron] = clean[:, t, neuron]
        return corrupted

    rows = pd.DataFrame({"layer": [0, 1], "pos": [1, 2], "neuron": [3, 0]})
    found = patch(model, "hidden", score, index_df=rows, patch_setter=one_neuron)
    clean = by_hand(model)
    for value, (layer, t, neuron) in zip(found, rows.itertuples(index=False), strict=True):

        def swap(x: Tensor, layer: int = layer, t: int = t, neuron: int = neuron) -> Tensor:
            return torch.where(torch.arange(4) == neuron, clean.values["hidden", layer, t], x)

        wanted = score(by_hand(model, OTHERS, {("hidden", layer, t): swap}).logits)
        assert_close(value, wanted.float().detach(), **close)
        assert not torch.allclose(value, score(patched_logits(model, "hidden", layer, t)).float())


@every_cell
def test_a_step_point_is_patched_as_the_position_that_it_is(cell: str) -> None:
    model = make_model(cell)
    model.set_use_step_hooks(True, STEPS)
    _, clean_cache = model.run_with_cache(TOKENS)
    wanted = expected(model, "hidden")
    for layer in range(LAYERS):
        for t in range(STEPS):
            name = f"blocks.{layer}.steps.{t}.hook_hidden"
            hooks = [(name, lambda x, hook: clean_cache[hook.name])]
            found = each_score(model.run_with_hooks(OTHERS, fwd_hooks=hooks)).detach()
            assert_close(found.float(), wanted[layer, t], **close)


def test_axes_begin_with_the_layer_and_the_model_is_in_eval_mode() -> None:
    with pytest.raises((KeyError, AssertionError)):
        patch(make_model("gru"), "hidden", score, index_axis_names=("pos",))
    with pytest.raises(ValueError, match="eval"):
        patch(make_model("gru").train(), "hidden", score)
