"""What from_pretrained takes, and what it refuses."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hooked_rnn import HookedRNN, HookedRNNConfig, load_model
from hooked_rnn.errors import ConfigError, RunDirectoryError, UnknownModelError, WeightsError
from hooked_rnn.files import write_atomically
from hooked_rnn.pretrained import embedded_names
from hooked_rnn.weights import load_weights, save_weights


@pytest.fixture
def saved(tmp_path: Path) -> tuple[HookedRNN, Path]:
    model = HookedRNN(HookedRNNConfig(d_vocab=5, d_vocab_out=5, d_model=4, d_hidden=6, n_layers=2, bias=True, seed=3))
    model.save_pretrained(tmp_path / "saved")
    return model, tmp_path / "saved"


def test_saved_and_loaded_is_the_same_model(saved: tuple[HookedRNN, Path]) -> None:
    model, directory = saved
    loaded = HookedRNN.from_pretrained(directory)
    assert loaded.cfg == model.cfg
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())
    assert not loaded.training
    assert HookedRNN.from_pretrained(str(directory), dtype=torch.float64).cfg.dtype == torch.float64


def test_saving_twice_gives_the_same_bytes(saved: tuple[HookedRNN, Path], tmp_path: Path) -> None:
    model, directory = saved
    model.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (directory / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_a_weights_file_cut_short_is_refused_by_name(saved: tuple[HookedRNN, Path], length: int) -> None:
    path = saved[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"model.safetensors cannot be read"):
        HookedRNN.from_pretrained(saved[1])


@pytest.mark.parametrize("from_end", [1, 100, 500])
def test_one_altered_byte_of_the_weights_is_refused(saved: tuple[HookedRNN, Path], from_end: int) -> None:
    path = saved[1] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-from_end] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model.safetensors was altered"):
        HookedRNN.from_pretrained(saved[1])


def test_weights_that_another_program_saved_are_taken_as_they_stand(saved: tuple[HookedRNN, Path]) -> None:
    model, directory = saved
    safetensors.torch.save_file(model.state_dict(), directory / "model.safetensors")
    assert torch.equal(HookedRNN.from_pretrained(directory).W_E, model.W_E)


def test_a_pickle_is_not_opened(saved: tuple[HookedRNN, Path]) -> None:
    torch.save(saved[0].state_dict(), saved[1] / "model.safetensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        HookedRNN.from_pretrained(saved[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("unembed.W_U"), "lacks unembed.W_U"),
        (lambda w: w.update(extra=torch.zeros(1)), "has unknown extra"),
        (lambda w: w.update({"embed.W_E": torch.zeros(6, 4)}), r"embed.W_E has shape \[6, 4\], expected \[5, 4\]"),
    ],
)
def test_weights_of_another_architecture_are_refused(saved: tuple[HookedRNN, Path], change, message: str) -> None:
    weights = load_weights(saved[1] / "model.safetensors")
    change(weights)
    save_weights(saved[1] / "model.safetensors", weights)
    with pytest.raises(WeightsError, match=message):
        HookedRNN.from_pretrained(saved[1])


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_directory_that_is_no_run_is_refused(saved: tuple[HookedRNN, Path], missing: str) -> None:
    (saved[1] / missing).unlink()
    with pytest.raises(RunDirectoryError, match=f"is no run: it has no {missing}"):
        HookedRNN.from_pretrained(saved[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "a JSON list"), ('{"d_vocab": 5}', "lacks d_vocab_out"), ("\xff", "config.json")],
)
def test_a_spoilt_configuration_is_refused_by_name(saved: tuple[HookedRNN, Path], text: str, message: str) -> None:
    (saved[1] / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        HookedRNN.from_pretrained(saved[1])


def test_an_unknown_key_in_the_configuration_names_the_nearest(saved: tuple[HookedRNN, Path]) -> None:
    values = json.loads((saved[1] / "config.json").read_text())
    (saved[1] / "config.json").write_text(json.dumps({**values, "d_hiden": 6}))
    with pytest.raises(ConfigError, match=r"unknown key 'd_hiden'.*'d_hidden'"):
        HookedRNN.from_pretrained(saved[1])


def test_an_unknown_name_lists_the_embedded_models() -> None:
    with pytest.raises(UnknownModelError, match=r"no model 'mod-ad-113': expected an embedded one \('mod-add-113'"):
        HookedRNN.from_pretrained("mod-ad-113")


def test_a_hub_repository_out_of_reach_is_one_clear_error() -> None:
    with pytest.raises(UnknownModelError, match=r"no model 'nobody/nothing'.*from the Hub it could not be had"):
        HookedRNN.from_pretrained("nobody/nothing")


def test_a_hub_repository_is_loaded_from_its_two_files(
    saved: tuple[HookedRNN, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a Hub that is a directory: only the fetching itself is replaced."""
    fetched = []

    def fetch(repo_id: str, filename: str, **options: object) -> str:
        fetched.append((repo_id, filename))
        return str(saved[1] / filename)

    monkeypatch.setattr("hooked_rnn.pretrained.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", fetch)
    loaded = HookedRNN.from_pretrained("owner/name")
    assert torch.equal(loaded.W_E, saved[0].W_E)
    assert {("owner/name", "config.json"), ("owner/name", "model.safetensors")} <= set(fetched)


def test_pushing_uploads_a_directory_that_loads_again(
    saved: tuple[HookedRNN, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: dict[str, torch.Tensor] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **options: object) -> object:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **options: object) -> str:
            uploaded.update(HookedRNN.from_pretrained(folder_path).state_dict())
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert saved[0].push_to_hub("owner/name") == "done"
    assert torch.equal(uploaded["embed.W_E"], saved[0].W_E)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", embedded_names())
def test_every_embedded_model_loads(name: str) -> None:
    assert load_model(name).cfg.d_vocab > 0


def test_a_run_without_weights_and_checkpoints_is_refused(saved: tuple[HookedRNN, Path]) -> None:
    (saved[1] / "model.safetensors").unlink()
    (saved[1] / "train.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"is no run: it has no model.safetensors and no checkpoint"):
        HookedRNN.from_pretrained(saved[1])


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(UnknownModelError, match="no model ''"):
        HookedRNN.from_pretrained("")
