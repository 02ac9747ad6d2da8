"""The page of definitions: its functions exist, its example runs, and its tables are what is measured."""

import importlib
import re
from functools import cache
from inspect import isfunction
from pathlib import Path

import pytest
from torch import Tensor

from analyses.adder import Adder
from analyses.candidates import PUBLISHED, Candidates, candidates
from analyses.key_frequencies import RULES, find
from analyses.neurons import cluster_neurons
from hooked_rnn import HookedRNN, ModularAddition

PAGE = (Path(__file__).parents[2] / "docs" / "definitions.md").read_text(encoding="utf-8")
PARTS = {
    "key_frequencies", "neuron_hook", "candidate_matrices", "distance_factor", "doubled", "operand_gradients", "token_directions",
    "input_after_one_token", "live_weight", "restricted_to_families", "restricted_to_trace", "sums", "aliasing", "least_neurons",
}  # fmt: skip
"""Functions that operators are made of, and that the index leaves out."""
MODELS = ("mod-add-113", "mod-add-113-adamw", "mod-add-113-clean")


def table(*header: str) -> dict[str, list[str]]:
    """The rows of the page's table with this header, by their first cells."""
    start = PAGE.index("| " + " | ".join(header) + " |")
    lines = PAGE[start:].split("\n\n")[0].splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


@cache
def adder(name: str) -> Adder:
    return Adder(HookedRNN.from_pretrained(name), ModularAddition(113))


@cache
def hidden(name: str) -> Tensor:
    return adder(name).activation("blocks.0.hook_hidden")


@cache
def of_the_matrices(name: str) -> Candidates:
    return candidates(adder(name))


def test_its_functions_exist() -> None:
    named = [(m, f) for m, f in re.findall(r"`([a-z_]+)\.([a-zA-Z_]+)[`(]", PAGE) if m != "analyses"]
    assert len(named) > 8
    for module, function in named:
        assert hasattr(importlib.import_module(f"analyses.{module}"), function), (module, function)


def test_it_names_every_operator_of_the_toolbox() -> None:
    index = "\n".join(row for row in PAGE.split("## Every operator, by name")[1].splitlines() if row.startswith("|"))
    for module in (
        "operands", "spectra", "key_frequencies", "singular_pairs", "neurons", "candidates", "circuit", "clock_pizza",
        "subspace", "weight_removal", "restricted", "subsets", "progress", "attribution", "oracle",
    ):  # fmt: skip
        functions = vars(importlib.import_module(f"analyses.{module}"))
        operators = {name for name, f in functions.items() if isfunction(f) and f.__module__ == f"analyses.{module}"}
        named = set(re.findall(rf"`{module}\.(\w+)`", index))
        left_out = {name for name in operators - named if not name.startswith(("_", "check_"))}
        assert named <= operators
        assert left_out <= PARTS, (module, left_out - PARTS)


def test_its_example_runs() -> None:
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)
    assert names["key"].frequencies == [6, 7, 9, 25, 49]
    assert names["neurons"].share_above == pytest.approx(0.883, abs=5e-4)


def test_it_has_every_rule_with_its_defaults() -> None:
    rows = table("rule", "a frequency is key if", "default")
    assert list(rows) == list(RULES)
    for name, (_, defaults) in rows.items():
        by_name = {k: float(v) for k, v in re.findall(r"`(\w+)=([\d.]+)`", defaults)}
        assert by_name == RULES[name].settings


@pytest.mark.parametrize("model", MODELS)
def test_its_key_frequencies_are_those_found(model: str) -> None:
    by_weights, by_logits, added = table(
        "model", "embedding share, threshold, elbow", "logit variance", "neuron argmax adds"
    )[model]
    expected = [int(k) for k in by_weights.split(", ")]
    assert by_logits == "the same"
    for rule in ("embedding share", "threshold", "elbow", "logit variance"):
        assert find(adder(model), rule).frequencies == expected
    more = [] if added == "none" else [int(k) for k in added.split(", ")]
    assert find(adder(model), "neuron argmax").frequencies == sorted(expected + more)


@pytest.mark.parametrize("model", MODELS)
def test_its_shares_of_neurons_are_those_measured(model: str) -> None:
    written = table("model", "a, b, block", "a, b, sum")[model]
    families = (("a", "b", "block"), ("a", "b", "sum"))
    found = [cluster_neurons(hidden(model), 113, families=chosen) for chosen in families]
    assert [f"{neurons.share_above:.1%}" for neurons in found] == written
    key = find(adder(model)).frequencies
    shared = found[0].overlap(key)
    assert float((shared - shared.diagonal().diag()).max()) < 0.045


def test_its_candidates_are_those_measured() -> None:
    rows = table("matrix", *(f"`{model}`" for model in MODELS))
    for column, model in enumerate(MODELS):
        of_2k = {row.matrix: row for row in of_the_matrices(model).rows if row.rule == "2K"}
        assert list(rows) == list(of_2k)
        for matrix, row in of_2k.items():
            share = f"{row.holds['energy']:.1%}"
            assert rows[matrix][column] == (f"**{share}**" if row.in_range() else share), (matrix, model)


def test_what_it_says_of_the_candidates_holds() -> None:
    found = [of_the_matrices(model) for model in MODELS]
    for rule in ("effective rank", "a tenth of the largest"):
        assert not any(of_one.fitting(rule) for of_one in found)
    for rule in ("2K", "12", "elbow", "above noise"):
        assert all(of_one.fitting(rule) for of_one in found)
    by_values = [
        row.holds["nuclear"]
        for of_one in found
        for row in of_one.rows
        if row.rule == "2K" and row.matrix in ("W_E", "W_hh", "W_U", "h_1")
    ]
    assert 0.538 < min(by_values) < 0.540 < 0.679 < max(by_values) < 0.681 < PUBLISHED[0]
    untrained = candidates(Adder(HookedRNN(adder(MODELS[0]).model.cfg), ModularAddition(113)))
    of_12 = {row.matrix: f"{row.holds['energy']:.1%}" for row in untrained.rows if row.rule == "12"}
    assert (of_12["W_E"], of_12["W_E W_ih W_hh W_U"]) == ("31.8%", "54.5%")
