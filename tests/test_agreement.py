"""Whoever is asked, the answer is one: the active head, the step of a phase, the masks that count.

The oracle is NumPy over the stored attention. One camera is missing at one keyframe, the phases are
prefix, suffix and decode, and a second run of the store has more steps than the first.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, expect
from service_fixtures import TOKEN, Server, start, stop
from store_fixtures import CAMERAS, SOURCE, write_episode
from viewer_fixtures import browser

import attnstore
from attnstore.cli import cli
from attnstore.ingest.probing.keyframe import MapChoice, stored_keyframes
from attnstore.query import Episode, Store
from attnstore.query.attention.camera_shares import camera_shares
from attnstore.query.objects.choice import latest_object_parts
from attnstore.query.objects.episode_timelines import timelines
from attnstore.query.objects.options import ObjectOptions
from attnstore.query.objects.part import add_objects
from attnstore.query.objects.results import load_object_results
from attnstore.query.objects.role_lift import role_lifts
from attnstore.query.sql.chosen import choose
from attnstore.query.sql.named import named_query
from attnstore.render import render_images, render_videos
from attnstore.render.picture import colormap, heatmap
from attnstore.render.picture.track import LayerMaps
from attnstore.render.report.document import Table
from attnstore.render.report.looking import heads as heads_section
from attnstore.render.report.looking import overlays
from attnstore.store.errors import NotFoundError
from attnstore.store.opening import create_store
from attnstore.store.rules import NO_HEAD, Active

__all__ = ["browser"]

Reduction = Literal["max", "mean"]
NAMES = ("success/2025-01-01/e0", "failure/2025-01-01/e1")
LAYERS, HEADS, STEPS = 2, 4, 3
LACKED = {1: CAMERAS[1]}
STANDING = {"prefix": None, "suffix": STEPS - 1, "decode": 0}
GROUPS = {"prefix": "task", "suffix": "action", "decode": "readout"}
PLACES = [(phase, camera, layer) for phase in GROUPS for camera in CAMERAS for layer in (0, 1)]
Values = NDArray[np.floating[Any]]


def place_masks(directory: Path) -> None:
    (directory / "masks").mkdir(parents=True)
    info: dict[str, Any] = {}
    for frame in (0, 8, 16):
        info[str(frame)] = []
        for number, category in enumerate(("cube", "bowl")):
            mask = np.zeros(SOURCE, bool)
            mask[4 + frame // 2 : 18 + frame // 2, 8 + 24 * number : 30 + 24 * number] = True
            np.save(directory / "masks" / f"{frame}_{category}.npy", mask)
            entry = {"mask_file": f"{frame}_{category}.npy", "category": category}
            info[str(frame)].append({**entry, "score": 0.5, "bbox": []})
    (directory / "dinox_info.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("agreement")
    paths = create_store(folder / "s.attn")
    for seed, name in enumerate(NAMES):
        write_episode(
            paths, name, name.partition("/")[0], seed, heads=HEADS, layers=LAYERS, steps=STEPS,
            missing=LACKED, texts=(3, 2, 4),
        )  # fmt: skip
        write_episode(paths, name, name.partition("/")[0], seed + 7, run_seed=1, steps=STEPS + 2)
        place_masks(folder / "data" / name)
    opened = attnstore.open(paths.root)
    for name in NAMES:
        for threshold in (0.3, 0.5):  # the second is committed last
            options = ObjectOptions("detector", CAMERAS[0], threshold)
            add_objects(
                paths, opened.episode(name, run=opened.runs[0]), folder / "data" / name, options
            )
    return opened


@pytest.fixture(scope="module")
def run(store: Store) -> str:
    (found,) = {e.run for e in store.episodes.values() if "decode" in e.phases}
    return found


@pytest.fixture(scope="module")
def episodes(store: Store, run: str) -> list[Episode]:
    return [store.episode(name, run=run) for name in NAMES]


@pytest.fixture(scope="module")
def server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = start(store.paths.root, log=tmp_path_factory.mktemp("log") / "log")
    yield started
    stop(started)


@dataclass(frozen=True)
class Oracle:
    """What is in the weights, map by map, without anything of the reader but its arrays."""

    episode: Episode

    def maps(
        self, phase: str, camera: str, reduce: Reduction = "mean", group: str | None = None
    ) -> Values:
        """(keyframe, layer, head, row, col) at the phase's step; NaN where a keyframe lacks it."""
        if reduce == "max" and group is None:
            # These are drawn as they are stored, in one byte; that can decide between two heads.
            part, whole = self.episode.part, slice(None)
            at_step = () if STANDING[phase] is None else (STANDING[phase],)
            stored = part.map(phase, GROUPS[phase], camera, "max", (whole, *at_step, *[whole] * 4))
            return np.asarray(stored, np.float64)
        array = self.episode.attention(phase, lazy=True)
        if (step := STANDING[phase]) is not None:
            array = array.isel(step=step)
        kinds = {"task": ("task",), "action": ("action",), "readout": ("next",)}
        spans = kinds[GROUPS[phase]] if group is None else (group,)
        values = array.values[..., np.isin(array["query_span"], spans), :].astype(np.float64)
        values = values[..., np.asarray(array["key_span"] == f"image:{camera}")]
        grid = self.episode.geometry(camera).grid
        found = np.full((*values.shape[:3], *grid), np.nan)
        for at in np.ndindex(*values.shape[:3]):
            rows = values[at][~np.isnan(values[at]).any(-1)]
            if len(rows):
                found[at] = (rows.max(0) if reduce == "max" else rows.mean(0)).reshape(grid)
        return found

    def variance(self, active: Active, *map_of: Any) -> Values:
        """(keyframe, layer, head)."""
        maps = self.maps(*map_of)
        weight = self.episode.geometry(map_of[1]).coverage()
        if active == "lab":
            weight = np.ones_like(weight)
        mean = (maps * weight).sum((-2, -1)) / weight.sum()
        square = (maps**2 * weight).sum((-2, -1)) / weight.sum()
        return np.asarray(square - mean**2)

    def heads(self, active: Active, *map_of: Any) -> list[int]:
        """Active head of the episode, by layer."""
        mean = np.nanmean(self.variance(active, *map_of), axis=0)
        return [int(h) for h in mean.argmax(-1)]


