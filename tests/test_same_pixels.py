"""From a data set with every kind of image and awkward camera names to all who show its pixels.

The policy's pixels are those of probes, renderer, service, viewer, pack and Rerun, bit for bit, and a
camera whose column has a slash in it is found by each.
"""

from __future__ import annotations

import json
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from image_kinds import REFUSED, TAKEN, exif, jpeg, picture, pillow, with_segment
from ingest_fixtures import checkpoint, loaded, make_job, policy
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page
from rerun_recording import read as read_recording
from service_fixtures import TOKEN, start, stop
from store_fixtures import sealed
from viewer_fixtures import browser, decoded, settle
from viewer_fixtures import pixels as drawn_pixels

import attnstore
from attnstore.cli import cli
from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
from attnstore.ingest.pipeline import ingest_one
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.probing.keyframe import stored_keyframes
from attnstore.query import Episode
from attnstore.render.export.rerun import write_recording
from attnstore.render.picture.scene import decode_frame
from attnstore.store.commits import StorePaths, all_commits
from attnstore.store.errors import EpisodeError
from attnstore.store.opening import open_store

__all__ = ["browser", "checkpoint", "loaded", "policy"]  # fixtures
Pixels = NDArray[np.uint8]
COLUMNS = {"cam_left": "observation.images.cam/left", "手_2___3": "observation.images.手 2?#%3.."}
UPSIDE_DOWN = with_segment(jpeg(picture(3)), 0xE1, b"Exif\0\0" + exif(3))
FRAMES: list[tuple[bytes, Pixels]] = [
    *(TAKEN[k] for k in ("jpeg", "jpeg progressive", "jpeg grey", "jpeg rgb", "png alpha")),
    *(TAKEN[k] for k in ("png palette, alpha", "png grey, 2 bits", "webp", "webp lossless")),
    # LeRobot's own reader turns these
    (UPSIDE_DOWN, pillow(jpeg(picture(3)))[::-1, ::-1]),
]
TURNED = ("jpeg turned, with a profile", "png rgb, gamma, profile, turned")


def write_dataset(root: Path) -> Path:
    """A v2.1 data set of one episode whose images lie in the Parquet file."""
    length = len(FRAMES)
    still = {"dtype": "image", "shape": [36, 64, 3], "names": ["height", "width", "channels"]}
    grey = {**still, "shape": [36, 64, 1]}
    eight = {"dtype": "float32", "shape": [8], "names": None}
    (root / "meta").mkdir(parents=True)
    features: dict[str, Any] = dict.fromkeys(COLUMNS.values(), still)
    features |= {"observation.images.depth": grey, "observation.state": eight, "action": eight}
    info = {
        "codebase_version": "v2.1", "fps": 10, "robot_type": "toy", "chunks_size": 1000,
        "data_path": "data/episode_{episode_index:06d}.parquet", "video_path": None,
        "features": features,
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "lift the cube"}\n')
    (root / "meta/episodes.jsonl").write_text(
        json.dumps({"episode_index": 0, "tasks": ["lift the cube"], "length": length}) + "\n"
    )
    left, right = COLUMNS.values()
    numbers = [[i / 10] * 8 for i in range(length)]
    rows: dict[str, list[Any]] = {
        left: [{"bytes": data, "path": None} for data, _ in FRAMES],
        right: [{"bytes": data, "path": None} for data, _ in FRAMES[::-1]],
        "observation.images.depth": [{"bytes": b"", "path": None}] * length,
        "observation.state": numbers, "action": numbers,
        "timestamp": [i / 10 for i in range(length)], "frame_index": list(range(length)),
        "episode_index": [0] * length, "task_index": [0] * length,
    }  # fmt: skip
    (root / "data").mkdir()
    pq.write_table(pa.table(rows), root / "data/episode_000000.parquet")
    return root


