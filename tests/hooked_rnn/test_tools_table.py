"""docs/transformer-lens.md is true: every public tool of TransformerLens is in its table, with the test that shows the verdict."""

import ast
import functools
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import transformer_lens

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "transformer-lens.md"
VERDICTS = {"works": "yes", "refused": "no"}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    tools: tuple[str, ...]
    verdict: str
    tests: tuple[str, ...]


def code(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def tables() -> tuple[list[Row], tuple[str, ...]]:
    """The rows of tools, and the modules of the table of modules."""
    rows: list[Row] = []
    modules: list[str] = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `"):
            continue
        if len(cells) == 4:
            rows.append(Row(code(cells[0]), cells[1], code(cells[3])))
        else:
            modules += code(cells[0])
    return rows, tuple(modules)


ROWS, MODULES = tables()


def is_under(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def module_names(package: ModuleType, left_out: tuple[str, ...]) -> Iterator[str]:
    """Modules and packages, but not what is under those that are left out; nothing of those is imported."""
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        private = info.name.rsplit(".", 1)[1].startswith("_")
        if not private and not is_under(info.name.removeprefix("transformer_lens."), left_out):
            yield info.name
            if info.ispkg:
                yield from module_names(importlib.import_module(info.name), left_out)


def public(names: dict[str, object]) -> Iterator[tuple[str, object]]:
    return ((name, thing) for name, thing in names.items() if not name.startswith("_"))


def tools_of(module: ModuleType) -> Iterator[str]:
    """The module's own public functions, partial functions and classes, and the classes' own public methods."""
    for name, thing in public(vars(module)):
        if isinstance(thing, functools.partial):
            yield name
        elif (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == module.__name__:
            yield name
            if inspect.isclass(thing):
                members = (property, functools.cached_property, classmethod, staticmethod)
                yield from (
                    f"{name}.{method}"
                    for method, made in public(dict(vars(thing)))
                    if inspect.isfunction(made) or isinstance(made, members)
                )


def tools() -> set[str]:
    return {
        tool for name in module_names(transformer_lens, MODULES) for tool in tools_of(importlib.import_module(name))
    }


def missing(found: set[str], rows: list[Row]) -> set[str]:
    """Tools that no row names, by themselves or as ``Class.*``."""
    named = {tool for row in rows for tool in row.tools}
    return {tool for tool in found if tool not in named and f"{tool.split('.')[0]}.*" not in named}


def claims() -> dict[str, tuple[str, set[str]]]:
    """What each decorated test says: ``file::test``, its verdict and its tools."""
    found = {}
    for path in sorted(HERE.glob("test_tools_*.py")):
        for test in ast.parse(path.read_text()).body:
            for decorator in test.decorator_list if isinstance(test, ast.FunctionDef) else []:
                if (
                    isinstance(decorator, ast.Call)
                    and isinstance(decorator.func, ast.Name)
                    and decorator.func.id in VERDICTS
                ):
                    named = {ast.literal_eval(argument) for argument in decorator.args}
                    found[f"{path.name}::{test.name}"] = (VERDICTS[decorator.func.id], named)
    return found


def collected() -> set[str]:
    return {
        f"{path.name}::{test.name}"
        for path in HERE.glob("test_*.py")
        for test in ast.parse(path.read_text()).body
        if isinstance(test, ast.FunctionDef)
    }


def test_every_public_tool_is_in_the_table() -> None:
    assert missing(tools(), ROWS) == set()


def test_a_tool_that_is_new_would_be_missed() -> None:
    assert missing({"get_act_patch_soul", "ActivationCache.soul"}, ROWS) == {
        "get_act_patch_soul",
        "ActivationCache.soul",
    }
    assert "HookedRootModule.run_with_cache" in tools()
    assert missing(tools(), ROWS[1:])


def test_the_table_has_no_tool_that_is_none_and_none_twice() -> None:
    found = tools()
    named = [tool for row in ROWS for tool in row.tools]
    assert len(named) == len(set(named))
    assert {tool for tool in named if tool.removesuffix(".*") not in found} == set()
    assert all(importlib.util.find_spec(f"transformer_lens.{module}") for module in MODULES)


def test_every_verdict_is_one_that_its_test_shows() -> None:
    shown = claims()
    assert {row.verdict for row in ROWS} == {"yes", "no", "-"}
    for row in ROWS:
        if row.verdict == "-":
            assert row.tests == (), row
            continue
        assert row.tests, row
        assert set(row.tests) <= collected(), row
        verdicts = {shown[test][0] for test in row.tests if test in shown}
        assert verdicts == {row.verdict}, row
        assert set(row.tools) <= set.union(*(shown[test][1] for test in row.tests if test in shown)), row


def test_every_claim_of_a_test_is_in_the_table() -> None:
    by_tool = {tool: row for row in ROWS for tool in row.tools}
    for test, (verdict, named) in claims().items():
        for tool in named:
            assert by_tool[tool].verdict == verdict, (test, tool)
            assert test in by_tool[tool].tests, (test, tool)
