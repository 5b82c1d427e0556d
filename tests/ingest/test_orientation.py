"""``--turn`` and ``--flip``: a pixel, its patch, its mask and its attention go where OpenCV would turn them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_fixtures import CAMERAS, arrays_of, checkpoint, write_droid
from lerobot_fixture_datasets import write_v30
from numpy.typing import NDArray

import attnstore
from attnstore.cli import cli
from attnstore.ingest.datasets.base import CameraFrame
from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
from attnstore.ingest.datasets.oriented import OrientedDataset
from attnstore.store.commits import StorePaths, all_commits
from attnstore.store.commits.part import Part
from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.orientation import FLIPS, Orientation
from attnstore.store.image import decode

__all__ = ["checkpoint"]  # a fixture
WAYS = [
    Orientation(turn, flip) for turn, flip in itertools.product((0, 90, 180, 270), (None, *FLIPS))
]
QUARTERS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def turned(pixels: NDArray[Any], way: Orientation) -> NDArray[Any]:
    """What OpenCV makes of it."""
    values: NDArray[Any] = pixels.astype(np.uint8)
    if way.turn:
        values = np.asarray(cv2.rotate(values, QUARTERS[way.turn]))
    if way.flip is not None:
        values = np.asarray(cv2.flip(values, 1 if way.flip == "horizontal" else 0))
    return values.astype(pixels.dtype)


@settings(max_examples=60)
@given(way=st.sampled_from(WAYS), data=st.data())
def test_a_marked_pixel_is_in_the_patch_that_geometry_says(way: Orientation, data: Any) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    raw = np.zeros((height, width), np.uint8)
    raw[y, x] = 255
    seen = way.apply(raw)
    np.testing.assert_array_equal(seen, turned(raw, way))
    assert way.recorded((seen.shape[0], seen.shape[1])) == raw.shape
    ((row, col),) = np.argwhere(seen)
    # Nothing is resized in an input as large as the longer side: the pixel is where it was put.
    side = -(-max(seen.shape) // 4) * 4
    geometry = Geometry.letterbox(
        (seen.shape[0], seen.shape[1]), (side, side), (4, 4), resized=(seen.shape[0], seen.shape[1])
    )
    boxed = np.zeros((side, side), np.uint8)
    top, left = geometry.offset
    boxed[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    lit = boxed.reshape(side // 4, 4, side // 4, 4).max((1, 3))
    at = geometry.source_to_grid(np.array(row + 0.5), np.array(col + 0.5))
    assert [(int(at[0]), int(at[1]))] == [(int(a), int(b)) for a, b in np.argwhere(lit)]


def write_masks(episode: Path, masks: dict[int, NDArray[np.bool_]], camera: str) -> None:
    suffix = "" if camera == "hand_camera" else f"_{camera}"
    folder = episode / "masks" / ("" if camera == "hand_camera" else camera)
    folder.mkdir(parents=True, exist_ok=True)
    info = {}
    for frame, mask in masks.items():
        np.save(folder / f"{frame}.npy", mask)
        info[str(frame)] = [{"mask_file": f"{frame}.npy", "category": "cube", "score": 0.5}]
    (episode / f"dinox_info{suffix}.json").write_text(json.dumps(info))


def test_turning_is_the_same_as_a_dataset_that_was_recorded_so(
    checkpoint: Path, tmp_path: Path
) -> None:
    ways = dict(zip(CAMERAS, (Orientation(90, "vertical"), Orientation(180)), strict=True))
    options = ["--turn", "hand_camera=90", "--flip", "hand_camera=vertical"]
    options += ["--turn", "varied_camera_1=180"]
    random = np.random.default_rng(1)
    for folder in ("raw", "upright"):
        write_droid(tmp_path / folder / "toy", lengths=(9,))
    for raw in (tmp_path / "raw/toy").glob("*/*/*"):
        upright = tmp_path / "upright/toy" / raw.relative_to(tmp_path / "raw/toy")
        for camera, way in ways.items():
            for file in (raw / "recordings/frames" / camera).iterdir():
                other = upright / "recordings/frames" / camera / file.name
                other.unlink()
                pixels = turned(decode(file.read_bytes()), way)
                assert cv2.imwrite(str(other.with_suffix(".png")), pixels[..., ::-1])
            masks = {f: random.random((36, 64)) > 0.9 for f in (0, 8)}
            write_masks(raw, masks, camera)
            write_masks(upright, {f: turned(m, way) for f, m in masks.items()}, camera)
    parts, found = [], []
    for folder, more in (("raw", options), ("upright", [])):
        store, data = tmp_path / f"{folder}.attn", tmp_path / folder / "toy"
        arguments: list[Any] = ["ingest", "droid", store, data, "--policy", "pi0", *more]
        done = CliRunner().invoke(cli, [*map(str, arguments), "--checkpoint", str(checkpoint)])
        assert done.exit_code == 0, done.output
        for camera in CAMERAS:
            said = ["objects", "add", str(store), "--masks", str(data), "--camera", camera]
            done = CliRunner().invoke(cli, [*said, "--source", "detector"])
            assert done.exit_code == 0, done.output
            last = done.stderr.splitlines()[-1]
            assert last.startswith("objects of 1 episode, ")
            assert last.endswith(
                f"0 of 1 parts there already; next: attnstore objects timeline {store} --out timelines"
            )
        (commit,) = [c for c in all_commits(StorePaths(store)) if c.part == "base"]
        parts.append(arrays_of(Part(StorePaths(store), commit)))
        with attnstore.open(store) as opened:
            (name,) = opened.episodes
            episode = opened.episodes[name]
            assert episode.geometry("hand_camera").source == (64, 36)
            images = [decode(episode.image_bytes(k, c)) for c in CAMERAS for k in (0, 1)]
            stats = opened.sql(
                "select * exclude (run, part) from object_stats order by all"
            ).fetchall()
            kept = opened.sql(
                "select camera, frame, height, width, counts from object_masks order by all"
            ).fetchall()
            found.append((images, stats, kept))
    ours, theirs = parts
    assert sorted(ours) == sorted(theirs)
    for path, values in ours.items():
        if "image" not in path:  # encoded otherwise; decoded below
            np.testing.assert_array_equal(values, theirs[path], err_msg=path)
    for mine, upright_image in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(mine, upright_image)
    assert len(found[0][1]) > 100
    assert found[0][1:] == found[1][1:]


def test_a_videos_frames_are_turned_and_kept_again(tmp_path: Path) -> None:
    write_v30(tmp_path)
    plain = LeRobotDataset(tmp_path)
    camera = plain.cameras[0]
    dataset = OrientedDataset(plain, {camera: Orientation(270)})
    name = dataset.episode_names()[0]
    (before,), (after,) = plain.frames(name, [3]), dataset.frames(name, [3])
    assert [c.data for c in after.cameras[1:]] == [c.data for c in before.cameras[1:]]
    one: CameraFrame = before.cameras[0]
    other: CameraFrame = after.cameras[0]
    np.testing.assert_array_equal(other.rgb, turned(one.rgb, Orientation(270)))
    shown = decode(other.data).astype(int)
    assert np.abs(shown - other.rgb.astype(int)).mean() < 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--turn", "hand_camera=45"], "--turn is CAMERA=90|180|270; got 'hand_camera=45'"),
        (["--flip", "hand_camera"], "--flip is CAMERA=horizontal|vertical; got 'hand_camera'"),
        (["--turn", "left=90"], "no camera 'left' to turn or flip; it has hand_camera, varied"),
        (["--turn", "a=90", "--turn", "a=180"], "--turn names camera a twice"),
    ],
)
def test_what_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    data = str(write_droid(tmp_path / "toy", lengths=(1,)))
    arguments = [
        "ingest",
        "droid",
        str(tmp_path / "s"),
        data,
        "--policy",
        "pi0",
        "--checkpoint",
        "x",
    ]
    done = CliRunner().invoke(cli, [*arguments, *options])
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)
