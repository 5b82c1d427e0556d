"""Episodes in RLDS, as DROID, BridgeData V2 and Open X-Embodiment are published.

A folder of one version holds ``features.json``, ``dataset_info.json`` and TFRecord files; each record is
an episode, a ``tf.train.Example`` in which ``steps/observation/image`` lists one encoded image a step and
``steps/action`` all numbers of all steps one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, NotFoundError, UsageError
from attnstore.store.format.views import check_cameras

from ..base import EpisodeInfo, Frame, check_finite, check_frames, copy_again
from ..instruction import given_instructions
from ..outcome import outcome_of_episode, outcome_of_frames
from ..selection import Selection
from ..stills import EncodedImages
from .description import STEPS, Feature, Split, read_description
from .episode import Record, camera_name
from .records import read_example, record_places

STATE = ("observation/state",)
DROID_STATE = ("observation/joint_position", "observation/gripper_position")
ACTION = "action"
INSTRUCTIONS = (
    "language_instruction", "language_instruction_2", "language_instruction_3",
    "observation/natural_language_instruction",
)  # fmt: skip
"""Where published datasets keep the instruction; the first that is not empty is taken."""
SUCCESS = "episode_metadata/success"
FILE = "episode_metadata/file_path"
"""DROID's, whose folders are called success and failure."""
_FOLDER = re.compile(r"/(success|failure)/")


