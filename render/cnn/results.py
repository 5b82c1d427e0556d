"""Pictures and videos of a convolutional network's results, from the store alone.

::

    OUT/<network>-<digest>/filters.png                a row per layer: columns of filters
    .../filters/<layer>.png                           all filters of a layer, with their objective
    .../filters/<layer>.webm                          the ascent
    .../filters/<layer>/filter_0003.png               one filter
    .../<picture or episode>/activations[_<camera>]/<layer>/00000.png   a keyframe's feature maps
    .../<picture or episode>/guided[_<camera>]/<layer>/00000.png        a keyframe's gradients
    .../<picture or episode>/.../<layer>.webm         over the keyframes of an episode

Pictures of a network with random weights say so, each of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from attnstore.query.cnn import CnnResult
from attnstore.store.commits.cnn import CnnSpec

from ..files import video
from ..picture import image_file
from ..picture.colormap import DEFAULT
from ..picture.sheet import number
from . import values as cnn_values
from .sheet import Cell, Row, in_rows, sheet
from .values import Image

COLUMNS = 8
HEIGHT = 160
"""Of a small picture, in pixels."""


def write_results(
    results: Sequence[CnnResult],
    out: Path,
    *,
    columns: int = COLUMNS,
    height: int = HEIGHT,
    cmap: str = DEFAULT,
    singles: bool = True,
    videos: bool = True,
    codec: str = "vp9",
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> Iterator[Path]:
    """Draw results below a directory, and yield every file as it is written.

    Parameters
    ----------
    columns
        Pictures in a row; in the table of several layers, filters of each.
    height
        Of a small picture, in pixels.
    singles
        Draw every filter on its own, too.
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.
    """
    done = 0
    ending = video.extension_for(codec)
    for folder, group in groupby(results, lambda r: _folder(out, r)):
        same = list(group)
        learned = [r for r in same if r.spec.kind == "filters"]
        if learned:
            rows = [Row(_filter_cells(r, columns), f"layer {r.spec.layer}") for r in learned]
            title = f"{learned[0].spec.network}: what filters answer most to"
            picture = sheet(
                title,
                _origin(learned[0].spec),
                rows,
                height=height,
                warning=_warning(learned[0].spec),
            )
            yield image_file.write(folder / "filters.png", picture)
        for result in same:
            progress(done / len(results), f"{result.spec.network} {result.spec.layer}")
            done += 1
            place = folder / _place(result)
            layer = _safe(result.spec.layer) + _again(result, same)
            if result.spec.kind == "filters":
                yield from _filters(result, place, layer, columns, height, singles)
                if videos and len(result.iterations) > 1:
                    frames = _ascent(result, columns, height)
                    yield video.encode(place / f"{layer}.{ending}", frames, codec=codec, fps=4)
            else:
                pictures = []
                for at, keyframe in enumerate(result.keyframes):
                    picture = _shown(result, at, columns, height, cmap)
                    frame = result.spec.frames[at] if result.spec.frames else keyframe
                    yield image_file.write(place / layer / f"{frame:05d}.png", picture)
                    pictures.append(picture)
                if videos and len(pictures) > 1:
                    yield video.encode(place / f"{layer}.{ending}", pictures, codec=codec)


def _filters(
    result: CnnResult, place: Path, layer: str, columns: int, height: int, singles: bool
) -> Iterator[Path]:
    cells = _filter_cells(result, None)
    title, detail = _title(result), _settings(result.spec)
    warning = _warning(result.spec)
    picture = sheet(title, detail, in_rows(cells, columns), height=height, warning=warning)
    yield image_file.write(place / f"{layer}.png", picture)
    for at, filter in enumerate(result.spec.filters if singles else ()):
        some = [c for c in cells if c.caption.split(" ")[0] == f"{filter}"]
        size = max(height, 2 * int(result.shape("image")[-1]))
        picture = sheet(title, detail, [Row(some)], height=size, warning=warning)
        yield image_file.write(place / layer / f"filter_{result.spec.filters[at]:04d}.png", picture)


def _filter_cells(result: CnnResult, most: int | None) -> list[Cell]:
    traces = result.objective()
    cells = []
    for at, filter in enumerate(result.spec.filters[:most]):
        values = result.read("image", (at,))
        pictures = cnn_values.learned(values, result.spec.std)
        risen = f"{number(traces[at, 0])} → {number(traces[at, -1])}"
        cells += [
            Cell(picture, _caption(filter, i, len(pictures)), risen, traces[at])
            for i, picture in enumerate(pictures)
        ]
    return cells


def _ascent(result: CnnResult, columns: int, height: int) -> Iterator[Image]:
    traces, ends = result.objective(), {}
    iterations = result.iterations
    for at in range(len(result.spec.filters)):
        ends[at] = result.read("image", (at,))
    for shot, iteration in enumerate(iterations):
        cells = []
        for at, filter in enumerate(result.spec.filters):
            values = result.read("history", (at, shot))
            pictures = cnn_values.learned(values, result.spec.std, ends[at])
            value = number(float(traces[at, iteration]))
            cells += [
                Cell(p, _caption(filter, i, len(pictures)), value, traces[at], iteration)
                for i, p in enumerate(pictures)
            ]
        yield sheet(
            f"{_title(result)}, iteration {iteration}", _settings(result.spec),
            in_rows(cells, columns), height=height, warning=_warning(result.spec),
        )  # fmt: skip


def _shown(result: CnnResult, at: int, columns: int, height: int, cmap: str) -> Image:
    """Sheet of one keyframe: the input, then every filter's map or gradient."""
    spec = result.spec
    rows = [r for r in result.responses().to_pylist() if r["keyframe"] == result.keyframes[at]]
    told = {r["filter"]: r for r in rows}
    cells = [Cell(result.read("input", (at,)), "input")]
    for place, filter in enumerate(spec.filters):
        row: dict[str, Any] = told.get(filter, {})
        if spec.kind == "activations":
            values = result.read("activation", (at, place))
            top = max(r["max"] for r in _of_filter(result, filter))
            picture = cnn_values.feature_map(values, top, cmap)
            cells.append(Cell(picture, f"{filter}", f"max {number(row.get('max') or 0.0)}"))
        else:
            pictures = cnn_values.gradient(result.read("gradient", (at, place)))
            note = f"from {number(row.get('value') or 0.0)}"
            cells += [
                Cell(p, _caption(filter, i, len(pictures)), note) for i, p in enumerate(pictures)
            ]
    frame = f", frame {spec.frames[at]}" if spec.frames else ""
    detail = f"{result.name}{frame}" + (f", {spec.camera}" if spec.camera else "")
    if spec.kind == "activations":
        detail += "; after ReLU, 0 to each filter's maximum"
    if spec.kind == "guided" and any(r["relus"] == 0 for r in rows):
        detail += "; no ReLU on the way: the plain gradient"
    return sheet(
        _title(result), detail, in_rows(cells, columns), height=height, warning=_warning(spec)
    )


