"""The command line in a process of its own, as a user meets it, and a small store to ask."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from store_fixtures import write_episode

from attnstore.store.opening import create_store

NAME = "success/2025-01-01/2025-01-01_10-00-00"


def run(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
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
