"""The toy world: where things may be, and its MJCF.

Lengths are metres in the robot's base frame: x away from the robot, y to its left, z up, the table
top at z = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .conditions import Conditions

Float = NDArray[np.float64]

CUBES: Mapping[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.08),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.22, 0.90),
}
EXTRA: Mapping[str, tuple[float, float, float]] = {
    "orange": (0.95, 0.50, 0.05),
    "cyan": (0.10, 0.75, 0.80),
}
"""Colours that cubes have in other worlds only; the policy never saw them."""
BOWLS: Mapping[str, tuple[float, float, float]] = {
    "pink": (0.98, 0.50, 0.72),
    "purple": (0.42, 0.16, 0.55),
}
CUBE_HALF = 0.022
BOWL_RADIUS = 0.06
BOWL_HEIGHT = 0.035
LOW = np.array([0.36, -0.17])
"""Lowest x and y of a cube's or bowl's centre."""
HIGH = np.array([0.62, 0.17])
CENTRE = (LOW + HIGH) / 2
YAW = 0.2
"""Largest rotation of a cube about z, radians."""
APART = {"cube cube": 0.105, "cube bowl": 0.125, "bowl bowl": 0.145}
"""Least distance between centres: the open fingers reach 0.057 to both sides."""

HAND_CAMERA, LEFT, RIGHT = "hand_camera", "varied_camera_1", "varied_camera_2"
CAMERAS = (HAND_CAMERA, LEFT, RIGHT)
FOVY = {HAND_CAMERA: 58.0, LEFT: 27.0, RIGHT: 27.0}
"""Vertical field of view, degrees."""
HAND_VIEW = ((0.085, 0.0, -0.125), 0.22)
"""Wrist camera: place in the tool frame, tilt towards the fingertips in radians."""
EYES = {LEFT: (1.13, 0.50, 0.62), RIGHT: (1.13, -0.50, 0.62)}
GAZE = (0.475, 0.0, 0.035)
"""Point at which both side cameras look."""
PLAIN = Conditions()


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies where at the start, and what is asked for."""

    cubes: tuple[str, ...]
    """Colours of the cubes, two or more; the first is the target."""
    cube_xy: Float
    """(cube, 2)."""
    cube_yaw: Float
    """(cube,), radians."""
    bowls: tuple[str, str]
    """Colours of the two bowls; the first is the target."""
    bowl_xy: Float
    """(2, 2)."""
    hand: Float
    """Tool point at the start, (3,)."""

    @property
    def instruction(self) -> str:
        """``place the red cube into the pink bowl``."""
        return f"place the {self.cubes[0]} cube into the {self.bowls[0]} bowl"


def sample_layout(random: np.random.Generator, conditions: Conditions = PLAIN) -> Layout:
    """Draw a layout: colours, places at least `APART`, and a start above the middle.

    The same generator gives the same start and colours in every world, and the same places in every
    world of the same reach; further cubes lie wherever there is room left.
    """
    cubes = random.permutation(list(CUBES))[:2]
    bowls = random.permutation(list(BOWLS))
    kinds = ("cube", "cube", "bowl", "bowl")
    places: list[Float] = []
    while len(places) < len(kinds):
        places = []
        for kind in kinds:
            xy = random.uniform(LOW - conditions.reach, HIGH + conditions.reach)
            if not _room(xy, kind, kinds, places):
                break  # start again: a crowded beginning may have no room left
            places.append(xy)
    hand = np.array([*(CENTRE + random.uniform(-0.05, 0.05, 2)), random.uniform(0.22, 0.27)])
    yaws = random.uniform(-YAW, YAW, 2)
    further = _further_places(random, conditions, kinds, places)
    colours = [str(cube) for cube in cubes]
    unseen = [colour for colour in (*CUBES, *EXTRA) if colour not in colours]
    return Layout(
        (*colours, *unseen[: conditions.extra]),
        np.array([*places[:2], *further]),
        np.array([*yaws, *(0.0 for _ in further)]),
        (str(bowls[0]), str(bowls[1])),
        np.array(places[2:]),
        hand,
    )


def _further_places(
    random: np.random.Generator, conditions: Conditions, kinds: tuple[str, ...], known: list[Float]
) -> list[Float]:
    found: list[Float] = []
    while len(found) < conditions.extra:
        xy = random.uniform(LOW - conditions.reach, HIGH + conditions.reach)
        if _room(xy, "cube", (*kinds, *("cube" for _ in found)), [*known, *found]):
            found.append(xy)
    return found


def _room(xy: Float, kind: str, kinds: tuple[str, ...], places: list[Float]) -> bool:
    return not any(
        np.hypot(*(xy - other)) < APART[" ".join(sorted((kind, known), reverse=True))]
        for known, other in zip(kinds, places, strict=False)
    )


def side_eye(camera: str, conditions: Conditions = PLAIN) -> Float:
    """Place of a side camera."""
    mirror = 1.0 if camera == LEFT else -1.0
    return np.add(EYES[camera], np.multiply(conditions.eye, (1.0, mirror, 1.0)))


def side_axes(camera: str, conditions: Conditions = PLAIN) -> tuple[Float, Float]:
    """Image axes right and up of a side camera in the base frame."""
    forward = np.add(GAZE, conditions.gaze) - side_eye(camera, conditions)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return right, np.cross(right, forward)


