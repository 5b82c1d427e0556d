"""A store of many episodes of Pi0.5's shape: metadata and statistics of all, attention of one.

A few episodes are written by the writer that ingest uses: the first is ingested, of trained attention;
the others have its statistics with seeded noise, from which their ``episode_stats`` are computed as
ingest computes them. Every further episode is one of these again, its files hard-linked under another
id, with a commit of its own. Ids come from commits and paths, so for every query it is another episode.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from attnstore.ingest.aggregates import episode_stats
from attnstore.query import Episode
from attnstore.store.commits import Commit, StorePaths, commit_draft, hash_file, slug
from attnstore.store.commits.entry import StoredFile, sealed
from attnstore.store.commits.log import log_of
from attnstore.store.commits.run import load_run, save_run
from attnstore.store.opening import create_store
from attnstore.store.tables.base import METRICS
from attnstore.store.tables.inventory import TABLES
from attnstore.store.tables.parquet import write_table

from .replay import ingest, shape_of

DISTINCT = 8
"""Episodes with statistics of their own; the others are these again."""
KEYFRAMES = 23
TASKS = ("cube", "bowl", "towel", "drawer", "plate")


def make_store(
    root: Path,
    count: int,
    *,
    whole: int = 1,
    keyframes: int = KEYFRAMES,
    seed: int = 0,
    toy: bool = False,
) -> StorePaths:
    """Make a store of `count` episodes, without a catalog; the same arguments give the same one.

    Parameters
    ----------
    root
        Where; what is shared by stores of other counts is kept beside it.
    whole
        Episodes that have attention and maps, too: all of them the first one's, with its statistics.
    toy
        Tiny layers and tokens instead of Pi0.5's.
    """
    template = ingest(root.parent, keyframes, **shape_of(toy))
    source = StorePaths(template.part.path.parents[3])
    commit = template.part.commit
    paths = create_store(root)
    config, _ = load_run(source, commit.run)
    save_run(paths, config, {})
    pool = [_without_arrays(commit)]
    pool += [
        _varied(source, template, root.parent / f"varied-{seed}-{n}-{keyframes}-{toy}", seed + n)
        for n in range(1, min(DISTINCT, count))
    ]
    folders = [commit.directory(source)]
    folders += [root.parent / f"varied-{seed}-{n}-{keyframes}-{toy}" for n in range(1, len(pool))]
    rng = np.random.default_rng(seed)
    for number in range(count):
        like = 0 if number < whole else number % len(pool)
        add(paths, commit if number < whole else pool[like], folders[like], number, rng)
    return paths


def add(
    paths: StorePaths, like: Commit, folder: Path, number: int, rng: np.random.Generator
) -> Commit:
    """Commit one more episode with the files of `folder`, hard-linked."""
    outcome = "success" if rng.random() < 0.6 else "failure"
    task = TASKS[int(rng.integers(len(TASKS)))]
    date = f"2026-{1 + number // 900 % 12:02d}-{1 + number // 30 % 28:02d}"
    name = f"{outcome}/{date}/{date}_{number:06d}"
    summary = {
        **like.summary,
        "name": name,
        "outcome": outcome,
        "task": task,
        "date": date,
        "instruction": f"put the {task} number {number} away",
    }
    made = replace(like, episode=slug(name), attempt=f"{number:012x}", revision=1, summary=summary)
    for file in like.files:
        target = made.directory(paths) / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / file.path, target)
    # Without a sync each, and a look at the others, as `Attempt.publish` would.
    if paths.root not in _tips:
        history = log_of(paths).update()
        _tips[paths.root] = history.head, history.tip
    head, tip = _tips[paths.root]
    entry = sealed({"number": head + 1, "previous": tip or None, **commit_draft(made)})
    paths.entry(head + 1).write_bytes(entry)
    _tips[paths.root] = head + 1, hashlib.sha256(entry).hexdigest()
    return made


_tips: dict[Path, tuple[int, str]] = {}
"""Number and digest of the last entry of each store."""


def _without_arrays(commit: Commit) -> Commit:
    return replace(commit, files=tuple(f for f in commit.files if f.path.endswith(".parquet")))


def _varied(source: StorePaths, template: Episode, folder: Path, seed: int) -> Commit:
    """Write the template's tables, its statistics with noise."""
    commit = _without_arrays(template.part.commit)
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(seed)
        for name in TABLES:
            table = template.part.table(name)
            if name == "head_stats":
                table = _noisy(table, rng)
                rows = episode_stats(table)
            elif name == "episode_stats":
                continue
            write_table(folder / f"{name}.parquet", table)
        stats = template.part.table("episode_stats")
        for column, values in rows.items():
            at = stats.schema.get_field_index(column)
            stats = stats.set_column(at, stats.schema.field(at), pa.chunked_array([values]))
        write_table(folder / "episode_stats.parquet", stats)
    files = [
        StoredFile(file.path, (folder / file.path).stat().st_size, hash_file(folder / file.path))
        for file in commit.files
    ]
    return replace(commit, files=tuple(files))


def _noisy(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Statistics with 10 % of noise, of every head its own."""
    key = table["layer"].to_numpy().astype(int) * 1000 + table["head"].to_numpy().astype(int)
    for metric in METRICS:
        at = table.schema.get_field_index(metric)
        values = table[metric].to_numpy(zero_copy_only=False).astype(np.float32)
        of_head = 1 + 0.05 * rng.standard_normal(key.max() + 1)
        noise = of_head[key] + 0.05 * rng.standard_normal(len(values))
        noisy = np.clip(values * noise, 0, 1).astype(np.float32)
        column = pa.array(noisy, table.schema.field(at).type, from_pandas=True)
        table = table.set_column(at, table.schema.field(at), column)
    return table