@pytest.fixture(scope="module")
def ingested(
    loaded: Pi0Policy, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Pixels]]]:
    """A store, and what the policy was given at each keyframe, by camera."""
    folder = tmp_path_factory.mktemp("pixels")
    dataset = LeRobotDataset(write_dataset(folder / "toy"))
    assert dataset.cameras == tuple(COLUMNS)  # one channel may be depth
    seen: list[dict[str, Pixels]] = []

    class Looking(Pi0Policy):
        """Pi0 that writes down what it is given."""

        def prepare(self, observations: Any) -> Any:
            seen.extend(dict(o.images) for o in observations)
            return super().prepare(observations)

    looking = Looking.__new__(Looking)
    looking.__dict__ |= loaded.__dict__
    job = make_job(folder / "lab.attn", looking, dataset, stride=1)  # type: ignore[arg-type]
    outcome = ingest_one(
        job, looking, dataset, "episode_000000", progress=lambda _: None, stopped=lambda: False
    )
    assert outcome.status == "committed", outcome
    return folder / "lab.attn", seen[-len(FRAMES) :]


@pytest.fixture
def episode(ingested: tuple[Path, list[dict[str, Pixels]]]) -> Episode:
    return attnstore.open(ingested[0]).episode("episode_000000")


@pytest.fixture
def seen(ingested: tuple[Path, list[dict[str, Pixels]]]) -> list[dict[str, Pixels]]:
    return ingested[1]


def test_the_policy_sees_the_files_pixels(seen: list[dict[str, Pixels]]) -> None:
    left, right = COLUMNS
    for at, images in enumerate(seen):
        assert list(images) == [left, right]
        np.testing.assert_array_equal(images[left], FRAMES[at][1])
        np.testing.assert_array_equal(images[right], FRAMES[len(FRAMES) - 1 - at][1])


def test_probes_renderer_and_rerun_have_the_policys_pixels(
    ingested: tuple[Path, list[dict[str, Pixels]]], episode: Episode, tmp_path: Path
) -> None:
    _, seen = ingested
    recording = read_recording(write_recording(episode, tmp_path / "one.rrd"))
    logged = {urllib.parse.unquote(k).replace("\\", ""): rows for k, rows in recording.items()}
    for keyframe, again in enumerate(stored_keyframes(episode)):
        for camera, pixels in seen[keyframe].items():
            np.testing.assert_array_equal(again.observation.images[camera], pixels)
            data = episode.image_bytes(keyframe, camera)
            drawn = decode_frame(data, episode.geometry(camera), "e", camera)
            np.testing.assert_array_equal(drawn, pixels)
            row = logged[f"camera/{camera}"][keyframe]
            (blob,) = row["EncodedImage:blob"]
            np.testing.assert_array_equal(pillow(bytes(blob)), pixels)
            np.testing.assert_array_equal(decoded(bytes(blob)), pixels)  # OpenCV


