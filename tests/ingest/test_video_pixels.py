"""What a video's header says of its pixels: matrix, range, depth and orientation, on real files."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from attnstore.ingest.datasets.lerobot.video import TimedVideo
from attnstore.ingest.datasets.video import open_video
from attnstore.store.errors import EpisodeError

HEIGHT, WIDTH = 32, 48
LUMA = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 4: (0.30, 0.11), 5: (0.299, 0.114),
        6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}  # fmt: skip
"""Weights of red and blue by code point: H.273, table 4."""
ONE = 1 << 16


def write(
    path: Path, format: str = "yuv420p", codec: str = "libx264", values: tuple[int, ...] = (120, 90, 180),
    pixels: NDArray[np.uint8] | None = None, **tags: Any,
) -> Path:  # fmt: skip
    """Three frames of one colour, given as coded, or of a picture; coded without loss."""
    with av.open(str(path), "w") as container:
        options = {"crf": "0"} if codec.startswith("libx264") else {}
        stream: Any = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, format
        stream.time_base = Fraction(1, 10)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index in range(3):
            if pixels is not None:
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=format)
            else:
                frame = av.VideoFrame(WIDTH, HEIGHT, format)
                deep = frame.format.components[0].bits > 8
                for plane, value in zip(frame.planes, values, strict=True):
                    count = plane.buffer_size // (2 if deep else 1)
                    plane.update(np.full(count, value, np.uint16 if deep else np.uint8).tobytes())
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def both(path: Path) -> NDArray[np.uint8]:
    """The second frame as both readers give it: by index and by time."""
    (one,) = open_video("e", "cam", path).read([1])
    video = TimedVideo("e", "cam", path, path.name, 0.0, 10.0)
    video.check([0.0, 0.2])
    (other,) = video.read([0.1])
    np.testing.assert_array_equal(one.rgb, other.rgb)
    assert one.data == other.data
    return one.rgb


def by_standard(values: tuple[int, ...], bits: int, matrix: int, full: bool) -> NDArray[np.float64]:
    """RGB of coded values: H.273, equations 8.3."""
    scale = 1 << (bits - 8)
    y, cb, cr = values
    if full:
        top = 256 * scale - 1
        luma, blue, red = y / top, (cb - 128 * scale) / top, (cr - 128 * scale) / top
    else:
        luma = (y - 16 * scale) / (219 * scale)
        blue, red = ((c - 128 * scale) / (224 * scale) for c in (cb, cr))
    of_red, of_blue = LUMA[matrix]
    r, b = luma + 2 * (1 - of_red) * red, luma + 2 * (1 - of_blue) * blue
    g = (luma - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    return np.array([r, g, b]) * 255


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", LUMA)
def test_colours_are_the_standards(tmp_path: Path, matrix: int, full: bool) -> None:
    path = write(tmp_path / "v.mp4", colorspace=matrix, color_range=2 if full else 1)
    pixels = both(path).reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    expected = by_standard((120, 90, 180), 8, matrix, full)
    assert np.abs(pixels[0] - expected).max() <= 2.5  # libswscale's tables
    others = [by_standard((120, 90, 180), 8, m, f) for m in (1, 6) for f in (False, True)]
    if matrix in (1, 6):  # no other one is as near
        apart = [np.abs(pixels[0] - other).max() for other in others]
        assert sorted(apart)[1] > 6


@pytest.mark.parametrize(
    ("format", "codec", "suffix", "bits"),
    [
        ("yuv444p", "libx264", ".mp4", 8), ("yuv422p", "libx264", ".mp4", 8),
        ("yuv420p10le", "libx264", ".mp4", 10), ("yuv422p10le", "libx264", ".mp4", 10),
        ("yuva420p", "ffv1", ".mkv", 8), ("yuvj420p", "mjpeg", ".mkv", 8),
    ],
)  # fmt: skip
def test_sampling_depth_and_alpha(
    tmp_path: Path, format: str, codec: str, suffix: str, bits: int
) -> None:
    values = tuple(v << (bits - 8) for v in (120, 90, 180))
    drawn = (*values, 7) if "yuva" in format else values
    path = write(tmp_path / f"v{suffix}", format, codec, drawn)
    expected = by_standard(values, bits, 2, full=format == "yuvj420p")
    apart = np.abs(both(path).reshape(-1, 3) - expected)
    assert apart.max() <= (6 if codec == "mjpeg" else 2.5)


@pytest.mark.parametrize(("format", "codec"), [("bgr0", "ffv1"), ("rgb24", "libx264rgb")])
def test_rgb_is_as_coded(tmp_path: Path, format: str, codec: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        both(write(tmp_path / "v.mkv", format, codec, pixels=pixels)), pixels
    )


def test_eight_bits_of_grey_are_a_picture(tmp_path: Path) -> None:
    pixels = both(write(tmp_path / "v.mkv", "gray", "ffv1", (77,)))
    assert (pixels == 77).all()


@pytest.mark.parametrize(
    ("format", "values", "tags", "message"),
    [
        ("gray16le", (4000,), {}, r"one channel of 16 bits \(gray16le\).*leave the camera out"),
        ("gray12le", (400,), {}, r"one channel of 12 bits"),
        ("gbrp16le", (1, 2, 3), {}, "16 bits a channel"),
        ("yuv420p10le", (400, 500, 600), {"color_trc": 16}, r"high dynamic range \(PQ\)"),
        ("yuv420p10le", (400, 500, 600), {"color_trc": 18}, r"high dynamic range \(HLG\)"),
        ("yuv420p", (120, 90, 180), {"colorspace": 8}, "colour matrix.*code point 8"),
    ],
)
def test_what_has_no_exact_picture_is_refused(
    tmp_path: Path, format: str, values: tuple[int, ...], tags: dict[str, Any], message: str
) -> None:
    codec = "libx264" if tags else "ffv1"
    path = write(tmp_path / "v.mkv", format, codec, values, **tags)
    with pytest.raises(EpisodeError, match=rf"recordings/v\.mkv \(\d+ bytes\) .*{message}"):
        open_video("e", "cam", path)
    video = TimedVideo("e", "cam", path, "videos/v.mkv", 0.0, 10.0)
    for read in (lambda: video.check([0.0, 0.2]), lambda: list(video.read([0.1]))):
        with pytest.raises(EpisodeError, match=rf"videos/v\.mkv .*{message}"):
            read()


TURNS: dict[str, tuple[tuple[int, int, int, int], Any]] = {
    "upright": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "upside down": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "counterclockwise": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "flipped": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transversed": ((0, -1, -1, 0), lambda p: p[::-1, ::-1].swapaxes(0, 1)),
}
"""a, b, c, d of a display matrix and what it does."""


def patch(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Write a display matrix into the header of an mp4's track."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    upright = (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    assert struct.unpack_from(">9i", data, matrix) == upright
    a, b, c, d = (round(n * ONE) for n in (a, b, c, d))
    struct.pack_into(">9i", data, matrix, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("turn", TURNS)
def test_a_display_matrix_is_applied(tmp_path: Path, turn: str) -> None:
    matrix, expected = TURNS[turn]
    drawn = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = write(tmp_path / "v.mp4", "yuv444p", pixels=np.kron(drawn, np.ones((8, 8, 1), np.uint8)))
    upright = both(path)
    patch(path, *matrix)
    np.testing.assert_array_equal(both(path), expected(upright))
    if matrix[0] * matrix[3] - matrix[1] * matrix[2] == 1:  # OpenCV turns and does not mirror
        capture = cv2.VideoCapture(str(path))
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # in OpenCV 4.11 it is off
        done, image = capture.read()
        assert done
        assert np.abs(image[..., ::-1].astype(int) - expected(upright)).max() <= 4


@pytest.mark.parametrize(
    "matrix", [(0.7071, 0.7071, -0.7071, 0.7071), (2, 0, 0, 2), (1, 0.5, 0, 1)]
)
def test_another_display_matrix_is_refused(tmp_path: Path, matrix: tuple[float, ...]) -> None:
    path = write(tmp_path / "v.mp4")
    patch(path, *matrix)
    with pytest.raises(EpisodeError, match="display matrix of .* re-encode the video upright"):
        list(open_video("e", "cam", path).read([0]))


def test_two_streams_of_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("ffv1", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for stream in streams:
            frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
            frame.pts = 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    with pytest.raises(EpisodeError, match="has 2 video streams, and a camera is one"):
        open_video("e", "cam", path)
