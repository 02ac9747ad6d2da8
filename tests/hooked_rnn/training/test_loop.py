"""Training: reproducible to the bit, watched by its history, stopped where it diverges."""

import json
from pathlib import Path

import pytest
import torch

from hooked_rnn import HookedRNN, HookedRNNConfig, ModularAddition, Run, TrainConfig, train
from hooked_rnn.errors import RunDirectoryError, TaskError, TrainingDivergedError
from hooked_rnn.losses import cross_entropy
from hooked_rnn.training.orthogonal import orthogonal_gradient
from hooked_rnn.training.run_directory import read_history
from hooked_rnn.training.state import make_optimizer
from hooked_rnn.weights import load_weights

TASK = ModularAddition(11)


def model_of(
    task: ModularAddition = TASK, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: int
) -> HookedRNN:
    sizes = {"d_model": 16, "d_hidden": 24, **sizes}
    return HookedRNN(HookedRNNConfig(d_vocab=task.d_vocab, d_vocab_out=task.p, seed=seed, dtype=dtype, **sizes))


def config_of(**fields: object) -> TrainConfig:
    return TrainConfig.recipe(
        "fast", **{"steps": 12, "orthogonal_steps": 6, "eval_every": 5, "train_fraction": 0.5, **fields}
    )


def run_of(out: Path | None = None, **fields: object) -> Run:
    return train(model_of(), TASK, config_of(**fields), out, progress=False)


def same_weights(a: HookedRNN, b: HookedRNN) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def without_seconds(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    first = run_of()
    torch.manual_seed(99)  # the global state must not matter
    second = run_of()
    assert same_weights(first.model, second.model)
    assert without_seconds(first.history) == without_seconds(second.history)
    assert not same_weights(first.model, run_of(seed=1).model)


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    run_of()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("recipe", ["fast", "adamw"])
def test_two_steps_are_the_two_steps_by_hand(recipe: str) -> None:
    """Against AdamW written out (decoupled decay, bias correction), in float64."""
    config = TrainConfig.recipe(
        recipe, steps=2, orthogonal_steps=2 * (recipe == "fast"), train_fraction=0.5, eval_every=9
    )
    model, by_hand = model_of(dtype=torch.float64), model_of(dtype=torch.float64)
    train(model, TASK, config, progress=False)

    lr = config.orthogonal_lr if recipe == "fast" else config.lr
    decay = config.orthogonal_weight_decay if recipe == "fast" else config.weight_decay
    (b1, b2), chosen = config.betas, TASK.split(0.5, 0)[0]
    parameters = list(by_hand.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    for t in (1, 2):
        loss = by_hand(TASK.tokens[chosen], return_type="loss", labels=TASK.labels[chosen])
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, (m, v) in zip(parameters, grads, moments, strict=True):
                g = orthogonal_gradient(p.detach(), g) if recipe == "fast" else g
                m.mul_(b1).add_((1 - b1) * g)
                v.mul_(b2).add_((1 - b2) * g * g)
                p.mul_(1 - lr * decay)
                p.sub_(lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + config.eps))
    for mine, expected in zip(model.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)


def test_the_second_phase_begins_with_a_fresh_optimizer_of_its_own() -> None:
    config = config_of(orthogonal_lr=0.5, lr=0.25, weight_decay=0.125)
    groups = [make_optimizer(model_of(), config, step).param_groups[0] for step in (6, 7)]
    assert [group["lr"] for group in groups] == [0.5, 0.25]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.125]


def test_history_has_a_row_for_each_evaluation_and_the_last_step() -> None:
    history = run_of().history
    assert [row["step"] for row in history] == [5, 10, 12]
    assert list(history[0]) == ["step", "seconds", "train_loss", "test_loss", "train_accuracy", "test_accuracy"]
    assert [row["step"] for row in run_of(eval_every=1000).history] == [12]


