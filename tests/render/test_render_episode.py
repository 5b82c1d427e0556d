"""Whole episodes drawn from an in-memory episode with planted maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import av
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from attnstore.render import ColorScale, Look, render_images, render_videos
from attnstore.render.files.lab_folders import EpisodeFolder
from attnstore.render.files.pool import run
from attnstore.render.picture import colormap, image_file
from attnstore.render.picture.drawing import Drawing
from attnstore.render.picture.scene import Scene
from attnstore.render.picture.source import EpisodeMaps
from attnstore.render.picture.track import LayerMaps
from attnstore.store.errors import EpisodeError, SelectionError, UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.weighting import Weighting
from attnstore.store.reader.sinks import remove
from attnstore.store.rules import Active, active_heads, mean_over_keyframes

if TYPE_CHECKING:
    from attnstore.store.reader.episode import Episode

    def query_serves_what_render_needs(episode: Episode) -> EpisodeMaps:
        return episode


NAME = "failure/2025-12-11/2025-12-11_09-44-16"
SIZES = {"hand_camera": (72, 128), "varied_camera_1": (96, 128)}
LOOK = Look(interpolation="nearest", pane_width=128)


@dataclass
class PlantedEpisode:
    """Keyframe k, layer l, head h lights patch (1, h) with (k + 1) * (l + 1) / 100."""

    images: dict[tuple[int, str], bytes] = field(default_factory=dict)
    instruction: str = "place the red cube | into the <pink> bowl"
    run: str = "run-1"
    name: str = NAME
    outcome: str = "failure"
    date: str | None = "2025-12-11"
    policy: str = "pi05"
    cameras: tuple[str, ...] = tuple(SIZES)
    phases: tuple[str, ...] = ("prefix", "suffix")
    sinks: tuple[tuple[str, int, int, float], ...] = ()

    def __post_init__(self) -> None:
        for k in range(3):
            for camera, size in SIZES.items():
                grey = np.full((*size, 3), 100, np.uint8)
                self.images[k, camera] = image_file.encode(grey, "png")

    @property
    def frames(self) -> NDArray[np.int32]:
        return np.array([0, 8, 16], np.int32)

    def geometry(self, camera: str) -> Geometry:
        return Geometry.letterbox(SIZES[camera], (56, 56), (14, 14), anchor="top-left")

    def layers(self, phase: str) -> int:
        return 4

    def heads(self, phase: str) -> int:
        return 2

    def steps(self, phase: str) -> int | None:
        return 5 if phase == "suffix" else None

    def query_groups(self, phase: str) -> tuple[str, ...]:
        return ("task",) if phase == "prefix" else ("action",)

    def has_query(self, phase: str, group: str) -> bool:
        return group in self.query_groups(phase)

    def check_query(self, phase: str, group: str) -> None:
        assert self.has_query(phase, group)

    def generated(self, keyframe: int) -> tuple[str, ...]:
        return ()

    def image_bytes(self, keyframe: int, camera: str) -> bytes:
        return self.images[keyframe, camera]

    def maps(
        self, phase: str, camera: str, *, layer: int, step: int | None = None,
        reduce: Literal["max", "mean"] = "max", query: str | None = None,
        sink_corrected: bool = False, weighting: Weighting = "raw",
    ) -> xr.DataArray:  # fmt: skip
        maps = np.zeros((3, 2, 4, 4), np.float32)
        for k in range(3):
            for h in range(2):
                maps[k, h, 1, h] = (k + 1) * (layer + 1) / 100
        maps[:, :, 0, 3] = 0.05  # the same in every keyframe
        own = [(row, col) for at, row, col, _ in self.sinks if at == camera]
        if sink_corrected:
            maps[:, 1] = remove(maps[:, 1], self.geometry(camera), own)
        return xr.DataArray(maps, dims=("keyframe", "head", "row", "col"))

    def map_variance(
        self, phase: str, camera: str, *, layer: int, step: int | None = None,
        reduce: Literal["max", "mean"] = "max", query: str | None = None,
        sink_corrected: bool = False, active: Active = "image", weighting: Weighting = "raw",
        maps: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float64]:  # fmt: skip
        # over the episode head 1; at keyframes 0, 1, 2 heads 0, 1, 0; the side camera the other way
        variance = np.array([[2.0, 1], [1, 9], [2, 1]])
        return variance if camera == "hand_camera" else variance[:, ::-1]

    def active_head(self, camera: str, keyframe: int | None = None) -> int:
        variance = self.map_variance("prefix", camera, layer=1)
        shown = mean_over_keyframes(variance) if keyframe is None else variance[keyframe]
        return int(active_heads(shown))

    def mass(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        step: int | None = None,
        query: str | None = None,
        weighting: Weighting = "raw",
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.full((3, 2), 0.31), np.full((3, 2), 0.124)

    def sink_keys(
        self,
        phase: str,
        *,
        layer: int,
        head: int,
        step: int | None = None,
        weighting: Weighting = "raw",
    ) -> list[tuple[str, int, int, float]]:
        return list(self.sinks) if head == 1 else []


def files_below(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def picture(path: Path) -> NDArray[np.uint8]:
    return image_file.decode(path.read_bytes(), "episode", path.name)


def scene_of(episode: PlantedEpisode, scale: ColorScale, drawing: Drawing | None = None) -> Scene:
    return Scene(episode, drawing or Drawing("prefix"), episode.cameras, look=LOOK, scale=scale)


def overlay_of(scene: Scene, image: NDArray[np.uint8], camera: str) -> NDArray[np.uint8]:
    return image[scene.panel.blocks[camera].overlay.slices]


def test_images_fill_the_labs_tree(tmp_path: Path) -> None:
    seen: list[tuple[int, int, Path]] = []
    written = render_images(
        PlantedEpisode(), tmp_path, layers=[1, 3], look=LOOK, workers=2,
        progress=lambda done, total, path: seen.append((done, total, path)),
    )  # fmt: skip
    expected = {f"{NAME}/pi05.md"}
    for frame in ("00000", "00008", "00016"):
        for phase in ("prefix", "suffix"):
            for layer in (1, 3):
                expected.add(f"{NAME}/{frame}/{phase}_L{layer}_attn_vis_max.jpg")
                expected |= {
                    f"{NAME}/{frame}/L{layer}_{phase}_heads/head_{h}.jpg" for h in ("00", "01")
                }
    assert files_below(tmp_path) == expected
    assert {p.relative_to(tmp_path).as_posix() for p in written} == expected
    assert [s[:2] for s in seen] == [(i + 1, 37) for i in range(37)]
    assert [s[2] for s in seen] == written
    assert written[-1].name == "pi05.md"
    text = written[-1].read_text()
    for line in ("| 2 | 16 |", "| prefix | layers 1, 3; 2 heads; max over task tokens |", "run-1"):
        assert line in text
    assert "cube \\| into the &lt;pink> bowl" in text


def test_videos_fill_the_labs_tree(tmp_path: Path) -> None:
    written = render_videos(PlantedEpisode(), tmp_path, layers=[1], look=LOOK, fps=4)
    root = tmp_path / NAME
    expected = {"instruction.txt"}
    for phase in ("prefix", "suffix"):
        expected |= {f"L01_{phase}_max.webm", f"L1/H00_{phase}.webm", f"L1/H01_{phase}.webm"}
    assert files_below(root) == expected == {p.relative_to(root).as_posix() for p in written}
    assert (root / "instruction.txt").read_text() == PlantedEpisode().instruction
    scene = scene_of(PlantedEpisode(), ColorScale("video"))
    with av.open(str(root / "L1/H01_prefix.webm")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 4
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert [f.shape for f in frames] == [
        (scene.panel.layout.height, scene.panel.layout.width, 3)
    ] * 3
    track = LayerMaps.load(PlantedEpisode(), "prefix", 1, scene.cameras).track(1)
    limits = track.limits(ColorScale("video"), scene.geometries)
    for k, frame in enumerate(frames):
        drawn = scene.picture(track, k, limits[k]).pixels
        assert np.abs(frame.astype(int) - drawn).mean() < 3


@pytest.mark.parametrize("codec", ["av1", "h264", "mjpeg"])
def test_other_codecs(tmp_path: Path, codec: str) -> None:
    written = render_videos(
        PlantedEpisode(), tmp_path, layers=[0], phases=["prefix"], heads=False, codec=codec,
        look=LOOK,
    )  # fmt: skip
    assert written[0].suffix == {"av1": ".webm", "h264": ".mp4", "mjpeg": ".avi"}[codec]
    with av.open(str(written[0])) as container:
        assert len(list(container.decode(video=0))) == 3


def test_the_summary_shows_each_cameras_active_head(tmp_path: Path) -> None:
    render_images(
        PlantedEpisode(), tmp_path, layers=[1], phases=["prefix"], look=LOOK, format="png"
    )
    scene = scene_of(PlantedEpisode(), ColorScale())
    for k, frame in enumerate(("00000", "00008", "00016")):
        folder = tmp_path / NAME / frame
        summary = picture(folder / "prefix_L1_attn_vis_max.png")
        for camera in SIZES:
            active = PlantedEpisode().active_head(camera, k)
            for head in (0, 1):
                own = picture(folder / f"L1_prefix_heads/head_{head:02d}.png")
                same = (overlay_of(scene, summary, camera) == overlay_of(scene, own, camera)).all()
                assert same == (head == active), f"{camera} at {k}"


def test_a_videos_active_head_does_not_jump(tmp_path: Path) -> None:
    render_videos(
        PlantedEpisode(), tmp_path, layers=[1], phases=["prefix"], look=LOOK, codec="mjpeg"
    )
    scene = scene_of(PlantedEpisode(), ColorScale("video"))

    def frames(name: str) -> list[NDArray[np.uint8]]:
        with av.open(str(tmp_path / NAME / name)) as container:
            return [
                np.asarray(f.to_ndarray(format="rgb24"), np.uint8)
                for f in container.decode(video=0)
            ]

    heads = [frames(f"L1/H{head:02d}_prefix.avi") for head in (0, 1)]
    for k, summary in enumerate(frames("L01_prefix_max.avi")):
        for camera in SIZES:
            active = PlantedEpisode().active_head(camera)
            error = [
                np.abs(
                    overlay_of(scene, summary, camera).astype(int)
                    - overlay_of(scene, heads[head][k], camera)
                ).mean()
                for head in (0, 1)
            ]
            assert error[active] < error[1 - active] / 2


def test_colours_are_constant_in_a_video_and_follow_each_frame_otherwise() -> None:
    episode = PlantedEpisode()
    colours: dict[str, list[tuple[int, ...]]] = {}
    for scale in (ColorScale("video"), ColorScale("fixed", 0, 0.06), ColorScale("frame")):
        scene = scene_of(episode, scale)
        track = LayerMaps.load(episode, "prefix", 1, episode.cameras).track(0)
        limits = track.limits(scale, scene.geometries)
        for k in range(3):
            pane = overlay_of(scene, scene.picture(track, k, limits[k]).pixels, "hand_camera")
            # patch (0, 3) holds 0.05 in every keyframe: the last quarter of the first quarter
            colours.setdefault(scale.scope, []).append(tuple(pane[10, 120].tolist()))
    assert len(set(colours["video"])) == 1
    assert len(set(colours["fixed"])) == 1
    # 0.05 is the maximum of keyframes 0 and 1, and below it in keyframe 2 (0.06)
    assert colours["frame"][0] == colours["frame"][1] != colours["frame"][2]
    assert colours["frame"][2] == colours["fixed"][0] == colours["video"][0]
    top = 0.75 * colormap.table("inferno")[255] + 0.25 * 100
    np.testing.assert_allclose(colours["frame"][0], top, atol=2)


def test_what_is_printed() -> None:
    episode = PlantedEpisode()
    scene = Scene(
        episode, Drawing("suffix", step=2), episode.cameras,
        look=Look(), scale=ColorScale("video"),
    )  # fmt: skip
    maps = LayerMaps.load(episode, "suffix", 3, episode.cameras, step=2)
    track = maps.active({c: np.array([0, 1, 0]) for c in episode.cameras})
    limits = track.limits(ColorScale("video"), scene.geometries)
    said = scene.picture(track, 1, limits[1]).texts
    assert "L03 H01, most active" in said
    assert "frame 8, keyframe 2/3" in said
    assert "31 % of attention on this image, 12 % on its padding" in said
    assert episode.instruction in said
    for fact in ("failure", "2025-12-11_09-44-16", "pi05", "max over action tokens", "step 2",
                 "scale of the whole video", "most active by variance on the image"):  # fmt: skip
        assert fact in said[1]


def test_sink_corrected(tmp_path: Path) -> None:
    episode = PlantedEpisode(sinks=(("hand_camera", 1, 1, 0.22), ("varied_camera_1", 0, 0, 0.1)))
    raw = LayerMaps.load(episode, "prefix", 3, episode.cameras)
    maps = LayerMaps.load(episode, "prefix", 3, episode.cameras, sink_corrected=True)
    assert raw.maps["hand_camera"][2, 1, 1, 1] == np.float32(0.12)
    assert maps.maps["hand_camera"][2, 1, 1, 1] == 0
    # head 0 has no sink, and the other patches stay
    np.testing.assert_array_equal(maps.maps["hand_camera"][:, 0], raw.maps["hand_camera"][:, 0])
    assert maps.maps["hand_camera"][2, 1, 0, 3] == np.float32(0.05)
    scale = ColorScale()
    look = Look()
    drawing = Drawing("prefix", sink_corrected=True)
    scene = Scene(episode, drawing, episode.cameras, look=look, scale=scale)
    said = []
    for head in (0, 1):
        track = maps.track(head)
        said.append(scene.picture(track, 0, track.limits(scale, scene.geometries)[0]).texts)
    assert any("no sink to correct" in text for text in said[0])
    assert any("sink-corrected, 22 % removed" in text for text in said[1])
    assert any("sink-corrected, 10 % removed" in text for text in said[1])
    written = render_images(
        episode, tmp_path, layers=[3], phases=["prefix"], heads=False, look=LOOK,
        sink_corrected=True,
    )  # fmt: skip
    assert written[0].name == "prefix_L3_nosink_attn_vis_max.jpg"
    assert "sink-corrected" in written[-1].read_text()


def test_a_sink_becomes_the_median_of_the_other_image_patches() -> None:
    geometry = Geometry.letterbox((72, 128), (56, 56), (14, 14), anchor="top-left")
    maps = np.random.default_rng(0).random((5, 4, 4)).astype(np.float32)
    corrected = remove(maps, geometry, [(0, 1), (1, 2)])
    shown = {(r, c) for r, c in np.argwhere(geometry.coverage() > 0)} - {(0, 1), (1, 2)}
    for k in range(5):
        ordered = sorted(float(maps[k, r, c]) for r, c in shown)
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        assert corrected[k, 0, 1] == corrected[k, 1, 2] == pytest.approx(middle)
    untouched = np.ones((4, 4), bool)
    untouched[0, 1] = untouched[1, 2] = False
    np.testing.assert_array_equal(corrected[:, untouched], maps[:, untouched])
    assert remove(maps, geometry, []) is maps
    with pytest.raises(SelectionError, match="outside the grid"):
        remove(maps, geometry, [(4, 0)])


def test_other_drawings_do_not_overwrite(tmp_path: Path) -> None:
    for options in ({}, {"step": 1}, {"reduce": "mean"}, {"step": -1}, {"step": 4}):
        render_images(
            PlantedEpisode(), tmp_path, layers=[0], phases=["suffix"], look=LOOK,
            cameras=["hand_camera"], **options,
        )  # fmt: skip
    assert {p.name for p in (tmp_path / NAME / "00008").iterdir()} == {
        "suffix_L0_attn_vis_max.jpg", "L0_suffix_heads",
        "suffix_L0_step01_attn_vis_max.jpg", "L0_suffix_step01_heads",
        "suffix_L0_attn_vis_mean.jpg", "L0_suffix_mean_heads",
    }  # fmt: skip


def test_all_layers_by_default(tmp_path: Path) -> None:
    written = render_images(
        PlantedEpisode(), tmp_path, phases=["prefix"], heads=False, look=LOOK, workers=1
    )
    assert len(written) == 3 * 4 + 1


def test_workers_change_nothing(tmp_path: Path) -> None:
    for workers in (1, 3):
        render_images(
            PlantedEpisode(), tmp_path / str(workers), layers=[0, 2], look=LOOK, workers=workers
        )
    assert files_below(tmp_path / "1") == files_below(tmp_path / "3")
    for name in files_below(tmp_path / "1"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_a_broken_image_is_named_and_there_is_no_marker(tmp_path: Path) -> None:
    episode = PlantedEpisode()
    render_images(episode, tmp_path, layers=[0], look=LOOK)
    marker = EpisodeFolder.of(tmp_path, NAME, "failure", "2025-12-11").marker()
    assert marker.exists()
    whole = episode.images[2, "hand_camera"]
    episode.images[2, "hand_camera"] = whole[:50]
    message = f"episode {NAME}: hand_camera at keyframe 2 is not a readable image"
    with pytest.raises(EpisodeError, match=message):
        render_images(episode, tmp_path, layers=[0], look=LOOK)
    assert not marker.exists()
    with pytest.raises(EpisodeError, match=message):
        render_videos(episode, tmp_path / "videos", layers=[0], look=LOOK)
    assert files_below(tmp_path / "videos") == set()
    episode.images[2, "hand_camera"] = episode.images[2, "varied_camera_1"]
    with pytest.raises(EpisodeError, match="is 128x96 pixels; its geometry says 128x72"):
        render_images(episode, tmp_path, layers=[0], look=LOOK)


@pytest.mark.parametrize("function", [render_images, render_videos])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [4]}, "prefix has layers 0 to 3; there is no 4"),
        ({"layers": [-1]}, "there is no -1"),
        ({"layers": []}, "no layers"),
        ({"phases": ["joint"]}, "no phase 'joint'; there are prefix, suffix"),
        ({"phases": []}, "no phases"),
        ({"cameras": ["top"]}, "no camera 'top'; there are hand_camera, varied_camera_1"),
        ({"cameras": []}, "no cameras"),
        ({"step": 5}, "suffix has steps 0 to 4; there is no 5"),
        ({"reduce": "sum"}, "max or mean"),
        ({"summary": False, "heads": False}, "nothing to draw"),
    ],
)
def test_refusals_write_nothing(
    tmp_path: Path, function: object, options: dict[str, object], message: str
) -> None:
    assert callable(function)
    with pytest.raises(UsageError, match=message):
        function(PlantedEpisode(), tmp_path, **{"layers": [0], **options})
    assert files_below(tmp_path) == set()


def test_format_and_codec_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format is one of jpg, png, webp"):
        render_images(PlantedEpisode(), tmp_path, layers=[0], format="gif")
    with pytest.raises(UsageError, match="codec is one of"):
        render_videos(PlantedEpisode(), tmp_path, layers=[0], codec="gif")
    with pytest.raises(UsageError, match="vp9 goes into"):
        render_videos(PlantedEpisode(), tmp_path, layers=[0], extension="mp4")
    with pytest.raises(UsageError, match="cannot name a folder"):
        render_images(PlantedEpisode(name="../../x"), tmp_path, layers=[0])
    assert files_below(tmp_path) == set()


def test_the_pool_stops_at_the_first_error_and_keeps_order() -> None:
    started: list[int] = []

    def task(i: int) -> int:
        started.append(i)
        if i == 3:
            raise RuntimeError("three")
        return i

    results = run((partial(task, i) for i in range(100)), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="three"):
        next(results)
    assert len(started) < 12
