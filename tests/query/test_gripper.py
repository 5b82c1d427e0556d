"""The projected gripper: poses, projection, outlines, cameras of a recording, and the sample."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from droid_sample import sample_path
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.query.objects.gripper import (
    GRIPPER,
    GripperShape,
    open_gripper_masks,
)
from attnstore.query.objects.projection import (
    NEAR,
    box_edges,
    convex_outline,
    draw_convex,
    pose_matrix,
    project_edges,
)
from attnstore.query.objects.recording import read_recording
from attnstore.store.errors import EpisodeError, MissingExtraError

INTRINSICS = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
SIZE = (80, 100)
LOOKING_DOWN = [np.pi, 0, 0]
SAMPLE = "failure/2025-12-10/2025-12-10_09-07-36"


def write(
    root: Path,
    *,
    calibration: Any = None,
    steps: int = 3,
    types: dict[str, int] | None = None,
    change: Callable[[Any], None] = lambda file: None,
) -> Path:
    """A gripper that points down and moves along x; a wrist camera 0.3 m above its fingertips.

    Cameras 9 and 10 look at the gripper from above, 10 from 0.1 m further along x.
    """
    if calibration is None:
        calibration = {
            # The gripper's z points down, and so does the camera's: 0.3 m behind it.
            "7": camera([0, 0, -0.3, 0, 0, 0]),
            "9": camera([0, 0, 0.5, *LOOKING_DOWN]),
            "10": camera([0.1, 0, 0.5, *LOOKING_DOWN]),
        }
    (root / "calibration.json").write_text(json.dumps(calibration))
    with h5py.File(root / "trajectory.h5", "w") as file:
        poses = np.zeros((steps, 6))
        poses[:, 0] = 0.05 * np.arange(steps)
        poses[:, 3:] = LOOKING_DOWN
        file["observation/robot_state/cartesian_position"] = poses
        file["observation/robot_state/gripper_position"] = np.linspace(0, 1, steps)
        for serial, kind in (types or {"10": 1, "7": 0, "9": 1}).items():
            file[f"observation/camera_type/{serial}"] = np.full(steps, kind)
        change(file)
    return root


def camera(pose: list[float]) -> dict[str, Any]:
    return {"left": {"intrinsics": INTRINSICS.tolist(), "extrinsics": pose}}


def test_euler_angles_turn_about_fixed_axes_in_the_order_x_y_z() -> None:
    angles = [0.3, -0.7, 1.9]
    expected = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        expected = turn @ expected
    found = pose_matrix([1, 2, 3, *angles])
    np.testing.assert_allclose(found[:3, :3], expected, atol=1e-12)
    assert found[:, 3].tolist() == [1, 2, 3, 1]


def test_a_box_has_twelve_edges() -> None:
    edges = box_edges(np.array([0.0, 0, 0]), np.array([1.0, 2, 3]))
    lengths = np.abs(edges[:, 0] - edges[:, 1]).sum(-1)
    assert sorted(lengths.tolist()) == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert len(np.unique(edges.reshape(-1, 3), axis=0)) == 8


def test_projection_by_hand() -> None:
    edges = np.array([[[0.1, 0.2, 1.0], [0.0, 0.0, 2.0]]])
    assert project_edges(edges, np.eye(4), INTRINSICS).tolist() == [[60.0, 60.0], [50.0, 40.0]]


def test_edges_are_cut_at_the_near_plane() -> None:
    behind = np.array([[[0.0, 0.0, -1.0], [0.0, 0.1, -2.0]]])
    assert project_edges(behind, np.eye(4), INTRINSICS).shape == (0, 2)
    through = np.array([[[0.2, 0.0, -1.0], [0.2, 0.0, 1.0]]])
    (cut, end) = project_edges(through, np.eye(4), INTRINSICS)
    np.testing.assert_allclose(end, [70, 40])
    np.testing.assert_allclose(cut, [50 + 100 * 0.2 / NEAR, 40])


def inside_hull(points: NDArray[np.float64], at: tuple[float, float]) -> bool:
    """A point is in the hull if no line through two of the points has all on its other side."""
    for a, b in product(points, repeat=2):
        side = (b[0] - a[0]) * (points[:, 1] - a[1]) - (b[1] - a[1]) * (points[:, 0] - a[0])
        own = (b[0] - a[0]) * (at[1] - a[1]) - (b[1] - a[1]) * (at[0] - a[0])
        if (side >= 0).all() and own < 0:
            return False
    return True


@given(arrays(np.float64, st.tuples(st.integers(0, 9), st.just(2)), elements=st.integers(-3, 12)))
def test_drawn_pixels_are_those_whose_centres_are_in_the_hull(points: NDArray[np.float64]) -> None:
    pixels = np.zeros((8, 9), bool)
    draw_convex(pixels, points)
    if len(convex_outline(points)) < 3:
        assert not pixels.any()
        return
    for y, x in np.ndindex(8, 9):
        assert pixels[y, x] == inside_hull(points, (x + 0.5, y + 0.5)), (y, x)


def test_fingers_close_on_the_tool_frame() -> None:
    shape = GripperShape(opening=0.08, finger_thickness=0.01)
    for closed, gap in ((0.0, 0.04), (0.5, 0.02), (1.0, 0.0), (7.0, 0.0)):
        (low, high), (low2, high2), (palm_low, palm_high) = shape.boxes(closed)
        np.testing.assert_allclose([low[1], high[1]], [-gap - 0.01, -gap])
        np.testing.assert_allclose([low2[1], high2[1]], [gap, gap + 0.01])
        assert high[2] == high2[2] == shape.tip
        assert palm_high[2] == low[2] > palm_low[2]


def centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    y, x = np.nonzero(mask)
    return np.array([x.mean() + 0.5, y.mean() + 0.5])


def test_fixed_cameras_see_the_gripper_move(tmp_path: Path) -> None:
    # From above, image x is the base's x and image y its -y.
    masks = open_gripper_masks("e", write(tmp_path), "varied_camera_1")
    assert list(masks.frames) == [0, 1, 2]
    places = [centre(masks.read(frame, SIZE)[0].pixels) for frame in (0, 1)]
    np.testing.assert_allclose(places[0], [50, 40], atol=0.5)
    # The palm's upper face, 0.5 - 0.125 m away, has the largest outline.
    assert places[1][0] - places[0][0] == pytest.approx(100 * 0.05 / 0.375, abs=1.0)
    assert places[1][1] - places[0][1] == pytest.approx(0, abs=0.5)


def test_cameras_are_told_apart_by_type_and_order_of_serials(tmp_path: Path) -> None:
    recording = read_recording("e", *files(write(tmp_path)))
    found = {
        name: view.serial for name, view in recording.views.items() if not isinstance(view, str)
    }
    assert found == {"hand_camera": "7", "varied_camera_1": "9", "varied_camera_2": "10"}
    one, other = (
        centre(open_gripper_masks("e", tmp_path, c).read(2, SIZE)[0].pixels)
        for c in ("varied_camera_1", "varied_camera_2")
    )
    assert one[0] > 50
    np.testing.assert_allclose(other, [50, 40], atol=0.5)  # 10 is right above it


def files(root: Path) -> tuple[Path, Path]:
    return root / "calibration.json", root / "trajectory.h5"


def test_the_wrist_camera_moves_with_the_gripper(tmp_path: Path) -> None:
    masks = open_gripper_masks("e", write(tmp_path, steps=5), "hand_camera")
    opened, closed = masks.read(0, SIZE)[0], masks.read(4, SIZE)[0]
    assert opened.category == GRIPPER
    for each in (opened, closed):
        np.testing.assert_allclose(centre(each.pixels), [50, 40], atol=0.5)
    fixed = open_gripper_masks("e", tmp_path, "varied_camera_1")
    assert centre(fixed.read(4, SIZE)[0].pixels)[0] > 80


def test_the_tool_offset_moves_it_along_its_own_z(tmp_path: Path) -> None:
    near = open_gripper_masks("e", write(tmp_path), "varied_camera_1")
    far = open_gripper_masks("e", tmp_path, "varied_camera_1", tool_offset=0.3)
    areas = [m.read(0, SIZE)[0].pixels.sum() for m in (near, far)]
    assert areas[1] / areas[0] == pytest.approx((0.375 / 0.675) ** 2, rel=0.1)
    assert near.digest() != far.digest()


def test_out_of_view_there_is_no_mask(tmp_path: Path) -> None:
    up = {"9": camera([0, 0, 0.5, 0, 0, 0]), "10": camera([9, 0, 0.5, *LOOKING_DOWN])}
    write(tmp_path, calibration=up)
    for name in ("varied_camera_1", "varied_camera_2"):
        assert open_gripper_masks("e", tmp_path, name).read(0, SIZE) == []


def test_a_camera_that_is_not_calibrated_is_taken_from_the_trajectory(tmp_path: Path) -> None:
    def add(file: Any) -> None:
        poses = np.tile([0, 0, 0.5, *LOOKING_DOWN], (3, 1))
        file["observation/camera_extrinsics/9_left"] = poses
        file["observation/camera_intrinsics/9_left"] = np.tile(INTRINSICS, (3, 1, 1))

    write(tmp_path)
    expected = open_gripper_masks("e", tmp_path, "varied_camera_1").read(1, SIZE)[0].pixels
    write(tmp_path, calibration={}, change=add)
    found = open_gripper_masks("e", tmp_path, "varied_camera_1").read(1, SIZE)[0].pixels
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        EpisodeError, match=r"camera 10 .varied_camera_2. is neither in calibration"
    ):
        open_gripper_masks("e", tmp_path, "varied_camera_2")


def _delete(key: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[key]

    return change


def _replace(key: str, values: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[key]
        file[key] = values

    return change


POSE = "observation/robot_state/cartesian_position"
CLOSED = "observation/robot_state/gripper_position"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_delete(POSE), f"trajectory.h5 is not readable .it has no dataset {POSE}"),
        (_replace(POSE, np.zeros((3, 7))), r"has shape \(3, 7\)"),
        (_replace(POSE, np.full((3, 6), np.nan)), "not finite"),
        (_replace(CLOSED, np.zeros(2)), r"gripper_position has shape \(2,\)"),
        (_delete("observation/camera_type"), "camera_type has no varied_camera_1, only none"),
        (_delete("observation/camera_type/7"), None),
    ],
)
def test_broken_trajectory(tmp_path: Path, change: Any, message: str | None) -> None:
    write(tmp_path, change=change)
    if message is None:
        assert open_gripper_masks("e", tmp_path, "varied_camera_1").read(0, SIZE)
        return
    with pytest.raises(EpisodeError, match=message):
        open_gripper_masks("e", tmp_path, "varied_camera_1")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"left": {}}, "calibration.json is not as expected"),
        ({"left": {"intrinsics": [[1, 2]], "extrinsics": [0] * 6}}, "is not as expected"),
        ({"left": {"intrinsics": INTRINSICS.tolist(), "extrinsics": [np.nan] * 6}}, "not finite"),
    ],
)
def test_broken_calibration(tmp_path: Path, entry: Any, message: str) -> None:
    write(tmp_path, calibration={"9": entry, "7": camera([0, 0, -0.3, 0, 0, 0])})
    with pytest.raises(EpisodeError, match=message):
        open_gripper_masks("e", tmp_path, "varied_camera_1")
    assert open_gripper_masks("e", tmp_path, "hand_camera").read(0, SIZE)  # not its business


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=r"calibration\.json and trajectory\.h5 are missing"):
        open_gripper_masks("e", tmp_path, "hand_camera")
    write(tmp_path)
    (tmp_path / "calibration.json").write_text("[]")
    with pytest.raises(EpisodeError, match=r"calibration\.json is not readable"):
        open_gripper_masks("e", tmp_path, "hand_camera")
    write(tmp_path)
    (tmp_path / "trajectory.h5").write_bytes(b"no HDF5")
    with pytest.raises(EpisodeError, match=r"trajectory\.h5 is not readable"):
        open_gripper_masks("e", tmp_path, "hand_camera")


def test_intrinsics_of_another_resolution_are_refused(tmp_path: Path) -> None:
    masks = open_gripper_masks("e", write(tmp_path), "hand_camera")
    with pytest.raises(
        EpisodeError, match="are of an image of about 100x80 pixels, the stored image is 50x40"
    ):
        masks.read(0, (40, 50))


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"needs h5py: pip install 'attnstore\[ingest\]'"):
        open_gripper_masks("e", tmp_path, "hand_camera")


@pytest.mark.parametrize("name", ["hand_camera", "varied_camera_1", "varied_camera_2"])
@pytest.mark.parametrize("episode", [SAMPLE, "success/2025-12-12/2025-12-12_10-14-19"])
def test_the_sample_gripper_is_where_its_black_pixels_are(name: str, episode: str) -> None:
    """The simulated gripper is the only thing that is nearly black, shadows of it apart."""
    masks = open_gripper_masks("e", sample_path() / episode, name)
    side = "right" if name == "varied_camera_2" else "left"
    dataset = DroidDataset(sample_path(), side=side)
    for frame in dataset.frames(episode, [0, 12]):
        (image,) = (c.rgb for c in frame.cameras if c.camera == name)
        dark = image.max(-1) < 48
        found = masks.read(frame.index, (360, 640))[0].pixels
        overlap = (dark & found).sum() / (dark | found).sum()
        assert overlap > 0.55, f"frame {frame.index}: {overlap:.2f}"
