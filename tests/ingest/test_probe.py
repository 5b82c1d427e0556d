"""Probes end to end: a policy whose dependence is known, and the real tiny Pi0."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from derived_fixtures import slow_distribution, slow_divergence
from ingest_fixtures import CAMERAS, LAYERS, Watcher, make_job, problems
from PIL import Image
from probe_fixtures import ASTRAY, DOF, POINTING, PlantedPolicy, planted_pixels

import attnstore
from attnstore.ingest.capture import capture
from attnstore.ingest.datasets.base import Frame
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.pipeline import ingest_all
from attnstore.ingest.policies.base import Batch, Observation, ObservationError
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.probing.episode import ProbeJob, probe_episode
from attnstore.ingest.probing.fidelity import Fidelity
from attnstore.ingest.probing.keyframe import stored_keyframes
from attnstore.ingest.probing.knockout import Knockout, patches_of
from attnstore.ingest.probing.pipeline import (
    check_policy,
    choose_episodes,
    make_plan,
    probe_all,
    real_dof,
)
from attnstore.ingest.probing.prompts import Prompts, parse_replaced, read_prompts
from attnstore.ingest.probing.regions import Regions
from attnstore.ingest.probing.variant import Probe
from attnstore.query import Store
from attnstore.query.causes.fidelity import layer_fidelity
from attnstore.query.sql.named import named_query
from attnstore.query.statistics import clustered_interval
from attnstore.render.files.video import encode
from attnstore.store.commits import Attempt, StorePaths, latest_commit
from attnstore.store.commits.quarantine import quarantined
from attnstore.store.commits.run import RunConfig
from attnstore.store.errors import NotFoundError, SelectionError, UsageError
from attnstore.store.format.action_metrics import curve_area
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.rle import decode_rle, encode_rle
from attnstore.store.tables.inventory import PART_TABLES
from attnstore.store.tables.parquet import write_table

SOURCE = (36, 64)
GEOMETRY = Geometry.letterbox(SOURCE, (56, 56), (14, 14))
PATCH, ELSEWHERE = 6, 9
"""Both whole inside the image: row 1, column 2; row 2, column 1."""
SHARE = 0.12
"""A whole patch and a few pixels."""


def ingest(root: Path, policy: Any, dataset: DroidDataset, episodes: int) -> ProbeJob:
    job = make_job(root, policy, dataset)
    report = ingest_all(job, policy, dataset, dataset.episode_names()[:episodes], Watcher())
    assert not report.failed
    return ProbeJob(job.paths, job.run, Prompts(empty=True), 1)


def run(job: ProbeJob, policy: Any, probe: Probe, **options: Any) -> Store:
    episodes = choose_episodes(job.paths, job.run, options.pop("names", ()))
    dof = real_dof(policy, episodes[0], None)
    job = replace(job, probe=probe, dof=dof, **options)
    report = probe_all(job, policy, make_plan(job, episodes).pending, Watcher())
    assert not report.failed, report.failed
    return attnstore.open(job.paths.root)


def ask(store: Store, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = store.sql(sql).to_arrow_table().to_pylist()
    return found


@pytest.fixture(scope="module")
def planted() -> PlantedPolicy:
    return PlantedPolicy(dict.fromkeys(CAMERAS, GEOMETRY), CAMERAS[0], PATCH, ELSEWHERE)


@pytest.fixture(scope="module")
def planted_job(
    planted: PlantedPolicy, recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> ProbeJob:
    return ingest(tmp_path_factory.mktemp("planted") / "s", planted, DroidDataset(recordings), 2)


@pytest.fixture(scope="module")
def real_job(
    loaded: Pi0Policy, recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> ProbeJob:
    return ingest(tmp_path_factory.mktemp("real") / "s", loaded, DroidDataset(recordings), 1)


def stored_images(store: Store) -> dict[tuple[str, int, str], Any]:
    rows = ask(store, "select episode, keyframe, camera, image from frames")
    return {
        (r["episode"], r["keyframe"], r["camera"]): np.asarray(
            Image.open(io.BytesIO(r["image"])).convert("RGB"), np.float64
        )
        for r in rows
    }


class TestPlantedDependence:
    """The action depends on patch 6 of the wrist camera and on nothing else."""

    def test_the_map_that_points_at_it_has_the_whole_effect_and_its_control_none(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        probe = Fidelity("joint", "action", share=SHARE, fill="black", repeats=2)
        store = run(planted_job, planted, probe)
        rows = ask(store, f"from interventions where part = '{probe.part}'")
        images = stored_images(store)
        box = planted_pixels(GEOMETRY, PATCH)
        assert {r["dof"] for r in rows} == {DOF}
        for row in rows:
            shown = images[row["episode"], row["keyframe"], CAMERAS[0]]
            brightness = shown[box].mean() / 255
            if row["target"] == "base":
                assert (row["mse"], row["si_mse"]) == (0, 0)
            elif row["layer"] == POINTING and row["target"] == "attention":
                # black takes all of 4 * brightness away from one of the three components
                assert row["mse"] == pytest.approx((4 * brightness) ** 2 / 3, rel=1e-5)
            elif row["layer"] == POINTING or row["target"] == "attention":
                assert row["mse"] == row["si_mse"] == 0
        (good, bad) = sorted(
            (f for f in layer_fidelity(store) if f.metric == "si_mse"), key=lambda f: f.layer
        )
        assert good.fidelity > 0.01
        assert good.low > 0
        assert good.control == 0
        assert bad.layer == ASTRAY
        assert bad.fidelity <= 0
        assert (good.episodes, good.keyframes) == (2, 6)
        assert good.attention_change > 10
        assert good.control_change > 10
        named = ask(store, named_query("mask-fidelity").sql)
        assert {r["layer"]: r["fidelity"] for r in named} == pytest.approx(
            {f.layer: f.fidelity for f in (good, bad)}
        )

    def test_masks_and_their_numbers_are_those_of_the_geometry(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        probe = Fidelity("joint", "action", share=SHARE, fill="black", repeats=2)
        store = run(planted_job, planted, probe)
        images = stored_images(store)
        masks = {
            (r["episode"], r["keyframe"], r["variant"], r["camera"]): decode_rle(
                (r["height"], r["width"]), r["counts"]
            )
            for r in ask(store, f"from intervention_masks where part = '{probe.part}'")
        }
        rows = ask(store, f"from interventions where part = '{probe.part}' and target <> 'base'")
        assert len(rows) == 6 * 2 * 3
        count = round(SHARE * SOURCE[0] * SOURCE[1])
        for row in rows:
            own = [masks[row["episode"], row["keyframe"], row["variant"], c] for c in CAMERAS]
            assert [int(m.sum()) for m in own] == [count, count]
            assert row["pixels"] == 2 * count
            assert row["area"] == pytest.approx(count / (SOURCE[0] * SOURCE[1]))
            shown = [images[row["episode"], row["keyframe"], c] for c in CAMERAS]
            change = np.concatenate([i[m].mean(-1) for i, m in zip(shown, own, strict=True)])
            assert row["pixel_change"] == pytest.approx(change.mean(), rel=1e-5)
            if row["target"] == "attention":
                patch = PATCH if row["layer"] == POINTING else ELSEWHERE
                assert all(m[planted_pixels(GEOMETRY, patch)].all() for m in own)
            else:
                at = {k: m for k, m in masks.items() if k[:2] == (row["episode"], row["keyframe"])}
                high = at[row["episode"], row["keyframe"], f"L{row['layer']:02d}/all/attention-0",
                          CAMERAS[0]]  # fmt: skip
                assert not (high & own[0]).any()

    def test_no_region_but_its_own_matters(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        probe = Regions(by=("camera", "cell"), cells=(3, 5), cameras=("each", "all"), fill="black")
        store = run(planted_job, planted, probe)
        rows = ask(
            store,
            f"select * from interventions where part = '{probe.part}' and target <> 'base'",
        )
        masks = {
            (r["episode"], r["keyframe"], r["variant"], r["camera"]): decode_rle(
                (r["height"], r["width"]), r["counts"]
            )
            for r in ask(store, f"from intervention_masks where part = '{probe.part}'")
        }
        assert len(rows) == 6 * (3 + 2 * 15)
        box = planted_pixels(GEOMETRY, PATCH)
        hit = 0
        for row in rows:
            wrist = masks.get((row["episode"], row["keyframe"], row["variant"], CAMERAS[0]))
            touched = wrist is not None and bool((wrist & box).any())
            assert (row["mse"] > 0) == touched, row
            hit += touched
        assert hit >= 6 * 3
        # cells partition the image
        cells = [m for k, m in masks.items() if k[2].startswith(f"cell/{CAMERAS[1]}/")]
        assert np.sum(cells, axis=0).tolist() == np.full(SOURCE, 6).tolist()
        both = {r["detail"]: r["mse"] for r in rows if r["target"] == "camera"}
        assert both["all"] == both[CAMERAS[0]] > 0
        assert both[CAMERAS[1]] == 0

    def test_the_ledger_says_what_is_looked_at_without_use(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        # 2 x 4 cells: each holds parts of patches; the planted patch is in column 2
        probe = Regions(by=("cell",), cells=(2, 4), cameras=(CAMERAS[0],), fill="black")
        store = run(planted_job, planted, probe)
        unused = ask(store, named_query("looked-at-but-unused").sql)
        overlooked = ask(store, named_query("used-but-not-looked-at").sql)
        assert {r["layer"] for r in unused if r["part"] == probe.part} == {ASTRAY}
        assert {r["layer"] for r in overlooked if r["part"] == probe.part} == {ASTRAY}
        used = {r["detail"] for r in overlooked if r["part"] == probe.part}
        assert used <= {"0,2", "1,2"}
        rows = ask(store, f"from region_attention where part = '{probe.part}' and keyframe = 0")
        sums: dict[int, float] = {}
        for row in rows:
            sums[row["layer"]] = sums.get(row["layer"], 0) + row["attention"] / 2  # two episodes
        assert sums == pytest.approx({POINTING: 1, ASTRAY: 1}, abs=1e-5)

    def test_curves_begin_and_end_with_the_base_and_fall_where_they_should(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        probe = Fidelity(
            "joint", "action", (POINTING,), share=SHARE, fill="black", repeats=2, curve_points=4,
            cameras=(CAMERAS[0],),
        )  # fmt: skip
        job = replace(planted_job, probe=probe)
        store = run(planted_job, planted, probe)
        episodes = choose_episodes(job.paths, job.run, ())
        assert make_plan(replace(job, dof=DOF), episodes).pending == ()
        rows = ask(store, f"from intervention_curves where part = '{probe.part}'")
        curves: dict[tuple[Any, ...], dict[float, float]] = {}
        for r in rows:
            place = (r["episode"], r["keyframe"], r["curve"], r["target"], r["repeat"])
            curves.setdefault(place, {})[r["fraction"]] = r["si_mse"]
        assert len(curves) == 6 * 2 * 3
        areas: dict[tuple[str, str], list[float]] = {}
        for place, points in curves.items():
            assert sorted(points) == [0, 0.25, 0.5, 0.75, 1]
            values = [points[f] for f in sorted(points)]
            deletion = place[2] == "deletion"
            none, whole = (values[0], values[-1]) if deletion else (values[-1], values[0])
            assert none == 0 < whole
            if place[3] == "attention":
                # the first quarter of the pixels holds all that matters
                assert values[1] == (pytest.approx(whole) if deletion else 0)
            area = float(curve_area(np.array(sorted(points)), np.array(values)))
            areas.setdefault(place[2:4], []).append(area)
        named = {
            (r["curve"], r["target"]): r["si_mse_area"]
            for r in ask(store, named_query("curve-areas").sql)
            if r["part"] == probe.part
        }
        assert named == pytest.approx({k: np.mean(v) for k, v in areas.items()}, rel=1e-5)
        assert named["deletion", "attention"] > named["deletion", "control"]
        assert named["insertion", "attention"] < named["insertion", "control"]

    def test_ranks_find_it_in_the_first_band(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        probe = Regions(
            by=("rank",), cameras=(CAMERAS[0],), fill="black", phase="joint", group="action",
            layers=(POINTING,), bands=8,
        )  # fmt: skip
        store = run(planted_job, planted, probe)
        effect = ask(
            store,
            "select detail, sum(mse) mse, avg(attention) attention from interventions "
            f"where part = '{probe.part}' and target = 'rank' group by all order by detail",
        )
        assert len(effect) == 8
        assert [r["detail"] for r in effect if r["mse"] > 0] == ["0-0.12"]
        assert effect[0]["attention"] > 0.75

    def test_what_makes_no_batch_is_run_one_by_one(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        class Unpadded(PlantedPolicy):
            def prepare(self, observations: Sequence[Observation]) -> Batch:
                if len({len(o.instruction) for o in observations}) > 1:
                    raise ObservationError("expected sequence of length 6")
                return super().prepare(observations)

        policy = Unpadded(dict.fromkeys(CAMERAS, GEOMETRY), CAMERAS[0], PATCH, ELSEWHERE)
        probe = Prompts((("long", "{instruction} twice"),), empty=True)
        store = run(planted_job, policy, probe, batch_size=8)
        rows = ask(store, f"from interventions where part = '{probe.part}' and target = 'prompt'")
        assert {r["detail"] for r in rows} == {"long", "empty"}
        assert {r["mse"] for r in rows} == {0}  # it does not read

    def test_objects_are_removed_by_their_masks(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        episode, other = choose_episodes(planted_job.paths, planted_job.run, ())
        write_objects(planted_job.paths, episode.run, episode.id)
        probe = Regions(by=("object",), fill="black")
        job = replace(planted_job, probe=probe, dof=DOF)
        report = probe_all(job, planted, [episode, other], Watcher())
        assert [o.status for o in report.outcomes] == ["committed", "broken"]
        assert "no object masks; `attnstore objects add` brings" in report.outcomes[1].reason
        store = attnstore.open(job.paths.root)
        rows = ask(store, f"from interventions where part = '{probe.part}' and target = 'object'")
        assert {(r["keyframe"], r["detail"]) for r in rows} == {(0, "cube"), (0, "bowl")}
        assert {r["detail"]: r["mse"] > 0 for r in rows} == {"cube": True, "bowl": False}
        # the same command again finds the part; with other masks its inputs differ
        fresh = choose_episodes(planted_job.paths, planted_job.run, ())[0]
        assert job.done(fresh) is not None
        write_objects(planted_job.paths, episode.run, episode.id)
        fresh = choose_episodes(planted_job.paths, planted_job.run, ())[0]
        assert job.done(fresh) is None
        again = probe_episode(job, planted, fresh)
        assert again.revision == 2
        keyframe = next(stored_keyframes(fresh))
        box = planted_pixels(GEOMETRY, PATCH)
        assert patches_of(keyframe, CAMERAS[0], "object", "cube").tolist() == [PATCH]
        background = patches_of(keyframe, CAMERAS[0], "background")
        shown = set(np.flatnonzero(GEOMETRY.coverage().ravel() > 0).tolist())
        assert set(background.tolist()) == shown - {PATCH, ELSEWHERE}
        assert patches_of(keyframe, CAMERAS[1], "background").size == 0
        assert box.any()
        # shown by both cameras, it is gone only when both lose it
        write_objects(planted_job.paths, episode.run, episode.id, CAMERAS)
        probe = Regions(by=("object",), cameras=("all",), fill="black")
        fresh = choose_episodes(planted_job.paths, planted_job.run, ())[0]
        probe_episode(replace(job, probe=probe), planted, fresh)
        rows = ask(store, f"from interventions where part = '{probe.part}' and keyframe = 0")
        found = {
            (r["detail"], r["target"], *r["cameras"]): r for r in rows if r["target"] != "base"
        }
        assert set(found) == {
            (name, *where)
            for name in ("cube", "bowl")
            for where in (("object", CAMERAS[0]), ("object", CAMERAS[1]),
                          ("object together", *CAMERAS))
        }  # fmt: skip
        together = found["cube", "object together", *CAMERAS]
        alone = found["cube", "object", CAMERAS[0]]
        assert together["mse"] == alone["mse"] > 0
        assert together["pixels"] == 2 * alone["pixels"] == 2 * box.sum()
        assert found["cube", "object", CAMERAS[1]]["mse"] == 0


def write_objects(
    paths: StorePaths, run: str, episode: str, cameras: Sequence[str] = CAMERAS[:1]
) -> None:
    attempt = Attempt(paths, run, episode, "objects-0123456789")
    schema = PART_TABLES["object_masks"].schema
    rows = [
        {
            "run": run, "episode": episode, "variant": "base", "part": "objects-0123456789",
            "keyframe": 0, "frame": 0, "camera": camera, "source": "detector", "object": name,
            "mask_frame": 0, "instances": 1, "score": 0.9, "height": SOURCE[0], "width": SOURCE[1],
            "counts": encode_rle(planted_pixels(GEOMETRY, patch)),
        }
        for name, patch in (("cube", PATCH), ("bowl", ELSEWHERE))
        for camera in cameras
    ]  # fmt: skip
    import pyarrow as pa

    write_table(attempt.path / "object_masks.parquet", pa.Table.from_pylist(rows, schema))
    attempt.publish({"source": "detector"})


class TestRealPolicy:
    def test_the_stored_frames_and_noise_give_the_stored_actions_again(
        self, policy: Pi0Policy, real_job: ProbeJob
    ) -> None:
        store = run(real_job, policy, Prompts(empty=True))
        rows = ask(store, "from interventions where target = 'base'")
        assert len(rows) == 3
        assert {(r["mse"], r["si_mse"]) for r in rows} == {(0, 0)}
        assert {r["dof"] for r in rows} == {8}
        assert problems(real_job.paths.root) == []

    def test_batches_do_not_change_the_numbers(self, policy: Pi0Policy, real_job: ProbeJob) -> None:
        probe = Fidelity("suffix", "action", (1,), repeats=2, every=2)
        store = run(real_job, policy, probe)
        sql = f"from interventions where part = '{probe.part}' order by all"
        alone = ask(store, sql)
        episode = choose_episodes(real_job.paths, real_job.run, ())[0]
        commit = probe_episode(replace(real_job, probe=probe, dof=8, batch_size=3), policy, episode)
        assert commit.revision == 2
        together = ask(attnstore.open(real_job.paths.root), sql)
        assert len(alone) == len(together) == 2 * 4
        for one, other in zip(alone, together, strict=True):
            assert one["variant"] == other["variant"]
            assert one["pixels"] == other["pixels"]
            assert one["mse"] == pytest.approx(other["mse"], abs=1e-4)

    def test_words_are_blocked_where_they_stand_in_the_prompt(
        self, policy: Pi0Policy, real_job: ProbeJob
    ) -> None:
        episode = choose_episodes(real_job.paths, real_job.run, ())[0]
        keyframe = next(stored_keyframes(episode))
        batch = policy.prepare([keyframe.observation])
        keyframe = replace(keyframe, layouts=batch.samples[0].layouts)
        word = keyframe.observation.instruction.split()[-1]
        ids = batch.inputs["input_ids"][0].tolist()
        length = len(ids)

        def text(places: Sequence[int]) -> str:
            return "".join(policy.processor.tokenizer.decode([ids[i]]) for i in places).strip()

        probe = Knockout((f"word:{word}", "action:0:2", "all"), query=f"task:word:{word}")
        assert probe.forwards(keyframe.spec) == 3
        as_key, _ = probe.variants(keyframe)  # the prompt sees no action token
        assert {b.phase for b in as_key.blocked} == {"prefix"}
        assert all(text(b.query) == text(b.key) == word for b in as_key.blocked)
        probe = Knockout((f"word:{word}", "action:0:2"), query="action", phases=("suffix",))
        words, actions = probe.variants(keyframe)
        assert all(text(b.key) == word for b in words.blocked)
        assert {b.key for b in actions.blocked} == {(length + 1, length + 2)}

    def test_an_episode_without_the_word_is_named_and_the_others_go_on(
        self, policy: Pi0Policy, recordings: Path, tmp_path: Path
    ) -> None:
        job = replace(ingest(tmp_path / "s", policy, DroidDataset(recordings), 3), dof=8)
        episodes = choose_episodes(job.paths, job.run, ())
        job = replace(job, probe=Knockout(("word:cube",), query="action", every=9))
        plan = make_plan(job, episodes)
        own = {e.spec.name: e.spec.instruction for e in episodes}
        assert [e.spec.name for e in plan.pending] == [n for n, t in own.items() if "cube" in t]
        assert plan.broken == {
            name: "prefix, suffix key: no word 'cube' in the instruction; its words: "
            + ", ".join(dict.fromkeys(text.split()))
            for name, text in own.items()
            if "cube" not in text
        }
        assert len(plan.broken) == 2
        with pytest.raises(
            SelectionError, match="and 2 more: .* no word 'wheel' in the instruction"
        ):
            make_plan(replace(job, probe=Knockout(("word:wheel",))), episodes)

    def test_frames_that_were_re_encoded_are_noticed(
        self, policy: Pi0Policy, recordings: Path, tmp_path: Path
    ) -> None:
        dataset = _ReEncoded(recordings)
        job = ingest(tmp_path / "s", policy, dataset, 1)
        episodes = choose_episodes(job.paths, job.run, ())
        job = replace(job, dof=8)
        report = probe_all(job, policy, episodes, Watcher())
        (outcome,) = report.failed
        assert outcome.status == "quarantined"
        assert "differ from the stored ones by" in outcome.reason
        assert "pass --tolerance" in outcome.reason
        assert latest_commit(*(job.paths, *job.part(episodes[0]))) is None
        assert [e["part"] for e in quarantined(job.paths)] == [job.probe.part]
        report = probe_all(replace(job, tolerance=10.0), policy, episodes, Watcher())
        assert not report.failed
        assert quarantined(job.paths) == []
        (row, *_) = ask(attnstore.open(job.paths.root), "from interventions where target = 'base'")
        assert row["mse"] > 0

    def test_prompts_change_the_action_and_the_maps_as_a_second_run_says(
        self, policy: Pi0Policy, real_job: ProbeJob, tmp_path: Path
    ) -> None:
        file = tmp_path / "prompts.txt"
        file.write_text("# other places\n\nother = put it elsewhere\nsame = {instruction}\n")
        probe = Prompts(
            read_prompts(file), parse_replaced(("cube=bowl", "no such words=x")), True, shuffles=1
        )
        store = run(real_job, policy, probe)
        rows = ask(store, f"from interventions where part = '{probe.part}'")
        own = {r["episode"]: r["instruction"] for r in rows if r["target"] == "base"}
        told = {(r["episode"], r["detail"]): r["instruction"] for r in rows if r["detail"]}
        for episode, text in own.items():
            assert (episode, "same") not in told
            assert told[episode, "other"] == "put it elsewhere"
            assert told[episode, "empty"] == ""
            assert ((episode, "cube=bowl") in told) == ("cube" in text)
            if len(set(text.split())) > 1:
                assert sorted(told[episode, "shuffled-0"].split()) == sorted(text.split())
                assert told[episode, "shuffled-0"] != text
        assert all(r["mse"] > 0 for r in rows if r["detail"])
        check_shift(store, policy, real_job, probe.part)


def check_shift(store: Store, policy: Pi0Policy, job: ProbeJob, part: str) -> None:
    """Hold one variant's shifts to two captures and sums term by term."""
    episode = choose_episodes(job.paths, job.run, ())[0]
    keyframe = next(stored_keyframes(episode))
    seen = []
    for text in (keyframe.observation.instruction, "put it elsewhere"):
        batch = policy.prepare([keyframe.with_instruction(text)])
        with capture(policy) as session:
            policy.act(batch)
        weights = [r for r in session.records if r.phase == "suffix" and r.layer == 1][-1].weights
        (span,) = [s for s in batch.samples[0].layouts["suffix"].key if s.camera == CAMERAS[1]]
        own = weights[0, :, 1:, span.model_start : span.model_start + len(span)]
        seen.append(own.mean(1).double().numpy())
    cover = keyframe.geometry(CAMERAS[1]).coverage()
    rows = ask(
        store,
        f"from map_shifts where part = '{part}' and episode = '{episode.id}' "
        f"and keyframe = 0 and variant = 'prompt/other' and phase = 'suffix' and layer = 1 "
        f"and camera = '{CAMERAS[1]}' order by head",
    )
    assert [r["head"] for r in rows] == list(range(8))
    for head, row in enumerate(rows):
        p, q = (slow_distribution(each[head], cover) for each in seen)
        assert row["jensen_shannon"] == pytest.approx(slow_divergence(p, q), abs=1e-6)
        assert row["l2"] == pytest.approx(np.sqrt(sum((p - q) ** 2)), abs=1e-6)
        assert row["correlation"] == pytest.approx(np.corrcoef(p, q)[0, 1], abs=1e-4)
    found = ask(store, f"select distinct layer from map_shifts where part = '{part}'")
    assert len(found) == LAYERS


