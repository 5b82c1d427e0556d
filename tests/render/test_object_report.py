"""Reports of object overlap: numbers, charts, pictures, and pages that need no other file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from store_fixtures import SOURCE, write_episode

from attnstore.commands.objects import objects
from attnstore.query import Episode, Store
from attnstore.query import open as open_store_for_reading
from attnstore.query.objects.options import ObjectOptions
from attnstore.query.objects.part import add_objects
from attnstore.query.objects.results import load_object_results
from attnstore.render.charts.objects import Curve, heat_table, layer_chart, outcome_chart
from attnstore.render.files.object_pictures import PALETTE, object_scenes
from attnstore.render.report.object_report import write_report
from attnstore.store.errors import NotFoundError
from attnstore.store.opening import create_store

NAMES = ("success/2025-01-01/a", "success/2025-01-01/b", "failure/2025-01-01/c")
DETECTOR = ObjectOptions("detector")
SVG = "{http://www.w3.org/2000/svg}"


def mask(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    found = np.zeros(SOURCE, bool)
    found[3 + seed : 20 + seed, 30:50] = True
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three episodes; the objects are ``cube`` and, in failures, one with a dangerous name."""
    root = tmp_path_factory.mktemp("report")
    paths = create_store(root / "toy.attn")
    for seed, name in enumerate(NAMES):
        write_episode(paths, name, name.partition("/")[0], seed)
        folder = root / "data" / name / "masks"
        folder.mkdir(parents=True)
        categories = ["cube"] if seed < 2 else ["cube", "<script>|x|"]
        info = {}
        for frame in (0, 16):
            np.save(folder / f"{frame}.npy", mask(seed))
            info[str(frame)] = [{"mask_file": f"{frame}.npy", "category": c} for c in categories]
        (folder.parent / "dinox_info.json").write_text(json.dumps(info))
    opened = open_store_for_reading(paths.root)
    for name in NAMES:
        add_objects(paths, opened.episode(name), root / "data" / name, DETECTOR)
    return opened


def parts(store: Store, names: tuple[str, ...] = NAMES) -> list[tuple[Episode, str]]:
    return [(store.episode(name), DETECTOR.part) for name in names]


def test_one_number_an_episode_then_mean_and_deviation(store: Store) -> None:
    results = load_object_results(store, parts(store))
    by_sql = store.sql(
        "select object, phase, step, layer, head_kind, avg(lift), stddev_samp(lift), count(*) from "
        "(select episode, object, phase, step, layer, head_kind, avg(lift) lift from object_stats "
        "where head is null group by all) group by all order by all"
    ).fetchall()
    found = {
        (r["object"], r["phase"], r["step"], r["layer"], r["head_kind"]): r for r in results.layers
    }
    assert len(found) == len(by_sql) == len(results.layers)
    for *key, mean, sd, episodes in by_sql:
        row = found[tuple(key)]
        assert row["lift_mean"] == pytest.approx(mean)
        assert (row["episodes"], row["keyframes"]) == (episodes, 2 * episodes)
        assert row["lift_sd"] == (None if episodes == 1 else pytest.approx(sd))
        assert row["lift_keyframe_sd"] > 0
    assert {r["episodes"] for r in results.layers if r["object"] == "cube"} == {3}
    assert {r["standing"] for r in results.layers} == {None, 1}


def test_results_json_has_no_nan_and_every_part(store: Store, tmp_path: Path) -> None:
    write_report(store, parts(store), tmp_path, pictures=False, missing={"d": "no masks"})
    text = (tmp_path / "results.json").read_text("utf-8")
    assert "NaN" not in text
    found = json.loads(text)
    assert [p["name"] for p in found["parts"]] == list(NAMES)
    assert found["missing"] == {"d": "no masks"}
    assert set(found["metrics"]) >= {"lift", "nss"}
    assert {r["step"] for r in found["episodes"]} == {None, 1}
    assert {p["revision"] for p in found["parts"]} == {1}


def test_charts_are_well_formed(store: Store, tmp_path: Path) -> None:
    write_report(store, parts(store), tmp_path, pictures=False)
    texts = {}
    for name in ("summary", "outcomes", "heat"):
        root = ElementTree.parse(tmp_path / "report_figures" / f"{name}.svg").getroot()
        assert root.tag == f"{SVG}svg"
        texts[name] = [t.text for t in root.iter(f"{SVG}text")]
        assert not list(root.iter(f"{SVG}script"))
    assert {"prefix: lift", "suffix: nss", "<script>|x|"} <= set(texts["summary"])
    assert {"success, 2", "failure, 1"} <= set(texts["outcomes"])
    assert {"prefix: success − failure", "L01"} <= set(texts["heat"])


