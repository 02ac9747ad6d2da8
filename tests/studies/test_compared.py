"""C9 over seeds: the page is its files, and what was measured of a model can be measured again."""

import pytest

from analyses.adder import Adder
from analyses.c9 import CRITERIA
from analyses.compared import load_compared
from analyses.metrics import run_metrics
from studies.compared import BY_SEED, PAGE, comparisons, page

MODEL = "mod-add-113"


def test_the_page_is_what_the_files_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page() + "\n"


def test_every_seed_has_every_kind_of_model_and_all_learned() -> None:
    by_seed = [found for name, found in comparisons().items() if name.startswith(BY_SEED)]
    assert len(by_seed) >= 3
    for found in by_seed:
        assert [kind.rsplit("-", 1)[0] for kind in found["models"]] == ["rnn", "mlp", "transformer"]
        adds = found["rows"][0]
        assert adds["name"] == "adds"
        assert {verdict["holds"] for verdict in adds["verdicts"].values()} == {"holds"}


def test_what_was_measured_of_an_embedded_model_is_measured_again() -> None:
    model = load_compared([MODEL])[0]
    assert isinstance(model.adder, Adder)
    metrics = run_metrics(model.adder, model.train)
    rows = {row["name"]: row["measured"][MODEL] for row in comparisons()["embedded"]["rows"]}
    assert rows.keys() == {criterion.name for criterion in CRITERIA}
    for criterion in CRITERIA:
        assert_alike(criterion.shown(metrics), rows[criterion.name])


def assert_alike(again: str, before: str) -> None:
    """The same words and whole numbers, and others that differ by no more than their last digit, or a few pairs' ties."""
    for one, other in zip(again.split(), before.split(), strict=True):
        numbers = one.strip("%,;"), other.strip("%,;")
        if "." not in one or not numbers[0].lstrip("-")[:1].isdigit():
            assert one == other
            continue
        absolute = 0.11 if "%" in one else 0.011 if "e" not in one else 0.0
        assert float(numbers[0]) == pytest.approx(float(numbers[1]), rel=1e-2, abs=absolute), (again, before)


@pytest.mark.parametrize(
    ("again", "before"),
    [("93.1%", "91.8%"), ("5 with", "6 with"), ("0.74", "0.70"), ("1.1e-05 nats", "1.2e-05 nats"), ("7 6", "7 9")],
)
def test_control_what_differs_is_seen(again: str, before: str) -> None:
    with pytest.raises(AssertionError):
        assert_alike(again, before)