def test_video_frames_kept_as_png_are_exactly_what_the_policy_saw(
    policy: Pi0Policy, recordings: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "toy"
    shutil.copytree(recordings, folder)
    for directory in folder.glob("*/*/*/recordings/frames/*"):
        pictures = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(directory.iterdir())]
        video = directory.parent.parent / f"{directory.name}.mp4"
        encode(video, iter(pictures), codec="h264", fps=15)
        shutil.rmtree(directory)
    seen = {}
    for kept in ("jpeg", "png"):
        job = ingest(tmp_path / kept, policy, DroidDataset(folder, video_frames=kept), 1)
        store = run(replace(job, tolerance=10.0), policy, Prompts(empty=True, every=9))
        (row,) = ask(store, "from interventions where target = 'base'")
        seen[kept] = row["mse"]
        kinds = ask(store, "select distinct media_type from frames")
        assert kinds == [{"media_type": f"image/{kept}"}]
    assert seen["png"] == 0 < seen["jpeg"]
    with pytest.raises(UsageError, match="kept as jpeg, png; got 'webp'"):
        DroidDataset(folder, video_frames="webp")  # type: ignore[arg-type]


class _ReEncoded(DroidDataset):
    """Keeps worse images than the policy sees, as videos do."""

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        for frame in super().frames(name, indices):
            yield replace(
                frame, cameras=tuple(replace(c, data=_jpeg(c.rgb)) for c in frame.cameras)
            )


