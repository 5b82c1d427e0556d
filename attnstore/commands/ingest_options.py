"""Options that every ``attnstore ingest`` command has, whatever the dataset."""

from __future__ import annotations

import click

from .options import F, json_option, store_option

POLICY = (
    click.option(
        "--policy", required=True, help="Adapter, or adapter:variant; see `attnstore policies`."
    ),
    click.option("--checkpoint", required=True, help="Local checkpoint directory, or hub id."),
    store_option,
    click.option("--revision", help="Hub revision of the checkpoint."),
    click.option("--dtype", help="Data type of the weights.  [default: the checkpoint's]"),
    click.option(
        "--device", default="cpu", show_default=True, help="Torch device; cuda: one per worker."
    ),
    click.option(
        "--policy-option", "pairs", multiple=True, metavar="KEY=VALUE", help="Adapter option."
    ),
)

EPISODES = (
    click.option(
        "--outcome",
        type=click.Choice(["success", "failure", "unknown"]),
        help="Only these episodes.",
    ),
    click.option(
        "--episodes", metavar="GLOB", help="Only episodes whose name, or its last part, matches."
    ),
    click.option("--limit", type=click.IntRange(min=1), help="At most this many episodes."),
    click.option(
        "--video-frames",
        type=click.Choice(["jpeg", "png"]),
        default="jpeg",
        show_default=True,
        help="What is kept of the frames of videos; png is larger, and exactly what the policy saw: "
        "`attnstore probe` does the same again.",
    ),
)

RUN = (
    click.option(
        "--dataset-name", help="Name of the dataset in the run.  [default: the directory's]"
    ),
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Frames between keyframes.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float16", "log8"]),
        default="float16",
        show_default=True,
        help="log8: one byte a weight, within 2.3 % down to 2^-16, below 2^-17 zero.",
    ),
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Base of the keyframes' noise seeds.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Keyframes a forward; does not change the results.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes, each with its own copy of the policy.",
    ),
    click.option(
        "--vision",
        is_flag=True,
        help="Also store the attention inside each camera's image encoder.",
    ),
    click.option(
        "--token-stats",
        is_flag=True,
        help="Also keep every token's norm and cosines, layer by layer.",
    ),
    click.option("--dry-run", is_flag=True, help="Print the forecast and stop."),
    click.option(
        "--force", is_flag=True, help="Go on although the forecast exceeds the free disk."
    ),
    json_option,
)


def policy_options(function: F) -> F:
    """Add the policy and the store."""
    return _add(function, POLICY)


def episode_options(function: F) -> F:
    """Add the choice of episodes."""
    return _add(function, EPISODES)


def run_options(function: F) -> F:
    """Add what a run is made with, and how."""
    return _add(function, RUN)


def _add(function: F, options: tuple[object, ...]) -> F:
    # click lists options in the order of decorators, and the lowest is applied first
    for option in reversed(options):
        function = option(function)  # type: ignore[operator]
    return function
