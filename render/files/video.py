"""Video files through PyAV, that is FFmpeg's libraries.

The settings were measured on composed pictures (1436x908, 23 of them, one thread, CPU seconds a
clip, against OpenCV's VP90 writer with 6.9 s, 730 kB and 39.6 dB): VP9 0.47 s, 433 kB, 40.7 dB;
AV1 0.7 s, 365 kB, 39.5 dB; H.264 0.7 s, 608 kB, 41.4 dB; MJPEG 0.2 s, 2.6 MB, 40.4 dB.
VP9's "good" deadline needs 4 times the time of "realtime" for a third less bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import av
import cv2
import numpy as np
from av.codec import Codec
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from ..picture.image_file import complete

DEFAULT_FPS = 3.0
"""Keyframes a second: a keyframe every 8 frames of 15 Hz is 1.9, and a little faster reads well."""
TRANSFER_BT709 = PRIMARIES_BT709 = 1
# JFIF has BT.601's matrix, and FFmpeg's MJPEG encoder takes full range only
_FULL_RANGE = frozenset({"mjpeg"})


@dataclass(frozen=True, slots=True)
class VideoCodec:
    """An encoder with the settings that are used."""

    encoders: tuple[str, ...]
    """FFmpeg's encoders of it, the preferred one first; PyAV builds differ."""
    extension: str
    """Of a file name when the caller does not say one."""
    containers: tuple[str, ...]
    """FFmpeg's names of the containers (equal to their extensions) that it can go into."""
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Options by encoder."""


CODECS: Mapping[str, VideoCodec] = MappingProxyType(
    {
        "vp9": VideoCodec(
            ("libvpx-vp9",),
            "webm",
            ("webm", "mkv"),
            {
                "libvpx-vp9": {
                    "deadline": "realtime",
                    "cpu-used": "8",
                    "row-mt": "1",
                    "tile-columns": "2",
                    "crf": "28",
                    "b": "0",
                    # the same bytes as with libvpx's 25, which it would hold in memory
                    "lag-in-frames": "0",
                }
            },
        ),
        "av1": VideoCodec(
            ("libsvtav1", "libaom-av1"),
            "webm",
            ("webm", "mp4", "mkv"),
            {
                "libsvtav1": {"preset": "10", "crf": "26"},
                "libaom-av1": {"usage": "realtime", "cpu-used": "8", "crf": "28", "b": "0"},
            },
        ),
        "h264": VideoCodec(
            ("libx264", "libopenh264"),
            "mp4",
            ("mp4", "mkv"),
            {"libx264": {"preset": "veryfast", "crf": "23"}, "libopenh264": {"b": "4M"}},
        ),
        "mjpeg": VideoCodec(
            ("mjpeg",), "avi", ("avi", "mkv"), {"mjpeg": {"qmin": "3", "qmax": "3"}}
        ),
    }
)
"""By name; the first codec that lists a container is that container's default."""
_FORMAT_NAMES = {"mkv": "matroska"}


def codec_for(path: Path, codec: str | None = None) -> str:
    """Name of the codec for a file: the one asked for, or what its extension usually holds.

    Examples
    --------
    >>> codec_for(Path("a.webm")), codec_for(Path("a.mp4")), codec_for(Path("a.mp4"), "av1")
    ('vp9', 'h264', 'av1')
    """
    extension = path.suffix[1:].lower()
    if codec is None:
        for name, candidate in CODECS.items():
            if candidate.extension == extension or extension == candidate.containers[-1]:
                return name
        known = sorted({f".{c}" for spec in CODECS.values() for c in spec.containers})
        raise UsageError(f"{path.name}: a video's name ends in {', '.join(known)}")
    if codec not in CODECS:
        raise UsageError(f"a codec is one of {', '.join(CODECS)}; got {codec!r}")
    if extension not in CODECS[codec].containers:
        raise UsageError(
            f"{path.name}: {codec} goes into .{', .'.join(CODECS[codec].containers)} files"
        )
    return codec


def extension_for(codec: str, extension: str | None = None) -> str:
    """Ending of a codec's files: the usual one, or the one asked for if the codec goes into it.

    Examples
    --------
    >>> extension_for("vp9"), extension_for("h264", "mkv")
    ('webm', 'mkv')
    """
    if codec not in CODECS:
        raise UsageError(f"a codec is one of {', '.join(CODECS)}; got {codec!r}")
    ending = extension or CODECS[codec].extension
    codec_for(Path(f"name.{ending}"), codec)
    return ending


