"""Small LeRobotDatasets, written from the format's description: real Parquet, real videos."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

FPS = 10
SIZE = (48, 64)
TOP, WRIST = "observation.images.top", "observation.images.wrist"
TASKS = ("place the green cube into the pink bowl", "wipe the table")
LENGTHS = (17, 9, 12)
V21_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V21_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V30_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = V30_DATA.format(chunk_index=0, file_index=0)
V30_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True)
class Content:
    """What the written episodes hold, to compare with what is read."""

    lengths: tuple[int, ...] = LENGTHS
    successes: tuple[int, ...] = (0, 2)
    images: bool = False
    """The wrist camera's images lie in the Parquet file."""

    def picture(self, episode: int, camera: str, frame: int) -> NDArray[np.uint8]:
        """A picture whose grey level says which it is, and whose gradient which way is up."""
        level = 20 + 10 * frame + 3 * episode + (0 if camera == TOP else 40)
        rows = np.linspace(0, 20, SIZE[0]).astype(np.uint8)[:, None, None]
        return np.broadcast_to(np.uint8(level) + rows, (*SIZE, 3)).copy()

    def state(self, episode: int, frame: int) -> list[float]:
        return [episode + frame / 8 + joint / 100 for joint in range(7)]

    def action(self, episode: int, frame: int) -> list[float]:
        return [value + 0.5 for value in self.state(episode, frame)[:4]]

    def task(self, episode: int) -> int:
        return episode % len(TASKS)

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        video = {
            "dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"],
            "info": {"video.fps": FPS, "video.codec": "h264", "video.is_depth_map": False},
        }  # fmt: skip
        depth = {**video, "dtype": "image", "info": {"is_depth_map": True}}
        still = {"dtype": "image", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
        names = [f"joint_{i}" for i in range(7)]
        scalars = {
            name: {"dtype": kind, "shape": [1], "names": None}
            for name, kind in {
                "next.success": "bool", "timestamp": "float32", "frame_index": "int64",
                "episode_index": "int64", "index": "int64", "task_index": "int64",
            }.items()
        }  # fmt: skip
        return {
            "observation.state": {"dtype": "float32", "shape": [7], "names": names},
            "action": {"dtype": "float32", "shape": [4], "names": names[:4]},
            TOP: video,
            WRIST: still if self.images else video,
            **({"observation.depth": depth} if self.images else {}),
            **scalars,
        }

    def rows(self, episode: int) -> dict[str, list[Any]]:
        length, first = self.lengths[episode], sum(self.lengths[:episode])
        frames = range(length)
        rows: dict[str, list[Any]] = {
            "observation.state": [self.state(episode, f) for f in frames],
            "action": [self.action(episode, f) for f in frames],
            "next.success": [episode in self.successes and f == length - 1 for f in frames],
            "timestamp": [f / FPS for f in frames],
            "frame_index": list(frames),
            "episode_index": [episode] * length,
            "index": [first + f for f in frames],
            "task_index": [self.task(episode)] * length,
        }
        if self.images:
            shots = [self.picture(episode, WRIST, f) for f in frames]
            rows[WRIST] = [{"bytes": png(shot), "path": None} for shot in shots]
            rows["observation.depth"] = [{"bytes": b"", "path": None}] * length
        return rows

    @property
    def video_columns(self) -> list[str]:
        return [key for key, f in self.features.items() if f["dtype"] == "video"]

    def schema(self) -> pa.Schema:
        """Arrow schema with the metadata that the datasets library writes and reads."""
        kinds: dict[str, tuple[pa.DataType, Any]] = {}
        for key, feature in self.features.items():
            if feature["dtype"] == "video":
                continue
            if feature["dtype"] == "image":
                kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                kinds[key] = (kind, {"_type": "Image"})
                continue
            scalar = pa.type_for_alias(feature["dtype"])
            value = {"dtype": feature["dtype"], "_type": "Value"}
            (length,) = feature["shape"]
            if length == 1:
                kinds[key] = (scalar, value)
            else:
                listed = {"feature": value, "length": length, "_type": "Sequence"}
                kinds[key] = (pa.list_(scalar, length), listed)
        described = {"info": {"features": {key: made for key, (_, made) in kinds.items()}}}
        return pa.schema(
            [(key, kind) for key, (kind, _) in kinds.items()],
            metadata={"huggingface": json.dumps(described)},
        )

    def table(self, episode: int) -> pa.Table:
        return pa.table(self.rows(episode), schema=self.schema())

    def info(self, version: str) -> dict[str, Any]:
        packed = version == "v3.0"
        info = {
            "codebase_version": version,
            "robot_type": "toy",
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "total_tasks": len(TASKS),
            "chunks_size": 1000,
            "fps": FPS,
            "splits": {"train": f"0:{len(self.lengths)}"},
            "data_path": V30_DATA if packed else V21_DATA,
            "video_path": V30_VIDEO if packed else V21_VIDEO,
            "features": self.features,
        }
        if packed:
            return info | {"data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
        videos = len(self.lengths) * len(self.video_columns)
        return info | {"total_chunks": 1, "total_videos": videos}


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encode as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def write_video(path: Path, pictures: Sequence[NDArray[np.uint8]], gop: int = 5) -> None:
    """Encode pictures with B-frames, so that decoding order is not display order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"crf": "10", "g": str(gop), "bf": "2", "preset": "ultrafast"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_v21(root: Path, content: Content = Content()) -> Path:
    """Write version 2.1: a Parquet and a video file an episode, JSON lines in ``meta/``."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(content.info("v2.1"), indent=4))
    _lines(meta / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(TASKS)])
    described, statistics = [], []
    for episode, length in enumerate(content.lengths):
        task = TASKS[content.task(episode)]
        described.append({"episode_index": episode, "tasks": [task], "length": length})
        statistics.append({"episode_index": episode, "stats": _statistics(content, [episode])})
        data = root / V21_DATA.format(episode_chunk=0, episode_index=episode)
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content.table(episode), data)
        for camera in content.video_columns:
            video = V21_VIDEO.format(episode_chunk=0, episode_index=episode, video_key=camera)
            frames = range(length)
            write_video(root / video, [content.picture(episode, camera, f) for f in frames])
    _lines(meta / "episodes.jsonl", described)
    _lines(meta / "episodes_stats.jsonl", statistics)
    return root