@pytest.fixture(scope="module")
def oracles(episodes: list[Episode]) -> list[Oracle]:
    return [Oracle(e) for e in episodes]


def test_the_questions_can_be_told_apart(oracles: list[Oracle]) -> None:
    """Else agreement proves little: rules and maps choose different heads somewhere, and not head 0."""
    every: dict[tuple[str, str], list[int]] = {}
    for oracle in oracles:
        for phase, camera, layer in PLACES:
            for active in ("image", "lab"):
                for reduce in ("mean", "max"):
                    own = oracle.heads(active, phase, camera, reduce)[layer]
                    every.setdefault((active, reduce), []).append(own)
    image = every["image", "mean"]
    assert all(image != other for key, other in every.items() if key != ("image", "mean"))
    assert set(image) == {0, 1, 2, 3}


@pytest.mark.parametrize("active", ["image", "lab"])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_an_episode_and_its_pictures(
    oracles: list[Oracle], active: Active, reduce: Reduction
) -> None:
    for oracle in oracles:
        episode = oracle.episode
        for phase, camera, layer in PLACES:
            expected = oracle.heads(active, phase, camera, reduce)[layer]
            asked: dict[str, Any] = {"layer": layer, "reduce": reduce, "active": active}
            assert episode.active_head(phase, camera, **asked) == expected
            shown = episode.maps(phase, camera, head="active", **asked)
            assert int(shown["head"]) == expected
            drawn = LayerMaps.load(episode, phase, layer, CAMERAS, reduce=reduce, active=active)
            there = [NO_HEAD if LACKED.get(k) == camera else expected for k in range(3)]
            assert drawn.most_active(at_each=False).heads[camera].tolist() == there
            each = drawn.most_active(at_each=True).heads[camera].tolist()
            variance = oracle.variance(active, phase, camera, reduce)[:, layer]
            for keyframe in range(3):
                if LACKED.get(keyframe) == camera:
                    assert each[keyframe] == NO_HEAD
                    with pytest.raises(NotFoundError, match="keyframe 1: there is no map"):
                        episode.active_head(phase, camera, keyframe=keyframe, **asked)
                    continue
                assert each[keyframe] == variance[keyframe].argmax()
                assert (
                    episode.active_head(phase, camera, keyframe=keyframe, **asked)
                    == (each[keyframe])
                )


