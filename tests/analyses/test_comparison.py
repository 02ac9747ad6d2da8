"""Models side by side: from names to the table, the JSON, the figures and the page; and one clear error for what cannot be."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import Result
from planted import fourier_adder, random_model
from test_adder import MLP, transformer
from typer.testing import CliRunner

from analyses.adder import Adder
from analyses.c9 import CRITERIA
from analyses.cli import app
from analyses.compared import Compared, labelled, load_compared, random_copy, short_names
from analyses.comparison import Comparison, compare, total_ticks
from analyses.comparison_html import render_comparison
from analyses.comparison_report import draw, make_comparison, write_comparison
from analyses.errors import CompareError, ReportError
from analyses.metrics import METRICS
from hooked_rnn import HookedMLP, HookedMLPConfig, ModularAddition, save_model
from hooked_rnn.errors import UnknownModelError
from hooked_rnn.loaders.load import load_checkpoint

P = 13
TASK = ModularAddition(P)


def oracle(frequencies: tuple[int, ...] = (2, 3, 5)) -> Adder:
    return Adder(fourier_adder(P, frequencies, (1.0, 0.9, 0.8), phases=12, dtype=torch.float32), TASK)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    models = [
        Compared("RNN", oracle()),
        Compared("transformer", Adder(transformer(P), ModularAddition(P, equals_token=True)), notes=("a <note>",)),
        Compared("RNN", oracle((1, 3, 4)), train=TASK.split(0.5, 0)[0]),
    ]
    ticks: list[str] = []
    result = compare(models, swap_splits=1, tick=ticks.append)
    assert len(ticks) == total_ticks(models, 1)
    return result


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models on disk: one that adds, one of another kind that does not."""
    where = tmp_path_factory.mktemp("models")
    save_model(oracle().model, where / "adds")
    save_model(HookedMLP(HookedMLPConfig(d_vocab=P, d_vocab_out=P, d_model=8, d_mlp=16)), where / "mlp")
    return str(where / "adds"), str(where / "mlp")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def test_the_transformer_is_what_the_others_are_held_against(comparison: Comparison) -> None:
    assert comparison.names == ["RNN (1)", "transformer", "RNN (2)"]
    assert comparison.reference == 1
    assert comparison.others == [0, 2]
    assert compare([Compared("a", oracle()), Compared("b", oracle())]).reference == 0


def test_random_weights_as_the_reference_leave_nothing_that_holds(comparison: Comparison) -> None:
    for i in comparison.others:
        assert comparison.overall(i)[0] == "no"
        assert "holds" not in [row.verdicts[i] for row in comparison.rows]


def test_a_model_and_its_random_copy(comparison: Comparison) -> None:
    control = random_copy(Compared("RNN", oracle()))
    assert control.name == "RNN (random weights)"
    assert compare([Compared("RNN", oracle()), control]).overall(1)[0] == "no"


def test_the_json_says_it_all(comparison: Comparison) -> None:
    found = json.loads(comparison.to_json())
    assert found["reference"] == "transformer"
    assert list(found["models"]) == comparison.names
    assert found["models"]["transformer"]["notes"] == ["a <note>"]
    assert found["models"]["transformer"]["kind"] == "1-layer transformer, 3 heads, 16 relu neurons"
    assert found["models"]["RNN (1)"]["kind"] == "1-layer relu RNN, 36 units"
    for model in found["models"].values():
        assert list(model["metrics"]) == [metric.name for metric in METRICS]
    assert [row["name"] for row in found["rows"]] == [criterion.name for criterion in CRITERIA]
    for row in found["rows"]:
        assert set(row["measured"]) == set(comparison.names)
        assert set(row["verdicts"]) == set(found["C9"]) == {"RNN (1)", "RNN (2)"}
        for verdict in row["verdicts"].values():
            assert (verdict["holds"] is None) == (verdict["why_null"] is not None)
    assert found["models"]["RNN (2)"]["metrics"]["held-out accuracy"]["value"] == 1.0
    assert found["models"]["RNN (1)"]["metrics"]["held-out accuracy"]["why_null"] == "the split is not known"
    swap = found["swaps"]["RNN (2)"]
    assert swap["into the reference"]["source"]["hook_name"] == "blocks.0.hook_hidden"
    assert swap["out of it"]["source"]["hook_name"] == "blocks.0.hook_resid_post"