def _of_filter(result: CnnResult, filter: int) -> list[dict[str, Any]]:
    return [r for r in result.responses().to_pylist() if r["filter"] == filter]


def _caption(filter: int, picture: int, pictures: int) -> str:
    return f"{filter}" if pictures == 1 else f"{filter} channels {3 * picture}-{3 * picture + 2}"


def _title(result: CnnResult) -> str:
    spec = result.spec
    what = {
        "filters": "what its filters answer most to",
        "activations": "where its filters answer",
        "guided": "guided backpropagation",
    }[spec.kind]
    return f"{spec.network}, layer {spec.layer}: {what}"


def _origin(spec: CnnSpec) -> str:
    return f"weights: {spec.weights}" if spec.trained else spec.weights


def _settings(spec: CnnSpec) -> str:
    shown = {k: v for k, v in spec.settings.items() if v not in (0, 0.0) and k != "shots"}
    return f"{_origin(spec)}  ·  " + ", ".join(
        f"{k.replace('_', ' ')} {v}" for k, v in shown.items()
    )


def _warning(spec: CnnSpec) -> str:
    return "" if spec.trained else f"untrained: {spec.weights}"


def _folder(out: Path, result: CnnResult) -> Path:
    # Two checkpoints of one architecture must not be drawn over each other.
    name = f"{result.spec.network}-{result.spec.digest[:6]}"
    return out / _safe(name)


def _place(result: CnnResult) -> str:
    if result.spec.kind == "filters":
        return "filters"
    camera = f"_{_safe(result.spec.camera)}" if result.spec.camera else ""
    return f"{_safe(result.commit.episode)}/{result.spec.kind}{camera}"


def _again(result: CnnResult, others: Sequence[CnnResult]) -> str:
    """What tells apart two parts of one layer that differ in their settings or filters."""
    same = [
        o for o in others
        if _place(o) == _place(result) and o.spec.layer == result.spec.layer
    ]  # fmt: skip
    return f"_{result.commit.part.removeprefix('cnn-')}" if len(same) > 1 else ""


def _safe(name: str) -> str:
    """Name as part of a path; a store is untrusted."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80].strip(".-")
    return safe or hashlib.sha256(name.encode()).hexdigest()[:8]
