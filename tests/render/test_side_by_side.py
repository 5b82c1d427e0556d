"""Videos of one episode in two runs, from a real store in which one head differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from store_fixtures import (
    CAMERAS,
    POLICY,
    SOURCE,
    RandomEpisode,
    random_episode,
    run_config,
    write_blocks,
    write_episode,
    write_rows,
)

import attnstore
from attnstore.commands.compare import compare as command
from attnstore.query import Episode, Store
from attnstore.query.groups.run_diff import diff_episodes
from attnstore.render import Look
from attnstore.render.files.side_by_side import Pair, PairScene, render_side_by_side
from attnstore.render.picture import colormap
from attnstore.render.picture.drawing import Drawing
from attnstore.render.picture.layout import Box, arrange_pair
from attnstore.store.commits import Attempt, StorePaths, slug
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import AttnstoreError, SelectionError, UsageError
from attnstore.store.opening import create_store
from attnstore.store.rules import Active

NAME = "success/2025-01-01/2025-01-01_10-00-00"
CAMERA = CAMERAS[0]
LAYER, KEYFRAME = 1, 1
SPOT = (1, 2)
"""Patch on which everything that run b's heads give to the camera lies at that keyframe."""
# colours of the map itself, so that a pixel's heat can be told from its colour
LOOK = Look(interpolation="nearest", blend="constant", alpha=1.0, pane_width=128)


def planted(episode: RandomEpisode) -> RandomEpisode:
    """Move the attention on one camera to one patch, in one layer and keyframe."""
    weights = {at: values.copy() for at, values in episode.weights.items()}
    values = weights["prefix", KEYFRAME, LAYER, None]
    (at,) = episode.layouts[KEYFRAME]["prefix"].key.group(f"image:{CAMERA}")
    grid = episode.spec.geometry[CAMERA].grid
    spot = int(np.ravel_multi_index(SPOT, grid))
    total = values[..., at].sum(-1)
    values[..., at] = 0.0
    values[..., at.start + spot if isinstance(at, slice) else int(at[spot])] = total
    return replace(episode, weights=weights)


def write(paths: StorePaths, episode: RandomEpisode, run_seed: int) -> str:
    run = save_run(paths, run_config(run_seed), {"host": "test"})
    writer = EpisodeWriter(
        Attempt(paths, run, slug(episode.spec.name), "base"), episode.spec, POLICY
    )
    write_blocks(writer, episode)
    write_rows(writer, episode)
    writer.commit({}, after=0)
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("pair") / "toy.attn"
    paths = create_store(root)
    episode = random_episode(NAME)
    write(paths, episode, 0)
    write(paths, planted(episode), 1)
    # run c: other keyframes; run d: another prompt and two of the three frames
    write_episode(paths, NAME, run_seed=2, keyframes=1)
    prompted = random_episode(NAME, seed=5)
    spec = replace(prompted.spec, instruction="close the drawer", frames=(4, 8, 16))
    write(paths, replace(prompted, spec=spec), 3)
    return attnstore.open(root)


def episode_of(store: Store, seed: int) -> Episode:
    return store.episode(NAME, run=run_config(seed).id)


@pytest.fixture(scope="module")
def a(store: Store) -> Episode:
    return episode_of(store, 0)


@pytest.fixture(scope="module")
def b(store: Store) -> Episode:
    return episode_of(store, 1)


def scene_of(a: Episode, b: Episode, reduce: Any = "max", look: Look = LOOK) -> PairScene:
    found = diff_episodes(a, b, reduce=reduce).squeeze("step")
    return PairScene(a, b, Drawing("prefix", reduce), found, look)


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [
            np.asarray(f.to_ndarray(format="rgb24"), np.uint8) for f in container.decode(video=0)
        ]


def panes(scene: PairScene, pixels: NDArray[np.uint8], camera: str = CAMERA) -> list[Any]:
    block = scene.blocks[camera]
    return [pixels[block.original.slices].astype(int), pixels[block.overlay.slices].astype(int)]


