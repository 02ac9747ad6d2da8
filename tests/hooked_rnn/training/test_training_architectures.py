"""Transformer and MLP are trained by the same function, on the same split, as the recurrent network: bit by bit the model differs alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import FIELDS, KINDS, WITH_EQUALS, config_of_kind, die_at_file_operation, start
from torch.nn import functional

from hooked_rnn import HookedMLPConfig, ModularAddition, TrainConfig, TransformerConfig, build_model, load_model, train
from hooked_rnn.architectures import architecture_of
from hooked_rnn.checkpoints import checkpoint_paths
from hooked_rnn.errors import ConversionError, RunDirectoryError, TaskError
from hooked_rnn.training import batches
from hooked_rnn.training.batches import Sequences
from hooked_rnn.training.loop import evaluate
from hooked_rnn.training.run_directory import read_history
from hooked_rnn.weights import load_weights

every_kind = pytest.mark.parametrize("kind", KINDS)
SHORT = {"steps": 9, "orthogonal_steps": 5, "eval_every": 2, "checkpoint_every": 3, "train_fraction": 0.5}


def run_of(kind: str, out: Path | None = None, resume: bool = False, **fields: Any) -> Any:
    config = TrainConfig.recipe("fast", **{**SHORT, **fields})
    return train(build_model(config_of_kind(kind)), WITH_EQUALS, config, out, progress=False, resume=resume)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return architecture_of(model).weights_of(model)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def ending(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """History and checkpoints, but for the seconds."""
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(out)]
    checkpoints = [load_weights(path) for path in checkpoint_paths(out)]
    return history, [{k: v for k, v in tensors.items() if k != "training.seconds"} for tensors in checkpoints]


@pytest.mark.parametrize("seed", [0, 5])
def test_with_an_equals_sign_the_split_is_the_same_pair_by_pair(seed: int) -> None:
    with_it, without = ModularAddition(23, equals_token=True), ModularAddition(23)
    for one, other in zip(with_it.split(0.4, seed), without.split(0.4, seed), strict=True):
        assert torch.equal(with_it.tokens[one][:, :2], without.tokens[other])
        assert torch.equal(with_it.labels[one], without.labels[other])
    assert not torch.equal(with_it.split(0.4, seed)[0], with_it.split(0.4, seed + 1)[0])


@every_kind
def test_the_gradient_is_that_of_the_mean_loss_of_the_plain_forward_pass(kind: str) -> None:
    """In float64, through the model's own forward pass, on minibatch and whole."""
    model, by_hand = (build_model(config_of_kind(kind)).double() for _ in range(2))
    chosen = WITH_EQUALS.split(0.3, 0)[0]
    tokens, labels = WITH_EQUALS.tokens[chosen], WITH_EQUALS.labels[chosen]
    loss = Sequences.of(WITH_EQUALS.tokens, WITH_EQUALS.labels, torch.device("cpu")).chosen(chosen).backward(model)
    logits = by_hand(tokens)
    expected = functional.cross_entropy(logits if logits.ndim == 2 else logits[:, -1], labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    mine, theirs = (architecture_of(m).trained_parameters(m) for m in (model, by_hand))
    assert mine.keys() == theirs.keys()
    for name, parameter in mine.items():
        assert float(theirs[name].grad.norm()) > 0
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-10, atol=1e-14)


