"""The rows of one episode in a LeRobotDataset's Parquet files: clock, state, action, tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError

from .base import CameraFrame
from .lerobot_meta import Recording
from .stills import refused, still

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
    frames = table[FRAME].to_pylist()
    if frames != list(range(recording.length)):
        wrong = next((i for i, frame in enumerate(frames) if frame != i), len(frames))
        raise EpisodeError(
            recording.name,
            f"frames are numbered 0 to length - 1: {recording.data} has {len(frames)} rows of this "
            f"episode, meta/ says {recording.length}, and row {wrong} is "
            f"{f'frame {frames[wrong]}' if wrong < len(frames) else 'missing'}; copy the file "
            "again",
        )
    if not recording.length:
        raise EpisodeError(recording.name, "an episode has frames: this one has none; leave it out")
    times = np.asarray(table[TIME].to_pylist(), np.float64).reshape(len(frames))
    if not np.isfinite(times).all() or not (np.diff(times) > 0).all():
        raise EpisodeError(
            recording.name, f"the times in {recording.data} do not go forward; repair the file"
        )
    return EpisodeRows(
        times,
        [int(i) for i in table[TASK].to_pylist()],
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
        there = pq.read_schema(path).names
        for column in (EPISODE, *columns):
            if column not in there:
                raise EpisodeError(
                    recording.name,
                    f"{recording.data} has no column {column}; it has {', '.join(there)}",
                )
        return pq.read_table(path, columns=list(dict.fromkeys(columns)), filters=rows)
    except (OSError, pa.ArrowException) as error:
        # Arrow's reasons may carry the absolute path
        reason = " ".join(str(error).replace(str(path), recording.data).split())[:200]
        raise EpisodeError(
            recording.name,
            f"{recording.data} ({path.stat().st_size} bytes) is not readable as Parquet: {reason}; "
            "copy the file again",
        ) from error


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
        cells = dict(zip(table[FRAME].to_pylist(), table[self.column].to_pylist(), strict=True))
        first: tuple[int, ...] | None = None
        for frame in frames:
            try:
                picture = still(self.camera, self._bytes(cells[frame]), upright=True)
            except (OSError, ValueError, TypeError) as error:
                where = f"{self.column} of frame {frame} in {self.recording.data}"
                raise EpisodeError(self.recording.name, refused(where, error)) from error
            rgb = picture.rgb
            first = first or rgb.shape
            if rgb.shape != first:
                raise EpisodeError(
                    self.recording.name,
                    f"all frames of a camera have one size: {self.column} is "
                    f"{rgb.shape[1]}x{rgb.shape[0]} at frame {frame}, {first[1]}x{first[0]} "
                    "before; export the dataset again",
                )
            yield picture

    def _bytes(self, cell: dict[str, Any]) -> bytes:
        if (data := cell.get("bytes")) is not None:
            return bytes(data)
        return (self.root / str(cell.get("path"))).read_bytes()


def _numbers(recording: Recording, table: Any, columns: Sequence[str]) -> NDArray[np.float32]:
    parts = []
    for column in columns:
        try:
            values = np.asarray(table[column].to_pylist(), np.float32)
        except (ValueError, TypeError) as error:
            raise EpisodeError(
                recording.name,
                f"{column} in {recording.data} has not one row of numbers a frame ({error})",
            ) from error
        parts.append(values.reshape(recording.length, -1))
    return np.concatenate(parts, axis=1) if parts else np.empty((recording.length, 0), np.float32)
