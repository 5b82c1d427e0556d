"""Video files, decoded again by PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from attnstore.ingest.datasets.video_pixels import Pixels
from attnstore.render.files.video import CODECS, VideoWriter, codec_for, encode, extension_for
from attnstore.store.errors import UsageError

Frames = list[NDArray[np.uint8]]
FILES = {
    "clip.webm": (None, "vp9"),
    "clip.mp4": (None, "h264"),
    "clip.avi": (None, "mjpeg"),
    "clip.av1.webm": ("av1", "av1"),
    "clip.av1.mp4": ("av1", "av1"),
    "clip.mkv": (None, "vp9"),
}


def moving_square(count: int, height: int, width: int) -> Frames:
    """A coloured gradient with a square whose place says which frame it is."""
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([60 + 120 * x / width, 60 + 120 * y / height, 90 + 0 * x], -1)
    frames = []
    for k in range(count):
        frame = ground.astype(np.uint8)
        frame[20:52, 8 + 16 * (k % 7) : 40 + 16 * (k % 7)] = (230, 60, 40)
        frames.append(frame)
    return frames


def decode(path: Path) -> tuple[Frames, av.container.InputContainer]:
    container = av.open(str(path))
    pixels = Pixels(container.streams.video[0])  # PyAV below 17 heeds no tags by itself
    frames = [pixels.of(frame) for frame in container.decode(video=0)]
    return frames, container


@pytest.mark.parametrize(("name", "codec", "decoded"), [(n, *c) for n, c in FILES.items()])
def test_round_trip(tmp_path: Path, name: str, codec: str | None, decoded: str) -> None:
    frames = moving_square(7, 96, 160)
    path = encode(tmp_path / name, frames, codec=codec, fps=2.5)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    got, container = decode(path)
    stream = container.streams.video[0]
    assert decoded in stream.codec_context.codec.canonical_name
    assert (stream.width, stream.height) == (160, 96)
    assert stream.average_rate is not None
    assert float(stream.average_rate) == pytest.approx(2.5, rel=0.01)
    assert container.duration is not None
    assert container.duration / av.time_base == pytest.approx(7 / 2.5, abs=0.05)
    assert len(got) == 7
    for k, (sent, back) in enumerate(zip(frames, got, strict=True)):
        error = np.abs(sent.astype(int) - back.astype(int))
        assert error.mean() < 4, f"frame {k}"
        # chroma is halved, so look inside the square, away from its edges
        inside = back[26:46, 14 + 16 * k : 34 + 16 * k].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(inside, (230, 60, 40), atol=10)
    container.close()


@pytest.mark.parametrize("name", ["clip.webm", "clip.mp4", "clip.avi"])
def test_colours_are_tagged(tmp_path: Path, name: str) -> None:
    encode(tmp_path / name, moving_square(2, 64, 96))
    with av.open(str(tmp_path / name)) as container:
        context = container.streams.video[0].codec_context
        next(container.decode(video=0))
        if name.endswith("avi"):
            assert context.color_range == ColorRange.JPEG
        else:
            assert context.pix_fmt == "yuv420p"
            assert context.color_range == ColorRange.MPEG
            assert context.colorspace == Colorspace.ITU709


@pytest.mark.parametrize(("height", "width"), [(95, 161), (96, 161), (95, 160)])
def test_odd_sizes_are_padded_and_never_scaled(tmp_path: Path, height: int, width: int) -> None:
    frames = moving_square(3, height, width)
    got, container = decode(encode(tmp_path / "clip.webm", frames))
    container.close()
    assert got[0].shape == (height + height % 2, width + width % 2, 3)
    for sent, back in zip(frames, got, strict=True):
        cut = back[:height, :width]
        for edge in (back[height:], back[:, width:].swapaxes(0, 1)):
            assert not edge.size or edge.min() > 30, "padding is black"
        assert np.abs(sent.astype(int) - cut.astype(int)).mean() < 4


@pytest.mark.parametrize("name", ["clip.webm", "clip.mp4", "clip.avi"])
def test_an_error_leaves_nothing(tmp_path: Path, name: str) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield from moving_square(60, 64, 96)
        # the encoder has put some out by now, or this test would see no file in any case
        assert list((tmp_path / "new").iterdir())
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        encode(tmp_path / "new" / name, broken())
    assert list((tmp_path / "new").iterdir()) == []


def test_an_error_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "clip.webm"
    path.write_bytes(b"before")

    def interrupted() -> None:
        with VideoWriter(path) as writer:
            writer.write(moving_square(1, 64, 96)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["clip.webm"]


def test_the_name_appears_with_the_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path) as writer:
        for frame in moving_square(5, 64, 96):
            writer.write(frame)
            assert not path.exists()
        assert all(part.name.startswith(".clip.mp4.") for part in tmp_path.iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_refusals(tmp_path: Path) -> None:
    frame = moving_square(1, 64, 96)[0]
    with pytest.raises(UsageError, match="at least one frame"):
        encode(tmp_path / "clip.webm", [])
    with pytest.raises(UsageError, match="the first one was"):
        encode(tmp_path / "clip.webm", [frame, frame[:32]])
    with pytest.raises(UsageError, match="uint8"):
        encode(tmp_path / "clip.webm", [frame.astype(np.float32)])
    with pytest.raises(UsageError, match="ends in"):
        codec_for(Path("clip.gif"))
    with pytest.raises(UsageError, match=r"vp9 goes into \.webm, \.mkv"):
        codec_for(Path("clip.mp4"), "vp9")
    with pytest.raises(UsageError, match="one of"):
        codec_for(Path("clip.mp4"), "vp8")
    for fps in (0, -1, float("nan"), 1000):
        with pytest.raises(UsageError, match="frames a second"):
            VideoWriter(tmp_path / "clip.webm", fps=fps)
    assert list(tmp_path.iterdir()) == []


def test_every_codec_is_tried() -> None:
    assert {codec_for(Path(n), c) for n, (c, _) in FILES.items()} == set(CODECS)


@pytest.mark.parametrize("codec", CODECS)
def test_encoding_leaves_the_scheduling_alone(codec: str, tmp_path: Path) -> None:
    """Run by root, SVT-AV1 makes the thread that calls it real-time, and so all its children."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    frames = [np.full((64, 64, 3), 40 * i, np.uint8) for i in range(3)]
    encode(tmp_path / f"a.{extension_for(codec)}", frames, fps=5, codec=codec)
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
