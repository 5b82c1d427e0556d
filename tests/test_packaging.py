from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import attnstore

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS = ("attnstore", "ingest", "store", "query", "render")


def source_files() -> list[Path]:
    return sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def test_every_folder_with_code_is_a_listed_package() -> None:
    """One that is not listed works in a checkout and is missing from the wheel."""
    with_code = {file.parent.relative_to(ROOT).as_posix() for file in source_files()}
    listed = {SETUPTOOLS["package-dir"][package] for package in SETUPTOOLS["packages"]}
    assert listed == with_code
    for folder in with_code:
        assert (ROOT / folder / "__init__.py").is_file(), f"{folder}/ has no __init__.py"


def test_the_link_tree_has_every_module() -> None:
    trees = list((ROOT / "build").glob("__editable__.attnstore-*"))
    assert len(trees) == 1, "run `make links`"
    links = {link.resolve() for link in trees[0].rglob("*.py")}
    missing = [str(f.relative_to(ROOT)) for f in source_files() if f.resolve() not in links]
    assert not missing, "new files are not installed: run `make links`"


def test_metadata() -> None:
    installed = metadata.metadata("attnstore")
    assert installed["License-Expression"] == "Apache-2.0"
    assert attnstore.__version__ == installed["Version"] == PYPROJECT["project"]["version"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in licence
    assert "Copyright The attnstore authors" in licence


def test_one_version_in_every_place() -> None:
    """A release changes it in pyproject.toml, the package and the citation."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {attnstore.__version__}\n" in citation
    assert f"\nlicense: {PYPROJECT['project']['license']}\n" in citation


def test_every_extra_has_its_size_in_the_docs() -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    extras = {*PYPROJECT["project"]["optional-dependencies"]}
    elsewhere = {
        "lerobot",
        "octo",
        "openpi",
        "openvla",
        "openvla-oft",
    }  # environments of those projects
    inside = {"dev", "sim"}  # of a checkout
    for extra in extras - elsewhere - inside:
        assert f"`attnstore[{extra}]`" in page, extra


def test_the_base_install_has_no_model_library() -> None:
    base = [r for r in metadata.requires("attnstore") or [] if "extra ==" not in r]
    assert base
    assert not [r for r in base if r.startswith(("torch", "transformers", "jax", "h5py"))]


def test_the_lowest_versions_are_the_floors_that_users_are_told() -> None:
    """`make test-pins PINS=lowest` runs what pyproject promises."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    told = PYPROJECT["project"]["dependencies"] + [
        r
        for extra in ("ingest", "serve", "s3", "gcs", "http", "hf", "dask", "learn")
        for r in extras[extra]
    ]
    floors = {}
    for requirement in map(Requirement, told):
        (floor,) = requirement.specifier
        assert floor.operator == ">=", f"{requirement} has no floor"
        floors[requirement.name] = Version(floor.version)
    lines = (ROOT / "constraints" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.partition(" ")[0].split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(pin) for name, pin in pins.items()} == floors


def test_entry_points_lead_somewhere() -> None:
    points = metadata.distribution("attnstore").entry_points
    assert {p.group for p in points} >= {"console_scripts", "attnstore.policies"}
    for point in points:
        assert callable(point.load())


def test_the_wheel_has_one_top_level_package(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "."]
    subprocess.run([*pip, *options], cwd=tmp_path, check=True, timeout=120)
    (wheel,) = (tmp_path / "wheels").iterdir()

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {name.partition("/")[0] for name in names} == {
        "attnstore",
        f"attnstore-{attnstore.__version__}.dist-info",
    }
    data = (f for f in (ROOT / "attnstore").rglob("*") if f.is_file() and f.suffix != ".pyc")
    assert names >= {f.relative_to(ROOT).as_posix() for f in data}
    page = {f for f in (ROOT / "render" / "viewer").rglob("*") if f.is_file()}
    typed = {f for f in page if f.name.endswith(".d.ts")}  # for the type checker alone
    shipped_page = {n for n in names if n.startswith("attnstore/render/viewer/")}
    assert shipped_page == {f"attnstore/{f.relative_to(ROOT).as_posix()}" for f in page - typed}
    installed = {
        Path("attnstore", *f.relative_to(ROOT).parts)
        .as_posix()
        .removeprefix("attnstore/attnstore/")
        for f in source_files()
    }
    shipped = {n.removeprefix("attnstore/") for n in names if n.endswith(".py")}
    assert shipped == {n.removeprefix("attnstore/") for n in installed}

    code = "import attnstore.store; print(attnstore.store.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "site",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith(str(tmp_path))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_an_old_python_in_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "install", f"PYTHON={old}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode != 0
    says = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    wanted = f"attnstore needs Python 3.11 or newer: {old} is Python 3.9.2; set PYTHON="
    assert len(says) == 1
    assert says[0].startswith(wanted)
    assert not (tmp_path / ".venv").exists()