def _jpeg(rgb: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=20)
    return buffer.getvalue()


def test_runs_are_not_mixed(planted: PlantedPolicy, recordings: Path, ram_path: Path) -> None:
    dataset = DroidDataset(recordings, limit=1)
    probe = Fidelity("joint", "action", share=SHARE, fill="black", repeats=1, every=9)
    regions = Regions(by=("camera", "cell"), cells=(1, 2), every=9)
    runs = []
    for precision in ("float16", "log8"):
        made = make_job(ram_path / "s", planted, dataset, precision=precision)
        assert not ingest_all(made, planted, dataset, dataset.episode_names(), Watcher()).failed
        job = ProbeJob(made.paths, made.run, probe, DOF)
        store = run(job, planted, probe)
        run(job, planted, regions)
        runs.append(made.run.id)
    assert len(set(runs)) == 2
    for name in ("mask-fidelity", "effect-by-region", "ledger", "attention-effect"):
        rows = ask(store, named_query(name).sql)
        assert {r["run"] for r in rows} == set(runs)
        assert all(r.get("episodes", 1) == 1 for r in rows), name
    with pytest.raises(
        SelectionError, match=f"of several runs; name one: {', '.join(sorted(runs))}"
    ):
        layer_fidelity(store)
    assert {f.episodes for f in layer_fidelity(store, run=runs[0])} == {1}


