"""A data set for FiftyOne, as files; tests/real/fiftyone_real.py has it read by FiftyOne itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cli_fixtures import run
from store_fixtures import SOURCE, write_episode

import attnstore
from attnstore.query import Store
from attnstore.render.export.fiftyone import _box
from attnstore.render.picture import heatmap
from attnstore.store.opening import create_store

CAMERA, LAYER = "hand_camera", 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    paths = create_store(tmp_path_factory.mktemp("fiftyone") / "lab.attn")
    write_episode(paths, "success/one")
    write_episode(paths, "failure/two", "failure", 1)
    return attnstore.open(paths.root)


@pytest.fixture(scope="module")
def folder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "data set"
    done = run(
        "export", "fiftyone", store.paths.root, out, "--layers", str(LAYER), "--scale", "frame"
    )
    assert done.returncode == 0, done.stderr
    assert "2 episodes, 2 fields of heat; next: fiftyone.Dataset.from_dir(" in done.stderr
    return out


def samples(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "samples.json").read_text())["samples"]
    return found


def test_there_is_a_sample_for_every_image_and_it_is_the_stores(store: Store, folder: Path) -> None:
    found = samples(folder)
    wanted = [
        (e.name, k, camera)
        for e in store.episodes.values()
        for k in range(len(e.frames))
        for camera in e.cameras
    ]
    assert sorted((s["episode"], s["keyframe"], s["camera"]) for s in found) == sorted(wanted)
    for sample in found:
        episode = store.episode(sample["episode"])
        data = (folder / sample["filepath"]).read_bytes()
        assert data == episode.image_bytes(sample["keyframe"], sample["camera"])
        assert sample["tags"] == [episode.outcome] == [sample["outcome"]]
        assert sample["frame"] == episode.frames[sample["keyframe"]]
    assert "version" not in json.loads((folder / "metadata.json").read_text())


def test_heat_is_the_active_heads_at_the_images_pixels(store: Store, folder: Path) -> None:
    for sample in samples(folder):
        episode, camera = store.episode(sample["episode"]), sample["camera"]
        for phase, step in (("prefix", None), ("suffix", "last")):
            heat = sample[f"heat_{phase}_L{LAYER:02d}"]
            head = episode.active_head(phase, camera, layer=LAYER)
            assert heat["head"] == head
            wanted: Any = {"layer": LAYER, "head": head, "keyframe": sample["keyframe"]}
            wanted |= {} if step is None else {"step": step}
            one = episode.maps(phase, camera, **wanted).values
            geometry = episode.geometry(camera)
            assert heat["top"] == pytest.approx(float(one[geometry.coverage() > 0].max()))
            image = cv2.imread(str(folder / heat["map_path"]), cv2.IMREAD_UNCHANGED)
            assert image is not None
            assert image.shape == SOURCE
            drawn = np.nan_to_num(heatmap.draw(one, geometry)) / heat["top"] * 255
            np.testing.assert_array_equal(image, np.rint(drawn).clip(0, 255))
            stats = episode.stats(phase, camera, "entropy", **wanted).item()
            assert heat["entropy"] == pytest.approx(stats, nan_ok=True)


def test_objects_are_masks_in_boxes_in_shares_of_the_image(tmp_path: Path) -> None:
    """The golden store's mask, by hand: columns 20 to 39, rows 4 to 16."""
    golden = Path(__file__).parents[1] / "golden" / "store.tar.gz"
    shutil.unpack_archive(golden, tmp_path / "store", filter="data")
    done = run("export", "fiftyone", tmp_path / "store", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (box,) = [
        box
        for sample in samples(tmp_path / "out")
        for box in sample.get("objects", {"detections": []})["detections"]
    ]
    height, width = SOURCE
    assert (box["label"], box["bounding_box"]) == (
        "cube", [20 / width, 4 / height, 20 / width, 13 / height],
    )  # fmt: skip
    # FiftyOne completes the path by the field that the folder below fields/ names
    assert box["mask_path"].startswith("fields/objects.detections/")
    mask = cv2.imread(str(tmp_path / "out" / box["mask_path"]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask, np.full((13, 20), 255))


def test_a_mask_is_cut_to_its_box_and_keeps_its_place() -> None:
    rows, cols = np.mgrid[:36, :64]
    shape = ((rows - 20) ** 2 + (cols - 9) ** 2 < 70) & (rows + 2 * cols > 35)  # no symmetry
    (left, top, width, height), cut = _box(shape)
    y, x = round(top * 36), round(left * 64)
    assert cut.shape == (round(height * 36), round(width * 64))
    again = np.zeros_like(shape)
    again[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    np.testing.assert_array_equal(again, shape)


def test_nothing_is_left_of_what_is_refused(store: Store, folder: Path) -> None:
    before = sorted(folder.parent.iterdir())
    again = run("export", "fiftyone", store.paths.root, folder)
    assert again.returncode == 2
    assert "exists; name a folder that does not" in again.stderr
    other = folder.with_name("other")
    done = run("export", "fiftyone", store.paths.root, other, "--layers", "99")
    assert done.returncode != 0
    assert "99" in done.stderr
    assert sorted(folder.parent.iterdir()) == before
