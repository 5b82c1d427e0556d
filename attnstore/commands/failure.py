"""``attnstore failure``: whether a failure is seen coming."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    EpisodeChoice,
    FiniteNumber,
    StoreCommand,
    StoreName,
    episode_options,
    json_option,
    out_file,
    store_to_write,
    weighting_option,
)
from .output import print_json, progress_of, say, say_made

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attnstore.store.format.weighting import Weighting


@click.command(cls=StoreCommand)
@store_to_write
@episode_options
@click.option("--features", type=click.Choice(["attention", "hidden", "both"]), multiple=True,
              default=("attention",), show_default=True,
              help="What the score is made of: statistics of every head, the last hidden state of the action "
                   "tokens, or both; repeatable.")  # fmt: skip
@weighting_option
@click.option("--strata", metavar="SQL",
              help="Expression on table episodes; only episodes in which it is the same are compared.")  # fmt: skip
@click.option("--alpha", type=FiniteNumber(0, 1, min_open=True), default=0.1, show_default=True,
              help="Rate of successes that may raise an alarm.")  # fmt: skip
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True,
              help="Parts that episodes, or tasks, are divided into; each is tested once.")  # fmt: skip
@click.option("--shuffles", type=click.IntRange(min=0), default=100, show_default=True,
              help="Controls with shuffled outcomes.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of folds, controls and intervals.")  # fmt: skip
@click.option("--redo", is_flag=True, help="Compute what is there of the same episodes, too.")
@out_file("Draw scores, band and ranking over time: .png, .jpg or .webp.", ".png", ".jpg", ".webp")
@json_option
def failure(
    store: StoreName, episodes: EpisodeChoice, features: tuple[str, ...], weighting: Weighting,
    strata: str | None, alpha: float, folds: int, shuffles: int, seed: int, redo: bool, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Predict an episode's failure from what was seen up to a moment, and set an alarm.

    A logistic regression on the statistics of every head (--features), and one on their mean so far, are
    fitted on some episodes and score others: unseen ones, and if there are several tasks, those of unseen
    tasks. Printed is how well they rank failures above successes that are still running (AUROC), how
    much better than time, robot state and words alone, and how often the alarm is right: it is set so
    that at most a share --alpha of unseen successes raises it. Committed as the tables failure_scores,
    failure_results and failure_alarms; needs scikit-learn: pip install 'attnstore[learn]'.

    Examples
    --------
    attnstore failure lab.attn --out failure.png
    attnstore failure lab.attn --features attention --features hidden --features both --alpha 0.05
    attnstore failure lab.attn --strata "split_part(name, '/', 1)"
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.failure.part import (
        ALARMS,
        RESULTS,
        predict_failures,
        rows_of,
    )
    from attnstore.query.failure.prediction import FailureOptions

    options = FailureOptions(
        tuple(dict.fromkeys(features)), weighting, alpha, folds, seed, shuffles, strata=strata
    )
    opened = open_for_reading(store)
    chosen = episodes.of_one_run(opened)
    with progress_of("failure") as advance:
        done = predict_failures(opened, chosen, options, redo=redo, progress=advance)
    results = rows_of(opened, done.commit, RESULTS)
    alarms = rows_of(opened, done.commit, ALARMS)
    if out is not None:
        from attnstore.render.charts.failure import draw_failure
        from attnstore.render.picture.image_file import write

        write(out, draw_failure(opened, done.commit))
        say(f"{out}: scores, band and ranking")
    if as_json:
        print_json([*results, *alarms])
        return
    state = "computed" if done.computed else "there already"
    click.echo(
        f"{done.commit.summary['episodes']} episodes, {done.commit.summary['failures']} failed; part "
        f"{done.commit.part}, {state}"
    )
    for split in dict.fromkeys(row["split"] for row in results):
        _print(split, results, alarms)
    if not any(row["split"] == "tasks" for row in results):
        click.echo("unseen tasks: not tested; one task alone, or too few episodes beside a task")
    say_made(
        f"scores and alarms of {done.commit.summary['episodes']} episodes, {state}",
        f"attnstore report {store} --out report",
    )


def _print(split: str, results: Sequence[Any], alarms: Sequence[Any]) -> None:
    click.echo(f"\nunseen {split}")
    click.echo(
        f"  {'features':<12} {'model':<11} {'AUROC':<20} {'shuffled':>8} {'p':>6}  "
        f"{'gain over trivial':<24} {'alarms: false':>13} {'right':>11} "
        f"{'before the end':>15}"
    )
    for row in (r for r in results if r["split"] == split and r["moment"] is None):
        alarm = next(
            a
            for a in alarms
            if all(a[k] == row[k] for k in ("split", "features", "model", "weighting"))
        )
        click.echo(
            f"  {row['features']:<12} {row['model']:<11} {_interval(row, 'auroc', 'low', 'high'):<20} "
            f"{_number(row['shuffled']):>8} {_number(row['p']):>6}  "
            f"{_interval(row, 'gain', 'gain_low', 'gain_high'):<24} "
            f"{alarm['false_alarms']:>5} of {alarm['successes']:<4} "
            f"{alarm['detected']:>4} of {alarm['failures']:<4} "
            f"{'' if alarm['before_end'] is None else format(alarm['before_end'], '.3g'):>11} "
            f"{alarm['unit']}"
        )


def _interval(row: Any, value: str, low: str, high: str) -> str:
    if row[value] is None:
        return ""
    return f"{row[value]:.2f} ({_number(row[low])} to {_number(row[high])})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