def test_the_page_has_the_models_in_columns_and_needs_nothing_else(comparison: Comparison) -> None:
    page = render_comparison(comparison, {"a picture": b"png"})
    assert "http" not in re.sub(r"https?://www.w3.org", "", page)
    assert re.findall(r"<(?:script|link)", page) == []
    (table,) = re.findall(r"<table class=\"models\">(.*?)</table>", page, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    assert len(rows) == 2 + len(CRITERIA)
    for row in rows[1:]:
        assert row.count("<td") == len(comparison.models)
    assert page.count('class="badge') == 2 * (1 + len(CRITERIA))
    assert "(reference)" in rows[0]
    assert "a &lt;note&gt;" in page
    assert "data:image/png;base64," in page


@pytest.mark.parametrize("n", [2, 5])
def test_the_figures_have_a_place_for_each_model(comparison: Comparison, n: int) -> None:
    chosen = [0, 1, 2, 0, 2][:n]
    several = Comparison(
        labelled([comparison.models[i] for i in chosen]), [comparison.metrics[i] for i in chosen], 0, [], {}
    )
    figures = draw(several)
    panels = {name: len(figure.axes) for name, figure in figures.items()}
    assert panels == {"spectra": 3 * n, "removal": 3 * n, "low_rank": 2, "neurons": n, "losses": 1, "clock_pizza": 2}


def test_from_names_to_files(directories: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(*directories, "--out", str(out), "--swap", "1", "--control")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "clock_pizza.png", "compare.html", "compare.json", "losses.png", "low_rank.png", "neurons.png", "removal.png",
        "spectra.png", "swap.png",
    ]  # fmt: skip
    written = json.loads((out / "compare.json").read_text())
    assert list(written["models"]) == ["adds", "mlp", "adds (random weights)"]
    assert written["models"]["mlp"]["kind"] == "relu MLP, 16 neurons, embeddings side by side"


@pytest.mark.parametrize("n", [2, 4])
def test_the_table_fits_120_columns(directories: tuple[str, str], n: int) -> None:
    if n == 2:
        assert json.loads(run(*directories, "--json").stdout)["reference"] == "adds"
    result = run(*[directories[0]] * (n - 1), directories[1])
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 120
    for criterion in CRITERIA:
        assert criterion.name.split()[0] in result.stdout
    assert "adds (1)" in result.stdout or n == 2
    assert "does not hold" in result.stdout


def test_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("")
    assert short_names(["mod-add-113", "owner/name"]) == ["mod-add-113", "name"]
    assert short_names(["runs/a/seed-0", "runs/b/seed-0"]) == ["runs/a/seed-0", "runs/b/seed-0"]
    assert short_names([str(tmp_path / "x.pt"), "b"]) == ["x", "b"]
    assert [m.name for m in labelled([Compared(name, oracle()) for name in "aba"])] == ["a (1)", "b", "a (2)"]


def test_the_pairs_trained_on_are_those_of_the_run(directories: tuple[str, str]) -> None:
    (embedded, bare) = load_compared(["mod-add-113", directories[0]])
    assert embedded.train is not None
    assert len(embedded.train) == round(0.4 * 113**2)
    assert bare.train is None
    directory = Path(directories[0])
    try:
        (directory / "train.json").write_text('{"task": {"name": "ModularAddition", "p": 13}, "train": {"seed": 0}}')
        with pytest.raises(CompareError, match=r"does not say the split: KeyError\('train_fraction'\)"):
            load_compared([directories[0]])
    finally:
        (directory / "train.json").unlink()


def test_what_cannot_be_compared_is_one_clear_error(directories: tuple[str, str], tmp_path: Path) -> None:
    adds = directories[0]
    assert run(adds).stderr.startswith("hooked-rnn: 1 model: expected at least two")
    other = "adds adds modulo 13, mod-add-113 modulo 113: expected the same modulus"
    assert other in run(adds, "mod-add-113").stderr
    with pytest.raises(UnknownModelError):
        make_comparison([adds, "nowhere"], progress=False)
    three = ModularAddition(5, operands=3)
    save_model(random_model(three), tmp_path / "three")
    record = {"task": three.to_dict(), "train": {"train_fraction": 0.5, "seed": 0}}
    (tmp_path / "three" / "train.json").write_text(json.dumps(record))
    with pytest.raises(CompareError, match="of a task of 3 operands"):
        make_comparison([adds, str(tmp_path / "three")], progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot write"):
        make_comparison([adds, adds], tmp_path / "file" / "out", progress=False)
    for message in (run(adds), run(adds, "nowhere"), run(adds, adds, "--out", str(tmp_path / "file"))):
        assert message.exit_code == 1
        assert message.stderr.count("\n") == 1


def test_a_directory_that_vanishes_is_one_clear_error(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyses.comparison_report.draw", lambda _: {})  # that takes seconds
    with pytest.raises(ReportError, match="cannot write the comparison to"):
        write_comparison(comparison, tmp_path / "gone")


def test_the_real_transformer_beside_an_embedded_network_is_loaded(directories: tuple[str, str]) -> None:
    path = Path(__file__).parents[3] / "shared" / "checkpoints" / "transformer_mod113_paper_format.pth"
    if not path.is_file():
        pytest.skip("the checkpoint is not here")
    (model,) = load_compared([str(path)])
    assert model.kind == "1-layer transformer, 4 heads, 512 relu neurons"
    assert model.name == "transformer_mod113_paper_format"
    assert load_checkpoint(path).p == model.adder.p == 113
    assert model.train is None


def test_an_mlp_of_the_tests_is_a_model_too() -> None:
    assert Compared("x", Adder(MLP(P), TASK)).kind == "MLP"
