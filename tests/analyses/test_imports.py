"""Which way the arrow points, and that importing does nothing else."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import analyses
import hooked_rnn

STATES = """
import json, random, sys
import numpy, torch
import transformer_lens, huggingface_hub, matplotlib.figure, rich.progress  # what others do is theirs

def states():
    numpy_state = numpy.random.get_state()
    return [random.getstate(), str(numpy_state[0]), numpy_state[1].tolist(), torch.random.get_rng_state().tolist(),
            torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled()]

before = states()
import hooked_rnn
after_hooked_rnn = states()
without_analyses = not any(name.split(".")[0] == "analyses" for name in sys.modules)
import analyses.cli, analyses.measure, analyses.claims, analyses.spectra, analyses.low_rank, analyses.plots, analyses.html
print(json.dumps({
    "hooked_rnn": before == after_hooked_rnn, "analyses": before == states(), "without_analyses": without_analyses,
}))
"""
COMMAND_LINE = """
import json, sys
import analyses, analyses.cli
print(json.dumps([name for name in ("torch", "numpy", "matplotlib", "transformer_lens", "hooked_rnn") if name in sys.modules]))
"""


def run(code: str, where: Path) -> Any:
    """What a fresh interpreter prints, in a directory and with a home of its own."""
    home = where / "home"
    work = where / "work"
    home.mkdir()
    work.mkdir()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HF_", "MPL"))}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env=inherited | {"HOME": str(home), "MPLCONFIGDIR": str(where / "matplotlib"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(found.stdout)


def made(where: Path) -> list[Path]:
    return [path for part in ("home", "work") for path in (where / part).rglob("*")]


def imported(package: Any) -> Iterator[tuple[str, str]]:
    """Each module of a package by file, and what it imports, anywhere in it."""
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path.name, node.module or ""


def test_hooked_rnn_never_imports_analyses() -> None:
    assert not [found for found in imported(hooked_rnn) if found[1].split(".")[0] == "analyses"]
    assert [found for found in imported(analyses) if found[1].split(".")[0] == "hooked_rnn"]  # the scan sees imports


def test_importing_the_command_line_imports_nothing_heavy_and_makes_no_file(tmp_path: Path) -> None:
    assert run(COMMAND_LINE, tmp_path) == []
    assert made(tmp_path) == []


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bool], list[Path]]:
    where = tmp_path_factory.mktemp("fresh")
    return run(STATES, where), made(where)


def test_importing_touches_no_random_state_and_no_setting(fresh: tuple[dict[str, bool], list[Path]]) -> None:
    assert fresh[0] == {"hooked_rnn": True, "analyses": True, "without_analyses": True}


def test_importing_makes_no_file_and_no_directory(fresh: tuple[dict[str, bool], list[Path]]) -> None:
    assert fresh[1] == []
