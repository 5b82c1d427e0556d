"""A copy of a LeRobotDataset with more columns; the original is only read."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnstore.store.errors import AttnstoreError, UsageError

from .files import INFO, DatasetFiles, open_files
from .metadata import Lost, Recorded, Recording, read_info, read_recordings
from .rows import EPISODE, FRAME

PREFIX = "attention."
FILLS = ("nan", "hold")
_FEATURE = re.compile(r"[A-Za-z0-9_.\-]+")

Place = tuple[int, int]
"""(episode_index, frame_index)."""


@dataclass(frozen=True, slots=True)
class FrameValues:
    """Numbers per frame, by column."""

    columns: tuple[str, ...]
    rows: Mapping[Place, tuple[float, ...]]

    def at(self, place: Place, fill: str) -> tuple[float, ...]:
        """Return a frame's numbers; where there are none, NaN or those of the last frame before."""
        if (found := self.rows.get(place)) is not None:
            return found
        if fill == "hold":
            episode, frame = place
            for before in range(frame - 1, -1, -1):
                if (found := self.rows.get((episode, before))) is not None:
                    return found
        return (math.nan,) * len(self.columns)


def export_copy(
    source: str,
    target: Path,
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    prefix: str = PREFIX,
    fill: str = "nan",
    link_videos: bool = False,
    progress: Callable[[float, str], None] = lambda share, name: None,
) -> tuple[str, ...]:
    """Write a copy of a dataset in which every frame has further numbers, float32.

    ``meta/info.json`` names the new features; statistics and all other files are as they were.

    Parameters
    ----------
    source
        Folder of the dataset.
    target
        Folder to make; it appears when it is complete.
    names
        Names of the columns of `rows`: ``episode``, ``frame`` and one or more for numbers.
    rows
        One row a frame: the episode's name or index, the frame's index, numbers or None.
    prefix
        Put before the numbers' names.
    fill
        What a frame gets that no row is for: ``nan``, or ``hold``: the last before it.
    link_videos
        Make symbolic links to the original's videos instead of copying them.
    progress
        Called before each file with the share of bytes that are copied, and its name.

    Returns
    -------
    Names of the new features.

    Raises
    ------
    UsageError
        If the rows are not that, or the target exists.
    NotFoundError
        If there is no such dataset.
    """
    files = open_files(source)
    if files.commit is not None:
        raise UsageError(
            f"{source}: a copy is made of a folder; fetch the dataset first: "
            f"hf download --repo-type dataset {source} --local-dir FOLDER"
        )
    if fill not in FILLS:
        raise UsageError(f"fill is one of {', '.join(FILLS)}; got {fill!r}")
    target = target.absolute()
    if target.exists():
        raise UsageError(f"{target} exists; name a folder that does not")
    if target.resolve().is_relative_to(files.root):
        raise UsageError(f"{target} lies inside the dataset that is copied; name another folder")
    recorded = read_info(files)
    values = _frame_values(recorded, read_recordings(files, recorded), names, rows, prefix)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        _copy(files, partial, values, fill, link_videos, progress)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return values.columns


def _frame_values(
    recorded: Recorded,
    recordings: Mapping[str, Recording | Lost],
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    prefix: str,
) -> FrameValues:
    if "episode" not in names or "frame" not in names or len(names) < 3:
        raise UsageError(
            "the query gives the columns episode (its name), frame (its index) and one or more "
            f"numbers; it gives {', '.join(names)}"
        )
    at = names.index("episode"), names.index("frame")
    chosen = [i for i in range(len(names)) if i not in at]
    columns = tuple(prefix + names[i] for i in chosen)
    for column in columns:
        if not _FEATURE.fullmatch(column):
            raise UsageError(
                f"a feature's name has letters, digits, _, - and . only; got {column!r}: "
                "name the column with `as`"
            )
        if column in recorded.features:
            raise UsageError(f"the dataset has a feature {column!r} already; choose another prefix")
    found: dict[Place, tuple[float, ...]] = {}
    by_index = {str(r.index): r for r in recordings.values()}
    for row in rows:
        name, frame = str(row[at[0]]), row[at[1]]
        recording = recordings.get(name) or by_index.get(name)
        if recording is None:
            raise UsageError(f"the dataset has no episode {name!r}; select episodes.name")
        if isinstance(recording, Lost):
            raise UsageError(f"{recording.name}: {recording.reason}")
        if not isinstance(frame, int) or not 0 <= frame < recording.length:
            raise UsageError(
                f"{recording.name} has frames 0 to {recording.length - 1}; the query gives {frame!r}"
            )
        place = (recording.index, frame)
        if place in found:
            raise UsageError(
                f"one row a frame: the query gives two for {recording.name} frame {frame}; choose "
                "a run, phase, step, layer, head and camera, or group by episode and frame"
            )
        found[place] = tuple(_number(names[i], row[i]) for i in chosen)
    if not found:
        raise UsageError("the query gives no rows")
    return FrameValues(columns, found)


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"column {name!r} of the query holds numbers; it has {value!r}") from None


