"""Where attention goes over an episode: roles, shares that sum to 1, alignment, pictures, command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from derived_fixtures import CAMERA, INSTRUCTION, SAMPLE, ingested_episode
from droid_sample import sample_path

import attnstore
from attnstore.cli import main
from attnstore.commands.timeline import _rows
from attnstore.query import Store
from attnstore.query.groups.alignment import align
from attnstore.query.objects.choice import latest_object_parts, of_parts
from attnstore.query.objects.episode_timelines import Timelines, timelines
from attnstore.query.objects.options import ObjectOptions
from attnstore.query.objects.part import add_objects
from attnstore.query.objects.role_lift import role_lifts
from attnstore.query.objects.roles import find_roles
from attnstore.query.objects.timeline import ALL, REGIONS, SceneMasks, scene_masks, timeline
from attnstore.query.sql.chosen import choose
from attnstore.query.statistics import estimate
from attnstore.render.charts.svg import Chart
from attnstore.render.charts.timeline import aligned_charts, episode_chart, step_chart
from attnstore.store.errors import NotFoundError, SelectionError, UsageError
from attnstore.store.format.pixels import UNSEEN, patch_of_pixels

OBJECTS = ["blue cube", "pink bowl", "purple bowl", "red cube"]


@pytest.mark.parametrize(
    ("instruction", "target", "goal"),
    [
        ("place the red cube into the pink bowl", "red cube", "pink bowl"),
        ("PUT Red  Cubes, in-to the purple bowls!", "red cube", "purple bowl"),
        ("into the pink bowl goes the blue cube", "pink bowl", "blue cube"),
        ("lift the red cube", "red cube", None),
        ("tidy up", None, None),
        ("the red thing beside a cube", None, None),
    ],
)
def test_target_and_goal_are_what_is_named(
    instruction: str, target: str | None, goal: str | None
) -> None:
    roles = find_roles(instruction, OBJECTS)
    assert (roles.target, roles.goal) == (target, goal)
    assert sorted({*roles.others, target, goal} - {None}) == OBJECTS  # type: ignore[type-var]


def test_names_that_are_given_go_before_the_instruction() -> None:
    assert find_roles("tidy up", OBJECTS, target="blue cube").role("blue cube") == "target"
    swapped = find_roles("the red cube to the pink bowl", OBJECTS, goal="red cube")
    assert (swapped.target, swapped.goal) == ("pink bowl", "red cube")
    assert find_roles("a red cube", ["cube", "red_cube_1"]).target == "red_cube_1"
    with pytest.raises(SelectionError, match="no object 'x'; there are: blue cube"):
        find_roles("", OBJECTS, target="x")
    with pytest.raises(SelectionError, match="cannot be both"):
        find_roles("", OBJECTS, target="red cube", goal="red cube")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy of the sample episode's store, with masks of a detector and the projected gripper."""
    episode = ingested_episode(tmp_path_factory)
    root = episode.part.path.parents[3]
    copy = tmp_path_factory.mktemp("timeline") / "s"
    shutil.copytree(root, copy)
    opened = attnstore.open(copy)
    own = opened.episode(SAMPLE)
    recorded = next(p for p in sample_path().rglob(SAMPLE) if p.is_dir())
    folder = tmp_path_factory.mktemp("masks") / SAMPLE
    (folder / "masks").mkdir(parents=True)
    for name in ("calibration.json", "trajectory.h5"):
        shutil.copy(recorded / name, folder)
    height, width = own.geometry(CAMERA).source
    info: dict[str, list[dict[str, str]]] = {}
    # the cube lies in front of the bowl, and the second keyframe was not looked at
    for frame in own.frames[[0, 2, 3]].tolist():
        info[str(frame)] = []
        for k, category in enumerate(("greenish cube", "purple bowl", "red cube")):
            mask = np.zeros((height, width), bool)
            top, left = height // 3 + 11 * k, width // 5 * (k + 1) - 3 * frame
            mask[top : top + height // 4, max(left, 0) : left + width // 4] = True
            np.save(folder / "masks" / f"{frame}_{k}.npy", mask)
            info[str(frame)].append({"mask_file": f"{frame}_{k}.npy", "category": category})
    (folder / "dinox_info.json").write_text(json.dumps(info))
    for source in ("detector", "gripper"):
        add_objects(opened.paths, own, folder, ObjectOptions(source))
    return opened


@pytest.fixture(scope="module")
def masks(store: Store) -> SceneMasks:
    (chosen,) = choose(store)
    parts = latest_object_parts(store, chosen)
    return scene_masks(store, store.episode(SAMPLE), list(parts.values()))


def test_shares_are_those_of_the_pixels(store: Store, masks: SceneMasks) -> None:
    """Against the full attention and one pixel at a time."""
    episode = store.episode(SAMPLE)
    found = timeline(episode, masks, "suffix", CAMERA)
    assert found.dims == ("keyframe", "step", "layer", "head", "region")
    assert found["region"].values.tolist() == list(ALL)
    assert masks.detected
    assert masks.gripper
    geometry = episode.geometry(CAMERA)
    patch = patch_of_pixels(geometry)
    weights = episode.attention("suffix", query="action").values
    keys = episode.phase("suffix").key
    for keyframe in range(len(episode.frames)):
        at = {"keyframe": keyframe, "step": 1, "layer": 2, "head": 5}
        shares = found.isel(at)
        assert float(shares.sum()) == pytest.approx(1, abs=2e-3) or keyframe not in masks.detected
        row = np.nanmean(weights[keyframe, 1, 2, 5].astype(np.float64), axis=0)
        span = keys[f"image:{CAMERA}"]
        heat = row[span.start : span.stop]
        coverage = geometry.coverage().reshape(-1)
        regions = masks.regions(keyframe, geometry.source)
        if regions is None:
            assert np.isnan(shares.sel(region=list(REGIONS)).values).all()
            continue
        label = np.full(geometry.source, "background", dtype="<U10")
        for name in ("gripper", "other", "goal", "target"):
            label[regions[name]] = name
        total = np.bincount(patch[patch != UNSEEN], minlength=len(heat))
        mass = float((heat * coverage).sum())
        on_image = (heat * total).sum()
        for name in REGIONS:
            inside = np.bincount(patch[(patch != UNSEEN) & (label == name)], minlength=len(heat))
            expected = mass * float((heat * inside).sum() / on_image)
            # the pixel's centre instead of its area
            got = float(shares.sel(region=name))
            assert got == pytest.approx(expected, rel=0.04, abs=2e-4), name
        letterbox = float((heat * (1 - coverage)).sum())
        assert float(shares.sel(region="letterbox")) == pytest.approx(letterbox, abs=2e-4)
        words = sum(np.nansum(row[s.start : s.stop]) for s in keys if s.kind == "text")
        assert float(shares.sel(region="words")) == pytest.approx(float(words), abs=2e-3)


def test_the_target_is_what_object_stats_say(store: Store, masks: SceneMasks) -> None:
    episode = store.episode(SAMPLE)
    assert episode.instruction == INSTRUCTION
    assert (masks.roles.target, masks.roles.goal) == ("greenish cube", "purple bowl")
    found = timeline(episode, masks, "prefix", CAMERA)
    assert found.attrs["others"] == ["red cube"]
    mass = episode.stats("prefix", CAMERA, "camera_mass").values
    rows = store.sql(
        "select keyframe, layer, head, overlap_ratio from object_stats where phase = 'prefix' "
        "and object = 'greenish cube' and head_kind = 'head'"
    ).fetchall()
    assert rows
    for keyframe, layer, head, ratio in rows:
        got = float(found.sel(region="target")[keyframe, layer, head])
        assert got == pytest.approx(ratio * mass[keyframe, layer, head], rel=1e-4, abs=1e-7)


def test_regions_are_disjoint_and_the_detector_goes_before_the_proxy() -> None:
    size = (4, 6)
    cube, bowl, hand = (np.zeros(size, bool) for _ in range(3))
    cube[:, :3], bowl[:, 2:4], hand[1:3] = True, True, True
    roles = find_roles("red cube into pink bowl", OBJECTS)
    made = SceneMasks(roles, {0: {"red cube": cube, "pink bowl": bowl}}, {0: hand}, True, True)
    found = made.regions(0, size)
    assert found is not None
    assert [int(found[r].sum()) for r in REGIONS[:-1]] == [12, 4, 0, 4]
    assert sum(m.astype(int) for m in found.values()).max() == 1  # type: ignore[union-attr]
    assert made.regions(1, size) is None


def test_without_masks_it_says_which_command(store: Store) -> None:
    episode = store.episode(SAMPLE)
    bare = scene_masks(store, episode, [])
    with pytest.raises(NotFoundError, match="objects add --camera hand_camera"):
        timeline(episode, bare, "prefix", CAMERA)
    (chosen,) = choose(store)
    with pytest.raises(NotFoundError, match="--camera varied_camera_1"):
        timelines(store, chosen, "prefix", "varied_camera_1")
    with pytest.raises(SelectionError, match="suffix has layers 0 to 2"):
        timelines(store, chosen, "suffix", CAMERA, layers=[7])


def test_the_latest_part_of_each_kind_is_read_and_no_other(store: Store) -> None:
    (chosen,) = choose(store)
    before = latest_object_parts(store, chosen)
    assert sorted(source for _, _, source in before) == ["detector", "gripper"]
    condition = of_parts(before.values())
    ((parts,),) = store.sql(
        f"select count(distinct part) from object_stats where {condition}"
    ).fetchall()
    assert parts == 2
    assert store.sql(f"select * from object_stats where {of_parts([])}").fetchall() == []
    lifts = role_lifts(store, chosen)
    assert lifts is not None
    gripper = next(e for e in lifts.layers if e.role == "gripper" and e.where[0] == "prefix")
    ((expected,),) = store.sql(
        f"select avg(lift) from object_stats where object = 'gripper' and phase = 'prefix' "
        f"and head_kind = 'mean' and layer = {gripper.layer}"
    ).fetchall()
    assert gripper.lift.value == pytest.approx(expected)
    assert np.isnan(gripper.lift.low)  # one episode


class TestAlignment:
    def test_it_interpolates_and_never_continues(self) -> None:
        x = np.array([0.0, 0.5, 1.0])
        values = np.array([[np.nan, 1.0], [2.0, 1.0], [4.0, 1.0]])
        found = align([(x, values)], points=5)
        np.testing.assert_allclose(found.mean[:, 0], [np.nan, np.nan, 2, 3, 4])
        np.testing.assert_allclose(found.mean[:, 1], 1)
        assert np.isnan(found.low).all()

    def test_intervals_are_over_episodes(self) -> None:
        rng = np.random.default_rng(0)
        level = rng.normal(size=40)
        x = np.array([0.0, 1.0])
        found = align([(x, np.full((2, 1), v)) for v in level], points=3)
        draws = rng.choice(level, (20_000, 40)).mean(1)
        expected = np.quantile(draws, [0.025, 0.975])
        np.testing.assert_allclose([found.low[1, 0], found.high[1, 0]], expected, atol=0.03)
        assert found.episodes == 40

    def test_nothing_to_align(self) -> None:
        with pytest.raises(UsageError, match="give as many of each"):
            align([])

    def test_few_episodes_have_no_interval(self) -> None:
        assert np.isnan(estimate([1.0, 2.0, 4.0], ["a", "b", "c"]).low)
        four = estimate([1.0, 2.0, 4.0, 5.0], list("abcd"))
        assert four.low < four.value < four.high
        assert estimate([np.nan], ["a"]).episodes == 0


def texts(chart: Chart) -> set[str]:
    return {
        e.text or "" for e in ElementTree.fromstring(chart.svg).iter() if e.tag.endswith("text")
    }


def test_pictures(store: Store) -> None:
    (chosen,) = choose(store)
    found = timelines(store, chosen, "suffix", CAMERA)
    assert isinstance(found, Timelines)
    for chart in (episode_chart(found.episodes[0]), *aligned_charts(found), step_chart(found)):
        assert chart is not None
        text = ElementTree.tostring(ElementTree.fromstring(chart.svg), "unicode")
        assert "nan" not in text.lower().replace("nano", "")
    assert found.regions == REGIONS
    lines = {text for chart in aligned_charts(found) for text in texts(chart)}
    assert {"target", "goal", "gripper"} <= lines
    # nothing that has no mask gets a curve of zeros
    (only,) = found.episodes
    attributes = only.shares.attrs | {"gripper": False, "goal": ""}
    bare = replace(found, episodes=(replace(only, shares=only.shares.assign_attrs(attributes)),))
    assert bare.regions == ("target", "other", "background")
    assert {row["gripper"] for row in _rows(bare.episodes[0])} == {None}
    assert all(row["gripper"] is not None for row in _rows(only) if row["target"] is not None)
    for chart in (*aligned_charts(bare), step_chart(bare)):
        assert chart is not None
        assert not {"goal", "gripper"} & texts(chart)
    one_pass = timelines(store, chosen, "prefix", CAMERA)
    assert one_pass.by_step() is None
    assert step_chart(one_pass) is None


def test_command(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*more: object) -> tuple[int, str, str]:
        arguments = ["objects", "timeline", store.paths.root, *more]
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    code, out, _ = run("--json", "--out", tmp_path, "--layers", "1-2")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["step"] for row in rows} == {0, 1, 2}
    whole = [sum(row[r] for r in ALL) for row in rows if row["target"] is not None]
    assert whole == pytest.approx([1.0] * len(whole), abs=1e-5)
    assert len(whole) > 0
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.svg")}
    assert len(names) == 2
    assert "timeline_suffix_hand_camera.svg" in names
    code, _, err = run()
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = run("--json", "--camera", "x")
    assert code in (2, 3)
    assert "x" in err
