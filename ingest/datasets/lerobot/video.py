"""A camera recorded in a video file that may hold many episodes, read by time with PyAV.

A file of v3 holds hundreds of episodes, and opening one reads the index of all its frames. So a process
keeps what it opened: an episode seeks in it, as the one before did.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError

from ..base import CameraFrame, VideoFrames, copy_again
from ..video import REORDER, ascending_runs, encode
from ..video_pixels import Pixels, VideoFormatError, check_format, picture_stream

TOLERANCE = 1e-4
"""Seconds that a video frame may be off its row's time: LeRobot's own ``tolerance_s``."""


MOST_OPEN = 8
"""Video files that a process keeps open while nobody reads them."""


class _OpenVideos:
    """Video files of this process that are open and that nobody reads at the moment.

    Whoever reads one has it alone. A file that was replaced, or in which something failed, is opened
    anew; so is everything after a fork, since a file's position would be shared.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[object, Any] = OrderedDict()

    @contextmanager
    def use(self, path: Path) -> Iterator[tuple[Any, bool]]:
        """Give a container, and whether somebody read in it before."""
        import av

        try:
            status = path.stat()
        except OSError:
            status = None  # opening it says what is wrong
        key = status and (os.getpid(), str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            container = self._idle.pop(key, None)
        used = container is not None
        if container is None:
            container = av.open(str(path), metadata_errors="replace")
        try:
            yield container, used
        except GeneratorExit:  # a reader that wanted no more
            self._keep(key, container)
            raise
        except BaseException:
            container.close()
            raise
        self._keep(key, container)

    def _keep(self, key: object, container: Any) -> None:
        with self._lock:
            closed = [self._idle.pop(key)] if key in self._idle else []
            self._idle[key] = container
            while len(self._idle) > MOST_OPEN:
                closed.append(self._idle.popitem(last=False)[1])
        for each in closed:
            each.close()


_videos = _OpenVideos()


@dataclass(frozen=True, slots=True)
class TimedVideo:
    """One camera of one episode as a stretch of a video file."""

    episode: str
    camera: str
    path: Path
    where: str
    """The file relative to the dataset, for messages."""
    start: float
    """Time in the file at which the episode begins, seconds."""
    fps: float
    """Frames per second, as the dataset says."""
    tolerance: float = TOLERANCE
    kept: VideoFrames = "jpeg"

    def check(self, times: Sequence[float]) -> None:
        """Look for the packets of some of the episode's frames, without decoding.

        Parameters
        ----------
        times
            Times of frames since the episode's first, seconds.

        Raises
        ------
        EpisodeError
            If the file is not a readable video, has no exact pixels of 8 bits, ends before a frame, or
            has it at another time.
        """
        import av

        size = self.path.stat().st_size
        try:
            with _videos.use(self.path) as (container, used):
                stream = self._stream(container)
                check_format(stream)
                for number, time in enumerate(times):
                    self._seek(container, stream, self.start + time, used or number > 0)
                    self._look_for(container, stream, self.start + time, times[0], size)
        except VideoFormatError as error:
            raise EpisodeError(self.episode, f"{self.where} {error}") from error
        except av.FFmpegError as error:
            raise EpisodeError(
                self.episode,
                f"{self.where} ({size} bytes) is not a readable video: {error.strerror}; "
                f"{copy_again(self.path)}",
            ) from error

    def _look_for(self, container: Any, stream: Any, time: float, first: float, size: int) -> None:
        before: float | None = None
        after: float | None = None
        past = 0
        for packet in container.demux(stream):
            if packet.pts is None or packet.size == 0:
                continue
            here = float(packet.pts * stream.time_base)
            if abs(here - time) <= self.tolerance:
                return
            if here < time:
                before = here if before is None else max(before, here)
            else:
                after = here if after is None else min(after, here)
                # packets come in the order in which they are decoded
                past += 1
                if past >= REORDER:
                    break
        off, near = min((abs(t - time), t) for t in (before, after, math.inf) if t is not None)
        if after is not None or off < 0.5 / self.fps:
            raise self._absent(time, before, after, first)
        raise EpisodeError(
            self.episode,
            f"{self.where} ({size} bytes) ends before the episode: its frame at {time:.4f} s is not "
            f"there, the last is at {near:.4f} s; {self._hardware_clock(first) or 'copy the file again'}",
        )

    def _hardware_clock(self, first: float) -> str:
        if first < 0.5 / self.fps:
            return ""
        return (
            f"the rows' times start at {first:.4f} s and LeRobot counts from the episode's first "
            "frame: subtract it from the column timestamp if it is another clock's"
        )

    def read(self, times: Sequence[float]) -> Iterator[CameraFrame]:
        """Yield the frames at the asked times, in the given order.

        Ascending times take one seek to the key frame before the first and one pass from there.
        ``rgb`` is the decoded video frame, ``data`` what is kept of it.

        Raises
        ------
        EpisodeError
            If decoding fails, no frame has the asked time, or a frame's size differs.
        """
        first: tuple[int, ...] | None = None
        for run in ascending_runs(times):
            for time, rgb in zip(run, self._decode([self.start + t for t in run]), strict=True):
                first = first or rgb.shape
                if rgb.shape != first:
                    raise EpisodeError(
                        self.episode,
                        f"all frames of a camera have one size: {self.where} has "
                        f"{rgb.shape[1]}x{rgb.shape[0]} at {time:.4f} s, {first[1]}x{first[0]} "
                        "before; re-encode the video at one size",
                    )
                yield encode(self.camera, rgb, self.kept)

    def _decode(self, ascending: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
        import av

        wanted = iter(ascending)
        time = next(wanted, None)
        before: float | None = None
        past = 0
        try:
            with _videos.use(self.path) as (container, used):
                stream = self._stream(container)
                pixels = Pixels(stream)
                # Frame threads race: which damaged frames they flag would differ from run to run.
                if not stream.codec_context.is_open:
                    stream.thread_type = "SLICE"
                self._seek(container, stream, ascending[0], used)
                for frame in self._shown(container, stream):
                    if frame.is_corrupt:
                        raise EpisodeError(
                            self.episode,
                            f"{self.where} is damaged at {float(frame.time):.4f} s, and frames "
                            "after it are predicted from it; copy the file again",
                        )
                    if time is None:
                        past += 1
                        if past >= REORDER:
                            return
                    elif frame.time >= time - self.tolerance:
                        if frame.time > time + self.tolerance:
                            raise self._absent(time, before, frame.time)
                        yield pixels.of(frame)
                        time = next(wanted, None)
                    before = frame.time
        except VideoFormatError as error:
            raise EpisodeError(self.episode, f"{self.where} {error}") from error
        except av.FFmpegError as error:
            raise EpisodeError(
                self.episode,
                f"{self.where} cannot be decoded at {time or ascending[-1]:.4f} s: "
                f"{error.strerror}; copy the file again",
            ) from error
        if time is not None:
            raise self._absent(time, before, None)

    def _shown(self, container: Any, stream: Any) -> Iterator[Any]:
        # After a seek the frames before the first key frame lack what they are predicted from.
        anchored = False
        for frame in container.decode(stream):
            anchored = anchored or bool(frame.key_frame)
            if anchored and frame.time is not None:
                yield frame

    def _stream(self, container: Any) -> Any:
        if not container.streams.video:
            raise EpisodeError(
                self.episode, f"{self.where} has no readable video stream; copy the file again"
            )
        return picture_stream(container)

    def _seek(self, container: Any, stream: Any, time: float, used: bool) -> None:
        if time > 0 or used:
            place = int(time / stream.time_base) if time > 0 else stream.start_time or 0
            container.seek(place, stream=stream, backward=True)

    def _absent(
        self, time: float, before: float | None, after: float | None, first: float = 0.0
    ) -> EpisodeError:
        there = [t for t in (before, after) if t is not None]
        around = " and ".join(f"{t:.4f} s" for t in there) or "no time"
        off = min((abs(t - time) for t in there), default=math.inf)
        needed = math.ceil(off * 1.05e4) / 1e4 if off < math.inf else off
        if needed < 0.5 / self.fps:
            repair = (
                f"the clocks of rows and video are {off:.2g} s apart: pass a larger --tolerance, "
                f"such as {needed:g}, or re-encode the video"
            )
        else:
            repair = self._hardware_clock(first) or (
                "that is half a frame or more, which no --tolerance bridges: repair the times in "
                "meta/ or data/, or re-encode the video"
            )
        return EpisodeError(
            self.episode,
            f"{self.where} has no frame within {self.tolerance:g} s of {time:.4f} s, the frames "
            f"around it are at {around}; {repair}",
        )
