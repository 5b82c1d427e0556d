"""Object overlap in a store: rows, revisions, resume, the command, and a policy's real episode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from droid_sample import sample_path
from store_fixtures import (
    POLICY,
    SOURCE,
    carried_of,
    maps_of,
    random_episode,
    run_config,
    write_blocks,
    write_episode,
    write_rows,
)

from attnstore.commands.ingest_choices import RunChoice
from attnstore.commands.ingest_run import run_ingest
from attnstore.commands.objects import objects
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.policies.registry import PolicySpec, load_policy
from attnstore.query import Episode, Store
from attnstore.query import open as open_store_for_reading
from attnstore.query.objects.masks import open_detector_masks
from attnstore.query.objects.options import ObjectOptions, Tier
from attnstore.query.objects.overlap import cover_patches, object_metrics
from attnstore.query.objects.part import (
    Added,
    add_objects,
    find_episode,
    match_frames,
)
from attnstore.store.commits import Attempt, StorePaths, latest_commit, log_of, slug
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import save_run
from attnstore.store.commits.verify import verify
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import (
    ConflictError,
    EpisodeError,
    NotFoundError,
    PartialError,
    SelectionError,
    UsageError,
)
from attnstore.store.format.rle import decode_rle
from attnstore.store.opening import create_store
from attnstore.store.tables.inventory import PART_TABLES, TABLES
from attnstore.store.tables.objects import OBJECT_METRICS

NAMES = ("success/2025-01-01/2025-01-01_10-00-00", "failure/2025-01-02/2025-01-02_11-00-00")
DETECTOR = ObjectOptions("detector")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two episodes of 3 keyframes (frames 0, 8, 16), 2 layers, 2 heads, 2 steps, 4x4 patches."""
    paths = create_store(tmp_path / "toy.attn")
    for seed, name in enumerate(NAMES):
        write_episode(paths, name, name.partition("/")[0], seed)
    return open_store_for_reading(paths.root)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Masks of frames 0 (cube, bowl), 9 (cube) and 16 (bowl) of both episodes."""
    root = tmp_path / "dataset"
    for seed, name in enumerate(NAMES):
        write_masks(root / name, {0: ["cube", "bowl"], 9: ["cube"], 16: ["bowl"]}, seed)
    return root


def write_masks(directory: Path, frames: dict[int, list[str]], seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    folder = directory / "masks"
    folder.mkdir(parents=True, exist_ok=True)
    info: dict[str, Any] = {}
    for frame, categories in frames.items():
        info[str(frame)] = []
        for category in categories:
            mask = np.zeros(SOURCE, bool)
            y, x = rng.integers(0, 20, 2)
            mask[y : y + 13, x : x + 21] = True
            np.save(folder / f"{frame:05d}_{category}_0.npy", mask)
            entry = {"mask_file": f"{frame:05d}_{category}_0.npy", "category": category}
            info[str(frame)].append({**entry, "score": 0.5, "bbox": []})
    (directory / "dinox_info.json").write_text(json.dumps(info))


def add(store: Store, dataset: Path, options: ObjectOptions = DETECTOR, **more: Any) -> Added:
    episode = store.episode(NAMES[0])
    return add_objects(store.paths, episode, dataset / NAMES[0], options, **more)


def rows(store: Store, added: Added, table: str = "object_stats") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Part(store.paths, added.commit).table(table).to_pylist()
    return found


def test_rows_are_the_metrics_of_the_stored_maps(store: Store, dataset: Path) -> None:
    episode = store.episode(NAMES[0])
    added = add(store, dataset)
    found = rows(store, added)
    # keyframes 0 (2 objects) and 2 (1); prefix and 2 steps of the suffix; 2 layers, 2 + 2 heads
    assert added.rows == len(found) == 3 * 3 * 2 * 4
    masks = open_detector_masks("e", dataset / NAMES[0], "hand_camera")
    geometry = episode.geometry("hand_camera")
    for row in found:
        at = {"keyframe": row["keyframe"], "layer": row["layer"], "reduce": "mean"}
        maps = episode.maps(row["phase"], "hand_camera", step=row["step"] or 0, **at).values
        one = {
            "head": lambda m, h: m[h],
            "mean": lambda m, h: m.mean(0),
            "max": lambda m, h: m.max(0),
        }
        values = one[row["head_kind"]](maps, row["head"])
        (mask,) = (m for m in masks.read(row["frame"], SOURCE) if m.category == row["object"])
        cover = cover_patches(geometry, [mask.pixels])
        for name, value in object_metrics(values, cover).items():
            assert row[name] == pytest.approx(value.item(), rel=1e-5), name
        assert row["area"] == pytest.approx(cover.area_fraction.item())
        assert (row["head"] is None) == (row["head_kind"] != "head")
        assert (row["step"] is None) == (row["phase"] == "prefix")
        assert (row["run"], row["episode"], row["part"]) == (episode.run, episode.id, DETECTOR.part)
        assert (row["tier"], row["query_group"]) == (
            "maps",
            {"prefix": "task"}.get(row["phase"], "action"),
        )
    keys = ["keyframe", "phase", "step", "layer", "head", "head_kind", "object"]
    assert len({tuple(r[k] for k in keys) for r in found}) == len(found)
    assert {(r["keyframe"], r["object"]) for r in found} == {(0, "cube"), (0, "bowl"), (2, "bowl")}


@pytest.mark.parametrize("precision", ["float16", "log8"])
def test_rows_say_how_far_they_are_off_the_unrounded_weights(
    tmp_path: Path, dataset: Path, precision: str
) -> None:
    """Prompts differ in length between keyframes, and one head hardly looks at the cameras."""
    exact = random_episode(NAMES[0], "success", 0, precision=precision)
    rng = np.random.default_rng(7)
    for weights in exact.weights.values():
        weights[0] *= 10.0 ** rng.uniform(-8, -5, weights[0].shape)
    paths = create_store(tmp_path / f"{precision}.attn")
    run = save_run(paths, run_config(0, precision), {"host": "test", "code": "0"})
    writer = EpisodeWriter(Attempt(paths, run, slug(NAMES[0]), "base"), exact.spec, POLICY)
    write_blocks(writer, exact)
    write_rows(writer, exact)
    writer.commit({})
    store = open_store_for_reading(paths.root)
    worst: dict[tuple[str, int], float] = {}
    sure: dict[Tier, int] = {"maps": 0, "full": 0}
    for tier in sure:
        for row in rows(store, add(store, dataset, ObjectOptions("detector", tier=tier))):
            if row["head_kind"] != "head":
                continue
            mean, _ = maps_of(
                exact, row["phase"], row["query_group"], "hand_camera", row["keyframe"]
            )
            at = (row["layer"], row["head"])
            values = mean[at] if row["step"] is None else mean[(row["step"], *at)]
            masks = open_detector_masks("e", dataset / NAMES[0], "hand_camera")
            (mask,) = (m for m in masks.read(row["frame"], SOURCE) if m.category == row["object"])
            cover = cover_patches(exact.spec.geometry["hand_camera"], [mask.pixels])
            wanted = {k: v.item() for k, v in object_metrics(values, cover).items()}
            if row["overlap_ratio"] is None:  # every weight was too small for the precision
                assert (tier, row["head"]) == ("full", 0)
                continue
            for metric in ("overlap", "iou", "nss"):
                name = "overlap_ratio" if metric == "overlap" else metric
                bound = row[f"{metric}_error"]
                if bound is not None:
                    assert abs(row[name] - wanted[name]) <= bound * 1.001 + 1e-6, row
            assert row["lift"] == pytest.approx(
                wanted["lift"], abs=row["overlap_error"] / row["area"] + 1e-5
            )
            if row["pointing_sure"]:
                assert row["pointing_hit"] == wanted["pointing_hit"]
                sure[tier] += 1
            for name in ("overlap_ratio", "lift", "concentration"):
                off = abs(row[name] / wanted[name] - 1)
                worst[tier, row["head"]] = max(worst.get((tier, row["head"]), 0), off)
    assert max(worst["maps", head] for head in (0, 1)) < 2e-3
    assert worst["full", 1] < {"float16": 2e-3, "log8": 0.05}[precision]
    # The store's precision is not enough for the head that hardly looks: float16 keeps some of it.
    assert worst.get(("full", 0), 1.0) > 0.02
    assert sure["maps"] == 36
    assert sure["full"] < sure["maps"]


def test_masks_are_kept_with_the_numbers(store: Store, dataset: Path) -> None:
    added = add(store, dataset)
    kept = rows(store, added, "object_masks")
    assert [(r["keyframe"], r["frame"], r["object"]) for r in kept] == [
        (0, 0, "bowl"), (0, 0, "cube"), (2, 16, "bowl"),
    ]  # fmt: skip
    masks = open_detector_masks("e", dataset / NAMES[0], "hand_camera")
    for row in kept:
        (mask,) = (m for m in masks.read(row["frame"], SOURCE) if m.category == row["object"])
        pixels = decode_rle((row["height"], row["width"]), row["counts"])
        np.testing.assert_array_equal(pixels, mask.pixels)
        assert (row["instances"], row["score"]) == (1, 0.5)


def test_the_nearest_masks_within_some_frames(store: Store, dataset: Path) -> None:
    found = rows(store, add(store, dataset, ObjectOptions("detector", within=1)))
    assert {(r["keyframe"], r["frame"], r["mask_frame"]) for r in found} == {
        (0, 0, 0), (1, 8, 9), (2, 16, 16),
    }  # fmt: skip
    assert match_frames([10], [8, 12], 2) == {0: 8}
    assert match_frames([10], [], 2) == {}


def test_the_catalog_shows_the_rows(store: Store, dataset: Path) -> None:
    assert store.sql("from object_stats").fetchall() == []
    added = add(store, dataset)
    relation = store.sql("from object_stats order by all")
    assert relation.columns == [c.name for c in PART_TABLES["object_stats"].columns]
    shown = relation.fetchall()
    expected = store.sql(
        f"from read_parquet('{added.commit.directory(store.paths) / 'object_stats.parquet'}') "
        "order by all"
    ).fetchall()
    assert repr(shown) == repr(expected)
    joined = store.sql(
        "select outcome, object, avg(lift) from object_stats join episodes using (run, episode) "
        "group by all order by all"
    ).fetchall()
    assert [row[:2] for row in joined] == [("success", "bowl"), ("success", "cube")]
    add(store, dataset, redo=True)
    assert len(store.sql("from object_stats").fetchall()) == len(shown)


def test_base_parts_have_no_object_tables(store: Store) -> None:
    base = store.episode(NAMES[0]).part.commit
    tables = {f.path.removesuffix(".parquet") for f in base.files if f.path.endswith(".parquet")}
    assert tables == set(TABLES)
    assert not set(TABLES) & set(PART_TABLES)


def test_same_inputs_are_not_computed_again(store: Store, dataset: Path) -> None:
    first, second = add(store, dataset), add(store, dataset)
    assert (first.computed, second.computed) == (True, False)
    assert second.commit == first.commit
    third = add(store, dataset, redo=True)
    assert (third.computed, third.commit.revision) == (True, 2)
    assert rows(store, third) == rows(store, first)
    assert not list(verify(store.paths))


def test_other_inputs_are_the_next_revision(store: Store, dataset: Path) -> None:
    add(store, dataset)
    write_masks(dataset / NAMES[0], {0: ["plate"]})
    second = add(store, dataset)
    assert (second.commit.revision, second.commit.summary["objects"]) == (2, ["plate"])
    write_episode(store.paths, NAMES[0], "success", 5, replace=True)
    third = add(store, dataset)
    assert (third.computed, third.commit.revision) == (True, 3)


def test_other_options_are_another_part(store: Store, dataset: Path) -> None:
    others = [ObjectOptions("detector", threshold=0.5), ObjectOptions("detector", within=3),
              ObjectOptions("detector", "varied_camera_1"), ObjectOptions("gripper")]  # fmt: skip
    assert len({DETECTOR.part, *(o.part for o in others)}) == 5
    one, other = rows(store, add(store, dataset)), rows(store, add(store, dataset, others[0]))
    same = [name for name in OBJECT_METRICS if name != "iou"]
    assert [[r[n] for n in same] for r in one] == [[r[n] for n in same] for r in other]
    assert [r["iou"] for r in one] != [r["iou"] for r in other]
    assert {r["threshold"] for r in other} == {0.5}


def test_phases_add_up(store: Store, dataset: Path) -> None:
    first = add(store, dataset, phases=["suffix"])
    assert {r["phase"] for r in rows(store, first)} == {"suffix"}
    second = add(store, dataset, phases=["prefix"])
    assert {r["phase"] for r in rows(store, second)} == {"prefix", "suffix"}
    assert not add(store, dataset, phases=["suffix"]).computed
    assert not add(store, dataset).computed
    with pytest.raises(SelectionError, match="no phase 'decode'"):
        add(store, dataset, phases=["decode"])


def test_frames_without_objects_are_committed_as_empty(store: Store, dataset: Path) -> None:
    write_masks(dataset / NAMES[0], {0: []})
    added = add(store, dataset)
    assert (added.rows, added.commit.summary["objects"]) == (0, [])
    assert store.sql("from object_stats").fetchall() == []


def test_no_keyframe_with_masks(store: Store, dataset: Path) -> None:
    write_masks(dataset / NAMES[0], {5: ["cube"], 25: ["cube"]})
    with pytest.raises(
        EpisodeError, match="of frames 5, 25, the keyframes are 0, 8, 16; the nearest are 3"
    ):
        add(store, dataset)
    with pytest.raises(SelectionError, match="no camera 'varied_camera_2'"):
        add(store, dataset, ObjectOptions("detector", "varied_camera_2"))


def test_a_broken_mask_leaves_nothing_behind(store: Store, dataset: Path) -> None:
    np.save(dataset / NAMES[0] / "masks" / "00016_bowl_0.npy", np.zeros((9, 9), bool))
    with pytest.raises(EpisodeError, match="frame 16, detection 0: the mask is 9x9 pixels"):
        add(store, dataset)
    assert not list(store.paths.data.glob("*/*/objects-*"))


def test_the_loser_of_two_writers_leaves_nothing_behind(
    store: Store, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Attempt.publish

    def late(self: Attempt, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(Attempt, "publish", publish)
        add(store, dataset)
        return self.publish(*args, **kwargs)

    monkeypatch.setattr(Attempt, "publish", late)
    with pytest.raises(ConflictError):
        add(store, dataset)
    assert len(list(store.paths.data.glob("*/*/objects-*"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "sam"}, "a source is one of detector, gripper; got 'sam'"),
        ({"threshold": 0.0}, "the threshold is more than 0"),
        ({"within": -1}, "within is a number of frames"),
        ({"tier": "catalog"}, "a tier is one of maps, full"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ObjectOptions(**{"source": "detector", **options})


def test_episodes_are_found_from_every_level(tmp_path: Path) -> None:
    name = "success/2025-01-01/e"
    directory = tmp_path / name
    directory.mkdir(parents=True)
    for root in (tmp_path, *list(directory.parents)[:2], directory):
        assert find_episode(root, name) == directory
    for wrong in ("failure/2025-01-01/e", "../x", str(directory), "e"):
        with pytest.raises(EpisodeError, match="is not in the dataset"):
            find_episode(tmp_path, wrong)
    (tmp_path / "failure").mkdir()
    with pytest.raises(EpisodeError):
        find_episode(tmp_path / "failure", name)


# The command.


def run(store: Store, dataset: Path, *arguments: str) -> tuple[Result, list[dict[str, Any]]]:
    command = [
        "add",
        str(store.paths.root),
        "--masks",
        str(dataset),
        "--json",
        *arguments,
    ]
    result = CliRunner().invoke(objects, command)
    events = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return result, events


def test_command_adds_resumes_and_names_what_has_no_masks(store: Store, dataset: Path) -> None:
    result, events = run(store, dataset, "--source", "detector")
    assert result.exit_code == 0, result.output
    assert sorted((e["name"], e["status"], e["rows"]) for e in events) == [
        (name, "committed", 72) for name in sorted(NAMES)
    ]
    (dataset / NAMES[1] / "dinox_info.json").unlink()
    result, events = run(store, dataset, "--source", "detector")
    assert {e["name"]: e["status"] for e in events} == {NAMES[0]: "present", NAMES[1]: "broken"}
    assert isinstance(result.exception, PartialError)
    assert result.exception.exit_code == 5
    assert "no numbers for 1 of 2" in str(result.exception)
    assert f"{NAMES[1]}: detector: no masks of hand_camera" in str(result.exception)


def test_masks_that_are_numbered_from_one_are_not_taken_for_the_next_frames(
    store: Store, dataset: Path
) -> None:
    write_masks(dataset / NAMES[0], {frame: ["cube"] for frame in range(1, 25)})
    with pytest.raises(
        EpisodeError, match="the masks are of frames 1 to 24, and the episode has 0"
    ):
        add(store, dataset)
    write_masks(dataset / NAMES[0], {frame: ["cube"] for frame in range(1, 24)})
    assert add(store, dataset).computed


def test_command_on_one_episode(store: Store, dataset: Path) -> None:
    result, events = run(store, dataset, "--source", "detector", "--episode", NAMES[1],
                         "--phase", "suffix", "--threshold", "0.5", "--within", "1")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [e["name"] for e in events] == [NAMES[1]]
    found = store.sql("select distinct phase, threshold from object_stats").fetchall()
    assert found == [("suffix", 0.5)]
    _, events = run(store, dataset, "--source", "detector", "--episode", NAMES[1],
                    "--phase", "suffix", "--threshold", "0.5", "--within", "1", "--redo")  # fmt: skip
    assert [(e["status"], e["revision"]) for e in events] == [("committed", 2)]


def test_a_source_that_the_dataset_does_not_have_is_left_out(store: Store, dataset: Path) -> None:
    result, events = run(store, dataset)
    assert result.exit_code == 0, result.output
    found = {(e["name"], e["source"], e["status"]) for e in events}
    assert found == {(name, "detector", "committed") for name in NAMES}
    assert "gripper: left out, no episode has calibration.json" in result.output
    # asked for, it is missing
    result, _ = run(store, dataset, "--source", "gripper")
    assert isinstance(result.exception, PartialError)
    assert "calibration.json and trajectory.h5 are missing" in str(result.exception)


def test_what_one_episode_has_the_others_lack(store: Store, dataset: Path) -> None:
    (dataset / NAMES[0] / "calibration.json").write_text("{}")
    result, events = run(store, dataset)
    assert {(e["name"], e["source"], e["status"]) for e in events} == {
        (name, *of) for name in NAMES for of in (("detector", "committed"), ("gripper", "broken"))
    }
    assert f"{NAMES[0]}: gripper: the gripper cannot be projected: trajectory.h5" in str(
        result.exception
    )
    assert f"{NAMES[1]}: gripper: the gripper cannot be projected: calibration.json and" in str(
        result.exception
    )


def test_a_dataset_without_masks_says_what_to_give(store: Store, dataset: Path) -> None:
    for name in NAMES:
        (dataset / name / "dinox_info.json").unlink()
    result, _ = run(store, dataset)
    assert isinstance(result.exception, NotFoundError)
    assert "dinox_info.json or coco_masks.json, or calibration.json" in str(result.exception)


def test_command_refusals(store: Store, dataset: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[str], type[Exception]]] = [
        (["--camera", "varied_camera_2"], SelectionError),
        (["--episode", "no such"], NotFoundError),
        (["--run", "no such"], NotFoundError),
        (["--phase", "decode"], SelectionError),
    ]
    for arguments, error in cases:
        result, _ = run(store, dataset, "--source", "detector", *arguments)
        assert isinstance(result.exception, error), result.output
    result, _ = run(store, tmp_path / "nowhere")
    assert isinstance(result.exception, NotFoundError)
    result, _ = run(store, dataset, "--threshold", "0")
    assert result.exit_code == 2
    for option in ("--threshold", "--tool-offset"):
        result, _ = run(store, dataset, option, "nan")
        assert isinstance(result.exception, UsageError), result.output
        assert f"{option} takes a finite number; got 'nan'" in str(result.exception)


@pytest.mark.parametrize("precision", ["float16", "log8"])
def test_value_weighted_rows_are_of_what_is_carried(
    tmp_path: Path, dataset: Path, precision: str
) -> None:
    """By unrounded weights and norms, of which every row says how far it may be off."""
    paths = create_store(tmp_path / "v.attn")
    made = random_episode(NAMES[0], "success", 0, precision=precision, values=True)
    carried = carried_of(made)
    write_episode(paths, NAMES[0], "success", 0, precision=precision, values=True)
    store = open_store_for_reading(paths.root)
    found = rows(store, add(store, dataset))
    assert len(found) == 2 * 3 * 3 * 2 * 4
    assert {(r["weighting"], r["tier"]) for r in found} == {("raw", "maps"), ("value", "full")}
    masks = open_detector_masks("e", dataset / NAMES[0], "hand_camera")
    of_value = [r for r in found if (r["weighting"], r["head_kind"]) == ("value", "head")]
    for row in of_value:
        phase, k, layer, step = (row[n] for n in ("phase", "keyframe", "layer", "step"))
        layout, about = made.layouts[k][phase], made.spec.phases[phase]
        weights = carried.weights[phase, k, layer, step][row["head"]]
        queries = np.concatenate(
            [np.arange(s.start, s.stop) for s in layout.query.group(about.query_groups[0])]
        )
        (patches,) = layout.key.group("image:hand_camera")
        grid = made.spec.geometry["hand_camera"].grid
        true = weights[queries][:, patches.start : patches.stop].mean(0).reshape(grid)
        (mask,) = (m for m in masks.read(row["frame"], SOURCE) if m.category == row["object"])
        cover = cover_patches(made.spec.geometry["hand_camera"], [mask.pixels])
        exact = {name: value.item() for name, value in object_metrics(true, cover).items()}
        assert abs(row["overlap_ratio"] - exact["overlap_ratio"]) <= row["overlap_error"] * 1.001
        assert abs(row["iou"] - exact["iou"]) <= row["iou_error"] + 1e-6
        assert row["overlap_error"] < (0.01 if precision == "float16" else 0.1)
        if row["pointing_sure"]:
            assert row["pointing_hit"] == exact["pointing_hit"]
    assert any(r["overlap_error"] > 0 for r in of_value)
    with_both = "select avg(lift) from object_stats"
    assert store.both_weightings(with_both) == ("object_stats",)
    assert store.both_weightings(f"{with_both} where weighting = 'raw'") == ()
    # without, and again with them: the same inputs, but rows that are missing
    again = add(store, dataset, values=False)
    assert not again.computed
    left_out = add(store, dataset, values=False, redo=True)
    assert {r["weighting"] for r in rows(store, left_out)} == {"raw"}
    assert add(store, dataset).computed


def test_a_real_policy_on_the_sample(checkpoint: Path, tmp_path: Path) -> None:
    """Ingest the sample episode that has masks with a tiny Pi0, then measure."""
    name = "failure/2025-12-10/2025-12-10_09-07-36"
    policy = load_policy("pi0", str(checkpoint))
    spec = PolicySpec("pi0", str(checkpoint), None, None, {})
    sample = DroidDataset(sample_path(), episodes=name, name="sample")
    run_ingest(
        tmp_path / "toy.attn", sample, policy, spec, RunChoice(precision="log8", batch_size=4),
        as_json=True,
    )  # fmt: skip
    store = open_store_for_reading(tmp_path / "toy.attn")
    result, events = run(store, sample_path())
    assert result.exit_code == 0, result.output
    assert [(e["source"], e["objects"]) for e in events] == [
        ("detector", ["green cube", "pink bowl"]), ("gripper", ["gripper"]),
    ]  # fmt: skip
    episode = store.episode(name)
    found = store.sql(
        "select object, list(distinct frame order by frame), count(*), min(lift), max(area) "
        "from object_stats group by all order by all"
    ).fetchall()
    maps = sum(
        (episode.steps(p) or 1) * episode.layers(p) * (episode.heads(p) + 2) for p in episode.phases
    )
    assert [(o, frames, count) for o, frames, count, _, _ in found] == [
        ("green cube", [0, 24], 4 * maps), ("gripper", [0, 8, 16, 24], 8 * maps),
        ("pink bowl", [0], 2 * maps),
    ]  # fmt: skip
    assert all(lift > 0 for *_, lift, _ in found)
    assert all(0 < area < 0.3 for *_, area in found)
    assert _uniform_lift(episode) == pytest.approx(1.0)
    assert not list(verify(StorePaths(tmp_path / "toy.attn")))
    part = ObjectOptions("gripper").part
    assert list(log_of(store.paths).update().revisions(episode.run, episode.id, part)) == [1]
    assert latest_commit(store.paths, episode.run, episode.id, part) is not None


def _uniform_lift(episode: Episode) -> float:
    geometry = episode.geometry("hand_camera")
    mask = np.zeros(geometry.source, bool)
    mask[10:50, 200:300] = True
    uniform = np.full(geometry.grid, 1 / 64)
    return object_metrics(uniform, cover_patches(geometry, [mask]))["lift"].item()
