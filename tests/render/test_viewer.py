"""The viewer page in a real browser, against a real service and a store whose attention is known."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from service_fixtures import SCRIPT, TOKEN, start, stop
from store_fixtures import random_episode
from under_way import HandMade
from viewer_fixtures import (
    CUBE,
    EFFECTS,
    GEOMETRIES,
    HEAD,
    LAYER,
    LOOKS,
    SCREENSHOTS,
    Planted,
    browser,
    cell_mask,
    commit_episode,
    decoded,
    page,
    pixels,
    planted,
    planted_episode,
    settle,
)

import attnstore
from attnstore.query import Episode
from attnstore.query.attention import rollout_map
from attnstore.query.groups.run_diff import diff_episodes
from attnstore.render.picture import colormap
from attnstore.render.serving import PAGE
from attnstore.store.catalog import refresh
from attnstore.store.commits import StorePaths, all_commits, log_of, slug
from attnstore.store.commits.entry import commit_draft, sealed
from attnstore.store.opening import create_store

__all__ = ["browser", "page", "planted"]  # fixtures
expect.set_options(timeout=20_000)  # a machine of CI may be busy
CAMERAS = tuple(GEOMETRIES)


def episode_of(planted: Planted, number: int = 0) -> Episode:
    return attnstore.open(planted.root).episode(list(planted.episodes)[number])


def show(page: Page, planted: Planted, **view: Any) -> None:
    page.goto(planted.address(**view))
    settle(page)


def test_the_first_page_is_an_overview(page: Page, planted: Planted) -> None:
    """Outcomes, pictures, where layers look against NumPy, the most active heads, health; all opens."""
    page.goto(f"{planted.server.url}/?token={TOKEN}")
    settle(page)
    assert TOKEN not in page.url
    expect(page.locator(".episodes tbody tr")).to_have_count(3)
    expect(page.get_by_role("tab", name="Overview")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".glimpse canvas[data-drawn]")).to_have_count(3)
    expect(page.get_by_role("button", name=re.compile("^2 success"))).to_be_visible()
    episodes = [episode_of(planted, i) for i in range(3)]
    for layer in (0, 1):
        seen = {
            c: np.mean(
                [e.stats("prefix", c, "camera_mass").values[:, layer].mean() for e in episodes]
            )
            for c in CAMERAS
        }
        said = ", ".join(f"{c} {100 * share:.1f} %" for c, share in seen.items())
        expect(page.get_by_role("button", name=f"L{layer:02} of prefix: {said}")).to_be_visible()
    variance = {
        (layer, head): np.mean(
            [
                e.stats("prefix", CAMERAS[0], "variance").values[:, layer, head].mean()
                for e in episodes
            ]
        )
        for layer, head in np.ndindex(2, 2)
    }
    layer, head = max(variance, key=lambda at: variance[at])
    row = (
        page.get_by_label("Most active heads")
        .locator("tbody tr", has_text=f"prefix{CAMERAS[0]}")
        .first
    )
    expect(row).to_contain_text(f"L{layer:02} H{head:02}")
    health = page.get_by_label("Health")
    expect(health.locator("li.good")).to_have_count(3)
    row.get_by_role("button").click()
    expect(page.locator(".pane figcaption").first).to_contain_text(f"L{layer:02} H{head:02}")
    page.get_by_role("tab", name="Overview").click()
    page.locator(".glimpse").first.click()
    expect(page.locator("h1")).to_have_text("success/2025-01-01/2025-01-01_11-00-00")
    assert page.title() == "success/2025-01-01/2025-01-01_11-00-00 · attnstore"
    settle(page)
    expect(page.locator(".pane")).to_have_count(2)
    assert all(pixels(page, camera).any() for camera in CAMERAS)
    page.goto("about:blank")  # a view that needs an episode finds one: a success
    page.goto(f"{planted.server.url}/#store=planted&view=look")
    expect(page.locator("h1")).to_contain_text("success/")


def test_episodes_are_filtered(page: Page, planted: Planted) -> None:
    show(page, planted)
    rows = page.locator(".episodes tbody tr")
    page.get_by_role("radio", name="failure").click()
    expect(rows).to_have_count(1)
    page.get_by_role("radio", name="all").click()
    expect(rows).to_have_count(3)
    page.get_by_label("Filter episodes").fill("_11-00")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("2025-01-01_11-00-00")
    page.get_by_label("Filter episodes").fill("it's not there")
    expect(page.get_by_text("No episode matches.")).to_be_visible()
    page.get_by_label("Filter episodes").fill("CUBE")
    expect(rows).to_have_count(3)
    page.get_by_label("SQL condition").fill("keyframes >= 4")
    expect(rows).to_have_count(2)
    rows.last.get_by_role("button").click()
    expect(page.locator("h1")).to_contain_text("2025-01-01_12-00-00")
    page.expected_failures.append("400 (Bad Request)")  # type: ignore[attr-defined]
    page.get_by_label("SQL condition").fill("no_such_column > 1")
    expect(page.locator(".episodes .error")).to_contain_text("no_such_column")
    page.get_by_label("SQL condition").fill("")
    page.get_by_label("Filter episodes").fill("")
    page.get_by_role("button", name="Keyframes").click()
    expect(rows.first).to_contain_text("2025-01-01_10-00-00")
    page.get_by_role("button", name="Keyframes").click()
    expect(rows.first).to_contain_text("2025-01-01_12-00-00")


def test_a_long_list_holds_what_is_in_sight(browser: Browser, tmp_path: Path) -> None:
    """Rows come as one scrolls; keys reach the last one; the filter asks the whole store."""
    paths = create_store(tmp_path / "long.attn")
    made = random_episode("success/first", keyframes=1, layers=1, heads=1, steps=1)
    commit_episode(paths, made, 0)
    (commit,) = all_commits(paths)
    count = 260
    for number in range(1, count):
        name = f"success/e{number:04d}"
        summary = {**commit.summary, "name": name, "instruction": f"put number {number} away"}
        again = replace(commit, episode=slug(name), attempt=f"{number:012x}", summary=summary)
        for file in commit.files:
            target = again.directory(paths) / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(commit.directory(paths) / file.path, target)
        history = log_of(paths).update()
        entry = sealed({"number": history.head + 1, "previous": history.tip, **commit_draft(again)})
        paths.entry(history.head + 1).write_bytes(entry)
    refresh(paths)
    server = start(paths.root, log=tmp_path / "serve.log")
    try:
        page = browser.new_page()
        page.goto(f"{server.url}/?token={TOKEN}#view=sql")
        rows = page.locator(".episodes tbody tr:not(.gap)")
        expect(page.locator(".episodes .count")).to_have_text(f"{count} episodes")
        assert rows.count() < 60
        assert page.locator(".episodes table").get_attribute("aria-rowcount") == str(count + 1)
        rows.first.get_by_role("button").focus()
        page.keyboard.press("End")
        last = page.locator(f'[data-index="{count - 1}"]')
        expect(last).to_be_focused()
        expect(last).to_contain_text("first")  # f is after e
        assert rows.count() < 60
        page.keyboard.press("ArrowUp")
        expect(page.locator(f'[data-index="{count - 2}"]')).to_contain_text(f"e{count - 1:04d}")
        page.get_by_label("Filter episodes").fill("number 24")
        expect(rows).to_have_count(11)  # 24, 240 to 249
        page.get_by_label("Filter episodes").fill("")
        expect(rows.first).to_contain_text("e0001")
        page.close()
    finally:
        stop(server)


def test_the_text_of_an_error_over_a_picture_can_be_read(page: Page, planted: Planted) -> None:
    page.expected_failures.append("404")  # type: ignore[attr-defined]
    said = "the image of varied_camera_1 at this keyframe is not in the store " * 4
    answer = json.dumps({"error": {"message": said}})
    page.route("**/frames/0/varied_camera_1*", lambda r: r.fulfill(status=404, body=answer))
    page.goto(planted.address())
    shown = page.locator('[data-camera="varied_camera_1"] .stage .error')
    expect(shown).to_have_text(said.strip())
    lines, size = shown.evaluate(
        """e => { const range = document.createRange(); range.selectNodeContents(e);
          const tops = new Set([...range.getClientRects()].map(r => r.top));
          return [[...tops], parseFloat(getComputedStyle(e).fontSize)]; }"""
    )
    assert len(lines) > 2
    assert (np.diff(lines) > size).all(), "lines lie over each other"
    page.wait_for_load_state("networkidle")  # the service is to end without open requests


@pytest.mark.parametrize("number", LOOKS)
def test_a_token_is_clicked_and_its_patch_is_hot(page: Page, planted: Planted, number: int) -> None:
    """Every colour is the heat's own: where the planted patch is, by the geometry in Python."""
    show(page, planted, layer=LAYER, head=HEAD, blend="constant", alpha=1, interpolation="nearest")
    id = next(iter(planted.episodes))
    page.locator(f'[data-token="{planted.token(id, number)}"]').click()
    expect(page.locator('.token[aria-pressed="true"]')).to_have_count(1)
    settle(page)
    camera, row, col = LOOKS[number]
    geometry = GEOMETRIES[camera]
    seen = pixels(page, camera).astype(int)
    height, width = seen.shape[:2]
    assert (height, width) == geometry.source
    rows, _ = geometry.source_to_grid(np.arange(height) + 0.5, np.zeros(height))
    _, cols = geometry.source_to_grid(np.zeros(width), np.arange(width) + 0.5)
    top, left, crop_height, crop_width = geometry.crop or (0, 0, *geometry.source)
    inside_y = (np.arange(height) + 0.5 > top) & (np.arange(height) + 0.5 < top + crop_height)
    inside_x = (np.arange(width) + 0.5 > left) & (np.arange(width) + 0.5 < left + crop_width)
    hot = ((np.floor(rows) == row) & inside_y)[:, None] & ((np.floor(cols) == col) & inside_x)
    assert 100 < hot.sum() < 300
    colours = colormap.table("inferno").astype(int)
    assert (abs(seen[hot] - colours[255]) <= 1).all()
    cold = (inside_y[:, None] & inside_x) & ~hot
    # 0.1 / (keys - 1) of 0.9 is one of the first colours
    assert (seen[cold].sum(-1) < 60).all()
    other = next(c for c in CAMERAS if c != camera)
    expect(page.locator(f'[data-camera="{other}"] .readout')).not_to_contain_text("0.9")
    expect(page.locator(f'[data-camera="{camera}"] .readout')).to_contain_text(
        f"max 0.9 at patch {row}, {col}"
    )


