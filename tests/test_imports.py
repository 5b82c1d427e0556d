"""What may import what: seen in a fresh interpreter, in the source, and by import-linter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PACKAGES = ("ingest", "store", "query", "render")
MODELS = {"torch", "torchvision", "transformers", "jax"}
PICTURES = {"cv2", "av", "PIL", "matplotlib", "h5py"}

SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def imported_by(cwd: Path, *arguments: str) -> set[str]:
    """Top-level names of every module that a fresh interpreter imports for a command."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    rest = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 0, "\n".join(rest)
    names = re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE)
    return {name.partition(".")[0] for name in names}


def test_imports_are_seen(tmp_path: Path) -> None:
    """The other tests are worth nothing if this way of looking misses a module."""
    assert imported_by(tmp_path, "-c", "import attnstore, cv2") >= {"attnstore", "cv2", "numpy"}


@pytest.mark.parametrize(
    ("arguments", "never"),
    [
        (("-c", "import attnstore"), MODELS | PICTURES),
        (("-c", "import attnstore.store"), MODELS | PICTURES),
        (("-c", "import attnstore.query"), MODELS),
        (("-c", "import attnstore.render"), MODELS),
        (("-c", "import attnstore.ingest"), MODELS),
        (("-m", "attnstore", "--help"), MODELS),
        ((str(BIN / "attnstore"), "--help"), MODELS),
    ],
    ids=lambda value: " ".join(Path(v).name for v in value) if isinstance(value, tuple) else "",
)
def test_no_model_library_is_imported(
    arguments: tuple[str, ...], never: set[str], tmp_path: Path
) -> None:
    imported = imported_by(tmp_path, *arguments)
    assert "attnstore" in imported
    assert not imported & never


def test_a_store_is_opened_and_verified_without_its_catalog(tmp_path: Path) -> None:
    """Most of the second that a short question took were DuckDB, zarr and xarray, which it did not ask."""
    said = "import sys; from attnstore.store.opening import create_store as c; "
    said += "from attnstore.store.commits.verify import verify; "
    said += f"assert not list(verify(c({str(tmp_path / 'lab.attn')!r}), quick=True))"
    imported = imported_by(tmp_path, "-c", said)
    assert "attnstore" in imported
    assert not imported & {"duckdb", "zarr", "xarray", "pandas", "fsspec"}


def test_a_checkout_is_importable_from_its_top_folder() -> None:
    """There, ``attnstore/`` is found before the editable install and holds no ``store``."""
    assert "attnstore" in imported_by(ROOT, "-c", "import attnstore.store, attnstore.query")


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_relative_inside_a_package_and_absolute_across(file: Path) -> None:
    """Else a class has two identities for type checkers; and nothing imports the front door."""
    package, *inner = file.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level <= len(inner), f"{where}: a relative import leaves {package}/"
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "attnstore":
            names = [f"attnstore.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
        for name in names:
            top, _, below = name.partition(".")
            if top == "attnstore":
                part = below.partition(".")[0]
                assert part != package, f"{where}: import {name} relatively"
                assert part in PACKAGES, f"{where}: {name!r} is the front door"
            assert top not in PACKAGES, f"{where}: {name} must be attnstore.{name}"


def test_import_linter_sees_every_module_and_keeps_every_contract() -> None:
    done = subprocess.run(
        [BIN / "lint-imports", "--config", ROOT / "pyproject.toml", "--no-cache", "--no-logo"],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=120,
    )
    files = [*SOURCES, *(ROOT / "attnstore").glob("*.py")]
    analysed = re.search(r"Analyzed (\d+) files", done.stdout)
    assert analysed is not None, done.stdout + done.stderr
    assert int(analysed[1]) >= len(files), "the link tree is stale: run `make links`"
    assert done.returncode == 0, done.stdout