def middle(scene: PairScene, pane: NDArray[np.int_], patch: tuple[int, int]) -> Any:
    """Colour at the middle of a patch that shows image."""
    geometry = scene.episodes[0].geometry(CAMERA)
    rows, cols = (np.arange(n, dtype=np.float64) + 0.5 for n in SOURCE)
    row, _ = geometry.source_to_grid(rows, np.zeros(len(rows)))
    _, col = geometry.source_to_grid(np.zeros(len(cols)), cols)
    y = np.abs(row - patch[0] - 0.5).argmin() / SOURCE[0] * pane.shape[0]
    x = np.abs(col - patch[1] - 0.5).argmin() / SOURCE[1] * pane.shape[1]
    return pane[int(y), int(x)]


# --- the video ---


def test_a_video_has_every_keyframe_and_the_difference_in_the_right_pane_alone(
    a: Episode, b: Episode, tmp_path: Path
) -> None:
    written = render_side_by_side(
        a, b, tmp_path, layers=[1, 0], phase="prefix", look=LOOK, codec="mjpeg"
    )
    assert [p.relative_to(tmp_path).as_posix() for p in written] == [
        f"{NAME}/L0{layer}_prefix_max_{a.run}_vs_{b.run}.avi" for layer in (1, 0)
    ]
    scene = scene_of(a, b)
    changed, same = (frames_of(path) for path in written)
    for film in (changed, same):
        assert [f.shape for f in film] == [(scene.layout.height, scene.layout.width, 3)] * 3
    hottest = colormap.table(LOOK.cmap)[255].astype(int)
    for film, layer in ((changed, LAYER), (same, 0)):
        for keyframe, pixels in enumerate(film):
            left, right = panes(scene, pixels)
            if layer == LAYER and keyframe == KEYFRAME:
                assert np.abs(middle(scene, right, SPOT) - hottest).max() < 40
                assert np.abs(middle(scene, left, SPOT) - hottest).max() > 80
                assert np.abs(left - right).mean() > 20
            else:
                assert np.abs(left - right).mean() < 4  # lossy
            left, right = panes(scene, pixels, CAMERAS[1])
            assert np.abs(left - right).mean() < 4


def test_by_default_it_is_a_webm(a: Episode, b: Episode, tmp_path: Path) -> None:
    (path,) = render_side_by_side(
        a, b, tmp_path, layers=[1], phase="suffix", heads=1, step=0, reduce="mean", fps=5,
        cameras=[CAMERA, CAMERA], look=Look(pane_width=96),
    )  # fmt: skip
    assert path == tmp_path / NAME / "L1" / f"H01_suffix_mean_step00_{a.run}_vs_{b.run}.webm"
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name.endswith("vp9")
        assert float(container.streams.video[0].average_rate or 0) == 5
    assert len(frames_of(path)) == 3


# --- one picture ---


def pair_of(scene: PairScene) -> Pair:
    return scene.load(LAYER, None)


@pytest.mark.parametrize("active", ["image", "lab"])
def test_the_head_is_active_by_the_rule_that_is_asked(
    a: Episode, b: Episode, active: Active
) -> None:
    drawing = Drawing("prefix", "mean", None)
    scene = PairScene(a, b, drawing, diff_episodes(a, b, reduce="mean"), LOOK, active)
    heads = [{c: int(h[0]) for c, h in scene.load(n, None).tracks[0].heads.items()} for n in (0, 1)]
    expected = []
    for layer in (0, 1):
        maps = {c: a.maps("prefix", c, layer=layer, reduce="mean").values for c in CAMERAS}
        weights = {c: a.geometry(c).coverage() for c in CAMERAS}
        if active == "lab":
            weights = {c: np.ones_like(w) for c, w in weights.items()}
        expected.append({c: most_varied(maps[c].astype(float), weights[c]) for c in CAMERAS})
    assert heads == expected


