"""``attnstore policies``: the adapters that are installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import UsageError

from .options import (
    StoreCommand,
    json_option,
)
from .output import print_json

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@click.command(cls=StoreCommand)
@click.argument("name", required=False)
@json_option
def policies(name: str | None, as_json: bool) -> None:
    """List the policy adapters that are installed, or say of one what is captured of it.

    Examples
    --------
    attnstore policies
    attnstore policies lerobot
    """
    from importlib.metadata import entry_points

    from attnstore.ingest.policies.registry import ENTRY_POINTS, said_of

    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name)
    if not points:
        raise UsageError("no policy adapter is installed")
    if name is not None:
        _say_of(name, points, as_json)
        return
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


def _say_of(name: str, points: Sequence[EntryPoint], as_json: bool) -> None:
    from .policy_facts import facts

    chosen = [point for point in points if point.name == name]
    if not chosen:
        raise UsageError(f"no policy {name!r}; installed: {', '.join(p.name for p in points)}")
    try:
        rows = facts(chosen[0])
    except ImportError as error:
        raise UsageError(f"{name}: its libraries are missing ({error})") from None
    if as_json:
        print_json(rows)
        return
    for row in rows or [{"policy": name, "adapter": chosen[0].value}]:
        for key, value in row.items():
            click.echo(f"{key:<21} {value}")
        click.echo()
