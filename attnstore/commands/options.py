"""What every command says the same way: STORE, the episodes, the maps, where to write."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from attnstore.store.errors import UsageError

from .output import say

if TYPE_CHECKING:
    from attnstore.ingest.work import Workers
    from attnstore.query import Episode, Store
    from attnstore.query.sql.chosen import Chosen

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
CONFIG = "attnstore.toml"
StoreName = Path | str
"""A store as it is named on the command line: its path, or its URL."""


class _Documented(click.Command):
    """Shows the ``Examples`` section of a command's docstring line by line, as it is written."""

    examples: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        text, marked, examples = inspect.cleandoc(self.help or "").partition(
            "\nExamples\n--------\n"
        )
        if marked:
            self.help = text.strip()
            self.examples = tuple(examples.strip().splitlines())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{' ' * formatter.current_indent}{line}".rstrip() + "\n")
        super().format_epilog(ctx, formatter)


class StoreCommand(_Documented):
    """A command whose first argument, STORE, may be left out where the surroundings name the store.

    If one argument fewer is given than the command takes, the missing one is STORE.
    """

    def make_parser(self, ctx: click.Context) -> Any:
        """Return a parser that moves the arguments to their places."""
        parser: Any = super().make_parser(ctx)
        names = [p.name for p in self.params if isinstance(p, click.Argument) and p.nargs == 1]
        if not names or names[0] != "store":
            return parser
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            options, rest, order = parse(args)
            asked = self.get_help_option(ctx)  # what click calls it differs between its versions
            if asked is not None and options.get(str(asked.name)) is True:
                return options, rest, order
            given = [options[n] for n in names if isinstance(options.get(n), str)]
            expected = names[: self.expected_arguments(options, given)]
            if len(given) == len(expected) - 1 and _surrounding() is not None:
                options[names[0]] = None
                options.update(zip(expected[1:], given, strict=True))
            elif len(given) < len(expected):
                shown = " ".join(str(n).upper() for n in expected)
                raise UsageError(
                    f"no store: {ctx.command_path} takes {shown} and got {len(given)} of "
                    f"{len(expected)} arguments"
                    + (f" ({' '.join(given)})" if given else "")
                    + f'; name the store first, set ATTNSTORE, or put store = "PATH" in {CONFIG}'
                )
            return options, rest, order

        parser.parse_args = parse_args
        return parser

    def expected_arguments(self, options: dict[str, Any], given: Sequence[str]) -> int:
        """How many arguments the command takes with these options, STORE among them."""
        return sum(isinstance(p, click.Argument) for p in self.params)


class StoreGroup(_Documented, click.Group):
    """A group of such commands."""

    command_class = StoreCommand


StoreGroup.group_class = StoreGroup


def _surrounding() -> StoreName | None:
    """Return the store that the environment or the project's file names."""
    if named := os.environ.get("ATTNSTORE"):
        return _path_or_url(named)
    here = Path.cwd()
    for directory in (here, *here.parents):
        file = directory / CONFIG
        if file.is_file():
            try:
                store = tomllib.loads(file.read_text()).get("store")
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise UsageError(f"{file}: {error}") from None
            if isinstance(store, str):
                return store if "://" in store else directory / store
    return None


def _path_or_url(name: str) -> StoreName:
    return name if "://" in name else Path(name)


