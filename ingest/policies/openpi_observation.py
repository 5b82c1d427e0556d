"""From a dataset's frame to openpi's observation: cameras, state, and the images' geometry.

openpi's own transforms do the work. What they do with images is *read off* them: a test picture
that codes position and camera in its colours is put through, once per size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.geometry import Geometry

from .base import Observation, ObservationError, PolicyError

Size = tuple[int, int]
State = NDArray[np.float32]
_CODES = {"base": 85, "wrist": 170}
"""Blue of the test picture; 0 is the letterbox."""
_HINTS = ("hand", "wrist")


@dataclass(frozen=True, slots=True)
class Robot:
    """The keys in which one of openpi's input transforms expects an observation."""

    base: str
    """Key of the side camera's image."""
    wrist: str
    """Key of the wrist camera's image."""
    state: Callable[[State], dict[str, Any]]
    """Key and value of each part of the robot state."""
    state_dof: int
    reading: str
    """What the state's components are."""


ROBOTS: Mapping[str, Robot] = {
    "DroidInputs": Robot(
        "observation/exterior_image_1_left",
        "observation/wrist_image_left",
        lambda state: {
            "observation/joint_position": state[:7],
            "observation/gripper_position": state[7:],
        },
        8,
        "7 joint positions and the gripper's",
    ),
    "LiberoInputs": Robot(
        "observation/image",
        "observation/wrist_image",
        lambda state: {"observation/state": state},
        8,
        "the end effector's position and axis angle, and 2 of the gripper",
    ),
}
"""By the class of the robot's input transform."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the model's image inputs that shows a camera."""

    key: str
    """openpi's name: ``base_0_rgb``."""
    index: int
    """Its place among the model's image inputs."""
    camera: str
    geometry: Geometry


