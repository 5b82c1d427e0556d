"""HDF5 demonstrations of robomimic's structure: LIBERO, MimicGen, RoboCasa, robomimic's own.

A file holds ``data/demo_0``, ``data/demo_1``, ... with ``obs/agentview_rgb`` (step, height, width, 3),
``actions``, ``rewards`` and ``dones``, a row a step; ``mask/valid`` names demonstrations of a part. LIBERO
has one file a task, and its instruction in the attribute ``problem_info``.

Sources: docs/datasets/overview.md of github.com/ARISE-Initiative/robomimic, scripts/create_dataset.py of
github.com/Lifelong-Robot-Learning/LIBERO, regenerate_libero_dataset.py of github.com/moojink/openvla-oft.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, NotFoundError, UsageError
from attnstore.store.format.views import check_cameras
from attnstore.store.json_text import json_value, parse_json

from .base import EpisodeInfo, Frame, check_finite, check_frames
from .hdf5 import StackedImages, joined, reading, rows, texts
from .instruction import check_instruction, given_instructions
from .outcome import outcome_of_episode, outcome_of_frames
from .selection import Selection

STATES = (
    ("obs/ee_states", "obs/gripper_states"),
    ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
)
"""Columns of the state: LIBERO's, as its RLDS version and openpi join them, then robomimic's own."""
ACTION = "actions"
REWARDS = "rewards"
SUFFIXES = (".hdf5", ".h5")
_DEMO = re.compile(r"demo_(\d+)", re.ASCII)
_PICTURE = re.compile(r"(?:.*_)?(?:rgb|image)")
_LIBERO_CAMERAS = {"agentview_rgb", "eye_in_hand_rgb"}
_LIBERO_FILE = "_demo"
"""How the stem of LIBERO's files ends: ``KITCHEN_SCENE10_close_the_drawer_demo.hdf5``."""
_REPAIR = "name it with --instruction, or leave the episode out"


@dataclass(frozen=True, slots=True)
class _File:
    """What is known of a file without reading a demonstration."""

    path: Path
    demos: tuple[str, ...] = ()
    """In the order of their numbers."""
    masks: Mapping[str, tuple[str, ...]] | None = None
    """Demonstrations by filter key."""
    upside_down: bool = False
    """Whether its pictures are as OpenGL renders them, the lowest row first."""
    broken: str | None = None


