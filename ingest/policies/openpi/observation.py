"""From a dataset's frame to openpi's observation, and the images' geometry.

openpi's own transforms do the work. What they do with images is *read off* them: a test picture
that codes position and camera in its colours is put through, once per size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.geometry import Geometry

from ...datasets.openpi.message import Message, like, read_message
from ..base import Observation, ObservationError, PolicyError
from .robot import (
    Asked,
    Key,
    Robot,
    assign,
    codes,
    learn,
    model_inputs,
    ramps,
    valid_inputs,
    which,
)

Size = tuple[int, int]


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
        The model's image inputs, in order; None: all that the transforms make.
    patch
        Side of a patch in pixels.
    asked
        What the options say of cameras and keys.
    columns
        The dataset's column by key of an observation, as the configuration says.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        keys: Sequence[str] | None,
        patch: int,
        *,
        asked: Asked,
        columns: Mapping[Key, str],
    ) -> None:
        self.transforms, self._keys, self._patch = tuple(transforms), keys, patch
        self._asked, self._columns = asked, columns
        self._robots: dict[tuple[frozenset[str], int], tuple[Robot, dict[Key, str]]] = {}
        self._slots: dict[tuple[tuple[str, Size], ...], tuple[Slot, ...]] = {}
        self._sent: dict[Any, tuple[tuple[Slot, ...], tuple[Key, ...]]] = {}

    def inputs(self, observation: Observation) -> dict[str, Any]:
        """Put an observation through openpi's transforms: the model's inputs, unbatched.

        Raises
        ------
        ObservationError
            If openpi refuses it, or the robot state has another length than the norm stats.
        UsageError
            If it is not clear which camera or part of the state goes where.
        PolicyError
            If it cannot be found out in which keys the transforms take observations.
        """
        state = np.asarray(observation.state, np.float32)
        robot, cameras = self._robot(observation)
        pictures = {key: observation.images[camera] for key, camera in cameras.items()}
        return self._through(robot.observation(pictures, state, observation.instruction))

    def slots(self, observation: Observation) -> tuple[Slot, ...]:
        """Say which image inputs show which camera, and how; masked and black ones are left out.

        Raises
        ------
        PolicyError
            If a camera's image is cropped, flipped or otherwise not just letterboxed.
        """
        sizes = tuple((c, (i.shape[0], i.shape[1])) for c, i in observation.images.items())
        if sizes not in self._slots:
            self._slots[sizes] = self._read_slots(observation)
        return self._slots[sizes]

    def _through(self, data: dict[str, Any]) -> dict[str, Any]:
        for transform in self.transforms:
            if (stats := getattr(transform, "norm_stats", None)) is not None:
                _check_state(data, stats)
            try:
                data = transform(data)
            except Exception as error:
                text = " ".join(str(error).split())[:240]
                raise ObservationError(
                    f"openpi's {type(transform).__name__} refuses it "
                    f"({type(error).__name__}: {text})"
                ) from error
        return data

    def _robot(self, observation: Observation) -> tuple[Robot, dict[Key, str]]:
        cameras = tuple(observation.images)
        components = int(np.asarray(observation.state).size)
        known = (frozenset(cameras), components)
        if known not in self._robots:
            expected = [getattr(t, "EXPECTED_CAMERAS", ()) for t in self.transforms]
            robot = learn(
                self._through, self._keys, cameras, components, asked=self._asked,
                columns=self._columns, expected=[name for names in expected for name in names],
            )  # fmt: skip
            shown = assign(robot, cameras, self._asked, self._columns)
            self._robots[known] = (robot, {robot.inputs[n]: c for n, c in shown.items()})
        return self._robots[known]

    def sent(self, content: Mapping[str, Any]) -> tuple[Message, tuple[Slot, ...], tuple[Key, ...]]:
        """Read what a client of openpi's server sent, in keys of its own.

        Returns
        -------
        The message; the image inputs that show its cameras; and the keys of the numbers that the
        transforms read, which are the robot's state. Cameras that reach no image input are left out.

        Raises
        ------
        ObservationError
            If openpi refuses it.
        PolicyError
            As `slots`.
        """
        names = {key: camera for camera, key in self._asked.images.items()}
        message = read_message(content, names)
        known = message.structure
        if known not in self._sent:
            self._sent[known] = self._read_sent(content, message)
        return message, *self._sent[known]

    def _read_sent(
        self, content: Mapping[str, Any], message: Message
    ) -> tuple[tuple[Slot, ...], tuple[Key, ...]]:
        own = {key: np.asarray(message.images[camera]) for camera, key in message.cameras.items()}
        cameras = {key: camera for camera, key in message.cameras.items()}
        sizes = {key: _size(image) for key, image in own.items()}

        def observe(pictures: Mapping[Key, NDArray[np.uint8]]) -> dict[str, Any]:
            return _replaced(content, {key: like(p, own[key]) for key, p in pictures.items()})

        slots = self._shown(observe, cameras, sizes)
        whole = self._through(_replaced(content, {}))
        state = []
        for key in message.numbers:
            try:
                without = self._through(_replaced(content, {key: None}))
            except ObservationError:
                state.append(key)
                continue
            if any(
                not np.array_equal(without[name], whole[name])
                for name in ("state", "tokenized_prompt")
            ):
                state.append(key)
        said = [tuple(name.split("/")) for name, _ in self._asked.state]
        joined = {"/".join(key): key for key in state}
        first = [joined[name] for name in map("/".join, said) if name in joined]
        return slots, (*first, *(key for key in state if key not in first))

    def _read_slots(self, observation: Observation) -> tuple[Slot, ...]:
        robot, cameras = self._robot(observation)
        sizes: dict[Key, Size] = {
            key: _size(observation.images[camera]) for key, camera in cameras.items()
        }
        state = np.zeros(np.asarray(observation.state).size, np.float32)

        def observe(pictures: Mapping[Key, NDArray[np.uint8]]) -> dict[str, Any]:
            return robot.observation(pictures, state, observation.instruction)

        slots = self._shown(observe, cameras, sizes)
        if sorted(s.camera for s in slots) != sorted(cameras.values()):
            raise PolicyError(
                f"cameras {', '.join(cameras.values())} should each fill one image input; "
                f"they fill {', '.join(f'{s.key} ({s.camera})' for s in slots) or 'none'}"
            )
        return slots

    def _shown(
        self,
        observe: Callable[[Mapping[Key, NDArray[np.uint8]]], dict[str, Any]],
        cameras: Mapping[Key, str],
        sizes: Mapping[Key, Size],
    ) -> tuple[Slot, ...]:
        """Put test pictures through, and read off which image input shows which of them, and how."""
        blue = codes(tuple(cameras))
        seen = self._through(observe({key: ramps(sizes[key], blue[key]) for key in cameras}))
        slots = []
        inputs = model_inputs(seen, self._keys)
        for name in valid_inputs(seen, self._keys):
            shown = np.asarray(seen["image"][name])
            if not shown.any():
                continue
            key = which(name, shown, blue)
            geometry = self._geometry(name, shown, sizes[key])
            slots.append(Slot(name, inputs.index(name), cameras[key], geometry))
        return tuple(slots)

    def _geometry(self, key: str, shown: NDArray[np.uint8], source: Size) -> Geometry:
        size = (int(shown.shape[0]), int(shown.shape[1]))
        wanted = Geometry.letterbox(source, size, (self._patch, self._patch))
        # openpi's letterbox has whole pixels
        top, left = (int(side) for side in wanted.offset)
        rows, cols = (int(side) for side in wanted.resized)
        inside = np.zeros(size, bool)
        inside[top : top + rows, left : left + cols] = True
        # A source pixel's position is in red and green, so a crop, flip or shift shows.
        wanted_ramps = ramps((rows, cols), 0).astype(np.int16)
        moved = np.abs(shown[inside][:, :2].astype(np.int16) - wanted_ramps.reshape(-1, 3)[:, :2])
        if ((shown[..., 2] > 0) != inside).any() or moved.max(initial=0) > 254 / min(
            rows, cols
        ) + 2:
            raise PolicyError(
                f"image input {key}: openpi does not just letterbox a picture of {source[0]} x "
                f"{source[1]} into {size[0]} x {size[1]}; its geometry is unknown"
            )
        return wanted


def _size(image: NDArray[Any]) -> Size:
    """Height and width of an image, channels first or last."""
    rows, cols = image.shape[1:] if image.shape[0] == 3 else image.shape[:2]
    return int(rows), int(cols)


def _replaced(
    content: Mapping[str, Any], values: Mapping[Key, Any], path: Key = ()
) -> dict[str, Any]:
    """Copy a message, with other values in some keys; a value of None leaves its key out."""
    made: dict[str, Any] = {}
    for name, value in content.items():
        key = (*path, str(name))
        if isinstance(value, Mapping):
            made[name] = _replaced(value, values, key)
        elif key not in values:
            made[name] = value.copy() if isinstance(value, np.ndarray) else value
        elif values[key] is not None:
            made[name] = values[key]
    return made


def _check_state(data: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
    """Refuse a state that openpi would normalise with another robot's statistics, or stretch."""
    own = stats.get("state")
    if own is None or "state" not in data:
        return
    spreads = [np.asarray(own.std, float)]
    if getattr(own, "q01", None) is not None and getattr(own, "q99", None) is not None:
        spreads.append(np.asarray(own.q99, float) - np.asarray(own.q01, float))
    # Statistics may be padded to the model's length: there nothing varies.
    varies = np.flatnonzero(np.any([s != 0 for s in spreads], axis=0))
    known, count = len(spreads[0]), np.asarray(data["state"]).shape[-1]
    if not (varies[-1] + 1 if varies.size else 1) <= count <= known:
        raise ObservationError(
            f"the robot state has {count} components, the checkpoint's norm stats are of "
            f"{varies[-1] + 1 if varies.size else known}: is this the robot that it was trained "
            "on, and the state in the same units and order?"
        )


def stacked(values: Sequence[Any], device: str) -> Any:
    """Batch the leaves of model inputs as openpi's ``Policy.infer`` does one observation's."""
    import torch

    if isinstance(values[0], dict):
        return {key: stacked([v[key] for v in values], device) for key in values[0]}
    return torch.from_numpy(np.stack([np.asarray(v) for v in values])).to(device)