@pytest.mark.parametrize("active", ["image", "lab"])
def test_a_word_has_its_own_active_head(oracles: list[Oracle], active: Active) -> None:
    differ = 0
    for oracle in oracles:
        for camera in CAMERAS:
            for layer in range(LAYERS):
                for reduce in ("mean", "max"):
                    expected = oracle.heads(active, "prefix", camera, reduce, "state_text")[layer]
                    found = oracle.episode.maps(
                        "prefix", camera, layer=layer, head="active", query="state_text",
                        reduce=reduce, active=active,
                    )  # fmt: skip
                    assert int(found["head"]) == expected
                    differ += expected != oracle.heads(active, "prefix", camera, reduce)[layer]
    assert differ


@pytest.mark.parametrize("active", ["image", "lab"])
def test_a_probe(oracles: list[Oracle], active: Active) -> None:
    for oracle in oracles:
        for phase, camera, layer in PLACES:
            head = oracle.heads(active, phase, camera, "mean")[layer]
            choice = MapChoice(phase, layer, GROUPS[phase], "active", active=active)
            expected = oracle.maps(phase, camera)[:, layer, head]
            for keyframe in stored_keyframes(oracle.episode):
                if camera not in keyframe.cameras:
                    continue
                found = keyframe.map(camera, choice)
                # overview maps are of one byte
                np.testing.assert_allclose(found, expected[keyframe.index], rtol=0.03, atol=3e-5)


def of_run(oracles: list[Oracle], active: Active) -> dict[tuple[str, str, int], tuple[int, float]]:
    """Head and variance over a run's episodes."""
    found = {}
    for phase, camera, layer in PLACES:
        each = [np.nanmean(o.variance(active, phase, camera)[:, layer], axis=0) for o in oracles]
        mean = np.mean(each, axis=0)
        found[phase, camera, layer] = int(mean.argmax()), float(mean.max())
    return found


def check_most_active(rows: list[dict[str, Any]], run: str, oracles: list[Oracle]) -> None:
    image, lab = of_run(oracles, "image"), of_run(oracles, "lab")
    assert [h for h, _ in image.values()] != [h for h, _ in lab.values()]
    own = {(r["phase"], r["camera"], r["layer"]): r for r in rows if r["run"] == run}
    assert own.keys() == image.keys()
    for place, (head, variance) in image.items():
        row = own[place]
        assert (row["head"], row["lab_head"]) == (head, lab[place][0])
        assert row["variance"] == pytest.approx(variance, rel=1e-3)
        assert (row["query_group"], row["episodes"]) == (GROUPS[place[0]], len(NAMES))


def test_sql(store: Store, run: str, oracles: list[Oracle]) -> None:
    rows = store.sql(named_query("most-active-heads").sql).to_arrow_table().to_pylist()
    check_most_active(rows, run, oracles)
    # the run with more steps is there beside it
    assert {r["run"] for r in rows} == set(store.runs)
    result = CliRunner().invoke(
        cli, ["sql", str(store.paths.root), "--named", "most-active-heads", "--json"]
    )
    assert result.exit_code == 0, result.output
    check_most_active([json.loads(line) for line in result.stdout.splitlines()], run, oracles)


@pytest.mark.parametrize("active", ["image", "lab"])
def test_the_report(store: Store, run: str, oracles: list[Oracle], active: Active) -> None:
    (chosen,) = choose(store, run)
    section = heads_section(store, chosen, active=active)
    (table,) = (b for b in section.blocks if isinstance(b, Table))
    found = {(*row[:2], int(row[2][1:3])): row for row in table.rows}
    expected = of_run(oracles, active)
    for (phase, camera, layer), (head, variance) in expected.items():
        row = found[phase, camera, layer]
        assert row[2] == f"L{layer:02d} H{head:02d}"
        assert float(row[3]) == pytest.approx(variance, rel=6e-3)
        first = sum(o.heads(active, phase, camera)[layer] == head for o in oracles)
        assert row[4] == f"{first} of {len(NAMES)}"
    assert overlays(store, chosen)


