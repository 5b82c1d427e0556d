"""Probes, similarity and shards of hidden states whose answers are planted."""

from __future__ import annotations

import hashlib
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from cli_fixtures import run
from numpy.typing import NDArray
from safetensors.numpy import load_file
from store_fixtures import (
    POLICY,
    RandomEpisode,
    hidden_of,
    random_episode,
    run_config,
    write_blocks,
    write_rows,
)

import attnstore
from attnstore.query.hidden.linear_probe import (
    Options,
    Target,
    check_groups,
    holm,
    make_folds,
    run_probes,
    shuffled_targets,
)
from attnstore.query.hidden.similarity import _rows, compare_hidden, debiased_cka
from attnstore.store.commits import Attempt, slug
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.opening import create_store

KEYFRAMES, LAYERS, FEATURES, EPISODES = 3, 3, 12, 14
DIRECTION = np.where(np.arange(FEATURES) % 3 == 0, 1.0, -0.5)
PLANTED = 1
"""The layer behind which the label stands in the hidden states."""


def label(episode: int, keyframe: int) -> int:
    """What is planted; no rule of time, and no episode's own."""
    return int(np.random.default_rng([episode, keyframe, 7]).random() < 0.5)


def planted(number: int) -> Any:
    def states(episode: RandomEpisode, phase: str, form: Any, keyframe: int) -> NDArray[Any]:
        found = hidden_of(episode, phase, form, keyframe)
        if form == "mean" and phase == "suffix":
            # Along the layers of means what enters layer 0 comes first.
            found[:, PLANTED + 1 :] += 6 * (label(number, keyframe) - 0.5) * DIRECTION
        return found

    return states


def write_run(paths: Any, seed: int, episodes: int, keyframes: int = KEYFRAMES) -> str:
    shape: dict[str, Any] = {
        "keyframes": keyframes, "layers": LAYERS, "heads": 1, "steps": 2, "grid": (1, 1),
        "cameras": ("hand_camera",), "features": FEATURES,
    }  # fmt: skip
    identity = save_run(paths, run_config(seed), {})
    for number in range(episodes):
        outcome = "success" if number % 2 else "failure"
        name = f"{outcome}/e{number:02d}"
        episode = random_episode(name, outcome, 100 * number + 10_000 * seed, **shape)
        writer = EpisodeWriter(Attempt(paths, identity, slug(name), "base"), episode.spec, POLICY)
        write_blocks(writer, episode, states=planted(number))
        write_rows(writer, episode)
        writer.commit()
    return identity


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted") / "s"
    write_run(create_store(root), 0, EPISODES)
    return root


def cases() -> str:
    """The planted labels as SQL."""
    rows = ", ".join(
        f"('{'success' if e % 2 else 'failure'}/e{e:02d}', {k}, '{'open' if label(e, k) else 'shut'}')"
        for e in range(EPISODES)
        for k in range(KEYFRAMES)
    )
    return f"select * from (values {rows}) t(episode, keyframe, value)"


class TestLinearProbe:
    def test_a_label_is_found_where_it_is_and_nowhere_before(self, root: Path) -> None:
        asked = ("linear-probe", root, "--target", cases(), "--json")
        rows = [json.loads(line) for line in run(*asked).stdout.splitlines()]
        assert [(r["features"], r["layer"]) for r in rows] == [
            ("trivial", None), *(("hidden", n) for n in range(-1, LAYERS)),
        ]  # fmt: skip
        by_layer = {r["layer"]: r for r in rows if r["features"] == "hidden"}
        for layer, row in by_layer.items():
            if layer >= PLANTED:
                assert row["score"] > 0.95
                assert row["p_holm"] < 0.05
                assert row["score"] > row["shuffled_high"]
            else:
                assert row["p_holm"] > 0.05
                assert row["score"] < 0.75
            assert 0.35 < row["shuffled"] < 0.65
        store = attnstore.open(root)
        told = store.sql(
            "select layer from linear_probes where p_holm < 0.05 and score > shuffled_high order by layer"
        ).fetchall()
        assert told == [(n,) for n in range(PLANTED, LAYERS)]
        folds = store.sql(
            "select count(distinct tested), count(distinct fold), count(*) from linear_probe_folds"
        ).fetchall()
        assert folds == [(EPISODES, 5, EPISODES)]
        again = run("linear-probe", root, "--target", cases())
        assert "there already" in again.stdout
        assert "L01" in again.stdout
        assert "*" in again.stdout
        assert run("verify", root).returncode == 0
        assert len(store.episodes) == EPISODES

    def test_a_null_is_at_chance(self, root: Path) -> None:
        done = run("linear-probe", root, "--target", "outcome", "--shuffles", "0", "--json")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert {r["classes"] for r in rows} == {'["failure", "success"]'}
        assert all(r["p_holm"] is None or r["p_holm"] > 0.05 for r in rows)
        assert all(0.2 < r["score"] < 0.8 for r in rows)

    def test_what_it_refuses(self, root: Path) -> None:
        for target, said in (
            ("1", "the target is '1' everywhere"),
            ("select episode, keyframe from keyframes", "it has no value among episode, keyframe"),
            ("case when k.keyframe = 0 and e.name like '%e00' then 'a' else 'b' end",
             "only 1 episodes have a keyframe where the target is 'a'"),
            ("case when e.name < 'failure/e05' then 1 end", "at least 10 episodes"),
            ("null::int", "gives no value of any keyframe"),
        ):  # fmt: skip
            done = run("linear-probe", root, "--target", target)
            assert done.returncode == 2, (target, done.stderr)
            assert said in done.stderr