@pytest.fixture(scope="module")
def served(
    ingested: tuple[Path, list[dict[str, Pixels]]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    server = start(ingested[0], log=tmp_path_factory.mktemp("log") / "serve.log")
    yield server
    stop(server)


def shown(page: Page, address: str, episode: Episode, keyframe: int) -> dict[str, Pixels]:
    """What the page draws without heat."""
    page.goto("about:blank")
    view = {
        "store": "lab", "run": episode.run, "episode": episode.id, "keyframe": keyframe,
        "alpha": 0, "blend": "constant",
    }  # fmt: skip
    page.goto(f"{address}#{urllib.parse.urlencode(view)}")
    settle(page)
    return {camera: drawn_pixels(page, camera) for camera in COLUMNS}


def test_service_and_viewer_show_the_policys_pixels(
    served: Any, browser: Browser, episode: Episode, seen: list[dict[str, Pixels]]
) -> None:
    page = browser.new_page()
    for keyframe, images in enumerate(seen):
        drawn = shown(page, f"{served.url}/?token={TOKEN}", episode, keyframe)
        for camera, pixels in images.items():
            quoted = urllib.parse.quote(camera, safe="")
            base = f"/v1/stores/lab/episodes/{episode.run}/{episode.id}"
            answer = served.get(f"{base}/frames/{keyframe}/{quoted}")
            assert answer.status == 200, answer.body
            np.testing.assert_array_equal(pillow(answer.body), pixels)
            np.testing.assert_array_equal(drawn[camera], pixels, err_msg=f"{keyframe} {camera}")
    page.close()
    overlay = served.get(f"{base}/overlays/{quoted}", phase="prefix", layer=0, keyframe=0)
    assert overlay.status == 200, overlay.body


def test_a_pack_shows_the_policys_pixels(
    ingested: tuple[Path, list[dict[str, Pixels]]],
    browser: Browser,
    episode: Episode,
    tmp_path: Path,
) -> None:
    run("export", "pack", ingested[0], "--out", tmp_path / "pack")
    page = browser.new_context(offline=True).new_page()
    for keyframe, images in enumerate(ingested[1]):
        address = (tmp_path / "pack/index.html").as_uri()
        for camera, pixels in shown(page, address, episode, keyframe).items():
            np.testing.assert_array_equal(pixels, images[camera], err_msg=f"{keyframe} {camera}")
    page.context.close()


def test_pictures_are_drawn_of_every_camera(ingested: tuple[Path, Any], tmp_path: Path) -> None:
    one = ("--layers", "0", "--heads", "active")
    run("render", "images", ingested[0], "--out", tmp_path / "out", *one)
    assert list((tmp_path / "out").rglob("*.jpg"))
    for camera in COLUMNS:
        run("render", "videos", ingested[0], "--out", tmp_path / camera, *one, "--camera", camera)
        assert [p for p in (tmp_path / camera).rglob("*") if p.suffix in (".mp4", ".webm")]
    run("report", ingested[0], "--out", tmp_path / "report")
    copy = tmp_path / "copy.attn"
    run("pull", ingested[0], copy, "--tier", "full")
    assert attnstore.open(copy).episode("episode_000000").cameras == tuple(COLUMNS)


@pytest.mark.parametrize("kind", [*TURNED, "png 50000x50000", "other size", "no image"])
def test_what_another_writer_stored_is_shown_alike_or_refused(
    ingested: tuple[Path, Any], tmp_path: Path, kind: str
) -> None:
    """A reader never hands on a file that a browser would turn, darken, or be killed by."""
    shutil.copytree(ingested[0], tmp_path / "lab.attn")
    whole = TAKEN | {k: (d, None) for k, (d, _) in REFUSED.items()}
    whole |= {"other size": (jpeg(picture(0, (8, 8))), None), "no image": (b"<script>", None)}
    data, expected = whole[kind]
    (table,) = (tmp_path / "lab.attn").rglob("frames.parquet")
    rows = pq.read_table(table)
    images = [data, *rows["image"].to_pylist()[1:]]
    at = rows.schema.get_field_index("image")
    pq.write_table(rows.set_column(at, "image", pa.array(images, rows.schema[at].type)), table)
    paths = open_store(tmp_path / "lab.attn")
    (commit,) = all_commits(paths)
    sealed(paths, commit)
    episode = Episode(attnstore.open(StorePaths(tmp_path / "lab.attn").root)
                      .episode("episode_000000").part)  # fmt: skip
    camera, keyframe = rows["camera"][0].as_py(), rows["keyframe"][0].as_py()
    if expected is None:
        with pytest.raises(EpisodeError, match=f"the stored image of {camera} at keyframe"):
            episode.image_bytes(keyframe, camera)
    else:
        given = episode.image_bytes(keyframe, camera)
        assert b"Exif" not in given
        assert b"iCCP" not in given
        np.testing.assert_array_equal(decoded(given), expected)


def run(*arguments: object) -> None:
    done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
