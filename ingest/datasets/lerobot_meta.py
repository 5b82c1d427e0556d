"""``meta/`` of a LeRobotDataset: what is recorded, which episodes there are, where they lie.

v2.0 and v2.1 keep one Parquet and one video file an episode, and JSON lines in ``meta/``; v3 packs
many episodes into a file and keeps its tables in Parquet. Source of both formats: LeRobot's
``datasets/utils.py`` and ``dataset_metadata.py`` (v0.3.3 for v2.1, v0.6.1 for v3.0).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnstore.store.errors import AttnstoreError, EpisodeError
from attnstore.store.views import named

from .lerobot_files import INFO, DatasetFiles

VERSIONS = ("v2.0", "v2.1", "v3.0")
NUMERIC = ("float", "int", "uint", "bool")


@dataclass(frozen=True, slots=True)
class Recorded:
    """``info.json``: what a dataset's frames hold."""

    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    """Template of a Parquet file's path."""
    video_path: str | None
    """Template of a video file's path."""
    chunk: int
    """Episodes in a folder (v2)."""
    robot: str | None

    @property
    def packed(self) -> bool:
        """Whether a file holds many episodes: v3."""
        return self.version.startswith("v3")

    @property
    def cameras(self) -> dict[str, str]:
        """Column per camera, in the dataset's order: every picture that is no depth map.

        A camera is called what its column is without ``observation.images.``, with ``_`` for what
        no camera's name has.
        """
        columns = [
            key
            for key, feature in self.features.items()
            if feature.get("dtype") in ("image", "video") and not _is_depth(feature)
        ]
        for names in (map(camera_name, columns), map(named, columns)):
            named_columns = dict(zip(names, columns, strict=True))
            if len({name.casefold() for name in named_columns}) == len(columns):
                return named_columns
        return {f"camera-{n}": column for n, column in enumerate(columns)}

    @property
    def colour_cameras(self) -> tuple[str, ...]:
        """Those of `cameras` that are taken unasked: a picture of one channel may be depth."""
        return tuple(
            name for name, column in self.cameras.items() if not _is_grey(self.features[column])
        )

    def is_numeric(self, column: str) -> bool:
        """Whether a column holds numbers, one or a row of them a frame."""
        feature = self.features.get(column, {})
        return str(feature.get("dtype")).startswith(NUMERIC) and len(feature.get("shape", ())) == 1


@dataclass(frozen=True, slots=True)
class Recording:
    """One episode as ``meta/`` describes it."""

    index: int
    length: int
    """Number of frames."""
    data: str
    """Its Parquet file, relative to the root."""
    videos: Mapping[str, tuple[str, float]]
    """Per video column: the file, and the time in it at which the episode begins, seconds."""
    columns: Mapping[str, Any]
    """What else is said of it, statistics left out."""

    @property
    def name(self) -> str:
        """``episode_000012``, as v2.1 names its files."""
        return f"episode_{self.index:06d}"