def test_the_page_needs_no_other_file_and_escapes_what_the_store_says(
    store: Store, tmp_path: Path
) -> None:
    written = write_report(store, parts(store), tmp_path, missing={"<b>d": "no | masks"})
    page = (tmp_path / "report.html").read_text("utf-8")
    references = re.findall(r"(?:src|href)=\"([^\"]{0,30})", page)
    assert references
    assert all(r.startswith(("data:image/jpeg;base64,", "#")) for r in references)
    assert "<script>|" not in page
    assert "&lt;script&gt;|x|" in page
    assert "&lt;b&gt;d" in page
    markdown = (tmp_path / "report.md").read_text("utf-8")
    assert r"\<script\>\|x\|" in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    for link in re.findall(r"\]\(([^)]*)\)", markdown):
        assert (tmp_path / link).is_file()
    assert all(path.is_file() for path in written)


def test_pictures_show_the_outline_where_the_mask_ends(store: Store, tmp_path: Path) -> None:
    written = write_report(store, parts(store), tmp_path)
    stills = [p for p in written if p.suffix == ".jpg"]
    videos = [p for p in written if p.suffix == ".webm"]
    # 3 episodes, 2 phases, 2 layers; 2 keyframes with masks
    assert (len(stills), len(videos)) == (24, 12)
    assert tmp_path / "success/2025-01-01/a/00016/suffix_L1_objects.jpg" in stills
    assert tmp_path / "failure/2025-01-01/c/L00_prefix_objects.webm" in videos
    picture = cv2.imread(str(tmp_path / "success/2025-01-01/a/00000/prefix_L0_objects.jpg"))
    assert picture is not None
    video = cv2.VideoCapture(str(videos[0]))
    assert int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)) == picture.shape[0] + picture.shape[0] % 2
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames == 2
    scale = 560 / SOURCE[1]
    middle = round(11.5 * scale) + 52  # two lines of text above
    left, inside = round(30 * scale), round(40 * scale)
    colours = {name: np.array(PALETTE[i]) for i, name in enumerate(["<script>|x|", "cube"])}
    line = picture[middle, left - 3 : left + 5, ::-1].astype(int)
    assert np.abs(line - colours["cube"]).sum(-1).min() < 90
    flat = picture[middle, inside - 3 : inside + 5, ::-1].astype(int)
    assert np.abs(flat - colours["cube"]).sum(-1).min() > 90


def test_contours_follow_the_mask(store: Store) -> None:
    episode = store.episode(NAMES[0])
    results = load_object_results(store, parts(store, NAMES[:1]))
    scenes = object_scenes(episode, "hand_camera", results.masks(episode))
    assert [s.frame for s in scenes] == [0, 16]
    (contour,) = scenes[0].outlines["cube"]
    scale = 560 / SOURCE[1]
    low, high = contour.reshape(-1, 2).min(0), contour.reshape(-1, 2).max(0)
    np.testing.assert_allclose(low, [30 * scale, 3 * scale], atol=scale / 2 + 1)
    np.testing.assert_allclose(high, [50 * scale, 20 * scale], atol=scale / 2 + 1)


def test_a_report_of_nothing_in_view(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "toy.attn")
    write_episode(paths, "success/2025-01-01/a")
    directory = tmp_path / "a"
    directory.mkdir()
    (directory / "dinox_info.json").write_text('{"0": []}')
    opened = open_store_for_reading(paths.root)
    episode = opened.episode("success/2025-01-01/a")
    add_objects(paths, episode, directory, DETECTOR)
    write_report(opened, [(episode, DETECTOR.part)], tmp_path / "out")
    assert "nothing in view" in (tmp_path / "out" / "report.md").read_text("utf-8")
    with pytest.raises(NotFoundError, match="has no part objects-"):
        load_object_results(opened, [(episode, ObjectOptions("gripper").part)])
    with pytest.raises(NotFoundError, match="no parts"):
        load_object_results(opened, [])


def test_command_writes_the_report(store: Store, tmp_path: Path) -> None:
    dataset = store.paths.root.parent / "data"
    result = CliRunner().invoke(
        objects,
        ["add", str(store.paths.root), "--masks", str(dataset), "--source", "detector",
         "--out", str(tmp_path), "--no-pictures", "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [e["event"] for e in events] == ["episode"] * 3 + ["written"]
    assert {Path(f).name for f in events[-1]["files"]} == {
        "results.json", "summary.svg", "outcomes.svg", "heat.svg", "report.md", "report.html",
    }  # fmt: skip


def test_charts_of_hard_numbers() -> None:
    """Missing values, one layer, no spread, negative numbers."""
    curves = [Curve("a", [None], [None]), Curve("b", [-2.0], [None]), Curve("c", [], [])]
    for chart in (
        layer_chart("t", "u", curves),
        layer_chart("t", "u", []),
        outcome_chart("t", {}, 1.0),
        outcome_chart("t", {"a": {"success": [0.0], "unknown": []}}),
        heat_table("t", [], [], [], centre=1, reach=1),
        heat_table("t", ["r"], ["c\nd"], [[None]], centre=1, reach=1),
    ):
        assert "nan" not in ElementTree.tostring(ElementTree.fromstring(chart.svg)).decode()
