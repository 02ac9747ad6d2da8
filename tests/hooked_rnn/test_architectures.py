"""One way to save and load every kind of model, and what it refuses."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_rnn import (
    HookedMLP,
    HookedMLPConfig,
    HookedRNN,
    HookedRNNConfig,
    TransformerConfig,
    build_model,
    load_model,
    model_config,
    save_model,
)
from hooked_rnn.architectures import ARCHITECTURES, architecture_of
from hooked_rnn.checkpoints import save_checkpoint
from hooked_rnn.errors import (
    ConfigError,
    ConversionError,
    HookedRNNWarning,
    RunDirectoryError,
    UnknownModelError,
    WeightsError,
)
from hooked_rnn.weights import load_weights, save_weights

CONFIGS = [
    HookedRNNConfig(d_vocab=6, d_vocab_out=5, d_model=4, d_hidden=6, bias=True, seed=3),
    TransformerConfig(d_vocab=6, d_vocab_out=5, d_model=4, n_heads=2, d_mlp=6, seed=3),
    TransformerConfig(d_vocab=6, d_vocab_out=5, d_model=4, n_heads=2, d_mlp=6, bias=True),
    HookedMLPConfig(
        d_vocab=6, d_vocab_out=5, d_model=4, d_mlp=6, n_ctx=3, combine="sum", shared_embedding=False, seed=3
    ),
]
TOKENS = torch.tensor([[1, 2, 5], [4, 0, 5]])


@pytest.fixture(params=CONFIGS, ids=lambda cfg: f"{cfg.architecture}{'-bias' * cfg.bias}")
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    model = build_model(request.param)
    save_model(model, tmp_path / "new" / "saved")
    return model, tmp_path / "new" / "saved"


def test_saved_and_loaded_is_the_same_model(saved: tuple[Any, Path], tmp_path: Path) -> None:
    model, directory = saved
    loaded = load_model(directory)
    assert type(loaded) is type(model)
    assert [model.training, loaded.training] == [True, False]
    assert model_config(loaded) == model_config(model)
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert loaded.loaded_from == directory / "model.safetensors"
    assert load_model(str(directory), dtype=torch.float64)(TOKENS).dtype == torch.float64
    save_model(loaded, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (directory / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_only_another_architecture_is_named_in_the_file(saved: tuple[Any, Path]) -> None:
    model, directory = saved
    stored = json.loads((directory / "config.json").read_text())
    expected = [] if isinstance(model, HookedRNN) else ["architecture"]
    assert list(stored)[:1] == (expected or ["d_vocab"])
    assert stored.get("architecture", "rnn") == model_config(model).architecture


def test_an_rnn_is_saved_as_it_always_was(tmp_path: Path) -> None:
    model = build_model(CONFIGS[0])
    model.save_pretrained(tmp_path / "old")
    save_model(model, tmp_path / "new")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "old" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
    assert torch.equal(HookedRNN.from_pretrained(tmp_path / "new")(TOKENS), model(TOKENS))


def test_hooked_rnn_names_what_loads_another_architecture(saved: tuple[Any, Path]) -> None:
    model, directory = saved
    if isinstance(model, HookedRNN):
        return
    with pytest.raises(
        ConfigError, match=r"config.json: .* architecture '(transformer|mlp)', expected 'rnn'; hooked_rnn.load_model"
    ):
        HookedRNN.from_pretrained(directory)


def test_of_a_run_that_has_not_finished_the_last_checkpoint_is_taken(saved: tuple[Any, Path]) -> None:
    model, directory = saved
    kind = architecture_of(model)
    (directory / "model.safetensors").unlink()
    (directory / "checkpoints").mkdir()
    zeros = {name: torch.zeros_like(weight) for name, weight in kind.weights_of(model).items()}
    save_checkpoint(directory, 1, zeros)
    save_checkpoint(directory, 2, {**kind.weights_of(model), "training.step": torch.tensor(2)})
    with pytest.warns(HookedRNNWarning, match="has not finished: these are the weights of step-000002"):
        loaded = load_model(directory)
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_an_embedded_name_is_loaded() -> None:
    assert isinstance(load_model("mod-add-113"), HookedRNN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(max(w)), "lacks "),
        (lambda w: w.update(extra=torch.zeros(1)), "has unknown extra"),
        (lambda w: w.update({"embed.W_E": torch.zeros(7, 4)}), r"embed.W_E has shape \[7, 4\], expected "),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved: tuple[Any, Path], change: Any, message: str) -> None:
    path = saved[1] / "model.safetensors"
    weights = load_weights(path)
    change(weights)
    save_weights(path, weights)
    with pytest.raises(WeightsError, match=message):
        load_model(saved[1])


def test_what_is_no_model_is_refused(saved: tuple[Any, Path], tmp_path: Path) -> None:
    config = saved[1] / "config.json"
    config.write_text(json.dumps({"architecture": "cnn"}))
    with pytest.raises(
        ConfigError, match="architecture='cnn' in the model's configuration: expected 'rnn', 'transformer' or 'mlp'"
    ):
        load_model(saved[1])
    config.unlink()
    with pytest.raises(RunDirectoryError, match=r"has no config.json"):
        load_model(saved[1])
    with pytest.raises(UnknownModelError, match="no model 'mod-ad-113': expected an embedded one"):
        load_model("mod-ad-113")
    with pytest.raises(TypeError, match="revision"):
        load_model("mod-add-113", revision="main")
    with pytest.raises(ConversionError, match="a Linear: expected a HookedRNN, a TransformerBridge or a HookedMLP"):
        save_model(torch.nn.Linear(1, 1), tmp_path / "linear")
    assert not (tmp_path / "linear").exists()


def test_weights_set_are_weights_read(saved: tuple[Any, Path]) -> None:
    model, _ = saved
    kind = architecture_of(model)
    doubled = {name: 2 * weight for name, weight in kind.weights_of(model).items()}
    kind.set_weights(model, doubled)
    assert all(torch.equal(weight, doubled[name]) for name, weight in kind.weights_of(model).items())


def test_every_kind_is_in_the_registry_by_its_own_name() -> None:
    assert list(ARCHITECTURES) == ["rnn", "transformer", "mlp"]
    assert all(kind.config.architecture == name for name, kind in ARCHITECTURES.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(build_model(CONFIGS[-1]), HookedMLP)
