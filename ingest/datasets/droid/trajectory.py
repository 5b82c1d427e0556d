"""``trajectory.h5`` of a DROID episode: states, recorded actions, clock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError
from attnstore.store.json_text import json_value

from ..hdf5 import reading, rows

JOINTS = "observation/robot_state/joint_positions"
GRIPPER = "observation/robot_state/gripper_position"
ACTION = ("action/joint_velocity", "action/gripper_position")
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
    if not path.is_file():
        raise EpisodeError(
            episode,
            "trajectory.h5 is missing, and the robot state is read from it (trajectory.npz is not "
            "used); restore the file",
        )
    with reading(episode, path) as file:
        joints = rows(episode, file, JOINTS, ndim=2)
        columns = {JOINTS: joints, GRIPPER: rows(episode, file, GRIPPER, ndim=1)}
        if all(key in file for key in ACTION):
            columns[ACTION[0]] = rows(episode, file, ACTION[0], ndim=2)
            columns[ACTION[1]] = rows(episode, file, ACTION[1], ndim=1)
        if CLOCK in file:
            columns[CLOCK] = rows(episode, file, CLOCK, ndim=1)
        attributes = {str(key): json_value(value) for key, value in file.attrs.items()}
    for key, values in columns.items():
        if len(values) != len(joints):
            raise EpisodeError(
                episode,
                f"all datasets of trajectory.h5 have one row a step: {JOINTS} has {len(joints)}, "
                f"{key} has {len(values)}; export the file again",
            )
    if ACTION[0] in columns:
        actions = _float32(columns[ACTION[0]], columns[ACTION[1]])
    else:
        actions = np.empty((len(joints), 0), np.float32)
    return Trajectory(
        _float32(joints, columns[GRIPPER]), actions, _seconds(columns.get(CLOCK)), attributes
    )


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