def write_v30(root: Path, content: Content = Content(), *, extra: Mapping[str, Any] = {}) -> Path:
    """Write version 3.0: all episodes in one Parquet file, with a row group each, and one video.

    `extra` are columns of ``meta/episodes``.
    """
    meta = root / "meta"
    (meta / "episodes" / "chunk-000").mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(content.info("v3.0"), indent=4))
    episodes = range(len(content.lengths))
    (meta / "stats.json").write_text(json.dumps(_statistics(content, list(episodes))))
    # pandas names an index that has no name like this
    tasks = pa.table({"task_index": range(len(TASKS)), "__index_level_0__": TASKS})
    columns = [
        {
            "name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy,
            "metadata": None,
        }
        for name, field, kind, numpy in (
            ("task_index", "task_index", "int64", "int64"),
            (None, "__index_level_0__", "unicode", "object"),
        )
    ]  # fmt: skip
    index = {
        "index_columns": ["__index_level_0__"], "columns": columns, "column_indexes": [],
        "pandas_version": "2.2.0",
    }  # fmt: skip
    pq.write_table(
        tasks.replace_schema_metadata({"pandas": json.dumps(index)}), meta / "tasks.parquet"
    )
    starts = np.cumsum([0, *content.lengths]).tolist()
    rows: dict[str, list[Any]] = {
        "episode_index": list(episodes),
        "tasks": [[TASKS[content.task(e)]] for e in episodes],
        "length": list(content.lengths),
        "dataset_from_index": starts[:-1],
        "dataset_to_index": starts[1:],
        "data/chunk_index": [0 for _ in episodes],
        "data/file_index": [0 for _ in episodes],
        "meta/episodes/chunk_index": [0 for _ in episodes],
        "meta/episodes/file_index": [0 for _ in episodes],
        "stats/timestamp/max": [[(n - 1) / FPS] for n in content.lengths],
        **{key: list(values) for key, values in extra.items()},
    }
    for camera in content.video_columns:
        rows |= {
            f"videos/{camera}/chunk_index": [0 for _ in episodes],
            f"videos/{camera}/file_index": [0 for _ in episodes],
            f"videos/{camera}/from_timestamp": [s / FPS for s in starts[:-1]],
            f"videos/{camera}/to_timestamp": [s / FPS for s in starts[1:]],
        }
        write_video(
            root / V30_VIDEO.format(video_key=camera, chunk_index=0, file_index=0),
            [content.picture(e, camera, f) for e in episodes for f in range(content.lengths[e])],
        )
    pq.write_table(pa.table(rows), meta / "episodes" / "chunk-000" / "file-000.parquet")
    data = root / V30_DATA.format(chunk_index=0, file_index=0)
    data.parent.mkdir(parents=True)
    with pq.ParquetWriter(data, content.schema()) as writer:
        for episode in episodes:
            writer.write_table(content.table(episode))
    return root


def edit_rows(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite the one Parquet file of a v3.0 dataset."""
    pq.write_table(change(pq.read_table(root / DATA)), root / DATA)


def replaced(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    """Put another value into one row of a column."""
    values = table[column].to_pylist()
    values[row] = value
    field = table.schema.field(column)
    return table.set_column(
        table.schema.get_field_index(column), field, pa.array(values, field.type)
    )


def _statistics(content: Content, episodes: Sequence[int]) -> dict[str, Any]:
    rows = [content.rows(e) for e in episodes]
    statistics = {}
    for key in ("observation.state", "action", "timestamp"):
        values = np.concatenate([np.asarray(r[key], np.float64) for r in rows])
        values = values.reshape(len(values), -1)
        made = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0)}
        made |= {"std": values.std(0), "count": np.array([len(values)])}
        statistics[key] = {name: value.tolist() for name, value in made.items()}
    return statistics


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
