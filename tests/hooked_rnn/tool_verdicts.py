"""What a test shows about TransformerLens's tools: read by test_tools_table.py, which holds docs/transformer-lens.md to it.

A tool is named as in that table: a function by its name, a method by ``Class.method``.
"""

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., None])


def works(*tools: str) -> Callable[[Test], Test]:
    """The test holds these tools, on a HookedRNN, to a reference written by hand."""
    return lambda test: test


def refused(*tools: str) -> Callable[[Test], Test]:
    """The test shows that these tools stop with one error that says why."""
    return lambda test: test
