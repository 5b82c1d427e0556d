"""Small image files of every kind, made by hand where no encoder makes them, with their pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

Pixels = NDArray[np.uint8]
SIZE = (36, 64)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Pixels:
    """Waves and some noise, (height, width, 3): a JPEG with subsampled chroma differs all over."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = np.stack([np.sin(x / 5 + seed), np.cos(y / 7), np.sin((x + y) / 9)], -1)
    return np.asarray((128 + 90 * waves + rng.normal(0, 9, waves.shape)).clip(0, 255), np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    buffer = io.BytesIO()
    old, ImageFile.MAXBLOCK = ImageFile.MAXBLOCK, 1 << 22  # a small progressive JPEG needs more
    try:
        image.save(buffer, format, **options)
    finally:
        ImageFile.MAXBLOCK = old
    return buffer.getvalue()


def jpeg(pixels: Pixels, **options: Any) -> bytes:
    """Encode as JPEG, chroma halved."""
    return encoded(Image.fromarray(pixels), "JPEG", **{"quality": 90, "subsampling": 2, **options})


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(
    rows: NDArray[Any], colour: int, bits: int = 8, extra: Sequence[bytes] = (), late: bytes = b""
) -> bytes:
    """A PNG from the bytes of its rows, (height, bytes a row); `extra` chunks before the pixels."""
    height, width = SIZE
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(scanlines)), late]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def interlaced(pixels: Pixels) -> bytes:
    """An RGB PNG in the seven passes of Adam7."""
    height, width = SIZE
    passes = [pixels[y::dy, x::dx] for x, y, dx, dy in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
    )]  # fmt: skip
    scanlines = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
    coded = chunk(b"IDAT", zlib.compress(scanlines))
    return b"\x89PNG\r\n\x1a\n" + header + coded + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    """EXIF with nothing but an orientation."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0\0\0\0"


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    """Put a segment right after a JPEG's first two bytes."""
    return data[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + data[2:]


def pillow(data: bytes) -> Pixels:
    """What Pillow says of an image that has nothing to decide."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), np.uint8)


def _taken() -> dict[str, tuple[bytes, NDArray[Any]]]:
    rgb = picture()
    height, width = SIZE
    grey = rgb[..., 1]
    of_grey = np.repeat(grey[..., None], 3, -1)
    alpha = np.tile(np.arange(width, dtype=np.uint8) * 4, (height, 1))  # from hidden to shown
    rgba = np.dstack([rgb, alpha]).reshape(height, -1)
    flat = rgb.reshape(height, -1)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    two = grey >> 6
    packed = (two[:, 0::4] << 6) | (two[:, 1::4] << 4) | (two[:, 2::4] << 2) | two[:, 3::4]
    profile = b"icc\0\0" + zlib.compress(b"no profile at all")
    base, progressive = jpeg(rgb), jpeg(rgb, progressive=True)
    noted = with_segment(base, 0xE1, b"Exif\0\0" + exif(6))
    noted = with_segment(with_segment(noted, 0xFE, b"comment"), 0xE2, b"ICC_PROFILE\0\1\1nothing")
    webp = encoded(Image.fromarray(rgb), "WEBP", quality=70)
    return {
        "jpeg": (base, pillow(base)),
        "jpeg 4:4:4": (jpeg(rgb, subsampling=0), pillow(jpeg(rgb, subsampling=0))),
        "jpeg progressive": (progressive, pillow(progressive)),
        "jpeg grey": (
            encoded(Image.fromarray(grey), "JPEG"), pillow(encoded(Image.fromarray(grey), "JPEG"))
        ),
        "jpeg rgb": (jpeg(rgb, keep_rgb=True, subsampling=0), pillow(jpeg(rgb, keep_rgb=True, subsampling=0))),
        "jpeg turned, with a profile": (noted, pillow(base)),
        "jpeg and a second one": (base + jpeg(picture(5)), pillow(base)),
        "png rgb": (png(flat, 2), rgb),
        "png rgb, gamma, profile, turned": (
            png(flat, 2, extra=[
                chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"iCCP", profile),
                chunk(b"eXIf", exif(6)),
            ]), rgb,
        ),
        "png interlaced": (interlaced(rgb), rgb),
        "png grey": (png(grey, 0), of_grey),
        "png grey, 1 bit": (png(np.packbits(grey > 127, axis=1), 0, 1), 255 * (of_grey > 127)),
        "png grey, 2 bits": (png(packed, 0, 2), 85 * (of_grey >> 6)),
        "png palette": (png(grey, 3, extra=[chunk(b"PLTE", palette.tobytes())]), palette[grey]),
        "png palette, alpha": (
            png(grey, 3, extra=[
                chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", bytes(range(256))),
            ]), palette[grey],
        ),
        "png alpha": (png(rgba, 6), rgb),
        "png grey, alpha": (png(np.dstack([grey, alpha]).reshape(height, -1), 4), of_grey),
        "png a transparent colour": (
            png(flat, 2, extra=[chunk(b"tRNS", struct.pack(">3H", *rgb[3, 4].tolist()))]), rgb,
        ),
        "webp": (webp, pillow(webp)),
        "webp lossless": (encoded(Image.fromarray(rgb), "WEBP", lossless=True), rgb),
        "webp alpha, turned": (
            encoded(
                Image.fromarray(np.dstack([rgb, alpha])), "WEBP", lossless=True, exact=True,
                exif=exif(6),
            ), rgb,
        ),
    }  # fmt: skip


TAKEN = {name: (data, np.asarray(pixels, np.uint8)) for name, (data, pixels) in _taken().items()}
"""Files that are taken, and what the policy sees of them, (height, width, 3)."""


def _refused() -> dict[str, tuple[bytes, str]]:
    rgb = picture()
    height, _ = SIZE
    deep = (rgb[..., :1].astype(">u2") * 16).reshape(height, -1)
    frames = [Image.fromarray(picture(n)) for n in range(3)]
    base = jpeg(rgb)
    frame = base.index(b"\xff\xc0")
    twelve = base[: frame + 4] + b"\x0c" + base[frame + 5 :]
    huge = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + huge + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    colours = np.repeat(deep.reshape(height, -1, 1), 3, -1).reshape(height, -1)
    wide = Image.new("RGB", (16_000, 4_000))
    return {
        "png grey, 16 bits": (png(deep, 0, 16), "16 bits a channel.* leave the camera out if"),
        "png rgb, 16 bits": (png(colours, 2, 16), "16 bits a channel"),
        "jpeg, 12 bits": (twelve, "12 bits a channel"),
        "jpeg cmyk": (
            encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG"), r"4 channels \(CMYK\)"
        ),
        "jpeg arithmetic": (base.replace(b"\xff\xc0", b"\xff\xc9", 1), "arithmetic coding"),
        "png animated": (
            encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), "an animated PNG"
        ),
        "webp animated": (
            encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "an animated WebP"
        ),
        "gif": (encoded(frames[0], "GIF"), "GIF; an image is JPEG, PNG or WebP"),
        "bmp": (encoded(frames[0], "BMP"), "BMP; an image is"),
        "tiff": (encoded(frames[0], "TIFF"), "TIFF; an image is"),
        "png 50000x50000": (bomb, "50000x50000 pixels are more than 33554432"),
        "webp 16000x4000": (encoded(wide, "WEBP"), "16000x4000 pixels are more than"),
    }  # fmt: skip


REFUSED = _refused()
"""Whole files that have no exact picture of 8 bits, or too large a one, and what is said."""
