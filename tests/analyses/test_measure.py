"""What is measured of a network that was built by hand, and of random weights; and what a directory says of itself."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import FREQUENCIES, P, accuracy, circles, fourier_adder, orthonormal_rows, random_model, unchecked
from torch.nn import functional
from torch.testing import assert_close

from analyses.adder import Adder
from analyses.circuit import read_circuit
from analyses.claims import judge
from analyses.errors import ReportError
from analyses.measure import (
    Measurements,
    Subject,
    accuracy_of,
    check_task,
    key_frequencies_of,
    load_subject,
    matrices,
    measure,
    n_ticks,
    spectra_of,
    task_of,
)
from analyses.sites import SITES
from hooked_rnn import HookedRNN, ModularAddition, ModularTask, TrainConfig, train
from hooked_rnn.errors import HookedRNNError, RunDirectoryError, UnknownFormatError, UnknownModelError

TASK = ModularAddition(P)


def subject(model: HookedRNN, task: ModularTask = TASK) -> Subject:
    return Subject("a network", model, task, None, None)


@cache
def adder() -> Subject:
    return subject(fourier_adder(noise=1e-3, dtype=torch.float32))


@cache
def of_the_adder() -> Measurements:
    return measure(adder())


@cache
def of_random_weights() -> Measurements:
    return measure(subject(random_model(TASK)))


# The analytic adder


def test_the_adder_adds() -> None:
    m = of_the_adder()
    assert m.accuracy == accuracy_of(adder()) == accuracy(adder().model, TASK) == 1.0
    assert m.held_out_accuracy is None


@pytest.mark.parametrize("p", [5, 23, 53])
@pytest.mark.parametrize("frequencies", [[1], [2, 1]])
def test_the_adder_adds_whatever_the_odd_modulus(p: int, frequencies: list[int]) -> None:
    model = fourier_adder(p, frequencies, [1.0, 0.7][: len(frequencies)])
    assert accuracy(model, ModularAddition(p)) == 1.0


def test_the_loss_is_the_mean_cross_entropy_of_the_last_position() -> None:
    with torch.no_grad():
        logits = adder().model(TASK.tokens)[:, -1].double()
    assert of_the_adder().loss == pytest.approx(float(functional.cross_entropy(logits, TASK.labels)))


def test_planted_frequencies_are_key_at_the_input_in_the_state_and_at_the_output() -> None:
    m = of_the_adder()
    assert m.key.by_share == list(FREQUENCIES)
    assert m.key.frequencies == sorted(FREQUENCIES)
    assert m.hidden_spectrum.strongest(3) == m.output_spectrum.strongest(3) == set(FREQUENCIES)
    assert m.output_spectrum.share_of(list(FREQUENCIES)) > 0.99
    assert key_frequencies_of(adder().model, TASK).by_share == m.key.by_share


def test_the_adder_is_low_rank_pure_and_made_of_circles() -> None:
    m = of_the_adder()
    assert m.components == 6
    assert set(m.energy) == {"W_E", "W_ih", "W_hh", "W_U", "W_E W_ih"} == set(m.untrained_energy)
    assert min(m.energy.values()) > 0.98
    assert max(m.untrained_energy.values()) < 0.75
    assert min(a.mean_purity for a in m.attributions.values()) > 0.98
    assert m.attributions["W_E"].frequency == [k for k in FREQUENCIES for _ in range(2)]
    assert m.explained > 0.99
    for points in m.circles.values():
        assert_close(points.norm(dim=1) / points.norm(dim=1).mean(), torch.ones(P).double(), rtol=0.0, atol=0.02)


def test_every_key_frequency_is_fitted_and_removed() -> None:
    m = of_the_adder()
    assert list(m.fits) == list(m.circles) == m.key.frequencies
    assert list(m.ablations) == ["W_E", "hidden", "W_U"] == list(SITES)
    for ablation in m.ablations.values():
        assert list(ablation.key) == list(ablation.random) == list(ablation.equal_power) == [1, 2, 3]
        assert len(ablation.subsets) == 7


def test_removing_all_planted_frequencies_destroys_the_adder_and_as_many_others_do_not() -> None:
    for site, ablation in of_the_adder().ablations.items():
        assert ablation.random[3].min == 1.0, site
        # From the state only the mean over a-b of |cos(w(a-b)/2)| cos(w(a+b)) goes, and the rest still says a little.
        assert ablation.key[3].mean < (0.3 if site == "hidden" else 0.06), site


def test_the_claims_about_the_adder_are_those_its_construction_implies() -> None:
    claims = judge(of_the_adder())
    verdicts = {claim.id: claim.holds for claim in claims}
    assert list(verdicts) == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    # C6: |cos(w(a-b)/2)| is no function of a+b. C7: from the weights it holds, from the state it does not.
    expected = ["holds", "holds", "holds", "holds", "holds", "no", "partly"]
    assert list(verdicts.values()) == expected
    assert claims[-1].by_part == {"W_E": "holds", "hidden": "no", "W_U": "holds"}


# Random weights


def test_random_weights_have_no_key_frequency_and_no_claim_holds() -> None:
    m = of_random_weights()
    assert m.accuracy < 0.1
    assert (m.key.frequencies, m.components, m.explained) == ([], 0, 0.0)
    assert (m.fits, m.circles) == ({}, {})
    assert all(ablation.key == {} for ablation in m.ablations.values())
    claims = judge(m)
    assert [claim.id for claim in claims] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    assert {claim.holds for claim in claims} == {"no"}


def test_the_untrained_energy_is_that_of_the_configurations_own_weights() -> None:
    m = of_the_adder()
    own = matrices(HookedRNN(adder().model.cfg))
    values = torch.linalg.svdvals(own["W_hh"].detach().double()).square()
    assert m.untrained_energy["W_hh"] == pytest.approx(float(values[:6].sum() / values.sum()))


# Networks of other shapes


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        (ModularAddition(12), {}),
        (ModularAddition(11, equals_token=True), {"bias": True}),
        (ModularAddition(11), {"n_layers": 2, "act_fn": "tanh"}),
        (ModularAddition(2), {}),
        (ModularAddition(3), {"d_model": 1, "d_hidden": 1}),
    ],
)
def test_other_networks_are_measured_too(task: ModularTask, fields: dict[str, Any]) -> None:
    model = random_model(task, **fields)
    m = measure(subject(model, task))
    assert m.accuracy == accuracy(model, task)
    assert len(judge(m)) == 7
    assert len(m.cumulative_energy) == 3 + 2 * model.cfg.n_layers


def test_an_even_modulus_with_nyquist_among_its_key_frequencies_is_measured() -> None:
    task = ModularAddition(12)
    model = random_model(task, d_model=4)
    with torch.no_grad():
        model.embed.W_E.copy_(0.01 * model.W_E + torch.tensor([1.0, -1.0]).repeat(6)[:, None])
    m = measure(subject(model, task))
    assert m.key.frequencies == [6]
    assert m.circles[6].shape == (12, 1)
    assert m.fits[6].projections.shape == (144, 1)
    assert len(judge(m)) == 7


@torch.no_grad()
def test_the_equals_token_is_no_number_of_the_embedding() -> None:
    task = ModularAddition(11, equals_token=True)
    model = random_model(task)
    model.embed.W_E[:11] = (circles(11, [2], [1.0]) @ orthonormal_rows(2, 32)).float()
    model.embed.W_E[11] = 100.0
    m = measure(subject(model, task))
    assert m.key.by_share == [2]
    assert m.explained == pytest.approx(1.0)
    assert m.attributions["W_E"].mean_purity == pytest.approx(1.0)
    assert m.circles[2].shape == (11, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measuring_changes_neither_the_model_nor_the_global_random_state(dtype: torch.dtype) -> None:
    model = fourier_adder(11, [1, 3], [1.0, 0.8], phases=8, noise=1e-3, dtype=dtype)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.random.get_rng_state()
    measure(subject(model, ModularAddition(11)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(point.is_hooked for point in model.hook_points())


@pytest.mark.parametrize("adds", [True, False])
def test_progress_ticks_as_often_as_was_said(adds: bool) -> None:
    task = ModularAddition(11)
    model = fourier_adder(11, [1, 3], [1.0, 0.9], phases=8) if adds else random_model(task)
    ticks: list[str] = []
    m = measure(subject(model, task), ticks.append)
    assert len(m.key.frequencies) == (2 if adds else 0)
    assert len(ticks) == n_ticks(len(m.key.frequencies))
    assert ticks[:2] == ["accuracy", "frequencies"]


def test_matrices_are_named_by_layer() -> None:
    names = list(matrices(random_model(TASK, n_layers=2)))
    assert names == ["W_E", "W_ih", "W_hh", "W_ih[1]", "W_hh[1]", "W_U", "W_E W_ih"]


# Directories


def saved(path: Path, model: HookedRNN, record: object = None) -> str:
    model.save_pretrained(path)
    if record is not None:
        (path / "train.json").write_text(json.dumps(record), encoding="utf-8")
    return str(path)


def record_of(task: ModularTask, **fields: Any) -> dict[str, Any]:
    return {"task": task.to_dict(), "train": {"train_fraction": 0.4, "seed": 3, **fields}}


def test_a_saved_model_is_loaded_with_the_task_of_its_sizes(tmp_path: Path) -> None:
    model = random_model(ModularAddition(7))
    loaded = load_subject(saved(tmp_path, model))
    assert (loaded.name, loaded.directory) == (str(tmp_path), tmp_path)
    assert (loaded.task, loaded.held_out) == (ModularAddition(7), None)
    assert torch.equal(loaded.model.W_U, model.W_U)
    assert not loaded.model.training


def test_train_json_says_what_was_held_out(tmp_path: Path) -> None:
    task = ModularAddition(7)
    loaded = load_subject(saved(tmp_path, random_model(task), record_of(task)))
    _, test = task.split(0.4, 3)
    assert loaded.held_out is not None
    assert loaded.held_out.nonzero().flatten().tolist() == test.tolist()


def test_held_out_accuracy_is_that_of_the_pairs_held_out(tmp_path: Path) -> None:
    task = ModularAddition(7)
    run = train(random_model(task), task, TrainConfig.recipe("fast", steps=20), tmp_path / "run", progress=False)
    m = measure(load_subject(str(tmp_path / "run")))
    last = run.history[-1]
    assert m.held_out_accuracy == pytest.approx(last["test_accuracy"])
    n_train = round(0.4 * 49)
    both = (n_train * last["train_accuracy"] + (49 - n_train) * last["test_accuracy"]) / 49
    assert m.accuracy == pytest.approx(both)
    assert judge(m)[0].measured.endswith("held-out pairs")


def test_where_nothing_was_held_out_there_is_no_held_out_accuracy(tmp_path: Path) -> None:
    task = ModularAddition(7)
    loaded = load_subject(saved(tmp_path, random_model(task), record_of(task, train_fraction=1.0)))
    assert loaded.held_out is None
    assert measure(loaded).held_out_accuracy is None


def test_an_equals_token_is_seen_in_the_sizes() -> None:
    assert task_of(random_model(ModularAddition(7, equals_token=True))) == ModularAddition(7, equals_token=True)
    assert task_of(random_model(ModularAddition(7), n_ctx=None)) == ModularAddition(7)


def test_three_operands_are_an_error(tmp_path: Path) -> None:
    task = ModularAddition(5, operands=3)
    model = random_model(task)
    with pytest.raises(ReportError, match="n_ctx=3: expected"):
        task_of(model)
    with pytest.raises(ReportError, match="expected modular addition of two numbers"):
        check_task(model, task)
    with pytest.raises(ReportError, match="expected modular addition of two numbers"):
        load_subject(saved(tmp_path, model, record_of(task)))


@pytest.mark.parametrize("sizes", [{"d_vocab": 6}, {"d_vocab": 9}, {"d_vocab_out": 9}, {"n_ctx": 3}, {"n_ctx": 1}])
def test_sizes_of_no_addition_are_an_error(sizes: dict[str, int], tmp_path: Path) -> None:
    task = ModularAddition(7)
    model = random_model(task, **sizes)
    with pytest.raises(ReportError, match="expected d_vocab="):
        task_of(model)
    with pytest.raises(ReportError, match="expected d_vocab="):
        load_subject(saved(tmp_path, model))
    with pytest.raises(ReportError, match="expected d_vocab=7, d_vocab_out=7, n_ctx=2"):
        load_subject(saved(tmp_path, model, record_of(task)))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_gated_cell_is_measured_too(cell: str, tmp_path: Path) -> None:
    task = ModularAddition(7)
    model = random_model(task, cell=cell)
    m = measure(load_subject(saved(tmp_path, model, record_of(task))))
    assert m.accuracy == accuracy(model, task)
    assert list(m.spectra) == ["W_E", "W_E W_ih", "W_U", "hook_recurrent", "hook_hidden", "hook_logits"]
    assert list(m.ablations) == list(SITES)
    assert len(judge(m)) == 7
    with pytest.raises(ReportError, match=f"cell is '{cell}': expected 'rnn'"):
        read_circuit(model, task, [1])


@pytest.mark.parametrize("answers", [1, 8000])
def test_sizes_that_make_no_task_are_an_error(answers: int) -> None:
    model = random_model(ModularAddition(7), d_model=1, d_hidden=1, d_vocab=answers, d_vocab_out=answers)
    with pytest.raises(ReportError):
        task_of(model)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"task": ModularAddition(7).to_dict()},
        {"train": {"train_fraction": 0.4, "seed": 3}},
        {"task": ModularAddition(7).to_dict(), "train": {"seed": 3}},
        {"task": ModularAddition(7).to_dict(), "train": [0.4, 3]},
        {"task": "ModularAddition", "train": {"train_fraction": 0.4, "seed": 3}},
    ],
)
def test_a_train_json_that_does_not_say_task_and_split_is_an_error(record: dict[str, Any], tmp_path: Path) -> None:
    directory = saved(tmp_path, random_model(ModularAddition(7)), record)
    with unchecked(), pytest.raises(ReportError, match=r"train\.json"):
        load_subject(directory)


def test_a_checkpoint_file_is_a_subject_of_its_own_task(tmp_path: Path) -> None:
    model, file = random_model(ModularAddition(7)), tmp_path / "checkpoint.pt"
    torch.save(model.state_dict(), file)
    loaded = load_subject(str(file))
    assert (loaded.name, loaded.task, loaded.train) == ("checkpoint.pt", ModularAddition(7), None)
    assert torch.equal(loaded.adder.logits(), Adder(model, ModularAddition(7)).logits())
    torch.save({"state_dicts": [model.state_dict()] * 2}, file)
    assert "the last of 2 state dicts" in load_subject(str(file)).notes  # what the loader says reaches the report
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(UnknownFormatError, match=r"checkpoint\.pt"):
        load_subject(str(file))


def test_an_unknown_task_and_a_broken_file_are_errors_of_their_own(tmp_path: Path) -> None:
    unknown = {"task": {"name": "Division", "p": 7}, "train": {"train_fraction": 0.4, "seed": 3}}
    with pytest.raises(HookedRNNError, match="Division"):
        load_subject(saved(tmp_path / "unknown", random_model(ModularAddition(7)), unknown))
    with pytest.raises(RunDirectoryError, match="expected an object"):
        load_subject(saved(tmp_path / "list", random_model(ModularAddition(7)), [1]))


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError):
        load_subject(str(tmp_path))
    with pytest.raises(UnknownModelError):
        load_subject(str(tmp_path / "nothing"))


def test_spectra_of_the_planted_adder_show_what_was_planted_wherever_it_passes() -> None:
    spectra = spectra_of(Adder(fourier_adder(), TASK))
    assert list(spectra) == ["W_E", "W_E W_ih", "W_U", "hook_recurrent", "hook_preact", "hook_hidden", "hook_logits"]
    for name, spectrum in spectra.items():
        # Not all of it: the second relu's |cos(w(a-b)/2)| makes harmonics.
        assert spectrum.share_of(list(FREQUENCIES)) > 0.8, name
    weak = spectra_of(Adder(random_model(TASK), TASK))["W_E"]
    assert weak.share_of(list(FREQUENCIES)) < 0.6  # the control