class Sight:
    """What openpi's transforms make of observations.

    Parameters
    ----------
    transforms
        openpi's input transforms, in order.
    keys
        The model's image inputs, in order.
    patch
        Side of a patch in pixels.
    base, wrist
        Dataset cameras; None finds the wrist camera by its name and takes the other as base.

    Raises
    ------
    PolicyError
        If the robot's transform is none that is known here.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        keys: Sequence[str],
        patch: int,
        *,
        base: str | None = None,
        wrist: str | None = None,
    ) -> None:
        self.transforms, self._keys, self._patch = tuple(transforms), tuple(keys), patch
        self._named = {"base": base, "wrist": wrist}
        names = [type(t).__name__ for t in self.transforms]
        found = [ROBOTS[name] for name in names if name in ROBOTS]
        if len(found) != 1:
            raise PolicyError(
                f"openpi's transforms {', '.join(names)} have not one of {', '.join(ROBOTS)}: "
                "attnstore does not know how this configuration takes its observations"
            )
        self._robot = found[0]
        self._slots: dict[tuple[tuple[str, Size], ...], tuple[Slot, ...]] = {}

    def inputs(self, observation: Observation) -> dict[str, Any]:
        """Put an observation through openpi's transforms: the model's inputs, unbatched.

        Raises
        ------
        ObservationError
            If openpi refuses it, or the robot state has another length.
        """
        state = np.asarray(observation.state, np.float32)
        if state.shape != (self._robot.state_dof,):
            raise ObservationError(
                f"the robot state has {state.size} components, openpi's transform takes "
                f"{self._robot.state_dof}: {self._robot.reading}"
            )
        return self._through(self._roles(observation), observation, state)

    def slots(self, observation: Observation) -> tuple[Slot, ...]:
        """Say which image inputs show which camera, and how; masked inputs are left out.

        Raises
        ------
        PolicyError
            If a camera's image is cropped, flipped or otherwise not just letterboxed.
        """
        sizes = tuple((c, (i.shape[0], i.shape[1])) for c, i in observation.images.items())
        if sizes not in self._slots:
            self._slots[sizes] = self._read_slots(observation)
        return self._slots[sizes]

    def _through(
        self, images: Mapping[str, Any], observation: Observation, state: State
    ) -> dict[str, Any]:
        data: dict[str, Any] = {
            self._robot.base: images["base"],
            self._robot.wrist: images["wrist"],
            **self._robot.state(state),
            "prompt": observation.instruction,
        }
        try:
            for transform in self.transforms:
                data = transform(data)
        except Exception as error:
            text = " ".join(str(error).split())[:240]
            raise ObservationError(
                f"openpi's {type(transform).__name__} refuses it ({type(error).__name__}: {text})"
            ) from error
        return data

    def _roles(self, observation: Observation) -> dict[str, NDArray[np.uint8]]:
        names = self._cameras(tuple(observation.images))
        return {role: observation.images[camera] for role, camera in names.items()}

    def _cameras(self, cameras: Sequence[str]) -> dict[str, str]:
        for role, camera in self._named.items():
            if camera is not None and camera not in cameras:
                raise UsageError(
                    f"option {role}={camera}: no such camera; the dataset gives "
                    f"{', '.join(cameras)}"
                )
        if len(cameras) != 2:
            raise UsageError(
                f"this policy sees 2 cameras, a side camera and the wrist's; the dataset gives "
                f"{len(cameras)}: {', '.join(cameras)}"
            )
        base, wrist = self._named["base"], self._named["wrist"]
        if wrist is None:
            likely = [c for c in cameras if any(hint in c.lower() for hint in _HINTS)]
            rest = [c for c in cameras if c != base] if base is not None else likely
            if len(rest) != 1:
                raise UsageError(
                    f"which of {', '.join(cameras)} is the wrist camera? Say it with "
                    "--policy-option wrist=NAME"
                )
            wrist = rest[0]
        if base is None:
            base = next(c for c in cameras if c != wrist)
        if base == wrist:
            raise UsageError(f"base and wrist are two cameras; got {base} for both")
        return {"base": base, "wrist": wrist}

    def _read_slots(self, observation: Observation) -> tuple[Slot, ...]:
        roles = self._cameras(tuple(observation.images))
        pictures = {
            role: _ramps(observation.images[camera].shape[:2], _CODES[role])
            for role, camera in roles.items()
        }
        seen = self._through(pictures, observation, np.zeros(self._robot.state_dof, np.float32))
        slots = []
        for index, key in enumerate(self._keys):
            if not np.all(seen["image_mask"][key]):
                continue
            shown = np.asarray(seen["image"][key])
            blue = int(shown[..., 2].max())
            role = min(_CODES, key=lambda r: abs(_CODES[r] - blue))
            if abs(_CODES[role] - blue) > 2:
                raise PolicyError(f"image input {key} is valid, but shows none of the cameras")
            geometry = self._geometry(key, shown, pictures[role].shape[:2])
            slots.append(Slot(key, index, roles[role], geometry))
        if sorted(s.camera for s in slots) != sorted(roles.values()):
            raise PolicyError(
                f"cameras {', '.join(roles.values())} should each fill one image input; "
                f"they fill {', '.join(f'{s.key} ({s.camera})' for s in slots) or 'none'}"
            )
        return tuple(slots)

    def _geometry(self, key: str, shown: NDArray[np.uint8], source: Size) -> Geometry:
        size = (int(shown.shape[0]), int(shown.shape[1]))
        wanted = Geometry.letterbox(source, size, (self._patch, self._patch))
        top, left = wanted.offset
        rows, cols = wanted.resized
        inside = np.zeros(size, bool)
        inside[top : top + rows, left : left + cols] = True
        # A source pixel's position is in red and green, so a crop, flip or shift shows.
        ramps = _ramps((rows, cols), 0).astype(np.int16)
        moved = np.abs(shown[inside][:, :2].astype(np.int16) - ramps.reshape(-1, 3)[:, :2])
        if ((shown[..., 2] > 0) != inside).any() or moved.max(initial=0) > 254 / min(
            rows, cols
        ) + 2:
            raise PolicyError(
                f"image input {key}: openpi does not just letterbox a picture of {source[0]} x "
                f"{source[1]} into {size[0]} x {size[1]}; its geometry is unknown"
            )
        return wanted


def _ramps(size: Size, code: int) -> NDArray[np.uint8]:
    """Red grows from left to right, green from top to bottom, blue is `code`."""
    height, width = size
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = np.round(254 * (np.arange(width) + 0.5) / width)
    picture[..., 1] = np.round(254 * (np.arange(height)[:, None] + 0.5) / height)
    picture[..., 2] = code
    return picture


def stacked(values: Sequence[Any], device: str) -> Any:
    """Batch the leaves of model inputs as openpi's ``Policy.infer`` does one observation's."""
    import torch

    if isinstance(values[0], dict):
        return {key: stacked([v[key] for v in values], device) for key in values[0]}
    return torch.from_numpy(np.stack([np.asarray(v) for v in values])).to(device)