def read_info(files: DatasetFiles) -> Recorded:
    """Read ``info.json``.

    Raises
    ------
    AttnstoreError
        If it cannot be read, or is of a version that is not known.
    """
    try:
        info = json.loads((files.root / INFO).read_bytes())
        version = str(info["codebase_version"])
        if version not in VERSIONS:
            raise AttnstoreError(
                f"{files.source}: {INFO} is of version {version}; {', '.join(VERSIONS)} are read"
            )
        features = {str(key): dict(value) for key, value in info["features"].items()}
        fps = float(info["fps"])
        if not fps > 0:
            raise ValueError(f"fps must be positive; it is {fps}")
        return Recorded(
            version, fps, features, str(info["data_path"]), info.get("video_path"),
            int(info.get("chunks_size", 1000)), info.get("robot_type"),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AttnstoreError(
            f"{files.source}: {INFO} is not LeRobot's ({type(error).__name__}: {error}); restore it"
        ) from error


def read_recordings(files: DatasetFiles, recorded: Recorded) -> dict[str, Recording]:
    """Read every episode's description, by name, in order.

    Raises
    ------
    AttnstoreError
        If it cannot be read.
    """
    table = "meta/episodes" if recorded.packed else "meta/episodes.jsonl"
    try:
        rows = _packed_rows(files) if recorded.packed else _json_rows(files.root / table)
        found = [_recording(recorded, row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise AttnstoreError(
            f"{files.source}: {table} is not LeRobot's ({type(error).__name__}: {error}); "
            "restore it"
        ) from error
    return {r.name: r for r in sorted(found, key=lambda r: r.index)}


def read_tasks(files: DatasetFiles, recorded: Recorded) -> dict[int, str]:
    """Read the instructions by task index.

    Raises
    ------
    AttnstoreError
        If they cannot be read.
    """
    table = "meta/tasks.parquet" if recorded.packed else "meta/tasks.jsonl"
    try:
        if not recorded.packed:
            rows = _json_rows(files.root / table)
            return {int(row["task_index"]): str(row["task"]) for row in rows}
        import pyarrow.parquet as pq

        columns = pq.read_table(files.root / table).to_pydict()
        indices = columns.pop("task_index")
        # pandas wrote the tasks as its index: the column's name differs between versions
        (texts,) = columns.values()
        return {int(i): str(text) for i, text in zip(indices, texts, strict=True)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AttnstoreError(
            f"{files.source}: {table} is not LeRobot's ({type(error).__name__}: {error}); "
            "restore it"
        ) from error


def instruction(episode: str, tasks: Mapping[int, str], indices: list[int]) -> str:
    """Return the one instruction of an episode's frames.

    Raises
    ------
    EpisodeError
        If the frames have different ones, or it is unknown or empty.
    """
    first = indices[0]
    other = next((i for i, index in enumerate(indices) if index != first), None)
    if other is not None:
        raise EpisodeError(
            episode,
            f"an episode has one task: frame 0 has task {first} ({tasks.get(first)!r}), frame "
            f"{other} has task {indices[other]} ({tasks.get(indices[other])!r}); split the episode "
            "in LeRobot",
        )
    text = " ".join(tasks.get(first, "").split())
    if not text:
        rule = "is empty" if first in tasks else "is not in meta/"
        raise EpisodeError(
            episode, f"task {first} {rule}; write the sentence that the policy was given there"
        )
    return text


def _recording(recorded: Recorded, row: Mapping[str, Any]) -> Recording:
    index = int(row["episode_index"])
    cameras = [k for k, f in recorded.features.items() if f.get("dtype") == "video"]
    videos = {}
    if recorded.packed:
        data = recorded.data_path.format(
            chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"])
        )
    else:
        place = {"episode_chunk": index // recorded.chunk, "episode_index": index}
        data = recorded.data_path.format(**place)
    for camera in cameras:
        if recorded.video_path is None:
            raise ValueError(f"info.json has no video_path, and {camera} is a video")
        if recorded.packed:
            file = recorded.video_path.format(
                video_key=camera,
                chunk_index=int(row[f"videos/{camera}/chunk_index"]),
                file_index=int(row[f"videos/{camera}/file_index"]),
            )
            videos[camera] = (file, float(row[f"videos/{camera}/from_timestamp"]))
        else:
            videos[camera] = (recorded.video_path.format(video_key=camera, **place), 0.0)
    own = {k: v for k, v in row.items() if not k.startswith(("videos/", "data/", "meta/"))}
    return Recording(index, int(row["length"]), data, videos, own)


def _packed_rows(files: DatasetFiles) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    paths = files.under("meta/episodes")
    if not paths:
        raise FileNotFoundError("no Parquet file in meta/episodes")
    for path in paths:
        with pq.ParquetFile(path) as file:
            names = [n for n in file.schema_arrow.names if not n.startswith("stats/")]
            yield from file.read(columns=names).to_pylist()


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info, video = feature.get("info") or {}, feature.get("video_info") or {}
    return any(
        bool(place.get(key))
        for place in (info, video)
        for key in ("is_depth_map", "video.is_depth_map")
    )


def _is_grey(feature: Mapping[str, Any]) -> bool:
    """Whether a picture has one channel, as its shape, its video's header or its type says."""
    for place in (feature.get("info") or {}, feature.get("video_info") or {}):
        channels, pixels = place.get("video.channels"), str(place.get("video.pix_fmt"))
        if channels == 1 or pixels.startswith(("gray", "y1")):
            return True
    shape, names = tuple(feature.get("shape") or ()), feature.get("names")
    if isinstance(names, list) and len(names) == len(shape):
        for size, name in zip(shape, names, strict=True):
            if str(name).lower() in ("c", "channel", "channels"):
                return bool(size == 1)
    return len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2]))


def camera_name(column: str) -> str:
    """Return what the camera of a column, or of a policy's feature, is called.

    Examples
    --------
    >>> camera_name("observation.images.cam/left"), camera_name("observation.image")
    ('cam_left', 'image')
    """
    for prefix in ("observation.images.", "observation."):
        if column.startswith(prefix) and column != prefix:
            return named(column.removeprefix(prefix))
    return named(column)
