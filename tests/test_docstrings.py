"""Public docstrings are numpydoc: every parameter, what is returned, what is raised."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest

import attnstore
from attnstore.query.groups.comparison import Comparison
from attnstore.query.sql.episodes import Episodes
from attnstore.query.xarray_engine import AttnstoreBackend
from attnstore.store.reader.accessor import AttentionAccessor

CLASSES = (
    attnstore.Store, attnstore.Episode, Episodes, Comparison, AttentionAccessor, AttnstoreBackend,
)  # fmt: skip
QUIET = {"Episode.has_query", "Store.base_commits", "Store.from_commit"} | {
    f"AttnstoreBackend.{name}" for name in ("guess_can_open", "open_groups_as_dict")
}
"""Functions with parameters of which none can be wrong, or that say whose errors theirs are."""


def public() -> Iterator[tuple[str, Any]]:
    """Every public function, method and property, by name."""
    for name in attnstore.__all__:
        if inspect.isfunction(value := getattr(attnstore, name)):
            yield name, value
    for owner in CLASSES:
        for name, value in inspect.getmembers(owner):
            ours = any(
                name in vars(c) and c.__module__.startswith("attnstore") for c in owner.__mro__
            )
            if name.startswith("_") or not ours:
                continue
            if inspect.isfunction(value) or isinstance(value, property) or hasattr(value, "func"):
                yield f"{owner.__name__}.{name}", value


def sections(text: str) -> dict[str, str]:
    """Text of each section by its title; the summary's is empty."""
    parts = re.split(r"^(\w[\w ]*)\n-+\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section: str) -> list[str]:
    """Names at a section's margin: ``a, b`` are two."""
    lines = [line for line in section.splitlines() if line and not line.startswith(" ")]
    return [name.strip(" *") for line in lines for name in line.split(",")]


def raised(function: Callable[..., Any]) -> set[str]:
    """Names of the errors that a function raises in its own lines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    return {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}


def problems(name: str, value: Any) -> list[str]:
    text = inspect.getdoc(value) or ""
    found = sections(text)
    said = []
    summary = found[""].strip().partition("\n\n")[0]
    if not summary.endswith((".", ":")):
        said.append(f"no summary that ends with a full stop: {summary!r}")
    if not inspect.isfunction(value):
        return said
    signature = inspect.signature(value)
    wanted = [n for n in signature.parameters if n not in ("self", "options")]
    if name == "AttnstoreBackend.open_dataset":
        wanted = []  # it says whose they are
    if sorted(entries(found.get("Parameters", ""))) != sorted(wanted):
        said.append(f"Parameters {entries(found.get('Parameters', ''))}; it takes {wanted}")
    returns = signature.return_annotation not in ("None", "Self", "Iterator[Commit]")
    if wanted and returns and "Returns" not in found:
        said.append("no Returns")
    named = set(entries(found.get("Raises", "")))
    if wanted and not named and name not in QUIET:
        said.append("no Raises")
    if missing := (raised(value) & {*attnstore.errors.__all__}) - named:
        said.append(f"it raises {sorted(missing)} and does not say so")
    unknown = named - {*attnstore.errors.__all__}
    if unknown:
        said.append(f"Raises {sorted(unknown)}, which attnstore.errors has not")
    return said


@pytest.mark.parametrize(
    ("name", "value"), list(public()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_public_function_is_documented(name: str, value: Any) -> None:
    assert problems(name, value) == []


@pytest.mark.parametrize("owner", CLASSES, ids=lambda c: c.__name__)
def test_every_public_class_is_documented(owner: type) -> None:
    found = sections(inspect.getdoc(owner) or "")
    assert found[""].strip()
    if "__init__" in vars(owner) and not is_dataclass(owner):
        wanted = list(inspect.signature(owner).parameters)
        made = "made by" in found[""]  # by another: its own parameters are nobody's to give
        assert made or entries(found.get("Parameters", "")) == wanted


def test_errors_are_documented() -> None:
    for name in attnstore.errors.__all__:
        assert inspect.getdoc(getattr(attnstore.errors, name))


def test_the_check_sees_what_is_missing() -> None:
    """Or nothing above proves anything."""

    def bad(layer: int, head: int) -> int:
        """Do something.

        Parameters
        ----------
        layer
            A number.
        """
        raise attnstore.errors.UsageError("no") if layer else ValueError(head)

    assert problems("bad", bad) == [
        "Parameters ['layer']; it takes ['layer', 'head']", "no Returns", "no Raises",
    ]  # fmt: skip
    assert len(list(public())) > 40
