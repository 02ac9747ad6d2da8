"""The study of where the structure is cleanest: its page is its table, and its rows are what the embedded models give."""

import pytest

from analyses.seeds import read_csv
from hooked_rnn import HookedRNN, ModularAddition
from hooked_rnn.pretrained import EMBEDDED as FOLDER
from hooked_rnn.pretrained import read_training
from studies.clean import EMBEDDED, PAGE, SETTINGS, STUDY, doubles, figures_of_model, holds, page

every_embedded_model = pytest.mark.parametrize("name", EMBEDDED)


def rows_of(name: str) -> dict[str, dict[str, str]]:
    """By seed, the rows of an embedded model's setting."""
    return {row["seed"]: row for row in STUDY.rows() if row["setting"] == EMBEDDED[name]}


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page() + "\n"


def test_every_setting_has_rows_and_every_row_a_setting() -> None:
    rows = [(row["setting"], row["seed"]) for row in STUDY.rows()]
    assert len(rows) == len(set(rows))
    assert {setting for setting, _ in rows} == set(SETTINGS)


@every_embedded_model
def test_the_seeds_of_an_embedded_model_are_those_of_its_card(name: str) -> None:
    card, rows = {row["seed"]: row for row in read_csv(FOLDER / name / "seeds.csv")}, rows_of(name)
    assert card.keys() == rows.keys()
    for seed, row in rows.items():
        assert row["key_frequencies"] == card[seed]["key_frequencies"]
        for figure in row.keys() & card[seed].keys() - {"key_frequencies"}:
            assert float(row[figure]) == pytest.approx(float(card[seed][figure]), abs=1e-5), (seed, figure)
        verdicts = holds(row)
        for claim, here in (("C2", "C2, all matrices"), ("C7", "C7, all three")):
            assert (card[seed][claim] == "holds") == verdicts[here]
        assert card[seed]["C6"] != "holds"


@every_embedded_model
def test_its_figures_are_those_measured(name: str) -> None:
    record = read_training(FOLDER / name)
    assert record is not None
    config, setting = record["train"], {**SETTINGS[EMBEDDED[name]]}
    assert {key: config[key] for key in setting} == setting
    row = rows_of(name)[str(config["seed"])]
    found = figures_of_model(HookedRNN.from_pretrained(name), ModularAddition(113))
    assert row.keys() - {"setting", "seed"} == found.keys()
    assert found.pop("key_frequencies") == row["key_frequencies"]
    for figure, value in found.items():
        assert value == pytest.approx(float(row[figure]), abs=2e-3), figure  # ties, in float32


def test_doubles_are_folded() -> None:
    assert doubles([1, 28, 29, 56], 113) == [2, 56, 55, 1]
