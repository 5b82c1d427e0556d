"""The command line, and a small store to ask."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click
import pytest
from store_fixtures import write_episode

from attnstore.cli import main
from attnstore.store.opening import create_store

NAME = "success/2025-01-01/2025-01-01_10-00-00"


def run(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line here, through its own `main`: what it prints, and its exit code.

    A process of its own takes a second and a half, most of it imports. `run_process` is for what
    only a process has: a locale, its own options of help, modules that must not be imported.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with (
        mock.patch.dict(os.environ, environment),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        if "ATTNSTORE" not in environment:
            os.environ.pop("ATTNSTORE", None)
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
    printed = []
    for stream in (out, err):
        stream.flush()
        printed.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(arguments, code, *printed)


def run_process(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k != "ATTNSTORE"} | environment
    return subprocess.run(
        [sys.executable, "-m", "attnstore", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        check=False,
    )


@pytest.fixture(scope="module", name="root")
def make_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = create_store(tmp_path_factory.mktemp("cli") / "lab.attn")
    write_episode(paths, NAME, seed=1)
    write_episode(paths, "failure/2025-01-01/2025-01-01_11-00-00", "failure", seed=2)
    return paths.root


def every_command(
    group: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(path), group
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from every_command(command, (*path, name))


def assert_one_line(process: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    line = process.stderr.strip()
    assert "\n" not in line
    assert line.startswith("attnstore: ")
    for part in says:
        assert part in line
