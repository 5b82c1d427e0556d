"""Computing one layer's results and committing them as a part; what is there is not done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from attnstore.store.commits import Attempt, Commit, StorePaths, latest_commit
from attnstore.store.commits.cnn import (
    FILTERS_EPISODE,
    GROUP,
    OBJECTIVE,
    RESPONSE,
    CnnSpec,
    Kind,
    add_frames,
    close_group,
    create_array,
    create_group,
    network_run,
)
from attnstore.store.commits.run import save_run
from attnstore.store.errors import ConflictError
from attnstore.store.tables.cnn import CNN_TABLES
from attnstore.store.tables.parquet import write_table

from .base import ConvNetwork, Layer, Target
from .maximisation import Maximisation, maximise
from .pictures import Pictures, as_input, check_sizes

LARGEST = np.float32(np.finfo(np.float16).max)
Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


@dataclass(frozen=True, slots=True)
class Added:
    """What became of one layer."""

    commit: Commit
    computed: bool
    """False if the part was there with the same settings."""


def add_filters(
    paths: StorePaths,
    network: ConvNetwork,
    layer: Layer,
    filters: Sequence[int],
    settings: Maximisation,
    *,
    batch: int = 8,
    redo: bool = False,
    progress: Progress | None = None,
) -> Added:
    """Find and commit the images that some filters of a layer answer most to, unless they are there.

    Parameters
    ----------
    batch
        Filters that climb at once; it does not change the results.
    """
    spec = _spec("filters", network, layer, filters, asdict(settings))

    def compute(folder: Path, keys: Mapping[str, Any]) -> tuple[str, pa.Table]:
        group, count = folder / GROUP, len(filters)
        along = {"filter": filters, "iteration": settings.kept}
        one = (network.channels, settings.size, settings.size)
        images = create_array(group, "image", (count, *one), along)
        shots = len(settings.kept)
        history = create_array(group, "history", (count, shots, *one), along) if shots else None
        rows: list[dict[str, Any]] = []
        for start in range(0, count, batch):
            some = filters[start : start + batch]
            found = maximise(network, layer, some, settings)
            for at, number in enumerate(some):
                images[start + at] = found.images[at]
                if history is not None:
                    history[start + at] = found.history[at].clip(-LARGEST, LARGEST)
                rows += [
                    {**keys, "filter": number, "iteration": i, "objective": value,
                     "gradient_rms": rms}
                    for i, (value, rms) in enumerate(
                        zip(found.objective[at].tolist(), found.gradient_rms[at].tolist(),
                            strict=True)
                    )
                ]  # fmt: skip
            if progress is not None:
                progress(start + len(some), count)
        return OBJECTIVE, pa.Table.from_pylist(rows, CNN_TABLES[OBJECTIVE].schema)

    summary = {"name": network.name, "inputs": ""}
    return _add(paths, _own_run(paths, spec), FILTERS_EPISODE, spec, summary, compute, redo)


def add_activations(
    paths: StorePaths,
    network: ConvNetwork,
    layer: Layer,
    filters: Sequence[int],
    pictures: Pictures,
    *,
    size: int = 224,
    redo: bool = False,
    progress: Progress | None = None,
) -> Added:
    """Compute and commit the feature maps of pictures, unless they are there."""

    def look(pixels: Any, image: Any) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        maps = network.activations(layer, image)[0]
        for at, number in enumerate(filters):
            plane = maps[number]
            yield at, plane, {
                "filter": number, "mean": float(plane.mean()), "max": float(plane.max()),
                "active": float((plane > 0).mean()),
            }  # fmt: skip

    spec = _spec("activations", network, layer, filters, {"size": size}, pictures)
    return _add_pictures(paths, network, spec, pictures, size, "activation", look, redo, progress)


def add_guided(
    paths: StorePaths,
    network: ConvNetwork,
    layer: Layer,
    filters: Sequence[int],
    pictures: Pictures,
    *,
    target: Target = "max",
    size: int = 224,
    redo: bool = False,
    progress: Progress | None = None,
) -> Added:
    """Take some filters' activation back to pictures, and commit it, unless it is there."""

    def look(pixels: Any, image: Any) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        for at, number in enumerate(filters):
            found = network.guided(layer, image, number, target)
            yield at, found.gradient[0], {
                "filter": number, "value": float(found.value[0]), "relus": found.relus,
            }  # fmt: skip

    settings = {"size": size, "target": target}
    spec = _spec("guided", network, layer, filters, settings, pictures)
    return _add_pictures(paths, network, spec, pictures, size, "gradient", look, redo, progress)


