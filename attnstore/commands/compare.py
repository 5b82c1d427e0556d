"""``attnstore compare``: which heads differ between groups of episodes, or between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from attnstore.store.errors import NotFoundError, UsageError

from .compare_text import Form, print_comparison, print_divergence, write_rows
from .options import (
    EpisodeChoice,
    FiniteNumber,
    OutputPath,
    StepNumber,
    StoreGroup,
    StoreName,
    active_option,
    add_options,
    episode_options,
    json_option,
    layers_option,
    out_file,
    store_to_read,
    weighting_option,
)
from .output import progress_of, say, say_made, say_written

if TYPE_CHECKING:
    from attnstore.query import Store
    from attnstore.store.format.weighting import Weighting
    from attnstore.store.rules import Active

PICTURES = (".png", ".jpg", ".webp")
Step = int | Literal["last", "all"]


def _strata(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    return () if names == ("none",) else names


@click.group(cls=StoreGroup)
def compare() -> None:
    """Compare head by head: success against failure, any two groups of episodes, or two runs."""


_QUERY = click.option(
    "--query",
    metavar="GROUP",
    help="Query tokens: task, action, ...  [default: the phase's: task, action]",
)
_STEP = click.option(
    "--step",
    type=StepNumber(every=True),
    metavar="first|last|all|N",
    help="Step of a stepped phase.  [default: last; of decode first, which all keyframes have]",
)
_ROWS = click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Rows of the table; --json and --csv have all.",
)
_PRINTED = (
    _ROWS,
    json_option,
    click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout."),
    out_file("Draw the heads: .png, .jpg or .webp.", *PICTURES),
)


@compare.command()
@store_to_read
@click.option(
    "--metric",
    metavar="COLUMN",
    required=True,
    help="Metric of head_stats: entropy, variance, camera_mass, drift, ...",
)
@click.option(
    "--by",
    metavar="COLUMN",
    help="Groups are the two values of outcome, task, date, instruction or run.  [default: outcome]",
)
@click.option("--a", metavar="SQL", help="Group a: a condition on the table episodes; with --b.")
@click.option("--b", metavar="SQL", help="Group b.")
@episode_options
@click.option("--phase", metavar="NAME", help="Phase.  [default: prefix]")
@click.option("--camera", metavar="NAME", help="Camera.  [default: hand_camera]")
@add_options(_QUERY, _STEP)
@click.option(
    "--episode-value",
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
    "--align",
    type=click.Choice(["none", "time", "progress"]),
    default="none",
    show_default=True,
    help="Compare episodes of different lengths at equal times (the first keyframes, as many as the "
    "shortest has) or at equal progress.",
)
@weighting_option
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
    type=FiniteNumber(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="False discovery rate.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of permutations and bootstraps."
)
@add_options(_PRINTED)
def groups(
    store: StoreName,
    metric: str,
    by: str | None,
    a: str | None,
    b: str | None,
    episodes: EpisodeChoice,
    phase: str | None,
    camera: str | None,
    query: str | None,
    step: int | Literal["all"] | None,
    episode_value: Literal["mean", "max"],
    window: int | None,
    align: Literal["none", "time", "progress"],
    weighting: Weighting,
    family: Literal["heads", "layers"],
    strata: tuple[str, ...] | None,
    permutations: int,
    bootstraps: int,
    alpha: float,
    seed: int,
    rows: int,
    as_json: bool,
    as_csv: bool,
    out: Path | None,
) -> None:
    """Compare groups of episodes: success against failure, or any two.

    One number per episode and head; difference of means with a bootstrap interval, Cliff's delta,
    a test within task and date (permutation and Welch), and Benjamini-Hochberg over all heads.

    Examples
    --------
    attnstore compare groups lab.attn --metric entropy --by outcome --phase suffix
    attnstore compare groups lab.attn --metric max --episode-value max --window 8
    attnstore compare groups lab.attn --metric entropy --a "task = 'cube'" --b "task = 'bowl'"
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.groups.comparison import compare as compare_groups

    form = _form(as_json, as_csv)
    opened = open_for_reading(store)
    with progress_of("compare") as advance:
        compared = compare_groups(
            opened, metric, by=by, a=a, b=b,
            where=_condition(opened, episodes), phase=phase, camera=camera, query=query,
            step=_step(step), reduce=episode_value, window=window, align=align, family=family,
            weighting=weighting,
            strata=strata, permutations=permutations, bootstraps=bootstraps, alpha=alpha,
            seed=seed, progress=advance,
        )  # fmt: skip
    if out is not None:
        from attnstore.render.charts.comparison import draw_comparison
        from attnstore.render.picture.image_file import write

        write(out, draw_comparison(compared))
    if form != "table":
        write_rows(compared.table(), form)
        for note in compared.notes:
            say(note)
        return
    print_comparison(compared, rows)
    tests = f"{compared.attainable.tests} tests of {len(compared.groups.members)} episodes"
    if out is None:
        say_made(tests, "the same with --out heads.png draws them")
    else:
        say_made(f"{out}: {tests}", f"attnstore report {store} --out report")