def test_the_service(store: Store, run: str, server: Server, oracles: list[Oracle]) -> None:
    answer = server.ask(
        "POST", "/v1/stores/s/sql", json.dumps({"named": "most-active-heads"}).encode(),
        {"Content-Type": "application/json"},
    ).json()  # fmt: skip
    names = [c["name"] for c in answer["columns"]]
    check_most_active([dict(zip(names, r, strict=True)) for r in answer["rows"]], run, oracles)
    for oracle in oracles:
        base = f"/v1/stores/s/episodes/{run}/{oracle.episode.id}"
        for phase, camera, layer in PLACES:
            where: dict[str, Any] = {"phase": phase, "camera": camera, "layer": layer}
            for active in ("image", "lab"):
                for reduce in ("mean", "max"):
                    how = {**where, "reduce": reduce, "active": active}
                    expected = oracle.heads(active, phase, camera, reduce)[layer]
                    assert server.get(f"{base}/active-head", **how).json()["head"] == expected
                    shown = server.get(f"{base}/maps", head="active", format="json", **how).json()
                    assert shown["coords"]["head"]["values"] == expected
            trace = server.get(f"{base}/metrics/variance/trace", head="active", **where).json()
            assert trace["heads"] == [oracle.heads("image", phase, camera)[layer]]
            assert trace["step"] == (STANDING[phase] or 0)
        at: dict[str, Any] = {"phase": "prefix", "camera": CAMERAS[1], "layer": 0, "keyframe": 1}
        assert server.get(f"{base}/active-head", **at).json()["head"] is None
    rows = server.sql("from counting_object_parts() order by all", store="s").json()["rows"]
    assert [tuple(r) for r in rows] == counting(store)


@pytest.mark.parametrize(("phase", "reduce", "query"), [
    ("prefix", "mean", ""), ("suffix", "max", ""), ("decode", "mean", ""),
    ("prefix", "max", "state_text"),
])  # fmt: skip
def test_the_viewer(
    run: str, server: Server, browser: Browser, oracles: list[Oracle], phase: str,
    reduce: Reduction, query: str,
) -> None:  # fmt: skip
    oracle = oracles[0]
    named = [query] if query else []
    page = browser.new_page()
    page.goto(
        f"{server.url}/?token={TOKEN}#store=s&run={run}&episode={oracle.episode.id}"
        f"&phase={phase}&layer=1&reduce={reduce}&query={query}"
    )
    for number, camera in enumerate(CAMERAS):
        head = oracle.heads("image", phase, camera, reduce, *named)[1]
        label = page.locator(".pane .quiet", has_text="L01").nth(number)
        expect(label).to_contain_text(f"L01 H{head:02d} (active)", timeout=20_000)
        assert "variance on the image" in (label.get_attribute("title") or "")
    page.get_by_label("Active by").select_option("lab")
    for number, camera in enumerate(CAMERAS):
        head = oracle.heads("lab", phase, camera, reduce, *named)[1]
        label = page.locator(".pane .quiet", has_text="L01").nth(number)
        expect(label).to_have_attribute("title", re.compile("padding included"), timeout=20_000)
        expect(label).to_contain_text(f"L01 H{head:02d} (active)")
    expect(page).to_have_url(re.compile("active=lab"))
    page.close()


@pytest.mark.parametrize("active", ["image", "lab"])
def test_a_rerun_recording(
    store: Store, episodes: list[Episode], oracles: list[Oracle], tmp_path: Path, active: Active
) -> None:
    from rerun.chunk import RrdReader

    file = tmp_path / "one.rrd"
    arguments = ["export", "rerun", str(store.paths.root), "--run", episodes[0].run]
    arguments += ["--episode", episodes[0].name, "--phase", "prefix", "--reduce", "mean"]
    result = CliRunner().invoke(cli, [*arguments, "--active", active, "--out", str(file)])
    assert result.exit_code == 0, result.output
    found: dict[str, list[dict[str, Any]]] = {}
    for chunk in RrdReader(file).stream().to_chunks():
        name = chunk.entity_path.removeprefix("/")
        if "/heat/" in name:
            found.setdefault(name, []).extend(chunk.to_record_batch().to_pylist())
    for camera in CAMERAS:
        for layer, head in enumerate(oracles[0].heads(active, "prefix", camera, "mean")):
            maps = episodes[0].maps("prefix", camera, layer=layer, head=head, reduce="mean").values
            geometry = episodes[0].geometry(camera)
            top = np.nanmax(maps[:, geometry.coverage() > 0])
            rows = found[f"camera/{camera}/heat/prefix/L{layer:02d}"]
            for row in rows:
                (blob,) = row["EncodedImage:blob"]
                shown = np.asarray(Image.open(io.BytesIO(bytes(blob))), int)
                heat = heatmap.sampler(geometry).draw(maps[row["keyframe"]])
                assert np.abs(shown - colormap.levels(heat, 0.0, float(top))).max() <= 1


