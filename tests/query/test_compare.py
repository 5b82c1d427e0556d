from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from store_fixtures import (
    POLICY,
    RandomEpisode,
    random_episode,
    run_config,
    write_blocks,
    write_rows,
)

import attnstore
from attnstore.commands.compare import compare as command
from attnstore.query import Store
from attnstore.query.groups.comparison import Comparison, compare
from attnstore.render.charts.comparison import draw_comparison
from attnstore.store.commits import Attempt, StorePaths, slug
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import AttnstoreError, SelectionError, UsageError
from attnstore.store.opening import create_store

SUCCESSES, FAILURES = 6, 5
SHORT, LONG = 2, 4
PLANTED = (1, 0)
"""Layer and head that attend more sharply in failures."""
FEW: dict[str, Any] = {"permutations": 99, "bootstraps": 100}


def write(
    paths: StorePaths,
    episode: RandomEpisode,
    *,
    run_seed: int = 0,
    seed: int = 0,
    stride: int = 8,
    **spec: Any,
) -> str:
    """Commit an episode; return its run."""
    changed = replace(episode, spec=replace(episode.spec, **spec))
    run = save_run(paths, replace(run_config(run_seed), stride=stride), {"host": "test"})
    attempt = Attempt(paths, run, slug(changed.spec.name), "base")
    writer = EpisodeWriter(attempt, changed.spec, POLICY)
    write_blocks(writer, changed)
    write_rows(writer, changed, seed)
    writer.commit({}, after=0)
    return run


def episode_of(number: int, outcome: str, **shape: Any) -> RandomEpisode:
    """A small episode with the planted difference; the dates have both outcomes."""
    date = f"2025-01-{1 + number % 2:02d}"
    name = f"{outcome}/{date}/{date}_10-00-{number:02d}"
    length = SHORT if outcome == "success" else LONG
    shape = {"keyframes": length, "grid": (3, 3), "cameras": ("hand_camera",), **shape}
    episode = random_episode(name, outcome, number, **shape)
    layer, head = PLANTED
    for (phase, _, at, _), weights in episode.weights.items():
        if phase == "prefix" and at == layer:
            sharper = weights[head] ** (2.5 if outcome == "failure" else 0.25)
            weights[head] = sharper / sharper.sum(-1, keepdims=True)
    return replace(episode, spec=replace(episode.spec, date=date))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("compare") / "toy.attn"
    paths = create_store(root)
    outcomes = ["success"] * SUCCESSES + ["failure"] * FAILURES + ["unknown"]
    for number, outcome in enumerate(outcomes):
        write(paths, episode_of(number, outcome), seed=number)
    return attnstore.open(root)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str, str]:
    """Five recordings in each of two runs; the second is sharper at the planted head."""
    root = tmp_path_factory.mktemp("runs") / "toy.attn"
    paths = create_store(root)
    runs = []
    for run_seed, outcome in enumerate(("success", "failure")):
        for number in range(5):
            episode = episode_of(number, outcome, keyframes=1, heads=1, steps=1, grid=(2, 2))
            name = f"any/2025-01-01/{number}"
            runs.append(write(paths, episode, run_seed=run_seed, name=name, outcome="success"))
    return attnstore.open(root), runs[0], runs[-1]


def planted(found: Comparison) -> int:
    keys = found.values
    return int(np.flatnonzero((keys.layer == PLANTED[0]) & (keys.head == PLANTED[1]))[0])


def by_hand(store: Store, found: Comparison, metric: str, phase: str) -> list[NDArray[np.float32]]:
    """The metric of each compared episode, (keyframe, step, layer, head)."""
    each = (
        store.episode(m.name, run=m.run).stats(phase, "hand_camera", metric)
        for m in found.groups.members
    )
    return [(s if "step" in s.dims else s.expand_dims("step", 1)).values for s in each]


# ---------------------------------------------------------------------------- the numbers


def test_planted_difference_is_found_first(store: Store) -> None:
    found = compare(store, "entropy", strata=("date",))  # by outcome, unless told otherwise
    assert found.ranked[0] == planted(found)
    assert found.significant[found.ranked[0]]
    assert not found.significant[found.ranked[1:]].any()
    first = found.table().to_pylist()[0]
    assert (first["layer"], first["head"], first["cliffs_delta"]) == (*PLANTED, 1.0)
    assert first["difference_low"] > 0
    assert first["within"] > 0
    assert (first["episodes_a"], first["episodes_b"]) == (SUCCESSES, FAILURES)
    assert first["family"] == "prefix × hand_camera × task × entropy: 2 layers × 2 heads = 4 tests"
    assert any("1 episodes of another outcome" in note for note in found.notes)


