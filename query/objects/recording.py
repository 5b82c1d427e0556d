"""What a DROID recording says of cameras and gripper: ``calibration.json`` and ``trajectory.h5``.

``calibration.json`` has per camera serial ``{"left": {"intrinsics": 3x3, "extrinsics": pose}}``; the
images are the left eye's. The extrinsics of a fixed camera are its pose in the robot's base; those
of the wrist camera its pose in the recorded gripper frame, so its pose in the base is the gripper's
times that. A camera that is not in the file is looked up in the trajectory itself
(``observation/camera_extrinsics/{serial}_left``, in the base at every step).

``observation/camera_type/{serial}`` tells the cameras apart: 0 is ``hand_camera``, all others are
``varied_camera_1``, ``varied_camera_2``, ... in ascending order of serials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, MissingExtraError
from attnstore.store.json_text import parse_json

from .masks import HAND_CAMERA
from .projection import Float, pose_matrix

CALIBRATION = "calibration.json"
TRAJECTORY = "trajectory.h5"
_POSE = "observation/robot_state/cartesian_position"
_CLOSED = "observation/robot_state/gripper_position"
_TYPES = "observation/camera_type"
_EXTRINSICS = "observation/camera_extrinsics"
_INTRINSICS = "observation/camera_intrinsics"


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One camera: how points of the robot's base get into its image."""

    serial: str
    intrinsics: Float
    """(3, 3) camera matrix, in pixels."""
    poses: Float
    """(step, 6) or (1, 6): DROID poses."""
    on_gripper: bool
    """The poses are in the recorded gripper frame, else in the robot's base."""

    def pose_at(self, step: int, gripper: Float) -> Float:
        """Matrix (4, 4) from the camera's frame to the robot's base.

        Parameters
        ----------
        gripper
            (4, 4) matrix of the recorded gripper pose at that step.
        """
        own = pose_matrix(self.poses[min(step, len(self.poses) - 1)])
        return np.asarray(gripper @ own) if self.on_gripper else own


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Gripper and cameras of one episode; made by `read_recording`."""

    episode: str
    poses: Float
    """Recorded gripper pose in the robot's base, (step, 6)."""
    closed: Float
    """Recorded gripper position, 0 open to 1 closed, (step,)."""
    views: Mapping[str, View | str]
    """By camera name; a text says why there is none."""
    digest: str
    """SHA-256 over both files."""

    def view(self, camera: str) -> View:
        """Return a camera's view.

        Raises
        ------
        EpisodeError
            If the recording does not have it, or not where it stood.
        """
        found = self.views.get(camera)
        if isinstance(found, View):
            return found
        reason = found or f"{_TYPES} has no {camera}, only {', '.join(self.views) or 'none'}"
        raise EpisodeError(self.episode, f"the gripper cannot be projected: {reason}")


def read_recording(episode: str, calibration: Path, trajectory: Path) -> Recording:
    """Read where cameras and gripper were.

    Raises
    ------
    EpisodeError
        If a file is missing or broken.
    MissingExtraError
        If h5py is not installed.
    """
    h5py = _require_h5py()
    missing = [file.name for file in (calibration, trajectory) if not file.is_file()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise EpisodeError(
            episode, f"the gripper cannot be projected: {' and '.join(missing)} {verb} missing"
        )
    try:
        text = calibration.read_bytes()
        calibrated = parse_json(text)
        if not isinstance(calibrated, dict):
            raise ValueError("not an object of camera serials")
    except ValueError as error:
        raise EpisodeError(episode, f"{calibration.name} is not readable ({error})") from None
    try:
        # No lock: read-only and network file systems refuse one, and nobody writes a recording.
        with h5py.File(trajectory, "r", locking=False) as file:
            poses = _numbers(file, _POSE, (None, 6))
            closed = _numbers(file, _CLOSED, (len(poses),))
            views = _views(file, calibrated)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError) as error:
        text_of = " ".join(str(error).split())
        raise EpisodeError(episode, f"{trajectory.name} is not readable ({text_of})") from None
    digest = hashlib.sha256(text)
    digest.update(trajectory.read_bytes())
    return Recording(episode, poses, closed, views, digest.hexdigest())


def _views(file: Any, calibrated: Mapping[str, Any]) -> dict[str, View | str]:
    types = {}
    for serial, values in dict(file.get(_TYPES, {})).items():
        types[str(serial)] = int(np.asarray(values).reshape(-1)[0])
    hand = sorted((s for s, kind in types.items() if kind == 0), key=_number)
    varied = sorted((s for s, kind in types.items() if kind != 0), key=_number)
    serials = {f"varied_camera_{i}": serial for i, serial in enumerate(varied, 1)}
    if hand:
        serials = {HAND_CAMERA: hand[0], **serials}
    return {camera: _view(file, calibrated, serial, camera) for camera, serial in serials.items()}


def _view(file: Any, calibrated: Mapping[str, Any], serial: str, camera: str) -> View | str:
    entry = calibrated.get(serial)
    recorded = f"{_INTRINSICS}/{serial}_left", f"{_EXTRINSICS}/{serial}_left"
    try:
        if isinstance(entry, dict) and "left" in entry:
            left = entry["left"]
            intrinsics = np.asarray(left["intrinsics"], np.float64).reshape(3, 3)
            poses = np.asarray(left["extrinsics"], np.float64).reshape(1, 6)
            found = View(serial, intrinsics, poses, on_gripper=camera == HAND_CAMERA)
        elif all(key in file for key in recorded):
            intrinsics = np.asarray(file[recorded[0]][0], np.float64).reshape(3, 3)
            found = View(serial, intrinsics, _numbers(file, recorded[1], (None, 6)), False)
        else:
            return f"camera {serial} ({camera}) is neither in {CALIBRATION} nor in {TRAJECTORY}"
    except (KeyError, TypeError, ValueError) as error:
        return f"camera {serial} ({camera}): {CALIBRATION} is not as expected ({error!r})"
    if not (np.isfinite(found.intrinsics).all() and np.isfinite(found.poses).all()):
        return f"camera {serial} ({camera}): its calibration holds numbers that are not finite"
    return found


def _numbers(file: Any, key: str, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    if key not in file:
        raise ValueError(f"it has no dataset {key}")
    values = np.asarray(file[key][()], np.float64)
    if values.ndim == len(shape) + 1 and values.shape[-1] == 1:
        values = values[..., 0]  # some exporters write scalars per step as (step, 1)
    fits = len(shape) == values.ndim and all(
        want in (None, have) for want, have in zip(shape, values.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{key} has shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{key} holds numbers that are not finite")
    return values


def _number(serial: str) -> tuple[int, str]:
    return (int(serial), serial) if serial.isdecimal() else (-1, serial)


def _require_h5py() -> Any:
    try:
        return import_module("h5py")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "projecting the gripper needs h5py: pip install 'attnstore[ingest]'"
        ) from error