@pytest.mark.parametrize(
    "look",
    [
        {"interpolation": "bilinear", "blend": "auto", "cmap": "inferno", "alpha": 0.75},
        {"interpolation": "bilinear", "blend": "spotlight", "cmap": "inferno", "alpha": 0.75},
        {"interpolation": "nearest", "blend": "proportional", "cmap": "viridis", "alpha": 0.5},
        {"interpolation": "bilinear", "blend": "constant", "cmap": "jet", "alpha": 0.9},
    ],
    ids=lambda look: look["blend"],
)
def test_pixels_are_those_of_the_renderer(
    page: Page, planted: Planted, look: dict[str, Any]
) -> None:
    """The browser draws what `render/picture/overlay.py` draws: two implementations, one picture."""
    id = next(iter(planted.episodes))
    for view in (
        {"phase": "prefix", "layer": LAYER, "head": HEAD, "keyframe": 2, "sinks": 0},
        {"phase": "suffix", "layer": 0, "head": "0", "keyframe": 1, "scale": "episode", "step": 0},
        {"phase": "prefix", "layer": 0, "head": "0", "keyframe": 0, "sinks": 1},
    ):
        page.goto("about:blank")
        show(page, planted, **view, **look)
        for camera in CAMERAS:
            asked: dict[str, Any] = {
                k: view[k] for k in ("phase", "layer", "head", "keyframe")
            } | look
            asked |= {"sink_corrected": bool(view.get("sinks")), "step": view.get("step", -1)}
            asked["scale"] = "video" if view.get("scale") == "episode" else "frame"
            url = f"/v1/stores/planted/episodes/{planted.run}/{id}/overlays/{camera}"
            answer = planted.server.get(url, format="png", **asked)
            assert answer.status == 200, answer.body
            drawn = decoded(answer.body)
            apart = np.abs(pixels(page, camera).astype(int) - drawn)
            # a value between two colours may be rounded to either
            assert apart.mean() < 0.5, (camera, view)
            assert np.quantile(apart, 0.99) <= 4, (camera, view)


def test_patches_are_brushed_and_tokens_say_how_much(page: Page, planted: Planted) -> None:
    show(page, planted, layer=LAYER, head=HEAD)
    id = next(iter(planted.episodes))
    camera, row, col = LOOKS[0]
    y, x = GEOMETRIES[camera].grid_to_source(np.array(row + 0.5), np.array(col + 0.5))
    stage = page.locator(f'[data-camera="{camera}"] .stage')
    box = stage.bounding_box()
    assert box is not None
    at = (box["x"] + float(x) / 64 * box["width"], box["y"] + float(y) / 36 * box["height"])
    page.mouse.click(*at)
    token = page.locator(f'[data-token="{planted.token(id, 0)}"]')
    expect(token).to_have_attribute(
        "title", re.compile(r"90\.0 % of its attention goes to patch 2, 1")
    )
    expect(token.locator(".share")).to_have_attribute("style", re.compile("height: 100%"))
    other = page.locator(f'[data-token="{planted.token(id, 1)}"] .share')
    assert other.evaluate("bar => parseFloat(bar.style.height)") < 2
    page.mouse.move(*at)
    page.mouse.down()
    page.mouse.up()
    expect(page.locator(".share")).to_have_count(0)  # clicked again: forgotten
    page.mouse.down()
    page.mouse.move(at[0] + box["width"] / 4, at[1], steps=4)
    page.mouse.up()
    expect(page.locator(".tokens h2")).to_contain_text("2 patches of hand_camera")
    weights = episode_of(planted).attention(
        "prefix", keyframe=0, layer=LAYER, head=HEAD, key=f"image:{camera}"
    )
    wanted = weights.values.astype(np.float32).reshape(-1, 4, 4)[planted.token(id, 0), 2, 1:3].sum()
    expect(token).to_have_attribute(
        "title", re.compile(f"{100 * wanted:.1f} %".replace(".", r"\."))
    )