def test_the_number_of_an_episode_is_the_mean_over_its_keyframes(store: Store) -> None:
    found = compare(store, "gini", by="outcome", **FEW)
    expected = [v[:, 0].mean(0).reshape(-1) for v in by_hand(store, found, "gini", "prefix")]
    assert_allclose(found.values.values, expected, rtol=1e-5)
    a, b = (found.values.values[found.groups.in_a == g] for g in (True, False))
    assert_allclose(found.results["difference"], a.mean(0) - b.mean(0))
    assert_allclose(found.results["mean_b"], b.mean(0))


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_a_window_is_of_the_first_keyframes(store: Store, reduce: Any, window: int | None) -> None:
    if reduce == "mean" and window is None:
        window = 2
    found = compare(store, "max", by="outcome", reduce=reduce, window=window, **FEW)
    used = SHORT if window is None else window
    expected = [
        getattr(v[:used, 0], reduce)(0).reshape(-1) for v in by_hand(store, found, "max", "prefix")
    ]
    assert_allclose(found.values.values, expected, rtol=1e-5)
    word = "maximum" if reduce == "max" else "mean"
    assert f"{word} over the first {used} keyframes" in found.family


def test_a_window_longer_than_an_episode_is_refused(store: Store) -> None:
    with pytest.raises(SelectionError, match=r"6 episodes have fewer than 3 .* has 2\).*>= 3"):
        compare(store, "max", by="outcome", reduce="max", window=3)
    short = compare(store, "max", by="date", reduce="max", where="keyframes >= 3", **FEW)
    assert "first 4 keyframes" in short.family


def test_alignment_is_at_equal_times_or_equal_progress(store: Store) -> None:
    """Episodes of 2 and 4 keyframes: the first two of each, or its first and last."""
    for align, at in (("time", (0, 1)), ("progress", (0, -1))):
        found = compare(store, "max", by="outcome", align=align, **FEW)  # type: ignore[arg-type]
        keys = found.values
        for row, numbers in zip(keys.values, by_hand(store, found, "max", "prefix"), strict=True):
            expected = numbers[list(at), 0].astype(np.float64).mean(0)
            assert_allclose(row, expected[keys.layer, keys.head], rtol=1e-6)
    with pytest.raises(UsageError, match="progress aligns means over whole episodes"):
        compare(store, "max", by="outcome", align="progress", window=2)


