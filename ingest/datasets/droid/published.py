"""An episode as DROID itself publishes it (``droid_raw``), beside the lab's layout.

``{lab}/{success,failure}/{date}/Fri_Jul__7_09:42:23_2023/`` holds ``trajectory.h5``,
``metadata_{uuid}.json`` and ``recordings/MP4/{serial}.mp4``, the left view of each stereo camera;
``{serial}-stereo.mp4`` has both views side by side and is no camera by itself. The metadata say which
serial is the wrist's and which are the two outer cameras'. Instructions are in a file of the whole
release, three sentences by uuid.

Sources: droid/postprocessing/schema.py and docs/the-droid-dataset.md of github.com/droid-dataset/droid
(1548722).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from attnstore.store.errors import EpisodeError, UsageError
from attnstore.store.json_text import json_value, parse_json

from ..base import VideoFrames
from ..instruction import given_instructions
from ..outcome import outcome_value
from ..video import Video, open_video

SERIALS = {
    "hand_camera": "wrist_cam_serial",
    "varied_camera_1": "ext1_cam_serial",
    "varied_camera_2": "ext2_cam_serial",
}
"""Key of the metadata that has a camera's serial number."""
SENTENCES = ("language_instruction1", "language_instruction2", "language_instruction3")
TASK = "current_task"
ANNOTATIONS = ("aggregated-annotations-*.json", "droid_language_annotations.json")
"""What the release's file of instructions is called."""
VIDEOS = "recordings/MP4"
_SIDE_BY_SIDE = 3
"""A picture at least so many times as wide as high is of two views."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the metadata file of a published episode says."""

    episode: str
    directory: Path
    file: str
    values: Mapping[str, Any]

    @property
    def uuid(self) -> str:
        """The episode's name in the whole release: ``RAD+5d05c5aa+2023-07-07-09h-42m-23s``."""
        return str(self.values.get("uuid") or Path(self.file).stem.removeprefix("metadata_"))

    def serial(self, camera: str) -> str:
        """Return a camera's serial number.

        Raises
        ------
        EpisodeError
            If there is none, or two cameras have the same.
        """
        found = {name: self.values.get(key) for name, key in SERIALS.items()}
        serial = found[camera]
        if (
            not isinstance(serial, str | int)
            or isinstance(serial, bool)
            or not str(serial).isalnum()
        ):
            raise EpisodeError(
                self.episode,
                f"{self.file} says which video is which camera's: its {SERIALS[camera]} is {serial!r:.60}; "
                "copy the file again",
            )
        same = [name for name, other in found.items() if str(other) == str(serial)]
        if len(same) > 1:
            raise EpisodeError(
                self.episode,
                f"{self.file} gives {' and '.join(same)} the same serial {serial}; correct it",
            )
        return str(serial)

    def video(self, camera: str, kept: VideoFrames) -> Video:
        """Open a camera's video.

        Raises
        ------
        EpisodeError
            If it is missing, unreadable, or of two views side by side.
        """
        name = f"{self.serial(camera)}.mp4"
        path = self.directory / VIDEOS / name
        if not path.is_file():
            raise EpisodeError(self.episode, self._missing(camera, path))
        video = open_video(self.episode, camera, path, f"{VIDEOS}/{name}")
        width, height = video.size
        if width >= _SIDE_BY_SIDE * height:
            raise EpisodeError(
                self.episode,
                f"{VIDEOS}/{name} is {width}x{height}, the two views of a stereo camera side by side, and a "
                "camera is one view; write the left half to a file of its own",
            )
        return replace(video, kept=kept)

    def _missing(self, camera: str, path: Path) -> str:
        there = sorted(p.name for p in path.parent.glob("*.mp4") if not p.name.startswith("."))
        reason = (
            f"no video of {camera}: {VIDEOS}/{path.name}, which {self.file} names, is missing; there is "
            f"{', '.join(there) or 'none'}"
        )
        if f"{path.stem}-stereo.mp4" in there:
            return (
                f"{reason}; a -stereo.mp4 has two views side by side and is no camera by itself: copy "
                f"{path.name} too, or write the left half to it"
            )
        return f"{reason}; copy it too"

    def outcome(self, folder: str) -> str:
        """Return the outcome, from the folder's name or the metadata.

        Raises
        ------
        EpisodeError
            If both say one, and not the same, or the metadata say none of those there are.
        """
        try:
            said = outcome_value(self.values.get("success"))
        except ValueError as error:
            raise EpisodeError(self.episode, f"success in {self.file}: {error}") from None
        if "unknown" not in (folder, said) and folder != said:
            raise EpisodeError(
                self.episode,
                f"its folder is {folder}, and {self.file} says {said}: correct one of them",
            )
        return said if folder == "unknown" else folder

    def side(self, name: str) -> str | None:
        """Return the camera that stands on the robot's ``left`` or ``right``, if the metadata say it."""
        stem = Path(str(self.values.get(f"{name}_mp4_path"))).stem
        outer = list(SERIALS)[1:]
        return next((c for c in outer if str(self.values.get(SERIALS[c])) == stem), None)

    def attributes(self) -> dict[str, Any]:
        """What is kept of the metadata, as JSON values."""
        return {
            "layout": "published",
            "metadata": {str(key): json_value(value) for key, value in self.values.items()},
            "left": self.side("left"),
            "right": self.side("right"),
        }