def test_the_last_row_is_true_of_the_model() -> None:
    run = run_of()
    for part, chosen in zip(("train", "test"), TASK.split(0.5, 0), strict=True):
        logits = run.model(TASK.tokens[chosen])[:, -1].detach()
        accuracy = (logits.argmax(-1) == TASK.labels[chosen]).float().mean()
        loss = cross_entropy(logits.unsqueeze(1), TASK.labels[chosen])
        assert run.history[-1][f"{part}_accuracy"] == pytest.approx(float(accuracy), abs=1e-7)
        assert run.history[-1][f"{part}_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_training_on_everything_leaves_no_test_figures() -> None:
    last = run_of(train_fraction=1.0).history[-1]
    assert last["test_loss"] is None
    assert last["test_accuracy"] is None


def test_hooks_on_the_model_are_part_of_what_is_trained() -> None:
    """A permanently ablated unit gets no gradient, so only weight decay could move what it alone feeds."""
    model = model_of()
    model.add_perma_hook("blocks.0.hook_hidden", lambda x, hook: x.index_fill(-1, torch.tensor([3]), 0.0))
    before = model.W_U[3].detach().clone()
    train(model, TASK, config_of(orthogonal_steps=0, weight_decay=0.0), progress=False)
    assert torch.equal(model.W_U[3], before)
    assert not torch.equal(model.W_U[4], model_of().W_U[4])


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_and_generalises(seed: int) -> None:
    task = ModularAddition(59)

    def test_accuracy(steps: int) -> float:
        config = TrainConfig.recipe(
            "fast", steps=steps, orthogonal_steps=250, train_fraction=0.7, eval_every=1000, seed=seed
        )
        model = model_of(task, seed, d_model=128, d_hidden=256)
        return train(model, task, config, progress=False).history[-1]["test_accuracy"]

    assert test_accuracy(300) > 0.95  # at least 0.999 for each of six seeds tried
    assert test_accuracy(20) < 0.05  # the control


def test_a_run_directory_is_a_model_and_a_record(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", checkpoint_every=6)
    assert sorted(path.name for path in run.directory.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "history.jsonl",
        "model.safetensors",
        "train.json",
    ]
    assert same_weights(HookedRNN.from_pretrained(run.directory), run.model)
    assert read_history(run.directory) == run.history
    record = json.loads((run.directory / "train.json").read_text())
    assert TrainConfig.from_dict(record["train"]) == run.config
    assert record["task"] == TASK.to_dict()
    assert record["result"] == run.history[-1]
    assert record["versions"]["torch"] == torch.__version__
    checkpoints = sorted((run.directory / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"step-0000{n}.safetensors" for n in ("00", "06", "12")]
    before, halfway, final = map(load_weights, checkpoints)
    assert torch.equal(before["embed.W_E"], model_of().W_E)
    assert torch.equal(final["embed.W_E"], run.model.W_E)
    assert torch.equal(halfway["embed.W_E"], run_of(steps=6).model.W_E)


def test_writing_a_run_does_not_change_it(tmp_path: Path) -> None:
    assert same_weights(run_of(tmp_path / "run").model, run_of().model)


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "run")
    kept = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        run_of(tmp_path / "run", seed=1)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == kept


def test_an_unwritable_directory_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write a run"):
        run_of(tmp_path / "file" / "run")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    with torch.no_grad():
        model.unembed.W_U[0, 0] = float("nan")
    with pytest.raises(TrainingDivergedError, match=r"became nan at step 1 \(learning rate 0.01, gradient norm nan\)"):
        train(model, TASK, config_of(), progress=False)


def test_a_model_of_other_sizes_is_refused() -> None:
    with pytest.raises(TaskError, match="d_vocab=11: expected 13"):
        train(model_of(), ModularAddition(13), config_of(), progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_runs_where_the_model_is() -> None:
    run = train(model_of().cuda(), TASK, config_of(), progress=False)
    assert run.model.W_E.is_cuda
    expected = run_of().history[-1]["train_loss"]
    assert run.history[-1]["train_loss"] == pytest.approx(expected, rel=1e-2)
