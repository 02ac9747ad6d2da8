"""The study of where the structure is cleanest: its page is its table, and its rows are what the embedded models give."""

import pytest

from analyses.seeds import read_csv
from hooked_rnn import HookedRNN, ModularAddition
from hooked_rnn.pretrained import EMBEDDED as FOLDER
from hooked_rnn.pretrained import read_training
from studies.clean import CLEAN, PAGE, SETTINGS, STUDY, doubles, figures_of_model, holds, page

NAME = "mod-add-113-clean"
ROWS = {row["seed"]: row for row in STUDY.rows() if row["setting"] == CLEAN}
"""By seed, those of the embedded model's setting."""


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page() + "\n"


def test_every_setting_has_rows_and_every_row_a_setting() -> None:
    rows = [(row["setting"], row["seed"]) for row in STUDY.rows()]
    assert len(rows) == len(set(rows))
    assert {setting for setting, _ in rows} == set(SETTINGS)


def test_the_embedded_model_has_its_setting_and_the_figures_of_its_row() -> None:
    record = read_training(FOLDER / NAME)
    assert record is not None
    config = record["train"]
    assert {key: config[key] for key in SETTINGS[CLEAN]} == SETTINGS[CLEAN]
    row = ROWS[str(config["seed"])]
    found = figures_of_model(HookedRNN.from_pretrained(NAME), ModularAddition(113))
    assert row.keys() - {"setting", "seed"} == found.keys()
    assert found.pop("key_frequencies") == row["key_frequencies"]
    for figure, value in found.items():
        assert value == pytest.approx(float(row[figure]), abs=2e-3), figure  # ties, in float32


def test_a_seed_that_the_card_has_too_is_the_same_run() -> None:
    card = {row["seed"]: row for row in read_csv(FOLDER / NAME / "seeds.csv")}
    both = card.keys() & ROWS.keys()
    assert len(both) >= 3
    for seed in both:
        row = ROWS[seed]
        assert row["key_frequencies"] == card[seed]["key_frequencies"]
        for figure in row.keys() & card[seed].keys() - {"key_frequencies"}:
            assert float(row[figure]) == pytest.approx(float(card[seed][figure]), abs=1e-5), (seed, figure)
        verdicts = holds(row)
        for claim, here in (("C2", "C2, all matrices"), ("C7", "C7, all three")):
            assert (card[seed][claim] == "holds") == verdicts[here]


def test_doubles_are_folded() -> None:
    assert doubles([1, 28, 29, 56], 113) == [2, 56, 55, 1]
