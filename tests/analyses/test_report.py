"""The report: one directory with everything in it, for a network that adds and for one that does not."""

import base64
import json
import math
import re
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from planted import FREQUENCIES, P, fourier_adder, random_model
from test_adder import MLP, transformer

from analyses import report as report_module
from analyses.claims import VERDICTS
from analyses.errors import ReportError
from analyses.html import render_page
from analyses.measure import n_ticks, subject_of, task_of
from analyses.report import Report, draw, facts, make_report, to_png
from analyses.sections import Picture, Section, Table, pictures
from analyses.views import hidden_view
from hooked_rnn import HookedMLP, HookedMLPConfig, HookedRNN, ModularAddition, TrainConfig, train
from hooked_rnn.errors import UnknownModelError

FIGURES = {
    "frequencies", "key_rules", "weights", "families", "circles", "low_rank", "singular_pairs", "energy", "neurons",
    "circuit", "hidden_fit", "removal", "losses", "subsets", "clock_or_pizza",
}  # fmt: skip
SITES = ["W_E", "hidden", "W_U"]
MATRICES = ["W_E", "W_ih", "W_hh", "W_U", "W_E W_ih"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network that adds."""
    path = tmp_path_factory.mktemp("model")
    fourier_adder(noise=1e-3, dtype=torch.float32).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def out(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of its report, which held another file before."""
    path = tmp_path_factory.mktemp("reports")
    (path / "notes.txt").write_text("mine", encoding="utf-8")
    make_report(str(model), path, progress=False)
    return path


@pytest.fixture(scope="module")
def result(model: Path) -> Report:
    """The same, nothing written."""
    return make_report(str(model), progress=False)


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is written where, not of what is on it: to draw takes most of a report's time."""
    blank = to_png(Figure(figsize=(1, 1)))
    monkeypatch.setattr(report_module, "to_png", lambda figure: blank)


@pytest.fixture(scope="module")
def written(out: Path) -> dict[str, Any]:
    """Its report.json, read by a reader that takes no NaN."""
    return strict((out / "report.json").read_text(encoding="utf-8"))


def strict(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


class Page(HTMLParser):
    """What a page refers to, and the scripts that it holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.scripts: list[str] = []
        self.in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts.append(data)

    @property
    def pictures(self) -> list[bytes]:
        start = "data:image/png;base64,"
        return [base64.b64decode(r.removeprefix(start)) for r in self.references if r.startswith(start)]


# report.json


def test_the_json_has_the_documented_keys(written: dict[str, Any], model: Path) -> None:
    documented = {
        "model",
        "accuracy",
        "loss",
        "key_frequencies",
        "energy",
        "hidden_fit",
        "ablation",
        "control",
        "claims",
    }
    assert documented <= written.keys()
    assert written["model"] == str(model)
    assert written["accuracy"] == 1.0
    assert written["loss"] > 0
    assert written["key_frequencies"] == sorted(FREQUENCIES)


def test_energy_is_by_matrix_and_a_fraction(written: dict[str, Any]) -> None:
    for key in ("energy", "energy_untrained"):
        assert list(written[key]) == MATRICES
        assert all(0 <= held <= 1 + 1e-9 for held in written[key].values())


def test_hidden_fit_is_by_frequency_and_its_square_beside_it(written: dict[str, Any]) -> None:
    assert list(written["hidden_fit"]) == [str(k) for k in sorted(FREQUENCIES)]
    for fit in written["hidden_fit"].values():
        assert fit["squared"] == pytest.approx(fit["relative"] ** 2)
        assert fit["relative"] == pytest.approx(math.sqrt(1 - 8 / math.pi**2), abs=0.02)


@pytest.mark.parametrize("key", ["ablation", "control", "control_equal_power"])
def test_curves_are_by_site_and_number_removed(written: dict[str, Any], key: str) -> None:
    assert list(written[key]) == SITES
    for curve in written[key].values():
        assert list(curve) == ["1", "2", "3"]
        for spread in curve.values():
            assert set(spread) == {"mean", "min", "max"}
            assert 0 <= spread["min"] <= spread["mean"] + 1e-12  # the mean of equal values is rounded
            assert spread["mean"] - 1e-12 <= spread["max"] <= 1


def test_the_control_is_of_other_frequencies_and_of_as_much_power(written: dict[str, Any]) -> None:
    assert written["ablation"]["W_E"]["3"]["mean"] < 0.06
    assert written["control"]["W_E"]["3"]["mean"] == 1.0
    assert written["control_equal_power"]["W_E"]["3"]["mean"] < 0.2  # all the power there is


def test_every_subset_is_in_the_json(written: dict[str, Any]) -> None:
    for site, subsets in written["ablation_subsets"].items():
        assert len(subsets) == 7
        pairs = [row["accuracy"] for row in subsets if len(row["removed"]) == 2]
        assert written["ablation"][site]["2"]["mean"] == pytest.approx(sum(pairs) / 3)


def test_claims_are_c1_to_c7_with_everything_that_explains_them(written: dict[str, Any]) -> None:
    claims = written["claims"]
    assert [claim["id"] for claim in claims] == [f"C{i}" for i in range(1, 8)]
    for claim in claims:
        assert {"id", "claim", "published", "measured", "definition", "holds"} <= claim.keys()
        assert claim["holds"] in VERDICTS
        assert all(claim[key] for key in ("claim", "published", "measured", "definition"))


def test_the_json_says_what_was_reported_on_and_with_what(written: dict[str, Any]) -> None:
    assert written["task"] == {"name": "ModularAddition", "p": P, "operands": 2, "equals_token": False}
    assert written["config"]["d_vocab"] == P
    assert {"python", "torch", "transformer-lens", "hooked-rnn"} <= written["versions"].keys()
    assert sum(written["key_frequency_shares"].values()) == pytest.approx(1.0, abs=0.01)
    assert written["key_frequency_threshold"] == 2 / (P // 2)


# The figures and the page


def test_the_directory_holds_json_page_and_figures_and_what_it_held_before(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    assert names == {"report.json", "report.html", "notes.txt"} | {f"{name}.png" for name in FIGURES}
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_every_figure_is_a_readable_png_with_something_on_it(out: Path) -> None:
    for name in FIGURES:
        pixels = imread(out / f"{name}.png")
        assert min(pixels.shape[:2]) > 300, name
        assert pixels[..., :3].std() > 0.01, name


def test_the_page_needs_no_other_file_and_no_network(out: Path) -> None:
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.references
    assert all(reference.startswith(("data:", "#")) for reference in page.references)


def test_the_page_holds_every_figure_and_the_interactive_view(out: Path) -> None:
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert sorted(page.pictures) == sorted((out / f"{name}.png").read_bytes() for name in FIGURES)
    assert any("TextNeuronActivations" in script for script in page.scripts)
    assert max(map(len, page.scripts)) > 10_000  # the library itself, not a reference to it


def test_the_page_says_what_the_json_says(out: Path, written: dict[str, Any]) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    for claim in written["claims"]:
        assert f"<td>{claim['id']}</td>" in text
        assert f'class="verdict {claim["holds"]}">{VERDICTS[claim["holds"]]}' in text


def test_what_stands_on_the_page_is_escaped() -> None:
    section = Section("<s>", [Picture('"x"', "<c>", Figure), Table("<t>", ("<h>",), [("<d>",)])], left_out=("<none>",))
    page = render_page("<b>&", {"a<b": "<i>$c"}, [], [section], {'"x"': b"png"}, "<div>$view</div>")
    for text in ("s", "c", "t", "h", "d", "none"):
        assert f">&lt;{text}&gt;</" in page
        assert f"<{text}>&" not in page
    assert "Fourier structure of &lt;b&gt;&amp;" in page
    assert "<th>a&lt;b</th><td>&lt;i&gt;$c</td>" in page
    assert 'alt="&quot;x&quot;"' in page
    assert "<div>$view</div>" in page


def test_the_facts_name_model_network_task_and_accuracy(model: Path, result: Report) -> None:
    said = facts(result)
    assert said["model"] == str(model)
    assert "96 relu units" in said["network"]
    assert said["task"] == f"addition of two numbers modulo {P}"
    assert said["accuracy"].startswith("100.00% of all 961 pairs")
    assert re.findall(r"(\d+) \(", said["key frequencies"]) == [str(k) for k in FREQUENCIES]


# Without a directory, twice, in vain


def test_without_a_directory_nothing_is_written(model: Path, written: dict[str, Any]) -> None:
    before = set(model.iterdir())
    result = make_report(str(model), progress=False)
    assert set(model.iterdir()) == before
    assert strict(result.to_json()) == written  # and the same model gives the same report


@pytest.mark.usefixtures("small_pictures")
def test_a_directory_is_made_where_it_is_missing_and_written_again_where_it_is_not(tmp_path: Path) -> None:
    random_model(ModularAddition(5)).save_pretrained(tmp_path / "model")
    out = tmp_path / "some" / "where"
    for _ in range(2):
        make_report(str(tmp_path / "model"), out, progress=False)
    assert len(list(out.iterdir())) == 2 + len(FIGURES)


@pytest.mark.parametrize("below", ["", "under"])
def test_an_unwritable_directory_is_an_error_before_anything_is_computed(
    below: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*args: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(report_module, "load_subject", computed)
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(ReportError, match="cannot write a report to"):
        make_report(str(model), file / below, progress=False)
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.usefixtures("small_pictures")
def test_a_figure_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    random_model(ModularAddition(5)).save_pretrained(tmp_path / "model")
    (tmp_path / "out" / "frequencies.png").mkdir(parents=True)
    with pytest.raises(ReportError, match="cannot write the report to"):
        make_report(str(tmp_path / "model"), tmp_path / "out", progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["frequencies.png"]  # no half-written file either


def test_a_model_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        make_report(str(tmp_path / "nothing"), tmp_path / "out", progress=False)


def test_a_model_of_three_operands_is_an_error(tmp_path: Path) -> None:
    random_model(ModularAddition(5, operands=3)).save_pretrained(tmp_path)
    with pytest.raises(ReportError, match="two numbers"):
        make_report(str(tmp_path), progress=False)


def test_progress_goes_to_standard_error_and_only_where_wanted(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_report(str(model), progress=False)
    assert capfd.readouterr() == ("", "")
    make_report(str(model), progress=True)
    assert capfd.readouterr().out == ""
    assert n_ticks(3) == 2 + 3 * 3


# Other networks


@cache
def others() -> dict[str, HookedRNN]:
    even = random_model(ModularAddition(12), d_model=4)
    with torch.no_grad():  # an embedding of Nyquist alone, but for a little
        even.embed.W_E.copy_(0.01 * even.W_E + torch.tensor([1.0, -1.0]).repeat(6)[:, None])
    silent = fourier_adder(11, [1, 3], [1.0, 0.9], phases=8)
    with torch.no_grad():
        silent.unembed.W_U.zero_()
    return {
        "random weights": random_model(ModularAddition(23)),
        "even modulus": random_model(ModularAddition(12)),
        "even modulus, Nyquist": even,
        "equals token": random_model(ModularAddition(7, equals_token=True)),
        "two layers": random_model(ModularAddition(7), n_layers=2, bias=True),
        "smallest modulus": random_model(ModularAddition(2)),
        "one unit": random_model(ModularAddition(3), d_model=1, d_hidden=1),
        "an output of zeros": silent,
    }


@pytest.mark.parametrize("name", others())
def test_other_networks_get_a_whole_report_too(name: str) -> None:
    model = others()[name]
    result = make_report(subject_of(model, task_of(model)), progress=False)
    written = strict(result.to_json())
    assert [claim["id"] for claim in written["claims"]] == [f"C{i}" for i in range(1, 8)]
    assert written["key_frequencies"] == result.measurements.key.frequencies
    assert {picture.name for picture in pictures(result.sections)} == FIGURES
    if name == "random weights":
        assert {claim["holds"] for claim in written["claims"]} == {"no"}
        assert written["hidden_fit"] == {}
        assert facts(result)["key frequencies"] == "none"
        assert sum("no key frequency" in line for section in result.sections for line in section.left_out) == 5


@pytest.mark.parametrize(("name", "n_key"), [("random weights", 0), ("even modulus, Nyquist", 1)])
def test_figures_are_drawn_for_no_and_for_one_key_frequency(name: str, n_key: int) -> None:
    model = others()[name]
    result = make_report(subject_of(model, task_of(model)), progress=False)
    assert len(result.measurements.key.frequencies) == n_key
    for figure in draw(result).values():
        assert imread(BytesIO(to_png(figure)))[..., :3].std() > 0.005


def test_every_caption_names_its_operator(result: Report) -> None:
    for section in result.sections:
        for part in section.parts:
            assert re.search(r"\w+\.\w+|Lattice|rule", part.caption), part.caption
            assert len(part.caption) > 60


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gated_cells_get_a_whole_report(cell: str, tmp_path: Path) -> None:
    random_model(ModularAddition(7), cell=cell).save_pretrained(tmp_path)
    result = make_report(str(tmp_path), progress=False)
    written = strict(result.to_json())
    assert [claim["id"] for claim in written["claims"]] == [f"C{i}" for i in range(1, 8)]
    assert f"{cell.upper()} units" in facts(result)["network"]
    left_out = [line for section in result.sections for line in section.left_out]
    assert any(line.startswith(f"Left out: circuit: the model's cell is '{cell}'") for line in left_out)


def test_a_transformer_and_an_mlp_get_a_whole_report() -> None:
    for equals, model, matrices in (
        (True, transformer(7), ["W_E", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U"]),
        (False, HookedMLP(HookedMLPConfig(d_vocab=7, d_vocab_out=7, d_mlp=12)).eval(), ["W_E", "W_in", "W_U"]),
        (False, MLP(7).eval(), ["W_E", "W_U"]),
    ):
        result = make_report(subject_of(model, ModularAddition(7, equals_token=equals)), progress=False)
        written = strict(result.to_json())
        assert list(written["energy"]) == matrices
        assert list(written["ablation"]) == SITES
        assert len(written["claims"]) == 7
        assert result.measurements.left_out == {}
        assert {picture.name for picture in pictures(result.sections)} == FIGURES - {"circuit"}
        assert "TextNeuronActivations" in hidden_view(result.subject.adder)


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_run_directory_adds_the_figure_of_its_training(fraction: float, tmp_path: Path) -> None:
    task = ModularAddition(7)
    config = TrainConfig.recipe("fast", steps=4, eval_every=2, train_fraction=fraction)
    train(random_model(task), task, config, tmp_path / "run", progress=False)
    result = make_report(str(tmp_path / "run"), tmp_path / "out", progress=False)
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == FIGURES | {"training"}
    assert (result.to_dict()["held_out_accuracy"] is None) == (fraction == 1.0)


def test_drawing_touches_no_global_state_of_matplotlib(result: Report) -> None:
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    figures = draw(result)
    assert imread(BytesIO(to_png(figures["removal"]))).ndim == 3
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before
