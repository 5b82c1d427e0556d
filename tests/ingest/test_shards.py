"""Shards: each episode in exactly one, whoever asks; files cut as seldom as equal shares allow."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lerobot_fixture_datasets import DATA, TOP, V30_VIDEO, WRIST, Content, write_v21, write_v30

from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
from attnstore.ingest.shards import Shard, parse_shard
from attnstore.store.errors import UsageError

Files = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@given(Files, st.integers(1, 16), st.randoms())
def test_every_episode_is_in_one_shard_of_about_its_share(
    lengths: list[int], count: int, order: object
) -> None:
    """Episodes of files of so many each, named in any order."""
    file_of = {f"{f:02d}-{e:02d}": f"file-{f}" for f, n in enumerate(lengths) for e in range(n)}
    names = list(file_of)
    order.shuffle(names)  # type: ignore[attr-defined]
    shards = [Shard(i, count).of(names, file_of.get) for i in range(count)]
    assert sorted(n for shard in shards for n in shard) == sorted(names)
    share = len(names) / count
    assert max(map(len, shards)) <= 1.5 * share + 1
    # a file is in one run of shards, so that the files cut are fewer than the shards
    laid = [file_of[n] for shard in shards for n in shard]
    assert len([1 for a, b in pairwise(laid) if a != b]) == len(lengths) - 1


def test_a_cut_goes_to_the_boundary_of_a_file_nearby() -> None:
    files = {f"a{i}": "a" for i in range(9)} | {f"b{i}": "b" for i in range(11)}
    assert [len(Shard(i, 2).of(list(files), files.get)) for i in (0, 1)] == [9, 11]
    one = dict.fromkeys(files, "all")
    assert [len(Shard(i, 4).of(list(one), one.get)) for i in range(4)] == [5, 5, 5, 5]
    own = Shard(1, 3).of(["c", "b", "a"])
    assert own == ["b"]
    assert Shard(3, 8).of(["a", "b"]) == []


def array(number: int, count: int, low: int, high: int, step: int = 1) -> dict[str, str]:
    values = {"ID": number, "COUNT": count, "MIN": low, "MAX": high, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


class TestAuto:
    @pytest.mark.parametrize(
        ("environment", "wanted"),
        [
            (array(7, 4, 4, 7), Shard(3, 4)),
            (array(20, 4, 0, 30, 10), Shard(2, 4)),
            ({"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, Shard(1, 3)),
            ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_NTASKS": "1"}, Shard(0, 2)),
            (array(1, 2, 0, 1) | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Shard(1, 2)),
            (array(1, 2, 0, 1) | {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, Shard(6, 8)),
        ],
    )
    def test_what_launchers_say(self, environment: dict[str, str], wanted: Shard) -> None:
        assert parse_shard("auto", environment) == wanted

    @pytest.mark.parametrize(
        ("text", "environment", "said"),
        [
            (
                "auto",
                {},
                "finds none of SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, SLURM_PROCID",
            ),
            ("auto", array(3, 3, 3, 12), "this one has 3 tasks from 3 to 12: pass --shard I/N"),
            ("auto", {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x', and should be a number"),
            ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT is not set"),
            ("1", {}, "--shard is I/N, as 0/8, or auto; got '1'"),
            ("-1/2", {}, "--shard is I/N"),
            ("8/8", {}, "shard 8/8: shards are numbered from 0, I/N is 0/N to 7/8"),
            ("0/0", {}, "shard 0/0: shards are numbered from 0"),
        ],
    )
    def test_what_is_refused(self, text: str, environment: dict[str, str], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            parse_shard(text, environment)


def test_episodes_of_a_lerobot_dataset_lie_in_the_file_of_their_video(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "d")
    table = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(table).to_pydict()
    rows[f"videos/{TOP}/file_index"] = [0, 0, 1]
    rows[f"videos/{WRIST}/file_index"] = [0, 1, 2]
    pq.write_table(pa.table(rows), table)
    dataset = LeRobotDataset(root)
    names = dataset.episode_names()
    one, two = (V30_VIDEO.format(video_key=TOP, chunk_index=0, file_index=i) for i in (0, 1))
    assert [dataset.file_of(name) for name in names] == [one, one, two]
    assert Shard(0, 2).of(names, dataset.file_of) == list(names[:2])
    images = LeRobotDataset(write_v30(tmp_path / "i", Content(images=True)), cameras=["wrist"])
    assert images.file_of(names[0]) == DATA
    assert LeRobotDataset(write_v21(tmp_path / "o")).file_of(names[0]) is None
