"""Write a rollout as an episode in the DROID layout, with masks of every camera."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.render.files.video import encode

from .calibration import SERIALS, calibration, extrinsics, intrinsics, tool_pose
from .conditions import WORLDS
from .renderer import OBJECTS
from .rollout import Rollout
from .scene import CAMERAS, HAND_CAMERA, Layout
from .simulator import RATE
from .world import HEIGHT, WIDTH, decode

DAY = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
"""Made up, as all times are: an episode's follows from its seed and its world, which have a year
each, so that a comparison within dates is one within worlds."""
YEAR = 364
SMALLEST = 0.0004
"""Objects that cover less of the picture are left out, as a detector would."""


def write_episode(
    root: Path, done: Rollout, policy: str, *, arrays: bool = True, videos: bool = False
) -> Path:
    """Write a recorded rollout below `root`; return the episode's directory.

    Parameters
    ----------
    policy
        Name of what drove the robot.
    arrays
        Write each mask as a NumPy file; else as COCO run lengths in the JSON file, which take a
        hundredth of the space.
    videos
        Write a video a camera instead of the pictures as the policy saw them: a seventh of the
        space, and a second loss.
    """
    day = done.seed // 100 + YEAR * list(WORLDS).index(done.world)
    start = DAY + timedelta(days=day, minutes=4 * (done.seed % 100))
    outcome = "success" if done.success else "failure"
    name = f"{start:%Y-%m-%d_%H-%M-%S}"
    directory = root / outcome / f"{start:%Y-%m-%d}" / name
    directory.mkdir(parents=True)
    (directory / "instruction.txt").write_text(done.layout.instruction + "\n")
    cameras = calibration(HEIGHT, WIDTH, WORLDS[done.world])
    (directory / "calibration.json").write_text(json.dumps(cameras, indent=1))
    for camera in CAMERAS:
        pictures = [moment.images[camera] for moment in done.moments]
        if videos:
            seen = (decode(picture) for picture in pictures)
            encode(directory / "recordings" / f"{camera}.mp4", seen, fps=RATE, threads=1)
            continue
        folder = directory / "recordings" / "frames" / camera
        folder.mkdir(parents=True)
        for i, picture in enumerate(pictures):
            (folder / f"{i:05d}.jpg").write_bytes(picture)
    masked = [i for i, moment in enumerate(done.moments) if moment.objects]
    for camera in CAMERAS:
        _write_masks(directory, done, camera, masked, arrays)
    (directory / "white_list.json").write_text(json.dumps(masked))
    _write_trajectory(directory / "trajectory.h5", done, policy, start)
    return directory


def categories(layout: Layout) -> tuple[str, ...]:
    """Names of the objects that have masks: ``red cube``, other cube, bowls, further cubes."""
    cubes = [f"{c} cube" for c in layout.cubes]
    return (*cubes[:2], *(f"{c} bowl" for c in layout.bowls), *cubes[2:])


def _write_masks(
    directory: Path, done: Rollout, camera: str, frames: list[int], arrays: bool
) -> None:
    wrist = camera == HAND_CAMERA
    folder = directory / "masks" if wrist else directory / "masks" / camera
    if arrays:
        folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for frame in frames:
        objects = done.moments[frame].objects[camera]
        entries = found.setdefault(str(frame), [])
        for number, category in enumerate(categories(done.layout)):
            # the gripper, which has no mask, stands before the further cubes
            pixels = objects == number + (number >= OBJECTS.index("gripper"))
            if pixels.mean() < SMALLEST:
                continue
            entry: dict[str, Any] = {"bbox": _box(pixels), "category": category, "score": 1.0}
            if arrays:
                entry["mask_file"] = f"{frame:05d}_{category.replace(' ', '_')}_0.npy"
                np.save(folder / entry["mask_file"], pixels)
            else:
                entry["segmentation"] = run_lengths(pixels)
            entries.append(entry)
    suffix = "" if wrist else f"_{camera}"
    (directory / f"dinox_info{suffix}.json").write_text(json.dumps(found))


def run_lengths(pixels: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Code a mask as COCO does: lengths of runs in column-major order, background first.

    Examples
    --------
    >>> run_lengths(np.array([[True, False], [True, True]]))
    {'size': [2, 2], 'counts': [0, 2, 1, 1]}
    """
    flat = np.concatenate([[False], pixels.ravel(order="F")])
    ends = np.flatnonzero(np.diff(flat, append=not flat[-1])) + 1
    counts = np.diff(ends, prepend=1)
    return {"size": list(pixels.shape), "counts": counts.tolist()}


def _box(pixels: NDArray[np.bool_]) -> list[int]:
    rows, cols = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1]


def _write_trajectory(path: Path, done: Rollout, policy: str, start: datetime) -> None:
    import h5py

    moments = done.moments
    joints = np.array([moment.joints for moment in moments])
    closed = np.array([moment.closed for moment in moments])
    # nothing follows the last frame: it holds still
    last = np.array([*joints[-1, 0], round(closed[-1])])
    commands = np.array([*done.commands, last])
    count = len(moments)
    seven = np.zeros((count, 4))
    clock = 1000 * start.timestamp() + np.arange(count) * 1000 / RATE
    poses = np.array([tool_pose(hand) for hand in joints[:, 0]])
    velocity = (commands[:, :3] - joints[:, 0]) * RATE
    columns: dict[str, NDArray[Any]] = {
        "observation/robot_state/cartesian_position": poses,
        "observation/robot_state/joint_positions": np.hstack([joints[:, 0], seven]),
        "observation/robot_state/joint_velocities": np.hstack([joints[:, 1], seven]),
        "observation/robot_state/joint_torques_computed": np.hstack([joints[:, 2], seven]),
        "observation/robot_state/gripper_position": closed,
        "action/cartesian_position": np.array([tool_pose(place) for place in commands[:, :3]]),
        "action/joint_position": np.hstack([commands[:, :3], seven]),
        "action/joint_velocity": np.hstack([velocity, seven]),
        "action/gripper_position": commands[:, 3],
        "observation/timestamp/control/step_start": clock.astype(np.int64),
        "simulation/cube_position": np.array([moment.cubes for moment in moments]),
        "simulation/cube_yaw": np.array([moment.yaws for moment in moments]),
        "simulation/bowl_position": np.tile(done.layout.bowl_xy, (count, 1, 1)),
    }
    for camera, serial in SERIALS.items():
        kind = 0 if camera == HAND_CAMERA else 1
        columns[f"observation/camera_type/{serial}"] = np.full(count, kind)
        matrix = intrinsics(camera, HEIGHT, WIDTH)
        columns[f"observation/camera_intrinsics/{serial}_left"] = np.tile(matrix, (count, 1, 1))
        pose = np.tile(extrinsics(camera, WORLDS[done.world]), (count, 1))
        if kind == 0:
            columns[f"observation/camera_extrinsics/{serial}_left_gripper_offset"] = pose
        else:
            columns[f"observation/camera_extrinsics/{serial}_left"] = pose
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, track_times=False)
        file.attrs["success"], file.attrs["failure"] = done.success, not done.success
        file.attrs["current_task"] = done.layout.instruction
        file.attrs["trajectory_length"] = count
        file.attrs["sim_seed"], file.attrs["sim_policy"] = done.seed, policy
        file.attrs["sim_world"] = done.world
        if done.checkpoint is not None:
            file.attrs["sim_checkpoint_digest"] = done.checkpoint
        file.attrs["sim_categories"] = json.dumps(categories(done.layout))
