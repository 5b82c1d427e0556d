"""The rows of one episode in a LeRobotDataset's Parquet files: clock, state, action, tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError
from attnstore.store.image import read_header

from ..base import CameraFrame, copy_again
from ..outcome import scalar
from ..stills import refused, still
from .metadata import Recording, is_whole

FRAME, EPISODE, TIME, TASK = "frame_index", "episode_index", "timestamp", "task_index"


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeRows:
    """One row a frame."""

    times: NDArray[np.float64]
    """Seconds since the episode's first frame, as recorded, (frame,)."""
    tasks: list[int]
    states: NDArray[np.float32]
    """(frame, state_dof)."""
    actions: NDArray[np.float32]
    """(frame, action_dof)."""

    def check_clock(self, episode: str, data: str, fps: float) -> None:
        """Check that the times are seconds, as far as the frame rate tells.

        Raises
        ------
        EpisodeError
            If they step a hundred times more, or less, than that: as milliseconds and
            nanoseconds do.
        """
        if len(self.times) < 2:
            return
        step = float(np.median(np.diff(self.times)))
        if not 0.01 < step * fps < 100:
            raise EpisodeError(
                episode,
                f"times are in seconds: those in {data} step by {step:g}, and at fps {fps:g} of "
                f"meta/info.json frames are {1 / fps:g} s apart; write {TIME} in seconds",
            )

    def check_finite(self, episode: str, columns: Sequence[str]) -> None:
        """Check the states.

        Raises
        ------
        EpisodeError
            If one is NaN or infinite.
        """
        bad = np.argwhere(~np.isfinite(self.states))
        if len(bad):
            frame, column = bad[0].tolist()
            raise EpisodeError(
                episode,
                f"states are finite numbers: component {column} of {'+'.join(columns)} at frame "
                f"{frame} is {self.states[frame, column]}; repair the file or leave the episode "
                "out",
            )


def read_rows(
    path: Path, recording: Recording, states: Sequence[str], actions: Sequence[str]
) -> EpisodeRows:
    """Read and check an episode's rows.

    Parameters
    ----------
    path
        The Parquet file that holds them.
    states, actions
        Columns that are joined, in this order.

    Raises
    ------
    EpisodeError
        If the file is unreadable, lacks a column, or its frames are not 0 to length - 1.
    """
    table = read_columns(path, recording, [FRAME, TIME, TASK, *states, *actions])
    frames = _scalars(recording, table, FRAME)
    if len(frames) != recording.length or frames != list(range(recording.length)):
        wrong = next((i for i, frame in enumerate(frames) if frame != i), len(frames))
        repair = "copy the file again"
        if len(frames) == recording.length and (first := min(frames)):
            if frames == list(range(int(first), int(first) + len(frames))):
                repair = f"subtract {first:g} from {FRAME}, if that is the first frame recorded"
        elif sorted(frames) == list(range(recording.length)):
            repair = f"sort its rows by {FRAME}"
        raise EpisodeError(
            recording.name,
            f"frames are numbered 0 to length - 1: {recording.data} has {len(frames)} rows of this "
            f"episode, meta/ says {recording.length}, and row {wrong} is "
            f"{f'frame {frames[wrong]:g}' if wrong < len(frames) else 'missing'}; {repair}",
        )
    if not recording.length:
        raise EpisodeError(recording.name, "an episode has frames: this one has none; leave it out")
    times = np.asarray(_scalars(recording, table, TIME), np.float64)
    if not np.isfinite(times).all() or not (np.diff(times) > 0).all():
        raise EpisodeError(
            recording.name, f"the times in {recording.data} do not go forward; repair the file"
        )
    tasks = _scalars(recording, table, TASK)
    if not all(is_whole(i) for i in tasks):
        raise _wrong_type(recording, table, TASK, "a whole number")
    return EpisodeRows(
        times,
        [int(i) for i in tasks],
        _numbers(recording, table, states),
        _numbers(recording, table, actions),
    )


