"""``attnstore doctor``: the whole path before an ingest, and that it fails where the ingest would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import assert_one_line, run
from droid_sample import sample_path

from attnstore.render.picture.image_file import decode
from attnstore.render.picture.patches import patch_sheet, prepared
from attnstore.store.format.geometry import Geometry


def test_what_an_ingest_would_do(checkpoint: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    done = run(
        "doctor", checkpoint, sample_path(), "--side", "ext2", "--limit", "1", "--stride", "16", "--out", pictures
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "\ndataset\n  droid:" in said
    assert "cameras: hand_camera, varied_camera_2" in said
    assert "phase suffix: " in said
    assert "image 1: hand_camera, " in said
    assert "image 2: varied_camera_2, " in said
    assert "\ntokens of prefix\n  tokens: image:hand_camera 0-" in said
    assert "rows sum to 1 within" in said
    assert said.endswith("nothing was found that would fail\n")
    assert "policy pi0, by the checkpoint's files" in done.stderr
    assert "1 episodes to do" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "next: attnstore ingest droid STORE " in last
    assert last.endswith("--side ext2 --limit 1 --stride 16")
    for camera in ("hand_camera", "varied_camera_2"):
        sheet = decode((pictures / f"{camera}.png").read_bytes(), "e", camera)
        assert sheet.shape[0] == 520
    assert {p.name for p in tmp_path.iterdir()} == {"pictures"}  # no store is made


def test_what_would_fail(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "success/2025-12-10/2025-12-10_09-00-39"
    broken.mkdir(parents=True)
    done = run("doctor", checkpoint, tmp_path, "--no-run")
    assert done.returncode == 5
    assert "no images of hand_camera" in done.stderr
    assert "nothing was found" not in done.stdout
    done = run("doctor", checkpoint, sample_path(), "--slide", "x")
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "--slide" in done.stderr
    assert_one_line(
        run("doctor", "--stride", "8", checkpoint, sample_path()),
        2,
        "name CHECKPOINT and DATASET first",
    )
    (tmp_path / "empty").mkdir()
    assert_one_line(
        run("doctor", checkpoint, tmp_path / "empty"),
        2,
        "is no format that is recognised: name its reader with --reader: ",
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    done = run("doctor", other, sample_path())
    assert done.returncode == 2
    assert "no adapter recognises it (its config.json says model_type 'bert'" in done.stderr


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry.letterbox((90, 160), (112, 112), (14, 14)),
        Geometry((90, 160), (112, 112), (112, 112), (0, 0), (8, 8), (14, 14), crop=(5, 30, 80, 100)),
        Geometry(
            (90, 160), (112, 112), (56, 100), (28, 6), (8, 8), (14, 14), flip_vertical=True, flip_horizontal=True
        ),
        # fractions of a pixel: a crop of nine tenths of the area, and padding before a resize
        Geometry(
            (90, 160), (112, 112), (112.0, 112.0), (0.0, 0.0), (8, 8), (14, 14), crop=(2.3, 4.1, 85.4, 151.8)
        ),
        Geometry((90, 160), (112, 112), (62.6, 111.3), (24.7, 0.35), (8, 8), (14, 14)),
    ],
)  # fmt: skip
def test_a_pixel_is_drawn_in_the_patch_that_the_geometry_says(geometry: Geometry) -> None:
    for y, x in ((30, 50), (60, 110), (44, 80)):
        image = np.zeros((90, 160, 3), np.uint8)
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
        seen = prepared(image, geometry)[..., 0].astype(float)
        rows, cols = np.indices(seen.shape) + 0.5
        middle = (rows * seen).sum() / seen.sum() / 14, (cols * seen).sum() / seen.sum() / 14
        np.testing.assert_allclose(
            middle, geometry.source_to_grid(np.array(y + 0.5), np.array(x + 0.5)), atol=0.06
        )
    with pytest.raises(ValueError, match="the geometry is of"):
        patch_sheet("c", np.zeros((8, 8, 3), np.uint8), geometry)
