"""``trajectory.h5`` of a DROID episode: states, recorded actions, clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError
from attnstore.store.json_text import json_value

from ...optional import require
from ..base import copy_again

JOINTS = "observation/robot_state/joint_positions"
GRIPPER = "observation/robot_state/gripper_position"
ACTION = ("action/joint_velocity", "action/gripper_position")
LARGEST = 1 << 28
"""Numbers of a dataset that is read at all: days at 1000 steps a second."""
CLOCK = "observation/timestamp/control/step_start"


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """What is read of a trajectory; one row a step."""

    states: NDArray[np.float32]
    """Joint positions, then the gripper's position, (step, state_dof)."""
    actions: NDArray[np.float32]
    """Joint velocities, then the gripper's position: the action space of Pi0-DROID, (step,
    action_dof); no columns if they were not recorded. NaN as recorded: no policy reads them."""
    timestamps: NDArray[np.float64] | None
    """Seconds since the first step; None without a clock that goes forward."""
    attributes: dict[str, Any]
    """The file's root attributes as JSON values."""

    def __len__(self) -> int:
        return len(self.states)

    @property
    def rate(self) -> float | None:
        """Steps per second: one over the median step, which a pause does not move."""
        if self.timestamps is None or len(self) < 2:
            return None
        return float(1.0 / np.median(np.diff(self.timestamps)))

    def check_finite(self, episode: str, frames: int) -> None:
        """Check the states of the frames in use.

        Raises
        ------
        EpisodeError
            If one is NaN or infinite.
        """
        bad = np.argwhere(~np.isfinite(self.states[:frames]))
        if len(bad):
            step, column = bad[0].tolist()
            joints = self.states.shape[1] - 1
            where = f"{JOINTS}[{step}, {column}]" if column < joints else f"{GRIPPER}[{step}]"
            raise EpisodeError(
                episode,
                f"states are finite numbers: {where} in trajectory.h5 is "
                f"{self.states[step, column]}; repair the file or leave the episode out",
            )


def read_trajectory(episode: str, path: Path) -> Trajectory:
    """Read a ``trajectory.h5``.

    Raises
    ------
    EpisodeError
        If it is missing, not readable as HDF5, lacks the state, or its rows don't agree.
    MissingExtraError
        If h5py is not installed.
    """
    h5py = require("h5py", "ingest", "reading trajectory.h5")
    if not path.is_file():
        raise EpisodeError(
            episode,
            "trajectory.h5 is missing, and the robot state is read from it (trajectory.npz is not "
            "used); restore the file",
        )
    try:
        # no lock: read-only and network file systems refuse one, and nobody writes a recording
        with h5py.File(path, "r", locking=False) as file:
            joints = _rows(episode, file, JOINTS, ndim=2)
            columns = {JOINTS: joints, GRIPPER: _rows(episode, file, GRIPPER, ndim=1)}
            if all(key in file for key in ACTION):
                columns[ACTION[0]] = _rows(episode, file, ACTION[0], ndim=2)
                columns[ACTION[1]] = _rows(episode, file, ACTION[1], ndim=1)
            if CLOCK in file:
                columns[CLOCK] = _rows(episode, file, CLOCK, ndim=1)
            attributes = {str(key): json_value(value) for key, value in file.attrs.items()}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).replace(str(path), path.name).split())[:200]
        raise EpisodeError(
            episode,
            f"trajectory.h5 ({path.stat().st_size} bytes) is not readable as HDF5: {reason}; "
            f"{copy_again(path)}",
        ) from error
    for key, values in columns.items():
        if len(values) != len(joints):
            raise EpisodeError(
                episode,
                f"all datasets of trajectory.h5 have one row a step: {JOINTS} has {len(joints)}, "
                f"{key} has {len(values)}; export the trajectory again",
            )
    if ACTION[0] in columns:
        actions = _float32(columns[ACTION[0]], columns[ACTION[1]])
    else:
        actions = np.empty((len(joints), 0), np.float32)
    return Trajectory(
        _float32(joints, columns[GRIPPER]), actions, _seconds(columns.get(CLOCK)), attributes
    )


def _rows(episode: str, file: Any, key: str, ndim: int) -> NDArray[Any]:
    # DROID writes scalars per step as (step,); some exporters write (step, 1)
    dataset = file.get(key)
    if not hasattr(dataset, "shape"):
        raise EpisodeError(
            episode,
            f"trajectory.h5 has no dataset {key}; export the trajectory again with DROID's keys",
        )
    shape = tuple(dataset.shape or ())
    if math.prod(shape) > LARGEST:
        raise EpisodeError(
            episode,
            f"{key} in trajectory.h5 has shape {shape}, more than any recording; copy the file "
            "again",
        )
    values = np.asarray(dataset[()])
    if ndim == 1 and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != ndim or values.dtype.kind not in "fiub":
        expected = "(step,)" if ndim == 1 else "(step, joint)"
        raise EpisodeError(
            episode,
            f"{key} in trajectory.h5 must hold numbers of shape {expected}; it has shape {shape} "
            f"and type {values.dtype}; export the trajectory again",
        )
    return values


def _float32(joints: NDArray[Any], gripper: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # becomes infinite, which check_finite reports
        return np.concatenate([joints, gripper[:, None]], axis=1).astype(np.float32)


def _seconds(milliseconds: NDArray[Any] | None) -> NDArray[np.float64] | None:
    if milliseconds is None or not len(milliseconds):
        return None
    if milliseconds.dtype.kind in "ub":  # the difference to a later one would wrap around
        milliseconds = milliseconds.astype(np.int64)
    # subtract first: milliseconds since 1970 lose their fractions in smaller floats
    with np.errstate(invalid="ignore"):  # of infinite ones, which are no clock
        seconds = (milliseconds - milliseconds[0]).astype(np.float64) / 1000.0
    forward = np.isfinite(seconds).all() and (np.diff(seconds) > 0).all()
    return seconds if forward else None
