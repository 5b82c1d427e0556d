"""Options that every ``attnstore probe`` command has, and those of maps and fills."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from attnstore.store.errors import UsageError

from .options import F, active_option, json_option, store_option

FILLS = ("black", "mean", "blur", "noise")

COMMON = (
    store_option,
    click.option("--checkpoint", required=True, help="The run's checkpoint: directory or hub id."),
    click.option("--policy", help="Adapter, or adapter:variant.  [default: the run's]"),
    click.option("--revision", help="Hub revision of the checkpoint."),
    click.option("--device", default="cpu", show_default=True, help="Torch device."),
    click.option(
        "--policy-option", "pairs", multiple=True, metavar="KEY=VALUE", help="Adapter option."
    ),
    click.option("--run", "run_id", help="Run to probe, if the store has several."),
    click.option("--episode", "names", multiple=True, help="Episode; repeatable.  [default: all]"),
    click.option("--limit", type=click.IntRange(min=1), help="At most this many episodes."),
    click.option(
        "--every",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Probe every so many-th keyframe.",
    ),
    click.option(
        "--dof",
        type=click.IntRange(min=1),
        help="Real degrees of freedom: the first components of an action that are compared.  "
        "[default: the policy's, else the recording's]",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Variants a forward.",
    ),
    click.option(
        "--tolerance",
        type=click.FloatRange(min=0),
        help="How far the base may be from the stored actions, relative to their length.  "
        "[default: by data type]",
    ),
    click.option("--dry-run", is_flag=True, help="Print the forecast and stop."),
    json_option,
)
FILL = click.option(
    "--fill",
    type=click.Choice(FILLS),
    default="mean",
    show_default=True,
    help="What pixels are replaced by.",
)
MAP = (
    click.option("--phase", help="Phase of the maps.  [default: the last one: suffix]"),
    click.option("--query", "group", help="Query tokens of the maps.  [default: the phase's]"),
    click.option("--layers", "layer_text", help="Layers: 5, 0-3, 2,5,7.  [default: all]"),
    click.option(
        "--heads", default="mean", show_default=True, help="mean, max, active, or a head's number."
    ),
    click.option(
        "--step",
        type=int,
        help="Denoising step of the maps; negative ones from the end.  [default: the last; of "
        "decode the first]",
    ),
    active_option,
)


def add_options(*groups: Any) -> Callable[[F], F]:
    """Add options, in the order in which they are named."""
    listed = [o for group in groups for o in (group if isinstance(group, tuple) else (group,))]

    def add(function: F) -> F:
        for option in reversed(listed):
            function = option(function)
        return function

    return add


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Parse numbers and ranges of layers; None stays None.

    Raises
    ------
    UsageError
        If it is none.

    Examples
    --------
    >>> parse_layers("0-2,7")
    (0, 1, 2, 7)
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise UsageError(f"--layers is numbers and ranges, as 0-3,7; got {text!r}")
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(dict.fromkeys(found))