def is_published(directory: Path) -> bool:
    """Whether an episode lies as DROID publishes it, and has none of the lab's own files of images."""
    recordings = directory / "recordings"
    if (recordings / "frames").is_dir() or any((recordings / f"{c}.mp4").exists() for c in SERIALS):
        return False
    return (directory / VIDEOS).is_dir() or any(directory.glob("metadata_*.json"))


def read_published(episode: str, directory: Path) -> Published:
    """Read the metadata of a published episode.

    Raises
    ------
    EpisodeError
        If there is no such file, or several, or it is no JSON object.
    """
    found = sorted(p for p in directory.glob("metadata_*.json") if not p.name.startswith("."))
    if len(found) != 1:
        there = ", ".join(p.name for p in found) or "none"
        raise EpisodeError(
            episode,
            f"one metadata_*.json says which of {VIDEOS} is which camera's; there is {there}; "
            + ("leave one" if found else "copy it too"),
        )
    (path,) = found
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).replace(str(path), path.name).split())[:200]
        raise EpisodeError(
            episode, f"{path.name} cannot be read: {reason}; copy the file again"
        ) from error
    if not isinstance(values, dict):
        raise EpisodeError(episode, f"{path.name} is no JSON object; copy the file again")
    return Published(episode, directory, path.name, values)


class Annotations:
    """The release's file of instructions, read when it is first needed.

    Parameters
    ----------
    file
        ``aggregated-annotations-030724.json``; None: there is none.
    column
        The only one that is taken: ``language_instruction2``, or ``current_task`` of the metadata.
        By default the sentences, in their order.

    Raises
    ------
    UsageError
        If there is no such column.
    """

    def __init__(self, file: Path | None, column: str | None) -> None:
        columns = (*SENTENCES, TASK)
        if column is not None and column not in columns:
            raise UsageError(
                f"an instruction's column is one of {', '.join(columns)}; got {column!r}"
            )
        self.file, self.column = file, column

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "column": self.column}

    @cached_property
    def sentences(self) -> Mapping[str, Any]:
        """What the file says, by uuid.

        Raises
        ------
        UsageError
            If it cannot be read.
        """
        if self.file is None:
            return {}
        try:
            found = parse_json(self.file.read_bytes())
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{self.file} cannot be read: {reason}; copy the file again") from None
        if not isinstance(found, dict):
            raise UsageError(f"{self.file} is no JSON object of instructions by uuid")
        return found

    def of(self, published: Published, written: str | None) -> list[str]:
        """Return an episode's instructions; the policy gets the first.

        Parameters
        ----------
        written
            That of the episode's own ``instruction.txt``, which comes first.

        Raises
        ------
        EpisodeError
            If it has none.
        """
        said = self.sentences.get(published.uuid)
        sentences = said if isinstance(said, dict) else {}
        texts = {TASK: published.values.get(TASK), **{c: sentences.get(c) for c in SENTENCES}}
        wanted = SENTENCES if self.column is None else (self.column,)
        columns = {c: text for c in wanted if isinstance(text := texts[c], str)}
        if written is not None and self.column is None:
            columns = {"instruction.txt": written, **columns}
        return given_instructions(published.episode, columns, self._repair(published))

    def _repair(self, published: Published) -> str:
        task = published.values.get(TASK)
        file = "no file of instructions is known" if self.file is None else self.file.name
        hint = f", or --instruction-column {TASK} for its task, {task!r:.80}" if task else ""
        return (
            f"{file} ({published.uuid}): name DROID's aggregated-annotations-*.json with --annotations, or "
            f"write instruction.txt{hint}"
        )


def find_annotations(base: Path) -> Path | None:
    """Find the release's file of instructions in a dataset's folder or the one above it.

    Raises
    ------
    UsageError
        If there are several.
    """
    for folder in (base, base.parent):
        found = sorted(p for pattern in ANNOTATIONS for p in folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise UsageError(f"{folder} has {names}: name one with --annotations")
        if found:
            return found[0]
    return None
