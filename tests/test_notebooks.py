"""The notebooks run from an empty kernel, and give what they show and say.

After a change, ``.venv/bin/jupyter execute --inplace docs/notebooks/NAME.ipynb`` writes the new outputs.
"""

import copy
import re
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SECONDS = 90
"""Several times what a notebook takes, so that only one that has grown too slow, or hangs, is stopped."""
DECIMAL = re.compile(r"\d+\.\d+")


def execute(notebook: NotebookNode, seconds: float = SECONDS) -> NotebookNode:
    """A copy with the outputs of a new kernel. Raises the first error of a cell, and TimeoutError beyond so many seconds."""
    run = copy.deepcopy(notebook)
    end = time.monotonic() + seconds
    NotebookClient(
        run,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
        timeout_func=lambda cell: max(0.1, end - time.monotonic()),  # what is left for this cell
    ).execute()
    return run


def shown(notebook: NotebookNode) -> list[list[str]]:
    """What each code cell shows: its text, and for anything else of what type it is."""
    return [
        [output.get("text", " ".join(sorted(output.get("data", {})))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def check_shows_the_same(committed: NotebookNode, fresh: NotebookNode) -> None:
    """The same text and as many figures, numbers to within 0.02 (another processor rounds otherwise)."""
    pairs = list(zip(shown(committed), shown(fresh), strict=True))
    for old, new in pairs:
        assert [DECIMAL.sub("#", text) for text in old] == [DECIMAL.sub("#", text) for text in new]
        old_numbers, new_numbers = (list(map(float, DECIMAL.findall(" ".join(texts)))) for texts in (old, new))
        assert old_numbers == pytest.approx(new_numbers, abs=0.02)


def check_prose_is_asserted(notebook: NotebookNode) -> None:
    """Every decimal number that the text states stands in the code cell after it, where the assertions are."""
    for text, code in zip(notebook.cells, notebook.cells[1:], strict=False):
        if text.cell_type == "markdown":
            asserted = DECIMAL.findall(code.source) if code.cell_type == "code" else []
            assert set(DECIMAL.findall(text.source)) <= set(asserted), text.source


@pytest.fixture(autouse=True)
def kernel_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's is read or written: profiles, connection files; and one thread, as in the tests."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_gives_what_it_shows(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_shows_the_same(notebook, execute(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_says_is_asserted(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    check_prose_is_asserted(notebook)
    assert not any(cell.metadata.get("tags") for cell in notebook.cells)  # such as "raises-exception"
    assert path.stat().st_size < 400_000


def test_the_notebooks_are_found() -> None:
    assert "causal_tracing" in [path.stem for path in NOTEBOOKS]


def test_a_cell_that_raises_is_an_error() -> None:
    with pytest.raises(CellExecutionError, match="assert 1 == 2"):
        execute(new_notebook(cells=[new_code_cell("assert 1 == 2")]))


def test_a_cell_that_does_not_end_is_an_error() -> None:
    with pytest.raises(TimeoutError):
        execute(new_notebook(cells=[new_code_cell("while True: pass")]), seconds=3)


@pytest.mark.parametrize(("old", "new"), [("0.499", "0.549"), ("a + b ", "a - b ")])
def test_an_output_of_another_run_is_noticed(old: str, new: str) -> None:
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "causal_tracing.ipynb", as_version=4)
    check_shows_the_same(notebook, notebook)
    changed = nbformat.reads(nbformat.writes(notebook).replace(old, new), as_version=4)
    assert changed != notebook
    with pytest.raises(AssertionError):
        check_shows_the_same(notebook, changed)


def test_a_number_that_nothing_asserts_is_noticed() -> None:
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "causal_tracing.ipynb", as_version=4)
    changed = nbformat.reads(nbformat.writes(notebook).replace("add up to 0.35", "add up to 0.45"), as_version=4)
    assert changed != notebook
    with pytest.raises(AssertionError, match=r"0\.45"):
        check_prose_is_asserted(changed)