def mjcf(conditions: Conditions = PLAIN) -> str:
    """Return a world's MJCF; objects' colours and bowls' places are edited in the compiled model."""
    sides = "".join(_side_camera(camera, conditions) for camera in (LEFT, RIGHT))
    ambient, diffuse, lamp = (_grey(n * conditions.light) for n in (0.42, 0.30, 0.35))
    table = " ".join(f"{n:.2f}" for n in conditions.table)
    return f"""
<mujoco model="toy cube">
  <option timestep="0.004" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="640" offheight="480"/><quality shadowsize="0" offsamples="0"/>
    <headlight ambient="{ambient}" diffuse="{diffuse}" specular="0 0 0"/>
    <map znear="0.005"/>
  </visual>
  <asset><material name="plain" specular="0" shininess="0"/></asset>
  <default>
    <geom friction="1 0.02 0.001" solref="0.008 1" material="plain"/>
    <default class="hand"><geom mass="0.1" rgba="0.22 0.23 0.26 1" friction="2 0.05 0.002"/></default>
  </default>
  <worldbody>
    <light pos="0.3 0.4 1.6" dir="0.1 -0.25 -1" directional="true" diffuse="{lamp}"
      specular="0 0 0" castshadow="false"/>
    <geom name="floor" type="plane" size="4 4 0.1" pos="0 0 -0.5" rgba="0.55 0.57 0.60 1"
      contype="0" conaffinity="0"/>
    <geom name="table" type="box" size="0.36 0.5 0.02" pos="0.5 0 -0.02" rgba="{table} 1"/>
    {sides}
    {_hand()}
    {"".join(_cube(i) for i in range(2 + conditions.extra))}
    {"".join(_bowl(i) for i in range(2))}
  </worldbody>
  <actuator>
    {"".join(f'<position joint="{a}" kp="1200" dampratio="1"/>' for a in "xyz")}
    <position joint="left" kp="400" dampratio="1" forcerange="-12 12"/>
    <position joint="right" kp="400" dampratio="1" forcerange="-12 12"/>
  </actuator>
</mujoco>"""


def _grey(value: float) -> str:
    return " ".join([f"{value:.2f}"] * 3)


def _side_camera(name: str, conditions: Conditions) -> str:
    right, up = side_axes(name, conditions)
    axes = " ".join(f"{n:.9g}" for n in (*right, *up))
    eye = " ".join(f"{n:.9g}" for n in side_eye(name, conditions))
    return f'<camera name="{name}" pos="{eye}" xyaxes="{axes}" fovy="{FOVY[name]}"/>'


def _hand() -> str:
    # The tool frame (z down, the fingers close along y) is the base frame turned by pi about x.
    # Sizes are those of attnstore's gripper proxy: attnstore.query.objects.gripper.GripperShape.
    (x, _, z), tilt = HAND_VIEW
    down, along = np.cos(tilt), np.sin(tilt)
    axes = f"0 -1 0 {down:.9g} 0 {-along:.9g}"
    fingers = "".join(
        f"""<body name="{name}" pos="0 {sign * 0.0495} 0.0275">
          <joint name="{name}" type="slide" axis="0 {-sign} 0" range="0 0.0425" damping="5"/>
          <geom class="hand" name="{name}" type="box" size="0.012 0.007 0.0425" condim="4"
            rgba="0.30 0.31 0.34 1"/></body>"""
        for name, sign in (("left", 1), ("right", -1))
    )
    return f"""
    <body name="hand" gravcomp="1">
      <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/>
      <joint name="z" type="slide" axis="0 0 1"/>
      <geom class="hand" name="palm" type="box" size="0.026 0.056 0.0275" pos="0 0 0.0975"/>
      <geom class="hand" name="arm" type="cylinder" size="0.03 0.2" pos="0 0 0.325"
        contype="0" conaffinity="0"/>
      <camera name="{HAND_CAMERA}" pos="{x} 0 {-z}" xyaxes="{axes}" fovy="{FOVY[HAND_CAMERA]}"/>
      {fingers}
    </body>"""


def _cube(index: int) -> str:
    return f"""
    <body name="cube{index}" pos="0.5 {index} {CUBE_HALF}"><freejoint name="cube{index}"/>
      <geom name="cube{index}" type="box" size="{CUBE_HALF} {CUBE_HALF} {CUBE_HALF}" mass="0.05"
        condim="4" friction="1.5 0.02 0.001"/></body>"""


def _bowl(index: int, sides: int = 14) -> str:
    # A disc and a ring of slanted boards; its radius is that of the outer rim.
    slant, half = 0.35, BOWL_HEIGHT / 2
    middle = BOWL_RADIUS - half * np.tan(slant) - 0.003
    boards = "".join(
        f"""<geom name="bowl{index}_{i}" type="box"
          size="0.003 {1.15 * middle * np.tan(np.pi / sides):.5f} {half / np.cos(slant):.5f}"
          pos="{middle * np.cos(a):.5f} {middle * np.sin(a):.5f} {half:.5f}"
          xyaxes="{_board_axes(a, slant)}"/>"""
        for i, a in enumerate(np.arange(sides) * 2 * np.pi / sides)
    )
    floor = middle - half * np.tan(slant) + 0.003
    return f"""
    <body name="bowl{index}" pos="0.5 {index + 3} 0">
      <geom name="bowl{index}" type="cylinder" size="{floor:.5f} 0.003" pos="0 0 0.003"/>
      {boards}</body>"""


def _board_axes(angle: float, slant: float) -> str:
    out = np.array([np.cos(angle), np.sin(angle), 0.0])
    along = np.array([-np.sin(angle), np.cos(angle), 0.0])
    normal = np.cos(slant) * out - np.sin(slant) * np.array([0.0, 0.0, 1.0])
    return " ".join(f"{n:.6f}" for n in (*normal, *along))
