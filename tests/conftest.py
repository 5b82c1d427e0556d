"""Settings that every test shares."""

from __future__ import annotations

import ast
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["cli_fixtures", "ingest_fixtures", "remote_servers", "service_fixtures"]
pytest.register_assert_rewrite("policy_contract")

# Examples are not timed: the first one of a property pays for imports and compiled kernels.
# CI tries the same examples every time: a failure there is of the change, not of the dice.
settings.register_profile("attnstore", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("attnstore")

if "PYTEST_XDIST_WORKER" in os.environ:
    # One process per core already; threads of torch and BLAS on top only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# An episode syncs hundreds of files and directories. No test here can tell that from not syncing, as
# killing a process loses nothing that was written; on a disk, half of a run is waiting for it.
MEMORY, ROOM = Path("/dev/shm"), 4 << 30
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# A laptop reads stores without these, so `make test-pins` runs without them. A test module that
# imports one, itself or through a module of fixtures/, is left out there, and said to be.
# What the product imports is no excuse: it has to do without.
TESTS = Path(__file__).parent
ABSENT = {
    library
    for library in ("torch", "torchvision", "transformers", "jax", "flax", "playwright", "rerun")
    if find_spec(library) is None
}


def imported(module: Path) -> set[str]:
    """What a test module imports when it is loaded: top-level names, fixtures' imports included."""
    names: set[str] = set()
    for statement in ast.parse(module.read_bytes()).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
            names.add(statement.module.partition(".")[0])
    fixtures = [TESTS / "fixtures" / f"{name}.py" for name in names]
    return names.union(*(imported(f) for f in fixtures if f.exists()))


collect_ignore = (
    sorted(
        m.relative_to(TESTS).as_posix() for m in TESTS.rglob("test_*.py") if imported(m) & ABSENT
    )
    if ABSENT
    else []
)


def pytest_report_header() -> list[str]:
    """What is left out, and why."""
    if not ABSENT:
        return []
    modules = ", ".join(m.removesuffix(".py") for m in collect_ignore)
    return [f"not installed: {', '.join(sorted(ABSENT))}; left out: {modules}"]