def test_a_trend_within_episodes_is_said_unless_they_are_aligned(tmp_path: Path) -> None:
    """The planted head sharpens from keyframe to keyframe in both groups alike."""
    paths = create_store(tmp_path / "toy.attn")
    for number in range(12):
        outcome = "success" if number % 2 else "failure"
        episode = episode_of(number // 2, outcome, keyframes=4 if number % 2 else 8)
        for (phase, keyframe, layer, _), weights in episode.weights.items():
            if phase == "prefix" and layer == PLANTED[0]:
                logits = np.linspace(0, 1 + keyframe, weights.shape[-1], dtype=np.float32)
                weights[PLANTED[1]] = np.exp(logits) / np.exp(logits).sum()
        write(paths, episode, seed=number)
    store = attnstore.open(tmp_path / "toy.attn")
    trending = compare(store, "max", by="outcome", **FEW)
    (note,) = [n for n in trending.notes if "trend within episodes" in n]
    assert "success 4.0 keyframes on average, failure 8.0" in note
    assert "align time" in note
    assert abs(trending.results["cliffs_delta"][planted(trending)]) == 1.0
    aligned = compare(store, "max", by="outcome", align="time", **FEW)
    assert not [n for n in aligned.notes if "trend within episodes" in n]
    assert aligned.results["difference"][planted(aligned)] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(("step", "number"), [("last", 1), (0, 0), (-2, 0)])
def test_a_step_is_last_or_a_number(store: Store, step: Any, number: int) -> None:
    found = compare(store, "entropy", by="outcome", phase="suffix", step=step, **FEW)
    expected = [
        v[:, number].mean(0).reshape(-1) for v in by_hand(store, found, "entropy", "suffix")
    ]
    assert_allclose(found.values.values, expected, rtol=1e-5)
    assert set(found.table()["step"].to_pylist()) == {number}
    assert f"× step {number}:" in found.family


def test_all_steps_are_one_family(store: Store) -> None:
    found = compare(store, "entropy", by="outcome", phase="suffix", step="all", **FEW)
    assert found.family.endswith(": 2 steps × 2 layers × 2 heads = 8 tests")
    assert found.attainable.tests == 8
    steps = [
        v[:, s].mean(0).reshape(-1)
        for s in (0, 1)
        for v in by_hand(store, found, "entropy", "suffix")
    ]
    n = len(found.groups.members)
    assert_allclose(found.values.values[:, found.values.step == 1], steps[n:], rtol=1e-5)


def test_heads_without_values_are_no_tests(store: Store) -> None:
    """No step comes before the first, so it has no drift."""
    found = compare(store, "step_drift", by="outcome", phase="suffix", step="all", **FEW)
    first = found.values.step == 0
    assert np.isnan(found.results["p"][first]).all()
    assert np.isfinite(found.results["p"][~first]).all()
    assert found.attainable.tests == 4
    alone = compare(store, "step_drift", by="outcome", phase="suffix", step=1, **FEW)
    assert_array_equal(found.q[~first], alone.q)
    assert "4 tests have no values in both groups and do not count" in found.notes
    assert [row["p"] for row in found.table().to_pylist()[4:]] == [None] * 4
    assert draw_comparison(found).ndim == 3
    with pytest.raises(SelectionError, match="no head has values"):
        compare(store, "step_drift", by="outcome")


def test_an_episode_without_a_value_is_left_out_of_that_head_only(tmp_path: Path) -> None:
    """An episode of one keyframe has no drift."""
    paths = create_store(tmp_path / "toy.attn")
    for number in range(5):
        shape = {"keyframes": 1 if number == 0 else 2, "grid": (2, 2), "steps": 1}
        write(paths, episode_of(number, "success" if number < 3 else "failure", **shape))
    found = compare(attnstore.open(tmp_path / "toy.attn"), "drift", by="outcome", strata=())
    assert set(found.results["episodes_a"]) == {2}
    assert set(found.results["episodes_b"]) == {2}
    assert found.attainable.assignments == 6
    assert np.isfinite(found.results["p"]).all()


def test_layers_are_a_family_of_their_own(store: Store) -> None:
    heads = compare(store, "entropy", by="outcome", **FEW)
    layers = compare(store, "entropy", by="outcome", family="layers", **FEW)
    assert layers.family.endswith("mean over heads: 2 layers = 2 tests")
    expected = heads.values.values.reshape(-1, 2, 2).mean(2)
    assert_allclose(layers.values.values, expected)
    assert layers.table()["head"].null_count == 2
    assert draw_comparison(layers).ndim == 3


# ---------------------------------------------------------------------------- what is refused


def test_two_against_two_conclude_nothing(store: Store) -> None:
    some = "name like '%-00' or name like '%-01' or name like '%-06' or name like '%-07'"
    found = compare(store, "entropy", by="outcome", where=some, strata=())
    assert found.attainable.assignments == 6
    assert found.attainable.smallest_p == pytest.approx(1 / 3)
    assert not found.attainable.conclusive
    assert not found.significant.any()
    note = found.notes[-1]
    assert note.startswith("nothing can be concluded: with 2 success against 2 failure there are 6")
    # 4 against 4 have 70 assignments: 2/70 < 0.05; 5 against 5 have 252: 2/252 < 0.05/4
    assert "at least 4 episodes per group for all tests together, 5 for a single one" in note
    dated = compare(store, "entropy", by="outcome", where=some)
    assert "4 episodes per group of the same task and date" in dated.notes[-1]


def test_what_only_many_heads_together_can_pass_is_said(store: Store) -> None:
    found = compare(store, "entropy", by="outcome", alpha=0.01, strata=("date",))
    # 3 + 3 successes and 2 + 3 failures: C(5, 3) C(6, 3) = 200, the smallest p is 1/200
    assert found.attainable.assignments == 200
    assert found.attainable.together == 2
    assert "no single test of 4 can pass, only 2 together" in found.notes[-1]


def test_groups_without_a_common_stratum_conclude_nothing(store: Store) -> None:
    where = "(outcome = 'success') = (date = '2025-01-01')"
    found = compare(store, "entropy", by="outcome", where=where)
    assert "a difference may be one of task and date" in found.notes[-1]
    assert "at least 4 episodes per group of the same task and date" in found.notes[-1]
    assert_array_equal(found.results["p"], np.ones(4))
    assert np.isnan(found.results["within"]).all()
    assert draw_comparison(found).ndim == 3


def test_groups_by_date_are_not_compared_within_dates(store: Store) -> None:
    by_column = compare(store, "entropy", by="date", where="outcome != 'unknown'", **FEW)
    assert by_column.strata == ("task",)
    by_sql = compare(
        store, "entropy", a="date = '2025-01-01'", b="date > '2025-01-01'",
        where="outcome != 'unknown'", **FEW,
    )  # fmt: skip
    assert by_sql.strata == ("task",)
    assert_array_equal(by_sql.results["p"], by_column.results["p"])
    assert "not within date, which defines the groups" in by_sql.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": "keyframes > 1", "b": "outcome = 'failure'"}, "5 episodes are in both groups .*, \\.\\.\\.\\)"),
        ({"a": "keyframes > 900", "b": "true"}, "group a is empty: no episode has keyframes > 900"),
        ({"a": "true", "b": "task = 'x'", "where": "keyframes > 0"}, "b is empty: .* task = 'x' where keyf"),
        ({"a": "keyframe > 2", "b": "true"}, 'keyframe" not found'),
        ({"a": "true) or (true", "b": "false"}, "syntax error|Parser"),
        ({"a": "true"}, "name two groups"),
        ({"by": "outcome", "a": "true", "b": "false"}, "name two groups"),
        ({"by": "color"}, "groups are by outcome"),
        ({"by": "task"}, "two groups by task need .* there are: 12 cube"),
        ({"by": "outcome", "where": "outcome = 'success'"}, "there are: 6 success"),
        ({"by": "outcome", "camera": "left"}, "no camera 'left'; there are: hand_camera"),
        ({"by": "outcome", "phase": "joint"}, "no phase 'joint'; there are: prefix, suffix"),
        ({"query": "state"}, "no query_group 'state'; there are: task"),
        ({"by": "outcome", "step": 3}, "phase prefix has no steps"),
        ({"by": "outcome", "phase": "suffix", "step": 2}, "suffix step 2 is out of range"),
        ({"by": "outcome", "strata": ("weather",)}, "strata are of task"),
        ({"by": "outcome", "alpha": 1.0}, "alpha is between 0 and 1"),
        ({"by": "outcome", "reduce": "median"}, "reduce is 'mean' or 'max'"),
        ({"by": "outcome", "family": "all"}, "a family of tests is"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_question_gets_one_line(
    store: Store, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        compare(store, "entropy", **options)
    assert "\n" not in str(raised.value)


def test_an_unknown_metric_lists_the_metrics(store: Store) -> None:
    with pytest.raises(
        SelectionError, match=r"a metric is one of camera_mass, .*; got 'sharpness'"
    ):
        compare(store, "sharpness", by="outcome")


# ---------------------------------------------------------------------------- several runs


def test_runs_are_compared_recording_by_recording(two_runs: tuple[Store, str, str]) -> None:
    store, one, other = two_runs
    found = compare(store, "entropy", by="run")
    assert found.strata == ("name",)
    assert found.attainable.assignments == 2**5
    assert found.attainable.smallest_p == 2 / 2**5
    values, a = found.values.values, found.groups.in_a
    assert_allclose(found.results["within"], values[a].mean(0) - values[~a].mean(0), atol=1e-9)
    again = compare(store, "entropy", a=f"run = '{one}'", b=f"run = '{other}'")
    assert sorted(again.results["p"]) == sorted(found.results["p"])


def test_one_recording_does_not_count_twice(two_runs: tuple[Store, str, str]) -> None:
    store, one, other = two_runs
    with pytest.raises(UsageError, match=f"2 times .runs {'.*'.join(sorted((one, other)))}"):
        compare(store, "entropy", a="name like '%0'", b="name like '%1'")


def test_a_group_does_not_mix_configurations(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "toy.attn")
    shape = {"heads": 1, "keyframes": 1, "steps": 1, "grid": (2, 2)}
    for number, outcome in enumerate(["success", "failure", "success", "failure"]):
        write(paths, episode_of(number, outcome, **shape), run_seed=number, stride=8 + number // 2)
    store = attnstore.open(tmp_path / "toy.attn")
    with pytest.raises(UsageError, match="differ in stride; choose one run"):
        compare(store, "entropy", by="outcome")
    # groups may differ: that is the question; but then their windows are not the same time
    a, b = "date = '2025-01-01' and name like '%-00'", "name like '%-02'"
    assert compare(store, "entropy", a=a, b=b, **FEW).attainable.assignments == 2
    with pytest.raises(UsageError, match="different strides"):
        compare(store, "entropy", a=a, b=b, window=1)


# ---------------------------------------------------------------------------- command line


def run(store: Store, *arguments: str) -> Result:
    done = CliRunner().invoke(
        command, ["groups", str(store.paths.root), *arguments], catch_exceptions=True
    )
    if done.exception is not None and not isinstance(done.exception, (AttnstoreError, SystemExit)):
        raise done.exception
    return done


def test_command_prints_a_table(store: Store) -> None:
    done = run(store, "--metric", "entropy", "--strata", "date", "--rows", "2")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "6 success - 5 failure episodes"
    assert lines[1] == "prefix × hand_camera × task × entropy: 2 layers × 2 heads = 4 tests"
    assert lines[2] == "permuted within date: all assignments (200), smallest p 0.005"
    first = next(line for line in lines if line.startswith("*"))
    assert first.split()[1:3] == ["L01", "H00"]
    assert first.split()[-2:] == ["0.005", "0.02"]
    assert lines[-1] == "1 of 4 tests at q <= 0.05; 4 rows in all, see --json"


def test_command_prints_ndjson_and_csv(store: Store) -> None:
    options = ("--metric", "entropy", "--strata", "none", "--seed", "1")
    done = run(store, *options, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["significant"] is True
    assert rows[0]["step"] is None
    found = compare(store, "entropy", by="outcome", strata=(), seed=1)
    assert rows == found.rows() == found.table().to_pylist()
    table = list(csv.DictReader(io.StringIO(run(store, *options, "--csv").stdout)))
    assert list(table[0]) == list(rows[0])
    assert [float(row["p"]) for row in table] == [row["p"] for row in rows]
    assert "too narrow" in done.stderr
    assert isinstance(run(store, *options, "--csv", "--json").exception, UsageError)


def test_command_does_without_labelled_arrays(store: Store) -> None:
    """xarray and pandas take longer to import than a thousand episodes to compare."""
    store.sql("select count(*) from episodes")  # makes the catalog, with pandas
    arguments = ("compare", "groups", str(store.paths.root), "--metric", "entropy")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "attnstore", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "duckdb" in names
    assert not names & {"xarray", "pandas", "scipy", "cv2", "torch", "numcodecs"}


def test_command_takes_sql_groups_and_conditions(store: Store) -> None:
    done = run(
        store, "--metric", "max", "--a", "outcome='success'", "--b", "outcome='failure'",
        "--where", "date = '2025-01-01' or date = '2025-01-02'", "--episode-value", "max", "--window", "2",
        "--phase", "suffix", "--step", "all", "--family", "layers", "--permutations", "9",
        "--bootstraps", "0", "--run", store.runs[0], "--alpha", "0.1",
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert "maximum over the first 2 keyframes, mean over heads: 2 steps × 2 layers" in done.stdout
    assert "[" not in done.stdout.splitlines()[-3]  # no bootstraps, no intervals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "entropy", "--step", "x"), "--step takes first, last, all or a number"),
        (("--metric", "entropy", "--episode", "x"), "no episode 'x'"),
        (("--metric", "entropy", "--run", "no-such"), "has no run 'no-such'"),
    ],
)
def test_command_refuses(store: Store, arguments: tuple[str, ...], message: str) -> None:
    done = run(store, *arguments)
    assert isinstance(done.exception, AttnstoreError)
    assert message in str(done.exception)


@pytest.mark.parametrize("step", ["last", "all"])
def test_command_draws(store: Store, tmp_path: Path, step: str) -> None:
    file = tmp_path / "new" / "heads.png"
    done = run(
        store, "--metric", "entropy", "--phase", "suffix", "--step", step, "--out", str(file)
    )
    assert done.exit_code == 0, done.exception
    picture = cv2.imread(str(file))
    assert picture is not None
    assert min(picture.shape[:2]) > 300


def test_plot_shows_the_larger_group_at_the_planted_cell(store: Store) -> None:
    """Success is orange, and its entropy is larger there in every episode (δ = 1)."""
    found = compare(store, "entropy", by="outcome", strata=())
    picture = draw_comparison(found).reshape(-1, 3).astype(int)
    orange = (np.abs(picture - (255, 158, 74)).sum(1) < 12).sum()
    swapped = compare(store, "entropy", a="outcome = 'failure'", b="outcome = 'success'", strata=())
    again = draw_comparison(swapped).reshape(-1, 3).astype(int)
    assert orange > 500 + (np.abs(again - (255, 158, 74)).sum(1) < 12).sum()
