"""SQL and the time to open a store, as the store grows. The page cache is warm throughout.

The large stores are one ingested episode many times over: its files hard-linked under other ids,
with a commit each. Ids come from commits and paths, so for every query they are other episodes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import attnstore
from attnstore.query import Episode
from attnstore.store.arrays import engine
from attnstore.store.catalog import connect, refresh
from attnstore.store.commits import Commit, StorePaths, commit_draft, slug
from attnstore.store.commits.entry import sealed
from attnstore.store.commits.run import load_run, save_run
from attnstore.store.opening import create_store

from .measure import Figure, Setting, Times, timed
from .replay import ingest, shape_of
from .slices import KEYFRAMES

ROWS = 10_000_000
BY_EPISODE = """
SELECT layer, head, outcome, sum(entropy_mean * s.keyframes) / sum(s.keyframes), max(entropy_max)
FROM episode_stats s JOIN episodes USING (run, episode)
WHERE phase = 'prefix' GROUP BY ALL ORDER BY ALL
"""
BY_KEYFRAME = """
SELECT layer, head, outcome, avg(entropy), max(entropy)
FROM head_stats JOIN episodes USING (run, episode)
WHERE phase = 'prefix' GROUP BY ALL ORDER BY ALL
"""
TRIVIAL = "SELECT 1 FROM runs LIMIT 1"


def run(setting: Setting) -> list[Figure]:
    template = ingest(setting.directory, 3 if setting.toy else KEYFRAMES, **shape_of(setting.toy))
    small = ingest(setting.directory, 2, **shape_of(True))
    return [*_rows(setting, template), *_opening(setting, small), *_reading(setting, template)]


def _rows(setting: Setting, template: Episode) -> list[Figure]:
    each = template.part.table("head_stats").num_rows
    count = 3 if setting.toy else -(-ROWS // each)
    store = attnstore.open(
        _multiplied(setting.directory / "rows.attn", template, count, tables_only=True).root
    )
    figures = []
    found = {}
    for table, query, aim in (
        ("episode_stats", BY_EPISODE, "<= 100"),
        ("head_stats", BY_KEYFRAME, ""),
    ):
        found[table] = store.sql(query).fetchall()
        connection = connect(store.paths)
        run_it = partial(_fetch, connection, query)
        times = timed(run_it, setting.repeats(7))
        figures.append(
            Figure(f"layer x head x outcome over {table}", 1e3 * times.wall_median, "ms", aim=aim,
                   note=f"{count} episodes, {count * each} rows of head_stats behind it")
        )  # fmt: skip
        figures.append(
            Figure(f"layer x head x outcome over {table}, CPU", 1e3 * times.cpu_median, "ms")
        )
    for one, other in zip(found["episode_stats"], found["head_stats"], strict=True):
        assert one[:3] == other[:3]
        assert abs(one[3] - other[3]) < 1e-4 * abs(other[3]) + 1e-6
    return [Figure("rows of head_stats", count * each, "rows"), *figures]


def _fetch(connection: Any, query: str) -> Any:
    return connection.sql(query).fetchall()


def _opening(setting: Setting, template: Episode) -> list[Figure]:
    figures = []
    for count in (2, 10) if setting.toy else (10, 1_000, 10_000):
        paths = _multiplied(
            setting.directory / f"open-{count}.attn", template, count, tables_only=True
        )

        def first(paths: StorePaths = paths) -> Any:
            return attnstore.open(paths.root).sql(TRIVIAL).fetchall()

        first()
        times = timed(first, setting.repeats(15))
        where = f"open and first query, {count} episodes"
        aim = "<= 150" if count == 10_000 else ""
        figures += [
            Figure(where, 1e3 * times.wall_median, "ms", aim=aim, note="catalog is current"),
            Figure(f"{where}, CPU", 1e3 * times.cpu_median, "ms"),
        ]  # fmt: skip
    return figures


def _reading(setting: Setting, template: Episode) -> list[Figure]:
    figures = []
    for count in (1, 2) if setting.toy else (1, 10, 100):
        paths = _multiplied(setting.directory / f"read-{count}.attn", template, count)
        store = attnstore.open(paths.root)
        names = [_name(i) for i in range(count)]
        store.episode(names[-1]).attention("prefix", keyframe=0, layer=0, head=0, query="text")
        finding, slices, maps = Times(), Times(), Times()
        for i in range(setting.repeats(60)):
            # Uncached: every read is of another shard, or of an episode that was just opened.
            engine._context.cache_clear()
            episode = finding.add(partial(store.episode, names[i * 7 % count]))
            at = {
                "keyframe": i % len(episode.frames),
                "layer": i % episode.layers("prefix"),
                "head": i % 2,
            }
            slices.add(partial(episode.attention, "prefix", query="text", **at))
            maps.add(partial(episode.maps, "prefix", "hand_camera", **at))
        for what, times in (("find an episode by name", finding), ("one head's text rows", slices),
                            ("one map", maps)):  # fmt: skip
            figures.append(
                Figure(f"{what}, {count} episodes", 1e3 * times.wall_median, "ms",
                       note="the episode is opened for each read")
            )  # fmt: skip
    return figures


def _name(number: int) -> str:
    return f"{'success' if number % 2 else 'failure'}/episode-{number:05d}"


def _multiplied(
    root: Path, template: Episode, count: int, *, tables_only: bool = False
) -> StorePaths:
    """Make a store of `count` episodes with the files of one."""
    source = StorePaths(template.part.path.parents[3])
    commit = template.part.commit
    if tables_only:
        commit = replace(
            commit, files=tuple(f for f in commit.files if f.path.endswith(".parquet"))
        )
    paths = create_store(root)
    config, _ = load_run(source, commit.run)
    save_run(paths, config, {})
    for number in range(count):
        _link(source, paths, commit, number)
    refresh(paths)
    return paths


def _link(source: StorePaths, paths: StorePaths, commit: Commit, number: int) -> None:
    name = _name(number)
    summary = {**commit.summary, "name": name, "outcome": name.partition("/")[0]}
    copy = replace(
        commit, episode=slug(name), attempt=f"{number:012x}", revision=1, summary=summary
    )
    for file in commit.files:
        target = copy.directory(paths) / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(commit.directory(source) / file.path, target)
    # Without a sync each, and a look at the others, as `Attempt.publish` would.
    entry = {"number": number + 2, "previous": None, **commit_draft(copy)}
    paths.entry(number + 2).write_bytes(sealed(entry))
