"""Whether an episode of a dataset succeeded: from a folder, a column, or a file beside it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attnstore.store.errors import EpisodeError, UsageError
from attnstore.store.json_text import parse_json

from .base import OUTCOMES

WORDS = {"true": "success", "1": "success", "false": "failure", "0": "failure", "": "unknown"}
EPISODE_FIELDS = ("episode_index", "episode")
OUTCOME_FIELDS = ("outcome", "success")
_INDEX = re.compile(r"(?:episode_)?([0-9]{1,9})(?:\.0)?")


def scalar(value: Any) -> Any:
    """Return what a list of one holds: a feature of shape (1,) is a scalar in some versions."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def outcome_value(value: Any) -> str:
    """Read one outcome as people write it.

    Examples
    --------
    >>> outcome_value(True), outcome_value("Failure"), outcome_value(0), outcome_value(None)
    ('success', 'failure', 'failure', 'unknown')

    Raises
    ------
    ValueError
        If it is none of those.
    """
    if value is None:
        return "unknown"
    text = str(value).strip().lower()
    text = text.removesuffix(".0")
    text = WORDS.get(text, text)
    if text not in OUTCOMES:
        raise ValueError(
            f"an outcome is one of {', '.join(OUTCOMES)}, true, false, 1 or 0; got {value!r}"
        )
    return text


def outcome_of_path(name: str) -> str:
    """Outcome in an episode's name; ``unknown`` if none of its directories is one."""
    return next((part for part in reversed(name.split("/")[:-1]) if part in OUTCOMES), "unknown")


def outcome_of_frames(episode: str, column: str, values: Iterable[Any]) -> str:
    """Read an outcome from a column with one value a frame, such as ``next.success``.

    A success is an episode in which any frame says so, a failure one in which none does; without
    any value it is unknown. Frames that say both ``success`` and ``failure`` in words are refused.

    Raises
    ------
    EpisodeError
        If a value is not an outcome.
    """
    try:
        each = [scalar(v) for v in values]
        found = {outcome_value(v) for v in each} - {"unknown"}
    except ValueError as error:
        raise EpisodeError(episode, f"column {column}: {error}; choose another column") from None
    words = {str(v).strip().lower() for v in each if isinstance(v, str)}
    if {"success", "failure"} <= words:
        raise EpisodeError(
            episode, f"column {column} says both success and failure; choose another column"
        )
    return "success" if "success" in found else "failure" if found else "unknown"


def outcome_of_episode(episode: str, column: str, value: Any) -> str:
    """Read an outcome from a column with one value an episode.

    Raises
    ------
    EpisodeError
        If the value is not an outcome.
    """
    try:
        return outcome_value(scalar(value))
    except ValueError as error:
        raise EpisodeError(
            episode, f"column {column} of the episode: {error}; choose another column"
        ) from None


def read_outcomes(file: Path) -> dict[int, str]:
    """Read outcomes by episode index from CSV or JSON.

    CSV has a header with ``episode_index`` (or ``episode``) and ``outcome`` (or ``success``); JSON
    is an object ``{"0": "success"}`` or a list of objects with those fields.

    Raises
    ------
    UsageError
        If the file is not that, or names an episode twice.
    """
    try:
        if file.suffix.lower() == ".csv":
            with file.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream)
                fields = reader.fieldnames or []
                if twice := {field for field in fields if fields.count(field) > 1}:
                    raise ValueError(f"column {', '.join(map(str, twice))} stands twice")
                rows = list(reader)
                for number, row in enumerate(rows, 2):
                    if None in row or None in row.values():
                        raise ValueError(f"row {number} has not {len(fields)} values")
                pairs = [_pair(row) for row in rows]
        else:
            loaded = parse_json(file.read_bytes())
            if isinstance(loaded, dict):
                pairs = [(_index(key), outcome_value(value)) for key, value in loaded.items()]
            elif isinstance(loaded, list):
                pairs = [_pair(row) for row in loaded]
            else:
                raise ValueError(f"neither an object nor a list: {loaded!r:.60}")
        if not pairs:
            raise ValueError("it names no episode")
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UsageError(
            f"{file}: expected CSV with the columns episode_index and outcome, or JSON "
            f'{{"0": "success"}}: {error}'
        ) from None
    outcomes: dict[int, str] = {}
    for index, outcome in pairs:
        if index in outcomes:
            raise UsageError(f"{file}: episode {index} stands twice in it")
        outcomes[index] = outcome
    return outcomes


def _pair(row: Mapping[str, Any]) -> tuple[int, str]:
    indices = {_index(row[field]) for field in EPISODE_FIELDS if field in row}
    outcomes = {outcome_value(row[field]) for field in OUTCOME_FIELDS if field in row}
    if not indices or not outcomes:
        raise ValueError(f"the fields are {', '.join(map(str, row))}")
    if len(indices) > 1 or len(outcomes) > 1:
        both = " and ".join(map(str, sorted(indices if len(indices) > 1 else outcomes)))
        raise ValueError(f"a row says both {both}")
    return indices.pop(), outcomes.pop()


def _index(value: Any) -> int:
    found = _INDEX.fullmatch(str(value).strip())
    if found is None or isinstance(value, bool):
        raise ValueError(f"an episode is its index, or episode_000000; got {value!r:.60}")
    return int(found[1])
