"""What an episode's tables, overview maps and images take on disk at Pi0.5 size."""

from __future__ import annotations

from attnstore.store.arrays.groups import MAP_REDUCTIONS

from .measure import Figure, Setting, size_of
from .replay import ingest, shape_of
from .slices import KEYFRAMES


def run(setting: Setting) -> list[Figure]:
    count = 3 if setting.toy else KEYFRAMES
    episode = ingest(setting.directory, count, **shape_of(setting.toy))
    where = f"{count} keyframes"
    root = episode.part.path
    rows = episode.part.table("head_stats").num_rows
    arrays = root / "attention.zarr"
    maps = size_of(arrays.glob("maps/**/*"))
    shares = [
        Figure(f"overview maps: {reduction} of {phase}",
               size_of(arrays.glob(f"maps/{phase}/*/*/{reduction}/**/*")) / 1e6, "MB", note=where)
        for phase in ("prefix", "suffix") for reduction in MAP_REDUCTIONS
    ]  # fmt: skip
    frames = size_of([root / "frames.parquet"])
    attention = size_of(p for a in ("prefix", "suffix") for p in (arrays / a).rglob("*"))
    tables = size_of(root.glob("*.parquet")) - frames
    files = sum(p.is_file() for p in root.rglob("*"))
    return [
        Figure("head_stats rows", rows, "rows", note=where),
        Figure("head_stats", size_of([root / "head_stats.parquet"]) / 1e6, "MB", aim="<= 4", note=where),
        Figure("all tables but frames", tables / 1e6, "MB", note=where),
        Figure("overview maps", maps / 1e6, "MB", note=where),
        *shares,
        Figure("frames (images and geometry)", frames / 1e6, "MB",
               note=f"{where}, 2 cameras of 640 x 360, as recorded"),
        Figure("maps and frames", (maps + frames) / 1e6, "MB", aim="<= 25", note=where),
        Figure("full attention, float16", attention / 1e6, "MB", note=where),
        Figure("files", files, "files", note=where),
    ]  # fmt: skip
