"""What is written at each step: known of a network built by hand, nothing of random weights, least squares by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import (
    FREQUENCIES,
    STRENGTHS,
    P,
    clock_adder,
    exact,
    family_by_hand,
    fourier_adder,
    normal,
    pairs,
    random_model,
)
from torch import Tensor
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.attribution import hidden_fit
from analyses.circuit import FORMS, WAVES, Circuit, Phases, Waves, doubled, logit_fit, phases, read_circuit, read_stage
from analyses.clock_pizza import clock_or_pizza
from analyses.errors import FamilyError, FrequencyError, GridError, ReportError
from analyses.key_frequencies import logit_spectrum
from hooked_rnn import HookedRNN, ModularAddition


@pytest.fixture(scope="module")
def adder() -> Circuit:
    return read_circuit(fourier_adder(), ModularAddition(P), FREQUENCIES)


def by_hand(p: int, frequency: int, family: str) -> Tensor:
    """The functions of a wave on the grid, as columns."""
    if family.startswith("double"):
        return family_by_hand(p, 2 * frequency, family.removeprefix("double "))
    return family_by_hand(p, frequency, family)


def residual(x: Tensor, functions: Tensor) -> Tensor:
    return x - functions @ (torch.linalg.pinv(functions, rtol=1e-9) @ x)


def logits_by_hand(p: int, frequency: int, form: str) -> Tensor:
    a, b = (x.double()[:, None] for x in pairs(p))
    turn = 2 * torch.pi * frequency / p
    logits = (turn * (a + b - torch.arange(p))).cos()
    return logits if form == "clock" else logits * (turn * (a - b) / 2).cos().abs()


def odd_modulus_frequencies() -> st.SearchStrategy[tuple[int, list[int]]]:
    return st.integers(3, 12).flatmap(
        lambda p: st.tuples(st.just(p), st.lists(st.integers(1, p // 2), unique=True, min_size=1, max_size=3))
    )


def test_every_stage_of_the_adder_is_its_closed_form(adder: Circuit) -> None:
    steps = [(stage.position, stage.point.rsplit(".", 1)[-1]) for stage in adder.stages]
    first = ["hook_embed", "hook_input", "hook_preact", "hook_hidden"]
    second = ["hook_embed", "hook_input", "hook_recurrent", "hook_preact", "hook_hidden", "hook_logits"]
    assert steps == [(0, name) for name in first] + [(1, name) for name in second]
    for stage in adder.stages:
        if "hook_hidden" not in stage.point and stage.point != "hook_logits":
            assert stage.explained == pytest.approx(1.0, abs=1e-10)
            assert stage.relative_error < 1e-5
            assert all(error < 1e-5 for error in stage.errors.values())
    preact = adder.stage("blocks.0.hook_preact", 1)
    assert (preact.share("a"), preact.share("b")) == pytest.approx((0.5, 0.5), abs=1e-10)
    for meeting in adder.phases.values():
        assert (meeting.overlap, meeting.agreement, meeting.concentration) == pytest.approx((1.0, 1.0, 1.0), abs=1e-10)
    embed = adder.stage("hook_embed", 0)
    for k, strength in zip(FREQUENCIES, STRENGTHS, strict=True):
        assert embed.waves["a"][k].amplitude == pytest.approx(strength)


def test_the_adders_relu_makes_the_powers_of_a_rectified_cosine(adder: Circuit) -> None:
    # relu(cos x) = 1/pi + cos(x)/2 + 2/(3 pi) cos(2x) + ..., of mean square 1/4.
    state = adder.stage("blocks.0.hook_hidden", 0)
    variance = 1 / 4 - 1 / torch.pi**2
    assert state.share("a") == pytest.approx((1 / 8) / variance, rel=2e-3)
    assert state.share("double a") == pytest.approx((2 / (9 * torch.pi**2)) / variance, rel=2e-2)
    products = adder.stage("blocks.0.hook_hidden", 1)
    assert products.share("sum") == pytest.approx(products.share("difference"), rel=1e-2)
    assert products.explained == products.explained_by_all


def test_the_adders_logits_are_a_pizza_and_as_much_of_a_clock_as_a_mean_of_cosines_allows(adder: Circuit) -> None:
    assert adder.pizza.explained > 0.9999
    factor = (torch.pi / P * torch.arange(P).double()).cos().abs()
    clock = float(factor.mean() ** 2 / factor.square().mean())  # 8/pi^2 for a large p
    for k in FREQUENCIES:
        assert adder.clock.shares[k] / adder.pizza.shares[k] == pytest.approx(clock, rel=1e-4)
        assert adder.clock.coefficients[k] == pytest.approx(
            adder.pizza.coefficients[k] * float(factor.mean()), rel=1e-3
        )
    assert adder.clock.explained == pytest.approx(clock, rel=1e-3)


def test_what_is_read_is_the_reports_fit() -> None:
    model, task = random_model(ModularAddition(7)).double(), ModularAddition(7)
    _, cache = model.run_with_cache(task.tokens)
    with torch.no_grad():
        expected = hidden_fit(cache["hidden", 0][:, -1], model.W_U, 2)
    assert read_circuit(model, task, [2]).reads[2].relative == pytest.approx(expected.relative)


def test_random_weights_have_no_circuit() -> None:
    p, ks = 31, [5, 12, 3]
    circuit = read_circuit(random_model(ModularAddition(p), d_model=64, d_hidden=64), ModularAddition(p), ks)
    white = len(ks) / (p // 2)
    for stage in circuit.stages:
        if stage.point in ("hook_embed", "blocks.0.hook_input", "blocks.0.hook_recurrent"):
            assert abs(stage.explained - white) < 0.1
    assert all(meeting.concentration < 0.4 for meeting in circuit.phases.values())
    assert circuit.clock.explained < 0.01
    assert circuit.pizza.explained < 0.01


@pytest.mark.parametrize(
    ("equals", "layers", "stages"), [(True, 1, 4 + 5 + 3 + 1), (False, 2, 4 + 3 + 5 + 4 + 1), (True, 2, 7 + 9 + 7 + 1)]
)
def test_an_equals_token_and_more_layers_add_stages(equals: bool, layers: int, stages: int) -> None:
    task = ModularAddition(5, equals_token=equals)
    circuit = read_circuit(random_model(task, n_layers=layers, bias=True), task, [1, 2])
    assert len(circuit.stages) == stages
    assert all(stage.power > 1e-9 for stage in circuit.stages)  # none of them is constant
    # For p = 5 there are two frequencies, each the double of the other: all functions of a alone are waves of a.
    assert circuit.stage("hook_embed", 0).explained == pytest.approx(1.0)
    assert circuit.stages[-1].position == task.n_ctx - 1


@settings(max_examples=25, deadline=None)
@given(odd_modulus_frequencies(), st.integers(1, 4), st.integers(0, 99))
def test_shares_and_errors_are_those_of_least_squares(chosen: tuple[int, list[int]], d: int, seed: int) -> None:
    p, ks = chosen
    x = normal(p * p, d, seed=seed)
    stage = read_stage(x, Waves(p, ks), "blocks.0.hook_hidden", 1)
    centred = x - x.mean(0)
    functions = torch.cat([by_hand(p, k, family) for k in ks for family in WAVES], dim=1)
    # A constant among them (for even p, twice p/2) fits nothing of what is centred.
    left = residual(centred, functions)
    assert stage.relative_error == pytest.approx(float(left.norm() / centred.norm()), abs=1e-6)
    assert stage.explained == pytest.approx(1 - float(left.norm() / centred.norm()) ** 2, abs=1e-9)
    for k in ks:
        for family, waves in stage.waves.items():
            if k in waves:
                part = centred - residual(centred, by_hand(p, k, family))
                assert waves[k].power == pytest.approx(float(part.square().sum()), abs=1e-9)
                assert waves[k].amplitude == pytest.approx(float(part.norm()) / p, abs=1e-9)
        of_k = torch.cat([by_hand(p, k, family) for family in WAVES], dim=1)
        part = centred - residual(centred, of_k)
        projected = centred @ torch.linalg.pinv(part, rtol=1e-9) @ part
        error = float((projected - part).norm() / projected.norm()) if part.norm() > 1e-6 else 0.0
        assert stage.errors[k] == pytest.approx(error, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(odd_modulus_frequencies(), st.sampled_from(FORMS), st.integers(0, 99))
def test_the_logits_fit_is_that_of_least_squares(chosen: tuple[int, list[int]], form: str, seed: int) -> None:
    p, ks = chosen
    functions = torch.stack([logits_by_hand(p, k, form).flatten() for k in ks], dim=1)
    planted = functions @ (1.0 + torch.arange(len(ks)).double())
    logits = planted.view(p * p, p) + normal(p * p, p, seed=seed) + 10 * normal(p * p, 1, seed=seed)
    fit = logit_fit(logits, p, ks, form)
    centred = (logits - logits.mean(1, keepdim=True)).flatten()
    solution = torch.linalg.lstsq(functions, centred[:, None]).solution[:, 0]
    assert list(fit.coefficients.values()) == pytest.approx(solution.tolist())
    left = centred - functions @ solution
    assert fit.explained == pytest.approx(1 - float(left.norm() / centred.norm()) ** 2)


@pytest.mark.parametrize("p", [7, 8])
def test_the_clocks_shares_are_those_of_the_spectrum_of_logits(p: int) -> None:
    logits, ks = normal(p * p, p), list(range(1, p // 2 + 1))
    spectrum = logit_spectrum(logits, ModularAddition(p).labels, p)
    assert list(logit_fit(logits, p, ks).shares.values()) == pytest.approx(spectrum.shares.tolist())


def test_planted_logits_are_explained_and_those_of_the_difference_are_not() -> None:
    p, a_and_b = 11, pairs(11)
    logits = 3 * logits_by_hand(p, 2, "clock") + 5.0 * a_and_b[0][:, None]
    fit = logit_fit(logits, p, [2, 3])
    assert fit.explained == pytest.approx(1.0)
    assert fit.coefficients == pytest.approx({2: 3.0, 3: 0.0}, abs=1e-9)
    of_difference = logits[a_and_b[0] * p + (-a_and_b[1]) % p]  # where b is, -b was
    assert logit_fit(of_difference, p, [2, 3]).explained == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.5, torch.pi / 2, torch.pi])
def test_phases_are_those_that_were_planted(angle: float) -> None:
    p, k, f = 13, 4, torch.linspace(0, 6, 9).double()
    a, b = (2 * torch.pi * k / p * x.double()[:, None] for x in pairs(p))
    meeting = phases(2 * (a + f).cos() + 3 * (b + f + angle).cos(), Waves(p, [k]), k)
    cosine = float(torch.tensor(angle).cos())
    assert (meeting.overlap, meeting.agreement, meeting.concentration) == pytest.approx((1.0, cosine, 1.0), abs=1e-6)
    spread = 2 * torch.pi * torch.arange(9) / 9  # evenly, over as many units
    meeting = phases(2 * (a + f).cos() + 3 * (b + f + spread).cos(), Waves(p, [k]), k)
    assert (meeting.overlap, meeting.agreement, meeting.concentration) == pytest.approx((1.0, 0.0, 0.0), abs=1e-6)
    assert phases(2 * (a + f).cos(), Waves(p, [k]), k) == Phases(0.0, 0.0, 0.0)
    apart = torch.cat([(a + f).cos(), (b + f).cos()], dim=1)  # in other units
    assert phases(apart, Waves(p, [k]), k).overlap == pytest.approx(0.0, abs=1e-9)


def test_units_of_all_phase_differences_make_a_clock_out_of_relus() -> None:
    model, task = clock_adder(P, FREQUENCIES), ModularAddition(P)
    circuit = read_circuit(model, task, FREQUENCIES)
    assert circuit.clock.explained > 0.999
    assert circuit.pizza.explained == pytest.approx(8 / torch.pi**2, rel=1e-2)
    for meeting in circuit.phases.values():
        assert (meeting.overlap, meeting.agreement) == pytest.approx((1.0, 0.0), abs=1e-9)
        assert meeting.concentration == pytest.approx(0.0, abs=1e-9)
    measured = clock_or_pizza(Adder(model, task), triples=1000)
    assert abs(measured.symmetry.symmetricity) < 0.1
    assert measured.symmetry.exchanged > 0.9


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(1, 300))
def test_doubling_folds(p: int, k: int) -> None:
    a = torch.arange(p)
    cos = [(2 * torch.pi / p * (n * a % p).double()).cos() for n in (2 * k, doubled(k, p))]
    assert_close(*cos, **exact)
    assert 0 <= doubled(k, p) <= p // 2


def test_bad_input_is_one_clear_error() -> None:
    task, waves = ModularAddition(7), Waves(7, [1])
    model = random_model(task)
    with pytest.raises(ReportError, match=r"d_vocab=7.*expected d_vocab=11"):
        read_circuit(model, ModularAddition(11), [1])
    with pytest.raises(ReportError, match="cell is 'gru'"):
        read_circuit(random_model(task, cell="gru"), task, [1])
    with pytest.raises(ReportError, match="expected modular addition of two numbers"):
        read_circuit(random_model(ModularAddition(3, 3)), ModularAddition(3, 3), [1])
    with pytest.raises(FrequencyError, match="frequency 4: expected a whole number from 1 to 3"):
        read_circuit(model, task, [4])
    with pytest.raises(FamilyError, match="unknown family 'c'"):
        waves.of("c", 1)
    with pytest.raises(FamilyError, match="unknown form 'pie': expected 'clock' or 'pizza'"):
        logit_fit(torch.zeros(49, 7), 7, [1], "pie")
    with pytest.raises(FrequencyError, match="frequency 0"):
        logit_fit(torch.zeros(49, 7), 7, [0])
    x = torch.zeros(48, 7)
    for of_a_batch in (
        lambda: logit_fit(x, 7, [1]),
        lambda: read_stage(x, waves, "hook_embed", 0),
        lambda: phases(x, waves, 1),
    ):
        with pytest.raises(GridError, match="a batch of 48: expected the full grid"):
            of_a_batch()


def test_no_frequency_and_a_constant_are_nothing() -> None:
    circuit = read_circuit(random_model(ModularAddition(5)), ModularAddition(5), [])
    assert (circuit.clock.explained, circuit.stages[0].explained, circuit.phases) == (0.0, 0.0, {})
    stage = read_stage(torch.ones(25, 3), Waves(5, [1, 2]), "hook_embed", 0)
    assert (stage.explained, stage.relative_error, stage.errors) == (0.0, 0.0, {1: 0.0, 2: 0.0})
    assert logit_fit(torch.ones(25, 5), 5, [1]).explained == 0.0


def test_the_model_is_left_as_it_was() -> None:
    model: HookedRNN = random_model(ModularAddition(5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    read_circuit(model, ModularAddition(5), [1])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())