def test_time_is_scrubbed_and_played(page: Page, planted: Planted) -> None:
    show(page, planted, episode=list(planted.episodes)[2], layer=1, head=0)
    canvas = page.locator(f'[data-camera="{CAMERAS[0]}"] canvas')
    first = pixels(page, CAMERAS[0])
    page.get_by_label("Keyframe", exact=True).fill("3")
    expect(canvas).to_have_attribute("data-drawn", "3")
    assert (pixels(page, CAMERAS[0]) != first).any()
    expect(page.locator(".timeline output")).to_contain_text("keyframe 4 of 5, frame 24, 1.6 s")
    page.get_by_role("button", name="Previous keyframe").click()
    expect(canvas).to_have_attribute("data-drawn", "2")
    page.locator("h1").click()
    page.keyboard.press("End")
    expect(canvas).to_have_attribute("data-drawn", "4")
    page.keyboard.press("Space")
    expect(canvas).not_to_have_attribute("data-drawn", "4")  # over the end
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()


def test_a_link_shows_the_same(page: Page, planted: Planted) -> None:
    show(page, planted)
    page.get_by_role("radio", name="suffix").click()
    page.get_by_label("Over them").get_by_role("radio", name="mean").click()
    page.get_by_role("combobox", name="Colours").select_option("cividis")
    page.get_by_role("combobox", name="Scale").select_option("cameras")
    page.get_by_role("combobox", name="Patches").select_option("nearest")
    page.get_by_role("slider", name="Step").fill("0")
    page.get_by_role("slider", name="Keyframe").fill("1")
    page.get_by_role("slider", name="Opacity").fill("0.5")
    page.get_by_role("gridcell", name="layer 1 head 0").click()
    page.get_by_role("combobox", name="Metric").select_option("gini")
    settle(page)
    page.wait_for_url(re.compile("metric=gini"))
    link = page.url
    for part in (
        "phase=suffix",
        "reduce=mean",
        "step=0",
        "keyframe=1",
        "alpha=0.5",
        "layer=1",
        "head=0",
    ):
        assert part in link
    before = [pixels(page, camera) for camera in CAMERAS]
    page.goto("about:blank")
    page.goto(link)
    settle(page)
    for camera, shown in zip(CAMERAS, before, strict=True):
        np.testing.assert_array_equal(pixels(page, camera), shown)
    expect(page.get_by_role("combobox", name="Metric")).to_have_value("gini")
    page.locator(".episodes tbody button").last.click()
    expect(page.locator("h1")).to_contain_text("12-00-00")
    page.go_back()
    expect(page.locator("h1")).to_contain_text("10-00-00")


def test_a_wrong_link_is_no_dead_end(page: Page, planted: Planted) -> None:
    page.expected_failures.append("404 (Not Found)")  # type: ignore[attr-defined]
    page.goto(planted.address(episode="nothing"))
    expect(page.get_by_role("alert")).to_contain_text("no episode nothing")
    page.locator(".episodes tbody button").first.click()
    settle(page)
    # what an episode lacks is replaced by what it has
    show(
        page, planted, layer=99, head=77, step=5, keyframe=-3, phase="none", cmap="none", alpha="x"
    )
    expect(page.get_by_role("slider", name="Layer")).to_have_value("1")


def test_the_matrix_shows_and_selects(page: Page, planted: Planted) -> None:
    show(page, planted, metric="entropy", camera=CAMERAS[1])
    wanted = np.nanmean(episode_of(planted).stats("prefix", CAMERAS[1], "entropy").values, 0)
    for layer, head in np.ndindex(wanted.shape):
        cell = page.locator(f'[data-cell="{layer}-{head}"]')
        text = cell.get_attribute("aria-label") or ""
        assert float(text.rpartition(" ")[2]) == pytest.approx(wanted[layer, head], rel=5e-3)
    page.locator('[data-cell="1-0"]').click()
    expect(page.locator('[data-cell="1-0"]')).to_have_attribute("aria-selected", "true")
    expect(page.locator(".pane figcaption").first).to_contain_text("L01 H00")
    page.keyboard.press("ArrowRight")
    expect(page.locator('[data-cell="1-1"]')).to_be_focused()
    expect(page.locator(".pane figcaption").first).to_contain_text("L01 H01")


def test_all_heads_and_all_layers_as_small_multiples(page: Page, planted: Planted) -> None:
    id = list(planted.episodes)[2]
    show(
        page, planted, episode=id, view="heads", layer=LAYER, head=0, keyframe=1, camera=CAMERAS[1]
    )
    tiles = page.locator(".tile")
    expect(tiles).to_have_count(2)
    maps = episode_of(planted, 2).maps("prefix", CAMERAS[1]).values  # keyframe, layer, head
    cover = cover_of(1)
    for number, head in enumerate((0, 1)):
        said = tiles.nth(number).locator(".name").inner_text()
        assert said.startswith(f"L{LAYER:02} H{head:02}")
        assert float(said.split()[-1]) == pytest.approx(maps[1, LAYER, head][cover].max(), rel=5e-3)
    expect(tiles.first).to_have_attribute("aria-pressed", "true")
    drawn = tiles.nth(1).locator("canvas").evaluate("c => c.toDataURL()")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    expect(tiles.nth(1)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("combobox", name="Show").select_option("layers")
    page.wait_for_url(re.compile("grid=layers"))
    settle(page)
    expect(tiles).to_have_count(2)
    # the chosen head's tile of the same layer is the same picture
    assert tiles.nth(LAYER).locator("canvas").evaluate("c => c.toDataURL()") == drawn
    assert tiles.nth(0).locator("canvas").evaluate("c => c.toDataURL()") != drawn
    page.get_by_role("combobox", name="keyframes a second").select_option("20")
    page.get_by_role("button", name="Play", exact=True).click()
    expect(tiles.nth(1).locator("canvas")).to_have_attribute("data-drawn", "4")
    page.get_by_role("button", name="Pause").click()
    tiles.nth(0).dblclick()
    expect(page.locator(".pane figcaption").first).to_contain_text("L00 H01")


def test_an_object_is_outlined_chosen_and_measured(page: Page, planted: Planted) -> None:
    """Its outline is on its pixels; lift in chip, matrix and trace are those of the stored rows."""
    show(page, planted, layer=LAYER, head=HEAD, camera=CAMERAS[0])
    outline = page.locator(f'[data-camera="{CAMERAS[0]}"] path.outline')
    expect(outline).to_have_count(1)
    box = outline.evaluate("p => { const b = p.getBBox(); return [b.y, b.x, b.height, b.width]; }")
    rows, cols = CUBE
    assert box == [rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start]
    expect(page.locator(f'[data-camera="{CAMERAS[1]}"] path.outline')).to_have_count(0)
    lifts = {
        (r[0], r[1], r[2]): r[3]
        for r in attnstore.open(planted.root)
        .sql(
            "select keyframe, layer, head, lift from object_stats where phase = 'prefix' "
            "and head_kind = 'head' and weighting = 'raw'"
        )
        .fetchall()
    }
    chip = page.get_by_role("button", name=re.compile("^cube"))
    expect(chip).to_contain_text(f"× {lifts[0, LAYER, HEAD]:.3g}")
    chip.click()
    expect(outline).to_have_class(re.compile("of-chosen"))
    expect(page.get_by_role("combobox", name="Metric")).to_have_value("object:lift")
    for layer, head in np.ndindex(2, 2):
        cell = page.locator(f'[data-cell="{layer}-{head}"]')
        expect(cell).to_have_attribute("aria-label", re.compile("layer"))
        wanted = np.mean([v for (_, at, h), v in lifts.items() if (at, h) == (layer, head)])
        said = cell.get_attribute("aria-label") or ""
        assert float(said.rpartition(" ")[2]) == pytest.approx(wanted, rel=5e-3)
    expect(page.locator(".trace .name").first).to_contain_text("lift of cube")
    page.wait_for_url(re.compile("object=cube"))
    page.locator("h1").click()
    page.keyboard.press("Escape")
    expect(chip).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("combobox", name="Metric")).to_have_value("variance")
    page.get_by_label("outlines").uncheck()
    expect(outline).to_have_count(0)