class VideoWriter:
    """Writes one video; use as a context manager.

    The file has its name only once it is complete: if the block raises, nothing is left of it.

    Parameters
    ----------
    path
        File to write; its directory is made.
    codec
        ``vp9``, ``av1``, ``h264`` or ``mjpeg``; by default what the extension usually holds.
    fps
        Frames a second.
    threads
        Of the encoder; 1 is best when several videos are encoded at once.
    """

    def __init__(
        self,
        path: Path,
        *,
        codec: str | None = None,
        fps: float = DEFAULT_FPS,
        threads: int = 2,
    ) -> None:
        if not 0 < fps <= 240:
            raise UsageError(f"frames a second are more than 0 and at most 240; got {fps}")
        self.path = path
        self.codec = codec_for(path, codec)
        self.rate = Fraction(fps).limit_denominator(1001)
        self.frames = 0
        self._threads = threads
        # one for all frames: making its tables anew took a seventh of a conversion
        self._reformatter = VideoReformatter()
        self._stack = ExitStack()
        self._stream: VideoStream | None = None
        self._size = (0, 0)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(complete(self.path))
            extension = self.path.suffix[1:].lower()
            # closed before the file gets its name, and also when the block raises
            self._container = stack.enter_context(
                av.open(
                    str(temporary),
                    "w",
                    format=_FORMAT_NAMES.get(extension, extension),
                    # the index first, so that a browser plays before it has the whole file
                    options={"movflags": "+faststart"} if extension == "mp4" else {},
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self._finish()
            except BaseException as failure:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._stack.__exit__(kind, error, trace)

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame, (height, width, 3) uint8 RGB, all of one size.

        An odd height or width is extended by a copy of its last row or column, since 4:2:0
        chroma needs even sizes; nothing is scaled.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise UsageError(
                f"a frame is (height, width, 3) uint8; got {frame.shape} {frame.dtype}"
            )
        if self._stream is None:
            self._size = frame.shape[:2]
            self._stream = self._open(*frame.shape[:2])
        if frame.shape[:2] != self._size:
            raise UsageError(
                f"{self.path.name}: frame {self.frames} is {frame.shape[:2]} pixels, "
                f"the first one was {self._size}"
            )
        odd = frame.shape[0] % 2, frame.shape[1] % 2
        if any(odd):
            padded = cv2.copyMakeBorder(frame, 0, odd[0], 0, odd[1], cv2.BORDER_REPLICATE)
            frame = np.asarray(padded, np.uint8)
        full = self.codec in _FULL_RANGE
        picture = self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            # the encoder's own: PyAV below 17 converts between the two once more, with other colours
            format="yuvj420p" if full else "yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU601 if full else Colorspace.ITU709,
            # each chroma sample is the mean of its 4 pixels: 0.1 dB better than the default
            interpolation=Interpolation.AREA,
        )
        picture.pts = self.frames
        picture.time_base = 1 / self.rate
        with _scheduling_kept():
            self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def _open(self, height: int, width: int) -> VideoStream:
        spec = CODECS[self.codec]
        encoder = next((name for name in spec.encoders if _available(name)), None)
        if encoder is None:
            raise UsageError(
                f"this build of PyAV has no {self.codec} encoder ({', '.join(spec.encoders)})"
            )
        if encoder == "libsvtav1":
            # it logs its settings to stderr; the variable is its only switch (1: errors)
            os.environ.setdefault("SVT_LOG", "1")
        options = dict(spec.options.get(encoder, {}))
        stream = self._container.add_stream(encoder, rate=self.rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = width + width % 2, height + height % 2
        full = self.codec in _FULL_RANGE
        stream.pix_fmt = "yuvj420p" if full else "yuv420p"
        context = stream.codec_context
        context.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        context.colorspace = Colorspace.ITU601 if full else Colorspace.ITU709
        if not full:
            context.color_primaries = PRIMARIES_BT709
            context.color_trc = TRANSFER_BT709
        context.thread_count = self._threads
        return stream

    def _finish(self) -> None:
        if self._stream is None:
            raise UsageError(f"{self.path.name}: a video needs at least one frame")
        self._container.mux(self._stream.encode(None))


def encode(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    codec: str | None = None,
    fps: float = DEFAULT_FPS,
    threads: int = 2,
) -> Path:
    """Write frames, (height, width, 3) uint8 RGB, as a video; see `VideoWriter`."""
    with VideoWriter(path, codec=codec, fps=fps, threads=threads) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@contextmanager
def _scheduling_kept() -> Iterator[None]:
    """Keep the thread's scheduling: run by root, SVT-AV1 makes the caller real-time for good."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)


def _available(encoder: str) -> bool:
    try:
        Codec(encoder, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
