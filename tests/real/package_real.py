"""What is published, in environments that hold nothing else: `make test-package`, which builds dist/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
UV = Path(sys.executable).with_name("uv")
EPISODE = "select name from episodes order by all limit 1"


def clean() -> dict[str, str]:
    """The environment of somebody who has no checkout."""
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "ATTNSTORE")
    return {name: value for name, value in os.environ.items() if name not in ours}


def call(
    *words: str | Path, cwd: Path, code: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=clean() | more, text=True, capture_output=True,
        timeout=1200,
    )  # fmt: skip
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def built(pattern: str) -> Path:
    (file,) = DIST.glob(pattern)
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    shutil.unpack_archive(ROOT / "tests" / "golden" / "store.tar.gz", folder, filter="data")
    (marker,) = folder.rglob("attnstore.json")
    return marker.parent


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_a_laptop_needs_no_torch(pattern: str, tmp_path: Path, store: Path) -> None:
    home = tmp_path / "env"
    call(UV, "venv", "--quiet", "--python", sys.executable, home, cwd=tmp_path)
    python, attnstore = home / "bin" / "python", home / "bin" / "attnstore"
    call(UV, "pip", "install", "--quiet", "--python", python, built(pattern), cwd=tmp_path)

    said = call(attnstore, "--version", cwd=tmp_path).stdout
    assert "torch is not installed" in said
    listed = call(UV, "pip", "list", "--quiet", "--python", python, cwd=tmp_path).stdout.split()
    assert not {"torch", "transformers", "jax", "h5py", "nvidia-cublas"} & {*listed}

    where = call(python, "-c", "import attnstore; print(attnstore.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(home)
    call(attnstore, "verify", store, cwd=tmp_path)
    name = call(attnstore, "sql", store, EPISODE, "--csv", cwd=tmp_path).stdout.split()[1]
    drawn = ("--out", "pictures", "--layers", "0", "--heads", "active", "--episode", name)
    call(attnstore, "render", "images", store, *drawn, cwd=tmp_path)
    assert list((tmp_path / "pictures").rglob("*.jpg"))
    call(attnstore, "report", store, "--out", "report", cwd=tmp_path)
    call(attnstore, "export", "pack", store, "--out", "pack", cwd=tmp_path, code=2)  # needs serve

    says = call(attnstore, "demo", cwd=tmp_path, code=2).stderr.splitlines()
    assert len(says) == 1
    assert "pip install 'attnstore[ingest]'" in says[0]
    assert not (tmp_path / "demo-output").exists()
    for shell in ("bash", "zsh", "fish"):
        script = call(attnstore, cwd=tmp_path, _ATTNSTORE_COMPLETE=f"{shell}_source").stdout
        assert "_ATTNSTORE_COMPLETE" in script


def test_the_demo_runs_without_an_installation(tmp_path: Path) -> None:
    """As `uvx --from 'attnstore[ingest]' attnstore demo` does, from the wheel."""
    wheel = f"{built('*.whl')}[ingest]"
    said = call(UV, "tool", "run", "--from", wheel, "attnstore", "demo", cwd=tmp_path).stderr
    # what it says comes next is a command that is there
    assert "uvx --from 'attnstore[serve]' attnstore serve demo-output/demo.attn --open" in said
    question = ("attnstore", "sql", "demo-output/demo.attn", "from episodes", "--json")
    rows = call(UV, "tool", "run", "--from", built("*.whl"), *question, cwd=tmp_path).stdout
    assert len(rows.splitlines()) == 12
    assert len(list((tmp_path / "demo-output" / "pictures").rglob("*.webm"))) > 1
    assert (tmp_path / "demo-output" / "report" / "report.html").is_file()
