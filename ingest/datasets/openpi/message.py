"""A message of one of openpi's clients: camera images, robot state and prompt, under keys of the robot's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, ...]
"""Where a message holds a value: ``("observation/image",)``, ``("images", "cam_high")``."""
PROMPT: Key = ("prompt",)
LARGEST_STATE = 256
"""Numbers that one part of a robot's state may have; longer vectors are something else."""


@dataclass(frozen=True, slots=True)
class Message:
    """What of a message is an image, and what a vector of numbers.

    Images are (height, width, 3) or (3, height, width), of uint8 or of floats from 0 to 1, as openpi's
    transforms take them.
    """

    cameras: Mapping[str, Key]
    """Key of each camera's image, in the message's order."""
    images: Mapping[str, Any]
    """By camera, as they were sent."""
    numbers: Mapping[Key, NDArray[np.float32]]
    """Vectors and single numbers, the gripper's behind the others."""
    prompt: str
    """Empty if there is none."""

    @property
    def structure(self) -> tuple[Any, ...]:
        """What messages of one robot have in common: keys, shapes, data types."""
        images = tuple((c, np.shape(i), np.asarray(i).dtype.str) for c, i in self.images.items())
        return images, tuple((key, value.size) for key, value in self.numbers.items())

    def pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Return the images as (height, width, 3) of uint8, by camera."""
        return {camera: pixels(image) for camera, image in self.images.items()}


def read_message(content: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Message:
    """Read a message.

    Parameters
    ----------
    content
        As the client sent it, nested or with ``/`` in its keys.
    names
        What a camera is called, by its key, parts joined by ``/``; else by the key's last part.

    Examples
    --------
    >>> picture = np.zeros((4, 6, 3), np.uint8)
    >>> sent = {"observation/image": picture, "observation/state": np.zeros(8), "prompt": "wipe"}
    >>> message = read_message(sent)
    >>> message.cameras, list(message.numbers), message.prompt
    ({'image': ('observation/image',)}, [('observation/state',)], 'wipe')
    """
    images: dict[Key, Any] = {}
    numbers: dict[Key, NDArray[np.float32]] = {}
    prompt = ""
    for key, value in _flat(content, ()):
        if key == PROMPT:
            prompt = str(np.asarray(value).item()) if np.ndim(value) == 0 else str(value)
        elif is_image(value):
            images[key] = value
        elif not isinstance(value, str | bytes) and is_vector(np.asarray(value)):
            numbers[key] = np.asarray(value, np.float32).reshape(-1)
    called = camera_names(list(images), names or {})
    order = sorted(numbers, key=lambda key: "gripper" in key[-1].lower())
    return Message(
        dict(zip(called, images, strict=True)),
        dict(zip(called, images.values(), strict=True)),
        {key: numbers[key] for key in order},
        prompt,
    )


def camera_names(keys: list[Key], names: Mapping[str, str]) -> list[str]:
    """Return what the cameras of these keys are called, each name once."""
    last = [key[-1].rpartition("/")[2] for key in keys]
    whole = ["/".join(key) for key in keys]
    return [
        names.get(path, name if last.count(name) == 1 else path.replace("/", "."))
        for path, name in zip(whole, last, strict=True)
    ]


def is_image(value: Any) -> bool:
    """Whether a value is a picture of three channels."""
    if (
        not isinstance(value, np.ndarray)
        or value.ndim != 3
        or 3 not in (value.shape[0], value.shape[2])
    ):
        return False  # fmt: skip
    return (
        bool(value.dtype == np.uint8 or np.issubdtype(value.dtype, np.floating))
        and min(value.shape) > 0
    )


def is_vector(value: NDArray[Any]) -> bool:
    """Whether a value may be a part of a robot's state."""
    return value.dtype.kind in "fiu" and value.ndim <= 1 and 0 < value.size <= LARGEST_STATE


def pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image as (height, width, 3) of uint8, as openpi's transforms do."""
    if np.issubdtype(image.dtype, np.floating):
        image = (255 * image).astype(np.uint8)
    if image.shape[0] == 3:
        image = np.moveaxis(image, 0, -1)
    return np.ascontiguousarray(image)


def like(picture: NDArray[np.uint8], image: NDArray[Any]) -> NDArray[Any]:
    """Return a picture of (height, width, 3) in the form of an image that was sent."""
    if image.shape[0] == 3:
        picture = np.ascontiguousarray(np.moveaxis(picture, -1, 0))
    if np.issubdtype(image.dtype, np.floating):
        # half a level up: openpi cuts off what is behind the point
        return ((picture + 0.5) / 255).astype(image.dtype)
    return picture


def _flat(content: Mapping[str, Any], path: Key) -> Iterator[tuple[Key, Any]]:
    for name, value in content.items():
        key = (*path, str(name))
        if isinstance(value, Mapping):
            yield from _flat(value, key)
        else:
            yield key, value