def most_varied(maps: NDArray[Any], weight: NDArray[Any]) -> int:
    """Head whose map, (keyframe, head, row, col), varies most over the keyframes."""
    mean = (maps * weight).sum((-2, -1)) / weight.sum()
    square = (maps**2 * weight).sum((-2, -1)) / weight.sum()
    return int((square - mean**2).mean(0).argmax())


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_the_head_is_the_active_one_of_a_and_the_divergence_that_of_the_maps_shown(
    a: Episode, b: Episode, reduce: str
) -> None:
    scene = scene_of(a, b, reduce, look=Look(pane_width=640))
    pair = pair_of(scene)
    found_as: Literal["max", "mean"] = "max" if reduce == "max" else "mean"
    found = diff_episodes(a, b, reduce=found_as)
    for camera in CAMERAS:
        head = a.active_head("prefix", camera, layer=LAYER, reduce=found_as)
        for track, episode in zip(pair.tracks, (a, b), strict=True):
            assert set(track.heads[camera]) == {head}
            maps = episode.maps(
                "prefix", camera, layer=LAYER, head=head,
                reduce="max" if reduce == "max" else "mean",
            ).values  # fmt: skip
            assert_array_equal(track.maps[camera], maps)
        expected = found.sel(camera=camera, layer=LAYER, head=head, step=-1).values
        assert_array_equal(pair.divergence[camera], expected)
        for keyframe in range(3):
            texts = scene.picture(pair, keyframe).texts
            assert any(f"Jensen-Shannon {expected[keyframe]:.3f} bits" in t for t in texts)
            assert f"{camera} · L01 H{head:02d}, most active in a" in texts
    assert pair.divergence[CAMERA][KEYFRAME] > 0.3
    assert pair.divergence[CAMERA][0] == 0.0


def test_the_reductions_diverge_differently(a: Episode, b: Episode) -> None:
    largest, mean = (diff_episodes(a, b, reduce=r) for r in ("max", "mean"))
    assert largest.attrs["reduce"] == "max"
    assert not np.allclose(largest.values, mean.values)


def test_equal_attention_has_equal_colour_in_both_panes(a: Episode, b: Episode) -> None:
    scene = scene_of(a, b)
    pair = pair_of(scene)
    one, other = (track.maps[CAMERA] for track in pair.tracks)
    cover = a.geometry(CAMERA).coverage() > 0
    assert pair.limits[CAMERA].vmax == max(one[:, cover].max(), other[:, cover].max())
    assert one[:, cover].max() < 0.97 * pair.limits[CAMERA].vmax  # run a's own scale would differ
    table = colormap.table(LOOK.cmap).astype(int)
    for keyframe in range(3):
        both = panes(scene, scene.picture(pair, keyframe).pixels)
        for maps, pane in zip((one, other), both, strict=True):
            for patch in np.argwhere(cover):
                value = maps[keyframe][tuple(patch)] / pair.limits[CAMERA].vmax
                expected = table[round(float(255 * value))]
                assert_allclose(middle(scene, pane, (patch[0], patch[1])), expected, atol=6)
    left, right = panes(scene, scene.picture(pair, 0).pixels)
    assert_array_equal(left, right)


def test_headings_name_the_runs_and_prompts_only_where_they_differ(
    store: Store, a: Episode, b: Episode
) -> None:
    look = Look(pane_width=640)
    same = scene_of(a, b, look=look)
    texts = same.picture(pair_of(same), 0).texts
    assert texts[0] == a.instruction
    assert {f"a: {a.run}", f"b: {b.run}", "pi0"} <= set(texts)
    assert sum(a.instruction in text for text in texts) == 1
    other = episode_of(store, 3)
    prompted = scene_of(a, other, look=look)
    texts = prompted.picture(pair_of(prompted), 1).texts
    assert texts[0] == "2025-01-01_10-00-00"
    assert {f"pi0 · {a.instruction}", "pi0 · close the drawer"} <= set(texts)
    # a has 0, 8 and 16, the other 4, 8 and 16
    assert prompted.frames == [8, 16]
    assert "2 keyframes in common of 3 and 3" in texts[1]
    assert any(text.startswith("frame 16, keyframe 2/2") for text in texts)
    for track, episode in zip(pair_of(prompted).tracks, (a, other), strict=True):
        head = int(track.heads[CAMERA][0])
        maps = episode.maps("prefix", CAMERA, layer=LAYER, head=head).values
        assert_array_equal(track.maps[CAMERA], maps[1:])


