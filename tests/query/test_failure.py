"""Failure prediction: planted and null evidence, the band's promise, and a store from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from store_fixtures import (
    POLICY,
    random_episode,
    run_config,
    write_blocks,
    write_episode,
    write_rows,
)

import attnstore
from attnstore.commands.failure import failure
from attnstore.query.failure.band import first_alarm, upper_band
from attnstore.query.failure.evidence import SEEN, Evidence, Float, read_evidence
from attnstore.query.failure.part import latest_failure, rows_of
from attnstore.query.failure.prediction import FailureOptions, predict
from attnstore.query.failure.predictor import Projection, make_folds
from attnstore.query.failure.ranking import FEWEST, Ranking
from attnstore.query.sql.chosen import choose
from attnstore.store.commits import Attempt, slug
from attnstore.store.commits.run import save_run
from attnstore.store.commits.verify import verify
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import NotFoundError, UsageError
from attnstore.store.format.hidden import HiddenSpec, hidden_shape
from attnstore.store.opening import create_store

ALPHA = 0.1


def evidence(
    seed: int, *, episodes: int = 80, effect: float = 0.0, onset: int = 2, width: int = 5
) -> Evidence:
    """Failures run longer, as they do; features have an episode's own level and noise."""
    rng = np.random.default_rng(seed)
    failed = np.arange(episodes) % 3 == 0
    lengths = np.where(failed, 8, rng.integers(3, 9, episodes))
    of = np.repeat(np.arange(episodes), lengths)
    moment = np.concatenate([np.arange(n) for n in lengths])
    seen = rng.standard_normal((episodes, width))[of] + rng.standard_normal((len(of), width))
    seen[:, 0] += effect * (failed[of] & (moment >= onset))
    tasks = np.array([f"task {i % 4}" for i in range(episodes)])
    return Evidence(
        tuple(f"e{i}" for i in range(episodes)), tuple(f"e{i}" for i in range(episodes)), failed,
        tasks, np.full(episodes, ""), of, moment, moment.astype(np.float64), "frames",
        {
            "attention": seen, "elapsed": moment[:, None].astype(np.float64),
            "state": np.zeros((len(of), 1)), "instruction": np.zeros((len(of), 1)),
            "trivial": moment[:, None].astype(np.float64),
        },
    )  # fmt: skip


def scored(made: Evidence, folds: Any) -> tuple[Float, Float]:
    scores, band = np.empty(len(made.of)), np.empty(len(made.of))
    for fold in folds:
        every = Projection(made, "attention", "cumulative", fold).scores(made, made.failed)
        own = fold.test[made.of]
        scores[own] = every[own]
        band[own] = upper_band(made, every, fold, ALPHA)[made.moment[own]]
    return scores, band


def test_a_null_is_at_chance_and_alarms_come_at_the_promised_rate() -> None:
    """200 simulations in which nothing foretells the outcome."""
    areas, alarms, promised = [], [], []
    for seed in range(200):
        made = evidence(seed)
        folds = make_folds(made, "episodes", 3, seed)
        scores, band = scored(made, folds)
        areas.append(Ranking(made, folds).areas(scores)[-1])
        raised, _ = first_alarm(made, scores > band)
        alarms.append(raised[~made.failed].mean())
        promised.append(
            np.mean([1 - np.ceil((n + 1) * (1 - ALPHA)) / (n + 1)
                     for n in (int(f.calibration.sum()) for f in folds)])
        )  # fmt: skip
    for values, expected in ((areas, 0.5), (alarms, float(np.mean(promised)))):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 3.5 * error
    assert np.mean(promised) <= ALPHA
    assert np.std(areas) < 0.12


def test_a_planted_signal_is_found_when_it_begins_and_not_before() -> None:
    made = evidence(0, episodes=120, effect=8.0, onset=2)
    options = FailureOptions(folds=4, shuffles=9, bootstraps=100)
    found = {(p.split, p.features, p.model): p for p in predict(made, options)}
    assert {key[0] for key in found} == {"episodes", "tasks"}
    for split in ("episodes", "tasks"):
        one = found[split, "attention", "cumulative"]
        assert (one.areas[3:6] > 0.9).all()
        assert (one.low[3:6] > 0.8).all()
        assert (one.areas[:2] < 0.68).all()
        assert one.p[-1] == pytest.approx(1 / 10)
        assert one.shuffled[-1] == pytest.approx(0.5, abs=0.08)
        assert one.gain_low[4] > 0.3
        trivial = found[split, "trivial", "cumulative"]
        np.testing.assert_allclose(trivial.areas[np.isfinite(trivial.areas)], 0.5)
        raised, first = first_alarm(made, one.alarm)
        assert raised[made.failed].mean() > 0.8
        assert raised[~made.failed].mean() < 0.2
        assert np.median(made.moment[first[raised & made.failed].astype(int)]) in (2, 3)


