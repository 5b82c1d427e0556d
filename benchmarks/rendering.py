"""Drawing an episode, against matplotlib figures and OpenCV's VP9 writer for the same content.

Ours is measured whole. The baseline is a sample of its figures and videos, multiplied to the same
number: drawn whole it would take many minutes. Its figures have our pictures' size in pixels and
their content: both cameras, original and overlay, a title, labels and colour bars. Its videos are
encoded from the very frames that ours are, so that bytes and PSNR compare encoders alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.query import Episode
from attnstore.render.files import episode_videos as videos
from attnstore.render.files import video
from attnstore.render.files.episode_images import render_images

from .measure import Figure, Setting, Times, size_of
from .replay import CAMERAS, ingest, shape_of
from .slices import KEYFRAMES

Image = NDArray[np.uint8]
LAYERS = (1, 4, 5, 7, 10)
"""The lab's five."""
PHASE = "prefix"
ENCODERS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    **{f"VP9, cpu-used {n}": ("vp9", "libvpx-vp9", {"cpu-used": n}) for n in "45678"},
    "VP9, for screens": ("vp9", "libvpx-vp9", {"tune-content": "screen"}),
    "VP9, one column of tiles": ("vp9", "libvpx-vp9", {"tile-columns": "0", "row-mt": "0"}),
    "AV1, SVT preset 10": ("av1", "libsvtav1", {}),
    "AV1, SVT preset 12": ("av1", "libsvtav1", {"preset": "12"}),
    "H.264, veryfast": ("h264", "libx264", {}),
    "H.264, ultrafast": ("h264", "libx264", {"preset": "ultrafast"}),
}
"""Codec, encoder, and what is set otherwise than `attnstore.render.files.video.CODECS` has it."""


def run(setting: Setting) -> list[Figure]:
    count = 3 if setting.toy else KEYFRAMES
    layers = LAYERS[:1] if setting.toy else LAYERS
    episode = ingest(setting.directory, count, **shape_of(setting.toy))
    out = setting.directory / "pictures"
    images, films = Times(), Times()
    for _ in range(setting.repeats(3)):
        shutil.rmtree(out, ignore_errors=True)
        drawn = images.add(partial(render_images, episode, out, layers=layers, phases=[PHASE]))
        filmed = films.add(
            partial(videos.render_videos, episode, out, layers=layers, phases=[PHASE])
        )
    pictures = [p for p in drawn if p.suffix == ".jpg"]
    clips = [p for p in filmed if p.suffix == ".webm"]

    samples = _frames(episode, layers[0], setting)
    figure = Times()
    for keyframe in range(min(count, 8)):
        figure.add(_matplotlib, setting.directory / "figure.jpg", episode, layers[0], keyframe)
    opencv, theirs, ours, their_psnr, our_psnr = Times(), 0, 0, [], []
    for path, frames in samples:
        target = setting.directory / "opencv.webm"
        opencv.add(_opencv, target, frames)
        theirs, ours = theirs + size_of([target]), ours + size_of([path])
        their_psnr.append(_psnr(target, frames))
        our_psnr.append(_psnr(path, frames))
    baseline = f"{len(pictures)} savefig figures and {len(clips)} VP90 videos, extrapolated"
    note = f"from {len(figure.cpu)} figures and {len(samples)} videos"
    wall = figure.wall_median * len(pictures) + opencv.wall_median * len(clips)
    cpu = figure.cpu_median * len(pictures) + opencv.cpu_median * len(clips)
    encoded = _encoders([frames for _, frames in samples], setting)
    return [
        Figure("images", len(pictures), "files"),
        Figure("videos", len(clips), f"files of {count} frames"),
        Figure("ours: all images, wall time", images.wall_median, "s"),
        Figure("ours: all videos, wall time", films.wall_median, "s"),
        Figure("ours: images and videos, CPU time", images.cpu_median + films.cpu_median, "s"),
        Figure("matplotlib: one figure, wall time", figure.wall_median, "s"),
        Figure("OpenCV: one video, wall time", opencv.wall_median, "s"),
        Figure("baseline: images and videos, wall time", wall, "s", note=note),
        Figure("baseline: images and videos, CPU time", cpu, "s", note=note),
        Figure("faster", wall / (images.wall_median + films.wall_median), "times, wall",
               baseline=baseline, aim=">= 30", note="ours draws in a thread per core"),
        Figure("less CPU", cpu / (images.cpu_median + films.cpu_median), "times, CPU", baseline=baseline),
        Figure("ours: PSNR of a video", float(np.mean(our_psnr)), "dB"),
        Figure("OpenCV: PSNR of a video", float(np.mean(their_psnr)), "dB"),
        Figure("PSNR of ours above OpenCV's", float(np.mean(our_psnr) - np.mean(their_psnr)), "dB",
               baseline="OpenCV VP90, same frames", aim=">= 0"),
        Figure("bytes of ours over OpenCV's", ours / theirs, "times",
               baseline="OpenCV VP90, same frames", aim="<= 1"),
        *encoded,
    ]  # fmt: skip