def test_pictures_are_drawn_where_a_camera_is_missing(
    episodes: list[Episode], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"layers": [0], "heads": False}
    files = render_images(episodes[0], tmp_path, **how)
    assert len(files) == 3 * 3 + 1
    assert "| most active head | by variance on the image" in files[-1].read_text()
    assert len(render_videos(episodes[0], tmp_path, **how)) == 3 + 1


def counting(store: Store) -> list[tuple[str, ...]]:
    found = {}
    for commit in store.commits():
        if commit.summary.get("threshold") == 0.5:
            found[commit.episode] = (commit.run, commit.episode, commit.part)
    return [(*found[e], CAMERAS[0], "detector") for e in sorted(found)]


def test_the_masks_that_count(store: Store, run: str, episodes: list[Episode]) -> None:
    expected = counting(store)
    assert len(expected) == len(NAMES)
    by_sql = store.sql("from counting_object_parts() order by all").fetchall()
    assert by_sql == expected
    (chosen,) = choose(store, run)
    parts = latest_object_parts(store, chosen)
    assert sorted(c.part for c in parts.values()) == [row[2] for row in expected]
    for episode in episodes:
        (part,) = episode.object_parts()
        assert (part.run, part.episode, part.part) in [row[:3] for row in expected]
        (keyframe, *_) = stored_keyframes(episode)
        assert set(keyframe.objects(CAMERAS[0])) == {"cube", "bowl"}
    lifts = role_lifts(store, chosen)
    assert lifts is not None
    by_hand = store.sql(
        "select avg(lift) from object_stats where threshold = 0.5 and phase = 'decode' "
        "and step = 0 and layer = 0 and head_kind = 'mean' and object = 'cube'"
    ).fetchall()
    (target,) = (
        each.lift.value for each in lifts.layers
        if each.where[0] == "decode" and each.role == "target" and each.layer == 0
    )  # fmt: skip
    assert target == pytest.approx(by_hand[0][0])


def test_the_step_that_stands(store: Store, run: str, oracles: list[Oracle]) -> None:
    (chosen,) = choose(store, run)
    steps = dict(
        store.sql(f"select phase, step from standing_steps where run = '{run}'").fetchall()
    )
    assert steps == STANDING
    rows = store.sql(named_query("camera-by-layer").sql).to_arrow_table().to_pylist()
    by_sql = {(r["phase"], r["camera"], r["layer"]): r for r in rows if r["run"] == run}
    report = {(s.phase, s.camera, s.layer): s for s in camera_shares(store, chosen)}
    for phase, camera, layer in PLACES:
        cover = oracles[0].episode.geometry(camera).coverage()
        on_image = np.mean([
            np.nanmean((o.maps(phase, camera)[:, layer] * cover).sum((-2, -1)), axis=0)
            for o in oracles
        ])  # fmt: skip
        place = phase, camera, layer
        assert by_sql[place]["on_image"] == pytest.approx(on_image, rel=1e-3)
        assert report[place].image.value == pytest.approx(on_image, rel=1e-3)
    found = [timelines(store, chosen, phase, CAMERAS[0]) for phase in GROUPS]
    for one in found:
        each = one.episodes[0]
        if (step := STANDING[one.phase]) is not None:
            np.testing.assert_array_equal(each.last, each.shares.isel(step=step))
    options = ObjectOptions("detector", CAMERAS[0], 0.5)
    results = load_object_results(store, [(o.episode, options.part) for o in oracles])
    assert {(r["phase"], r["standing"]) for r in results.layers} == set(STANDING.items())


def test_what_a_notebook_shows_of_an_episode(episodes: list[Episode]) -> None:
    """The step that stands for a phase: of decode the first, and not one that few keyframes have."""
    episode = episodes[0]
    html = episode._repr_html_()
    for phase, step in STANDING.items():
        for camera in episode.cameras:
            shares = np.nanmean(
                episode.stats(phase, camera, "camera_mass", step=step).values, axis=0
            )
            figure = next(
                part for part in html.split("<figure")[1:] if f"{phase}, {camera}: " in part
            )
            drawn = [float(v) for v in re.findall(r"L\d+ H\d+: ([\d.]+)<", figure)]
            np.testing.assert_allclose(drawn, shares.ravel(), atol=6e-5)