def test_a_shuffled_control_does_not_pass() -> None:
    made = evidence(3, episodes=120, effect=8.0)
    rng = np.random.default_rng(1)
    shuffled = Evidence(
        made.episodes, made.names, rng.permutation(made.failed), made.task, made.stratum, made.of, made.moment,
        made.elapsed, made.unit, made.features,
    )  # fmt: skip
    (one,) = (
        p for p in predict(shuffled, FailureOptions(folds=4, shuffles=39, bootstraps=100))
        if (p.split, p.features, p.model) == ("episodes", "attention", "logistic")
    )  # fmt: skip
    assert one.p[-1] > 0.05
    assert one.low[-1] < 0.5 < one.high[-1]


def test_what_only_tells_strata_apart_is_at_chance_within_them() -> None:
    """Two worlds, one of which fails more often and looks different: no foresight."""
    areas = []
    for seed in range(12):
        made = evidence(seed, episodes=120)
        rng = np.random.default_rng(seed)
        world = rng.integers(0, 2, 120)
        failed = rng.random(120) < np.where(world, 0.7, 0.2)
        seen = made.features["attention"].copy()
        seen[:, 0] = 5.0 * world[made.of] + 0.1 * rng.standard_normal(len(made.of))
        for stratum in (np.full(120, ""), world.astype(str)):
            one = Evidence(
                made.episodes, made.names, failed, made.task, stratum, made.of, made.moment,
                made.elapsed, made.unit, {**made.features, "attention": seen},
            )  # fmt: skip
            folds = make_folds(one, "episodes", 4, seed)
            areas.append(Ranking(one, folds).areas(scored(one, folds)[0])[-1])
    assert np.mean(areas[::2]) > 0.65
    assert np.mean(areas[1::2]) == pytest.approx(0.5, abs=0.05)


def test_a_score_knows_nothing_of_what_comes_after() -> None:
    made = evidence(5, effect=1.0)
    folds = make_folds(made, "episodes", 3, 0)
    for model in ("logistic", "cumulative"):
        before = Projection(made, "attention", model, folds[0]).scores(made, made.failed)
        own = folds[0].test[made.of]
        late = own & (made.moment >= 3)
        changed = made.features["attention"].copy()
        changed[late] += 100.0
        other = Evidence(
            made.episodes, made.names, made.failed, made.task, made.stratum, made.of, made.moment, made.elapsed,
            made.unit, {**made.features, "attention": changed},
        )  # fmt: skip
        after = Projection(other, "attention", model, folds[0]).scores(made, made.failed)
        np.testing.assert_array_equal(before[~late], after[~late])
        assert (before[late] != after[late]).any()


def test_areas_are_the_share_of_pairs_of_a_fold() -> None:
    made = evidence(7, effect=1.0)
    folds = make_folds(made, "tasks", 3, 0)
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, len(made.of)).astype(np.float64)  # with ties
    ranking = Ranking(made, folds)
    found = ranking.areas(scores)
    won, pairs = np.zeros(ranking.moments), np.zeros(ranking.moments)
    for fold in folds:
        for i in np.flatnonzero(fold.test & made.failed):
            for j in np.flatnonzero(fold.test & ~made.failed):
                for m in range(ranking.moments):
                    x, y = (scores[(made.of == e) & (made.moment == m)] for e in (i, j))
                    if len(x) and len(y):
                        won[m] += (x[0] > y[0]) + 0.5 * (x[0] == y[0])
                        pairs[m] += 1
    running = [
        min((made.failed & (made.lengths > m)).sum(), (~made.failed & (made.lengths > m)).sum())
        for m in range(ranking.moments)
    ]
    for m in range(ranking.moments):
        if running[m] < FEWEST:
            assert np.isnan(found[m])
        else:
            assert found[m] == pytest.approx(won[m] / pairs[m])
    enough = np.array(running) >= FEWEST
    assert found[-1] == pytest.approx(won[enough].sum() / pairs[enough].sum())
    ones = np.ones((1, len(made.failed)))
    np.testing.assert_allclose(ranking.areas(scores, ones)[0], found)


def test_what_cannot_be_learnt_or_promised_is_refused() -> None:
    made = evidence(0, episodes=20)
    with pytest.raises(UsageError, match="too few episodes: of 7 failures and 13 successes"):
        predict(made, FailureOptions())
    with pytest.raises(UsageError, match="fewer than the 99 that --alpha 0.01 takes"):
        predict(evidence(0), FailureOptions(alpha=0.01))
    alone = evidence(0)
    one = Evidence(
        alone.episodes, alone.names, np.zeros(80, bool), alone.task, alone.stratum, alone.of, alone.moment,
        alone.elapsed, alone.unit, alone.features,
    )  # fmt: skip
    with pytest.raises(UsageError, match="all 80 episodes succeeded"):
        predict(one, FailureOptions())


