"""What a notebook shows: a still, a player, xarray's own plots."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import av
import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser
from store_fixtures import write_episode
from viewer_fixtures import browser  # noqa: F401  a fixture

import attnstore
from attnstore.errors import SelectionError, UsageError
from attnstore.render import Look, render_images
from attnstore.render.notebook import Player, Still
from attnstore.store.opening import create_store

FRAMES = 3


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> attnstore.Episode:
    paths = create_store(tmp_path_factory.mktemp("notebook") / "lab.attn")
    write_episode(paths, "success/d/a", keyframes=FRAMES)
    return attnstore.open(paths.root).episode("a")


def test_a_still_is_the_picture_that_is_rendered(
    episode: attnstore.Episode, tmp_path: Path
) -> None:
    look = Look(pane_width=200)
    drawn = render_images(
        episode, tmp_path, layers=[1], phases=["prefix"], heads=[0], look=look, format="png"
    )
    (active,) = (p for p in drawn if "00008" in p.parts and "vis_max" in p.name)
    (head,) = (p for p in drawn if "00008" in p.parts and p.name == "head_00.png")
    for path, still in (
        (active, episode.show(layer=1, frame=8, width=200)),
        (head, episode.show("prefix", layer=1, head=0, keyframe=1 - FRAMES, width=200)),
    ):
        assert isinstance(still, Still)
        rendered = cv2.imread(str(path))[..., ::-1]  # type: ignore[index]
        np.testing.assert_array_equal(still.pixels, rendered)
        with Image.open(io.BytesIO(still._repr_jpeg_())) as image:
            assert image.size == still.pixels.shape[1::-1]
    assert "L01 H00" in repr(still)


def test_without_a_layer_it_is_the_one_with_the_liveliest_head(episode: attnstore.Episode) -> None:
    best = max(
        range(episode.layers("prefix")),
        key=lambda layer: max(
            float(episode.stats("prefix", c, "variance", layer=layer).mean("keyframe").max())
            for c in episode.cameras
        ),
    )
    assert f"L{best:02d} H" in repr(episode.show(width=200))
    other = episode.show(layer=1 - best, width=200)
    assert f"L{best:02d} H" not in repr(other)


def test_a_player_needs_nothing_but_its_page(
    episode: attnstore.Episode,
    browser: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    player = episode.animate("suffix", layer=0, head=1, step="first", width=120, fps=20)
    assert isinstance(player, Player)
    assert list(player.places) == [f"frame {8 * k}, keyframe {k + 1} of 3" for k in range(3)]
    # one colour scale: the brightest of all keyframes ends every colour bar
    assert len({p.texts[-3:] for p in player.pictures}) == 1
    page = tmp_path / "page.html"
    page.write_text(f"<body>{player._repr_html_()}{player._repr_html_()}", encoding="utf-8")
    requests: list[str] = []
    tab = browser.new_page()
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    one, other = (tab.frame_locator("iframe").nth(k) for k in range(2))
    one.get_by_role("button").click()
    one.get_by_text("keyframe 3 of 3").wait_for(timeout=5000)
    one.get_by_role("button", name="Pause").click()
    slider = other.get_by_role("slider", name="keyframe")
    slider.press("ArrowRight")
    other.get_by_text("frame 8, keyframe 2 of 3").wait_for(timeout=5000)
    assert slider.get_attribute("aria-valuetext") == "frame 8, keyframe 2 of 3"
    source = other.locator("img").get_attribute("src") or ""
    tab.close()
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "about"}
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        seen = np.asarray(image.convert("RGB"), float)
    assert np.abs(seen - player.pictures[1].pixels).mean() < 6  # WebP's loss


def test_text_of_a_data_set_is_no_markup(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "lab.attn")
    write_episode(paths, "</script><script>alert(1)</script>\"'&lt;", keyframes=1)
    (episode,) = attnstore.open(paths.root).episodes.values()
    player = episode.animate(layer=0, width=80)
    assert isinstance(player, Player)
    assert len(re.findall("<script>", player.page)) == 1
    assert player._repr_html_().count("<") == 2  # the frame's two tags


@pytest.mark.parametrize("kind", ["gif", "webp", "webm", "mp4"])
def test_a_player_is_written_as_what_moves(
    kind: str, episode: attnstore.Episode, tmp_path: Path
) -> None:
    player = episode.animate(layer=0, width=100, fps=5)
    assert isinstance(player, Player)
    path = player.save(tmp_path / f"x.{kind}")
    if kind in ("gif", "webp"):
        with Image.open(path) as image:
            assert image.n_frames == FRAMES  # type: ignore[attr-defined]
            image.seek(2)
            image.load()
            assert image.info["duration"] == 200
            last = np.asarray(image.convert("RGB"), float)
    else:
        with av.open(path) as video:
            frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
        assert len(frames) == FRAMES
        last = frames[-1].astype(float)
    height, width = player.pictures[2].pixels.shape[:2]
    assert np.abs(last[:height, :width] - player.pictures[2].pixels).mean() < 16


def test_mistakes_name_what_there_is(episode: attnstore.Episode, tmp_path: Path) -> None:
    for call, error, says in (
        (lambda: episode.show(layer=7), SelectionError, "layers 0 to 1; there is no 7"),
        (lambda: episode.show(head="lab"), SelectionError, "a number or 'active'"),  # type: ignore[arg-type]
        (lambda: episode.show(frame=3), SelectionError, "frame 3 is no keyframe"),
        (lambda: episode.show(frame=8, keyframe=1), SelectionError, "keyframe or frame"),
        (lambda: episode.animate(fps=0), UsageError, "more than 0"),
        (lambda: episode.animate(layer=0).save(tmp_path / "x.bmp"), UsageError, r"\.html, \.gif"),
        (lambda: episode.show(layer=0).save(tmp_path / "x.bmp"), UsageError, "format is one of"),
    ):
        with pytest.raises(error, match=says):
            call()
    assert not list(tmp_path.iterdir())


def test_xarray_plots_a_map_as_it_lies_on_the_image(episode: attnstore.Episode) -> None:
    """Row 0 is the image's top; without `yincrease=False` xarray, as of any array, draws it below."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = episode.maps("prefix", "hand_camera", layer=0, head=1, keyframe=0)
    try:
        drawn = shown.plot.imshow(yincrease=False)
        bottom, top = drawn.axes.get_ylim()
        assert bottom > top
        np.testing.assert_array_equal(drawn.get_array(), shown.values)
        assert drawn.colorbar is not None
        assert " ".join(drawn.colorbar.ax.get_ylabel().split()) == shown.attrs["long_name"]
        lines = episode.stats("prefix", "hand_camera", "entropy", head=0).plot.line(x="keyframe")
        assert len(lines) == episode.layers("prefix")
    finally:
        plt.close("all")
