"""The page on loading: its examples run, and its tables have every format and every error that there is."""

import re
from pathlib import Path

import pytest
import torch

from hooked_rnn import LoadedModel, errors
from hooked_rnn.loaders.load import FORMATS, IN_MEMORY, RUN

PAGE = (Path(__file__).parents[3] / "docs" / "loading.md").read_text(encoding="utf-8")


def test_its_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    with torch.random.fork_rng():
        exec(code, {})
    (comment,) = re.findall(r"print\(loaded.notes\)  # (.*)", code)
    assert comment in capsys.readouterr().out


def test_its_tables_are_whole() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.split("## Formats")[1].split("## What weights")[0], re.MULTILINE)
    assert rows == [*(each.name for each in FORMATS), RUN, IN_MEMORY]
    fields = re.findall(r"^\| `(\w+)` \|", PAGE.split("## Formats")[0], re.MULTILINE)
    assert fields == list(LoadedModel.__dataclass_fields__)
    named = re.findall(r"`(\w+Error)`", PAGE)
    assert len(set(named)) == 5
    assert all(hasattr(errors, name) for name in named)