@every_kind
def test_the_same_seed_gives_the_same_bits_in_memory_on_disk_and_loaded(kind: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run = run_of(kind)
    assert torch.equal(before, torch.get_rng_state())
    assert same(weights(run.model), weights(run_of(kind, tmp_path / "run").model))
    assert same(weights(run.model), weights(load_model(tmp_path / "run")))
    assert not same(weights(run.model), weights(run_of(kind, seed=1).model))
    assert not run.model.training
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"]


@every_kind
def test_killed_and_gone_on_with_a_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    config = TrainConfig.recipe("fast", **FIELDS)

    def go_on(out: Path) -> Path:
        train(build_model(config_of_kind(kind)), WITH_EQUALS, config, out, progress=False, resume=True)
        return out

    out = tmp_path / "run"
    for operation in (24, 84):  # in the first phase, in the second
        assert start(out, die_at_file_operation, (operation, str(out)), kind=kind).outcome() == "killed"
    steps = [int(path.stem.removeprefix("step-")) for path in checkpoint_paths(out)]
    assert 30 < max(steps) < 60, steps
    assert same_ending(ending(go_on(out)), ending(go_on(tmp_path / "whole")))


def same_ending(a: Any, b: Any) -> bool:
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(same(x, y) for x, y in zip(a[1], b[1], strict=True))


def test_what_a_checkpoint_of_a_transformer_holds(tmp_path: Path) -> None:
    """Weights by HookedTransformer's names, and moments of what is trained alone: not of biases that stay zero."""
    run = run_of("transformer", tmp_path / "run")
    tensors = load_weights(checkpoint_paths(tmp_path / "run")[0])
    assert tensors["blocks.0.attn.W_Q"].shape == (2, 16, 8)
    moments = {name for name in tensors if name.startswith("training.optimizer.exp_avg.")}
    assert {name.rsplit(".", 1)[1] for name in moments} == {"weight"}
    assert len(moments) == len(architecture_of(run.model).trained_parameters(run.model)) == 9
    assert not any(bias.any() for name, bias in run.model.state_dict().items() if name.endswith(".bias"))


def test_biases_that_are_there_are_trained() -> None:
    cfg = TransformerConfig(d_vocab=12, d_vocab_out=11, d_model=16, n_heads=2, d_mlp=24, bias=True)
    run = train(build_model(cfg), WITH_EQUALS, TrainConfig.recipe("fast", **SHORT), progress=False)
    biases = {name: bias for name, bias in weights(run.model).items() if ".b_" in name}
    assert len(biases) == 7
    assert all(bias.any() for name, bias in biases.items())


@pytest.mark.parametrize("through", ["transformer_lens", "torch"])
def test_hooks_on_a_transformer_act_while_it_is_trained(through: str) -> None:
    """A neuron that is ablated gets no gradient, so without weight decay nothing moves what feeds it or what it feeds."""

    def ablate(x: torch.Tensor) -> torch.Tensor:
        return x.index_fill(-1, torch.tensor([3]), 0.0)

    model = build_model(config_of_kind("transformer"))
    if through == "torch":
        model.hook_dict["blocks.0.mlp.hook_post"].register_forward_hook(lambda module, inputs, x: ablate(x))
    else:
        model.add_perma_hook("blocks.0.mlp.hook_post", lambda x, hook: ablate(x))
    config = TrainConfig.recipe("fast", **{**SHORT, "orthogonal_steps": 0, "weight_decay": 0.0})
    before = weights(build_model(config_of_kind("transformer")))
    without_hook = build_model(config_of_kind("transformer"))
    for trained, moves in ((model, False), (without_hook, True)):
        after = weights(train(trained, WITH_EQUALS, config, progress=False).model)
        assert torch.equal(after["blocks.0.mlp.W_out"][3], before["blocks.0.mlp.W_out"][3]) != moves
        assert torch.equal(after["blocks.0.mlp.W_in"][:, 3], before["blocks.0.mlp.W_in"][:, 3]) != moves
        assert not torch.equal(after["blocks.0.mlp.W_out"], before["blocks.0.mlp.W_out"])


@every_kind
def test_evaluated_in_pieces_the_figures_are_those_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(config_of_kind(kind)).double()
    sequences = Sequences.of(WITH_EQUALS.tokens, WITH_EQUALS.labels, torch.device("cpu"))
    split = WITH_EQUALS.split(0.5, 0)
    whole = evaluate(model, sequences, *split)
    monkeypatch.setattr(batches, "PIECE", 7)
    assert evaluate(model, sequences, *split) == pytest.approx(whole, rel=1e-12)


def test_a_run_of_another_architecture_or_seed_is_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_of("transformer", out)
    with pytest.raises(RunDirectoryError, match="model architecture is 'transformer' there and 'mlp' here"):
        run_of("mlp", out, resume=True)
    other = build_model(config_of_kind("transformer", seed=1))
    with pytest.raises(RunDirectoryError, match="model seed is 0 there and 1 here"):
        train(other, WITH_EQUALS, TrainConfig.recipe("fast", **SHORT), out, progress=False, resume=True)
    assert run_of("transformer", out, resume=True).history == read_history(out)


@pytest.mark.parametrize(
    ("cfg", "problem"),
    [
        (TransformerConfig(d_vocab=12, d_vocab_out=11, d_model=8, n_heads=2, n_ctx=2), "n_ctx=2: expected 3"),
        (HookedMLPConfig(d_vocab=12, d_vocab_out=11, d_model=8, n_ctx=2), "n_ctx=2: expected 3"),
        (TransformerConfig(d_vocab=11, d_vocab_out=11, d_model=8, n_heads=2), "d_vocab=11: expected 12"),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_refused(cfg: Any, problem: str) -> None:
    with pytest.raises(TaskError, match=problem):
        train(build_model(cfg), WITH_EQUALS, TrainConfig.recipe("fast", **SHORT), progress=False)


def test_a_transformer_with_room_for_more_is_trained() -> None:
    cfg = TransformerConfig(d_vocab=12, d_vocab_out=11, d_model=8, n_heads=2, d_mlp=8, n_ctx=5)
    assert train(build_model(cfg), WITH_EQUALS, TrainConfig.recipe("fast", **SHORT), progress=False).history


def test_a_model_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ConversionError, match="a Linear: expected a HookedRNN"):
        train(torch.nn.Linear(2, 2), WITH_EQUALS, TrainConfig.recipe("fast", **SHORT), progress=False)


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_the_baselines_learn_and_generalise(kind: str) -> None:
    task, big = ModularAddition(23, equals_token=True), {"d_model": 64, "d_mlp": 128}
    cfg = config_of_kind(kind, d_vocab=24, d_vocab_out=23, **big)

    def test_accuracy(steps: int) -> float:
        config = TrainConfig.recipe(
            "fast", steps=steps, orthogonal_steps=100, orthogonal_lr=3e-3, train_fraction=0.8, eval_every=1000
        )
        return train(build_model(cfg), task, config, progress=False).history[-1]["test_accuracy"]

    assert test_accuracy(200) > 0.8
    assert test_accuracy(10) < 0.4  # the control
