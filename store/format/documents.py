"""The JSON of a store compared with its schemas, ``store/format/schemas/*.json`` (JSON Schema 2020-12).

The schemas are part of the format (docs/format.md) and shipped with the package, for readers in other
languages as for this one. Every schema lets keys pass that it does not name, which a newer minor version
may have added, but for two: a geometry, of which a key that is not understood would move heat to other
pixels, and a run's configuration, whose digest is the run's id.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import jsonschema_rs

from ..errors import IntegrityError

Name = Literal[
    "attempt", "cnn", "entry", "episode", "geometry", "marker", "newest", "quarantine", "run",
    "source", "zarr",
]  # fmt: skip
NAMES: tuple[Name, ...] = get_args(Name)
"""Kinds of documents; each has a schema of this name."""
_SHOWN = 80
_VALUE = "\0"
"""Stands for the value in the validator's messages: the value may be long."""


def schema(name: Name) -> dict[str, Any]:
    """Read one of the shipped schemas.

    Examples
    --------
    >>> schema("marker")["required"]
    ['format', 'store_id', 'created']
    """
    text = (Path(__file__).parent / "schemas" / f"{name}.json").read_text(encoding="utf-8")
    value: dict[str, Any] = json.loads(text)
    return value


def check(value: Any, name: Name, where: object) -> None:
    """Compare a document with its schema.

    Parameters
    ----------
    value
        What JSON says.
    name
        Of the schema.
    where
        The document's file, for the message.

    Raises
    ------
    IntegrityError
        With the place in the document, what stands there, and the rule that it breaks.

    Examples
    --------
    >>> check({"source": 3}, "source", "source.json")
    Traceback (most recent call last):
    attnstore.store.errors.IntegrityError: source.json: source: 3 is not of type "string"
    """
    validator = _validator(name)
    try:
        if validator.is_valid(value):
            return
        error = next(validator.iter_errors(value))
    except UnicodeEncodeError:
        raise IntegrityError(f"{where}: half a character stands in it") from None
    place = ".".join(map(str, error.instance_path))[:_SHOWN]
    options = getattr(error.kind, "options", None)
    said = error.message
    if options is not None:  # of which the validator's own message leaves some out
        said = f"{_VALUE} is not one of {', '.join(map(str, options))}"
    said = said.replace(_VALUE, json.dumps(error.instance, ensure_ascii=False)[:_SHOWN])
    raise IntegrityError(f"{where}: {place}: {said}" if place else f"{where}: {said}")


@cache
def _validator(name: Name) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema(name), mask=_VALUE)