def _condition(store: Store, episodes: EpisodeChoice) -> str | None:
    if episodes == EpisodeChoice():
        return None
    chosen = episodes.by_run(store)  # says what names nothing, and what is no condition
    if not episodes.names and episodes.run is None:
        return episodes.where
    return " OR ".join(f"({each.condition})" for each in chosen)


def _step(step: int | str | None) -> Step:
    return "last" if step in (None, -1) else "all" if step == "all" else int(step)


def _form(as_json: bool, as_csv: bool) -> Form:
    if as_json and as_csv:
        raise UsageError("--json or --csv, not both")
    return "ndjson" if as_json else "csv" if as_csv else "table"


@compare.command()
@store_to_read
@click.argument("run_a")
@click.argument("run_b")
@episode_options
@click.option(
    "--phase", metavar="NAME", help="Phase.  [default: prefix, or the first that both have]"
)
@click.option("--camera", metavar="NAME", help="Only this camera.")
@add_options(_QUERY, _STEP, layers_option)
@add_options(_PRINTED)
@click.option(
    "--videos",
    metavar="DIRECTORY",
    type=OutputPath(directory=True),
    help="Draw both runs' overlays side by side, a video for every layer.",
)
@active_option
@weighting_option
def runs(
    store: StoreName,
    run_a: str,
    run_b: str,
    episodes: EpisodeChoice,
    phase: str | None,
    camera: str | None,
    query: str | None,
    step: int | Literal["all"] | None,
    layers: tuple[int, ...] | None,
    rows: int,
    as_json: bool,
    as_csv: bool,
    out: Path | None,
    videos: Path | None,
    active: Active,
    weighting: Weighting,
) -> None:
    """Say how far apart two runs' maps of the same frames are.

    Jensen-Shannon divergence of the maps, head by head, keyframe by keyframe.

    Examples
    --------
    attnstore compare runs lab.attn pi0-1111111111 pi0-2222222222 --out diff.png
    attnstore compare runs lab.attn pi0-1111111111 pi0-2222222222 --videos diff --layers 5,7
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.groups.run_diff import default_phase, diff_runs, diff_table

    form = _form(as_json, as_csv)
    if episodes.run is not None:
        raise UsageError("compare runs names both runs as arguments: it takes no --run")
    if layers is not None and videos is None:
        raise UsageError("--layers goes with --videos; the table has every layer")
    if active != "image" and videos is None:
        raise UsageError("--active goes with --videos; the table has every head")
    if videos is not None and step == "all":
        raise UsageError("--videos draws one step: give --step last or a number")
    if videos is not None and query is not None:
        raise UsageError("--videos draws the phase's first query group: it takes no --query")
    opened = open_for_reading(store)
    for run in (run_a, run_b):
        opened.run(run)
    names = _shared(opened, run_a, run_b, episodes)
    cameras = None if camera is None else [camera]
    divergences = []
    with progress_of("compare") as advance:
        for number, name in enumerate(names):
            advance(number / len(names), name)
            found = diff_runs(
                opened, run_a, run_b, name, phase=phase, cameras=cameras, query=query,
                step=_step(step), weighting=weighting,
            )  # fmt: skip
            divergences.append(found)
    if out is not None:
        from attnstore.render.charts.comparison import draw_divergence
        from attnstore.render.picture.image_file import write

        write(out, draw_divergence(divergences))
    if form != "table":
        for number, divergence in enumerate(divergences):
            write_rows(diff_table(divergence), form, header=number == 0)
    else:
        print_divergence(divergences, rows)
    said = f"{len(names)} episodes of two runs"
    if out is not None:
        said = f"{out}: {said}"
    if videos is None:
        if form == "table":
            say_made(said, "the same with --videos DIRECTORY draws both side by side")
        return
    from attnstore.render.files.side_by_side import render_side_by_side

    with progress_of("videos") as advance:
        for number, name in enumerate(names):
            a, b = (opened.episode(name, run=run) for run in (run_a, run_b))
            advance(number / len(names), a.name)
            # of the mean, as the table is
            written = render_side_by_side(
                a, b, videos, layers=None if layers is None else list(layers),
                phase=phase or default_phase(a, b), reduce="mean", cameras=cameras,
                step=None if step is None else int(step), active=active,
                weighting=weighting,
            )  # fmt: skip
            say_written(written, videos, a.name, False)
    say_made(said, f"open a video below {videos}")


def _shared(store: Store, run_a: str, run_b: str, episodes: EpisodeChoice) -> tuple[str, ...]:
    """Ids of the chosen episodes that both runs have; the error names them."""
    in_a, in_b = (
        EpisodeChoice(episodes.names, episodes.where, run).of_one_run(store).episodes
        for run in (run_a, run_b)
    )
    shared = tuple(episode for episode in in_a if episode in set(in_b))
    if not shared:
        raise NotFoundError(f"runs {run_a} and {run_b} have no episode in common")
    return shared
