"""The swap test, where theory says what must survive: a model and itself, copies in another basis, planted frequencies."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from planted import exact, family_by_hand, normal, pairs, random_model, unchecked
from test_adder import MLP, transformer
from torch import Tensor, nn
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from analyses.adder import Adder
from analyses.errors import ActivationError, FamilyError, FrequencyError, GridError, ModulusError, StitchingError
from analyses.oracle import fourier_adder
from analyses.places import Place, last_place
from analyses.stitching import CONTROLS, LIMITED, Outcome, Range, SwapTest, amplitudes, swap_test, untrained
from hooked_rnn import HookedRNN, ModularAddition
from hooked_rnn.errors import TaskError

P = 31
FREQUENCIES = (3, 5, 12)
CHANCE = 3 / P
"""More than controls that know nothing may have: three times what guessing gives."""


def oracle(frequencies: tuple[int, ...] = FREQUENCIES, p: int = P, **settings: Any) -> Adder:
    return Adder(fourier_adder(p, frequencies, check=False, **settings), ModularAddition(p))


def assert_same(found: Outcome, expected: Outcome, tolerance: float = 1e-9) -> None:
    assert found.accuracy == expected.accuracy
    assert found.loss == pytest.approx(expected.loss, rel=tolerance, abs=tolerance)
    assert found.explained == pytest.approx(expected.explained, rel=tolerance, abs=tolerance)
    assert_close(found.amplitudes, expected.amplitudes, rtol=tolerance, atol=tolerance)


def assert_identity(swapped: SwapTest, tolerance: float = 1e-9) -> None:
    for trial in swapped.trials:
        assert trial.plain.explained == 1.0
        assert_same(trial.swapped, trial.plain, tolerance)
        for name in CONTROLS:
            assert trial.others[name].loss > trial.plain.loss + 0.01, name


@pytest.fixture(scope="module")
def rephased() -> SwapTest:
    return swap_test(oracle(phases=[0.05, 0.1, 0.02]), oracle(), seeds=(0, 1, 2))


@pytest.mark.parametrize("mean", [True, False])
def test_a_model_and_itself_are_the_same(mean: bool) -> None:
    adder = oracle()
    assert_identity(swap_test(adder, adder, mean=mean, seeds=(0, 1)))


def test_so_are_a_transformer_and_an_mlp_and_themselves_at_any_place() -> None:
    lens = Adder(transformer(11), ModularAddition(11, equals_token=True))
    for name in ("hook_resid_post", "hook_resid_mid", "hook_attn_out"):
        place = Place(f"blocks.0.{name}", -1)
        trials = swap_test(lens, lens, place, place, seeds=(0,)).trials
        assert_same(trials[0].swapped, trials[0].plain, 1e-4)
    mlp = Adder(MLP(11), ModularAddition(11))
    assert_same((trial := swap_test(mlp, mlp, seeds=(0,)).trials[0]).swapped, trial.plain, 1e-4)


def test_a_copy_with_its_units_in_another_order_and_scale_is_the_same() -> None:
    adder = oracle()
    model = copy.deepcopy(adder.model)
    block, order = model.blocks[0], torch.randperm(model.cfg.d_hidden, generator=torch.Generator().manual_seed(0))
    scale = 1 + normal(model.cfg.d_hidden).abs()
    with torch.no_grad():
        block.W_ih.copy_(block.W_ih[:, order] * scale)
        block.W_hh.copy_(block.W_hh[order][:, order] * scale / scale[:, None])
        model.unembed.W_U.copy_(model.W_U[order] / scale[:, None])
    other = Adder(model, adder.task)
    assert_close(other.logits(), adder.logits())
    for source, target in ((adder, other), (other, adder)):
        assert_identity(swap_test(source, target, seeds=(0,)))


def test_a_copy_in_another_basis_of_its_embedding_is_the_same() -> None:
    adder = oracle(d_model=8)
    model, Q = copy.deepcopy(adder.model), torch.linalg.qr(normal(8, 8)).Q
    with torch.no_grad():
        model.embed.W_E.copy_(model.W_E @ Q)
        model.blocks[0].W_ih.copy_(Q.T @ model.blocks[0].W_ih)
    for position in (0, 1):
        place = Place("hook_embed", position)
        assert_identity(swap_test(Adder(model, adder.task), adder, place, place, seeds=(0,)))


def test_a_pair_is_the_same_pair_with_and_without_an_equals_sign() -> None:
    class WithEquals(MLP):
        """The same sum; '=' has a row of its own, and positions 0 and 1 are read."""

        def __init__(self, p: int) -> None:
            super().__init__(p)
            self.W_E = nn.Parameter(torch.cat([self.W_E.detach(), torch.ones(1, self.W_E.shape[1])]))
            self.hook_mid = HookPoint()
            self.setup()

        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens[:, :2])

    plain, equals = Adder(MLP(7), ModularAddition(7)), Adder(WithEquals(7), ModularAddition(7, equals_token=True))
    for source, target in ((plain, equals), (equals, plain)):
        trial = swap_test(source, target, seeds=(0,)).trials[0]
        assert_same(trial.swapped, trial.plain, 1e-4)


def test_the_same_frequencies_at_other_phases_survive_and_no_control_does(rephased: SwapTest) -> None:
    for trial in rephased.trials:
        assert trial.plain.accuracy == trial.swapped.accuracy == 1.0
        assert trial.swapped.explained > 0.999
        assert [trial.survives(k) for k in FREQUENCIES] == pytest.approx([1.0] * 3, abs=1e-3)
        assert trial.survives(1) is None
        for name in CONTROLS:
            assert trial.others[name].accuracy < CHANCE, name
        assert trial.others["circles"].accuracy > 0.9
        assert trial.others["own circles"].accuracy == 1.0
        assert_same(trial.others["shared circles"], trial.others["own circles"])
    assert set(rephased.trials[0].others) == {*CONTROLS, *LIMITED}
    assert set(rephased.trials[0].runs) == set(rephased.source_frequencies) == set(FREQUENCIES)


def test_what_the_source_does_not_know_cannot_survive() -> None:
    # What frequencies 3 and 6 have of a number is its remainder by 11; frequency 11 has its remainder by 3.
    source, target = oracle((3,), 33), oracle((3, 11), 33)
    source_of_11 = oracle((11,), 33)
    for trial in swap_test(source, target, source_frequencies=[3], target_frequencies=[3, 11], seeds=(0, 1)).trials:
        assert trial.plain.accuracy == 1.0
        assert trial.survives(3) == pytest.approx(1.0, abs=0.01)
        assert trial.survives(11) == pytest.approx(0.0, abs=0.05)
        assert trial.swapped.accuracy == pytest.approx(1 / 3, abs=0.06)  # c, c + 11 and c + 22 are one to it
        assert trial.swapped.accuracy == pytest.approx(trial.others["shared circles"].accuracy, abs=0.08)
        multiples = torch.arange(1, 17) % 3 == 0
        assert trial.available[multiples].min() > 0.7
        assert trial.available[~multiples].max() < 0.0
    for trial in swap_test(source_of_11, target, source_frequencies=[11], seeds=(0,)).trials:
        assert trial.survives(11) == pytest.approx(1.0, abs=0.01)
        assert trial.survives(3) == pytest.approx(0.0, abs=0.05)
        assert trial.swapped.accuracy < 0.15


def test_other_frequencies_fail_but_for_the_harmonics_of_the_nonlinearity() -> None:
    # 12 units sample harmonics 0..6 of relu(cos(x + f)): of the sum w(a+b) they have k, 2k and, of 3k, one wave of two; 4k is
    # mistaken for 2k (harmonic 8 = 12 - 4 for 4, of amplitudes 1/63 and 1/15).
    source, target = oracle((3,), neurons=12), oracle((5, 7, 14), neurons=12)
    factor = (torch.pi / P * torch.arange(P).double()).cos().abs()
    share = float(factor.mean() ** 2 / factor.square().mean())  # of cos(w(a+b)) in |cos(w(a-b)/2)| cos(w(a+b))
    for trial in swap_test(source, target, source_frequencies=[3], target_frequencies=[5, 7, 14], seeds=(0, 1)).trials:
        assert trial.available[[2, 5]].tolist() == pytest.approx([share, share / (1 + (15 / 63) ** 2)], abs=0.03)
        assert float(trial.available[8]) == pytest.approx(share / 2, abs=0.08)
        others = [k for k in range(1, 16) if k not in (3, 6, 9)]
        assert trial.available[[k - 1 for k in others]].max() < 0.05
        assert trial.swapped.accuracy < 0.15  # weak aliases of higher harmonics
        assert all(abs(trial.survives(k) or 0.0) < 0.1 for k in (5, 7, 14))
        assert trial.others["own circles"].accuracy == 1.0
        assert_same(trial.others["shared circles"], trial.others["mean"])  # there are none
    doubled = swap_test(oracle((3, 5, 12), neurons=12), oracle((6, 10, 7), neurons=12), seeds=(0,)).trials[0]
    assert doubled.swapped.accuracy > 0.9  # 2 * 3, 2 * 5 and 31 - 2 * 12: not one frequency in common


def test_a_strong_ridge_leaves_the_mean() -> None:
    trial = swap_test(oracle(), oracle(), ridge=1e9, seeds=(0,)).trials[0]
    assert_same(trial.swapped, trial.others["mean"], 1e-5)


def test_one_frequency_alone_and_left_out_by_hand() -> None:
    adder, other, k = oracle(), oracle((3, 5)), 5
    place = last_place(adder)
    trial = swap_test(other, adder, seeds=(4,), source_frequencies=[k], target_frequencies=[]).trials[0]
    fit, held = adder.task.split(0.5, 4)
    X, Y = other.activation(place.hook_name), adder.activation(place.hook_name)
    ones = torch.ones(len(X), 1).double()
    design = torch.cat([X, ones], 1)
    mapped = design @ torch.linalg.lstsq(design[fit], Y[fit], driver="gelsd").solution
    functions = torch.cat([family_by_hand(P, k, family) for family in ("a", "b", "block")], 1)
    for rows, alone, without in (
        (mapped, trial.runs[k].alone, trial.runs[k].without),
        (Y, trial.runs[k].own_alone, trial.runs[k].own_without),
    ):
        centred = rows - rows.mean(0)
        part = functions @ torch.linalg.lstsq(functions, centred).solution
        for found, put in ((alone, rows.mean(0) + part), (without, rows - part)):
            logits = put[held] @ adder.W_U
            assert found.accuracy == pytest.approx(
                float((logits.argmax(1) == adder.labels[held]).double().mean()), abs=1e-3
            )
            assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, adder.labels[held])), rel=1e-6)
            missed = (Y[held] - put[held]).square().sum() / (Y[held] - Y[held].mean(0)).square().sum()
            assert found.explained == pytest.approx(1 - float(missed), abs=1e-6)


@pytest.mark.parametrize("p", [9, 10])
def test_amplitudes_are_least_squares_on_any_pairs(p: int) -> None:
    a, b = (x[::3] for x in pairs(p))
    labels = (a + b) % p
    ks = torch.arange(1, p // 2 + 1)
    cosines = (2 * math.pi / p * (ks * (labels[:, None] - torch.arange(p))[..., None]).double()).cos()
    logits = normal(len(labels), p)
    by_hand = torch.linalg.lstsq(cosines.flatten(0, 1), logits.flatten()[:, None]).solution[:, 0]
    assert_close(amplitudes(logits, labels, p), by_hand, **exact)
    planted = 3 * cosines[..., 1] - cosines[..., -1] + normal(len(labels), 1)
    expected = torch.zeros(len(ks)).double()
    expected[1], expected[-1] = 3, -1
    assert_close(amplitudes(planted, labels, p), expected, **exact)


def test_random_weights_of_the_same_sizes() -> None:
    adder = oracle()
    drawn = untrained(adder, 7).model
    fresh = HookedRNN(drawn.cfg.__class__(**{**drawn.cfg.to_dict(), "seed": 7})).to(torch.float64)
    assert drawn is not adder.model
    for name, parameter in drawn.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.shape == fresh.get_parameter(name).shape
        assert not torch.equal(parameter, adder.model.get_parameter(name))
    for model, task in ((transformer(7), ModularAddition(7, equals_token=True)), (MLP(7), ModularAddition(7))):
        source = Adder(model, task)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        other = untrained(source, 0)
        assert not torch.allclose(other.logits(), source.logits())
        assert torch.equal(other.logits(), untrained(source, 0).logits())
        for (name, old), new in zip(model.named_parameters(), other.model.parameters(), strict=True):
            assert torch.equal(old, before[name])
            assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)


def test_nothing_is_left_behind_and_the_seeds_decide() -> None:
    source, target = oracle((3, 5)), oracle()
    weights = [copy.deepcopy(adder.model.state_dict()) for adder in (source, target)]
    state = torch.get_rng_state()
    first, again = (swap_test(source, target, seeds=(3, 4)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for adder, before in zip((source, target), weights, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in adder.model.state_dict().items())
        assert not any(point.has_hooks() for point in adder.model.hook_dict.values())
    assert first.to_dict() == again.to_dict()
    assert first.trials[0].swapped.loss != first.trials[1].swapped.loss


def test_the_spread_and_the_tables(rephased: SwapTest) -> None:
    assert Range.of([3.0, 1.0, 2.0, 10.0]) == Range(1.0, 2.5, 10.0)
    assert f"{Range.of([0.5, 0.25, 0.75]):.1%}" == "50.0% (25.0% to 75.0%)"
    losses = sorted(trial.swapped.loss for trial in rephased.trials)
    assert rephased.range(lambda trial: trial.swapped.loss) == Range(*losses)
    lines = rephased.to_markdown().splitlines()
    assert lines[3].startswith("| swapped | 100.0% (100.0% to 100.0%) | ")
    names = [line.split(" | ")[0].strip("| ") for line in lines]
    assert names[2:13] == ["its own", "swapped", *CONTROLS, *LIMITED]
    assert names[16:] == [str(k) for k in FREQUENCIES]
    stored = json.loads(json.dumps(rephased.to_dict()))
    assert stored["target"] == {"hook_name": "blocks.0.hook_hidden", "position": -1}
    assert stored["trials"][0]["runs"]["5"]["alone"]["accuracy"] == rephased.trials[0].runs[5].alone.accuracy


def test_bad_input_is_one_clear_error() -> None:
    small, other = Adder(random_model(ModularAddition(7)), ModularAddition(7)), oracle()
    hidden = "blocks.0.hook_hidden"
    with unchecked():
        with pytest.raises(ModulusError, match="adds modulo 7, the target modulo 31: expected the same"):
            swap_test(small, other)
        with pytest.raises(
            StitchingError, match=r"24 pairs to fit 25 numbers .*width 24 and the mean.*or a ridge above 0"
        ):
            swap_test(small, small)
        swap_test(small, small, ridge=1e-6, seeds=(0,))
        with pytest.raises(ActivationError, match=r"no hook point 'hook_hiden': expected 'blocks.0.hook_hidden'"):
            swap_test(other, other, target_place=Place("hook_hiden", -1))
        with pytest.raises(ActivationError, match=f"position 2 of {hidden}: expected -2 to 1"):
            swap_test(other, other, Place(hidden, 2))
        with pytest.raises(StitchingError, match=r"fraction=1 of 961 pairs: expected some to be held out"):
            swap_test(other, other, fraction=1)
        with pytest.raises(TaskError, match="fraction=0"):
            swap_test(other, other, fraction=0)
        with pytest.raises(StitchingError, match="ridge=-1"):
            swap_test(other, other, ridge=-1)
        with pytest.raises(StitchingError, match="no seeds"):
            swap_test(other, other, seeds=())
        with pytest.raises(FrequencyError, match="frequency 16"):
            swap_test(other, other, target_frequencies=[16])
        with pytest.raises(FamilyError, match="unknown family 'summ'"):
            swap_test(other, other, families=("summ",))


def test_another_task_is_an_error() -> None:
    class Difference(ModularAddition):
        def operation(self, numbers: Tensor) -> Tensor:
            return numbers[:, 0] - numbers[:, 1]

    model = random_model(ModularAddition(7))
    adder = Adder(model, ModularAddition(7))
    with pytest.raises(StitchingError, match="different answers to 42 pairs"):
        swap_test(adder, Adder(model, Difference(7)))
    with pytest.raises(GridError, match="a task of 3 operands"):
        swap_test(adder, Adder(model, ModularAddition(7, operands=3)))


def test_what_w_u_reads_as_it_is_need_not_be_put_in_by_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = (Adder(fourier_adder(P, ks, (1.0, 0.8)), ModularAddition(P)) for ks in ((5, 12), (5, 3)))
    directly = swap_test(source, target, seeds=(0,)).trials[0]
    monkeypatch.setattr("analyses.stitching.reads_linearly", lambda *_: False)
    by_hook = swap_test(source, target, seeds=(0,)).trials[0]
    assert by_hook.swapped.loss == pytest.approx(directly.swapped.loss, rel=1e-6)
    assert_close(by_hook.swapped.amplitudes, directly.swapped.amplitudes)
    assert by_hook.swapped.accuracy == pytest.approx(directly.swapped.accuracy, abs=0.01)