def test_actions_are_drawn_over_time(page: Page, planted: Planted) -> None:
    """Chunk, denoising and recording of a dimension, at the places that the numbers say."""
    page.goto(planted.address(view="actions", keyframe=1))
    chart = page.locator(".dof").first
    expect(chart.locator("path.fan")).to_have_count(1)  # of two steps the last is the chunk
    episode = episode_of(planted)
    chunks, recorded = episode.policy_array("actions"), episode.policy_array("actions_recorded")
    low, top = chunks[..., 0].min(), chunks[..., 0].max()
    frames = episode.frames
    last = frames[-1] + chunks.shape[1] - 1
    path = chart.locator("path.here").get_attribute("d") or ""
    points = np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path), float)
    wide, high = 560 - 46 - 46, 150 - 8 - 20
    x = 46 + wide * (frames[1] + np.arange(chunks.shape[1]) - frames[0]) / (last - frames[0])
    y = 8 + high - high * (chunks[1, :, 0] - low) / (top - low)
    np.testing.assert_allclose(points, np.stack([x, y], 1), atol=0.06)
    fan = chart.locator("path.fan").get_attribute("d") or ""
    first = float(re.findall(r"M[\d.-]+ ([\d.-]+)", fan)[0])
    step = episode.policy_array("denoising")[1, 0, 0, 0]
    assert first == pytest.approx(
        8 + high - high * np.clip((step - low) / (top - low), -0.05, 1.05), abs=0.06
    )
    assert len(re.findall("[ML]", chart.locator("path.recorded").get_attribute("d") or "")) == len(
        recorded
    )
    expect(page.locator(".actions .note").first).to_contain_text("the chunk has 6, the recording 7")
    now = chart.locator("line.now")
    before = now.get_attribute("x1")
    page.get_by_role("button", name="Next keyframe").click()
    expect(now).not_to_have_attribute("x1", before or "")


