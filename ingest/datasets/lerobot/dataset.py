"""LeRobotDataset, v2.0, v2.1 and v3.0: Parquet and video, in a folder or on the hub."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path

from attnstore.store.errors import EpisodeError, NotFoundError, UsageError
from attnstore.store.format.views import check_cameras

from ..base import CameraFrame, EpisodeInfo, Frame, VideoFrames, check_frames, why_missing
from ..outcome import outcome_of_episode, outcome_of_frames, read_outcomes
from ..selection import Selection
from ..video import check_kept
from .files import open_files
from .metadata import Lost, Recording, instruction, read_info, read_recordings, read_tasks
from .rows import EmbeddedImages, EpisodeRows, read_columns, read_rows
from .video import TOLERANCE, TimedVideo

STATE, ACTION = "observation.state", "action"


class LeRobotDataset:
    """Reader of a LeRobotDataset.

    Episodes are called ``episode_000012``; a camera is called what its column is without
    ``observation.images.``, with ``_`` for a slash, a space and what else no camera's name has.

    Parameters
    ----------
    source
        Folder with ``meta/info.json``, or hub id ``owner/name``, of which ``meta/`` is fetched at
        once and other files when an episode needs them.
    revision
        Hub revision.
    cameras
        Which, and in which order the policy gets them, by name or column; if empty, all but depth
        maps and pictures of one channel (which may be depth) in the dataset's order.
    state
        Columns of the robot state, joined.
    action
        Columns of the recorded action, joined; may be absent if not named.
    outcome_column
        Column with the outcome of a frame or of an episode: ``next.success``.
    outcome_file
        CSV or JSON with the outcome by episode.
    outcome
        Only episodes with this outcome; all if None.
    episodes
        Only episodes whose name or number matches this glob; all if None.
    limit
        At most this many episodes, after the filters.
    tolerance
        Seconds that a video frame may be off its row's time.
    video_frames
        What is kept of a video's frames: ``jpeg``, or ``png``, which is exactly what the policy
        sees.
    name
        Name of the dataset, part of a run's identity; the folder's or hub repository's if None.

    Raises
    ------
    NotFoundError
        If there is no such dataset.
    UsageError
        If an option's value breaks a rule.
    AttnstoreError
        If its ``meta/info.json`` cannot be read.
    """

    kind: str = "lerobot"

    def __init__(
        self,
        source: str | PathLike[str],
        *,
        revision: str | None = None,
        cameras: Sequence[str] = (),
        state: Sequence[str] = (STATE,),
        action: Sequence[str] | None = None,
        outcome_column: str | None = None,
        outcome_file: str | PathLike[str] | None = None,
        outcome: str | None = None,
        episodes: str | Sequence[str] = (),
        limit: int | None = None,
        tolerance: float = TOLERANCE,
        video_frames: VideoFrames = "jpeg",
        name: str | None = None,
    ) -> None:
        if outcome_column is not None and outcome_file is not None:
            raise UsageError("an outcome comes from a column or from a file; both are given")
        self._files = open_files(str(source), revision)
        self._recorded = read_info(self._files)
        self._columns = self._choose_cameras(cameras)
        self._state = self._choose_numbers("state", state)
        if action is None:
            action = [ACTION] if self._recorded.is_numeric(ACTION) else []
        self._action = self._choose_numbers("action", action)
        if not 0 < tolerance < 0.5 / self._recorded.fps:
            raise UsageError(
                f"tolerance is above 0 and below half a frame, {0.5 / self._recorded.fps:g} s; "
                f"got {tolerance:g}"
            )
        check_kept(video_frames)
        self._tolerance, self._kept = tolerance, video_frames
        self._outcome_column = outcome_column
        self._outcomes = None if outcome_file is None else read_outcomes(Path(outcome_file))
        named = (episodes,) if isinstance(episodes, str) else tuple(episodes)
        self._selection = Selection(named, outcome, limit)
        self.name: str = name or (
            str(source) if self._files.commit is not None else self._files.root.name
        )
        self.cameras: tuple[str, ...] = tuple(self._columns)

    @property
    def of_an_evaluation(self) -> bool:
        """Whether its frames are those of ``lerobot-eval --eval.recording``; see `Recorded`."""
        return self._recorded.of_an_evaluation

    def outcomes(self) -> Counter[str]:
        """Count the episodes of each outcome; those whose outcome cannot be read are left out."""
        found: Counter[str] = Counter()
        for recording in self._recordings.values():
            if isinstance(recording, Recording):
                with contextlib.suppress(EpisodeError):
                    found[self._outcome_of(recording)] += 1
        return found

    def __repr__(self) -> str:
        return f"LeRobotDataset({self._files.source!r}, cameras={self.cameras})"

    def episode_names(self) -> Sequence[str]:
        """Names of all episodes after the filters, in order: ``episode_000000``.

        Raises
        ------
        NotFoundError
            If there is no episode, or the filters leave none.
        """
        if not self._recordings:
            raise NotFoundError(f"{self._files.source}: the dataset has no episodes")
        self._check_outcomes()
        hint = ""
        if self._outcome_column is None and self._outcomes is None:
            hint = "; outcomes are unknown without --outcome-column or --outcome-file"
        return self._selection.of(
            self._files.source, list(self._recordings), self._outcome_of_name,
            number_of=lambda name: str(self._recordings[name].index), hint=hint,
        )  # fmt: skip

    def file_of(self, name: str) -> str | None:
        """Return an episode's file of v3: the first camera's video, else the one of its rows.

        An episode without such a file, or whose description is lost, has None.
        """
        recording = self._recordings.get(name)
        if not self._recorded.packed or not isinstance(recording, Recording):
            return None
        videos = (recording.videos.get(column) for column in self._columns.values())
        return next((file for file, _ in filter(None, videos)), recording.data)

    def info(self, name: str) -> EpisodeInfo:
        """Check an episode and describe it: embedded images by their headers, videos by their ends.

        Attributes hold ``episode_index``, ``robot``, ``format`` and ``columns`` (per camera).

        Raises
        ------
        EpisodeError
            If the episode is broken.
        NotFoundError
            If there is no such episode.
        """
        recording = self._find(name)
        rows = self._rows(recording)
        for camera in self._cameras(recording, rows):
            if isinstance(camera, _Timed):
                camera.video.check([float(rows.times[0]), float(rows.times[-1])])
            else:
                camera.check()
        text = instruction(name, self._tasks, rows.tasks)
        return EpisodeInfo(
            name=name,
            outcome=self._outcome_of(recording),
            instruction=text,
            frames=recording.length,
            task=text,
            rate=self._recorded.fps,
            attributes={
                "episode_index": recording.index,
                "robot": self._recorded.robot,
                "format": f"LeRobotDataset {self._recorded.version}",
                "columns": dict(self._columns),
            },
        )

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the asked frames in the given order.

        Rows are checked when this is called, images when they are reached.

        Raises
        ------
        EpisodeError
            If the episode is broken or an image cannot be decoded.
        NotFoundError
            If there is no such episode.
        UsageError
            If an index is not one of the episode's frames.
        """
        recording = self._find(name)
        check_frames(name, recording.length, indices)
        rows = self._rows(recording)
        return _read(rows, self._cameras(recording, rows), tuple(indices))

    @cached_property
    def _recordings(self) -> Mapping[str, Recording | Lost]:
        return read_recordings(self._files, self._recorded)

    @cached_property
    def _tasks(self) -> Mapping[int, Sequence[str]]:
        return read_tasks(self._files, self._recorded)

    def _find(self, name: str) -> Recording:
        found = self._recordings.get(name)
        if found is None:
            raise NotFoundError(f"{self._files.source}: no episode {name!r}")
        if isinstance(found, Lost):
            raise EpisodeError(name, found.reason)
        return found

    def _check_outcomes(self) -> None:
        known = {recording.index for recording in self._recordings.values()}
        strange = sorted(set(self._outcomes or ()) - known)
        if strange:
            counted = ""
            if strange == [max(known) + 1] and min(self._outcomes or ()) == min(known) + 1:
                counted = "; the file seems to count from 1, episodes are counted from 0"
            raise UsageError(
                f"the outcome file names episode {', '.join(map(str, strange[:5]))}, which "
                f"{self._files.source} has not: it has {min(known)} to {max(known)}{counted}"
            )

    def _choose_cameras(self, asked: Sequence[str]) -> dict[str, str]:
        there = self._recorded.cameras
        by_name = {**{column: name for name, column in there.items()}, **{n: n for n in there}}
        for camera in asked:
            if camera not in by_name:
                raise UsageError(
                    f"{self._files.source}: no camera {camera!r}; it has "
                    f"{', '.join(there) or 'none'}"
                )
        colour = self._recorded.colour_cameras
        chosen = [by_name[camera] for camera in asked] or list(colour)
        check_cameras(chosen)
        if not chosen:
            grey = [camera for camera in there if camera not in colour]
            hint = f"; of one channel, as depth has, are {', '.join(grey)}: name one with --camera"
            raise UsageError(
                f"{self._files.source}: the dataset has no cameras{hint if grey else ''}"
            )
        return {camera: there[camera] for camera in chosen}

    def _choose_numbers(self, option: str, columns: Sequence[str]) -> tuple[str, ...]:
        for column in columns:
            if not self._recorded.is_numeric(column):
                there = [c for c in self._recorded.features if self._recorded.is_numeric(c)]
                raise UsageError(
                    f"{self._files.source}: {option} is a column of numbers; {column!r} is not one "
                    f"of {', '.join(there)}; pass --{option}-column"
                )
        return tuple(columns)

    def _outcome_of_name(self, name: str) -> str:
        return self._outcome_of(self._find(name))

    def _outcome_of(self, recording: Recording) -> str:
        if self._outcomes is not None:
            return self._outcomes.get(recording.index, "unknown")
        column = self._outcome_column
        if column is None:
            return "unknown"
        if column in recording.columns:
            return outcome_of_episode(recording.name, column, recording.columns[column])
        if column not in self._recorded.features:
            described = [r for r in self._recordings.values() if isinstance(r, Recording)]
            if any(column in other.columns for other in described):
                raise EpisodeError(
                    recording.name, f"meta/ has no {column} of it, but of others; add it there"
                )
            there = sorted({*self._recorded.features, *recording.columns})
            raise UsageError(
                f"{self._files.source}: no column {column!r} for the outcome; there are "
                f"{', '.join(there)}"
            )
        table = read_columns(self._file(recording, recording.data), recording, [column])
        return outcome_of_frames(recording.name, column, table[column].to_pylist())

    def _file(self, recording: Recording, relative: str) -> Path:
        path = self._files.find(relative)
        if path is None:
            raise EpisodeError(recording.name, why_missing(self._files.root, relative))
        return path

    def _rows(self, recording: Recording) -> EpisodeRows:
        path = self._file(recording, recording.data)
        rows = read_rows(path, recording, self._state, self._action)
        rows.check_clock(recording.name, recording.data, self._recorded.fps)
        rows.check_finite(recording.name, self._state)
        return rows

    def _cameras(self, recording: Recording, rows: EpisodeRows) -> list[EmbeddedImages | _Timed]:
        cameras: list[EmbeddedImages | _Timed] = []
        for camera, column in self._columns.items():
            if column not in recording.videos:
                path = self._file(recording, recording.data)
                cameras.append(EmbeddedImages(recording, camera, column, path, self._files.root))
                continue
            where, start = recording.videos[column]
            path = self._file(recording, where)
            video = TimedVideo(
                recording.name, camera, path, where, start, self._recorded.fps, self._tolerance,
                self._kept,
            )  # fmt: skip
            cameras.append(_Timed(video, rows))
        return cameras


class _Timed:
    """A video asked by frame number: the rows say at which time each frame is."""

    def __init__(self, video: TimedVideo, rows: EpisodeRows) -> None:
        self.video, self._rows = video, rows

    def read(self, frames: Sequence[int]) -> Iterator[CameraFrame]:
        return self.video.read([float(self._rows.times[frame]) for frame in frames])


def _read(
    rows: EpisodeRows, cameras: Sequence[EmbeddedImages | _Timed], indices: Sequence[int]
) -> Iterator[Frame]:
    pictures = zip(*(camera.read(indices) for camera in cameras), strict=True)
    for index, shown in zip(indices, pictures, strict=True):
        yield Frame(
            index=index,
            cameras=shown,
            state=rows.states[index],
            action=rows.actions[index],
            timestamp=float(rows.times[index]),
        )
