"""Episodes recorded with DROID, ``{outcome}/{date}/{episode}/``: in the lab's layout, or as published.

An episode holds ``instruction.txt``, ``trajectory.h5``, ``calibration.json`` and, for each camera,
``recordings/frames/{camera}/00000.jpg`` (jpg, jpeg, png or webp) or ``recordings/{camera}.mp4``.
Image files are preferred. ``.svo2`` and ``trajectory.npz`` are never read. An episode of DROID's own
release is recognised by what lies in it (`published`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from attnstore.store.errors import EpisodeError, NotFoundError, UsageError

from ..base import EpisodeInfo, Frame, VideoFrames, check_frames
from ..outcome import outcome_of_path
from ..selection import Selection
from ..video import check_kept
from . import layout
from .published import Annotations, Published, find_annotations, is_published, read_published
from .trajectory import Trajectory, read_trajectory

FRAMES_RULES = ("strict", "shortest")


@dataclass(frozen=True, slots=True)
class _Episode:
    """A checked episode."""

    directory: Path
    images: tuple[layout.Images, ...]
    trajectory: Trajectory
    length: int
    """Number of frames in use."""
    published: Published | None
    """Its metadata, if it lies as DROID publishes it."""


class DroidDataset:
    """Reader of a DROID directory tree.

    Parameters
    ----------
    root
        A dataset, or one outcome, date or episode directory of it. Episodes are named relative to
        the directory above the outcome, so their names are the same in all four cases.
    side
        Which outer camera follows ``hand_camera``: ``left`` or ``right`` of the lab's layout, ``ext1``
        or ``ext2`` of DROID's release (``varied_camera_1`` and ``varied_camera_2``); the first if None.
    outcome
        Only episodes with this outcome; all if None.
    episodes
        Only episodes whose name, or its last component, matches this glob; all if None.
    limit
        At most this many episodes, after the filters, in sorted order.
    video_frames
        What is kept of a video's frames: ``jpeg``, or ``png``, twice as large and exactly what the
        policy sees.
    frames
        ``strict``: cameras and trajectory of an episode must have equal lengths. ``shortest``: use
        the first frames, as many as all of them have.
    annotations
        The release's file of instructions, by uuid. By default the one that lies in the dataset's
        folder or above it.
    instruction
        Of a published episode: the only column that is taken, ``language_instruction2`` or
        ``current_task``. By default ``instruction.txt``, if somebody wrote one, and then the
        sentences of `annotations`; the first that is not empty.
    name
        Name of the dataset, part of a run's identity; the directory's name if None.

    Raises
    ------
    UsageError
        If an option's value is not one of those above, or `annotations` cannot be read.
    """

    kind: str = "droid"
    __slots__ = (
        "_annotations",
        "_base",
        "_frames",
        "_kept",
        "_root",
        "_selection",
        "_side",
        "cameras",
        "name",
    )

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        side: str | None = None,
        outcome: str | None = None,
        episodes: str | Sequence[str] = (),
        limit: int | None = None,
        frames: str = "strict",
        video_frames: VideoFrames = "jpeg",
        annotations: str | PathLike[str] | None = None,
        instruction: str | None = None,
        name: str | None = None,
    ) -> None:
        sides = {**layout.SIDES, **layout.OUTER}
        _one_of("side", side or "left", tuple(sides))
        _one_of("frames", frames, FRAMES_RULES)
        check_kept(video_frames)
        self._root = Path(root).expanduser().resolve()
        self._base = layout.base_of(self._root)
        named = (episodes,) if isinstance(episodes, str) else tuple(episodes)
        self._selection = Selection(named, outcome, limit)
        self._frames = frames
        self._kept = video_frames
        file = find_annotations(self._base) if annotations is None else Path(annotations)
        self._annotations = Annotations(file, instruction)
        if annotations is not None:
            _ = self._annotations.sentences
        self._side = side
        self.name: str = name or self._base.name
        self.cameras: tuple[str, ...] = (layout.HAND_CAMERA, sides[side or "left"])

    def __repr__(self) -> str:
        return f"DroidDataset({str(self._root)!r}, cameras={self.cameras})"

    def episode_names(self) -> Sequence[str]:
        """Names of all episodes after the filters, sorted: ``success/2025-12-10/2025-12-10_...``.

        Raises
        ------
        NotFoundError
            If the root holds no episode, or the filters leave none.
        """
        if not self._root.is_dir():
            raise NotFoundError(f"{self._root}: no such directory; expected {layout.EXPECTED}")
        found = sorted(
            directory.relative_to(self._base).as_posix()
            for directory in layout.episode_directories(self._root)
        )
        if not found:
            raise NotFoundError(f"{self._root}: no episode found; expected {layout.EXPECTED}")
        return self._selection.of(self._root, found, self._outcome_of)

    def file_of(self, name: str) -> str | None:
        """Return None: an episode has its own files."""
        return None

    def info(self, name: str) -> EpisodeInfo:
        """Check an episode and describe it; image files are opened for their size only.

        Attributes hold the trajectory's own, ``images`` (camera to ``frames`` or ``mp4``),
        ``calibrated_serials`` (None without a readable calibration) and ``recorded_policy``; of a
        published episode also ``layout``, ``metadata``, ``instructions`` (all that it has), and which
        camera stands on the ``left`` and the ``right``.

        Raises
        ------
        EpisodeError
            If the episode is broken.
        NotFoundError
            If there is no such episode.
        """
        episode = self._check(name)
        for images in episode.images:
            images.check_sizes()
        rates = [episode.trajectory.rate, *(images.rate for images in episode.images)]
        attributes = {
            **episode.trajectory.attributes,
            "images": {images.camera: images.source for images in episode.images},
            "calibrated_serials": layout.calibrated_serials(episode.directory),
        }
        task: str | None
        if episode.published is None:
            if self._annotations.column is not None:
                raise EpisodeError(
                    name,
                    "an episode in the lab's layout has instruction.txt alone; leave "
                    f"--instruction-column {self._annotations.column} out",
                )
            instruction = layout.read_instruction(name, episode.directory)
            combined = layout.combined_video(episode.directory, instruction)
            outcome, task = outcome_of_path(name), combined.task
            attributes["recorded_policy"] = combined.policy
        else:
            there = (episode.directory / "instruction.txt").exists()
            written = layout.read_instruction(name, episode.directory) if there else None
            texts = self._annotations.of(episode.published, written)
            instruction, task = texts[0], None
            outcome = episode.published.outcome(outcome_of_path(name))
            attributes |= {**episode.published.attributes(), "instructions": texts}
        return EpisodeInfo(
            name=name,
            outcome=outcome,
            instruction=instruction,
            frames=episode.length,
            task=task,
            date=layout.date_of(name),
            rate=next((rate for rate in rates if rate is not None), None),
            attributes=attributes,
        )

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the asked frames in the given order.

        The state is joint positions and gripper position; the action is joint velocity and gripper
        position, Pi0-DROID's action space, or empty if the trajectory has none. The episode is
        checked when this is called, images when they are reached.

        Raises
        ------
        EpisodeError
            If the episode is broken or an image cannot be decoded.
        NotFoundError
            If there is no such episode.
        UsageError
            If an index is not one of the episode's frames.
        """
        episode = self._check(name)
        check_frames(name, episode.length, indices)
        return _read(episode, tuple(indices))

    def _check(self, name: str) -> _Episode:
        directory = self._base / name
        if ".." in Path(name).parts or not directory.is_dir() or not layout.is_episode(directory):
            raise NotFoundError(f"{self._base}: no episode {name!r}; expected {layout.EXPECTED}")
        published = read_published(name, directory) if is_published(directory) else None
        images: tuple[layout.Images, ...]
        if published is None:
            images = tuple(
                layout.find_images(name, directory, camera, self._kept) for camera in self.cameras
            )
        else:
            if self._side in layout.SIDES:
                raise EpisodeError(
                    name,
                    "DROID's release has ext1 and ext2, and which of them stands on the left differs from "
                    f"episode to episode: pass --side ext1 or ext2 instead of {self._side}",
                )
            images = tuple(published.video(camera, self._kept) for camera in self.cameras)
        trajectory = read_trajectory(name, directory / "trajectory.h5")
        length = min(len(trajectory), *map(len, images))
        if length == 0:
            raise EpisodeError(name, f"an episode has frames: {_lengths(images, trajectory)}")
        if self._frames == "strict" and length != max(len(trajectory), *map(len, images)):
            raise EpisodeError(
                name,
                f"{_lengths(images, trajectory)}; pass --frames shortest to use the first {length}",
            )
        trajectory.check_finite(name, length)
        return _Episode(directory, images, trajectory, length, published)

    def _outcome_of(self, name: str) -> str:
        outcome, directory = outcome_of_path(name), self._base / name
        if outcome == "unknown" and is_published(directory):
            return read_published(name, directory).outcome(outcome)
        return outcome


def _read(episode: _Episode, indices: Sequence[int]) -> Iterator[Frame]:
    trajectory = episode.trajectory
    pictures = zip(*(images.read(indices) for images in episode.images), strict=True)
    for index, cameras in zip(indices, pictures, strict=True):
        clock = trajectory.timestamps
        yield Frame(
            index=index,
            cameras=cameras,
            state=trajectory.states[index],
            action=trajectory.actions[index],
            timestamp=None if clock is None else float(clock[index]),
        )


def _lengths(images: Sequence[layout.Images], trajectory: Trajectory) -> str:
    # cameras that agree are named once
    named = images if len(set(map(len, images))) > 1 else images[:1]
    cameras = [f"{camera.camera} has {len(camera)} frames" for camera in named]
    return ", ".join([*cameras, f"trajectory.h5 has {len(trajectory)} steps"])


def _one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} is one of {', '.join(allowed)}; got {value!r}")