def _encoders(clips: list[list[Image]], setting: Setting) -> list[Figure]:
    """Encode the same frames with other settings, and several at once in the two ways that there are."""
    codecs = [codec for codec, _, _ in ENCODERS.values()]
    # at toy size the first of each codec, and one video
    tried = {
        name: how
        for i, (name, how) in enumerate(ENCODERS.items())
        if not setting.toy or codecs.index(how[0]) == i
    }
    clips = clips[:1] if setting.toy else clips
    ours, files = video.CODECS, [setting.directory / f"encoded-{n}" for n in range(len(clips))]
    times = {name: Times() for name in tried}
    said: dict[str, str] = {}
    for _ in range(setting.repeats(3)):  # in turn, so that a busy neighbour slows all alike
        for name, (codec, encoder, other) in tried.items():
            options = {encoder: {**ours[codec].options[encoder], **other}}
            changed = replace(ours[codec], encoders=(encoder,), options=options)
            targets = [file.with_suffix(f".{changed.extension}") for file in files]
            with mock.patch.object(video, "CODECS", {**ours, codec: changed}):
                for target, frames in zip(targets, clips, strict=True):
                    times[name].add(partial(video.encode, target, frames, codec=codec, threads=1))
            psnr = np.mean([_psnr(t, frames) for t, frames in zip(targets, clips, strict=True)])
            said[name] = f"{size_of(targets) / len(targets) / 1e3:.0f} kB, {psnr:.2f} dB"
    figures = [
        Figure(f"one video: {name}", times[name].cpu_median, "CPU s", note=said[name])
        for name in tried
    ]
    for workers, what in ((1, "one after the other, two threads"), (2, "at once, a thread each")):
        taken = Times()
        for _ in range(setting.repeats(3)):
            for file, frames in zip(files, clips, strict=True):
                taken.add(_encode_two, file, frames, workers)
        figures.append(Figure(f"two videos {what}", taken.wall_median, "s"))
    return figures


def _encode_two(file: Path, frames: list[Image], workers: int) -> None:
    encode = partial(video.encode, frames=frames, threads=3 - workers)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(encode, [file.with_name(f"{file.name}-{n}.webm") for n in range(2)]))


def _frames(episode: Episode, layer: int, setting: Setting) -> list[tuple[Path, list[Image]]]:
    """Some videos of ours, and the frames that they were encoded from."""
    seen: list[tuple[Path, list[Image]]] = []
    encode = videos.video.encode

    def tapped(path: Path, frames: Any, **options: Any) -> Path:
        kept = list(frames)
        if len(seen) < 3:
            seen.append((path, kept))
        return encode(path, kept, **options)

    with mock.patch.object(videos.video, "encode", tapped):
        videos.render_videos(
            episode, setting.directory / "tapped", layers=[layer], phases=[PHASE], workers=1
        )
    return seen


def _matplotlib(path: Path, episode: Episode, layer: int, keyframe: int) -> None:
    """Draw the most active head as notebooks do: a figure with two images a camera."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(CAMERAS), figsize=(14.36, 9.08), dpi=100)
    figure.suptitle(f"{episode.instruction}\n{episode.name}, keyframe {keyframe}, {PHASE}")
    for column, camera in enumerate(CAMERAS):
        head = episode.active_head(PHASE, camera, layer=layer, keyframe=keyframe)
        heat = episode.maps(PHASE, camera, layer=layer, head=head, keyframe=keyframe).values
        encoded = np.frombuffer(episode.image_bytes(keyframe, camera), np.uint8)
        image = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        height, width = image.shape[:2]
        # the letterbox's rows cut off, then stretched over the image
        rows = round(heat.shape[0] * height / width)
        top = (heat.shape[0] - rows) // 2
        shown = cv2.resize(heat[top : top + rows], (width, height))
        axes[0, column].imshow(image)
        axes[0, column].set_title(camera)
        axes[1, column].imshow(image)
        overlay = axes[1, column].imshow(shown, cmap="inferno", alpha=0.6)
        axes[1, column].set_title(f"L{layer:02d} H{head:02d}")
        figure.colorbar(overlay, ax=axes[1, column])
        for axis in axes[:, column]:
            axis.axis("off")
    figure.savefig(path)
    plt.close(figure)


def _opencv(path: Path, frames: list[Image]) -> None:
    height, width = frames[0].shape[:2]
    # its wheels print a warning that this tag is not supported in WebM; the file is fine
    code = cv2.VideoWriter_fourcc(*"VP90")
    writer = cv2.VideoWriter(str(path), code, 3.0, (width - width % 2, height - height % 2))
    for frame in frames:
        writer.write(
            cv2.cvtColor(frame[: height - height % 2, : width - width % 2], cv2.COLOR_RGB2BGR)
        )
    writer.release()


def _psnr(path: Path, frames: list[Image]) -> float:
    """Peak signal-to-noise ratio of RGB, over the whole clip."""
    error = count = 0
    with av.open(str(path)) as container:
        for frame, decoded in zip(frames, container.decode(video=0), strict=True):
            rgb = decoded.to_ndarray(format="rgb24")
            height, width = (min(a, b) for a, b in zip(rgb.shape[:2], frame.shape[:2], strict=True))
            difference = rgb[:height, :width].astype(np.int32) - frame[:height, :width]
            error, count = error + float((difference**2).sum()), count + difference.size
    return 10 * np.log10(255**2 / (error / count))
