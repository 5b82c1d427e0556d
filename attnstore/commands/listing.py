"""``attnstore ls``: what is in a store, and which episodes of a dataset are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len

from attnstore.store.commits import (
    Commit,
    StorePaths,
    latest_commit,
    read_commits,
    read_document,
    slug,
    unreadable_entries,
)
from attnstore.store.errors import PartialError

from .options import (
    EpisodeChoice,
    StoreCommand,
    StoreName,
    episode_options,
    json_option,
    store_to_read,
)
from .output import print_json, size_text

if TYPE_CHECKING:
    from attnstore.query import Store


LONG = 1000
"""Rows from which on a table is not fitted to a terminal."""


@click.command(cls=StoreCommand)
@store_to_read
@episode_options
@click.option("--runs", "list_runs", is_flag=True, help="List the runs instead of the episodes.")
@click.option("--coverage", type=click.Path(path_type=Path), metavar="DATASET",
              help="Say for every episode of a DROID dataset whether it is ingested.")  # fmt: skip
@json_option
def ls(
    store: StoreName, episodes: EpisodeChoice, list_runs: bool, coverage: Path | None, as_json: bool
) -> None:
    """List what is in the store: the parts of its episodes.

    Examples
    --------
    attnstore ls lab.attn
    attnstore ls lab.attn --runs --json
    attnstore ls lab.attn --where "outcome = 'failure'"
    attnstore ls lab.attn --coverage EPISODES
    """
    from attnstore.query import open as open_for_reading

    run = episodes.run
    opened = open_for_reading(store)
    if list_runs:
        rows = []
        for name in opened.runs:
            config, provenance = opened.run(name)
            rows.append(
                {
                    "run": name, "policy": config.policy, "checkpoint": config.checkpoint,
                    "dtype": config.dtype, "dataset": config.dataset, "stride": config.stride,
                    "precision": config.precision, "seed": config.seed,
                    "created": provenance.get("created"),
                }
            )  # fmt: skip
        _show(rows, as_json, "no runs")
    elif coverage is not None:
        _show(
            _coverage(opened.paths, coverage, [run] if run else opened.runs),
            as_json,
            "no episodes",
        )
    else:
        rows, bad = _committed(opened, run)
        if episodes.names or episodes.where is not None:
            names = {(each.run, name) for each in episodes.by_run(opened) for name in each.names}
            rows = [row for row in rows if (row["run"], row["episode"]) in names]
        _show(rows, as_json, "no committed episodes")
        name_unreadable([*bad, *(f"{f}: {r}" for f, r in unreadable_entries(opened.paths))])


def name_unreadable(reasons: list[str]) -> None:
    """Name on stderr what of a store could not be read and was left out.

    Raises
    ------
    PartialError
        If there is anything.
    """
    named = list(dict.fromkeys(reasons))
    for reason in named:
        click.echo(f"left out: {reason}", err=True)
    if named:
        raise PartialError(f"{len(named)} left out, see above; `attnstore verify` says more")


def _committed(store: Store, run: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of parts, and why others cannot be read."""
    from attnstore.query.sql.chosen import unreadable_parts
    from attnstore.store.catalog import is_long

    if store.paths.remote or is_long(store.paths):
        return _of_catalog(store, run), unreadable_parts(store)
    rows, bad = [], []
    for key, c in read_commits(store.paths):
        if run not in (None, key[0]):
            continue
        if not isinstance(c, Commit):
            bad.append(str(c).replace(f"{store.paths.root}/", ""))
            continue
        rows.append(
            {
                "run": c.run, "episode": c.summary.get("name"), "outcome": c.summary.get("outcome"),
                "keyframes": c.summary.get("keyframes"), "part": c.part, "revision": c.revision,
                "size": c.size, "instruction": c.summary.get("instruction"),
            }
        )  # fmt: skip
    return rows, bad


def _of_catalog(store: Store, run: str | None) -> list[dict[str, Any]]:
    """Rows of a store elsewhere, or of many episodes: its catalog is one file, its commits are one each."""
    relation = store.sql(
        "SELECT run, coalesce(name, episode) AS episode, outcome, keyframes, part, revision, "
        "bytes AS size, instruction FROM commits ORDER BY run, commits.episode, part"
    )
    rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    return [row for row in rows if run in (None, row["run"])]


def _coverage(paths: StorePaths, dataset: Path, runs: list[str]) -> list[dict[str, Any]]:
    from attnstore.ingest.datasets.droid.dataset import DroidDataset

    reasons: dict[tuple[str, str], str] = {}
    for file in sorted(paths.quarantine.glob("*/*/*.json")):
        reasons[file.parts[-3], file.parts[-2]] = read_document(file, "quarantine")["reason"]
    rows = []
    for name in DroidDataset(dataset).episode_names():
        for run in runs or [""]:
            commit = latest_commit(paths, run, slug(name)) if run else None
            reason = reasons.get((run, slug(name)))
            status = "committed" if commit else "quarantined" if reason else "missing"
            rows.append(
                {
                    "run": run or None, "episode": name, "status": status,
                    "keyframes": commit.summary.get("keyframes") if commit else None,
                    "reason": None if commit else reason,
                }
            )  # fmt: skip
    return rows


def _show(rows: list[dict[str, Any]], as_json: bool, nothing: str) -> None:
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo(nothing)
        return
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False, markup=False)
    if not out.is_terminal or len(rows) > LONG:
        _show_plain(rows)
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        numeric = all(isinstance(r[name], (int, float, type(None))) for r in rows)
        # A shortened name cannot be pasted into the next command: only free text may fold.
        fold = name in ("instruction", "reason")
        table.add_column(
            name, justify="right" if numeric else "left", no_wrap=not fold, overflow="fold"
        )
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    out.print(table)


def _show_plain(rows: list[dict[str, Any]]) -> None:
    """Show a row a line, whatever its width: rich takes 8 s to lay out those of 10,000 episodes."""
    from attnstore.query.sql.run import shown_value

    names = list(rows[0])
    cells = [names, *([shown_value(_cell(name, row[name])) for name in names] for row in rows)]
    columns = []
    for name, column in zip(names, zip(*cells, strict=True), strict=True):
        numeric = all(isinstance(r[name], (int, float, type(None))) for r in rows)
        sizes = [len(cell) if cell.isascii() else cell_len(cell) for cell in column]
        width = max(sizes)
        pads = [" " * (width - size) for size in sizes]
        pairs = zip(column, pads, strict=True)
        columns.append([pad + cell if numeric else cell + pad for cell, pad in pairs])
    lines = ("  ".join(line).rstrip() for line in zip(*columns, strict=True))
    print("\n".join(lines))  # click.echo writes UTF-8 where stdout is ASCII


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return size_text(value) if name == "size" else str(value)