def planted_target(seed: int) -> tuple[Target, list[NDArray[np.float64]], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    count, length = 16, 6
    episode = np.repeat(np.arange(count), length)
    values = (rng.random(len(episode)) < 0.5).astype(float)
    names = tuple(f"e{i}" for i in range(count))
    task = np.array([f"t{i % 4}" for i in range(count)])
    target = Target("classes", values, ("a", "b"), episode, task, names)
    layers = [rng.standard_normal((len(episode), 20)) for _ in range(2)]
    return target, layers, np.tile(np.arange(length), count)[:, None].astype(float)


def test_null_probes_pass_as_rarely_as_they_may() -> None:
    passed = 0
    for seed in range(20):
        target, layers, time = planted_target(seed)
        place = make_folds(target, "tasks" if seed % 2 else "episodes", 4, seed)
        found = run_probes(layers, time, target, place, Options(shuffles=0, seed=seed))
        passed += bool(np.nanmin(holm(np.array([p.p for p in found]))) < 0.05)
    assert passed <= 4  # of 20 at a rate of 0.05: more has a chance of 0.3 %


def test_folds_keep_groups_together() -> None:
    target, _, _ = planted_target(0)
    place = make_folds(target, "tasks", 3, 0)
    for task in np.unique(target.task):
        assert len({*place[target.task == task]}) == 1
    assert sorted(np.bincount(make_folds(target, "episodes", 4, 0))) == [4, 4, 4, 4]


def test_shuffled_targets_are_other_episodes_sequences() -> None:
    target, _, _ = planted_target(0)
    every = {tuple(target.values[target.episode == e]) for e in range(16)}
    for values in shuffled_targets(target, 5, 0).T:
        sequences = [tuple(values[target.episode == e]) for e in range(16)]
        assert set(sequences) == every
        assert (values != target.values).any()


def test_too_few_of_anything_is_refused() -> None:
    target, _, _ = planted_target(0)
    with pytest.raises(UsageError, match="two tasks"):
        check_groups(
            Target("classes", target.values, target.classes, target.episode,
                   np.array(["t"] * 16), target.names),
            "tasks", 5,
        )  # fmt: skip


class TestSimilarity:
    def test_is_the_textbook_formula(self) -> None:
        """HSIC_1 as the mean over all ordered choices of four different inputs (Song et al. 2012, eq. 4)."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((7, 3))
        y = np.concatenate([x[:, :1] + rng.standard_normal((7, 1)), rng.standard_normal((7, 4))], 1)

        def hsic(k: Any, m: Any) -> float:
            each = [
                k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
                for i, j, q, r in permutations(range(7), 4)
            ]
            return float(np.mean(each))

        k, m = x @ x.T, y @ y.T
        wanted = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
        assert debiased_cka(x, y) == pytest.approx(wanted, rel=1e-9)
        turned = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        assert debiased_cka(x, 5 * x @ turned + 2) == pytest.approx(1)

    def test_runs_agree_where_nothing_else_was_planted(self, root: Path, ram_path: Path) -> None:
        paths = create_store(ram_path / "s")
        a, b = (write_run(paths, seed, 3) for seed in (0, 1))
        found = compare_hidden(attnstore.open(ram_path / "s"), a, b, phase="suffix", span="action")
        one, other = (
            attnstore.open(ram_path / "s").hidden(
                phase="suffix", span="action", layer=PLANTED, step="last", run=r
            ).values.astype(np.float64)
            for r in (a, b)
        )  # fmt: skip
        here = float(found.sel(layer_a=PLANTED, layer_b=PLANTED))
        assert here == pytest.approx(debiased_cka(one, other), rel=1e-6)
        assert here > 0.3 > abs(float(found.sel(layer_a=0, layer_b=0)))
        said = run("similarity", ram_path / "s", a, b).stdout
        assert f"L0{PLANTED}        {here:.4f}" in said

        store = attnstore.open(ram_path / "s")
        last = [
            store.hidden(phase="suffix", tokens="last", step="last", run=r)
            .values.astype(np.float64)
            .mean(1)
            for r in (a, b)
        ]
        found = compare_hidden(store, a, b, phase="suffix", tokens="last")
        assert float(found.squeeze()) == pytest.approx(debiased_cka(*last), abs=1e-5)
        with pytest.raises(SelectionError, match="there are several along span"):
            compare_hidden(store, a, b, phase="suffix")
        with pytest.raises(UsageError, match=f"two runs are compared; got {a} twice"):
            compare_hidden(store, a, a, phase="suffix", span="action")

    def test_what_has_no_answer(self) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((2, 5, 3))
        assert np.isfinite(debiased_cka(x[:4], y[:4]))
        assert np.isnan(debiased_cka(x, np.ones((5, 3))))
        with pytest.raises(UsageError, match="at least 4 keyframes, as many of both; got 3 and 3"):
            debiased_cka(x[:3], y[:3])
        with pytest.raises(UsageError, match="got 5 and 4"):
            debiased_cka(x, y[:4])
        states = xr.DataArray(np.where(x > 0, x, np.nan), dims=("keyframe", "feature"))
        with pytest.raises(SelectionError, match="a keyframe lacks the span"):
            _rows(states, 0)

    def test_other_keyframes_are_refused(self, ram_path: Path) -> None:
        paths = create_store(ram_path / "s")
        a, b = write_run(paths, 0, 2), write_run(paths, 1, 2, keyframes=4)
        done = run("similarity", ram_path / "s", a, b)
        assert done.returncode == 2
        assert "2 of " in done.stderr
        assert "the first is frame 24 of failure/e00" in done.stderr
        assert "with the same --stride" in done.stderr


@pytest.mark.parametrize("form", ["safetensors", "npy"])
def test_shards_are_read_back(root: Path, ram_path: Path, form: str) -> None:
    target = ram_path / "out"
    asked = ("--phase", "suffix", "--tokens", "all", "--format", form, "--shard-mb", "1")
    run("export", "hidden", root, target, *asked)
    manifest = json.loads((target / "manifest.json").read_text())
    rows = pq.read_table(target / "rows.parquet").to_pylist()
    store = attnstore.open(root)
    shards = {s["file"]: s for s in manifest["shards"]}
    for name, shard in shards.items():
        assert hashlib.sha256((target / name).read_bytes()).hexdigest() == shard["sha256"]
    read = {n: _tensor(target / n) for n in shards}
    assert sum(len(t) for t in read.values()) == manifest["rows"] == EPISODES * KEYFRAMES * 2 * 4
    for row in rows[:: len(rows) // 9]:
        wanted = store.episode(row["episode"]).hidden(
            "suffix", tokens="all", layer=row["layer"], keyframe=row["keyframe"], step=row["step"]
        )
        at = slice(row["token_start"] - 1, row["token_stop"] - 1)  # the state token is not stored
        np.testing.assert_array_equal(read[row["file"]][row["start"] : row["stop"]], wanted[at])
        assert row["frame"] == 8 * row["keyframe"]
    done = run("export", "hidden", root, target)
    assert "is not empty" in done.stderr


def _tensor(path: Path) -> NDArray[Any]:
    if path.suffix == ".npy":
        return np.asarray(np.load(path))
    return np.asarray(load_file(path)["hidden"])
