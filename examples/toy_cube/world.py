"""The simulated robot as a policy meets it: pictures and states out, commands in.

`World` belongs into a process without torch: Mesa and Triton bring an LLVM each, and the second one
to be loaded crashes. `remote_world` starts such a process.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .conditions import Conditions
from .expert import chunk, observe
from .scene import CAMERAS, PLAIN, Float, Layout
from .simulator import Simulator

if TYPE_CHECKING:
    from .renderer import Renderer

HEIGHT, WIDTH, QUALITY = 360, 480, 85
"""Size of the recorded pictures in pixels, and their JPEG quality."""


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """One frame: what is seen and felt, and what is commanded next."""

    images: dict[str, bytes]
    """JPEG by camera."""
    objects: dict[str, NDArray[np.int8]]
    """By camera: which of `renderer.OBJECTS` each pixel shows, -1 for none; empty unless asked."""
    joints: Float
    """Position, velocity and force of the three axes, (3, 3)."""
    closed: float
    cubes: Float
    """Centres of the cubes, the target's first, (cube, 3)."""
    yaws: Float
    """Rotations of the cubes about z, (cube,)."""
    success: bool

    @property
    def state(self) -> NDArray[np.float32]:
        """Robot state in DROID's form: seven joints and the gripper, (8,)."""
        return np.array([*self.joints[0], 0, 0, 0, 0, self.closed], np.float32)


class World:
    """One world with cameras. `reset` before anything else."""

    def __init__(self, conditions: Conditions = PLAIN) -> None:
        self._simulator = Simulator(conditions)

    @cached_property
    def _renderer(self) -> Renderer:
        # only when it is needed: a machine without OpenGL can still do without pictures
        from .renderer import Renderer

        return Renderer(self._simulator, HEIGHT, WIDTH)

    def reset(self, layout: Layout) -> None:
        """Start an episode."""
        self._simulator.reset(layout)

    def look(self, cameras: Sequence[str] = CAMERAS, objects: bool = False) -> Moment:
        """Return what is there now.

        Parameters
        ----------
        cameras
            Cameras to take pictures with.
        objects
            Whether to say which object each pixel shows.
        """
        simulator = self._simulator
        return Moment(
            {camera: _jpeg(self._renderer.rgb(camera)) for camera in cameras},
            {camera: self._renderer.objects(camera) for camera in cameras} if objects else {},
            np.array(simulator.joints),
            simulator.closed,
            np.array([simulator.cube(i) for i in range(simulator.cubes)]),
            np.array([simulator.yaw(i) for i in range(simulator.cubes)]),
            simulator.success,
        )

    def follow(self, command: Float) -> None:
        """Carry out one command, (x, y, z, closed)."""
        self._simulator.step(command)

    def expert(self) -> Float:
        """Return the chunk that the expert would command now, (chunk, 4)."""
        return chunk(observe(self._simulator))


class RemoteWorld:
    """A `World` at the other end of a pipe; made by `remote_world`."""

    def __init__(self, pipe: Connection, process: BaseProcess) -> None:
        self._pipe, self._process = pipe, process

    def reset(self, layout: Layout) -> None:
        """See `World.reset`."""
        self._call("reset", layout)

    def look(self, cameras: Sequence[str] = CAMERAS, objects: bool = False) -> Moment:
        """See `World.look`."""
        seen: Moment = self._call("look", cameras, objects)
        return seen

    def follow(self, command: Float) -> None:
        """See `World.follow`."""
        self._call("follow", command)

    def expert(self) -> Float:
        """See `World.expert`."""
        return np.asarray(self._call("expert"))

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((method, arguments))
            result, failure = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise RuntimeError(
                f"the simulator's process ended by itself, with exit code {self._process.exitcode}"
            ) from None
        if failure is not None:
            raise RuntimeError(f"the simulator's process failed:\n{failure}")
        return result


@contextmanager
def remote_world(conditions: Conditions = PLAIN) -> Iterator[RemoteWorld]:
    """A `World` in a process of its own, for as long as the ``with`` lasts."""
    context = get_context("spawn")  # a fork would inherit torch
    mine, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, conditions), daemon=True)
    process.start()
    its.close()  # while this process has its end too, nobody is told that the other one died
    try:
        yield RemoteWorld(mine, process)
    finally:
        with suppress(OSError):
            mine.send(None)
        process.join()


def _serve(pipe: Connection, conditions: Conditions) -> None:
    from .renderer import choose_backend

    choose_backend()
    world = World(conditions)
    while (call := pipe.recv()) is not None:
        method, arguments = call
        try:
            pipe.send((getattr(world, method)(*arguments), None))
        except Exception:
            # as text: an OpenGL error holds pointers, which cannot be sent
            pipe.send((None, traceback.format_exc()))


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise RuntimeError("OpenCV cannot encode a JPEG")
    return data.tobytes()


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG to RGB, (height, width, 3)."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{len(data)} bytes are no picture")
    return np.ascontiguousarray(image[..., ::-1], np.uint8)
