"""The study of the recipes: its page is its tables, and a row of it can be made again."""

import pytest
import torch

from hooked_rnn.training.config import RECIPES
from studies.recipes import FIGURES, PAGE, SETTINGS, STUDIES, figures_of, page


def test_a_row_made_again_is_that_row_or_on_other_processors_one_of_its_kind() -> None:
    assert torch.get_num_threads() == 1
    recipe, setting, seed = "fast", "d_hidden 128", 0
    row = next(row for row in STUDIES[recipe].rows() if (row["setting"], int(row["seed"])) == (setting, seed))
    again = figures_of(STUDIES[recipe].run(setting, seed))
    if again["key_frequencies"] != row["key_frequencies"]:  # rounding differs, and training amplifies that
        assert again["test_accuracy"] > 0.95
        assert 3 <= again["n_key"] <= 9
        return
    for figure in FIGURES:
        assert float(again[figure]) == pytest.approx(float(row[figure]), abs=2e-3), figure


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_has_its_seeds(recipe: str) -> None:
    seeds = {
        setting: {row["seed"] for row in STUDIES[recipe].rows() if row["setting"] == setting}
        for setting in SETTINGS[recipe]
    }
    assert all(len(chosen) >= 2 for chosen in seeds.values()), seeds
    assert {row["setting"] for row in STUDIES[recipe].rows()} == set(SETTINGS[recipe])


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page() + "\n"
