"""``attnstore compare``: which heads differ between groups of episodes, or between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from attnstore.store.errors import NotFoundError, UsageError

from .compare_text import Form, print_comparison, print_divergence, write_rows
from .options import StoreName, console, json_option, store_option, store_to_read
from .render import parse_layers

if TYPE_CHECKING:
    from attnstore.query import Store


def _step(
    context: click.Context, parameter: click.Parameter, value: str
) -> int | Literal["last", "all"]:
    if value == "last":
        return "last"
    if value == "all":
        return "all"
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"a step is last, all or a number; got {value!r}") from None


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
@click.option(
    "--query-group", help="Query tokens: task, action, ...  [default: the phase's: task, action]"
)
@click.option(
    "--step",
    callback=_step,
    default="last",
    show_default=True,
    metavar="last|all|N",
    help="Denoising step of a stepped phase; of decode, last is the first, which all keyframes have.",
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
@click.option(
    "--permutations",
    type=click.IntRange(min=1),
    default=9999,
    show_default=True,
    help="Random assignments, where not all can be tried.",
)
@click.option(
    "--bootstraps",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    help="Resamples of episodes behind the intervals.",
)
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
    "--video",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="With --runs: draw both runs' overlays side by side, a video for every layer.",
)
@click.option("--layers", metavar="LIST", help="With --video: 1,4,5,7,10 or 0-17.  [default: all]")
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
    store: StoreName | None,
    runs: tuple[str, str] | None,
    episodes: tuple[str, ...],
    metric: str | None,
    limit: int,
    as_json: bool,
    as_csv: bool,
    plot: Path | None,
    video: Path | None,
    layers: str | None,
    **options: Any,
) -> None:
    """Compare groups of episodes head by head: success against failure, or any two.

    One number per episode and head; difference of means with a bootstrap interval, Cliff's delta,
    a permutation test within task and date, and Benjamini-Hochberg over all heads.

    \b
    attnstore compare --metric entropy --by outcome --phase suffix
    attnstore compare --metric max --reduce max --window 8 --where "task = 'cube'"
    attnstore compare --metric entropy --a "date < '2026-01-01'" --b "date >= '2026-01-01'"
    attnstore compare --runs pi0-1111111111 pi0-2222222222 --plot diff.png
    attnstore compare --runs pi0-1111111111 pi0-2222222222 --video diff --layers 5,7
    """  # noqa: D301  click's mark for lines that stay as they are
    from attnstore.query import open as open_for_reading

    if as_json and as_csv:
        raise UsageError("--json or --csv, not both")
    form: Form = "ndjson" if as_json else "csv" if as_csv else "table"
    opened = open_for_reading(store_to_read(store))
    if runs is not None:
        chosen = _only_for_diff(options, metric)
        shown = parse_layers(layers)
        if video is not None:
            _refuse_for_video(chosen)
        elif layers is not None:
            raise UsageError("--layers goes with --video; the table has every layer")
        names = _diff(opened, runs, episodes, form, limit, plot, dict(chosen))
        if video is not None:
            _film(opened, runs, names, video, shown, chosen)
        return
    if video is not None or layers is not None:
        raise UsageError("--video and --layers go with --runs A B")
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
        write_rows(found.table(), form)
        for note in found.notes:
            console().print(note, markup=False)
        return
    print_comparison(found, limit)


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
) -> tuple[str, ...]:
    from attnstore.query.run_diff import diff_runs, diff_table

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
            write_rows(diff_table(divergence), form, header=number == 0)
    else:
        print_divergence(found, limit)
    return chosen


def _refuse_for_video(options: dict[str, Any]) -> None:
    if options["step"] == "all":
        raise UsageError("--video draws one step: give --step last or a number")
    if options["query_group"] is not None:
        raise UsageError("--video draws the phase's first query group: it takes no --query-group")


def _film(
    store: Store,
    runs: tuple[str, str],
    names: tuple[str, ...],
    out: Path,
    layers: list[int] | None,
    options: dict[str, Any],
) -> None:
    from attnstore.query.run_diff import default_phase
    from attnstore.render.side_by_side import render_side_by_side

    camera, step = options["camera"], options["step"]
    for name in names:
        a, b = (store.episode(name, run=run) for run in runs)
        # of the mean, as the table is
        written = render_side_by_side(
            a, b, out, layers=layers, phase=options["phase"] or default_phase(a, b), reduce="mean",
            cameras=None if camera is None else [camera], step=None if step == "last" else step,
        )  # fmt: skip
        console().print(
            f"{a.name}: {len(written)} videos below {out}", markup=False, soft_wrap=True
        )
