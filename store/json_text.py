"""JSON that others wrote: a file of a dataset, a detector, a person."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def parse_json(data: bytes) -> Any:
    """Parse JSON in which every key of an object stands once.

    RFC 8259 leaves open what a key that stands twice means, and Python takes the last; here it is
    an error, since one of the two values would be lost. UTF-8 (with or without a byte order mark),
    UTF-16 and UTF-32 are read.

    Raises
    ------
    ValueError
        If it is not JSON, nests too deep, or names a key twice.

    Examples
    --------
    >>> parse_json(b'{"0": "success"}')
    {'0': 'success'}
    >>> parse_json(b'{"0": "success", "0": "failure"}')
    Traceback (most recent call last):
    ValueError: the key '0' stands twice
    """
    try:
        # json.loads tells UTF-8, 16 and 32 apart, but refuses the mark if it is given text
        return json.loads(data, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("brackets nest too deep") from None


def json_value(value: Any) -> Any:
    """Return what is nearest to a value in JSON: None for NaN, a text for what JSON has no word for.

    Examples
    --------
    >>> json_value({"rate": float("nan"), 3: (np.float32(0.5), b"robot")})
    {'rate': None, '3': [0.5, 'robot']}
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a surrogate pair
    if value is None or isinstance(value, int | float):
        return value
    return str(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return found
