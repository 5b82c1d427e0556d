"""Reports: their numbers against NumPy, what they say of a known policy, and pages that are safe to send."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import cv2
import numpy as np
import pytest
from ingest_fixtures import CAMERAS, Watcher, make_job
from learnt_fixtures import add_learnt
from probe_fixtures import ASTRAY, POINTING, PlantedPolicy
from store_fixtures import SOURCE, write_episode

import attnstore
from attnstore.cli import cli, main
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.pipeline import ingest_all
from attnstore.ingest.probing.episode import ProbeJob
from attnstore.ingest.probing.fidelity import Fidelity
from attnstore.ingest.probing.fills import filled as probe_filled
from attnstore.ingest.probing.pipeline import choose_episodes, make_plan, probe_all, real_dof
from attnstore.ingest.probing.regions import Regions
from attnstore.query import Store
from attnstore.query.attention.camera_shares import camera_shares
from attnstore.query.causes.effects import effects
from attnstore.query.causes.fidelity import fidelity_pairs
from attnstore.query.causes.fidelity_curves import curve_pairs
from attnstore.query.causes.fidelity_views import best_layers, directions, view_differences
from attnstore.query.objects.options import ObjectOptions
from attnstore.query.objects.part import add_objects
from attnstore.query.sql.chosen import Chosen, choose
from attnstore.query.statistics import estimate
from attnstore.render.charts.matrix import matrix_chart
from attnstore.render.charts.plots import Series, area_chart, line_chart, scatter_chart
from attnstore.render.charts.svg import Chart
from attnstore.render.report.document import (
    Figure,
    Page,
    Paragraph,
    Section,
    Table,
    clean,
    finding,
)
from attnstore.render.report.fidelity import METRICS, read_fidelity
from attnstore.render.report.hidden import hidden
from attnstore.render.report.html import html_page
from attnstore.render.report.markdown import markdown_page
from attnstore.render.report.masked import filled
from attnstore.render.report.write import report_page, write_report
from attnstore.store.errors import NotFoundError, UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.opening import create_store

GEOMETRY = Geometry.letterbox((36, 64), (56, 56), (14, 14))
PATCH, ELSEWHERE = 6, 9
EVIL = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        inside = next((t for t in reversed(self.open) if t not in ("code", "a", "span")), "")
        self.texts.setdefault(inside, []).append(data)
        if inside in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def table(self, *head: str) -> list[list[str]]:
        """Rows of the tables whose heading begins so."""
        found = [t[1:] for t in self.tables if t and t[0][: len(head)] == list(head)]
        assert found, [t[0] for t in self.tables if t]
        return [row for table in found for row in table]

    @property
    def said(self) -> str:
        return " ".join(" ".join(texts) for tag, texts in self.texts.items() if tag != "style")


def page(path: Path) -> Reader:
    return Reader(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def planted(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two episodes of a policy whose action depends on one patch of the wrist camera alone."""
    policy = PlantedPolicy(dict.fromkeys(CAMERAS, GEOMETRY), CAMERAS[0], PATCH, ELSEWHERE)
    dataset = DroidDataset(recordings)
    job = make_job(tmp_path_factory.mktemp("report") / "s", policy, dataset)
    names = dataset.episode_names()[:2]
    assert not ingest_all(job, policy, dataset, names, Watcher()).failed
    episodes = choose_episodes(job.paths, job.run, ())
    dof = real_dof(policy, episodes[0], None)
    for probe in (
        Fidelity("joint", "action", share=0.12, fill="black", repeats=2, cameras=("all", "each"),
                 curve_points=4),
        Regions(by=("camera", "cell"), cells=(3, 5), cameras=("each",), fill="black"),
    ):  # fmt: skip
        own = ProbeJob(job.paths, job.run, probe, dof)
        assert not probe_all(own, policy, make_plan(own, episodes).pending, Watcher()).failed
    return attnstore.open(job.paths.root)


