"""``attnstore record``: what policies saw while they drove."""

from __future__ import annotations

import click

from attnstore.store.errors import PartialError

from .options import StoreGroup, StoreName, json_option, on_this_machine, store_to_write
from .output import print_json


@click.group(cls=StoreGroup)
def record() -> None:
    """Recordings of policies that drive; they are made in Python, by `attnstore.record`."""


@record.command()
@store_to_write
@json_option
def recover(store: StoreName, as_json: bool) -> None:
    """End the episodes of processes that were killed while they recorded.

    STORE may also be the directory of one recording.

    Their outcome is unknown, until `attnstore outcomes` says it. What of a file is no whole entry is
    moved to a file beside it. Episodes that are being recorded on this host are left alone.

    Examples
    --------
    attnstore record recover lab.attn
    attnstore record recover lab.attn/recordings/NAME
    """
    from attnstore.ingest.recording.dataset import recording_directories
    from attnstore.ingest.recording.dataset import recover as recover_directory

    done = [
        {"recording": directory.name, **each}
        for directory in recording_directories(on_this_machine(store))
        for each in recover_directory(directory)
    ]
    if as_json:
        print_json(done)
    else:
        for each in done:
            name = each.get("name") or each["file"]
            calls = "1 call" if each["calls"] == 1 else f"{each['calls']} calls"
            click.echo(f"{each['status']}: {name}: {calls}; {each['reason']}")
        if not done:
            click.echo("every episode was ended")
    if bad := [each["file"] for each in done if each["status"] == "unreadable"]:
        raise PartialError(f"{len(bad)} files are no journals that can be read: {', '.join(bad)}")