def test_what_interventions_did_is_drawn(page: Page, planted: Planted) -> None:
    page.goto(planted.address(view="causes", blend="constant", alpha=1, camera=CAMERAS[0]))
    canvas = page.locator("canvas[data-drawn]")
    expect(canvas).to_have_attribute(
        "aria-label", "hand_camera: effect of removing each cell, at most 0.6"
    )
    removed = page.get_by_label("What was removed, and what that did")
    expect(removed).to_contain_text("keyframe 1 of 3")  # as under every other picture
    expect(removed.locator(".scale")).to_contain_text("0.6")  # where the colours end
    expect(removed.locator(".ramp")).to_be_visible()
    raw = canvas.evaluate(
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    seen = np.reshape(raw, (*GEOMETRIES[CAMERAS[0]].source, 4))[..., :3].astype(int)
    colours = colormap.table("inferno").astype(int)
    for (row, col), effect in EFFECTS.items():
        wanted = colours[round(255 * effect / 0.6)]
        assert (abs(seen[cell_mask(row, col)] - wanted) <= 2).all()
    time = page.get_by_role("region", name="Time")
    expect(time).to_be_in_viewport(ratio=1)
    # the page becomes longer than it is here, as with many regions
    effects = page.locator(".causes .stack").last
    effects.evaluate("s => { s.style.minHeight = '3000px' }")
    scrolled = page.locator("main").evaluate("m => (m.scrollTo(0, m.scrollHeight), m.scrollTop)")
    assert scrolled > 1000
    expect(time).to_be_in_viewport(ratio=1)
    table = page.get_by_label("Effects").locator("tbody tr")
    expect(table).to_have_count(3)
    expect(table.first).to_contain_text("cell 1,1 on hand_camera")
    expect(table.first).to_contain_text("0.6")
    page.goto("about:blank")
    page.goto(planted.address(view="causes", episode=list(planted.episodes)[1]))
    expect(page.locator("main")).to_contain_text("attnstore probe regions")


def test_deletion_and_insertion_are_drawn(page: Page, planted: Planted) -> None:
    page.goto(planted.address(view="causes", camera=CAMERAS[0]))
    card = page.get_by_label("Deletion and insertion")
    # by hand: trapezia of 0, 0.8, 0.9 and 0, 0.3, 0.9; of 0.9, 0.6, 0 and 0.9, 0.4, 0
    expect(card.get_by_role("img").nth(0)).to_have_attribute(
        "aria-label", re.compile("area 0.625 in the map's order, 0.375 in random order")
    )
    expect(card.locator(".note").nth(0)).to_contain_text("is better than random order (gain 0.25")
    expect(card.locator(".note").nth(1)).to_contain_text(
        "0.525 against 0.425: the map's order is not"
    )
    card.get_by_role("button", name="Look at the layer").first.click()
    page.wait_for_url(re.compile(f"layer={LAYER}"))


def test_an_alarm_is_shown_where_the_policy_looks(page: Page, planted: Planted) -> None:
    page.goto(planted.address(view="knowledge", layer=LAYER, head=HEAD))
    card = page.get_by_label("Failure seen coming")
    expect(card).to_contain_text("The alarm rises at keyframe 2 of 3")
    expect(card).to_contain_text("AUROC 0.7 (0.6 to 0.8)")
    expect(card).to_contain_text("7 of 71 successes raised an alarm (promised: at most 10.0 %)")
    expect(card.locator("[data-line=score] circle")).to_have_count(3)
    heights = card.locator("[data-line=score] circle").evaluate_all(
        "all => all.map(c => Number(c.getAttribute('cy')))"
    )
    # straight from score to height, whatever the height of the picture is
    assert (heights[1] - heights[0]) / (heights[2] - heights[0]) == pytest.approx(
        0.5 / 0.7, abs=1e-3
    )
    card.get_by_role("button", name="The alarm rises").click()
    expect(page.locator(".timeline output")).to_contain_text("keyframe 2 of 3")
    expect(page.locator(".seen canvas[data-drawn]")).to_have_count(2)
    card.get_by_label("From").select_option("trivial")
    expect(card).to_contain_text("No alarm in this episode.")
    page.goto(planted.address(view="knowledge", episode=list(planted.episodes)[1]))
    expect(card).to_contain_text("This episode was not among those that were predicted")


def test_which_layer_knows_what(page: Page, planted: Planted) -> None:
    page.goto(planted.address(view="knowledge", layer=0))
    card = page.get_by_label("Linear probes")
    expect(card).to_contain_text("Best at L01: R² 0.6 (0.5 to 0.7)")
    expect(card).to_contain_text("More than the obvious and than chance (ringed): L01.")
    expect(card.locator("svg .ring")).to_have_count(1)
    # layers -1, 0 and 1 along the axis; a click near the last one looks at it
    box = card.locator("svg").bounding_box()
    assert box is not None
    card.locator("svg").click(position={"x": box["width"] * 0.95, "y": box["height"] * 0.5})
    page.wait_for_url(re.compile("layer=1"))


def test_what_a_store_lacks_is_said_with_the_command_that_brings_it(
    page: Page, planted: Planted
) -> None:
    """Word by word: between a template's text and an element on its next line there is no space of itself."""
    store = attnstore.open(planted.root.with_name("twice.attn"))
    run = min(store.runs)
    (episode,) = {c.episode for c in store.base_commits()}
    here = {"store": "twice", "run": run, "episode": episode}
    page.goto(planted.address(view="causes", **here))
    expect(page.get_by_text("Nothing was taken away")).to_contain_text(
        "on the machine that has it, attnstore probe regions STORE --checkpoint … and "
        "attnstore probe fidelity STORE --checkpoint … add it to the store."
    )
    page.goto(planted.address(view="knowledge", **here))
    expect(page.get_by_label("Failure seen coming")).to_contain_text(
        "in this run: attnstore failure STORE fits a score"
    )
    expect(page.get_by_label("Linear probes")).to_contain_text(
        "were probed: attnstore linear-probe STORE --target outcome says how well"
    )


def test_two_runs_of_an_episode_are_compared(page: Page, planted: Planted) -> None:
    store = attnstore.open(planted.root.with_name("twice.attn"))
    one, two = sorted(store.runs)
    (episode,) = {c.episode for c in store.base_commits()}
    show(
        page, planted, view="compare", pairing="runs", store="twice", run=one, episode=episode,
        layer=0, head=0, time=0.5,
    )  # fmt: skip
    expect(page.locator("canvas[data-drawn]")).to_have_count(3)
    settings = page.get_by_label("What the runs differ in").locator("tbody tr")
    expect(settings).to_have_count(1)
    expect(settings).to_contain_text("seed")
    # the viewer's maps are maxima over the tokens
    left, right = (store.episode("success/twice", run=r) for r in (one, two))
    apart = diff_episodes(left, right, cameras=[CAMERAS[0]], reduce="max")
    cell = page.get_by_label("How far apart the heads are").locator('[data-cell="0-1"]')
    said = re.search(r"[\d.e-]+$", cell.get_attribute("aria-label") or "")
    assert said is not None
    assert float(said[0]) == pytest.approx(float(apart.mean("keyframe")[0, 0, 0, 1]), rel=0.01)
    # left minus right at the very frame
    maps = [e.maps("prefix", CAMERAS[0], layer=0, head=0).values[1] for e in (left, right)]
    difference = np.where(GEOMETRIES[CAMERAS[0]].coverage() > 0, maps[0] - maps[1], -9)
    row, col = np.unravel_index(difference.argmax(), difference.shape)
    expect(page.locator(".pane").nth(2).locator(".readout")).to_contain_text(
        f"at patch {row}, {col}"
    )
    page.goto(planted.address(view="compare", pairing="runs"))
    expect(page.locator("main")).to_contain_text("in one run")


def test_a_wall_of_episodes_is_shown_and_saved(page: Page, planted: Planted) -> None:
    show(page, planted, view="compare", pairing="wall", layer=LAYER, head=HEAD, time=1)
    tiles = page.locator(".wall-tile canvas[data-drawn]")
    expect(tiles).to_have_count(3)
    page.get_by_label("Take failure/2025-01-01/2025-01-01_10-00-00 off the wall").click()
    expect(tiles).to_have_count(2)
    page.wait_for_url(re.compile("wall="))
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    for number in (1, 2):
        own = [r for r in rows if r["episode"] == list(planted.episodes)[number]]
        last = len(planted.episodes[list(planted.episodes)[number]].layouts) - 1
        assert {r["keyframe"] for r in own} == {str(last)}
        wanted = episode_of(planted, number).maps(
            "prefix", CAMERAS[0], layer=LAYER, head=HEAD, keyframe=last
        )
        np.testing.assert_allclose(
            np.reshape([float(r["weight"]) for r in own], (4, 4)), wanted.values, rtol=1e-6
        )
    with page.expect_download() as saved:
        page.get_by_role("button", name="PNG").click()
    picture = decoded(saved.value.path().read_bytes())
    first = tiles.first.evaluate(
        "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    np.testing.assert_array_equal(picture[12:48, 12:76], np.reshape(first, (36, 64, 4))[..., :3])
    page.locator(".wall-tile figcaption .link").last.click()
    expect(page.locator("h1")).to_contain_text("12-00-00")


def test_masses_are_printed(page: Page, planted: Planted) -> None:
    show(page, planted, layer=LAYER, head=HEAD, keyframe=1)
    inside, outside = episode_of(planted).mass("prefix", CAMERAS[1], layer=LAYER)
    numbers = page.locator(f'[data-camera="{CAMERAS[1]}"] .numbers')
    said = f"image {100 * inside[1, HEAD]:.1f} % letterbox {100 * outside[1, HEAD]:.1f} %"
    expect(numbers).to_have_text(said)
    page.get_by_label("Over them").get_by_role("radio", name="mean").click()
    settle(page)
    page.wait_for_url(re.compile("reduce=mean"))
    shown = numbers.inner_text()
    found = [float(n) for n in re.findall(r"[\d.]+(?= %)", shown)]
    assert found == pytest.approx([100 * inside[1, HEAD], 100 * outside[1, HEAD]], abs=0.051)


def test_two_episodes_and_two_groups_are_compared(page: Page, planted: Planted) -> None:
    show(page, planted, view="compare", layer=LAYER, head=HEAD, time=0.5)
    expect(page.locator("canvas[data-drawn]")).to_have_count(3)
    settle(page)
    a, b = (
        episode_of(planted, i).maps("prefix", CAMERAS[0], layer=LAYER, head=HEAD).values
        for i in (0, 1)
    )
    apart = a[1] - (b[1] + b[2]) / 2  # the middle of three keyframes, and of four
    cover = GEOMETRIES[CAMERAS[0]].coverage() > 0
    row, col = np.unravel_index(np.where(cover, apart, -9).argmax(), apart.shape)
    said = page.locator(".pane").nth(2).locator(".readout")
    expect(said).to_contain_text(f"at patch {row}, {col}")
    number = re.search(r"max ([\d.e-]+)", said.inner_text())
    assert number is not None
    assert float(number[1]) == pytest.approx(float(apart[row, col]), rel=0.05)
    page.get_by_role("radio", name="groups").click()
    expect(
        page.locator("h2")
        .filter(has_text="failure minus success")
        .or_(page.locator("h2").filter(has_text="success minus failure"))
    ).to_be_visible()
    expect(page.locator("section[aria-label='Which heads differ'] .matrix button")).to_have_count(4)
    page.screenshot(path=SCREENSHOTS / "groups.png")


def test_sql_is_asked_and_saved(page: Page, planted: Planted) -> None:
    page.goto(planted.address(view="sql"))
    box = page.get_by_role("textbox", name="Query, on the tables")
    box.fill("select run, episode, outcome, keyframes from episodes order by name")
    box.press("Control+Enter")
    expect(page.locator(".result tbody tr")).to_have_count(3)
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    assert [r["outcome"] for r in rows] == ["failure", "success", "success"]
    page.expected_failures.append("400 (Bad Request)")  # type: ignore[attr-defined]
    box.fill("drop table episodes")
    box.press("Control+Enter")
    expect(page.locator(".sql .error")).to_be_visible()
    box.fill("select run, episode from episodes order by name desc")
    box.press("Control+Enter")
    # until the answer comes, the one before is shown
    expect(page.locator(".result tbody tr").first).to_contain_text("2025-01-01_12-00-00")
    page.locator(".result tbody button").first.click()
    expect(page.locator("h1")).to_contain_text("2025-01-01_12-00-00")
    settle(page)


def test_sql_is_helped_with_and_its_rows_lead_somewhere(page: Page, planted: Planted) -> None:
    page.goto(planted.address(view="sql"))
    box = page.get_by_role("textbox", name="Query, on the tables")
    tables = page.get_by_label("Tables and columns")
    tables.get_by_label("Find a column").fill("cliff")  # nothing is called that
    expect(tables.locator("details")).to_have_count(0)
    tables.get_by_label("Find a column").fill("Gini")
    expect(tables).to_contain_text("Gini coefficient of P over patches")
    box.fill("select outcome, count(*) as n from episodes group by all order by ")
    box.press("End")
    tables.get_by_role("button", name="gini_mean", exact=True).click()
    expect(box).to_have_value(re.compile("order by gini_mean$"))
    box.fill("")
    box.press_sequentially("select keyf")
    expect(page.locator("#completions [role=option]").first).to_contain_text("keyframes")
    box.press("Tab")
    expect(box).to_have_value("select keyframes")
    page.expected_failures.append("400 (Bad Request)")  # type: ignore[attr-defined]
    box.fill("select outcome,\n  nonsense from episodes")
    box.press("Control+Enter")
    error = page.locator(".sql .error")
    expect(error).to_contain_text("nonsense")
    assert error.inner_text().splitlines()[-2:] == ["  nonsense from episodes", "  ^^^^^^^^"]
    assert box.evaluate("b => b.value.slice(b.selectionStart, b.selectionEnd)") == "nonsense"
    box.fill(
        "select run, episode, phase, layer, head, 1 as keyframe, entropy_mean from episode_stats "
        "where phase = 'prefix' and camera = 'hand_camera' and weighting = 'raw' "
        "order by episode, layer, head"
    )
    box.press("Control+Enter")
    expect(page.locator(".result tbody tr")).to_have_count(12)
    values = page.locator(".result tbody tr td:last-child")
    page.get_by_role("button", name="entropy_mean", exact=True).click()
    ascending = [float(v) for v in values.all_inner_texts()]
    assert ascending == sorted(ascending)
    page.get_by_role("button", name="entropy_mean ↑").click()
    assert [float(v) for v in values.all_inner_texts()] == ascending[::-1]
    page.get_by_role("radio", name="heat").click()
    page.get_by_role("combobox", name="columns").select_option(label="head")
    page.get_by_role("combobox", name="rows").select_option(label="layer")
    cell = page.locator(".heat tbody tr").nth(1).locator("td").nth(0)
    stats = [episode_of(planted, i).stats("prefix", CAMERAS[0], "entropy").values for i in range(3)]
    wanted = np.mean([np.nanmean(s[:, 1, 0]) for s in stats])
    assert float(cell.inner_text()) == pytest.approx(wanted, rel=5e-3)
    for form in ("bar", "line"):
        page.get_by_role("radio", name=form).click()
        expect(page.get_by_role("img", name=re.compile("entropy_mean along"))).to_be_visible()
    # the line's axis is that of the values, whose course would be flat beside 0
    axis = page.locator(".plot text[text-anchor=end]").all_text_contents()[:3]
    assert float(axis[0]) == pytest.approx(min(ascending), rel=5e-3)
    page.get_by_role("radio", name="table").click()
    page.get_by_role("button", name="Open row 12", exact=True).click()
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator(".timeline output")).to_contain_text("keyframe 2 of")
    expect(page.locator(".pane figcaption").first).to_contain_text(re.compile(r"L0\d H0\d$"))
    settle(page)
    page.get_by_role("tab", name="SQL").click()
    history = page.get_by_role("combobox", name="history")
    expect(history.locator("option")).to_have_count(2)
    box.fill("select i // 8 as place, i % 8 as part, i as value from range(16) t(i)")
    box.press("Control+Enter")
    page.get_by_role("radio", name="line").click()
    expect(page.locator(".plot path.series")).to_have_count(8)
    looks = page.locator(".plot path.series").evaluate_all(
        "all => all.map(p => getComputedStyle(p)).map(s => s.stroke + s.strokeDasharray)"
    )
    assert len(set(looks)) == 8


AXE = Path(sys.prefix) / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
VIEWS: dict[str, dict[str, Any]] = {
    "overview": {"view": "overview"},
    "look": {"object": "cube", "brush": "hand_camera:1-1:1-1"},
    "heads": {"view": "heads"},
    "actions": {"view": "actions"},
    "causes": {"view": "causes"},
    "knowledge": {"view": "knowledge"},
    "episodes": {"view": "compare"},
    "runs": {"view": "compare", "pairing": "runs"},
    "wall": {"view": "compare", "pairing": "wall"},
    "groups": {"view": "compare", "pairing": "groups"},
    "sql": {"view": "sql", "sql": "from episodes"},
}


CUT_OFF = """() => {
  const scrolls = e => e && e.localName !== "main" &&
    (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  return [...document.querySelectorAll("main :is(button, select, input, textarea)")]
    .filter(x => x.checkVisibility() && x.getBoundingClientRect().right > innerWidth + 1)
    .filter(x => !scrolls(x.parentElement)).map(x => x.outerHTML.slice(0, 80));
}"""
"""Controls beyond the page's right edge, but for those in a box that scrolls."""


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_no_violation(page: Page, planted: Planted, theme: Any, width: int) -> None:
    """Every view, in both themes; at a phone's width no view is wider than that."""
    assert AXE.is_file(), "run `make modules`"
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 800})
    wrong = []
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for name, view in VIEWS.items():
        page.goto("about:blank")
        page.goto(planted.address(**view))
        page.wait_for_load_state("networkidle")
        page.get_by_role("tab", selected=True).wait_for()
        page.evaluate(AXE.read_text())
        said = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        wrong += [(name, v["id"], v["nodes"][0]["html"][:120]) for v in said["violations"]]
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            wrong.append((name, "too wide", str(wide)))
        wrong += [(name, "cut off", label) for label in page.evaluate(CUT_OFF)]
        page.screenshot(path=SCREENSHOTS / f"{name}-{width}.png", full_page=width < 500)
    assert not wrong, wrong