def read_columns(
    path: Path, recording: Recording, columns: Sequence[str], frames: Sequence[int] | None = None
) -> Any:
    """Read columns of an episode's rows as an Arrow table; of some frames only, in their order.

    Raises
    ------
    EpisodeError
        If the file is unreadable or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[tuple[str, str, Any]] = [(EPISODE, "=", recording.index)]
    if frames is not None:
        rows.append((FRAME, "in", list(frames)))
    try:
        schema = pq.read_schema(path)
        for column in (EPISODE, *(key for key, _, _ in rows), *columns):
            if schema.names.count(column) != 1:
                raise EpisodeError(
                    recording.name,
                    f"{recording.data} has {schema.names.count(column) or 'no'} column {column}; "
                    f"it has {', '.join(schema.names)}",
                )
        keys = [key for key, _, _ in rows]
        wanted = list(dict.fromkeys(columns))
        # Arrow compares lists with nothing; some exporters write a scalar as a list of one
        if all(pa.types.is_integer(schema.field(key).type) for key in keys):
            return pq.read_table(path, columns=wanted, filters=rows, partitioning=None)
        keep = pq.read_table(path, columns=keys, partitioning=None)
        chosen = np.full(keep.num_rows, True)
        for key, _, asked in rows:
            values = _scalars(recording, keep, key)
            among = {asked} if key == EPISODE else set(asked)
            chosen &= np.asarray([value in among for value in values], bool)
        return pq.read_table(path, columns=wanted, partitioning=None).filter(pa.array(chosen))
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise unreadable(path, recording, error) from error


def unreadable(path: Path, recording: Recording, error: Exception) -> EpisodeError:
    """Return the error of an episode whose Parquet file cannot be read."""
    # Arrow's reasons may carry the absolute path
    reason = " ".join(str(error).replace(str(path), recording.data).split())[:200]
    return EpisodeError(
        recording.name,
        f"{recording.data} ({path.stat().st_size} bytes) is not readable as Parquet: {reason}; "
        f"{copy_again(path)}",
    )


@dataclass(frozen=True, slots=True)
class EmbeddedImages:
    """One camera whose images lie in the Parquet file itself."""

    recording: Recording
    camera: str
    column: str
    path: Path
    root: Path
    """Where image files that are named instead of embedded lie."""

    def read(self, frames: Sequence[int]) -> Iterator[CameraFrame]:
        """Yield the asked frames in the given order, as `still` keeps them.

        An EXIF orientation is applied, as LeRobot's own reader (``datasets.Image``) does.

        Raises
        ------
        EpisodeError
            If an image cannot be decoded, is none that is taken, or differs in size from those
            before it.
        """
        table = read_columns(self.path, self.recording, [FRAME, self.column], frames)
        numbers = _scalars(self.recording, table, FRAME)
        cells = dict(zip(numbers, table[self.column].to_pylist(), strict=True))
        first: tuple[int, int] | None = None
        for frame in frames:
            data = self._bytes(frame, cells.get(frame))
            try:
                picture = still(self.camera, data, upright=True)
            except (OSError, ValueError, TypeError) as error:
                raise self._undecodable(frame, error) from error
            height, width = picture.rgb.shape[:2]
            first = self._same_size(frame, (width, height), first)
            yield picture

    def check(self) -> None:
        """Check that every frame has an image, all of one size, without decoding them.

        Also of those that no keyframe shows: a hole is a fault of the recording, wherever it is.

        Raises
        ------
        EpisodeError
            If one has none, or its header says that it is incomplete, is none that is taken, or
            differs in size from those before it.
        """
        first: tuple[int, int] | None = None
        for frame, cell in self._all():
            try:
                header = read_header(self._bytes(frame, cell))
            except (OSError, ValueError, TypeError) as error:
                raise self._undecodable(frame, error) from error
            size = header.width, header.height
            if header.orientation > 4:  # turned by a quarter
                size = size[::-1]
            first = self._same_size(frame, size, first)

    def _all(self) -> Iterator[tuple[int, Any]]:
        """Yield every frame's number and cell, some frames at a time: an episode may be gigabytes."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        # the column is there and the numbers are those of the rows: `read_rows` has seen them
        index = self.recording.index
        try:
            parquet = ds.dataset(self.path, format="parquet", partitioning=None)
            whole = pa.types.is_integer(parquet.schema.field(EPISODE).type)
            scanned = parquet.scanner(
                columns=[EPISODE, FRAME, self.column],
                filter=ds.field(EPISODE) == index if whole else None,
                batch_size=64, batch_readahead=1,
            )  # fmt: skip
            for batch in scanned.to_batches():
                rows = pa.Table.from_batches([batch])
                episodes, frames = (_scalars(self.recording, rows, c) for c in (EPISODE, FRAME))
                for episode, frame, cell in zip(episodes, frames, rows[self.column], strict=True):
                    if episode == index:
                        yield int(frame), cell.as_py()
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise unreadable(self.path, self.recording, error) from error

    def _undecodable(self, frame: int, error: Exception) -> EpisodeError:
        where = f"{self.column} of frame {frame} in {self.recording.data}"
        return EpisodeError(self.recording.name, refused(where, error))

    def _same_size(
        self, frame: int, size: tuple[int, int], first: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Return the first frame's size, (width, height)."""
        if first is None or size == first:
            return size
        raise EpisodeError(
            self.recording.name,
            f"all frames of a camera have one size: {self.column} is {size[0]}x{size[1]} at frame "
            f"{frame}, {first[0]}x{first[1]} before; export the dataset again",
        )

    def _bytes(self, frame: int, cell: Any) -> bytes:
        """Return an image file's bytes: the cell's own, or those of the file that it names."""
        if isinstance(cell, bytes):
            return cell
        data, named = (
            (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (None, cell)
        )
        if isinstance(data, bytes):
            return data
        where = f"{self.column} of frame {frame} in {self.recording.data}"
        if data is not None or not (named is None or isinstance(named, str)):
            raise EpisodeError(
                self.recording.name,
                f"{where} is {type(named if data is None else data).__name__}; an image is the "
                "bytes of a JPEG or PNG file, or {bytes, path}; export the dataset again",
            )
        if not named:
            raise EpisodeError(
                self.recording.name,
                f"frame {frame} has no image: {where} is null; restore it, or leave the episode out",
            )
        pure = PurePosixPath(named)
        if pure.is_absolute() or ".." in pure.parts or "\0" in named:
            raise EpisodeError(
                self.recording.name,
                f"{where} names {named!r:.100}, which is not below the dataset's folder; embed the "
                "images",
            )
        try:
            return (self.root / pure).read_bytes()
        except OSError as error:
            raise EpisodeError(
                self.recording.name,
                f"{where} names {named!r:.100}: {error.strerror}; copy the file again",
            ) from error


def _scalars(recording: Recording, table: Any, column: str) -> list[Any]:
    """Return a column's numbers; a list of one is the number in it."""
    values = [scalar(value) for value in table[column].to_pylist()]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise _wrong_type(recording, table, column, "one number")
    return values


def _wrong_type(recording: Recording, table: Any, column: str, expected: str) -> EpisodeError:
    kind = table.schema.field(column).type
    nulls = table[column].null_count
    holds = f"{nulls} of its {table.num_rows} values are null" if nulls else f"it holds {kind}"
    return EpisodeError(
        recording.name,
        f"column {column} of {recording.data} has {expected} a frame; {holds}; export the dataset "
        "again",
    )


def _numbers(recording: Recording, table: Any, columns: Sequence[str]) -> NDArray[np.float32]:
    parts = []
    for column in columns:
        rows = table[column].to_pylist()
        values: NDArray[Any] | None
        try:
            values = np.asarray(rows)
        except (ValueError, TypeError):  # rows of different lengths
            values = None
        # None, a text of digits or a date would become numbers of some sort
        if values is None or values.dtype.kind not in "fiub":
            raise _wrong_type(recording, table, column, "one row of numbers")
        with np.errstate(over="ignore"):  # becomes infinite, which check_finite reports
            parts.append(values.astype(np.float32).reshape(recording.length, -1))
    return np.concatenate(parts, axis=1) if parts else np.empty((recording.length, 0), np.float32)