@pytest.mark.parametrize("lines", [1, 2])
@pytest.mark.parametrize("sizes", [[(720, 1280)], [(720, 1280)] * 2, [(640, 480), (48, 64)]])
@pytest.mark.parametrize("pane_width", [64, 640])
def test_boxes_are_apart_and_on_the_canvas(
    sizes: list[tuple[int, int]], lines: int, pane_width: int
) -> None:
    layout = arrange_pair(sizes, pane_width, lines)
    boxes: list[Box] = [layout.title, *layout.headings]
    for block in layout.blocks:
        boxes += [block.original, block.overlay, block.bar]
        boxes += [block.original_label, block.overlay_label]
        assert block.original.y == block.overlay.y
        assert block.original.x < block.overlay.x
    taken = np.zeros((layout.height, layout.width), int)
    for box in boxes:
        assert box.x + box.width <= layout.width
        assert box.y + box.height <= layout.height
        taken[box.slices] += 1
    assert taken.max() == 1


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [7]}, "prefix has layers 0 to 1; there is no 7"),
        ({"phase": "joint"}, "no phase 'joint'"),
        ({"cameras": ["left"]}, "no camera 'left'"),
        ({"heads": 2}, "prefix has heads 0 to 1; there is no 2"),
        ({"phase": "suffix", "step": 2}, "suffix has steps 0 to 1; there is no 2"),
        ({"codec": "gif"}, "a codec is one of vp9"),
    ],
    ids=str,
)
def test_a_wrong_question_gets_one_line(
    a: Episode, b: Episode, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        render_side_by_side(a, b, tmp_path, **{"layers": [1], "phase": "prefix", **options})
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_keyframes_must_meet(a: Episode, tmp_path: Path) -> None:
    root = tmp_path / "toy.attn"
    paths = create_store(root)
    episode = random_episode(NAME)
    moved = replace(episode, spec=replace(episode.spec, frames=(3, 11, 19)))
    write(paths, moved, 1)
    other = attnstore.open(root).episode(NAME)
    with pytest.raises(SelectionError, match="no frame is a keyframe of both runs"):
        render_side_by_side(a, other, tmp_path / "out", layers=[1], phase="prefix")
    assert not (tmp_path / "out").exists()


def test_it_takes_two_runs_of_one_episode(a: Episode, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        render_side_by_side(a, a, tmp_path, layers=[1], phase="prefix")
    paths = create_store(tmp_path / "toy.attn")
    write_episode(paths, "success/2025-01-01/another", run_seed=1)
    other = attnstore.open(paths.root).episode("another")
    with pytest.raises(SelectionError, match="two runs of one episode"):
        render_side_by_side(a, other, tmp_path, layers=[1], phase="prefix")


# --- command line ---


def run(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(command, ["runs", str(store.paths.root), *arguments])


def test_command_draws(store: Store, a: Episode, b: Episode, tmp_path: Path) -> None:
    done = run(
        store, a.run, b.run, "--episode", NAME, "--videos", str(tmp_path / "out"),
        "--layers", "1", "--camera", CAMERA,
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert [p.name for p in files] == [f"L01_prefix_mean_{a.run}_vs_{b.run}.webm"]
    assert len(frames_of(files[0])) == 3
    assert f"{NAME}: 1 files below" in done.stderr
    assert "L01" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("A", "B", "--layers", "1"), "--layers goes with --videos"),
        (("A", "B", "--videos", "x", "--layers", "one"), "--layers takes numbers"),
        (("A", "B", "--videos", "x", "--step", "all"), "--videos draws one step"),
        (("A", "B", "--videos", "x", "--query", "text"), "it takes no --query"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_command_refuses(
    store: Store, a: Episode, b: Episode, arguments: tuple[str, ...], message: str
) -> None:
    done = run(store, *({"A": a.run, "B": b.run}.get(word, word) for word in arguments))
    assert isinstance(done.exception, AttnstoreError)
    assert message in str(done.exception)
    assert done.stdout == ""
