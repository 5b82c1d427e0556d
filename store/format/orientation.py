"""How a camera's recorded image is turned and flipped to be the one that a policy sees.

Simulators and mounted cameras record upside down or mirrored what a policy was trained on upright. The
turn comes first, clockwise, then the flip. What is stored is the image afterwards: geometry, maps and
overlays know nothing of it, and masks of the recorded image are turned as the image was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

TURNS = (90, 180, 270)
FLIPS = ("horizontal", "vertical")
Pixel = TypeVar("Pixel", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Orientation:
    """A turn, then a flip.

    Examples
    --------
    >>> picture = np.array([[1, 2, 3], [4, 5, 6]])
    >>> Orientation(90).apply(picture).tolist()
    [[4, 1], [5, 2], [6, 3]]
    >>> Orientation(0, "horizontal").apply(picture).tolist()
    [[3, 2, 1], [6, 5, 4]]
    """

    turn: int = 0
    """Degrees clockwise: 0, 90, 180 or 270."""
    flip: str | None = None
    """``horizontal`` swaps left and right, ``vertical`` top and bottom."""

    def __post_init__(self) -> None:
        if self.turn not in (0, *TURNS):
            raise ValueError(f"a turn is one of {', '.join(map(str, TURNS))}; got {self.turn}")
        if self.flip not in (None, *FLIPS):
            raise ValueError(f"a flip is one of {', '.join(FLIPS)}; got {self.flip!r}")

    def apply(self, pixels: NDArray[Pixel]) -> NDArray[Pixel]:
        """Turn pixels, (height, width, ...); a quarter turn swaps height and width."""
        turned = np.rot90(pixels, -self.turn // 90)
        if self.flip is not None:
            turned = turned[:, ::-1] if self.flip == "horizontal" else turned[::-1]
        return np.ascontiguousarray(turned)

    def recorded(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the recorded image's (height, width), of that of the turned one."""
        return size if self.turn % 180 == 0 else (size[1], size[0])

    def to_json(self) -> dict[str, Any]:
        """What a run's options say; `orientations_of` restores it."""
        return {"turn": self.turn, "flip": self.flip}


def read_orientations(turns: Iterable[str], flips: Iterable[str]) -> dict[str, Orientation]:
    """Read ``CAMERA=180`` and ``CAMERA=horizontal`` as the command line has them.

    Raises
    ------
    UsageError
        If one is not of that form, or a camera is turned or flipped twice.

    Examples
    --------
    >>> read_orientations(["wrist=180"], ["front=vertical"])
    {'wrist': Orientation(turn=180, flip=None), 'front': Orientation(turn=0, flip='vertical')}
    """
    degrees = _pairs("--turn", turns, [str(t) for t in TURNS])
    mirrored = _pairs("--flip", flips, FLIPS)
    return {
        camera: Orientation(int(degrees.get(camera, "0")), mirrored.get(camera))
        for camera in [*degrees, *(c for c in mirrored if c not in degrees)]
    }


def orientations_of(options: Mapping[str, Any]) -> dict[str, Orientation]:
    """Return the orientation of every camera that a run's options turn or flip."""
    return {
        str(camera): Orientation(int(said["turn"]), said["flip"])
        for camera, said in dict(options.get("orientation", {})).items()
    }


def _pairs(option: str, given: Iterable[str], allowed: Iterable[str]) -> dict[str, str]:
    known = tuple(allowed)
    found: dict[str, str] = {}
    for text in given:
        camera, _, value = text.rpartition("=")
        if not camera or value not in known:
            raise UsageError(f"{option} is CAMERA={'|'.join(known)}; got {text!r}")
        if camera in found:
            raise UsageError(f"{option} names camera {camera} twice")
        found[camera] = value
    return found
