"""What the README and the documentation show runs, and gives what they say."""

import re
from pathlib import Path

import pytest
import torch

from hooked_rnn import HookedRNN
from hooked_rnn import train as real_train
from hooked_rnn.config import CELLS

ROOT = Path(__file__).parents[1]


def python_of(page: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL))


def test_the_readmes_python(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(python_of("README.md"), names)  # its own assertion is part of it
    assert names["hidden"].shape == (1, 2, 256)
    (accuracy,) = re.findall(r"tensor\((.*?)\)", capsys.readouterr().out)
    assert round(float(accuracy), 2) == 0.97


def test_the_first_screen_of_the_readme_has_what_it_must() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    text = "\n".join(first_screen)
    assert all(
        part in text
        for part in ("make demo", "make test", "run_with_cache", "frequency_hook", "docs/images/removal.png")
    )
    assert len(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].strip().splitlines()) <= 18


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or ((ROOT / page).parent / target).exists(), target


def test_the_training_pages_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = python_of("docs/training.md").replace('"fast", seed=0', '"fast", seed=0, steps=2').replace("=420", "=2")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["train"] is real_train
    assert torch.isfinite(torch.tensor(names["run"].history[-1]["train_loss"]))
    assert (tmp_path / "runs" / "mine" / "model.safetensors").is_file()


def test_the_python_about_step_points() -> None:
    model = HookedRNN.from_pretrained("mod-add-113")
    names: dict[str, object] = {"model": model}
    exec(python_of("docs/hooks.md"), names)
    cache = names["cache"]
    assert torch.equal(cache["blocks.0.steps.1.hook_hidden"], cache["hidden", 0][:, 1])


def test_the_python_about_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CELLS, "leaky", None)  # taken back after the test: the page defines a cell of this name
    names: dict[str, object] = {}
    exec(python_of("docs/cells.md"), names)
    assert names["cache"]["forget_gate", 1].shape == (4, 7, 32)
    assert names["more"].shape == (8, 20, 2)
