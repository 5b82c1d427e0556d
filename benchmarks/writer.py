"""The writer alone: how fast attention is compressed, hashed and made durable, per core."""

from __future__ import annotations

from .measure import Figure, Setting, Times
from .replay import ReplayPolicy, shape_of
from .writing import encode, open_writer, weights_in, write

AIMS = {"float16": ">= 100", "log8": ">= 150"}
CORES = (2, 8, 16)


def run(setting: Setting) -> list[Figure]:
    count = setting.repeats(5)
    policy = ReplayPolicy(count, **shape_of(setting.toy))
    (keyframe,) = policy.keyframes(1)
    raw = 2 * weights_in(keyframe)
    figures = [Figure("raw float16 of a keyframe, padding stripped", raw / 1e6, "MB")]
    for precision, aim in AIMS.items():
        coded = encode(keyframe, precision)
        times = Times()
        with open_writer(setting.directory, policy, count, precision) as writer:
            for number in range(count):
                times.add(write, writer, policy, number, coded)
        seconds = times.cpu_median
        figures.append(
            Figure(
                f"{precision}: written per core", raw / seconds / 1e6, "MB/s of raw float16",
                aim=aim, note=f"median of {count} keyframes, CPU time of all threads; "
                "compression, checksums, SHA-256, fsync",
            )
        )  # fmt: skip
        figures.append(Figure(f"{precision}: a keyframe, wall time", times.wall_median, "s"))
        figures += [
            Figure(
                f"{precision}: model time a keyframe at which {cores} cores of writing keep up",
                seconds / cores, "s", note="CPU seconds a keyframe / cores; ingest writes on up to 16 threads a worker",
            )
            for cores in CORES
        ]  # fmt: skip
    return figures
