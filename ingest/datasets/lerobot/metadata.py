"""``meta/`` of a LeRobotDataset: what is recorded, which episodes there are, where they lie.

v2.0 and v2.1 keep one Parquet and one video file an episode, and JSON lines in ``meta/``; v3 packs
many episodes into a file and keeps its tables in Parquet. Source of both formats: LeRobot's
``datasets/utils.py`` and ``dataset_metadata.py`` (v0.3.3 for v2.1, v0.6.1 for v3.0).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnstore.store.errors import AttnstoreError, EpisodeError
from attnstore.store.format.views import named
from attnstore.store.json_text import parse_json

from ..base import copy_again
from ..outcome import scalar
from .files import INFO, DatasetFiles

_log = logging.getLogger(__name__)

VERSIONS = ("v2.0", "v2.1", "v3.0")
NUMERIC = ("float", "int", "uint", "bool")
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


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
    episodes: int | None
    """Number of episodes, as counted there."""

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

    @property
    def of_an_evaluation(self) -> bool:
        """Whether ``lerobot-eval --eval.recording`` wrote it: raw frames, before the environment's processor.

        That writes reward, success and end of every frame, and knows neither a robot nor names of
        components; nobody else's dataset is known to be so.
        """
        told = {"next.reward": "float32", "next.success": "bool", "next.done": "bool"}
        numbers = {k: f for k, f in self.features.items() if k not in _COUNTERS}
        return (
            self.robot is None
            and all(self.features.get(k, {}).get("dtype") == kind for k, kind in told.items())
            and all(
                f.get("names") == ["height", "width", "channel"]
                if f.get("dtype") in ("image", "video")
                else f.get("names") is None
                for f in numbers.values()
            )
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
        return episode_name(self.index)


@dataclass(frozen=True, slots=True)
class Lost:
    """An episode that is counted or described, but of which it is not known where it lies."""

    index: int
    reason: str

    @property
    def name(self) -> str:
        """``episode_000012``."""
        return episode_name(self.index)


def episode_name(index: int) -> str:
    """Name of an episode: ``episode_000012``."""
    return f"episode_{index:06d}"


def read_info(files: DatasetFiles) -> Recorded:
    """Read ``info.json``.

    Raises
    ------
    AttnstoreError
        If it cannot be read, or is of a version that is not known.
    """
    try:
        info = parse_json((files.root / INFO).read_bytes())
        version = str(info["codebase_version"])
        if version not in VERSIONS:
            raise AttnstoreError(
                f"{files.source}: {INFO} is of version {version:.40}; {', '.join(VERSIONS)} are read"
            )
        features = {str(key): _feature(key, value) for key, value in info["features"].items()}
        fps = float(info["fps"])
        if not 0 < fps < math.inf:
            raise ValueError(f"fps must be positive; it is {fps}")
        chunk = whole(info.get("chunks_size", 1000), "chunks_size", least=1)
        count = info.get("total_episodes")
        return Recorded(
            version, fps, features, _template(info, "data_path"),
            _template(info, "video_path") if info.get("video_path") is not None else None,
            chunk, info.get("robot_type"),
            None if count is None else whole(count, "total_episodes"),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AttnstoreError(
            f"{files.source}: {INFO} is not LeRobot's ({_told(error)}); restore it"
        ) from error


def read_recordings(files: DatasetFiles, recorded: Recorded) -> dict[str, Recording | Lost]:
    """Read every episode's description, by name, in order.

    What makes one episode's description useless loses that episode only: two rows for it, a value
    of a wrong type, a row or a file that cannot be read while ``info.json`` counts the episode.

    Raises
    ------
    AttnstoreError
        If nothing can be read, or it cannot be said which episodes are lost.
    """
    table = "meta/episodes" if recorded.packed else "meta/episodes.jsonl"
    unread: list[str] = []
    try:
        rows = list(
            _packed_rows(files, unread)
            if recorded.packed
            else _json_rows(files.root / table, table, unread)
        )
    except (OSError, ValueError) as error:
        raise AttnstoreError(
            f"{files.source}: {table} is not LeRobot's ({_told(error)}); restore it"
        ) from error
    described: dict[int, list[tuple[str, Mapping[str, Any]]]] = {}
    for place, row in rows:
        try:
            index = whole(row["episode_index"], "episode_index")
        except (ValueError, KeyError, TypeError) as error:
            unread.append(f"{place} names no episode ({_told(error)})")
            continue
        described.setdefault(index, []).append((place, row))
    lost = _missing(files, recorded, table, described, unread)
    found: list[Recording | Lost] = [Lost(index, reason) for index, reason in lost.items()]
    for index, those in described.items():
        if len(those) > 1:
            found.append(Lost(index, _ambiguous(table, those)))
            continue
        ((place, row),) = those
        try:
            found.append(_recording(recorded, index, row))
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            OverflowError,
        ) as error:
            found.append(Lost(index, f"{place} is not LeRobot's ({_told(error)}); restore {table}"))
    return {r.name: r for r in sorted(found, key=lambda r: r.index)}


def read_tasks(files: DatasetFiles, recorded: Recorded) -> dict[int, list[str]]:
    """Read the instructions by task index; more than one is an error of the episodes that use it.

    Raises
    ------
    AttnstoreError
        If they cannot be read.
    """
    table = "meta/tasks.parquet" if recorded.packed else "meta/tasks.jsonl"
    pairs: Iterator[tuple[Any, Any]]
    try:
        if recorded.packed:
            pairs = _packed_tasks(files.root / table)
        else:
            rows = _json_rows(files.root / table, table, [])
            pairs = ((row.get("task_index"), row.get("task")) for _, row in rows)
        found: dict[int, list[str]] = {}
        for index, text in pairs:
            # a row without an index, or a text that is none, leaves its episodes without a task
            if not is_whole(index) or not isinstance(text, str):
                continue
            texts = found.setdefault(int(index), [])
            if text not in texts:
                texts.append(text)
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AttnstoreError(
            f"{files.source}: {table} is not LeRobot's ({_told(error)}); restore it"
        ) from error


def instruction(episode: str, tasks: Mapping[int, Sequence[str]], indices: list[int]) -> str:
    """Return the one instruction of an episode's frames.

    Raises
    ------
    EpisodeError
        If the frames have different ones, or it is unknown, empty, or one of several.
    """

    def shown(index: int) -> str:
        return " or ".join(repr(text) for text in tasks.get(index, ())) or "not in meta/"

    first = indices[0]
    other = next((i for i, index in enumerate(indices) if index != first), None)
    if other is not None:
        raise EpisodeError(
            episode,
            f"an episode has one task: frame 0 has task {first} ({shown(first)}), frame "
            f"{other} has task {indices[other]} ({shown(indices[other])}); split the episode "
            "in LeRobot",
        )
    texts = tasks.get(first, ())
    if len(texts) > 1:
        raise EpisodeError(
            episode,
            f"task {first} stands twice in meta/: {shown(first)}; keep the one that is meant",
        )
    text = " ".join(texts[0].split()) if texts else ""
    if not text:
        rule = "is empty" if texts else "is not in meta/, or not as a text"
        raise EpisodeError(
            episode, f"task {first} {rule}; write the sentence that the policy was given there"
        )
    return text


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number: JSON's true is none, 2.0 is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or (math.isfinite(value) and value.is_integer())


def whole(value: Any, what: str, least: int = 0) -> int:
    """Return a whole number.

    Raises
    ------
    ValueError
        If it is none, or below `least`.
    """
    value = scalar(value)
    if not is_whole(value) or value < least:
        raise ValueError(f"{what} is a whole number from {least}; got {value!r:.60}")
    return int(value)


def _missing(
    files: DatasetFiles,
    recorded: Recorded,
    table: str,
    described: Mapping[int, Any],
    unread: Sequence[str],
) -> dict[int, str]:
    """Say which counted episodes have no row, and why."""
    absent = (recorded.episodes or 0) - len(described)
    why = f" ({'; '.join(unread[:3])})" if unread else ""
    if absent <= 0:
        if unread and recorded.episodes is None:
            raise AttnstoreError(f"{files.source}: {unread[0]}; restore {table}")
        for reason in unread:
            _log.warning("%s: %s; every episode of %s is described", files.source, reason, INFO)
        return {}
    if not described or absent > max(1000, 10 * len(described)):
        raise AttnstoreError(
            f"{files.source}: {INFO} counts {recorded.episodes} episodes, {table} describes "
            f"{len(described)}{why}; restore meta/"
        )
    gaps = [i for i in range(recorded.episodes or 0) if i not in described][:absent]
    return dict.fromkeys(
        gaps,
        f"{INFO} counts {recorded.episodes} episodes, and {table} does not describe this "
        f"one{why}; restore {table}",
    )


def _ambiguous(table: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    keys = ("length", "data/chunk_index", "data/file_index", "dataset_from_index")
    told = [
        f"{place}: {', '.join(f'{key} {row[key]}' for key in keys if key in row)}"
        for place, row in rows
    ]
    return (
        f"{table} describes it {len(rows)} times ({' and '.join(told[:2])}); keep the row that is "
        "meant, or give each recording an index of its own"
    )


def _recording(recorded: Recorded, index: int, row: Mapping[str, Any]) -> Recording:
    cameras = [k for k, f in recorded.features.items() if f.get("dtype") == "video"]
    videos = {}
    place: dict[str, Any]
    if recorded.packed:
        place = {
            "chunk_index": whole(row["data/chunk_index"], "data/chunk_index"),
            "file_index": whole(row["data/file_index"], "data/file_index"),
        }
    else:
        place = {"episode_chunk": index // recorded.chunk, "episode_index": index}
    data = recorded.data_path.format(**place)
    for camera in cameras:
        if recorded.video_path is None:
            raise ValueError(f"info.json has no video_path, and {camera} is a video")
        start = 0.0
        if recorded.packed:
            for key in ("chunk_index", "file_index"):
                place[key] = whole(row[f"videos/{camera}/{key}"], f"videos/{camera}/{key}")
            start = float(scalar(row[f"videos/{camera}/from_timestamp"]))
            if not 0 <= start < math.inf:
                raise ValueError(f"videos/{camera}/from_timestamp is {start}")
        videos[camera] = (recorded.video_path.format(video_key=camera, **place), start)
    own = {k: v for k, v in row.items() if not k.startswith(("videos/", "data/", "meta/"))}
    return Recording(index, whole(row["length"], "length"), data, videos, own)


def _packed_rows(files: DatasetFiles, unread: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = files.under("meta/episodes")
    if not paths:
        raise FileNotFoundError("no Parquet file in meta/episodes")
    for path in paths:
        where = path.relative_to(files.root).as_posix()
        try:
            with pq.ParquetFile(path) as file:
                names = [n for n in file.schema_arrow.names if not n.startswith("stats/")]
                rows = file.read(columns=names).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            told = _told(error, path, where)[:100]
            unread.append(f"{where} is not readable as Parquet: {told}; {copy_again(path)}")
            continue
        for number, row in enumerate(rows):
            yield f"row {number} of {where}", row
    if len(unread) == len(paths):
        raise ValueError(unread[0])


def _packed_tasks(path: Path) -> Iterator[tuple[Any, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(_told(error, path, path.name)) from None
    # pandas wrote the tasks as its index, whose column is called `task` in some versions only
    texts = [field.name for field in table.schema if _is_text(field.type)]
    (column,) = ["task"] if "task" in texts else texts if len(texts) == 1 else [None]
    if column is None or table.schema.names.count(column) != 1:
        raise ValueError(
            f"the task is one of its columns {', '.join(table.schema.names)}, not told which"
        )
    indices = [scalar(value) for value in table["task_index"].to_pylist()]
    return zip(indices, table[column].to_pylist(), strict=True)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):  # as pandas writes a categorical column
        kind = kind.value_type
    return any(
        test(kind)
        for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _json_rows(
    path: Path, table: str, unread: list[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("an object is expected")
        except ValueError as error:
            unread.append(f"line {number} of {table} is not readable as JSON: {_told(error)}")
            continue
        yield f"line {number} of {table}", row


def _feature(key: str, value: Any) -> dict[str, Any]:
    found = dict(value)
    if not isinstance(found.get("dtype"), str) or not isinstance(found.get("shape", []), list):
        raise ValueError(f"feature {key!r} has a dtype and a shape")
    return found


def _template(info: Mapping[str, Any], key: str) -> str:
    """Check that a template's fields are LeRobot's, and that it leads nowhere else."""
    text = info[key]
    if not isinstance(text, str):
        raise TypeError(f"{key} is a text; got {text!r:.60}")
    fields = ("episode_chunk", "episode_index", "chunk_index", "file_index")
    try:
        made = text.format(video_key="camera", **dict.fromkeys(fields, 0))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(f"{key} {text!r:.100} is no template of LeRobot's: {error!r}") from None
    if Path(made).is_absolute() or ".." in Path(made).parts or "\0" in made:
        raise ValueError(f"{key} {text!r:.100} leads out of the dataset")
    return text


def _told(error: BaseException, path: Path | None = None, where: str = "") -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if path is not None:
        text = text.replace(str(path), where)
    return f"{type(error).__name__}: {text}"[:240]


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