def _copy(
    files: DatasetFiles, target: Path, values: FrameValues, fill: str, link_videos: bool,
    progress: Callable[[float, str], None],
) -> None:  # fmt: skip
    import pyarrow as pa

    places = _files_below(files.root)
    sizes = [(files.root / place).stat().st_size for place in places]
    done, total = 0, max(1, sum(sizes))
    for place, size in zip(places, sizes, strict=True):
        progress(done / total, place.as_posix())
        done += size
        path, copy = files.root / place, target / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        if place.parts[0] == "data" and path.suffix == ".parquet":
            try:
                _add_columns(path, copy, values, fill)
            except (UnicodeDecodeError, pa.ArrowException) as error:
                raise AttnstoreError(
                    f"{place} ({path.stat().st_size} bytes) is not readable as Parquet: "
                    f"{' '.join(str(error).split())[:200]}; copy the file again"
                ) from error
        elif place.as_posix() == INFO:
            info = json.loads(path.read_bytes())
            info["features"] |= {
                name: {"dtype": "float32", "shape": [1], "names": None} for name in values.columns
            }
            copy.write_text(json.dumps(info, indent=4))
        elif place.parts[0] == "videos" and link_videos:
            copy.symlink_to(path)
        else:
            shutil.copy2(path, copy)


def _files_below(root: Path) -> list[Path]:
    """Relative paths of all files that are not hidden, through linked folders too, sorted."""
    found: list[Path] = []

    def walk(folder: Path, above: tuple[Path, ...]) -> None:
        real = folder.resolve()
        if real in above:
            raise UsageError(
                f"{folder.relative_to(root)} is a link to a folder that it lies in; remove the link"
            )
        for path in folder.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                walk(path, (*above, real))
            elif path.is_file():
                found.append(path.relative_to(root))
            elif path.is_symlink():
                raise UsageError(
                    f"{path.relative_to(root)} is a link to {path.readlink()}, which is not "
                    "there; restore it, or remove the link"
                )

    walk(root, ())
    return sorted(found)


def _add_columns(source: Path, target: Path, values: FrameValues, fill: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        schema = _described(file.schema_arrow, values.columns)
        with pq.ParquetWriter(target, schema) as writer:
            # A row group at a time, and the same ones: v3 has one an episode.
            for index in range(file.num_row_groups):
                table = file.read_row_group(index)
                places = zip(table[EPISODE].to_pylist(), table[FRAME].to_pylist(), strict=True)
                rows = [values.at(place, fill) for place in places]
                for position, column in enumerate(values.columns):
                    numbers = pa.array([row[position] for row in rows], pa.float32())
                    table = table.append_column(column, numbers)
                writer.write_table(table.cast(schema), row_group_size=max(1, len(rows)))


def _described(schema: Any, columns: Sequence[str]) -> Any:
    """Add columns to an Arrow schema, and to what the datasets library noted in it."""
    import pyarrow as pa

    metadata = dict(schema.metadata or {})
    if b"huggingface" in metadata:
        noted = json.loads(metadata[b"huggingface"])
        features = noted.get("info", {}).get("features")
        if isinstance(features, dict):
            features |= {name: {"dtype": "float32", "_type": "Value"} for name in columns}
        metadata[b"huggingface"] = json.dumps(noted).encode()
    for column in columns:
        schema = schema.append(pa.field(column, pa.float32()))
    return schema.with_metadata(metadata or None)
