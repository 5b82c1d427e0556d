"""A camera recorded as a video file, read by exact frame index with PyAV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, UsageError
from attnstore.store.image import encode_png

from .base import CameraFrame, VideoFrames, copy_again
from .video_pixels import Pixels, VideoFormatError, check_format, picture_stream

JPEG_QUALITY = 95
"""Of the JPEG kept for a decoded video frame, without chroma subsampling.

The frame went through a lossy codec already. Measured on toy_cube's videos (640x360): the second
loss averages 0.6 of 255 levels; a PNG takes 2.1 times the space of the JPEG's 42 kB, and more where
a real camera's noise survived the first codec. A policy sees ``rgb``, which has no second loss.
"""

Place = TypeVar("Place", int, float)

REORDER = 16
"""Frames looked at past the last one asked: H.264 and HEVC may predict a frame from one that is
shown up to 16 frames later, whose damage only shows there."""


@dataclass(frozen=True, slots=True)
class Video:
    """One camera's frames as a video file."""

    episode: str
    camera: str
    path: Path
    length: int
    """Number of frames, counted."""
    rate: float | None
    """Average frames per second, as the container says."""
    size: tuple[int, int]
    """Width and height, as the container says."""
    where: str
    """What the file is called in an error: its path below the episode."""
    kept: VideoFrames = "jpeg"

    def __len__(self) -> int:
        return self.length

    @property
    def source(self) -> str:
        """Directory or kind of file under ``recordings/``."""
        return "mp4"

    def check_sizes(self) -> None:
        """Do nothing: a stream has one size, and ``read`` looks at what is decoded."""

    def read(self, indices: Sequence[int]) -> Iterator[CameraFrame]:
        """Yield the asked frames in the given order.

        Ascending indices take one sequential pass through the file; each step back starts another.
        ``rgb`` is the decoded video frame, ``data`` what is kept of it (see `encode`). No seeking:
        seeking lands on timestamps, and timestamps are not frame indices.

        Raises
        ------
        EpisodeError
            If decoding fails, or ends before the frame, or a frame's size differs.
        """
        first: tuple[int, ...] | None = None
        for run in ascending_runs(indices):
            for index, rgb in zip(run, self._decode(run), strict=True):
                first = first or rgb.shape
                if rgb.shape != first:
                    raise EpisodeError(
                        self.episode,
                        f"all frames of a camera have one size: frame {index} of {self.where} is "
                        f"{rgb.shape[1]}x{rgb.shape[0]}, the frames before it are "
                        f"{first[1]}x{first[0]}; re-export the video at one size",
                    )
                yield encode(self.camera, rgb, self.kept)

    def _decode(self, ascending: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        import av

        wanted = iter(ascending)
        index = next(wanted, None)
        position = -1
        try:
            with av.open(str(self.path), metadata_errors="replace") as container:
                stream = picture_stream(container)
                pixels = Pixels(stream)
                # Frame threads race: which damaged frames they flag would differ from run to run.
                stream.thread_type = "SLICE"
                for position, frame in enumerate(container.decode(stream)):
                    # The decoder flags the frame whose bits are bad and then predicts up to a
                    # whole group of unflagged pictures from it: none after it can be trusted.
                    if frame.is_corrupt:
                        raise EpisodeError(
                            self.episode,
                            f"frame {position} of {self.where} is damaged, and frames after it "
                            "are predicted from it; copy the file again",
                        )
                    if position == index:
                        yield pixels.of(frame)
                        index = next(wanted, None)
                    elif position >= ascending[-1] + REORDER:
                        return
        except VideoFormatError as error:
            raise EpisodeError(self.episode, f"{self.where} {error}") from error
        except av.FFmpegError as error:
            raise EpisodeError(
                self.episode,
                f"{self.where} cannot be decoded after frame {position}: {error.strerror}; "
                "copy the file again",
            ) from error
        if index is not None:
            raise EpisodeError(
                self.episode,
                f"{self.where} has {self.length} frames, but decoding ended after {position + 1}; "
                "copy the file again",
            )


def open_video(episode: str, camera: str, path: Path, place: str | None = None) -> Video:
    """Count a video's frames by walking its packets, without decoding.

    Parameters
    ----------
    place
        Path of the file below the episode; by default ``recordings/`` and its name.

    Raises
    ------
    EpisodeError
        If the file is not a readable video, has no exact pixels of 8 bits, or holds fewer frames
        than its header announces.
    """
    import av

    repair = copy_again(path)
    place = place or f"recordings/{path.name}"
    where = f"{place} ({path.stat().st_size} bytes)"
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise EpisodeError(episode, f"{where} has no readable video stream; {repair}")
            stream = picture_stream(container)
            check_format(stream)
            announced, rate = stream.frames, stream.average_rate
            size = stream.codec_context.width, stream.codec_context.height
            sizes = [(packet.size, packet.is_discard) for packet in container.demux(stream)]
    except VideoFormatError as error:
        raise EpisodeError(episode, f"{where} {error}") from error
    except av.FFmpegError as error:
        raise EpisodeError(
            episode, f"{where} is not a readable video: {error.strerror}; {repair}"
        ) from error
    present = sum(size > 0 for size, _ in sizes)  # the last packet is an empty flush
    if present < announced:
        raise EpisodeError(
            episode,
            f"{where} is truncated: its header announces {announced} frames, {present} are there; "
            f"{repair}",
        )
    shown = sum(size > 0 and not discarded for size, discarded in sizes)
    return Video(episode, camera, path, shown, float(rate) if rate else None, size, place)


def check_kept(kept: str) -> None:
    """Raise `UsageError` if video frames cannot be kept so."""
    if kept not in get_args(VideoFrames):
        known = ", ".join(get_args(VideoFrames))
        raise UsageError(f"decoded video frames are kept as {known}; got {kept!r}")


def encode(
    camera: str, rgb: NDArray[np.uint8], kept: VideoFrames, quality: int = JPEG_QUALITY
) -> CameraFrame:
    """Encode a decoded video frame, (height, width, 3), as it is kept.

    ``jpeg`` is of `quality`; ``png`` is exactly what the policy sees.
    """
    if kept == "png":
        return CameraFrame(camera, encode_png(rgb), "image/png", rgb)
    # OpenCV lets other threads run meanwhile, Pillow does not: a policy that is recorded would wait.
    asked = (
        cv2.IMWRITE_JPEG_QUALITY, quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    )  # fmt: skip
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), asked)
    return CameraFrame(camera, encoded.tobytes(), "image/jpeg", rgb)


def ascending_runs(asked: Sequence[Place]) -> list[list[Place]]:
    """Split frame indices or times where they step back: one pass through a file each.

    Examples
    --------
    >>> ascending_runs([0, 8, 3, 3])
    [[0, 8], [3], [3]]
    """
    runs: list[list[Place]] = []
    for place in asked:
        if not runs or place <= runs[-1][-1]:
            runs.append([])
        runs[-1].append(place)
    return runs
