"""Writing a pack: a page, and the store that it is of beside it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from attnstore.query import open as open_for_reading
from attnstore.query.service import ServiceConfig, create_app
from attnstore.store.errors import UsageError
from attnstore.store.reader.episode import Episode

from ...serving import PAGE
from .answers import Answers, collect, new_token, too_large
from .page import licences, write_page
from .questions import (
    LISTED,
    Chosen,
    Question,
    layers_of,
    list_of,
    of_episode,
    of_store,
    phases_of,
    steps_of,
)

INDEX, LICENCES = "index.html", "LICENSES.txt"
_SHRINKS = 0.35
"""Size of a map in a page, of its float32 values': measured on trained attention in log8."""
_METRIC_BYTES = 4.0
"""Bytes in a page of a number of a metric's answers."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written."""

    page: Path
    size: int
    """Of the page, bytes."""
    questions: int
    """That the page answers."""


def estimate(episodes: list[Episode], chosen: Chosen) -> int:
    """Guess the size of a page, in bytes: within a factor of two."""
    total = 1 << 19
    for episode in episodes:
        count = len(episode.frames)
        images = sum(len(episode.image_bytes(k, c)) for k in range(count) for c in episode.cameras)
        total += images * 4 // 3
        for spec in phases_of(episode, chosen).values():
            steps, layers = len(steps_of(spec, chosen)), len(layers_of(spec, chosen))
            for camera in spec.cameras:
                rows, cols = episode.spec.geometry[camera].grid
                groups = len(spec.query_groups) * steps
                values = count * layers * spec.heads * rows * cols * groups
                total += int(2 * 4 * values * _SHRINKS * 4 / 3)
                total += int(2 * 10 * count * spec.layers * spec.heads * groups * _METRIC_BYTES)
    return total


def write_pack(
    store: Path, out: Path, chosen: Chosen, most: int, progress: Callable[[int], None]
) -> Packed:
    """Write the page of a store's maps tier; it appears when it is complete.

    Parameters
    ----------
    store
        The small store, in `out`.
    most
        Largest page, bytes.

    Raises
    ------
    UsageError
        If the page gets larger, or the store has more episodes than the viewer lists.
    """
    opened = open_for_reading(store)
    commits = opened.episodes()
    if len(commits) > LISTED:
        raise UsageError(f"a page lists at most {LISTED} episodes; got {len(commits)}")
    token = new_token()
    application = create_app(ServiceConfig((store,), token))
    service = application.state.service
    (name,) = service.stores
    answers = Answers(most)

    def groups() -> Iterator[Iterator[Question]]:
        yield of_store(name)
        for commit in commits:
            yield of_episode(name, opened.from_commit(commit), chosen)

    try:
        collect(application, token, groups(), answers, progress)
    finally:
        service.close()
    partial = out / f".{INDEX}.{uuid.uuid4().hex[:8]}"
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(write_page(PAGE, answers, store.name, list_of(name)))
        size = partial.stat().st_size
        if size > most:
            raise UsageError(too_large(size, most))
        partial.replace(out / INDEX)
    finally:
        partial.unlink(missing_ok=True)
    (out / LICENCES).write_text(licences(PAGE))
    return Packed(
        out / INDEX, size, len(answers.json) + len(answers.arrays) + len(answers.blobs)
    )  # fmt: skip