class RldsDataset:
    """Reader of an RLDS dataset, without TensorFlow.

    Parameters
    ----------
    root
        Folder of a version, or one with a single version in it.
    split
        Only this split: ``train``; all if None.
    cameras
        Cameras, in the order in which the policy gets them: ``image_0``; by default all with
        colour, in the order of ``features.json``.
    state
        Columns of the robot's state, joined. By default ``observation/state``, or DROID's joints
        and gripper.
    action
        Columns of the recorded action, joined. By default ``action``, if that is numbers.
    instruction
        Column of the instruction. By default the first of `INSTRUCTIONS` that is not empty.
    outcome_column
        Of the steps (``reward``) or the episode (``episode_metadata/success``). By default the
        latter, or the folder in ``episode_metadata/file_path``, where there is one.
    selection
        Which episodes.
    name
        Name of the dataset, part of a run's identity; by default as ``dataset_info.json`` says.

    Raises
    ------
    NotFoundError
        If there is no such dataset.
    UsageError
        If an option names what it has not.
    AttnstoreError
        If one of its JSON files cannot be read.
    """

    kind: str = "rlds"

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        split: str | None = None,
        cameras: Sequence[str] = (),
        state: Sequence[str] = (),
        action: Sequence[str] = (),
        instruction: str | None = None,
        outcome_column: str | None = None,
        selection: Selection | None = None,
        name: str | None = None,
    ) -> None:
        self._about = read_description(Path(root).expanduser().resolve())
        self._selection = selection or Selection()
        self._splits = self._choose_splits(split)
        self._paths = self._choose_cameras(cameras)
        self._state = self._choose_numbers("state", state) or self._default_state()
        self._action = self._choose_numbers("action", action) or self._default_action()
        self._instructions = self._choose_instructions(instruction)
        self._outcome_column = self._choose_outcome(outcome_column)
        self._last: tuple[str, Record] | None = None
        self.name: str = name or self._about.name
        self.cameras: tuple[str, ...] = tuple(self._paths)

    def __repr__(self) -> str:
        return f"RldsDataset({str(self._about.root)!r}, cameras={self.cameras})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    @property
    def absent_files(self) -> tuple[str, ...]:
        """Files that ``dataset_info.json`` names and that are not here: their episodes are left out."""
        return tuple(
            file
            for split in self._splits
            for file in split.files
            if not (self._about.root / file).is_file()
        )

    def episode_names(self) -> Sequence[str]:
        """Names of all episodes after the filters: ``train/000042``, the 43rd of its split.

        Episodes of files that are not here are left out (see `absent_files`); the others keep
        their numbers.

        Raises
        ------
        NotFoundError
            If no file is here, there is no episode, or the filters leave none.
        """
        if not self._places:
            raise NotFoundError(
                f"{self._about.root}: none of the files of {self._about.name} is here: the first is "
                f"{next((s.files[0] for s in self._splits if s.files), 'named nowhere')}"
            )
        hint = "; outcomes come from --outcome-column" if self._outcome_column is None else ""
        return self._selection.of(
            self._about.root, list(self._places), self._outcome_of_name, hint=hint
        )

    def file_of(self, name: str) -> str | None:
        """Return the TFRecord file in which an episode lies beside others."""
        place = self._places.get(name)
        return None if place is None else place[0]

    def info(self, name: str) -> EpisodeInfo:
        """Check an episode and describe it; images by their headers.

        Attributes hold ``format``, ``file``, ``index`` in it, ``columns`` (per camera),
        ``instructions`` (all that it has) and ``metadata`` (single values of the episode).

        Raises
        ------
        EpisodeError
            If the episode is broken.
        NotFoundError
            If there is no such episode.
        """
        record = self._read(name)
        cameras = self._cameras(record)
        steps = len(cameras[0])
        for camera in cameras:
            camera.check()
        self._numbers(record, steps)
        texts = self._all_instructions(record, steps)
        file, index = self._places[name]
        return EpisodeInfo(
            name=name,
            outcome=self._outcome_of(record),
            instruction=texts[0],
            frames=steps,
            task=texts[0],
            attributes={
                "format": f"RLDS {self._about.name} {self._about.version}",
                "file": file,
                "index": index,
                "columns": dict(self._paths),
                "instructions": texts,
                "metadata": record.metadata(),
            },
        )

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the asked frames in the given order.

        Raises
        ------
        EpisodeError
            If the episode is broken or an image cannot be decoded.
        NotFoundError
            If there is no such episode.
        UsageError
            If an index is not one of the episode's frames.
        """
        record = self._read(name)
        cameras = self._cameras(record)
        check_frames(name, len(cameras[0]), indices)
        state, action = self._numbers(record, len(cameras[0]))
        return _frames(cameras, state, action, tuple(indices))

    @cached_property
    def _places(self) -> dict[str, tuple[str, int]]:
        """File and position in it by name, of files that are here."""
        places: dict[str, tuple[str, int]] = {}
        for split in self._splits:
            first = 0
            for file, count in zip(split.files, split.lengths, strict=True):
                if (self._about.root / file).is_file():
                    for i in range(count):
                        places[f"{split.name}/{first + i:06d}"] = (file, i)
                first += count
        return places

    def _read(self, name: str) -> Record:
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        if name not in self._places:
            raise NotFoundError(f"{self._about.root}: no episode {name!r}")
        file, index = self._places[name]
        path = self._about.root / file
        try:
            places = record_places(path)
        except (OSError, ValueError) as error:
            reason = str(error).replace(str(path), file)
            raise EpisodeError(
                name, f"{file} cannot be read: {reason}; {copy_again(path)}"
            ) from error
        count = next(
            c for s in self._splits for f, c in zip(s.files, s.lengths, strict=True) if f == file
        )
        if len(places) != count:
            raise EpisodeError(
                name,
                f"dataset_info.json counts {count} episodes in {file}, and it has {len(places)}; "
                f"{copy_again(path)}",
            )
        record = Record(name, read_example(name, path, places[index]), self._about.features)
        self._last = (name, record)
        return record

    def _cameras(self, record: Record) -> list[EncodedImages]:
        first = record.images(next(iter(self._paths.values())))
        if not len(first):
            raise EpisodeError(record.episode, "an episode has steps; its record has none")
        return [record.images(path, len(first)) for path in self._paths.values()]

    def _numbers(
        self, record: Record, steps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        state = np.concatenate([record.column(path, steps) for path in self._state], axis=1)
        check_finite(record.episode, state, self._state)
        if not self._action:
            return state, np.empty((steps, 0), np.float32)
        return state, np.concatenate([record.column(p, steps) for p in self._action], axis=1)

    def _all_instructions(self, record: Record, steps: int) -> list[str]:
        """Texts of the columns that are not empty, in their order."""
        found: dict[str, str] = {}
        for path in self._instructions:
            texts = {text.strip() for text in record.texts(path, steps)} - {""}
            if len(texts) > 1:
                two = sorted(texts)[:2]
                raise EpisodeError(
                    record.episode,
                    f"{STEPS}/{path} is one instruction an episode; it says {two[0]!r} and {two[1]!r}: "
                    "choose another column with --instruction-column",
                )
            found[path] = "".join(texts)
        return given_instructions(
            record.episode,
            found,
            "choose another column with --instruction-column, or leave the episode out",
        )

    def _outcome_of_name(self, name: str) -> str:
        return self._outcome_of(self._read(name))

    def _outcome_of(self, record: Record) -> str:
        column = self._outcome_column
        if column is None:
            return "unknown"
        if column in self._about.features:
            values: Sequence[Any]
            if self._about.features[column].kind == "text":
                values = record.texts(column)
            else:
                values = record.column(column)[:, 0].tolist()
            return outcome_of_frames(record.episode, f"{STEPS}/{column}", values)
        value = record.metadata().get(column)
        if column == FILE:
            folders = set(_FOLDER.findall(str(value)))
            return folders.pop() if len(folders) == 1 else "unknown"
        return outcome_of_episode(record.episode, column, value)

    def _choose_splits(self, split: str | None) -> tuple[Split, ...]:
        there = [each.name for each in self._about.splits]
        if split is not None and split not in there:
            raise UsageError(
                f"{self._about.root}: no split {split!r}; it has {', '.join(there) or 'none'}"
            )
        return tuple(each for each in self._about.splits if split in (None, each.name))

    def _choose_cameras(self, asked: Sequence[str]) -> dict[str, str]:
        images = {p: f for p, f in self._about.features.items() if f.kind == "image"}
        by_name = {**{p: p for p in images}, **{camera_name(p): p for p in images}}
        for camera in asked:
            if camera not in by_name:
                there = ", ".join(map(camera_name, images)) or "none"
                raise UsageError(f"{self._about.root}: no camera {camera!r}; it has {there}")
            if not images[by_name[camera]].pictures:
                raise UsageError(
                    f"{self._about.root}: {camera} is {_what(images[by_name[camera]])}, not a picture "
                    "with colour and 8 bits a channel"
                )
        chosen = [by_name[c] for c in asked] or [p for p, f in images.items() if f.pictures]
        check_cameras(map(camera_name, chosen))
        if not chosen:
            others = ", ".join(f"{p} ({_what(f)})" for p, f in images.items())
            raise UsageError(
                f"{self._about.root}: the dataset has no camera with colour"
                + (f"; its images are {others}" if others else "")
            )
        return {camera_name(path): path for path in chosen}

    def _choose_numbers(self, option: str, asked: Sequence[str]) -> tuple[str, ...]:
        for path in asked:
            feature = self._about.features.get(path)
            if feature is None or not feature.numeric:
                raise UsageError(
                    f"{self._about.root}: {option} is a column of numbers; {path!r} is not one of "
                    f"{', '.join(self._numeric())}; pass --{option}-column"
                )
        return tuple(asked)

    def _default_state(self) -> tuple[str, ...]:
        for columns in (STATE, DROID_STATE):
            if all(c in self._numeric() for c in columns):
                return columns
        raise UsageError(
            f"{self._about.root}: neither {STATE[0]} nor {' and '.join(DROID_STATE)} is there; name "
            f"the robot's state with --state-column: {', '.join(self._numeric()) or 'none'}"
        )

    def _default_action(self) -> tuple[str, ...]:
        return (ACTION,) if ACTION in self._numeric() else ()

    def _numeric(self) -> list[str]:
        return [path for path, feature in self._about.features.items() if feature.numeric]

    def _choose_instructions(self, asked: str | None) -> tuple[str, ...]:
        texts = [path for path, f in self._about.features.items() if f.kind == "text"]
        chosen = tuple(p for p in ((asked,) if asked else INSTRUCTIONS) if p in texts)
        if not chosen:
            raise UsageError(
                f"{self._about.root}: "
                + (f"{asked!r} is no column of texts" if asked else "no instruction is found")
                + f"; name its column with --instruction-column: {', '.join(texts) or 'none'}"
            )
        return chosen

    def _choose_outcome(self, asked: str | None) -> str | None:
        there = [*self._about.features, *self._about.episode]
        if asked is None:
            return next((path for path in (SUCCESS, FILE) if path in there), None)
        column = asked.removeprefix(f"{STEPS}/")
        if column not in there:
            raise UsageError(
                f"{self._about.root}: no column {asked!r} for the outcome; there are "
                f"{', '.join(there)}"
            )
        return column


def _frames(
    cameras: Sequence[EncodedImages],
    state: NDArray[np.float32],
    action: NDArray[np.float32],
    indices: Sequence[int],
) -> Iterator[Frame]:
    for index in indices:
        yield Frame(
            index=index,
            cameras=tuple(camera.read(index) for camera in cameras),
            state=state[index],
            action=action[index],
        )


def _what(feature: Feature) -> str:
    shape = "x".join("?" if n is None else str(n) for n in feature.shape)
    return f"{shape} {feature.dtype}"
