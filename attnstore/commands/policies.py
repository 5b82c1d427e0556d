"""``attnstore policies``: the adapters that are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from attnstore.store.errors import UsageError

from .options import (
    StoreCommand,
    json_option,
)
from .output import print_json

if TYPE_CHECKING:
    pass


@click.command(cls=StoreCommand)
@json_option
def policies(as_json: bool) -> None:
    """List the policy adapters that are installed, and whether they show value norms and hidden states.

    Examples
    --------
    attnstore policies
    """
    from importlib.metadata import entry_points

    from attnstore.ingest.policies.registry import ENTRY_POINTS, said_of

    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name)
    if not points:
        raise UsageError("no policy adapter is installed")
    rows = [
        {
            "name": p.name, "adapter": p.value, "values": said_of(p, "value_norms"),
            "hidden": said_of(p, "hidden_states"),
        }
        for p in points
    ]  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            shown = f"value norms: {row['values']}; hidden states: {row['hidden']}"
            click.echo(f"{row['name']:<12} {row['adapter']:<60} {shown}")