class TestResume:
    def test_an_interrupted_probe_leaves_nothing_and_the_next_one_does_the_rest(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        probe = Fidelity("joint", "action", (POINTING,), share=0.2, repeats=1)
        job = replace(planted_job, probe=probe, dof=DOF)
        first, second = choose_episodes(job.paths, job.run, ())
        probe_episode(job, planted, first)
        kept = latest_commit(job.paths, *job.part(first))
        before = sorted(p for p in job.paths.data.rglob("*") if probe.part in p.name)

        def killed(count: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            probe_episode(job, planted, second, progress=killed)
        assert sorted(p for p in job.paths.data.rglob("*") if probe.part in p.name) == before
        report = probe_all(job, planted, [first, second], Watcher(), stopped=lambda: False)
        assert [o.status for o in report.outcomes] == ["present", "committed"]
        assert latest_commit(job.paths, *job.part(first)) == kept
        assert problems(job.paths.root) == []

    def test_stopping_keeps_what_is_committed(
        self, planted: PlantedPolicy, planted_job: ProbeJob
    ) -> None:
        probe = Fidelity("joint", "action", (ASTRAY,), share=0.2, repeats=1)
        job = replace(planted_job, probe=probe, dof=DOF)
        episodes = choose_episodes(job.paths, job.run, ())
        watcher = Watcher()
        report = probe_all(job, planted, episodes, watcher, stopped=lambda: bool(watcher.outcomes))
        assert report.interrupted
        assert [o.status for o in report.outcomes] == ["committed"]
        plan = make_plan(job, episodes)
        assert [e.spec.name for e in plan.pending] == [episodes[1].spec.name]
        assert (plan.total_keyframes, plan.forwards) == (3, 9)


class TestWhatIsRefused:
    def test_another_checkpoint_or_data_type(self, planted: Any, planted_job: ProbeJob) -> None:
        check_policy(planted, planted_job.run)
        other: RunConfig = replace(planted_job.run, checkpoint_digest="1" * 64)
        with pytest.raises(UsageError, match="made with checkpoint in memory .digest 111111111111"):
            check_policy(planted, other)
        steps = replace(planted_job.run, options={"phases": {"joint": [3, 2, None]}})
        with pytest.raises(UsageError, match="pass the --policy-option values"):
            check_policy(planted, steps)
        with pytest.raises(UsageError, match="pass --dtype bfloat16"):
            check_policy(planted, replace(planted_job.run, dtype="bfloat16"))

    @pytest.mark.parametrize(
        ("probe", "said"),
        [
            (Fidelity("suffix", "action"), "no phase 'suffix'.*; it has: joint"),
            (Fidelity("joint", "text"), "phase joint has maps of action, not of 'text'"),
            (Fidelity("joint", "action", (2,)), "layer 2: phase joint has layers 0 to 1"),
            (Fidelity("joint", "action", heads="9"), "a number below 2; got '9'"),
            (Fidelity("joint", "action", cameras=("x",)), "no camera 'x'; it has: hand_camera"),
            (
                Knockout(("text",)),
                "joint key: no tokens 'text'; there are image, image:hand_camera",
            ),
            (
                Knockout(("word:cube",)),
                "joint key: no word 'cube' in the instruction; its words: none",
            ),
            (Knockout(("background@x",)), "no camera 'x'"),
        ],
    )
    def test_what_the_episode_has_not(
        self, planted: Any, planted_job: ProbeJob, probe: Probe, said: str
    ) -> None:
        episodes = choose_episodes(planted_job.paths, planted_job.run, ())
        with pytest.raises(SelectionError, match=said):
            make_plan(replace(planted_job, probe=probe), episodes)

    def test_options_that_ask_nothing(self) -> None:
        with pytest.raises(UsageError, match="no prompt to try"):
            Prompts()
        with pytest.raises(UsageError, match="at most 0.5, so that a control fits; got 0.7"):
            Fidelity("joint", "action", share=0.7)
        with pytest.raises(UsageError, match="a fill is one of black"):
            Regions(fill="red")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="a replacement is OLD=NEW words; got 'cube'"):
            parse_replaced(("cube",))

    def test_a_policy_that_cannot_block(self, planted: Any, planted_job: ProbeJob) -> None:
        episodes = choose_episodes(planted_job.paths, planted_job.run, ())
        job = replace(planted_job, probe=Knockout(("image",)), dof=DOF)
        with pytest.raises(UsageError, match="adapter of policy planted cannot block attention"):
            probe_all(job, planted, episodes, Watcher())

    def test_unknown_episodes(self, planted_job: ProbeJob) -> None:
        with pytest.raises(NotFoundError, match="no episode 'x' in run"):
            choose_episodes(planted_job.paths, planted_job.run, ("x",))


def test_intervals_resample_episodes_and_not_only_keyframes() -> None:
    rng = np.random.default_rng(0)
    # 6 episodes of 50 keyframes that hardly differ within an episode
    level = rng.normal(size=6)
    values = np.repeat(level, 50)[:, None] + 0.01 * rng.normal(size=(300, 1))
    episodes = np.repeat(np.array(list("abcdef")), 50)
    low, high = clustered_interval(values, episodes, bootstraps=500)
    # of a mean of 6 values: about 2 * 1.96 * sd / sqrt(6), with the bootstrap's n for n - 1
    expected = 2 * 1.96 * level.std() / np.sqrt(6)
    assert high - low == pytest.approx(expected, rel=0.15)
    # each keyframe its own episode would promise seven times as much
    alone = clustered_interval(values, np.arange(300).astype(str), bootstraps=500)
    assert alone[1] - alone[0] < 0.3 * (high - low)
    assert np.isnan(clustered_interval(values[:1], episodes[:1])[0]).all()
