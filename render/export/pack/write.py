"""Writing a pack: a page, and the store that it is of beside it."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from attnstore.query import open as open_for_reading
from attnstore.query.service import ServiceConfig, create_app
from attnstore.store.commits.part import Part
from attnstore.store.errors import UsageError
from attnstore.store.reader.episode import Episode

from ...picture.image_file import complete, write_text
from ...serving import PAGE
from .answers import GZIP, Answers, collect, new_token, too_large
from .page import licences, write_page
from .questions import (
    LISTED,
    Chosen,
    Question,
    layers_of,
    list_of,
    of_episode,
    of_store,
)

INDEX, LICENCES = "index.html", "LICENSES.txt"
_CHUNK_BYTES = 62
"""Around a chunk in the page."""
_ANSWER_BYTES, _NUMBER_BYTES = 85, 7.0
"""Of a JSON answer, and of each of a metric's numbers in it, compressed: as on trained attention."""
_INDEXED = {"json": 20, "array": 48, "blob": 35}
"""Bytes after a question's name in the page's index, by its form."""
_TRIED_LAYERS = 4


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written."""

    page: Path
    size: int
    """Of the page, bytes."""
    questions: int
    """That the page answers."""


def estimate(episodes: list[Episode], chosen: Chosen) -> int:
    """Forecast the size of a page, in bytes: within a tenth on trained attention.

    The maps of each run's first episode are compressed to see how far they shrink.
    """
    tried: dict[tuple[Any, ...], float] = {}
    total: float = sum(len(piece) for piece in write_page(PAGE, Answers(0), "", list_of("")))
    for episode in episodes:
        shapes = episode.policy_shapes()
        for question in of_episode("", episode, chosen):
            total += len(orjson.dumps(question.key)) + _INDEXED[question.form]
            asked = question.parameters
            if "name" in asked:
                # noise of denoising does not shrink
                shape = shapes[str(asked["name"])]
                size = 4 * math.prod(shape) / (shape[0] if "keyframe" in asked else 1)
                total += _CHUNK_BYTES + size * 4 / 3
            elif question.name == "masks":
                total += _ANSWER_BYTES + _mask_bytes(episode) * 4 / 3
            elif question.form == "array":
                names = ("phase", "camera", "query", "reduce")
                key = (episode.run, *(asked[name] for name in names))
                if key not in tried:
                    tried[key] = _try_maps(episode, chosen, asked)
                shrunk = 4 * _numbers(episode, question) * tried[key]
                total += _CHUNK_BYTES + shrunk * 4 / 3
            elif question.form == "json":
                total += _ANSWER_BYTES + _numbers(episode, question) * _NUMBER_BYTES
            else:
                size = len(episode.image_bytes(int(asked["keyframe"]), str(asked["camera"])))
                total += _CHUNK_BYTES + size * 4 / 3
    return int(total)


def _mask_bytes(episode: Episode) -> float:
    """Size of the objects' masks as they are packed: run lengths shrink little, what is around them much."""
    tables = (Part(episode.part.paths, c).table("object_masks") for c in episode.object_parts())
    return float(sum(40 + 0.6 * len(n) for table in tables for n in table["counts"].to_pylist()))


def _numbers(episode: Episode, question: Question) -> int:
    """Count the values of maps or of a metric that an answer holds."""
    if question.name not in ("maps", "matrix", "trace"):
        return 0
    asked, frames = question.parameters, len(episode.frames)
    spec = episode.spec.phases[str(asked["phase"])]
    if question.name == "matrix":
        return spec.layers * spec.heads
    if question.name == "trace":
        return frames * spec.heads
    grid = episode.spec.geometry[str(asked["camera"])].grid
    return frames * math.prod(grid) * (1 if "head" in asked else spec.heads)


def _try_maps(episode: Episode, chosen: Chosen, asked: Mapping[str, Any]) -> float:
    """Compress maps of some layers; returns their size over that of their float32 values."""
    layers = layers_of(episode.spec.phases[asked["phase"]], chosen)
    whole = packed = 0
    for layer in layers[:: -(-len(layers) // _TRIED_LAYERS)]:
        maps = episode.maps(
            asked["phase"],
            asked["camera"],
            layer=layer,
            reduce=asked["reduce"],
            query=asked["query"],
        )
        whole += maps.nbytes
        packed += len(gzip.compress(maps.values.tobytes(), GZIP))
    return packed / whole


def write_pack(
    store: Path, out: Path, chosen: Chosen, most: int, progress: Callable[[float, str], None]
) -> Packed:
    """Write the page of a store's maps tier; it appears when it is complete.

    Parameters
    ----------
    store
        The small store, in `out`.
    most
        Largest page, bytes.
    progress
        Called with the share of answers that there are, and how many that is.

    Raises
    ------
    UsageError
        If the page gets larger, or the store has more episodes than the viewer lists.
    OSError
        If a file cannot be written, as on a full disk; no page is left then.
    """
    opened = open_for_reading(store)
    commits = opened.base_commits()
    if len(commits) > LISTED:
        raise UsageError(f"a page lists at most {LISTED} episodes; got {len(commits)}")
    token = new_token()
    application = create_app(ServiceConfig((store,), token))
    service = application.state.service
    (name,) = service.stores
    answers = Answers(most)

    groups = [list(of_store(name))]
    groups += [list(of_episode(name, opened.from_commit(commit), chosen)) for commit in commits]
    total = sum(map(len, groups))
    try:
        collect(
            application, token, groups, answers,
            lambda asked: progress(asked / total, f"{asked} of {total} answers"),
        )  # fmt: skip
    finally:
        service.close()
    with complete(out / INDEX) as temporary:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(write_page(PAGE, answers, store.name, list_of(name)))
        size = temporary.stat().st_size
        if size > most:
            raise UsageError(too_large(size, most))
        write_text(out / LICENCES, licences(PAGE))
    return Packed(
        out / INDEX, size, len(answers.json) + len(answers.arrays) + len(answers.blobs)
    )  # fmt: skip
