"""The wheel holds everything: both packages, the command, the embedded weights."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from hooked_rnn.pretrained import embedded_names

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment into which the wheel was installed, without network and without dependencies."""
    tmp = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(tmp), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp.glob("*.whl")
    environment = tmp / "environment"
    venv.create(environment, with_pip=False)
    install = ["--python", str(environment), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    return environment


def run(environment: Path, *command: str) -> str:
    """Run a program of the environment, with this one's packages lent to it behind its own."""
    # The lent packages come from PYTHONPATH, which precedes the environment's own: the check on
    # hooked_rnn.__file__ below would show if this project were among them.
    lent = {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    program, *arguments = command
    return subprocess.run(
        [environment / "bin" / program, *arguments],
        env={**kept, **lent},
        cwd=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_it_is_the_installed_package_that_is_imported(installed: Path) -> None:
    code = "import hooked_rnn, analyses; print(hooked_rnn.__file__); print(analyses.__file__)"
    for file in run(installed, "python", "-c", code).splitlines():
        assert Path(file).is_relative_to(installed)


def test_version_from_the_wheel(installed: Path) -> None:
    assert run(installed, "hooked-rnn", "--version").startswith("hooked-rnn ")


def test_the_embedded_weights_from_the_wheel(installed: Path) -> None:
    code = "from hooked_rnn import load_model, pretrained\nfor name in pretrained.embedded_names(): load_model(name); print(name)"
    assert run(installed, "python", "-c", code).split() == embedded_names()


def test_a_report_on_a_run_from_the_wheel(installed: Path) -> None:
    size = ["--modulus", "11", "--d-model", "8", "--d-hidden", "12"]
    run(installed, "hooked-rnn", "train", *size, "--steps", "4", "--orthogonal-steps", "2", "--out", "tiny")
    run(installed, "hooked-rnn", "report", "tiny", "--out", "report")
    report = json.loads((installed / "report" / "report.json").read_text())
    assert report["model"] == "tiny"
    assert [claim["id"] for claim in report["claims"]] == [f"C{i}" for i in range(1, 8)]


def test_types_are_part_of_it(installed: Path) -> None:
    code = "import hooked_rnn, analyses, pathlib; print(*(pathlib.Path(m.__file__).with_name('py.typed').exists() for m in (hooked_rnn, analyses)))"
    assert run(installed, "python", "-c", code) == "True True\n"
