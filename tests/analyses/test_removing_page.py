"""The page on removing frequencies: its functions exist, and its figures are what is measured."""

import importlib
import re
from pathlib import Path

import pytest

from analyses.adder import Adder
from analyses.key_frequencies import find
from analyses.removal import MODES
from analyses.restricted import VARIANTS
from analyses.subspace import leave_out
from analyses.weight_removal import WEIGHTS
from hooked_rnn import HookedRNN, ModularAddition

PAGE = (Path(__file__).parents[2] / "docs" / "removing.md").read_text(encoding="utf-8")


def first_cells(header: str) -> list[str]:
    rows = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip().strip('`"') for row in rows]


def test_its_functions_exist() -> None:
    named = re.findall(r"`(?:with )?([a-z_]+)\.([a-zA-Z_]+)[`(]", PAGE)
    assert len(named) >= 9
    for module, function in named:
        if module != "analyses":
            assert hasattr(importlib.import_module(f"analyses.{module}"), function), (module, function)


def test_it_has_every_mode_weight_and_variant() -> None:
    assert first_cells("| mode |") == list(MODES)
    assert first_cells("| weight |") == ["W_E", "W_U", "W_ih", "W_hh"]
    assert set(WEIGHTS) == {"W_E", "W_U", "W_ih", "W_hh"}
    assert first_cells("| variant |") == list(VARIANTS)


def test_its_leave_out_is_what_is_measured() -> None:
    adder = Adder(HookedRNN.from_pretrained("mod-add-113"), ModularAddition(113))
    hidden, key = adder.activation("blocks.0.hook_hidden"), find(adder).frequencies
    families = ("a", "b", "sum", "difference")
    beside, alone = (leave_out(hidden, adder.tokens, 113, key, beside=chosen) for chosen in (families, None))
    assert "five key frequencies: 99% and 0.04%, by ten directions of 256" in PAGE
    assert (len(key), f"{beside.removed:.0%}", f"{beside.collateral:.2%}", beside.rank) == (5, "99%", "0.04%", 10)
    assert "96% and 0.6% with the family alone" in PAGE
    assert (f"{alone.removed:.0%}", f"{alone.collateral:.1%}") == ("96%", "0.6%")
    assert hidden.shape[1] == pytest.approx(256)
