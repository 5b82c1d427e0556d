"""A recording for Rerun, read back with Rerun's own reader and compared with the store."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rerun_recording import Rows, read
from store_fixtures import write_episode

import attnstore
from attnstore.cli import cli
from attnstore.query import Episode
from attnstore.render.export.rerun import Recorded, heat_png, write_recording
from attnstore.render.picture import colormap, heatmap
from attnstore.render.picture.scale import ColorScale, Limits
from attnstore.store.errors import MissingExtraError, SelectionError
from attnstore.store.format.geometry import Geometry
from attnstore.store.opening import create_store

CAMERA = "hand_camera"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rerun") / "store"
    write_episode(create_store(root), "success/2025-12-10/one")
    return root


@pytest.fixture(scope="module")
def episode(root: Path) -> Episode:
    store = attnstore.open(root)
    return next(iter(store.episodes.values()))


@pytest.fixture(scope="module")
def recording(episode: Episode, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    return read(write_recording(episode, tmp_path_factory.mktemp("out") / "one.rrd"))


def moving(rows: Rows) -> Rows:
    return [row for row in rows if "keyframe" in row]


def tensor(row: dict[str, Any]) -> Any:
    (data,) = row["Tensor:data"]
    assert data["names"] == ["layer", "head", "row", "col"]
    return np.asarray(data["buffer"], np.float32).reshape(data["shape"])


def levels(one: Any, top: float, geometry: Geometry) -> Any:
    """Where on the colour map each pixel is, 0..255."""
    return np.rint(np.nan_to_num(heatmap.draw(one, geometry) / top) * 255).clip(0, 255)


def steps_of(episode: Episode) -> int:
    steps = episode.steps("suffix")
    assert steps is not None
    return steps


def test_images_are_the_bytes_of_the_store(episode: Episode, recording: dict[str, Rows]) -> None:
    for camera in episode.cameras:
        rows = recording[f"camera/{camera}"]
        assert [row["keyframe"] for row in rows] == list(range(len(episode.frames)))
        for row in rows:
            (blob,) = row["EncodedImage:blob"]
            assert bytes(blob) == episode.image_bytes(row["keyframe"], camera)
            assert row["EncodedImage:media_type"] == ["image/jpeg"]


def test_every_timeline_says_when(episode: Episode, recording: dict[str, Rows]) -> None:
    times = episode.part.table("keyframes", ["keyframe", "timestamp"]).sort_by("keyframe")
    seconds = times["timestamp"].to_pylist()
    steps = steps_of(episode)
    for entity in (f"camera/{CAMERA}", f"maps/prefix/{CAMERA}", "policy/actions"):
        rows = moving(recording[entity])
        for row, frame, second in zip(rows, episode.frames, seconds, strict=True):
            assert row["frame"] == frame
            assert row["time"].total_seconds() == pytest.approx(second)
            assert row["suffix_step"] == row["keyframe"] * steps
            assert set(row) >= {"keyframe", "frame", "time", "suffix_step"}
            assert not {"log_time", "log_tick"} & set(row)


def test_maps_are_those_of_the_store(episode: Episode, recording: dict[str, Rows]) -> None:
    for phase in ("prefix", "suffix"):
        maps = episode.maps(phase, CAMERA).values
        rows = recording[f"maps/{phase}/{CAMERA}"]
        assert len(rows) == len(maps)
        for row in rows:
            np.testing.assert_array_equal(tensor(row), maps[row["keyframe"]])
    # of a suffix the last step is shown, and says so
    last = [row["suffix_step"] for row in recording[f"maps/suffix/{CAMERA}"]]
    steps = steps_of(episode)
    assert last == [k * steps + steps - 1 for k in range(len(last))]


def test_heat_lies_on_the_pixels_of_the_active_head(
    episode: Episode, recording: dict[str, Rows]
) -> None:
    layer = 1
    head = episode.active_head("suffix", CAMERA, layer=layer)
    maps = episode.maps("suffix", CAMERA, layer=layer, head=head).values
    geometry = episode.geometry(CAMERA)
    top = maps[:, geometry.coverage() > 0].max()
    for row in recording[f"camera/{CAMERA}/heat/suffix/L01"]:
        (blob,) = row["EncodedImage:blob"]
        picture = Image.open(io.BytesIO(bytes(blob)))
        assert (picture.height, picture.width) == geometry.source
        expected = levels(maps[row["keyframe"]], top, geometry)
        assert np.abs(np.asarray(picture, int) - expected).max() <= 1
        assert row["EncodedImage:draw_order"] == [10.0]  # above the camera's image


def test_a_png_of_heat_is_clear_where_there_is_none() -> None:
    heat = np.array([[0.0, 0.5], [1.0, np.nan]], np.float32)
    data = heat_png(heat, Limits(0.0, 1.0), "inferno")
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert shown[..., 3].tolist() == [[0, 135], [191, 0]]  # 255 * 0.75 * sqrt(level)
    assert shown[1, 0, :3].tolist() == colormap.table("inferno")[255].tolist()


def test_scalars_are_those_of_the_store(episode: Episode, recording: dict[str, Rows]) -> None:
    entropy = episode.stats("suffix", CAMERA, "entropy").values
    rows = moving(recording[f"metrics/entropy/suffix/{CAMERA}/L01"])
    steps = steps_of(episode)
    assert len(rows) == len(episode.frames) * steps
    for row in rows:
        expected = entropy[row["keyframe"], row["suffix_step"] % steps, 1]
        np.testing.assert_allclose(row["Scalars:scalars"], expected)
    for name in ("actions", "actions_recorded", "state"):
        values = episode.policy_array(name)
        values = values[:, 0] if values.ndim == 3 else values
        rows = moving(recording[f"policy/{name}"])
        assert len(rows) == len(values)
        for row in rows:
            np.testing.assert_allclose(row["Scalars:scalars"], values[row["keyframe"]])


def test_the_instruction_is_static_text(episode: Episode, recording: dict[str, Rows]) -> None:
    (row,) = recording["instruction"]
    (text,) = row["TextDocument:text"]
    assert text.splitlines()[0] == episode.instruction
    assert f"episode {episode.name}" in text
    assert "keyframe" not in row


def test_a_selection(episode: Episode, tmp_path: Path) -> None:
    what = Recorded(
        ("suffix",), (CAMERA,), (1,), ("gini",), "mean", all_steps=True, scale=ColorScale("frame")
    )
    found = read(write_recording(episode, tmp_path / "deep" / "one.rrd", what))
    maps = [entity for entity in found if entity.startswith(("maps/", "metrics/"))]
    assert sorted(maps) == [f"maps/suffix/{CAMERA}", f"metrics/gini/suffix/{CAMERA}/L01"]
    assert [e for e in found if "heat" in e] == [f"camera/{CAMERA}/heat/suffix/L01"]
    steps = steps_of(episode)
    rows = found[f"maps/suffix/{CAMERA}"]
    assert [r["suffix_step"] for r in rows] == list(range(len(episode.frames) * steps))
    for row in rows:
        at = row["suffix_step"] % steps
        expected = episode.maps("suffix", CAMERA, layer=[1], step=at, reduce="mean").values
        np.testing.assert_array_equal(tensor(row), expected[row["keyframe"]])
    for row in found[f"camera/{CAMERA}/heat/suffix/L01"]:
        (blob,) = row["EncodedImage:blob"]
        at, geometry = row["suffix_step"] % steps, episode.geometry(CAMERA)
        head = episode.active_head("suffix", CAMERA, layer=1, step=at)
        one = episode.maps("suffix", CAMERA, layer=1, head=head, step=at, reduce="mean").values
        own = one[row["keyframe"]]
        expected = levels(own, own[geometry.coverage() > 0].max(), geometry)  # its own scale
        assert np.abs(np.asarray(Image.open(io.BytesIO(bytes(blob))), int) - expected).max() <= 1


def test_what_is_not_there_leaves_no_file(episode: Episode, tmp_path: Path) -> None:
    for what, message in (
        (Recorded(phases=("joint",)), "no phase 'joint'"),
        (Recorded(cameras=("top",)), "no camera 'top'"),
        (Recorded(layers=(99,)), "there is no 99"),
        (Recorded(metrics=("beauty",)), "beauty"),
    ):
        with pytest.raises(SelectionError, match=message):
            write_recording(episode, tmp_path / "one.rrd", what)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_rerun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "rerun" or n.startswith("rerun.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rerun", None)


@pytest.mark.usefixtures("without_rerun")
def test_without_the_extra(episode: Episode, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'attnstore\[rerun\]'"):
        write_recording(episode, tmp_path / "one.rrd")


def test_the_command(root: Path, episode: Episode, tmp_path: Path) -> None:
    out = tmp_path / "one.rrd"
    arguments = ["export", "rerun", str(root), "--episode", episode.id, "--out", str(out)]
    result = CliRunner().invoke(cli, [*arguments, "--layers", "0", "--camera", CAMERA])
    assert result.exit_code == 0, result.output
    found = read(out)
    assert f"camera/{CAMERA}/heat/prefix/L00" in found
    assert f"camera/{CAMERA}/heat/prefix/L01" not in found
    assert result.stderr.splitlines()[-1].endswith(f"; next: rerun {out}")


def test_progress_goes_from_nothing_to_all(episode: Episode, tmp_path: Path) -> None:
    seen: list[float] = []
    write_recording(
        episode, tmp_path / "one.rrd", Recorded(layers=(0,)), lambda at, what: seen.append(at)
    )
    assert seen[0] == 0
    assert seen[-1] == 1
    assert seen == sorted(set(seen))
