"""A store whose attention is known, and a browser that looks at it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright
from service_fixtures import TOKEN, Server, start, stop
from store_fixtures import (
    POLICY,
    SOURCE,
    RandomEpisode,
    random_episode,
    run_config,
    write_blocks,
    write_rows,
)

from attnstore.store.commits import Attempt, StorePaths, slug
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.format.geometry import Geometry
from attnstore.store.opening import create_store

GRID = (4, 4)
GEOMETRIES = {
    # 64x36 in a square: half of the upper and lower patches is letterbox
    "hand_camera": Geometry.letterbox(SOURCE, (56, 56), (14, 14)),
    # cropped, mirrored, and squeezed into the lower part of the input
    "varied_camera_1": Geometry(
        source=SOURCE, input=(56, 56), resized=(42, 56), offset=(14, 0), grid=GRID,
        patch=(14.0, 14.0), crop=(3.0, 8.0, 30.0, 50.0), flip_horizontal=True,
    ),
}  # fmt: skip
LAYER, HEAD = 1, 1
LOOKS: dict[int, tuple[str, int, int]] = {
    0: ("hand_camera", 2, 1),
    1: ("varied_camera_1", 1, 3),
}
"""Token of the task to the patch (camera, row, col) that gets nine tenths of its attention."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"


def planted_episode(name: str, outcome: str, seed: int, keyframes: int) -> RandomEpisode:
    """Make an episode in which some tokens of layer 1, head 1 look at one patch."""
    made = random_episode(name, outcome, seed, keyframes=keyframes, grid=GRID)
    episode = replace(made, spec=replace(made.spec, geometry=GEOMETRIES))
    for keyframe, layouts in enumerate(made.layouts):
        prefix = layouts["prefix"]
        (task,) = prefix.query.group("task")
        for number, (camera, row, col) in LOOKS.items():
            (patches,) = prefix.key.group(f"image:{camera}")
            weights = episode.weights["prefix", keyframe, LAYER, None]
            weights[HEAD, task.start + number] = 0.1 / (weights.shape[-1] - 1)
            weights[HEAD, task.start + number, patches.start + row * GRID[1] + col] = 0.9
    return episode


def commit_episode(paths: StorePaths, episode: RandomEpisode, seed: int) -> None:
    run = save_run(paths, run_config(), {"host": "test", "code": "0"})
    writer = EpisodeWriter(
        Attempt(paths, run, slug(episode.spec.name), "base"), episode.spec, POLICY
    )
    write_blocks(writer, episode)
    write_rows(writer, episode, seed)
    writer.commit({})


@dataclass(frozen=True)
class Planted:
    """A store of known episodes, and a service of it and of the hostile store."""

    root: Path
    server: Server
    episodes: dict[str, RandomEpisode]
    """By id."""
    run: str

    def token(self, episode: str, number: int) -> int:
        """Index of a token of the task on the stored query axis."""
        return self.episodes[episode].spec.phases["prefix"].query["task"].start + number

    def address(self, **view: Any) -> str:
        """Address of the page, showing one thing; the store's first episode by default."""
        said = {"store": "planted", "run": self.run, "episode": next(iter(self.episodes))} | view
        shown = "&".join(f"{k}={v}" for k, v in said.items())
        return f"{self.server.url}/?token={TOKEN}#{shown}"


@pytest.fixture(scope="module")
def planted(
    served_stores: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Planted]:
    folder = tmp_path_factory.mktemp("planted")
    paths = create_store(folder / "planted.attn")
    episodes = {}
    for number, outcome in enumerate(("failure", "success", "success")):
        name = f"{outcome}/2025-01-01/2025-01-01_1{number}-00-00"
        made = planted_episode(name, outcome, number, 3 + number)
        commit_episode(paths, made, number)
        episodes[slug(name)] = made
    (run,) = {p.stem for p in (paths.root / "runs").glob("*.json")}
    server = start(paths.root, served_stores[1], log=folder / "serve.log")
    yield Planted(paths.root, server, episodes, run)
    stop(server)
    assert "Traceback" not in (folder / "serve.log").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    assert found, "no Chromium: run `make browser`"
    with sync_playwright() as playwright:
        # root, as in a container, may not start Chromium's own sandbox
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, planted: Planted) -> Iterator[Page]:
    """A new browser profile. At the end: nothing asked elsewhere, nothing failed."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    wrong: list[str] = []
    expected: list[str] = []
    opened.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))

    def refuse(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    opened.on("dialog", refuse)
    own = (planted.server.url + "/", "blob:", "data:")
    opened.on("request", lambda r: None if r.url.startswith(own) else wrong.append(r.url))
    opened.expected_failures = expected  # type: ignore[attr-defined]  # a note for the end
    yield opened
    context.close()
    left = [w for w in wrong if not any(e in w for e in expected)]
    assert not left, left


def pixels(page: Page, camera: str, number: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What a camera's canvas shows, (height, width, 3)."""
    canvas = page.locator(f'[data-camera="{camera}"] canvas').nth(number)
    raw = canvas.evaluate(
        """c => { const d = c.getContext("2d").getImageData(0, 0, c.width, c.height);
                  return [d.height, d.width, Array.from(d.data)]; }"""
    )
    return np.array(raw[2], np.uint8).reshape(raw[0], raw[1], 4)[..., :3]


def settle(page: Page) -> None:
    """Wait until every picture is drawn."""
    page.locator("canvas[data-drawn]").first.wait_for()
    page.wait_for_selector('canvas[aria-busy="true"]', state="detached")


def decoded(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels of a PNG, (height, width, 3) RGB."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image[..., ::-1], np.uint8)
