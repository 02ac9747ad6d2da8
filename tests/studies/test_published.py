"""The figures beside the published ones: the page is its table, and a row of it can be made again."""

import pytest

from analyses.seeds import read_csv
from studies.published import PAGE, QUANTITIES, TABLE, figures_of, page, rows_of

TRANSFORMER = "mod-add-113-transformer"


def test_the_row_of_the_embedded_transformer_is_measured_again() -> None:
    again = figures_of(TRANSFORMER)
    row = next(row for row in rows_of("transformer") if int(row["seed"]) == again["seed"])
    for name, value in again.items():
        if isinstance(value, float):
            assert value == pytest.approx(float(row[name]), abs=1e-4), name
        elif name != "name":  # the table has the runs that it was chosen from, by their seeds
            assert str(value) == row[name], name


def test_every_run_has_learned_and_stands_there_once() -> None:
    rows = read_csv(TABLE)
    assert len({row["name"] for row in rows}) == len(rows)
    assert len(rows_of("transformer")) >= 3
    assert all(float(row["accuracy"]) > 0.99 for row in rows)


def test_every_quantity_names_its_operator_and_is_measured_of_some_model() -> None:
    columns = read_csv(TABLE)[0]
    for quantity in QUANTITIES:
        assert quantity.operator
        assert set(quantity.columns) <= columns.keys()


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page() + "\n"