def _to_read(context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    if context.resilient_parsing:
        return value
    if isinstance(value, tuple):
        if value:
            return tuple(map(_path_or_url, value))
        found = _surrounding()
        return () if found is None else (found,)
    return _surrounding() if value is None else _path_or_url(value)


def _to_write(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    named = _to_read(context, parameter, value)
    other = isinstance(named, str) and not named.startswith(("s3://", "file://"))
    if other and not context.resilient_parsing:
        raise UsageError(
            f"{named} is read-only: this command writes to a store, on this machine or at s3:// "
            "(attnstore pull makes a local copy)"
        )
    return named


store_to_read = click.argument("store", required=False, callback=_to_read)
"""Adds STORE, a path or a URL; the command gets it as ``store: StoreName``."""
store_to_write = click.argument("store", required=False, callback=_to_write)
"""Adds STORE, a path or an s3:// URL; the command gets it as ``store: StoreName``."""


def on_this_machine(store: StoreName) -> Path:
    """Return the path of a store that is not in a bucket.

    Raises
    ------
    UsageError
        If it is.
    """
    if not isinstance(store, Path):
        raise UsageError(f"{store}: this command takes a store on this machine, by its path")
    return store


stores_to_read = click.argument(
    "stores", nargs=-1, required=False, callback=_to_read, metavar="[STORE]..."
)
"""Adds any number of stores; the command gets them as ``stores: tuple[StoreName, ...]``."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print NDJSON on stdout.")
"""Adds ``--json``: one JSON object a line on stdout."""


def _mistake(param: click.Parameter | None, reason: str) -> UsageError:
    """Return the one-line error of an option's value."""
    name = param.opts[0] if param is not None and param.opts[0].startswith("-") else None
    return UsageError(
        f"{name} {reason}"
        if name
        else f"{param.human_readable_name if param else ''} {reason}".strip()
    )


class OutputPath(click.Path):
    """A file or a directory to write; found out to be impossible before the work, not after it."""

    def __init__(self, *, directory: bool, suffixes: Sequence[str] = ()) -> None:
        super().__init__(file_okay=not directory, dir_okay=directory, path_type=Path)
        self._directory, self._suffixes = directory, tuple(suffixes)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Check what can be checked without writing."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if self._suffixes and path.suffix not in self._suffixes:
            raise _mistake(
                param,
                f"takes a file named {', '.join('*' + s for s in self._suffixes)}; got {path}",
            )
        above = path if self._directory else path.parent
        while not above.exists() and above != above.parent:
            above = above.parent
        if not above.is_dir():
            raise _mistake(param, f"{path} cannot be made: {above} is a file")
        writable = path if path.exists() and not self._directory else above
        if not os.access(writable, os.W_OK):
            raise _mistake(param, f"{path} cannot be written: no permission in {writable}")
        return path


def out_directory(
    help: str, *, required: bool = True, default: Path | None = None
) -> Callable[[F], F]:
    """Add ``--out``, a directory."""
    return click.option(
        "--out",
        metavar="DIRECTORY",
        type=OutputPath(directory=True),
        required=required and default is None,
        default=default,
        show_default=default is not None,
        help=help,
    )


def out_file(help: str, *suffixes: str, required: bool = False) -> Callable[[F], F]:
    """Add ``--out``, a file."""
    return click.option(
        "--out",
        metavar="FILE",
        type=OutputPath(directory=False, suffixes=suffixes),
        required=required,
        help=help,
    )


class NumberList(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """Numbers and ranges, ``0,3,8-11``; the command gets a tuple, ascending.

    Examples
    --------
    >>> NumberList().convert("4,0-2,1", None, None)
    (0, 1, 2, 4)
    """

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the text."""
        if isinstance(value, tuple):
            return value
        numbers: set[int] = set()
        for part in str(value).split(","):
            ends = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part, re.ASCII)
            if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
                raise _mistake(
                    param, f"takes numbers and ranges such as 1,4,5 or 0-17; got {value!r}"
                )
            numbers |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
        return tuple(sorted(numbers))


class FiniteNumber(click.FloatRange):
    """A number within limits: click compares NaN with them, and lets it through."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse the text."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            raise _mistake(param, f"takes a finite number; got {value!r}")
        return number

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


class StepNumber(click.ParamType):  # type: ignore[type-arg]  # as above
    """A step of a stepped phase: a number, negative ones from the end, ``first``, ``last``, ``all``."""

    name = "step"

    def __init__(self, *, every: bool = False) -> None:
        self._every = every

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Parse the text."""
        named = {"first": 0, "last": -1}
        if value in named:
            return named[value]
        if value == "all" and self._every:
            return "all"
        try:
            return int(value)
        except ValueError:
            words = "first, last, all" if self._every else "first, last"
            raise _mistake(param, f"takes {words} or a number; got {value!r}") from None


layers_option = click.option(
    "--layers", metavar="LIST", type=NumberList(), help="Layers: 1,4,5 or 0-17.  [default: all]"
)
phases_option = click.option(
    "--phase", "phases", metavar="NAME", multiple=True, help="Only this phase; repeatable."
)
phase_option = click.option(
    "--phase", metavar="NAME", help="Phase.  [default: suffix, or the last that the policy has]"
)
cameras_option = click.option(
    "--camera", "cameras", metavar="NAME", multiple=True, help="Only this camera; repeatable."
)
query_option = click.option(
    "--query", metavar="GROUP", help="Query tokens.  [default: the phase's first group]"
)
step_option = click.option(
    "--step",
    metavar="first|last|N",
    type=StepNumber(),
    help="Step: of denoising, or the generated token.  [default: last of suffix, first of decode]",
)


active_option = click.option(
    "--active",
    type=click.Choice(["image", "lab"]),
    default="image",
    show_default=True,
    help="The most active head is that whose map has the largest variance: over the patches that "
    "show image, or (lab) over the whole grid, letterbox included.",
)


weighting_option = click.option(
    "--weighting",
    type=click.Choice(["raw", "value"]),
    default="raw",
    show_default=True,
    help="value: attention times the norm of what each token adds through the head.",
)


def grouped(name: str, make: Callable[..., Any], *options: Any) -> Callable[[F], F]:
    """Add options that reach the command as one value.

    Parameters
    ----------
    name
        Parameter of the command that gets the value.
    make
        Makes it of the options' values, by name.
    options
        Decorators of click, in the order in which help lists them.
    """

    def nothing() -> None: ...

    for option in options:
        option(nothing)
    keys = [p.name for p in nothing.__click_params__]  # type: ignore[attr-defined]

    def add(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            own = {key: given.pop(key) for key in keys}
            return function(*args, **given, **{name: make(**own)})

        added: Any = command
        for option in reversed(options):
            added = option(added)
        return added  # type: ignore[no-any-return]

    return add


@dataclass(frozen=True, slots=True)
class EpisodeChoice:
    """Which committed episodes a command is about."""

    names: tuple[str, ...] = ()
    """Names or globs; all if there are none."""
    where: str | None = None
    """SQL condition on the table ``episodes``."""
    run: str | None = None
    limit: int | None = None

    @property
    def text(self) -> str | None:
        """The choice in words, for a page; None where everything is chosen."""
        named = f"episode {', '.join(self.names)}" if self.names else None
        return " and ".join(t for t in (named, self.where) if t is not None) or None

    def by_run(self, store: Store) -> list[Chosen]:
        """Choose them, run by run; raises as `attnstore.query.sql.chosen.choose`."""
        from attnstore.query.sql.chosen import choose

        return choose(store, self.run, self.where, self.names, self.limit)

    def of_one_run(self, store: Store) -> Chosen:
        """Choose them; raises UsageError if they are of several runs."""
        chosen = self.by_run(store)
        if len(chosen) > 1:
            listed = ", ".join(each.run for each in chosen)
            raise UsageError(f"{len(chosen)} runs; choose one with --run: {listed}")
        return chosen[0]

    def open(self, store: Store) -> list[Episode]:
        """Open them, in order of run and name."""
        return [
            store.episode(episode, run=each.run)
            for each in self.by_run(store)
            for episode in each.episodes
        ]

    def open_one(self, store: Store) -> Episode:
        """Open the first of a run; raises UsageError if they are of several."""
        chosen = self.of_one_run(store)
        return store.episode(chosen.episodes[0], run=chosen.run)


revision_option = click.option("--revision", help="Hub revision of the checkpoint.")
adapter_options = click.option(
    "--policy-option", "pairs", multiple=True, metavar="KEY=VALUE", help="Adapter option."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the forecast and stop.")


def names_option(parameter: str) -> Callable[[F], F]:
    """Add ``--episode``, which names episodes of a store and of a dataset alike."""
    return click.option(
        "--episode",
        parameter,
        metavar="NAME|GLOB",
        multiple=True,
        help="Only this episode: its name, the name's last part, or a pattern of one; repeatable.",
    )


_WHERE = click.option(
    "--where",
    metavar="SQL",
    help="Only episodes for which this holds, in columns of the table episodes: "
    "\"outcome = 'failure'\".",
)
_RUN = click.option("--run", metavar="RUN", help="Only this run.")
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="At most this many episodes."
)

episode_options = grouped("episodes", EpisodeChoice, names_option("names"), _WHERE, _RUN)
"""Adds ``--episode``, ``--where`` and ``--run``; the command gets ``episodes: EpisodeChoice``."""
episode_options_with_limit = grouped(
    "episodes", EpisodeChoice, names_option("names"), _WHERE, _RUN, limit_option
)
"""The same with ``--limit``."""


@dataclass(frozen=True, slots=True)
class WorkersChoice:
    """Who does the work, and which share of it is this command's."""

    workers: int = 1
    scheduler: str | None = None
    shard: str | None = None

    def on(self, device: str) -> Workers:
        """Return the workers, checked to be possible."""
        from attnstore.ingest.work import Workers

        workers = Workers(self.workers, self.scheduler, device)
        workers.check()
        return workers

    def share(
        self, names: Sequence[T], file_of: Callable[[T], str | None] = lambda name: None
    ) -> list[T]:
        """Return this command's share of the episodes, and say which it is."""
        if self.shard is None:
            return list(names)
        from attnstore.ingest.shards import parse_shard

        shard = parse_shard(self.shard, os.environ)
        mine = shard.of(names, file_of)
        say(f"shard {shard}: {len(mine)} of {len(names)} episodes")
        return mine


workers_options = grouped(
    "workers",
    WorkersChoice,
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Processes on this machine, by Dask; each loads what it needs itself.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="Use the workers of this Dask scheduler: tcp://host:8786, or its scheduler file.",
    ),
    click.option(
        "--shard",
        metavar="I/N|auto",
        help="Only this share of the episodes, 0/N to N-1/N; auto: as SLURM's array or tasks, or "
        "RANK and WORLD_SIZE, say.",
    ),
)
"""Adds ``--workers``, ``--scheduler`` and ``--shard``; the command gets ``workers: WorkersChoice``."""


def add_options(*groups: Any) -> Callable[[F], F]:
    """Add options, in the order in which they are named."""
    listed = [o for group in groups for o in (group if isinstance(group, tuple) else (group,))]

    def add(function: F) -> F:
        for option in reversed(listed):
            function = option(function)
        return function

    return add
