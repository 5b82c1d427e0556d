"""Where the cameras are and how they project, in DROID's conventions.

Poses are x, y, z and Euler angles a, b, c with rotation Rz(c) Ry(b) Rx(a); a fixed camera's is in
the robot's base frame, the wrist camera's in the tool frame. Camera axes are OpenCV's: x right, y
down, z forward.
"""

from __future__ import annotations

import numpy as np

from .conditions import Conditions
from .scene import FOVY, HAND_CAMERA, HAND_VIEW, LEFT, PLAIN, RIGHT, Float, side_axes, side_eye

SERIALS = {HAND_CAMERA: "26368109", LEFT: "14436910", RIGHT: "25455306"}
"""Made up. A reader numbers the side cameras by ascending serial."""


def intrinsics(camera: str, height: int, width: int) -> Float:
    """Return the camera matrix (3, 3) of a picture of that size, in pixels."""
    focal = height / 2 / np.tan(np.radians(FOVY[camera]) / 2)
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def extrinsics(camera: str, conditions: Conditions = PLAIN) -> Float:
    """Return the camera's pose, (6,)."""
    if camera != HAND_CAMERA:
        right, up = side_axes(camera, conditions)
        axes = np.stack([right, -up, np.cross(right, -up)], axis=1)
        return _pose(side_eye(camera, conditions), axes)
    place, tilt = HAND_VIEW
    right = np.array([0.0, 1.0, 0.0])
    forward = np.array([-np.sin(tilt), 0.0, np.cos(tilt)])
    return _pose(np.array(place), np.stack([right, np.cross(forward, right), forward], axis=1))


def tool_pose(hand: Float) -> Float:
    """Return the tool frame's pose in the base, (6,): it points straight down."""
    return np.array([*hand, np.pi, 0.0, 0.0])


def calibration(
    height: int, width: int, conditions: Conditions = PLAIN
) -> dict[str, dict[str, dict[str, object]]]:
    """Return the content of ``calibration.json`` for pictures of that size."""
    return {
        serial: {
            "left": {
                "intrinsics": intrinsics(camera, height, width).tolist(),
                "extrinsics": extrinsics(camera, conditions).tolist(),
            }
        }
        for camera, serial in SERIALS.items()
    }


def _pose(place: Float, rotation: Float) -> Float:
    # away from b = +-pi/2, where a and c are not unique
    a = np.arctan2(rotation[2, 1], rotation[2, 2])
    b = -np.arcsin(rotation[2, 0])
    c = np.arctan2(rotation[1, 0], rotation[0, 0])
    return np.array([*place, a, b, c])
