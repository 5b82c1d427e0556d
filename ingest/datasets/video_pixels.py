"""The pixels of a decoded video frame: what a file's header says of them, applied or refused.

Matrix (BT.601, BT.709, FCC, SMPTE 240M, BT.2020) and range are those that the stream is tagged with;
untagged is BT.601 of limited range, as FFmpeg and OpenCV take it. Turns by quarters and mirrors of a
display matrix are applied, as players, FFmpeg and OpenCV do. Colours of 9 to 12 bits are rounded to 8;
alpha is left out. Pixels that are not square, interlaced fields and a container's own cropping stay
as they are coded. What has no exact picture of 8 bits is refused by name: one channel of more than 8
bits, which is depth, and high dynamic range, which needs a choice of tones.

Sources: ITU-T H.273 (code points), ISO/IEC 14496-12 8.5 (display matrix).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

BT601 = 5
"""As libswscale numbers it."""
_MATRICES = {1: 1, 2: BT601, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: 9}
"""Code point of H.273 to libswscale's number; 2 is untagged."""
_BT709, _LIMITED, _FULL = 1, 1, 2
_HDR = {16: "PQ", 18: "HLG"}
_ATTACHED = 0x400
"""Disposition of a cover picture, which is no camera."""
_ONE = 1 << 16


class VideoFormatError(ValueError):
    """A video whose pictures are not taken; the message goes on from the file's name."""


def picture_stream(container: Any) -> Any:
    """Return the one video stream of an open file; a cover picture is none.

    Raises
    ------
    VideoFormatError
        If there is none, or several.
    """
    streams = [s for s in container.streams.video if not _disposition(s) & _ATTACHED]
    if len(streams) != 1:
        raise VideoFormatError(
            f"has {len(streams)} video streams, and a camera is one; write each to a file of its own"
        )
    return streams[0]


def check_format(stream: Any) -> None:
    """Check what a stream's header says of its pixels.

    Raises
    ------
    VideoFormatError
        If they have no exact picture of 8 bits.
    """
    codec = stream.codec_context
    if codec is None:
        raise VideoFormatError("is not a readable video: its stream has no known codec")
    if codec.format is not None:
        _check(codec.format, codec.color_trc, codec.colorspace)


class Pixels:
    """Turns the frames of one pass through a stream into pixels."""

    def __init__(self, stream: Any) -> None:
        from av.video.reformatter import VideoReformatter

        self._codec = stream.codec_context
        self._reformatter = VideoReformatter()

    def of(self, frame: Any) -> NDArray[np.uint8]:
        """Return a frame's pixels, upright, (height, width, 3) RGB.

        Raises
        ------
        VideoFormatError
            If they have no exact picture of 8 bits, or are turned by no quarter.
        """
        format = frame.format
        # PyAV below 17 tells a stream's transfer, and no frame's
        _check(format, getattr(frame, "color_trc", self._codec.color_trc), frame.colorspace)
        if format.is_rgb or format.has_palette:
            rgb = frame.reformat(format="rgb24")
        else:
            matrix = _MATRICES[int(frame.colorspace)]
            # PyAV below 16 heeds a matrix and a range only if source and target differ in it; a
            # target of RGB has none.
            rgb = self._reformatter.reformat(
                frame,
                format="rgb24",
                src_colorspace=matrix,
                dst_colorspace=_BT709 if matrix == BT601 else BT601,
                src_color_range=_FULL if _is_full(frame) else _LIMITED,
                dst_color_range=_FULL,
            )
        pixels = np.asarray(rgb.to_ndarray(), np.uint8)
        matrices = [bytes(d) for d in frame.side_data if d.type.name == "DISPLAYMATRIX"]
        return turned(pixels, struct.unpack("=9i", matrices[0][:36])) if matrices else pixels


def turned(pixels: NDArray[np.uint8], matrix: tuple[int, ...]) -> NDArray[np.uint8]:
    """Apply a display matrix.

    Parameters
    ----------
    matrix
        a b u c d v x y w: a pixel at (p, q) is shown at (a p + c q + x, b p + d q + y); a to d of 16
        binary places.

    Raises
    ------
    VideoFormatError
        If it is anything but a turn by quarters or a mirror.

    Examples
    --------
    >>> image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    >>> turned(image, (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)).tolist()  # clockwise
    [[3, 0], [4, 1], [5, 2]]
    """
    a, b, u, c, d, v = matrix[:6]
    sizes = (abs(a), abs(b), abs(c), abs(d))
    if (u, v) != (0, 0) or sizes not in ((_ONE, 0, 0, _ONE), (0, _ONE, _ONE, 0)):
        shown = ", ".join(f"{n / _ONE:g}" for n in (a, b, c, d))
        raise VideoFormatError(
            f"has a display matrix of ({shown}), and only turns by quarters and mirrors are applied; "
            "re-encode the video upright"
        )
    swapped = a == 0
    if swapped:
        pixels = pixels.swapaxes(0, 1)
    down, across = (b, c) if swapped else (d, a)
    return np.ascontiguousarray(pixels[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])


def _check(format: Any, transfer: Any, matrix: Any) -> None:
    colours = [component for component in format.components if not component.is_alpha]
    bits = max(component.bits for component in colours)
    if bits > 8 and len(colours) == 1:
        raise VideoFormatError(
            f"has one channel of {bits} bits ({format.name}), as depth has, and a camera's picture has "
            "8 bits a channel; leave the camera out"
        )
    if transfer is not None and int(transfer) in _HDR:
        raise VideoFormatError(
            f"is of high dynamic range ({_HDR[int(transfer)]}); tone-map it to SDR"
        )
    if bits > 12 or (bits > 8 and format.is_rgb):
        raise VideoFormatError(
            f"has {bits} bits a channel ({format.name}); re-encode it with 8, such as yuv420p"
        )
    if not (format.is_rgb or format.has_palette) and int(matrix) not in _MATRICES:
        raise VideoFormatError(
            f"has a colour matrix (code point {int(matrix)} of H.273) that is not converted; "
            "re-encode it with BT.709"
        )


def _is_full(frame: Any) -> bool:
    tagged = int(frame.color_range)
    if tagged in (_LIMITED, _FULL) and not frame.format.name.startswith("yuvj"):
        return tagged == _FULL
    return str(frame.format.name).startswith(("yuvj", "gray", "ya"))


def _disposition(stream: Any) -> int:
    found = stream.disposition
    return int(getattr(found, "value", found))
