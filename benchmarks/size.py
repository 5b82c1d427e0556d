"""Write time and size of a keyframe against what labs do now, on the same weights."""

from __future__ import annotations

import shutil

from attnstore.store.commits.writer import EpisodeWriter

from .labs import padded_prefix, padded_suffix, save_hdf5, save_npy
from .measure import Figure, Setting, Times, size_of
from .replay import ReplayPolicy, shape_of
from .trained import Keyframe
from .writing import encode, open_writer, stored_bytes, weights_in, write

SIZE_AIMS = {"float16": ">= 2.3", "log8": ">= 4.5"}


def run(setting: Setting) -> list[Figure]:
    figures: list[Figure] = []
    for bfloat16 in (True, False):
        figures += _compare(setting, bfloat16)
    return figures


def _compare(setting: Setting, bfloat16: bool) -> list[Figure]:
    model = "bfloat16 model" if bfloat16 else "float32 model"
    count = setting.repeats(3)
    policy = ReplayPolicy(count, **shape_of(setting.toy))
    (keyframe,) = policy.keyframes(1, bfloat16=bfloat16)
    npy, npy_bytes = _baseline(setting, policy.images, keyframe, "npy", setting.repeats(3))
    hdf5, hdf5_bytes = _baseline(setting, policy.images, keyframe, "hdf5", setting.repeats(2))
    raw = 2 * weights_in(keyframe)
    figures = [
        Figure(f"{model}: np.save, wall time", npy.wall_median, "s", note="not synced to disk"),
        Figure(f"{model}: np.save, size", npy_bytes / 1e6, "MB"),
        Figure(
            f"{model}: HDF5 gzip-4, wall time", hdf5.wall_median, "s", note="not synced to disk"
        ),
        Figure(f"{model}: HDF5 gzip-4, size", hdf5_bytes / 1e6, "MB"),
    ]
    for precision, aim in SIZE_AIMS.items():
        ours = Times()
        with open_writer(setting.directory, policy, count, precision) as writer:
            for number in range(count):
                ours.add(_write, writer, policy, number, keyframe, precision)
            size = stored_bytes(writer, 0)
        note = f"median of {count}; encoded, compressed, hashed, synced to disk"
        figures += [
            Figure(f"{model}: {precision}, wall time", ours.wall_median, "s", note=note),
            Figure(f"{model}: {precision}, CPU time", ours.cpu_median, "s", note=note),
            Figure(f"{model}: {precision}, size", size / 1e6, "MB"),
            Figure(f"{model}: {precision}, raw float16 over it", raw / size, "times"),
            Figure(f"{model}: {precision} faster than np.save", npy.wall_median / ours.wall_median,
                   "times, wall", baseline="np.save float32, padded"),
            Figure(f"{model}: {precision} smaller than np.save", npy_bytes / size, "times",
                   baseline="np.save float32, padded"),
            Figure(f"{model}: {precision} faster than HDF5", hdf5.wall_median / ours.wall_median,
                   "times, wall", baseline="HDF5 float32 gzip-4, padded", aim=">= 40"),
            Figure(f"{model}: {precision} less CPU than HDF5", hdf5.cpu_median / ours.cpu_median,
                   "times, CPU", baseline="HDF5 float32 gzip-4, padded"),
            Figure(f"{model}: {precision} smaller than HDF5", hdf5_bytes / size, "times",
                   baseline="HDF5 float32 gzip-4, padded", aim=aim),
        ]  # fmt: skip
    return figures


def _write(
    writer: EpisodeWriter, policy: ReplayPolicy, number: int, keyframe: Keyframe, precision: str
) -> None:
    write(writer, policy, number, encode(keyframe, precision))


def _baseline(
    setting: Setting, images: int, keyframe: Keyframe, kind: str, repeats: int
) -> tuple[Times, int]:
    """Time writing; turning the model's tensors into padded float32 arrays is not counted."""
    prefix = [padded_prefix(w, images) for w in keyframe.prefix]
    suffix = [padded_suffix(w, images) for step in keyframe.suffix for w in step]
    times, target = Times(), setting.directory / f"labs-{kind}"
    for _ in range(repeats):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()

        def save() -> None:
            for name, layers in (("prefix", prefix), ("suffix", suffix)):
                if kind == "npy":
                    save_npy(target, layers, name)
                else:
                    save_hdf5(target / "keyframe.h5", layers, name)

        times.add(save)
    size = size_of(target.rglob("*"))
    shutil.rmtree(target)
    return times, size
