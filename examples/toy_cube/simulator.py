"""Physics of the toy world: a Cartesian robot with a parallel gripper. No graphics.

Deterministic: the same layout and commands give the same states, bit for bit, on one machine.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .conditions import Conditions
from .scene import (
    BOWL_HEIGHT,
    BOWL_RADIUS,
    BOWLS,
    CUBE_HALF,
    CUBES,
    EXTRA,
    PLAIN,
    Float,
    Layout,
    mjcf,
)

RATE = 5.0
"""Commands and frames per second."""
STROKE = 0.0425
"""Way of each finger from open to closed, metres."""
FLOOR = 0.012
"""Lowest commanded z: the fingertips reach 0.015 below the tool point."""
_REST = 0.03
"""Speed in m/s below which a cube is at rest."""


@cache
def compiled(conditions: Conditions = PLAIN) -> Any:
    """Compile a world's model once in a process; `Simulator` copies it."""
    import mujoco

    return mujoco.MjModel.from_xml_string(mjcf(conditions))


class Simulator:
    """One world. `reset` before anything else.

    Attributes
    ----------
    model, data
        MuJoCo's; a renderer reads them.
    layout
        What the world was reset to.
    """

    layout: Layout

    def __init__(self, conditions: Conditions = PLAIN) -> None:
        import copy

        import mujoco

        self._mujoco = mujoco
        self.model = copy.copy(compiled(conditions))
        self.data = mujoco.MjData(self.model)
        self._substeps = round(1 / RATE / self.model.opt.timestep)
        names = [f"cube{i}" for i in range(2 + conditions.extra)]
        joint = {name: self.model.joint(name) for name in ("x", "left", *names)}
        self._axes = int(joint["x"].qposadr[0])
        self._fingers = int(joint["left"].qposadr[0])
        self._cubes = [int(joint[name].qposadr[0]) for name in names]
        self._speeds = [int(joint[name].dofadr[0]) for name in names]

    def reset(self, layout: Layout) -> None:
        """Put everything where the layout says, the gripper open."""
        self.layout = layout
        self._mujoco.mj_resetData(self.model, self.data)
        for i, cube in enumerate(layout.cubes):
            self.model.geom(f"cube{i}").rgba[:3] = {**CUBES, **EXTRA}[cube]
            self.place_cube(i, np.array([*layout.cube_xy[i], CUBE_HALF]), layout.cube_yaw[i])
        for i, bowl in enumerate(layout.bowls):
            for geom in range(self.model.ngeom):
                if self.model.geom(geom).name.startswith(f"bowl{i}"):
                    self.model.geom(geom).rgba[:3] = BOWLS[bowl]
            self.model.body(f"bowl{i}").pos[:2] = layout.bowl_xy[i]
        self.place_hand(layout.hand, 0.0)

    def place_cube(self, index: int, position: Float, yaw: float) -> None:
        """Put a cube somewhere, at rest."""
        at = self._cubes[index]
        half = yaw / 2
        self.data.qpos[at : at + 7] = [*position, np.cos(half), 0.0, 0.0, np.sin(half)]
        self.data.qvel[self._speeds[index] : self._speeds[index] + 6] = 0.0

    def place_hand(self, position: Float, closed: float) -> None:
        """Put the hand somewhere, at rest, and update what follows from positions."""
        self.data.qpos[self._axes : self._axes + 3] = position
        self.data.qpos[self._fingers : self._fingers + 2] = STROKE * closed
        self.data.ctrl[:] = [*position, STROKE * closed, STROKE * closed]
        self._mujoco.mj_forward(self.model, self.data)

    def step(self, command: Float) -> None:
        """Follow a command, (x, y, z, closed), for one period of `RATE`."""
        x, y, z, closed = (float(n) for n in command)
        fingers = STROKE * min(max(closed, 0.0), 1.0)
        start = self.data.ctrl[:3].copy()
        goal = np.array([x, y, max(z, FLOOR)])
        self.data.ctrl[3:] = fingers
        for i in range(self._substeps):
            # A ramp over three quarters of the period: a jump of the set point would toss the cube.
            share = min(1.0, (i + 1) / (0.75 * self._substeps))
            self.data.ctrl[:3] = start + share * (goal - start)
            self._mujoco.mj_step(self.model, self.data)
        # positions of bodies, cameras and geoms are those before the last integration step
        self._mujoco.mj_forward(self.model, self.data)

    @property
    def cubes(self) -> int:
        """How many cubes there are."""
        return len(self._cubes)

    @property
    def hand(self) -> Float:
        """Tool point, (3,)."""
        return np.array(self.data.qpos[self._axes : self._axes + 3])

    @property
    def closed(self) -> float:
        """Gripper position: 0 open, 1 closed."""
        fingers = self.data.qpos[self._fingers : self._fingers + 2]
        return float(np.clip(fingers.mean() / STROKE, 0.0, 1.0))

    @property
    def joints(self) -> tuple[Float, Float, Float]:
        """Position, velocity and actuator force of the three axes, (3,) each."""
        return (
            self.hand,
            np.array(self.data.qvel[self._axes : self._axes + 3]),
            np.array(self.data.actuator_force[:3]),
        )

    def cube(self, index: int) -> Float:
        """Centre of a cube, (3,)."""
        return np.array(self.data.qpos[self._cubes[index] : self._cubes[index] + 3])

    def yaw(self, index: int) -> float:
        """Rotation of a cube about z, modulo a quarter turn, radians in -pi/4..pi/4."""
        w, x, y, z = self.data.qpos[self._cubes[index] + 3 : self._cubes[index] + 7]
        angle = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)

    def in_bowl(self, cube: int, bowl: int) -> bool:
        """Whether a cube's centre is inside a bowl, below its rim."""
        offset = self.cube(cube)[:2] - self.layout.bowl_xy[bowl]
        low = self.cube(cube)[2] < BOWL_HEIGHT + CUBE_HALF
        return bool(np.hypot(*offset) < BOWL_RADIUS and low)

    @property
    def holds(self) -> bool:
        """Whether the target cube is between the fingers."""
        near = np.abs(self.cube(0) - self.hand) < (0.025, 0.02, 0.03)
        return bool(near.all() and 0.3 < self.closed < 0.75)

    @property
    def success(self) -> bool:
        """Whether the target cube rests in the target bowl, released."""
        speed = np.linalg.norm(self.data.qvel[self._speeds[0] : self._speeds[0] + 3])
        return self.in_bowl(0, 0) and self.closed < 0.3 and bool(speed < _REST)
