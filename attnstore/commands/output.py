"""What commands print: NDJSON on stdout for programs, words on stderr for people."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def console() -> Console:
    """Console on stderr for progress and summaries."""
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def bar_of(*columns: ProgressColumn, transient: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr, if that is a terminal; rich's own columns by default."""
    from rich.progress import Progress

    out = console()
    bar = Progress(*columns, console=out, disable=not out.is_terminal, transient=transient)
    # rich below 14.3 ends a bar that it does not show with an empty line
    with bar if out.is_terminal else contextlib.nullcontext():
        yield bar


Advance = Callable[[float, str], None]
"""Says which share of the work is done, 0 to 1, and what is at its turn."""


@contextlib.contextmanager
def progress_of(what: str) -> Iterator[Advance]:
    """Show on a terminal which share of a command's work is done, and the time that is left."""
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with bar_of(*columns, transient=True) as bar:
        task = bar.add_task(what, total=1.0)

        def advance(share: float, now: str) -> None:
            bar.update(task, completed=share, description=f"{what}: {now}"[-60:])

        yield advance


def say(text: str) -> None:
    """Print a line for people on stderr, as it is."""
    console().print(text, markup=False, soft_wrap=True)


def say_made(what: str, then: str = "") -> None:
    """Say what a command made, its last line, and what to do with it next."""
    say(f"{what}; next: {then}" if then else what)


def print_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print one JSON object a line; escaped where stdout is not UTF-8."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    for row in rows:
        sys.stdout.write(json.dumps(row, ensure_ascii=ascii_only, default=str) + "\n")


def say_written(written: Sequence[Path], out: Path, what: str, as_json: bool, **row: Any) -> None:
    """Say which files were written below a directory."""
    if as_json:
        print_json([{"event": "written", **row, "files": [str(path) for path in written]}])
    else:
        say(f"{what}: {len(written)} files below {out}")


def size_text(count: float) -> str:
    """Return bytes for people.

    Examples
    --------
    >>> size_text(2_745_434), size_text(0)
    ('2.7 MB', '0 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def span_text(seconds: float) -> str:
    """Return a duration for people.

    Examples
    --------
    >>> span_text(42.0), span_text(5700.0)
    ('42 s', '1 h 35 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
