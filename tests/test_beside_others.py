"""Before the benchmark beside the others times anything, it holds that all sides compute the same."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import beside_others
from benchmarks.beside_others import DisagreementError, Hooked, NNsight, Side, TorchHooks
from benchmarks.harness import Comparison
from benchmarks.page import RESULTS
from hooked_rnn import HookedRNN, HookedRNNConfig

TOKENS = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))


def small_model(act_fn: str = "relu", bias: bool = False) -> HookedRNN:
    cfg = HookedRNNConfig(d_vocab=5, d_vocab_out=7, d_model=4, d_hidden=8, act_fn=act_fn, bias=bias, init_scale=1.35)
    model = HookedRNN(cfg).double()
    if bias:
        for parameter in (model.blocks[0].b_ih, model.blocks[0].b_hh, model.unembed.b_U):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return model


def nnsight_side(model: HookedRNN) -> Side:
    pytest.importorskip("nnsight", reason="nnsight is not installed")
    return NNsight(model)


OTHERS = pytest.mark.parametrize("other", [TorchHooks, nnsight_side])


@OTHERS
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act_fn", ["relu", "tanh"])
@torch.no_grad()
def test_captures_and_edits_at_every_step_are_the_same(
    other: Callable[[HookedRNN], Side], act_fn: str, bias: bool
) -> None:
    model = small_model(act_fn, bias)
    ours, theirs = Hooked(model), other(model)
    torch.testing.assert_close(theirs.plain(TOKENS), ours.plain(TOKENS))
    torch.testing.assert_close(theirs.capture(TOKENS), ours.capture(TOKENS))
    torch.testing.assert_close(theirs.capture_list(TOKENS), ours.capture_list(TOKENS))
    for step in range(TOKENS.shape[1]):
        edited = ours.edit(TOKENS, step)
        torch.testing.assert_close(theirs.edit(TOKENS, step), edited)
        changed = (edited - ours.plain(TOKENS)).abs().amax((0, 2)) > 1e-9
        assert changed.tolist() == [t >= step for t in range(TOKENS.shape[1])]
    torch.testing.assert_close(theirs.plain(TOKENS), ours.plain(TOKENS))  # nothing is left behind


@OTHERS
@pytest.mark.parametrize("n_steps", [2, 6])
def test_sides_that_agree_pass(other: Callable[[HookedRNN], Side], n_steps: int) -> None:
    model = small_model()
    beside_others.verify([Hooked(model), other(model)], TOKENS[:, :n_steps])


@OTHERS
@pytest.mark.parametrize("parameter", ["blocks.0.W_ih", "blocks.0.W_hh", "unembed.W_U"])
def test_other_weights_are_refused(other: Callable[[HookedRNN], Side], parameter: str) -> None:
    model = small_model()
    theirs = other(model)
    with torch.no_grad():
        model.get_parameter(parameter).mul_(1 + 1e-4)
    with pytest.raises(DisagreementError, match=theirs.name):
        beside_others.verify([Hooked(model), theirs], TOKENS)


class EditsTheCopy(TorchHooks):
    """Edits what the layer sends upward, as a hook on the output of nn.RNN does: the next step does not see it."""

    def edit(self, tokens: Tensor, step: int) -> Tensor:
        _, states = self.capture(tokens)
        states[:, step] *= 2
        return self.loop.unembed(states)


class EditsTheNextCall(TorchHooks):
    """Counts its calls from one."""

    def edit(self, tokens: Tensor, step: int) -> Tensor:
        return super().edit(tokens, step + 1)


@pytest.mark.parametrize("wrong", [EditsTheCopy, EditsTheNextCall])
def test_an_edit_of_something_else_is_refused(wrong: type[TorchHooks]) -> None:
    model = small_model()
    with pytest.raises(DisagreementError, match="edited logits"):
        beside_others.verify([Hooked(model), wrong(model)], TOKENS)


def test_an_edit_that_is_not_felt_at_the_last_step_is_refused() -> None:
    model = small_model()
    with pytest.raises(DisagreementError, match="step 2 is not felt at the last, 5"):
        beside_others.verify([EditsTheCopy(model), Hooked(model)], TOKENS)


def test_without_nnsight_the_rest_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beside_others, "find_spec", lambda name: None)
    monkeypatch.setattr(beside_others, "SIZES", ((2, 3, 1),))
    results = list(beside_others.comparisons(threads=1))
    assert capsys.readouterr().out == beside_others.NOT_INSTALLED + "\n"
    assert not any("nnsight" in result.name for result in results)
    direct = [result for result in results if result.name.endswith("over HookedRNN")]
    assert len(direct) == 4
    assert all(result.note.endswith("; nnsight not measured") for result in direct)


def test_with_nnsight_every_task_is_measured_on_every_side(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nnsight", reason="nnsight is not installed")
    monkeypatch.setattr(beside_others, "SIZES", ((2, 3, 1),))
    results = list(beside_others.comparisons(threads=1))
    assert len({result.name for result in results}) == len(results) == 13
    assert not any("not measured" in result.note for result in results)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((1.1, 1.2, 1.3), "ours ahead"),
        ((0.9, 1.2, 1.3), "ours ahead, not in every round"),
        ((0.8, 0.9, 1.3), "theirs ahead, not in every round"),
        ((0.7, 0.8, 0.9), "theirs ahead"),
        ((0.7, 1.02, 1.3), "level"),
        ((0.97, 0.98, 0.99), "level"),
    ],
)
def test_who_is_ahead_is_read_from_the_ratios(ratios: tuple[float, ...], expected: str) -> None:
    result = Comparison.of("x", [(ratio, 1.0) for ratio in ratios], threads=1)
    assert beside_others.who_is_ahead(result, "theirs", "ours") == expected


@pytest.mark.parametrize(
    ("ratios", "notes"),
    [
        ((1.1, 1.0, 1.2), ["", "least overhead", ""]),
        ((1.02, 1.0, 1.2), ["among the least", "among the least", ""]),
    ],
)
def test_the_least_overhead_is_read_from_the_ratios(ratios: tuple[float, ...], notes: list[str]) -> None:
    results = [Comparison.of(f"{ratio}", [(ratio, 1.0)], threads=1) for ratio in ratios]
    assert [result.note for result in beside_others.mark_least(results)] == notes


def kept_notes(task: str, *n_steps: int) -> list[str]:
    """Who is ahead, by the results that are kept: torch hooks and nnsight at each length."""
    results = json.loads((RESULTS / "beside-others.json").read_text(encoding="utf-8"))["results"]
    names = tuple(f"{task}, T = {n}, " for n in n_steps)
    return [r["note"] for r in results if r["name"].startswith(names) and r["name"].endswith("over HookedRNN")]


def test_the_page_says_who_is_ahead_as_the_results_do() -> None:
    captures, edits = kept_notes("capture", 2, 32, 256), kept_notes("edit one step", 32, 256)
    assert len(captures) == 6
    assert all(note.startswith("HookedRNN ahead") for note in captures)
    as_list = {n: kept_notes("capture, a list", n) for n in (2, 32, 256)}
    assert all(note.startswith("HookedRNN ahead") for note in as_list[2] + as_list[256])
    assert not any(note.startswith("HookedRNN ahead") or note == "level" for note in as_list[32])
    assert kept_notes("edit one step", 2) == ["level", "level"]
    assert len(edits) == 4
    assert all(note.startswith(("torch hooks ahead", "nnsight 0.8.1 ahead")) for note in edits)
