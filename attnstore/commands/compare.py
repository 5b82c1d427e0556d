"""``attnstore compare``: which heads differ between groups of episodes, or between two runs."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from attnstore.store.errors import NotFoundError, UsageError

from .options import console, json_option, need_store, print_json, store_option

if TYPE_CHECKING:
    import pyarrow as pa

    from attnstore.query import Store
    from attnstore.query.compare import Comparison

Form = Literal["table", "ndjson", "csv"]


class _Step(click.ParamType):
    """``last``, ``all`` or a number."""

    name = "step"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value in ("last", "all") or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"a step is last, all or a number; got {value!r}", param, ctx)


def _strata(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    return () if names == ("none",) else names


@click.command()
@store_option
@click.option("--metric", help="Metric of head_stats: entropy, variance, camera_mass, drift, ...")
@click.option(
    "--by",
    metavar="COLUMN",
    help="Groups are the two values of outcome, task, date, instruction or run.  [default: outcome]",
)
@click.option("--a", metavar="SQL", help="Group a: a condition on the table episodes; with --b.")
@click.option("--b", metavar="SQL", help="Group b.")
@click.option("--where", metavar="SQL", help="Condition on episodes for both groups.")
@click.option("--run", help="Only episodes of this run.")
@click.option("--phase", help="Phase.  [default: prefix]")
@click.option("--camera", help="Camera.  [default: hand_camera; with --runs: all]")
@click.option("--query-group", help="Query tokens: text, action, ...  [default: the phase's first]")
@click.option(
    "--step",
    type=_Step(),
    default="last",
    show_default=True,
    metavar="last|all|N",
    help="Denoising step of a stepped phase.",
)
@click.option(
    "--reduce",
    type=click.Choice(["mean", "max"]),
    default="mean",
    show_default=True,
    help="An episode's number, from those of its keyframes.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the first N keyframes.  [default: all for mean; for max, as many as the shortest episode has]",
)
@click.option(
    "--family",
    type=click.Choice(["heads", "layers"]),
    default="heads",
    show_default=True,
    help="Tests: every head, or every layer's mean over heads.",
)
@click.option(
    "--strata",
    metavar="COLUMNS",
    callback=_strata,
    help="Exchange episodes only within equal task, date, instruction, name or run; or none.  "
    "[default: task,date; name if the groups share recordings]",
)
@click.option("--permutations", type=click.IntRange(min=1), default=9999, show_default=True)
@click.option("--bootstraps", type=click.IntRange(min=0), default=2000, show_default=True)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="False discovery rate.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of permutations and bootstraps."
)
@click.option(
    "--runs",
    nargs=2,
    metavar="A B",
    help="Instead: how far apart two runs' maps of the same frames are.",
)
@click.option(
    "--episode",
    "episodes",
    multiple=True,
    help="With --runs: this episode; repeatable.  [default: all]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Rows of the table; --json and --csv have all.",
)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Draw the heads: .png, .jpg or .webp.")  # fmt: skip
def compare(
    store: Path | None,
    runs: tuple[str, str] | None,
    episodes: tuple[str, ...],
    metric: str | None,
    limit: int,
    as_json: bool,
    as_csv: bool,
    plot: Path | None,
    **options: Any,
) -> None:
    r"""Compare groups of episodes head by head: success against failure, or any two.

    One number per episode and head; difference of means with a bootstrap interval, Cliff's delta,
    a permutation test within task and date, and Benjamini-Hochberg over all heads.

    \b
    attnstore compare --metric entropy --by outcome --phase suffix
    attnstore compare --metric max --reduce max --window 8 --where "task = 'cube'"
    attnstore compare --metric entropy --a "date < '2026-01-01'" --b "date >= '2026-01-01'"
    attnstore compare --runs pi0-1111111111 pi0-2222222222 --plot diff.png
    """
    from attnstore.query import open as open_for_reading

    if as_json and as_csv:
        raise UsageError("--json or --csv, not both")
    form: Form = "ndjson" if as_json else "csv" if as_csv else "table"
    opened = open_for_reading(need_store(store))
    if runs is not None:
        _diff(opened, runs, episodes, form, limit, plot, _only_for_diff(options, metric))
        return
    if metric is None:
        raise UsageError("name what to compare: --metric entropy, or two runs with --runs A B")
    if episodes:
        raise UsageError("--episode goes with --runs; choose episodes of groups with --where")
    _groups(opened, metric, form, limit, plot, options)


def _groups(
    store: Store, metric: str, form: Form, limit: int, plot: Path | None, options: dict[str, Any]
) -> None:
    from attnstore.query.compare import compare as compare_groups

    run = options.pop("run")
    if run is not None:
        store.run(run)
        mine = "run = '" + run.replace("'", "''") + "'"
        where = options["where"]
        options["where"] = mine if where is None else f"{mine} AND (\n{where}\n)"
    if options["by"] is None and options["a"] is None and options["b"] is None:
        options["by"] = "outcome"
    found = compare_groups(store, metric, **options)
    if plot is not None:
        from attnstore.render.compare_plot import draw_comparison
        from attnstore.render.image_file import write

        write(plot, draw_comparison(found))
    if form != "table":
        _write(found.table(), form)
        for note in found.notes:
            console().print(note, markup=False)
        return
    _print_comparison(found, limit)


def _print_comparison(found: Comparison, limit: int) -> None:
    groups, attainable = found.groups, found.attainable
    strata = " and ".join("recording" if c == "name" else c for c in found.strata)
    tried = (
        f"{attainable.permutations} permutations"
        if attainable.permutations
        else f"all {attainable.assignments} assignments"
    )
    a, b = groups.sizes
    click.echo(f"{a} - {b} episodes")
    click.echo(found.family)
    click.echo(
        f"permuted within {strata or 'all episodes'}: {tried}, smallest p {attainable.smallest_p:.2g}"
    )
    for note in found.notes:
        click.echo(f"! {note}")
    click.echo()
    stratified = len(set(found.stratum.tolist())) > 1
    rows = []
    for row in found.table().slice(0, limit).to_pylist():
        shown = {"": "*" if row["significant"] else ""}
        if row["step"] is not None:
            shown["step"] = str(row["step"])
        shown["layer"] = f"L{row['layer']:02d}"
        if row["head"] is not None:
            shown["head"] = f"H{row['head']:02d}"
        shown |= {
            "mean a": _number(row["mean_a"]),
            "mean b": _number(row["mean_b"]),
            "difference": _interval(row, "difference"),
            "delta": _number(row["cliffs_delta"], "+.2f"),
        }
        if stratified:
            shown["within strata"] = _interval(row, "within")
        rows.append(shown | {"p": _number(row["p"], ".2g"), "q": _number(row["q"], ".2g")})
    _print_table(rows)
    count = int(found.significant.sum())
    click.echo(
        f"\n{count} of {attainable.tests} tests at q <= {attainable.alpha:g}"
        + (f"; {len(found.q)} rows in all, see --json" if len(found.q) > limit else "")
    )


def _number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else format(value, form)


def _interval(row: dict[str, Any], name: str) -> str:
    """Write a difference with its interval: ``-0.031 [-0.05, -0.01]``."""
    if row[name] is None:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None:
        return f"{row[name]:+.3g}"
    return f"{row[name]:+.3g} [{low:+.3g}, {high:+.3g}]"


def _only_for_diff(options: dict[str, Any], metric: str | None) -> dict[str, Any]:
    """Return the options that two runs take; refuse those that would be ignored."""
    given = click.get_current_context().get_parameter_source
    taken = ("phase", "camera", "query_group", "step")
    ignored = [
        name
        for name in ("metric", *options)
        if name not in taken and given(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if ignored:
        raise UsageError(f"--runs compares maps, not metrics: it takes no --{', --'.join(ignored)}")
    return {name: options[name] for name in taken}


def _diff(
    store: Store,
    runs: tuple[str, str],
    names: tuple[str, ...],
    form: Form,
    limit: int,
    plot: Path | None,
    options: dict[str, Any],
) -> None:
    from attnstore.query.run_diff import diff_runs, diff_table, rank_heads

    for run in runs:
        store.run(run)
    both = {c.episode: str(c.summary.get("name")) for c in store.episodes(runs[0])}
    here = {c.episode for c in store.episodes(runs[1])}
    chosen = names or tuple(name for episode, name in both.items() if episode in here)
    if not chosen:
        raise NotFoundError(f"runs {runs[0]} and {runs[1]} have no episode in common")
    camera = options.pop("camera")
    options["cameras"] = None if camera is None else [camera]
    found = [diff_runs(store, *runs, name, **options) for name in chosen]
    if plot is not None:
        from attnstore.render.compare_plot import draw_divergence
        from attnstore.render.image_file import write

        write(plot, draw_divergence(found))
    if form != "table":
        for number, divergence in enumerate(found):
            _write(diff_table(divergence), form, header=number == 0)
        return
    first = found[0].attrs
    click.echo(f"{runs[0]} against {runs[1]}: {len(found)} episodes in both")
    click.echo(
        f"{first['phase']} × {first['query_group']}: Jensen-Shannon divergence of maps, bits"
    )
    click.echo()
    ranked = rank_heads(found)
    rows = []
    for row in ranked.slice(0, limit).to_pylist():
        shown = {"camera": row["camera"]}
        if row["step"] is not None:
            shown["step"] = str(row["step"])
        shown |= {
            "layer": f"L{row['layer']:02d}",
            "head": f"H{row['head']:02d}",
            "mean": _number(row["mean"], ".4f"),
            "max": _number(row["max"], ".4f"),
            "at frame": str(row["frame"]),
            "of episode": row["episode"],
        }
        rows.append(shown)
    _print_table(rows)
    if ranked.num_rows > limit:
        click.echo(
            f"\n{limit} of {ranked.num_rows} heads and cameras; see --json for every keyframe"
        )


def _write(table: pa.Table, form: Form, *, header: bool = True) -> None:
    if form == "ndjson":
        print_json(table.to_pylist())
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(table.column_names)
    writer.writerows(zip(*table.to_pydict().values(), strict=True))


def _print_table(rows: Iterable[dict[str, str]]) -> None:
    """Print aligned columns; numbers to the right."""
    lines = list(rows)
    text = {"", "camera", "of episode", "layer", "head"}
    widths = {name: max(len(name), *(len(r[name]) for r in lines)) for name in lines[0]}
    for cells in ({name: name for name in widths}, *lines):
        shown = [
            cells[name].ljust(width) if name in text else cells[name].rjust(width)
            for name, width in widths.items()
        ]
        click.echo("  ".join(shown).rstrip())
