"""What the page on patching shows runs, and gives what it says."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "patching.md"


def test_the_patching_pages_python(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)  # its own assertions are part of it
    (shares,) = re.findall(r"tensor\(\[\[(.*?)\]\]", capsys.readouterr().out)
    first, last = (float(share) for share in shares.split(","))
    assert (round(first, 2), round(last, 3)) == (0.41, 1.0)