def test_from_a_store_to_tables_a_picture_and_back(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "f.attn")
    for seed in range(28):
        outcome = "failure" if seed < 12 else "success"
        write_episode(paths, f"{outcome}/e{seed}", outcome, seed, layers=1, heads=1, keyframes=2)
    write_episode(paths, "unknown/u", "unknown", 99, layers=1, heads=1, keyframes=2)
    arguments = [str(paths.root), "--folds", "4", "--alpha", "0.5", "--shuffles", "9"]
    picture = tmp_path / "failure.png"
    done = CliRunner().invoke(failure, [*arguments, "--out", str(picture)])
    assert done.exit_code == 0, done.output
    assert "28 episodes, 12 failed" in done.output
    assert picture.stat().st_size > 10_000
    store = attnstore.open(paths.root)
    (chosen,) = choose(store)
    commit = latest_failure(store, chosen)
    assert commit is not None
    results, alarms = (
        rows_of(store, commit, table) for table in ("failure_results", "failure_alarms")
    )
    assert len(results) == 2 * 5 * 3  # two models, five kinds of features, two calls and all
    assert len(alarms) == 2 * 5
    joined = store.sql(
        "select split, features, model, avg((score > band)::int), count(distinct episode), "
        "bool_and(alarm = (score > band)) from failure_scores join episodes using (run, episode) "
        "group by all"
    ).fetchall()
    assert len(joined) == 10
    assert all(row[4] == 28 and row[5] for row in joined)
    # committed once; again after an outcome changed
    again = CliRunner().invoke(failure, [*arguments, "--json"])
    assert len([json.loads(line) for line in again.output.splitlines()]) == 40
    assert latest_failure(attnstore.open(paths.root), chosen).revision == 1  # type: ignore[union-attr]
    write_episode(paths, "failure/e1", "success", 1, layers=1, heads=1, keyframes=2, replace=True)
    assert CliRunner().invoke(failure, arguments).exit_code == 0
    assert latest_failure(attnstore.open(paths.root), chosen).revision == 2  # type: ignore[union-attr]
    assert not list(verify(paths))
    assert [e for e in attnstore.open(paths.root).episodes if "across" in e] == []
    refused = CliRunner().invoke(failure, [*arguments, "--weighting", "value"])
    assert isinstance(refused.exception, NotFoundError)
    assert "no statistics of value attention" in str(refused.exception)


def test_evidence_is_what_is_stored_of_each_call(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "e.attn")
    states = {}
    for seed, outcome in enumerate(("success", "failure", "unknown", "failure")):
        name = f"{outcome}/e{seed}"
        made = random_episode(name, outcome, seed)
        hidden = HiddenSpec(3, last=("action",))
        suffix = replace(made.spec.phases["suffix"], hidden=hidden)
        spec = replace(made.spec, phases={**made.spec.phases, "suffix": suffix})
        made = replace(made, spec=spec)
        run = save_run(paths, run_config(), {"host": "test", "code": "0"})
        writer = EpisodeWriter(Attempt(paths, run, slug(name), "base"), spec, POLICY)
        write_blocks(writer, made)
        write_rows(writer, made, seed)
        rng = np.random.default_rng(seed)
        for form in hidden.forms:
            shape = hidden_shape(3, suffix.steps, suffix.layers, suffix.query, hidden, form)
            values = rng.integers(-64, 64, shape).astype(np.float32)  # nothing is rounded
            for keyframe in range(3):
                writer.write_hidden("suffix", form, keyframe, values[keyframe])
            if form == "last":
                states[name] = values[:, -1].mean(1)  # the last step, mean over action tokens
        writer.commit({})
    store = attnstore.open(paths.root)
    (chosen,) = choose(store)
    found = read_evidence(store, chosen, features=("both",), strata="split_part(name, '/', 1)")
    assert found.names == ("failure/e1", "failure/e3", "success/e0")
    assert found.failed.tolist() == [True, True, False]
    assert found.stratum.tolist() == ["failure", "failure", "success"]
    assert found.of.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    np.testing.assert_allclose(found.elapsed[:3], np.array([0, 8, 16]) / 15)
    assert found.unit == "s"
    both = found.features["both"]
    np.testing.assert_allclose(both[:, -3:], np.concatenate([states[n] for n in found.names]))
    at = SEEN.index("entropy")
    for number, name in enumerate(found.names):
        episode = store.episode(name)
        own = [
            episode.stats(phase, camera, "entropy", step="last").values.reshape(3, -1)
            for phase in ("prefix", "suffix")
            for camera in sorted(episode.cameras)
        ]
        heads = sum(each.shape[1] for each in own)
        rows = both[found.of == number][:, at * heads : (at + 1) * heads]
        np.testing.assert_allclose(rows, np.concatenate(own, 1), rtol=1e-6)
    with pytest.raises(UsageError, match="features are of attention, hidden, both; got 'x'"):
        read_evidence(store, chosen, features=("x",))
