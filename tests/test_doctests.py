"""Run the examples of every docstring.

Not with ``pytest --doctest-modules``: it would import ``store/format/tokens.py`` a second time, as a
module of its own beside ``attnstore.store.format.tokens``.
"""

from __future__ import annotations

import doctest
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEWEST = 15  # guards against a runner that finds nothing


def module_names() -> list[str]:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    names = []
    for package in tool["packages"]:
        for file in (ROOT / tool["package-dir"][package]).glob("*.py"):
            if file.stem == "__init__":
                names.append(package)
            elif file.stem != "__main__":  # importing it runs the command line
                names.append(f"{package}.{file.stem}")
    return sorted(names)


@pytest.mark.parametrize("name", module_names())
def test_examples(name: str) -> None:
    result = doctest.testmod(
        importlib.import_module(name),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
        raise_on_error=False,
    )
    assert result.failed == 0, "see the captured output"


def test_examples_are_found() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in module_names()]
    found = sum(len(test.examples) for module in modules for test in finder.find(module))
    assert found >= FEWEST
