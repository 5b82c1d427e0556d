"""``attnstore ingest lerobot`` and ``attnstore export lerobot``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot_fixture_datasets import (
    DATA,
    Content,
    edit_rows,
    replaced,
    write_v21,
    write_v30,
)

from attnstore.cli import main
from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
from attnstore.ingest.datasets.lerobot.export import export_copy
from attnstore.store.errors import AttnstoreError, UsageError

Run = Callable[..., tuple[int, str, str]]
QUERY = """
    select e.name as episode, k.frame, avg(s.entropy) as entropy, max(k.keyframe) as keyframe
    from head_stats s join keyframes k using (run, episode, variant, keyframe)
    join episodes e using (run, episode)
    where s.phase = 'suffix' and s.layer = 1 and s.camera = 'top' group by all
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("ATTNSTORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v30(tmp_path_factory.mktemp("lerobot") / "toy")


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def ingest(run: Run, dataset: Path, checkpoint: Path, store: Path, *more: object) -> Any:
    # The checkpoint's state has 8 components, the dataset's 7: the frame's number is the eighth.
    return run(
        "ingest", "lerobot", store, dataset, "--policy", "pi0", "--checkpoint", checkpoint,
        "--stride", 12, "--state-column", "observation.state", "--state-column", "frame_index",
        *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as ``lerobot-eval --eval.recording`` writes it: no robot, no names, raw frames."""
    root = write_v30(tmp_path_factory.mktemp("evaluation") / "toy")
    info = json.loads((root / "meta/info.json").read_text())
    info["robot_type"] = None
    for name, feature in info["features"].items():
        picture = feature["dtype"] in ("image", "video")
        feature["names"] = ["height", "width", "channel"] if picture else None
        assert name != "next.done"
    info["features"] |= {
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def test_an_evaluations_raw_frames_are_refused_until_it_is_said_how_the_policy_saw_them(
    run: Run, dataset: Path, evaluation: Path, checkpoint: Path, tmp_path: Path
) -> None:
    more = "--outcome-column", "next.success", "--dry-run"
    assert ingest(run, dataset, checkpoint, tmp_path / "s", *more)[0] == 0
    code, _, err = ingest(run, evaluation, checkpoint, tmp_path / "s", *more)
    assert code == 2
    assert "its frames are raw" in err
    assert "--env-processor libero" in err
    runs = set()
    for said in (["--env-processor", "libero"], ["--env-processor", "none"], ["--turn", "top=180"]):
        code, out, err = ingest(run, evaluation, checkpoint, tmp_path / "s", *more, *said, "--json")
        assert code == 0, err
        runs.add(json.loads(out.splitlines()[0])["run"])
    assert len(runs) == 3
    assert "are successes" not in err
    both = ["--env-processor", "libero", "--turn", "top=180"]
    assert "leave --turn and --flip out" in ingest(run, evaluation, checkpoint, tmp_path, *both)[2]


def test_an_outcome_column_with_successes_alone_is_said(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    won = write_v30(tmp_path / "toy", Content(successes=(0, 1, 2)))
    more = "--outcome-column", "next.success", "--dry-run"
    code, _, err = ingest(run, won, checkpoint, tmp_path / "s", *more)
    assert code == 0
    assert "next.success: all 3 episodes are successes" in err


def test_ingest_then_ask_then_export(
    run: Run, dataset: Path, checkpoint: Path, ram_path: Path, tmp_path: Path
) -> None:
    store, before = ram_path / "s", digests(dataset)
    code, _, err = ingest(
        run, dataset, checkpoint, store, "--outcome-column", "next.success",
        "--camera", "wrist", "--camera", "top",
    )  # fmt: skip
    assert code == 0, err
    query = "select name, outcome, dataset, cameras[1] as first from episodes join runs using (run)"
    code, out, err = run("sql", store, "--json", f"{query} order by name")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(r["name"], r["outcome"]) for r in rows] == [
        ("episode_000000", "success"), ("episode_000001", "failure"), ("episode_000002", "success"),
    ]  # fmt: skip
    assert {(r["dataset"], r["first"]) for r in rows} == {("lerobot:toy", "wrist")}

    target = tmp_path / "out" / "toy-attention"
    target.parent.mkdir()
    code, _, err = run("export", "lerobot", store, dataset, target, "--sql", QUERY)
    assert code == 0, err
    assert "attention.entropy, attention.keyframe, of 4 rows; next: LeRobotDataset(" in err
    code, out, _ = run("sql", store, "--json", QUERY)
    wanted = {(r["episode"], r["frame"]): r for r in map(json.loads, out.splitlines())}
    copy = pq.read_table(target / DATA).to_pylist()
    found = 0
    for row in copy:
        key = (f"episode_{row['episode_index']:06d}", row["frame_index"])
        if key in wanted:
            found += 1
            assert row["attention.entropy"] == np.float32(wanted[key]["entropy"])
            assert row["attention.keyframe"] == row["frame_index"] // 12
        else:
            assert np.isnan(row["attention.entropy"])
    assert found == len(wanted) == 4
    assert digests(dataset) == before


def test_a_broken_episode_does_not_stop_the_others(
    run: Run, checkpoint: Path, ram_path: Path, tmp_path: Path
) -> None:
    root = write_v30(tmp_path / "broken")
    edit_rows(root, lambda t: replaced(t, "task_index", 5, 1))
    code, _, err = ingest(run, root, checkpoint, ram_path / "s", "--episode", "[01]", "--dry-run")
    assert code == 5
    assert "1 of 2 episodes to do are broken" in err
    assert "1 episodes to do" in err
    assert "episode_000000: broken: an episode has one task" in err


@pytest.mark.parametrize("write", [write_v21, write_v30])
@pytest.mark.parametrize("link", [False, True])
def test_a_copy_is_a_dataset_with_more_columns(
    tmp_path: Path, write: Callable[..., Path], link: bool
) -> None:
    content = Content(images=link)
    root = write(tmp_path / "d", content)
    (root / ".cache").mkdir()
    (root / "README.md").write_text("a dataset")
    rows = [("episode_000001", 0, 0.5, 1), (2, 3, None, 2), ("episode_000002", 8, 0.25, 3)]
    added = export_copy(
        str(root), tmp_path / "copy", ("episode", "frame", "mass", "count"), rows,
        prefix="attn_", fill="hold", link_videos=link,
    )  # fmt: skip
    assert added == ("attn_mass", "attn_count")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "d"]
    ours, theirs = digests(tmp_path / "copy"), digests(root)
    changed = {p for p in theirs if ours.get(p) != theirs[p]}
    assert changed == {p for p in theirs if p == "meta/info.json" or p.startswith("data/")}
    assert set(ours) == set(theirs)
    assert all(p.is_symlink() == link for p in (tmp_path / "copy" / "videos").rglob("*.mp4"))

    info = json.loads((tmp_path / "copy/meta/info.json").read_text())
    original = json.loads((root / "meta/info.json").read_text())
    new = {name: info["features"].pop(name) for name in added}
    assert info == original
    assert set(map(str, new.values())) == {"{'dtype': 'float32', 'shape': [1], 'names': None}"}
    held = {1: {0: 0.5}, 2: {3: np.nan, 8: 0.25}}
    for path in sorted((tmp_path / "copy" / "data").rglob("*.parquet")):
        table, before = (
            pq.read_table(path),
            pq.read_table(root / path.relative_to(tmp_path / "copy")),
        )
        assert table.drop_columns(list(added)).equals(before)
        assert pq.ParquetFile(path).num_row_groups == len(set(before["episode_index"].to_pylist()))
        noted = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert list(noted) == table.column_names
        for row in table.to_pylist():
            past = [
                v for f, v in held.get(row["episode_index"], {}).items() if f <= row["frame_index"]
            ]
            np.testing.assert_equal(row["attn_mass"], past[-1] if past else np.nan)

    copy = LeRobotDataset(tmp_path / "copy", action=["action", "attn_count"])
    frame = next(iter(copy.frames("episode_000002", [9])))
    np.testing.assert_allclose(frame.action, [*content.action(2, 9), 3], rtol=1e-6)
    assert frame.cameras[0].camera == "top"


@pytest.mark.parametrize("folder", ["videos", "data", "data/chunk-000"])
def test_a_copy_follows_linked_folders(tmp_path: Path, folder: str) -> None:
    root = write_v30(tmp_path / "toy", Content())
    files = {p.relative_to(root) for p in root.rglob("*") if p.is_file()}
    (root / folder).rename(tmp_path / "elsewhere")
    (root / folder).symlink_to(tmp_path / "elsewhere")
    export_copy(str(root), tmp_path / "copy", ["episode", "frame", "x"], [["0", 0, 1.0]])
    assert {
        p.relative_to(tmp_path / "copy") for p in (tmp_path / "copy").rglob("*") if p.is_file()
    } == files
    (root / "extra").symlink_to(root)
    with pytest.raises(UsageError, match="is a link to a folder that it lies in"):
        export_copy(str(root), tmp_path / "round", ["episode", "frame", "x"], [["0", 0, 1.0]])
    (root / "extra").unlink()
    (root / "extra").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="extra is a link to .*, which is not there"):
        export_copy(str(root), tmp_path / "dangling", ["episode", "frame", "x"], [["0", 0, 1.0]])


@pytest.mark.parametrize(
    ("names", "row", "message"),
    [
        ("episode frame", ("episode_000000", 0), "gives the columns episode"),
        ("name frame x", ("episode_000000", 0, 1), "it gives name, frame, x"),
        ("episode frame x", ("success/a", 0, 1), "no episode 'success/a'; select episodes.name"),
        ("episode frame x", ("episode_000001", 9, 1), "frames 0 to 8; the query gives 9"),
        ("episode frame x", ("episode_000001", 0.5, 1), "the query gives 0.5"),
        ("episode frame x", (1, 0, "high"), "column 'x' of the query holds numbers; it has 'high'"),
        ("episode frame avg(x)", (1, 0, 1), "name the column with `as`"),
    ],
)
def test_rows_that_are_not_numbers_per_frame_are_refused(
    dataset: Path, tmp_path: Path, names: str, row: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        export_copy(str(dataset), tmp_path / "copy", names.split(), [row])
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_targets_and_names_that_would_do_harm_are_refused(dataset: Path, tmp_path: Path) -> None:
    names, row = ("episode", "frame", "x"), (0, 0, 1.0)
    before = digests(dataset)
    cases: list[tuple[Path, list[Any], dict[str, Any], str]] = [
        (tmp_path, [row], {}, "exists; name a folder that does not"),
        (dataset / "copy", [row], {}, "lies inside the dataset"),
        (tmp_path / "c", [row, row], {}, "two for episode_000000 frame 0"),
        (tmp_path / "c", [], {}, "the query gives no rows"),
        (tmp_path / "c", [row], {"fill": "last"}, "fill is one of nan, hold"),
        (tmp_path / "c", [row], {"prefix": "a/"}, "letters, digits"),
    ]
    for target, rows, options, message in cases:
        with pytest.raises(UsageError, match=message):
            export_copy(str(dataset), target, names, rows, **options)
    with pytest.raises(UsageError, match="has a feature 'action' already"):
        export_copy(str(dataset), tmp_path / "c", ("episode", "frame", "action"), [row], prefix="")
    assert digests(dataset) == before


def test_an_unreadable_original_leaves_no_half_copy(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "d")
    (root / DATA).write_bytes(b"PAR1 broken")
    with pytest.raises(AttnstoreError, match=f"{DATA} .11 bytes. is not readable as Parquet"):
        export_copy(str(root), tmp_path / "c", ("episode", "frame", "x"), [(0, 0, 1.0)])
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
