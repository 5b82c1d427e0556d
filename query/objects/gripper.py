"""The gripper as a mask, from the recorded pose and the calibrated cameras; no detector needed.

The mask is a *proxy*: two boxes for the fingers and one for the palm, sized like the Robotiq 2F-85
that DROID uses, drawn where the recorded pose says. It knows nothing of occlusion (what the fingers
hold, an arm in front of the camera), of the arm above the palm, or of errors of the calibration.

The tool frame has its origin between the fingertips, z along the fingers away from the wrist, and y
across the opening. ``cartesian_position`` is taken as that frame. DROID's own robots record the
wrist instead (droid-dataset/droid issue 2): there ``tool_offset`` is the distance from the recorded
pose to the fingertips along z, about 0.15 m. Draw the masks and look before you trust the numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError

from .masks import ObjectMask, Size
from .projection import Float, box_edges, draw_convex, pose_matrix, project_edges
from .recording import CALIBRATION, TRAJECTORY, Recording, read_recording

GRIPPER = "gripper"


@dataclass(frozen=True, slots=True)
class GripperShape:
    """Boxes that stand for a parallel gripper, in metres."""

    opening: float = 0.085
    """Distance between the fingers when open."""
    finger_length: float = 0.085
    finger_width: float = 0.024
    """Across the direction of opening."""
    finger_thickness: float = 0.014
    """Along the direction of opening."""
    tip: float = 0.015
    """How far the fingers reach beyond the tool frame's origin."""
    palm_length: float = 0.055
    palm_width: float = 0.052
    """Across the direction of opening."""
    palm_breadth: float = 0.112
    """Along the direction of opening."""

    def boxes(self, closed: float) -> list[tuple[Float, Float]]:
        """Corners of left finger, right finger and palm in the tool frame.

        Parameters
        ----------
        closed
            Recorded gripper position: 0 is open, 1 closed.

        Returns
        -------
        Per box (lowest, highest) corner, (3,) each, in metres.
        """
        gap = self.opening / 2 * (1.0 - min(max(closed, 0.0), 1.0))
        half = self.finger_width / 2
        back = self.tip - self.finger_length
        found = []
        for low, high in ((-gap - self.finger_thickness, -gap), (gap, gap + self.finger_thickness)):
            found.append((np.array([-half, low, back]), np.array([half, high, self.tip])))
        x, y = self.palm_width / 2, self.palm_breadth / 2
        found.append((np.array([-x, -y, back - self.palm_length]), np.array([x, y, back])))
        return found


class GripperMasks:
    """The gripper's mask at every step of a trajectory; made by `open_gripper_masks`."""

    def __init__(
        self, recording: Recording, camera: str, shape: GripperShape, tool_offset: float
    ) -> None:
        self._recording, self._shape, self._tool_offset = recording, shape, tool_offset
        self._view = recording.view(camera)
        self._camera = camera

    @property
    def frames(self) -> Sequence[int]:
        """Every step of the trajectory."""
        return range(len(self._recording.poses))

    def read(self, frame: int, size: Size) -> list[ObjectMask]:
        """Draw the gripper's mask at a frame; none if it is out of view.

        Raises
        ------
        EpisodeError
            If the intrinsics are not those of an image of this size.
        """
        self._check_size(size)
        pose = pose_matrix(self._recording.poses[frame])
        tool = pose.copy()
        tool[:3, 3] += pose[:3, 2] * self._tool_offset
        camera_from_tool = np.linalg.inv(self._view.pose_at(frame, pose)) @ tool
        pixels = np.zeros(size, np.bool_)
        for low, high in self._shape.boxes(float(self._recording.closed[frame])):
            points = project_edges(box_edges(low, high), camera_from_tool, self._view.intrinsics)
            draw_convex(pixels, points)
        return [ObjectMask(GRIPPER, pixels)] if pixels.any() else []

    def digest(self) -> str:
        """SHA-256 over calibration, trajectory and shape."""
        known = {**asdict(self._shape), "tool_offset": self._tool_offset, "camera": self._camera}
        text = json.dumps([self._recording.digest, known], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _check_size(self, size: Size) -> None:
        centre: NDArray[np.float64] = 2 * self._view.intrinsics[[1, 0], 2]
        if (np.abs(centre - size) > 0.25 * np.asarray(size)).any():
            raise EpisodeError(
                self._recording.episode,
                f"the intrinsics of {self._camera} ({self._view.serial}) are of an image of about "
                f"{centre[1]:.0f}x{centre[0]:.0f} pixels, the stored image is {size[1]}x{size[0]}; "
                f"give {CALIBRATION} those of the stored image",
            )


def open_gripper_masks(
    episode: str,
    directory: Path,
    camera: str,
    *,
    shape: GripperShape | None = None,
    tool_offset: float = 0.0,
) -> GripperMasks:
    """Open the projected gripper of one camera of an episode.

    Parameters
    ----------
    episode
        The episode's name, for messages.
    directory
        The episode's own directory, with ``calibration.json`` and ``trajectory.h5``.
    camera
        ``hand_camera``, ``varied_camera_1`` or ``varied_camera_2``.
    tool_offset
        Distance from the recorded pose to the point between the fingertips along its z, in metres.

    Raises
    ------
    EpisodeError
        If a file is missing or broken, or does not have this camera.
    MissingExtraError
        If h5py is not installed.
    """
    recording = read_recording(episode, directory / CALIBRATION, directory / TRAJECTORY)
    return GripperMasks(recording, camera, shape or GripperShape(), tool_offset)