def _add_pictures(
    paths: StorePaths, network: ConvNetwork, spec: CnnSpec, pictures: Pictures, size: int,
    name: str, look: Callable[[Any, Any], Iterator[tuple[int, Any, dict[str, Any]]]], redo: bool,
    progress: Progress | None,
) -> Added:  # fmt: skip
    def compute(folder: Path, keys: Mapping[str, Any]) -> tuple[str, pa.Table]:
        group = folder / GROUP
        count = len(pictures.images)
        along = {"filter": spec.filters, "keyframe": pictures.keyframes}
        array = inputs = None
        sizes, rows = [], []
        for at in range(count):
            pixels, image = as_input(network, pictures, at, size)
            sizes.append(pixels.shape[:2])
            check_sizes(sizes, pictures.name)
            place = {
                "kind": spec.kind, "camera": pictures.camera, "keyframe": pictures.keyframes[at],
                "frame": pictures.frames[at] if pictures.frames else None,
            }  # fmt: skip
            planes = []
            for _, plane, row in look(pixels, image):
                planes.append(plane)
                rows.append({**keys, **place, **row})
            block = np.stack(planes)
            if array is None or inputs is None:
                array = create_array(group, name, (count, *block.shape), along)
                inputs = create_array(group, "input", (count, *pixels.shape), along)
            array[at], inputs[at] = block, pixels
            if progress is not None:
                progress(at + 1, count)
        if pictures.frames:
            add_frames(group, pictures.frames)
        return RESPONSE, pa.Table.from_pylist(rows, CNN_TABLES[RESPONSE].schema)

    run = pictures.run or _own_run(paths, spec)
    summary = {"name": pictures.name, "inputs": pictures.inputs}
    return _add(paths, run, pictures.episode, spec, summary, compute, redo)


def _spec(
    kind: Kind, network: ConvNetwork, layer: Layer, filters: Sequence[int],
    settings: Mapping[str, Any], pictures: Pictures | None = None,
) -> CnnSpec:  # fmt: skip
    return CnnSpec(
        kind, network.name, network.weights, network.trained, network.digest, layer.name,
        layer.index, tuple(filters), network.mean, network.std, settings,
        pictures.camera if pictures else None, pictures.frames if pictures else (),
    )  # fmt: skip


def _own_run(paths: StorePaths, spec: CnnSpec) -> str:
    try:
        release = version("attnstore")
    except PackageNotFoundError:  # run from a checkout
        release = "unknown"
    return save_run(paths, network_run(spec), {"attnstore": release})


def _add(
    paths: StorePaths, run: str, episode: str, spec: CnnSpec, summary: Mapping[str, Any],
    compute: Callable[[Path, Mapping[str, Any]], tuple[str, pa.Table]], redo: bool,
) -> Added:  # fmt: skip
    before = latest_commit(paths, run, episode, spec.part)
    if before is not None and before.summary.get("inputs") == summary["inputs"] and not redo:
        return Added(before, False)
    keys = {
        "run": run, "episode": episode, "part": spec.part, "network": spec.network,
        "module": spec.layer, "conv": spec.conv,
    }  # fmt: skip
    attempt = Attempt(paths, run, episode, spec.part)
    try:
        create_group(attempt.path / GROUP, spec)
        name, rows = compute(attempt.path, keys)
        close_group(attempt.path / GROUP)
        write_table(attempt.path / f"{name}.parquet", rows)
    except BaseException:
        attempt.discard()
        raise
    told = {
        **summary, "kind": spec.kind, "network": spec.network, "layer": spec.layer,
        "filters": len(spec.filters), "trained": spec.trained,
    }  # fmt: skip
    try:
        # Not within the block above: an interrupt may arrive when the commit is visible already.
        return Added(attempt.publish(told, after=before.revision if before else 0), True)
    except ConflictError:
        attempt.discard()
        raise
