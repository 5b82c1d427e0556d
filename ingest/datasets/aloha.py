"""HDF5 episodes as ALOHA and ACT record them: ``episode_0.hdf5``, one file an episode.

A file holds ``observations/qpos``, ``action`` and ``observations/images/{camera}``: pictures (step, height,
width, 3), or, with the attribute ``compress``, JPEG files filled up with zeros to one length. No file says
what the task was, or whether it succeeded.

Sources: aloha_scripts/record_episodes.py and compress_data.py of github.com/tonyzhaozh/aloha,
postprocess_episodes.py of github.com/MarkFzp/act-plus-plus, convert_aloha_data_to_lerobot.py of
github.com/Physical-Intelligence/openpi.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, NotFoundError, UsageError
from attnstore.store.format.views import check_cameras
from attnstore.store.image import PNG, encode_png
from attnstore.store.json_text import json_value

from .base import OUTCOMES, CameraFrame, EpisodeInfo, Frame, check_finite, check_frames
from .hdf5 import EncodedRows, StackedImages, holds_encoded, joined, reading, texts
from .instruction import check_instruction, given_instructions
from .outcome import outcome_of_path, read_outcomes
from .selection import Selection
from .stills import EncodedImages

JpegColours = Literal["rgb", "bgr"]
"""What the first channel of a decoded JPEG is: red, or blue."""
IMAGES = "observations/images"
STATE = "observations/qpos"
ACTION = "action"
LANGUAGE = "language_raw"
"""Dataset in which some recorders keep the instruction."""
_EPISODE = re.compile(r"episode_?(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Swapped:
    """Encoded images whose first channel is blue; what is kept are the exact pixels, red first."""

    images: EncodedImages

    def __len__(self) -> int:
        return len(self.images)

    def check(self) -> None:
        self.images.check()

    def read(self, step: int) -> CameraFrame:
        rgb = np.ascontiguousarray(self.images.read(step).rgb[..., ::-1])
        return CameraFrame(self.images.camera, encode_png(rgb), PNG, rgb)


_Images = StackedImages | EncodedImages | _Swapped


class AlohaDataset:
    """Reader of ALOHA's HDF5 episodes.

    Parameters
    ----------
    root
        A file, or a folder of files; folders in it may be called success and failure.
    cameras
        In the order in which the policy gets them: ``cam_high``. By default all of the first episode
        that are no depth, by the alphabet.
    state
        Columns of the robot's state, joined. By default ``observations/qpos``.
    action
        Columns of the recorded action, joined. By default ``action``.
    instruction
        What every episode's policy is told. By default the file's ``language_raw``.
    jpeg_colours
        What compressed pictures decode to. ``rgb``: they are standard JPEG, as openpi's conversion
        takes them. ``bgr``: OpenCV coded them from arrays with red first, as ALOHA's
        ``compress_data.py`` does, and its reader undoes that. Must be said where files are
        compressed, since nothing in them tells.
    outcome_file
        CSV or JSON with the outcome by episode number. By default the folder tells.
    selection
        Which episodes.
    name
        Name of the dataset, part of a run's identity; by default the folder's.

    Raises
    ------
    NotFoundError
        If there is no such file or folder, or none in it.
    UsageError
        If an option names what it has not, or `jpeg_colours` is needed.
    """

    kind: str = "aloha"

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        cameras: Sequence[str] = (),
        state: Sequence[str] = (),
        action: Sequence[str] = (),
        instruction: str | None = None,
        jpeg_colours: JpegColours | None = None,
        outcome_file: Path | None = None,
        selection: Selection | None = None,
        name: str | None = None,
    ) -> None:
        if jpeg_colours is not None and jpeg_colours not in get_args(JpegColours):
            known = ", ".join(get_args(JpegColours))
            raise UsageError(f"JPEGs' colours are {known}; got {jpeg_colours!r}")
        check_instruction(instruction)
        self._root = Path(root).expanduser().resolve()
        self._base = self._root.parent if self._is_part() else self._root
        self._selection = selection or Selection()
        self._state, self._action = tuple(state) or (STATE,), tuple(action) or (ACTION,)
        self._instruction, self._colours = instruction, jpeg_colours
        self._paths = self._find()
        self._outcomes = self._read_outcomes(outcome_file)
        self.name: str = name or self._base.name
        there, compressed = self._first()
        self.cameras: tuple[str, ...] = tuple(cameras) or tuple(
            c for c in there if "depth" not in c
        )
        check_cameras(self.cameras)
        unknown = [camera for camera in self.cameras if there and camera not in there]
        if unknown or (there and not self.cameras):
            what = f"no camera {unknown[0]!r}" if unknown else "no camera"
            raise UsageError(f"{self._root}: {what}; it has {', '.join(there)}")
        if jpeg_colours is None and any(camera in compressed for camera in self.cameras):
            raise UsageError(
                f"{self._root}: its pictures are compressed, and nothing in a file tells what their first "
                "channel is: pass --jpeg-colours bgr if ALOHA's or ACT's own scripts compressed them (OpenCV "
                "from arrays with red first), rgb if other programs show their colours right; attnstore "
                "doctor draws them"
            )

    def __repr__(self) -> str:
        return f"AlohaDataset({str(self._root)!r}, cameras={self.cameras})"

    def episode_names(self) -> Sequence[str]:
        """Names of all episodes after the filters, by number: ``episode_12``, ``success/episode_3``.

        Raises
        ------
        NotFoundError
            If the filters leave none.
        """
        hint = "; outcomes come from folders called success and failure, or --outcome-file"
        return self._selection.of(
            self._root, list(self._paths), self._outcome_of, number_of=_number_text, hint=hint
        )

    def file_of(self, name: str) -> str | None:
        """Return None: an episode is a file of its own."""
        return None

    def info(self, name: str) -> EpisodeInfo:
        """Check an episode and describe it; images by their headers.

        Attributes hold ``format``, ``file``, ``instructions`` and the file's own, such as ``sim``.

        Raises
        ------
        EpisodeError
            If the episode is broken.
        NotFoundError
            If there is no such episode.
        """
        path = self._path(name)
        with reading(name, path) as file:
            cameras = self._cameras(name, file)
            for camera in cameras:
                camera.check()
            self._numbers(name, file, len(cameras[0]))
            instructions = self._instructions(name, file)
            attributes = {str(key): json_value(value) for key, value in file.attrs.items()}
            steps = len(cameras[0])
        return EpisodeInfo(
            name=name,
            outcome=self._outcome_of(name),
            instruction=instructions[0],
            frames=steps,
            task=instructions[0],
            attributes={
                **attributes,
                "format": "ALOHA HDF5",
                "file": path.relative_to(self._base).as_posix(),
                "instructions": instructions,
            },
        )

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the asked frames in the given order.

        Of an array what is kept are its exact pixels, of a compressed picture the file itself.

        Raises
        ------
        EpisodeError
            If the episode is broken or an image cannot be decoded.
        NotFoundError
            If there is no such episode.
        UsageError
            If an index is not one of the episode's frames.
        """
        path = self._path(name)
        with reading(name, path) as file:
            check_frames(name, len(self._cameras(name, file)[0]), indices)
        return self._read(name, path, tuple(indices))

    def _read(self, name: str, path: Path, indices: Sequence[int]) -> Iterator[Frame]:
        with reading(name, path) as file:
            cameras = self._cameras(name, file)
            state, action = self._numbers(name, file, len(cameras[0]))
            for index in indices:
                yield Frame(
                    index=index,
                    cameras=tuple(camera.read(index) for camera in cameras),
                    state=state[index],
                    action=action[index],
                )

    def _is_part(self) -> bool:
        return self._root.is_file() or self._root.name in OUTCOMES

    def _find(self) -> dict[str, Path]:
        if not self._root.exists():
            raise NotFoundError(f"{self._root}: no such file or folder of ALOHA's episodes")
        files = [self._root] if self._root.is_file() else self._root.rglob("*.hdf5")
        found = [p for p in files if is_episode(p)]
        if not found:
            raise NotFoundError(f"{self._root}: no episode_0.hdf5 in it")
        names = {p.relative_to(self._base).with_suffix("").as_posix(): p for p in found}
        return dict(sorted(names.items(), key=lambda item: (item[1].parent, _number(item[0]))))

    def _path(self, name: str) -> Path:
        if name not in self._paths:
            raise NotFoundError(f"{self._root}: no episode {name!r}")
        return self._paths[name]

    def _first(self) -> tuple[list[str], set[str]]:
        """Cameras of the first episode that can be read, and those of them that are compressed."""
        for name, path in self._paths.items():
            try:
                with reading(name, path) as file:
                    images = _group(name, file)
                    there = [key for key in images if hasattr(images[key], "shape")]
                    return there, {key for key in there if holds_encoded(images[key])}
            except EpisodeError:
                continue
        return [], set()

    def _cameras(self, name: str, file: Any) -> list[_Images]:
        group = _group(name, file)
        cameras: list[_Images] = []
        for camera in self.cameras:
            key, dataset = f"{IMAGES}/{camera}", group.get(camera)
            if not hasattr(dataset, "shape"):
                raise EpisodeError(name, f"no {key}; leave the camera or the episode out")
            if not holds_encoded(dataset):
                image = StackedImages(name, camera, key, dataset)
                image.check()
                cameras.append(image)
                continue
            encoded = EncodedImages(name, camera, key, EncodedRows(dataset))
            if self._colours is None:
                raise EpisodeError(
                    name, f"{key} is compressed, and other episodes are not; pass --jpeg-colours"
                )
            cameras.append(encoded if self._colours == "rgb" else _Swapped(encoded))
        lengths = dict(zip(self.cameras, map(len, cameras), strict=True))
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{key} has {count}" for key, count in lengths.items())
            raise EpisodeError(name, f"all cameras have a picture a step: {said}; record it again")
        if not cameras or not len(cameras[0]):
            raise EpisodeError(name, "an episode has steps; this one has none")
        return cameras

    def _numbers(
        self, name: str, file: Any, steps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        state = joined(name, file, self._state, steps)
        check_finite(name, state, self._state)
        return state, joined(name, file, self._action, steps)

    def _instructions(self, name: str, file: Any) -> list[str]:
        if self._instruction is not None:
            return [self._instruction.strip()]
        said = file.get(LANGUAGE)
        found = (
            {LANGUAGE: texts(said[()])} if hasattr(said, "shape") and said.shape is not None else {}
        )
        return given_instructions(name, found, "say with --instruction what the robot was told")

    def _read_outcomes(self, file: Path | None) -> dict[str, str]:
        if file is None:
            return {}
        numbers = [_number(name) for name in self._paths]
        if len(set(numbers)) < len(numbers):
            twice = next(number for number in numbers if numbers.count(number) > 1)
            raise UsageError(
                f"{self._root}: several files are called episode_{twice}, and {file} names episodes by "
                "number; read one folder at a time"
            )
        said = read_outcomes(file)
        if absent := sorted(set(said) - set(numbers)):
            raise UsageError(f"{file}: there is no episode {absent[0]} in {self._root}")
        return {
            name: said.get(number, "unknown")
            for name, number in zip(self._paths, numbers, strict=True)
        }

    def _outcome_of(self, name: str) -> str:
        folder, said = outcome_of_path(name), self._outcomes.get(name, "unknown")
        if "unknown" not in (folder, said) and folder != said:
            raise EpisodeError(
                name, f"its folder is {folder}, and --outcome-file says {said}: correct one of them"
            )
        return said if folder == "unknown" else folder


def is_episode(path: Path) -> bool:
    """Whether a file is called as ALOHA's episodes are."""
    return path.suffix == ".hdf5" and _EPISODE.fullmatch(path.stem) is not None and path.is_file()


def _group(name: str, file: Any) -> Any:
    images = file.get(IMAGES)
    if not hasattr(images, "keys"):
        raise EpisodeError(name, f"no group {IMAGES} in it; was it recorded by ALOHA?")
    return images


def _number(name: str) -> int:
    found = _EPISODE.fullmatch(name.rpartition("/")[2])
    return int(found[1]) if found else -1


def _number_text(name: str) -> str:
    return str(_number(name))