class RobomimicDataset:
    """Reader of HDF5 demonstrations of robomimic's structure.

    Parameters
    ----------
    root
        A file, or a folder of files.
    cameras
        Observations, in the order in which the policy gets them: ``agentview_rgb``; by default all
        pictures of the first demonstration, by the alphabet.
    state
        Columns of the robot's state, joined: ``obs/joint_states``. By default LIBERO's end effector
        and gripper, or robomimic's.
    action
        Columns of the recorded action, joined. By default ``actions``.
    instruction
        What every episode's policy is told. By default what the file says.
    outcome_column
        A column of the demonstration (``rewards``, ``dones``) or an attribute of it. By default a
        success is a demonstration with a reward of 1, and a failure one without in a file in which
        another has one; where rewards are not 0 and 1, outcomes are unknown.
    filter_key
        Only demonstrations of ``mask/<filter_key>``.
    selection
        Which episodes.
    name
        Name of the dataset, part of a run's identity; by default the folder's or the file's.

    Raises
    ------
    NotFoundError
        If there is no such file or folder, or none in it.
    UsageError
        If an option names what it has not.
    """

    kind: str = "robomimic"

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        cameras: Sequence[str] = (),
        state: Sequence[str] = (),
        action: Sequence[str] = (),
        instruction: str | None = None,
        outcome_column: str | None = None,
        filter_key: str | None = None,
        selection: Selection | None = None,
        name: str | None = None,
    ) -> None:
        self._root = Path(root).expanduser().resolve()
        self._selection = selection or Selection()
        self._instruction, self._outcome_column = instruction, outcome_column
        check_instruction(instruction)
        self._files = {self._stem(path): _look_at(path) for path in self._paths()}
        self._filter_key = self._checked_key(filter_key)
        self._rewarded: dict[str, bool] = {}
        self.name: str = name or self._root.stem
        columns = self._first_columns()
        self.cameras: tuple[str, ...] = tuple(cameras) or tuple(
            key.removeprefix("obs/") for key, what in columns.items() if what == "picture"
        )
        check_cameras(self.cameras)
        for camera in self.cameras:
            if columns and f"obs/{camera}" not in columns:
                there = [k.removeprefix("obs/") for k, what in columns.items() if what == "picture"]
                raise UsageError(
                    f"{self._root}: no camera {camera!r}; it has {', '.join(there) or 'none'}"
                )
        if columns and not self.cameras:
            raise UsageError(
                f"{self._root}: no pictures in obs: it has {', '.join(columns)}; robomimic's "
                "dataset_states_to_obs.py renders them"
            )
        numbers = [key for key, what in columns.items() if what == "numbers"]
        self._state = self._columns("state", state, numbers) or self._default_state(numbers)
        self._action = self._columns("action", action, numbers) or (
            (ACTION,) if ACTION in numbers else ()
        )

    def __repr__(self) -> str:
        return f"RobomimicDataset({str(self._root)!r}, cameras={self.cameras})"

    @property
    def upside_down(self) -> bool:
        """Whether its pictures are LIBERO's, stored as OpenGL renders them: the lowest row first."""
        return any(file.upside_down for file in self._files.values())

    def episode_names(self) -> Sequence[str]:
        """Names of all episodes after the filters: ``open_the_drawer_demo/demo_12``.

        A file that cannot be read is an episode of its own, named after the file, so that whoever
        reads it learns why.

        Raises
        ------
        NotFoundError
            If the filters leave none.
        """
        return self._selection.of(self._root, list(self._places), self._outcome_of_name)

    def file_of(self, name: str) -> str | None:
        """Return the file in which an episode lies beside others, below the dataset's folder."""
        place = self._places.get(name)
        if place is None:
            return None
        path = self._files[place[0]].path
        return path.name if path == self._root else path.relative_to(self._root).as_posix()

    def info(self, name: str) -> EpisodeInfo:
        """Check an episode and describe it; no picture is read.

        Attributes hold ``format``, ``file``, ``demo``, ``env`` (the environment's name),
        ``filter_keys`` in which the demonstration is, and ``instructions`` (all that it has).

        Raises
        ------
        EpisodeError
            If the episode is broken.
        NotFoundError
            If there is no such episode.
        """
        file, demo = self._place(name)
        with reading(name, file.path) as opened:
            group = _demo(name, opened, demo)
            cameras = self._cameras(name, group)
            steps = len(cameras[0])
            self._numbers(name, group, steps)
            instructions = self._all_instructions(name, file, group, opened["data"])
            env = _json(name, opened["data"], "env_args", {})
            outcome = self._outcome_of(name)
        settings = env.get("env_kwargs") if isinstance(env, dict) else None
        keys = [key for key, demos in (file.masks or {}).items() if demo in demos]
        return EpisodeInfo(
            name=name,
            outcome=outcome,
            instruction=instructions[0],
            frames=steps,
            task=instructions[0],
            rate=_rate(settings),
            attributes={
                "format": "robomimic HDF5",
                "file": self.file_of(name),
                "demo": demo,
                "env": json_value(env.get("env_name")) if isinstance(env, dict) else None,
                "filter_keys": keys,
                "instructions": instructions,
            },
        )

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the asked frames in the given order; what is kept of an image are its exact pixels.

        Raises
        ------
        EpisodeError
            If the episode is broken.
        NotFoundError
            If there is no such episode.
        UsageError
            If an index is not one of the episode's frames.
        """
        file, demo = self._place(name)
        with reading(name, file.path) as opened:
            check_frames(name, len(self._cameras(name, _demo(name, opened, demo))[0]), indices)
        return self._read(name, file.path, demo, tuple(indices))

    def _read(self, name: str, path: Path, demo: str, indices: Sequence[int]) -> Iterator[Frame]:
        with reading(name, path) as opened:
            group = _demo(name, opened, demo)
            cameras = self._cameras(name, group)
            state, action = self._numbers(name, group, len(cameras[0]))
            for index in indices:
                yield Frame(
                    index=index,
                    cameras=tuple(camera.read(index) for camera in cameras),
                    state=state[index],
                    action=action[index],
                )

    @cached_property
    def _places(self) -> dict[str, tuple[str, str | None]]:
        places: dict[str, tuple[str, str | None]] = {}
        for stem, file in self._files.items():
            if file.broken is not None:
                places[stem] = (stem, None)
                continue
            kept = (
                file.demos
                if self._filter_key is None
                else (file.masks or {}).get(self._filter_key, ())
            )
            places |= {f"{stem}/{demo}": (stem, demo) for demo in file.demos if demo in kept}
        return places

    def _place(self, name: str) -> tuple[_File, str]:
        if name not in self._places:
            raise NotFoundError(f"{self._root}: no episode {name!r}")
        stem, demo = self._places[name]
        file = self._files[stem]
        if demo is None:
            raise EpisodeError(name, str(file.broken))
        return file, demo

    def _paths(self) -> list[Path]:
        if self._root.is_file():
            return [self._root]
        if not self._root.is_dir():
            raise NotFoundError(f"{self._root}: no such file or folder of HDF5 demonstrations")
        found = sorted(
            path
            for path in self._root.rglob("*")
            if path.suffix in SUFFIXES and path.is_file() and not path.name.startswith(".")
        )
        if not found:
            raise NotFoundError(f"{self._root}: no *.hdf5 in it")
        stems = [self._stem(path) for path in found]
        twice = [
            path.name for path, stem in zip(found, stems, strict=True) if stems.count(stem) > 1
        ]
        if twice:
            raise UsageError(f"{self._root}: {' and '.join(twice)} have one name; rename one")
        return found

    def _stem(self, path: Path) -> str:
        below = Path(path.name) if path == self._root else path.relative_to(self._root)
        return below.with_suffix("").as_posix()

    def _checked_key(self, key: str | None) -> str | None:
        there = sorted({k for file in self._files.values() for k in file.masks or {}})
        if key is not None and key not in there:
            raise UsageError(
                f"{self._root}: no filter key {key!r}; it has {', '.join(there) or 'none'}"
            )
        return key

    def _first_columns(self) -> dict[str, str]:
        """Columns of the first demonstration that can be read: ``numbers``, ``picture`` or ``other``."""
        for stem, demo in self._places.values():
            if demo is None:
                continue
            try:
                with reading(stem, self._files[stem].path) as opened:
                    return _columns(_demo(stem, opened, demo))
            except EpisodeError:
                continue
        return {}

    def _columns(
        self, option: str, asked: Sequence[str], numbers: Sequence[str]
    ) -> tuple[str, ...]:
        for key in asked:
            if numbers and key not in numbers:
                raise UsageError(
                    f"{self._root}: {option} is a column of numbers; {key!r} is not one of "
                    f"{', '.join(numbers)}; pass --{option}-column"
                )
        return tuple(asked)

    def _default_state(self, numbers: Sequence[str]) -> tuple[str, ...]:
        for columns in STATES:
            if all(column in numbers for column in columns):
                return columns
        if not numbers:  # nothing can be read, and every episode says why
            return STATES[0]
        raise UsageError(
            f"{self._root}: neither {' and '.join(STATES[0])} nor {' and '.join(STATES[1])} are there; "
            f"name the robot's state with --state-column: {', '.join(numbers)}"
        )

    def _cameras(self, name: str, group: Any) -> list[StackedImages]:
        cameras = []
        for camera in self.cameras:
            key = f"obs/{camera}"
            dataset = group.get(key)
            if not hasattr(dataset, "shape"):
                raise EpisodeError(
                    name, f"{group.name} has no {key}; leave the camera or the episode out"
                )
            image = StackedImages(name, camera, f"{group.name}/{key}", dataset)
            image.check()
            cameras.append(image)
        steps = {camera.key: len(camera) for camera in cameras}
        said = group.attrs.get("num_samples")
        if said is not None:
            steps["num_samples"] = int(said)
        if len(set(steps.values())) > 1:
            lengths = ", ".join(f"{key} has {count}" for key, count in steps.items())
            raise EpisodeError(
                name, f"all columns have a row a step: {lengths}; export the file again"
            )
        if not len(cameras[0]):
            raise EpisodeError(name, "an episode has steps; this one has none")
        return cameras

    def _numbers(
        self, name: str, group: Any, steps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        state = joined(name, group, self._state, steps)
        check_finite(name, state, self._state)
        return state, joined(name, group, self._action, steps)

    def _all_instructions(self, name: str, file: _File, group: Any, data: Any) -> list[str]:
        if self._instruction is not None:
            return [self._instruction.strip()]
        meta = _json(name, group, "ep_meta", {})
        problem = _json(name, data, "problem_info", {})
        said = {
            "ep_meta": meta.get("lang", "") if isinstance(meta, dict) else "",
            "problem_info": problem.get("language_instruction", "")
            if isinstance(problem, dict)
            else "",
        }
        found = {key: texts(value).strip().strip('"') for key, value in said.items()}
        if not any(found.values()):
            found["the name of LIBERO's file"] = _instruction_of_file(file.path)
        return given_instructions(name, found, _REPAIR)

    def _outcome_of_name(self, name: str) -> str:
        self._place(name)
        return self._outcome_of(name)

    def _outcome_of(self, name: str) -> str:
        file, demo = self._place(name)
        with reading(name, file.path) as opened:
            group = _demo(name, opened, demo)
            column = self._outcome_column
            if column is None:
                return self._outcome_of_rewards(name, opened, group)
            if column in group:
                values = rows(name, group, column)[:, 0].tolist()
                return outcome_of_frames(name, column, values)
            if column in group.attrs:
                return outcome_of_episode(name, column, json_value(group.attrs[column]))
        raise EpisodeError(
            name, f"{demo} has no column or attribute {column!r} for the outcome; choose another"
        )

    def _outcome_of_rewards(self, name: str, opened: Any, group: Any) -> str:
        own = _rewards(name, group)
        if own is None:
            return "unknown"
        if own:
            return "success"
        stem = self._places[name][0]
        if stem not in self._rewarded:
            self._rewarded[stem] = any(
                _rewards(name, opened["data"].get(demo)) for demo in self._files[stem].demos
            )
        return "failure" if self._rewarded[stem] else "unknown"


def _look_at(path: Path) -> _File:
    try:
        with reading(path.stem, path) as opened:
            data = opened.get("data")
            numbered = {
                int(match[1]): key
                for key in (data if hasattr(data, "keys") else ())
                if (match := _DEMO.fullmatch(key))
            }
            if not numbered:
                raise EpisodeError(
                    path.stem,
                    f"{path.name} has no group data with demo_0, demo_1, ...; leave it out",
                )
            demos = tuple(numbered[number] for number in sorted(numbered))
            masks = opened.get("mask")
            kept = {
                key: tuple(map(texts, np.asarray(masks[key][()]).reshape(-1)))
                for key in (masks if hasattr(masks, "keys") else ())
                if hasattr(masks[key], "shape")
            }
            convention = data.attrs.get("macros_image_convention")
            first = data[demos[0]].get("obs")
            libero = "bddl_file_name" in data.attrs or (
                hasattr(first, "keys") and set(first) >= _LIBERO_CAMERAS
            )
            upside_down = libero if convention is None else texts(convention) == "opengl"
            return _File(path, demos, kept, upside_down)
    except EpisodeError as error:
        return _File(path, broken=error.reason)
    except AttributeError:
        return _File(path, broken=f"{path.name} has datasets where groups should be; copy it again")


def _demo(name: str, opened: Any, demo: str) -> Any:
    group = opened["data"].get(demo)
    if not hasattr(group, "keys"):
        raise EpisodeError(name, f"data/{demo} is no group; copy the file again")
    return group


def _columns(group: Any) -> dict[str, str]:
    found: dict[str, str] = {}

    def note(key: str, value: Any) -> None:
        if not hasattr(value, "shape") or key.startswith("next_obs/"):
            return
        shape, kind = tuple(value.shape or ()), value.dtype
        colour = len(shape) == 4 and shape[-1] == 3 and kind == np.uint8
        named = len(shape) == 4 and _PICTURE.fullmatch(key.removeprefix("obs/"))
        if key.startswith("obs/") and (colour or named):
            found[key] = "picture"
        else:
            found[key] = "numbers" if len(shape) in (1, 2) and kind.kind in "fiub" else "other"

    group.visititems(note)
    return found


def _rewards(name: str, group: Any) -> bool | None:
    """Whether a demonstration has a reward of 1; None if its rewards are no zeros and ones."""
    if not hasattr(group, "keys") or not hasattr(group.get(REWARDS), "shape"):
        return None
    values = rows(name, group, REWARDS)
    return bool((values == 1).any()) if np.isin(values, (0, 1)).all() else None


def _json(name: str, group: Any, key: str, default: Any) -> Any:
    value = group.attrs.get(key)
    if value is None:
        return default
    try:
        return parse_json(texts(value).encode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise EpisodeError(
            name, f"attribute {key} of {group.name} is no JSON ({error}); export the file again"
        ) from None


def _rate(settings: Any) -> float | None:
    """Frames per second, as the environment's settings say it."""
    rate = settings.get("control_freq") if isinstance(settings, dict) else None
    known = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1e6
    return float(rate) if known and rate is not None else None


def _instruction_of_file(path: Path) -> str:
    """Return the words of the name of LIBERO's file, as its benchmark does; empty for another's."""
    if not path.stem.endswith(_LIBERO_FILE):
        return ""
    words = path.stem.removesuffix(_LIBERO_FILE).split("_")
    scene = max((i for i, word in enumerate(words) if re.fullmatch(r"SCENE\d+", word)), default=-1)
    return " ".join(words[scene + 1 :])
