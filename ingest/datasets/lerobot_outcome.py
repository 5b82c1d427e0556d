"""Whether an episode of a LeRobotDataset succeeded: from a column, or from a file beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attnstore.store.errors import EpisodeError, UsageError

from .base import OUTCOMES

WORDS = {"true": "success", "1": "success", "false": "failure", "0": "failure", "": "unknown"}
EPISODE_FIELDS = ("episode_index", "episode")
OUTCOME_FIELDS = ("outcome", "success")


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
        found = {outcome_value(_scalar(v)) for v in values} - {"unknown"}
    except ValueError as error:
        raise EpisodeError(episode, f"column {column}: {error}; choose another column") from None
    return "success" if "success" in found else "failure" if found else "unknown"


def outcome_of_episode(episode: str, column: str, value: Any) -> str:
    """Read an outcome from a column with one value an episode.

    Raises
    ------
    EpisodeError
        If the value is not an outcome.
    """
    try:
        return outcome_value(_scalar(value))
    except ValueError as error:
        raise EpisodeError(
            episode, f"column {column} of meta/episodes: {error}; choose another column"
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
                pairs = [_pair(row) for row in csv.DictReader(stream)]
        else:
            loaded = json.loads(file.read_text("utf-8"))
            if isinstance(loaded, dict):
                pairs = [(_index(key), outcome_value(value)) for key, value in loaded.items()]
            else:
                pairs = [_pair(row) for row in loaded]
    except (OSError, ValueError, TypeError, AttributeError) as error:
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
    index = next((row[field] for field in EPISODE_FIELDS if field in row), None)
    field = next((field for field in OUTCOME_FIELDS if field in row), None)
    if index is None or field is None:
        raise ValueError(f"the fields are {', '.join(map(str, row))}")
    return _index(index), outcome_value(row[field])


def _index(value: Any) -> int:
    return int(str(value).removeprefix("episode_"))


def _scalar(value: Any) -> Any:
    # a feature of shape (1,) is a scalar in some versions and a list of one in others
    return value[0] if isinstance(value, list) and len(value) == 1 else value