def test_what_is_shown_is_saved(
    page: Page, planted: Planted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    show(page, planted, layer=LAYER, head=HEAD, keyframe=1, phase="suffix", step=0, reduce="mean")
    with page.expect_download() as saved:
        page.get_by_role("button", name="PNG").click()
    picture = decoded(saved.value.path().read_bytes())
    for camera, left in zip(CAMERAS, (12, 12 + 64 + 12), strict=True):
        np.testing.assert_array_equal(picture[12:48, left : left + 64], pixels(page, camera))
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    episode = episode_of(planted)
    for camera in CAMERAS:
        own = [float(r["weight"]) for r in rows if r["camera"] == camera]
        wanted = episode.maps(
            "suffix", camera, layer=LAYER, head=HEAD, step=0, reduce="mean", keyframe=1
        ).values
        np.testing.assert_allclose(np.reshape(own, (4, 4)), wanted, rtol=1e-6)
    monkeypatch.setenv("ATTNSTORE_TOKEN", TOKEN)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path))
    page.get_by_role("button", name="Python").click()
    for query in ("", "sinks", str(planted.token(next(iter(planted.episodes)), 0))):
        if query == "sinks":
            show(page, planted, layer=0, head=0, keyframe=1, sinks=1)
            page.get_by_role("button", name="Python").click()
        elif query:
            show(
                page,
                planted,
                layer=0,
                head="mean",
                keyframe=2,
                query=query,
                brush="hand_camera:2-2:0-1",
            )
            page.get_by_role("button", name="Python").click()
        names: dict[str, Any] = {}
        exec(page.locator("pre.code").inner_text(), names)
        shown = names["shown"]
        if not query:
            np.testing.assert_array_equal(
                shown,
                episode.maps(
                    "suffix", CAMERAS[0], layer=1, head=1, step=0, reduce="mean", keyframe=1
                ),
            )
            continue
        if query == "sinks":
            raw = episode.maps("prefix", CAMERAS[0], layer=0, head=0, keyframe=1)
            assert np.argwhere((shown != raw).values).tolist() == [[0, 0]]  # the fixture's one sink
            continue
        said = page.locator(f'[data-camera="{CAMERAS[0]}"] .readout').inner_text()
        assert float(said.split()[1]) == pytest.approx(
            float(shown.values[cover_of(0)].max()), rel=5e-3
        )
        bar = page.locator(f'[data-token="{query}"]').get_attribute("title") or ""
        share = float(names["attending"].mean("head")[int(query)])
        assert f"{100 * share:.1f} %" in bar