@pytest.fixture(scope="module")
def only(planted: Store) -> Chosen:
    (chosen,) = choose(planted)
    return chosen


@pytest.fixture(scope="module")
def written(planted: Store, only: Chosen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages")
    files = write_report(planted, only, out)
    assert all(path.is_file() for path in files)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Random attention of four episodes, one with a dangerous name and object; no probes."""
    root = tmp_path_factory.mktemp("plain")
    paths = create_store(root / "toy.attn")
    names = [f"{o}/2025-01-01/e{i}" for i, o in enumerate(("success", "success", "failure"))]
    for seed, name in enumerate((*names, f"failure/2025-01-01/{EVIL}")):
        write_episode(paths, name, name.partition("/")[0], seed)
    opened = attnstore.open(paths.root)
    for i, name in enumerate(names):
        folder = root / "data" / name / "masks"
        folder.mkdir(parents=True)
        info: dict[str, Any] = {}
        for frame in (0, 16):
            info[str(frame)] = []
            for k, category in enumerate(("cube", "bowl", EVIL)):
                mask = np.zeros(SOURCE, bool)
                mask[4 * k + i : 4 * k + i + 12, 16 * k : 16 * k + 14] = True
                np.save(folder / f"{frame}_{k}.npy", mask)
                info[str(frame)].append({"mask_file": f"{frame}_{k}.npy", "category": category})
        (folder.parent / "dinox_info.json").write_text(json.dumps(info))
        add_objects(paths, opened.episode(name), folder.parent, ObjectOptions("detector"))
    return opened


def rows_of(store: Store, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = store.sql(sql).to_arrow_table().to_pylist()
    return found


class TestPlantedPolicy:
    """The first layer's map points at the patch that the action depends on, the second's astray."""

    def test_fidelity_is_told_right(self, written: Path) -> None:
        for name in ("report", "fidelity"):
            said = page(written / f"{name}.html").said
            best = re.findall(r"only hand_camera: largest at (L\d+), .*? which is above 0", said)
            assert best[0] == f"L{POINTING:02d}"
            side = re.search(
                r"only varied_camera_1: largest at L\d+, fidelity 0 .*?contains 0", said
            )
            assert side is not None

    def test_layers_are_judged_right_in_every_view(self, written: Path) -> None:
        rows = page(written / "fidelity.html").table("layer", "masked map", "control")
        # views in order: both cameras, only the wrist's, only the side's
        verdicts = [(row[0], row[4]) for row in rows]
        matters, undecided = "matters", "not decided"
        assert [v for v in verdicts if v[0] == f"L{POINTING:02d}"] == [
            (f"L{POINTING:02d}", matters), (f"L{POINTING:02d}", matters), (f"L{POINTING:02d}", undecided),
        ]  # fmt: skip
        astray = [v for name, v in verdicts if name == f"L{ASTRAY:02d}"]
        assert matters not in astray
        # nothing is gained from chance: the other camera's numbers are exactly 0
        assert [row[1:3] for row in rows[4:]] == [["0", "0"], ["0", "0"]]

    def test_numbers_are_those_of_the_rows(
        self, planted: Store, only: Chosen, written: Path
    ) -> None:
        interventions = rows_of(
            planted,
            "from interventions where probe = 'fidelity' and target <> 'base' and len(cameras) = 1 "
            f"and cameras[1] = '{CAMERAS[0]}' and layer = {POINTING}",
        )
        by: dict[str, dict[str, dict[int, list[float]]]] = {}
        for row in interventions:
            place = by.setdefault(row["target"], {}).setdefault(row["episode"], {})
            place.setdefault(row["keyframe"], []).append(row["si_mse"])
        means = {
            target: np.mean([np.mean([np.mean(v) for v in e.values()]) for e in episodes.values()])
            for target, episodes in by.items()
        }
        table = page(written / "fidelity.html").table("layer", "masked map", "control")
        shown = table[2]  # the wrist's view comes after that of both cameras
        assert float(shown[1]) == pytest.approx(means["attention"], rel=5e-3)
        assert float(shown[2]) == pytest.approx(means["control"], abs=1e-9)
        fidelity = means["attention"] - means["control"]
        assert float(shown[3].partition(" ")[0]) == pytest.approx(fidelity, rel=5e-3)
        low, high = (float(v) for v in re.findall(r"\((.*) to (.*)\)", shown[3])[0])
        assert low <= fidelity <= high

    def test_curves_gain_where_the_map_points(self, planted: Store, only: Chosen) -> None:
        found = {
            (c.layer, c.curve): c for c in curve_pairs(planted, only) if c.cameras == CAMERAS[0]
        }
        assert len(found) == 4
        for curve in ("deletion", "insertion"):
            assert found[POINTING, curve].gain.value > 0
            assert found[POINTING, curve].gain.value > found[ASTRAY, curve].gain.value
        one = found[POINTING, "deletion"]
        raw = rows_of(
            planted,
            "from intervention_curves where curve = 'deletion' and target = 'attention' and "
            f"layer = {POINTING} and len(cameras) = 1 and cameras[1] = '{CAMERAS[0]}'",
        )
        areas: dict[str, list[float]] = {}
        for episode, keyframe in {(r["episode"], r["keyframe"]) for r in raw}:
            line = sorted(
                (r["fraction"], r["si_mse"])
                for r in raw
                if (r["episode"], r["keyframe"]) == (episode, keyframe)
            )
            x, y = np.array(line).T
            areas.setdefault(episode, []).append(float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum()))
        expected = np.mean([np.mean(v) for v in areas.values()])
        assert one.attention_area == pytest.approx(expected, rel=1e-6)
        with pytest.raises(UsageError, match="which are distances"):
            curve_pairs(planted, only, "cosine")

    def test_views_differ_by_the_camera_that_matters(self, planted: Store) -> None:
        pairs = fidelity_pairs(planted, metrics=METRICS)
        found = {d.layer: d for d in view_differences(pairs, METRICS.index("si_mse"))}
        assert (found[POINTING].first, found[POINTING].second) == CAMERAS
        assert found[POINTING].difference.low > 0
        best = {b.pairs.cameras: b for b in best_layers(pairs, METRICS.index("si_mse"))}
        wrist = best[CAMERAS[0]]
        assert (wrist.pairs.layer, wrist.among) == (POINTING, 6)
        # the interval for all at once is the wider one
        assert wrist.low <= wrist.fidelity.low < wrist.fidelity.high <= wrist.high

    def test_direction_and_length_add_up(self, planted: Store) -> None:
        pairs = [p for p in fidelity_pairs(planted, metrics=METRICS) if p.layer == POINTING]
        for found in directions(pairs, METRICS):
            values = dict(zip(METRICS, found.pairs.attention[:, 1:].T, strict=True))
            whole = 1 + values["scale"] ** 2 - 2 * values["scale"] * values["cosine"]
            by_episode = [
                whole[found.pairs.episodes == e].mean() for e in np.unique(found.pairs.episodes)
            ]
            total = found.direction.value + found.length.value
            assert total == pytest.approx(float(np.mean(by_episode)), abs=1e-6)
            # |b - a|^2 / |a|^2 by the definition, from mse: the same ratio at every keyframe
            assert (whole >= values["si_mse"] - 1e-6).all()

    def test_only_the_wrist_camera_matters(
        self, planted: Store, only: Chosen, written: Path
    ) -> None:
        found = {(e.target, e.cameras): e for e in effects(planted, only) if e.target == "camera"}
        assert found["camera", CAMERAS[1]].metrics["si_mse"].value == 0
        assert found["camera", CAMERAS[0]].metrics["si_mse"].value > 0
        said = page(written / "report.html").said
        assert re.search(r"changes most with (camera )?“[^”]*” in hand_camera \(\d+ tried\)", said)

    def test_masked_pictures_are_what_the_policy_got(self) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (36, 64, 3), dtype=np.uint8)
        mask, seen = rng.random((36, 64)) < 0.2, rng.random((36, 64)) < 0.8
        for fill in ("black", "mean", "blur"):
            expected = probe_filled(image, mask, fill, seen, rng)
            np.testing.assert_array_equal(filled(image, mask, fill, seen), expected)
        noise = filled(image, mask, "noise", seen)
        np.testing.assert_array_equal(noise[~mask], image[~mask])


class TestLedger:
    def test_it_joins_attention_with_effect(self, planted: Store) -> None:
        ledger = rows_of(planted, "from ledger")
        looked = rows_of(planted, "from region_attention")
        matters = {
            (r["episode"], r["part"], r["keyframe"], r["variant"]): r
            for r in rows_of(planted, "from interventions")
        }
        assert len(ledger) == len(looked) > 0
        key = ("episode", "part", "keyframe", "variant", "camera", "phase", "layer", "query_group")
        found = {tuple(r[k] for k in key): r for r in ledger}
        for row in looked:
            effect = matters[tuple(row[k] for k in key[:4])]
            joined = found[tuple(row[k] for k in key)]
            assert joined["attention"] == row["attention"]
            assert joined["lift"] == pytest.approx(row["attention"] / row["area"], rel=1e-6)
            for column in (
                "target",
                "detail",
                "cameras",
                "mse",
                "si_mse",
                "scale",
                "fill",
                "repeat",
            ):
                assert joined[column] == effect[column]
            expected = pytest.approx(effect["si_mse"] / row["area"], rel=1e-6)
            assert joined["effect_by_area"] == expected

    def test_what_is_used_is_looked_at_by_the_layer_that_points(self, written: Path) -> None:
        reader = page(written / "report.html")
        assert any("most; Pearson r" in t for t in reader.texts["figcaption"])
        assert any(f"joint, L{POINTING:02d} (of 2 layers" in t for t in reader.texts["figcaption"])

    def test_a_filter_opens_only_its_episodes(self, planted: Store, only: Chosen) -> None:
        one = only.episodes[0]
        plan = "explain analyze select * from ledger where episode = '{}'"
        text = str(planted.sql(plan.format(one)).fetchall())
        # of region_attention one of two, of interventions the two parts of one episode of two; and
        # in both lists one file without rows, which gives the columns
        assert sorted(set(re.findall(r"Scanning Files: (\d/\d)", text))) == ["1/3", "2/5"]


def test_shares_and_their_intervals(plain: Store) -> None:
    (chosen,) = choose(plain)
    found = {(s.phase, s.layer, s.camera): s for s in camera_shares(plain, chosen)}
    for phase, layer, camera in found:
        each = []
        for name in chosen.episodes:
            episode = plain.episode(name)
            values = episode.stats(phase, camera, "camera_mass", step="last", layer=layer).values
            each.append(float(values.mean()))
        got = found[phase, layer, camera].image
        assert got.value == pytest.approx(np.mean(each), rel=1e-5)
        assert got.episodes == 4
        rng = np.random.default_rng(7)
        draws = rng.choice(each, (20_000, 4)).mean(1)
        low, high = np.quantile(draws, [0.025, 0.975])
        spread = max(each) - min(each)
        assert abs(got.low - low) < 0.06 * spread
        assert abs(got.high - high) < 0.06 * spread


def test_the_page_shows_the_shares(plain: Store, tmp_path: Path) -> None:
    (chosen,) = choose(plain)
    write_report(plain, chosen, tmp_path, format="html")
    reader = page(tmp_path / "report.html")
    rows = reader.table("layer", "camera", "on the camera")
    expected = [
        (f"L{s.layer:02d}", s.camera, s.image.value)
        for phase in ("prefix", "suffix")
        for s in sorted(
            (s for s in camera_shares(plain, chosen) if s.phase == phase),
            key=lambda s: (s.layer, s.camera),
        )
    ]
    assert len(rows) == len(expected)
    for row, (layer, camera, share) in zip(rows, expected, strict=True):
        assert row[:2] == [layer, camera]
        assert float(row[2].partition(" ")[0]) == pytest.approx(share, rel=6e-3)


class TestPages:
    def test_it_needs_no_other_file_and_no_host(self, written: Path) -> None:
        for name in ("report", "fidelity"):
            reader = page(written / f"{name}.html")
            assert reader.open == []
            assert not reader.tags & {"script", "link", "iframe", "object", "embed", "base"}
            for _, attribute, value in reader.attributes:
                if attribute in ("href", "src"):
                    assert value.startswith(("#", "data:image/jpeg;base64,")), value[:60]
                    if value.startswith("#"):
                        assert value[1:] in reader.ids
                assert not attribute.startswith("on")
            assert len(set(reader.ids)) == len(reader.ids)
            style = " ".join(reader.texts["style"])
            assert "url(" not in style
            assert "@import" not in style
            assert "prefers-color-scheme:dark" in style
            assert "@media print" in style

    def test_markdown_has_its_figures_beside_it(self, written: Path) -> None:
        for name in ("report", "fidelity"):
            text = (written / f"{name}.md").read_text("utf-8")
            links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
            assert links
            assert sorted(links) == sorted(
                f"{name}_figures/{p.name}" for p in (written / f"{name}_figures").iterdir()
            )
            for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
                assert len({len(re.findall(r"(?<!\\)\|", r)) for r in table.splitlines()}) == 1
        for chart in (written / "report_figures").glob("*.svg"):
            root = ElementTree.parse(chart).getroot()
            assert "nan" not in ElementTree.tostring(root, "unicode").lower()
        for picture in (written / "fidelity_figures").glob("*.jpg"):
            assert cv2.imread(str(picture)) is not None

    def test_what_a_store_says_is_text(self, plain: Store, tmp_path: Path) -> None:
        (chosen,) = choose(plain)
        write_report(plain, chosen, tmp_path, where=f"name <> '{EVIL}'")
        text = (tmp_path / "report.html").read_text("utf-8")
        assert "<script" not in text
        reader = Reader(text)
        assert EVIL in reader.said
        markdown = (tmp_path / "report.md").read_text("utf-8")
        assert "<script" not in re.sub(r"\\<", "", markdown)

    def test_the_same_store_gives_the_same_bytes(
        self, planted: Store, only: Chosen, written: Path, tmp_path: Path
    ) -> None:
        again = write_report(attnstore.open(planted.paths.root), only, tmp_path)
        assert len(again) == sum(p.is_file() for p in written.rglob("*"))
        for path in again:
            assert path.read_bytes() == (written / path.relative_to(tmp_path)).read_bytes(), path

    def test_every_heading_with_a_definition_links_to_it(self, written: Path) -> None:
        reader = page(written / "fidelity.html")
        for name in ("fidelity", "control", "scale", "gain", "direction"):
            assert f"d-{name}" in reader.ids

    def test_texts_and_cells_of_every_kind(self) -> None:
        chart = Chart(10, 10, "")
        blocks = (
            finding("a `b|c` d <e>"),
            Table("t", ("x", "y|z"), (("1", "`q`"), ("–", "p_*")), "n"),
            Figure("f", chart, "c"),
        )
        made = Page("T & U", "l", (Section("s", "S", blocks),), {"x": ("d", "u")})
        reader = Reader(html_page(made))
        assert "a b|c d <e>" in "".join(reader.texts["p"])
        assert reader.tables[0] == [["x", "y|z"], ["1", "q"], ["–", "p_*"]]
        text = markdown_page(made, "figs")
        assert "**a `b\\|c` d \\<e\\>**" in text
        assert "![f](figs/f.svg)" in text
        assert clean("a\x1b[31m\n b\ud800") == "a [31m b?"
        twice = Page("T", "l", (Section("s", "S", (blocks[2], blocks[2])),))
        with pytest.raises(ValueError, match="two figures are called 'f'"):
            html_page(twice)


def test_charts_of_hard_numbers() -> None:
    """Nothing, one point, one value for all, holes, and infinities."""
    nan, inf = float("nan"), float("inf")
    lines = [
        Series("a", [], []),
        Series("b <&>", [3.0], [None], [None], [None]),
        Series("c", [0.0, 1.0, 2.0], [1.0, None, 1.0], [nan, None, 1.0], [1.0, None, inf]),
        Series.of("d", [0.0], [estimate([2.0], ["a"])]),
        Series.of("e", [], []),
    ]
    for chart in (
        line_chart("t", "x", "y", []),
        line_chart("t", "x", "y", lines, reference=-1.0),
        line_chart("t", "x", "y", lines, whole=False, bottom=None, top=5.0),
        area_chart("t", "x", [], {}, {}),
        area_chart("t", "x", [0.0], {"a": [0.5], "b": [None]}, {"a": "red", "b": "blue"}),
        scatter_chart("t", "x", "y", [], [], crossing=(1, 1)),
        matrix_chart("t", [], rows=[], columns=[], high=1.0),
        matrix_chart("t", [[nan, None, 9.0]], rows=["r"], columns=["a", "b", "c"], high=1.0,
                     diverging=True, framed=frozenset({(0, 2)})),
    ):  # fmt: skip
        text = ElementTree.tostring(ElementTree.fromstring(chart.svg), "unicode")
        assert not re.search(r"\b(nan|inf|None)\b", text)


def test_linear_probes_are_told_with_what_they_stand_beside(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "s")
    commit = write_episode(paths, "success/a")
    add_learnt(paths, commit.episode)
    store = attnstore.open(paths.root)
    (chosen,) = choose(store)
    section = hidden(store, chosen)
    (said,) = [b.text for b in section.blocks if isinstance(b, Paragraph) and b.kind == "finding"]
    assert (
        "k.state[8], from prefix task: R² on unseen episodes best at L01 of 3, 0.6 (0.5 to 0.7)"
        in said
    )
    assert "trivial 0.3 (0.2 to 0.4), chance 0. More than" in said
    assert said.endswith("shuffled targets: L01.")
    (table,) = [b for b in section.blocks if isinstance(b, Table)]
    assert [(row[0], row[-1]) for row in table.rows] == [
        ("trivial", ""), ("embedding", "no"), ("L00", "no"), ("L01", "yes"),
    ]  # fmt: skip
    assert any(isinstance(b, Figure) for b in section.blocks)


class TestWhatIsMissing:
    def test_each_missing_section_names_a_command_that_exists(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "bare.attn")
        write_episode(paths, "success/2025-01-01/a")
        store = attnstore.open(paths.root)
        (chosen,) = choose(store)
        made = report_page(store, chosen, read_fidelity(store, chosen))
        said = {
            section.id: block.text
            for section in made.sections
            for block in section.blocks
            if isinstance(block, Paragraph) and block.kind == "missing"
        }
        assert set(said) == {
            "objects", "shift", "outcomes", "fidelity", "interventions", "ledger", "failure", "sinks",
            "hidden",
        }  # fmt: skip
        for text in said.values():
            (command, *_) = re.findall(r"`attnstore ([a-z]+(?:[ -][a-z]+)*)", text)
            found: click.Command = cli
            for word in command.split():
                assert isinstance(found, click.Group), f"{command}: {found.name} has no commands"
                found = found.commands[word]

    def test_two_against_two_is_refused_honestly(self, plain: Store, tmp_path: Path) -> None:
        (chosen,) = choose(plain)
        write_report(plain, chosen, tmp_path, format="html")
        said = page(tmp_path / "report.html").said
        assert "with 2 successes against 2 failures nothing can be concluded" in said
        assert "no p is below 0.33" in said

    def test_damage_is_reported(self, plain: Store, tmp_path: Path) -> None:
        shutil.copytree(plain.paths.root, tmp_path / "s")
        store = attnstore.open(tmp_path / "s")
        (chosen,) = choose(store)
        file = next((tmp_path / "s" / "data").glob("*/*/base.*/sinks.parquet"))
        data = bytearray(file.read_bytes())
        data[4] ^= 0xFF
        file.write_bytes(bytes(data))
        folder = tmp_path / "s" / "quarantine" / chosen.run / "b-0000000000"
        folder.mkdir(parents=True)
        entry = {"run": chosen.run, "part": "base", "name": "b", "reason": "rows sum to nan"}
        entry["created"] = "2030-01-01T00:00:00Z"
        (folder / "000001.json").write_text(json.dumps(entry))
        write_report(store, chosen, tmp_path / "out", format="html", check=True)
        said = page(tmp_path / "out" / "report.html").said
        assert "1 files are not as committed" in said
        assert "rows sum to nan" in said


class TestCommand:
    @staticmethod
    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        return int(stop.value.code or 0)

    def test_it_writes_and_says_so(
        self, planted: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = planted.paths.root
        assert self.run("report", store, "--out", tmp_path, "--json", "--format", "html") == 0
        (event,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert {Path(f).name for f in event["files"]} == {"report.html", "fidelity.html"}
        assert not (tmp_path / "report.md").exists()
        where = "name like '%" + next(iter(planted.episodes))[-5:] + "'"
        code = self.run("report", store, "--out", tmp_path / "o", "--where", where)
        assert code == 0
        assert "1: " in page(tmp_path / "o" / "report.html").said

    def test_runs_are_never_mixed(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "s")
        for seed in (0, 1):
            write_episode(paths, "success/2025-01-01/a", run_seed=seed, keyframes=2, heads=2)
        assert self.run("report", paths.root, "--out", tmp_path / "o", "--format", "html") == 0
        runs = attnstore.open(paths.root).runs
        assert {p.parent.name for p in (tmp_path / "o").glob("*/report.html")} == set(runs)
        assert (
            self.run(
                "report", paths.root, "--out", tmp_path / "p", "--run", runs[0], "--format", "html"
            )
            == 0
        )
        assert (tmp_path / "p" / "report.html").is_file()

    @pytest.mark.parametrize(
        ("more", "code", "said"),
        [
            (("--where", "outcome ="), 2, "Parser Error"),
            (("--where", "outcome = 'x'"), 3, "no episodes where outcome = 'x'"),
            (("--where", "true) or (true"), 2, "Parser Error"),
            (("--run", "x"), 3, "has no run 'x'"),
            (("--episode", "y"), 3, "no episode 'y'; there are"),
        ],
    )
    def test_mistakes_are_one_line(
        self, planted: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        more: tuple[str, ...], code: int, said: str,
    ) -> None:  # fmt: skip
        assert self.run("report", planted.paths.root, "--out", tmp_path, *more) == code
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_a_copy_that_lacks_tables_says_which_pull_brings_them(
        self, planted: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copy = tmp_path / "copy"
        assert self.run("pull", planted.paths.root, copy, "--tier", "catalog") == 0
        capsys.readouterr()
        assert self.run("report", copy, "--out", tmp_path / "o") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "is not here; get it with: attnstore pull" in error
        assert not (tmp_path / "o").exists()
        assert self.run("pull", planted.paths.root, copy, "--tier", "maps") == 0
        assert self.run("report", copy, "--out", tmp_path / "o") == 0

    def test_a_store_without_episodes(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "empty")
        with pytest.raises(NotFoundError, match="empty has no episodes"):
            choose(attnstore.open(paths.root))