def cover_of(camera: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return GEOMETRIES[CAMERAS[camera]].coverage() > 0


def test_text_of_a_store_is_never_markup(page: Page, planted: Planted) -> None:
    """The fixture fails if an alert opens or a script's error is logged."""
    page.goto(f"{planted.server.url}/?token={TOKEN}#store=other")
    settle(page)
    expect(page.locator(".glimpse")).to_contain_text(SCRIPT)
    page.get_by_role("tab", name="Look").click()
    expect(page.locator("h1")).to_contain_text('success/"><img src=x onerror=alert(1)>/')
    expect(page.locator("header q")).to_contain_text(SCRIPT)
    expect(page.locator(".episodes tbody")).to_contain_text(SCRIPT)
    page.get_by_role("button", name="Python").click()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("tab", name="SQL").click()
    box = page.get_by_role("textbox", name="Query, on the tables")
    box.fill("select name, instruction, '<b>bold</b>' as \"<i>column</i>\" from episodes")
    box.press("Control+Enter")
    expect(page.locator(".result")).to_contain_text("<b>bold</b>")
    expect(page.locator(".result th").last).to_have_text("<i>column</i>")
    assert page.locator("img").count() == 0
    assert page.locator("script:not([src])").count() == 0
    assert page.locator(".result b, .result th i").count() == 0


PART = "document.activeElement.closest('nav, .stage, section, .controls')?.ariaLabel ?? ''"
NAMELESS = """[...document.querySelectorAll("button, input, select, textarea, canvas, [role=img]")]
  .filter(e => !e.closest("[role=img]:not(canvas)") || e.role === "img")
  .filter(e => !(e.ariaLabel || e.textContent?.trim() || e.labels?.length || e.title))
  .map(e => e.outerHTML.slice(0, 80))"""


def test_the_weighting_is_switched(page: Page, planted: Planted) -> None:
    show(page, planted, layer=LAYER, head=HEAD, keyframe=1, reduce="mean")
    caption = page.locator(f'[data-camera="{CAMERAS[0]}"] figcaption')
    expect(caption).not_to_contain_text("value-weighted")
    page.keyboard.press("w")
    expect(caption).to_contain_text(f"L{LAYER:02d} H{HEAD:02d}, value-weighted")
    settle(page)
    expect(page).to_have_url(re.compile("weighting=value"))
    expect(page.get_by_role("radio", name="value")).to_have_attribute("aria-checked", "true")
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    assert {r["weighting"] for r in rows} == {"value"}
    asked: dict[str, Any] = {"layer": LAYER, "head": HEAD, "keyframe": 1, "reduce": "mean"}
    for camera in CAMERAS:
        own = [float(r["weight"]) for r in rows if r["camera"] == camera]
        carried, raw = (
            episode_of(planted).maps("prefix", camera, **asked, weighting=w).values.ravel()
            for w in ("value", "raw")
        )
        np.testing.assert_allclose(own, carried, rtol=1e-6)
        assert not np.allclose(own, raw, rtol=0.05)
    page.get_by_role("button", name="Python").click()
    expect(page.get_by_label("Python call")).to_contain_text('weighting="value"')
    page.keyboard.press("w")
    expect(caption).to_contain_text("rollout")
    page.keyboard.press("w")
    expect(caption).to_contain_text(f"L{LAYER:02d} H{HEAD:02d}")
    expect(caption).not_to_contain_text("value-weighted")


@pytest.mark.parametrize("phase", ["prefix", "suffix"])
def test_rollout_is_one_of_the_sources(
    page: Page, planted: Planted, phase: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Picture, printed number, CSV and Python are the rollout's, at each keyframe; a head's come back."""
    show(page, planted, phase=phase, layer=LAYER, head=HEAD, keyframe=1, scale="episode", sinks=1)
    raw = pixels(page, CAMERAS[0])
    page.get_by_role("radio", name="rollout").click()
    caption = page.locator(f'[data-camera="{CAMERAS[0]}"] figcaption')
    expect(caption).to_contain_text(f"rollout up to L{LAYER:02d}")
    note = page.locator(".look .note").first
    expect(note).to_contain_text("all heads, fused by mean")
    expect(note).to_contain_text("tokens' bars are of raw attention")
    settle(page)
    assert (pixels(page, CAMERAS[0]) != raw).any()
    expect(page).to_have_url(re.compile("weighting=rollout"))
    expect(page.get_by_label("take sinks out")).to_be_disabled()
    for keyframe in (1, 2):
        page.get_by_role("slider", name="Keyframe").fill(str(keyframe))
        settle(page)
        with page.expect_download() as saved:
            page.get_by_role("button", name="CSV").click()
        rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
        said = {(r["weighting"], r["head"], r["reduce"], r["sink_corrected"]) for r in rows}
        assert said == {("rollout", "mean", "mean", "false")}
        for number, camera in enumerate(CAMERAS):
            wanted = rollout_map(
                episode_of(planted), camera, phase, keyframe=keyframe, layers=range(LAYER + 1)
            ).values
            own = [float(r["weight"]) for r in rows if r["camera"] == camera]
            np.testing.assert_allclose(own, wanted.ravel(), rtol=1e-6)
            seen = np.where(cover_of(number), wanted, -1)
            row, col = np.unravel_index(seen.argmax(), seen.shape)
            readout = page.locator(f'[data-camera="{camera}"] .readout')
            expect(readout).to_contain_text(f"at patch {row}, {col}")
            printed = float(readout.inner_text().split()[1])
            assert printed == pytest.approx(seen.max(), rel=5e-3)
    monkeypatch.setenv("ATTNSTORE_TOKEN", TOKEN)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path))
    page.get_by_role("button", name="Python").click()
    names: dict[str, Any] = {}
    exec(page.locator("pre.code").inner_text(), names)
    wanted = rollout_map(episode_of(planted), CAMERAS[0], phase, keyframe=2, layers=range(2)).values
    np.testing.assert_array_equal(names["shown"], wanted)
    page.get_by_role("tab", name="Heads").click()  # many maps: none of them is a rollout
    expect(page.get_by_role("radio", name="raw")).to_have_attribute("aria-checked", "true")
    expect(page.get_by_role("radio", name="rollout")).to_have_count(0)
    page.get_by_role("tab", name="Look").click()
    expect(caption).to_contain_text("rollout up to")
    page.locator('[data-cell="0-1"]').click()  # a head of raw attention
    expect(caption).to_contain_text("L00 H01")
    expect(page.get_by_label("take sinks out")).to_be_checked()


def test_where_rollout_is_not_defined_a_line_says_so(browser: Browser, tmp_path: Path) -> None:
    paths = create_store(tmp_path / "writes.attn")
    commit_episode(paths, random_episode("success/writes", texts=(2, 3, 2)), 0)
    server = start(paths.root, log=tmp_path / "serve.log")
    try:
        page = browser.new_page()
        page.goto(f"{server.url}/?token={TOKEN}#view=look&phase=decode&weighting=rollout")
        note = page.locator(".look .note").first
        expect(note).to_contain_text("rollout")
        assert "of raw attention" not in note.inner_text()
        expect(page.locator(".error")).to_have_count(0)
        page.get_by_role("radio", name="prefix").click()
        settle(page)
        expect(page.locator(".readout").first).to_contain_text("at patch")
        page.close()
    finally:
        stop(server)


def test_the_keyboard_is_enough(page: Page, planted: Planted) -> None:
    show(page, planted, layer=0, head=0)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".pane figcaption").first).to_contain_text("L01")
    page.keyboard.press("]")
    expect(page.locator(".pane figcaption").first).to_contain_text("H01")
    page.keyboard.press("m")
    expect(page.locator(".pane figcaption").first).to_contain_text("mean of heads")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".timeline output")).to_contain_text("keyframe 2 of 3")
    page.keyboard.press("n")
    expect(page.locator("h1")).to_contain_text("11-00-00")
    settle(page)
    page.keyboard.press("/")
    expect(page.get_by_label("Filter episodes")).to_be_focused()
    page.keyboard.type("m?")  # letters are text there
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    stage = page.locator(".stage").first
    stage.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".marks .chosen")).to_have_count(1)
    expect(page.locator(".tokens h2")).to_contain_text("attention to patch")
    before = page.locator(".tokens h2").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".tokens h2")).not_to_have_text(before)
    page.keyboard.press("Escape")
    expect(page.locator(".marks .chosen")).to_have_count(0)
    # Tab reaches every part of the page, in the order of reading
    page.locator("header button").first.focus()
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.closest('header, nav, .stage, section, .controls')?.ariaLabel ?? ''"
            )
        )
    parts = [p for i, p in enumerate(seen) if p and p not in seen[:i]]
    for earlier, later in zip(
        ("Episodes", "Selection", "Time", "Query tokens", "Layers and heads", "Share"),
        ("Selection", "Time", "Query tokens", "Layers and heads", "Share"),
        strict=False,
    ):
        assert parts.index(earlier) < parts.index(later), parts


def test_everything_has_a_name(page: Page, planted: Planted) -> None:
    for view in ("look", "compare", "sql"):
        page.goto("about:blank")
        page.goto(planted.address(view=view))
        page.get_by_role("tab", selected=True).wait_for()
        if view != "sql":
            settle(page)
        nameless = page.evaluate(NAMELESS)
        assert not nameless
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_readable_in_both_themes(page: Page, planted: Planted, theme: Any) -> None:
    page.emulate_media(color_scheme=theme)
    show(page, planted, layer=1)
    assert page.locator("html").get_attribute("data-theme") == theme
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{theme}.png")
    for size in ({"width": 900, "height": 1200}, {"width": 390, "height": 844}):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= size["width"], f"{wide} pixels wide at {size['width']}"
        page.screenshot(path=SCREENSHOTS / f"{theme}-{size['width']}.png", full_page=True)
    page.get_by_role("button", name="Colours of the page").click()
    assert page.locator("html").get_attribute("data-theme") != theme
    text = (PAGE / "style.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", text)
    colours = {name: dark if theme == "dark" else light for name, light, dark in pairs}
    for ink in ("ink", "quiet", "success", "failure", "unknown", "warn", "accent"):
        for paper in ("card", "paper"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    assert contrast(colours["accent-ink"], colours["accent"]) >= 4.5


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""
    bright = []
    for colour in (one, other):
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        bright.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(bright) / min(bright)


def test_colour_maps_are_the_renderers(page: Page, planted: Planted) -> None:
    show(page, planted)
    found = page.evaluate(
        """async () => { const m = await import("/colormaps.js");
           return Object.fromEntries(m.NAMES.map(n => [n, [...m.colours(n)]])); }"""
    )
    assert set(found) == set(colormap.CODES)
    for name, colours in found.items():
        np.testing.assert_array_equal(np.reshape(colours, (256, 3)), colormap.table(name))


def test_an_episode_is_seen_while_it_is_recorded(page: Page, planted: Planted) -> None:
    """Its calls come by themselves, and when it is committed it is one of the list."""
    page.goto(planted.address())
    rows = page.locator("button[data-episode]")
    rows.first.wait_for()
    listed = rows.count()
    name = "success/2025-01-02/2025-01-02_10-00-00"
    under_way = HandMade(planted.root, name)
    under_way.call()
    card = page.locator(f'[data-recorded="{slug(name)}"]')
    expect(card).to_contain_text("1 keyframe, step 0")
    expect(card).to_contain_text("recording")
    expect(card).to_contain_text("heat: active head of prefix")
    under_way.call()
    expect(card).to_contain_text("2 keyframes, step 8")
    picture = card.locator("img")
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") == 240
    commit_episode(StorePaths(planted.root), planted_episode(name, "success", 9, 2), 9)
    under_way.end()
    expect(card).to_have_count(0)
    expect(rows).to_have_count(listed + 1)


def test_the_page_names_all_its_modules() -> None:
    """One that is not named is fetched only when another has arrived: a round trip more."""
    named = set(re.findall(r'(?:href|src)="([\w/]+\.js)"', (PAGE / "index.html").read_text()))
    files = {p.relative_to(PAGE).as_posix() for p in PAGE.rglob("*.js")}
    assert named == files
    for file in files:
        text = (PAGE / file).read_text()
        assert "innerHTML" not in text or file.startswith("vendor/"), file
        assert file in ("api.js", "vendor/preact.js") or "fetch(" not in text, file
