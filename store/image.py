"""Encoded camera images: what may be stored, and the one rule of what their pixels are.

An image is stored *plain*: a baseline or progressive JPEG of 8 bits in grey or colour, or a PNG of 8
bits in grey or RGB, with nothing else in the file that a reader might act on: no orientation, no
profile or gamma, no alpha, no second picture. Every decoder shows such a file alike, so that a
browser, Rerun, OpenCV and this package have the policy's pixels. `plain` makes one of what a dataset
holds: it leaves a file alone that is plain already, drops what stands beside the coded pixels
without touching these, and codes everything else anew as PNG. What has no exact picture of 8 bits
is refused by name.

Sources: ITU-T T.81 and JFIF 1.02 (JPEG), W3C Portable Network Graphics third edition (PNG), RFC 9649
(WebP), TIFF 6.0 as EXIF 2.32 uses it (orientation).
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 1 << 25
"""Largest image: one of 8K UHD fits. Decoded it takes 134 MB in a browser."""
LFS = b"version https://git-lfs"
"""How a pointer of Git LFS begins, which a clone may have instead of a file."""
JPEG, PNG, WEBP = "image/jpeg", "image/png", "image/webp"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
"""Of a JPEG within coded data, where stuffed zeros and restarts are none."""
_UNREADABLE_FRAMES = {
    0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical",
    0xC9: "arithmetic coding", 0xCA: "arithmetic coding", 0xCB: "lossless", 0xCD: "hierarchical",
    0xCE: "hierarchical", 0xCF: "lossless",
}  # fmt: skip
_ADAM7 = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
"""Passes of an interlaced PNG: first column and row, and the distances of the next."""
_MOST_SCANS = 500
"""Of a progressive JPEG: an encoder writes about ten, a hostile one thousands that take minutes."""
_NAMES = {
    b"GIF8": "GIF", b"BM": "BMP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF", b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL", b"\x00\x00\x00\x0cJXL": "JPEG XL", b"v/1\x01": "OpenEXR", b"\x93NUMPY": "NumPy array",
}  # fmt: skip


class ImageError(ValueError):
    """An image that is not taken; the message is the rule that it breaks."""


class DamagedImageError(ImageError):
    """The bytes are no complete image."""


class UnsupportedImageError(ImageError):
    """A complete image without exact pixels of 8 bits a channel; the message says what would help."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's bytes say of it, undecoded."""

    media_type: str
    """``image/jpeg``, ``image/png`` or ``image/webp``."""
    width: int
    """Pixels, as stored."""
    height: int
    orientation: int
    """EXIF's, 1 to 8; 1 if it has none."""
    stripped: bytes | None
    """The image without what stands beside its pixels; None if only `plain` can make one."""


def plain(data: bytes, *, upright: bool = False) -> tuple[bytes, str]:
    """Return an image that every decoder shows alike, and its media type.

    Parameters
    ----------
    data
        JPEG, PNG or WebP.
    upright
        Turn the pixels as an EXIF orientation says, for data sets whose own reader does. Else they
        stay as they are stored and the orientation is dropped.

    Returns
    -------
    The bytes themselves where they are plain already.

    Raises
    ------
    DamagedImageError
        If the bytes are no complete image.
    UnsupportedImageError
        If it has no exact picture of 8 bits a channel, or more than `MOST_PIXELS` pixels.
    """
    header = read_header(data)
    turned = upright and header.orientation != 1
    if header.stripped is not None and not turned:
        return header.stripped, header.media_type
    pixels = _decode(data if header.stripped is None else header.stripped, header)
    return encode_png(_turn(pixels, header.orientation) if turned else pixels), PNG


def decode(data: bytes) -> NDArray[np.uint8]:
    """Return an image's pixels, as stored: an EXIF orientation is not applied, alpha is left out.

    These are the pixels of what `plain` makes of it.

    Returns
    -------
    (height, width, 3) RGB.

    Raises
    ------
    DamagedImageError
        If the bytes are no complete image.
    UnsupportedImageError
        If it has no exact picture of 8 bits a channel, or more than `MOST_PIXELS` pixels.
    """
    header = read_header(data)
    return _decode(data if header.stripped is None else header.stripped, header)


def read_header(data: bytes) -> Header:
    """Read what an image is without decoding it.

    Raises
    ------
    DamagedImageError
        If the bytes are no image, or end before it does.
    UnsupportedImageError
        If it has no exact picture of 8 bits a channel, or more than `MOST_PIXELS` pixels.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            header = _jpeg(data)
        elif data.startswith(_PNG_SIGNATURE):
            header = _png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            header = _webp(data)
        else:
            raise _unknown(data)
    except (struct.error, IndexError):
        raise DamagedImageError("truncated: it ends within its header") from None
    if header.width * header.height == 0:
        raise DamagedImageError(f"it is {header.width}x{header.height} pixels")
    if header.width * header.height > MOST_PIXELS:
        raise UnsupportedImageError(
            f"{header.width}x{header.height} pixels are more than {MOST_PIXELS}; store it smaller"
        )
    return header


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels, (height, width, 3) RGB, as a plain PNG.

    Examples
    --------
    >>> pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    >>> bool((decode(encode_png(pixels)) == pixels).all())
    True
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _decode(data: bytes, header: Header) -> NDArray[np.uint8]:
    from PIL import Image

    if header.media_type == PNG:
        _check_rows(data)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            image.load()
            # Pillow warns where a palette's is left out; colours are as they stand in the file.
            image.info.pop("transparency", None)
            pixels = np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        # a decoder's text may carry the buffer's address
        brief = " ".join(str(error).partition(" <")[0].split()) or type(error).__name__
        raise DamagedImageError(brief) from error
    if pixels.shape != (header.height, header.width, 3):
        raise DamagedImageError(
            f"its header says {header.width}x{header.height}, it has "
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
        )
    return pixels


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels as EXIF says: rows and columns are swapped last, for orientations 5 to 8."""
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if vertical:
        pixels = pixels[::-1]
    if horizontal:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _jpeg(data: bytes) -> Header:
    kept = [data[:2]]
    frame: tuple[int, int, int, int] | None = None  # bits, height, width, channels
    orientation, scans, at = 1, 0, 2
    while True:
        marker, start, at = _segment(data, at)
        if marker == 0xD9:
            break
        body = data[start + 4 : at]
        if marker in _UNREADABLE_FRAMES:
            raise UnsupportedImageError(
                f"a JPEG of kind {_UNREADABLE_FRAMES[marker]}, which browsers do not show; "
                "store baseline JPEG or PNG"
            )
        if marker in (0xC0, 0xC1, 0xC2):
            if frame is not None:
                raise DamagedImageError("a JPEG of two frames")
            bits, height, width, channels = struct.unpack(">BHHB", body[:6])
            frame = bits, height, width, channels
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation(body[6:])
        elif marker == 0xDA:
            scans += 1
            coded = _MARKER.search(data, at)
            if coded is None:
                raise DamagedImageError("truncated: no JPEG end-of-image marker")
            at = coded.start()
        if _concerns_pixels(marker, body):
            kept.append(data[start:at])
    if frame is None or not scans:
        raise DamagedImageError("a JPEG without an image")
    bits, height, width, channels = frame
    if bits != 8:
        raise _deep(bits)
    if channels not in (1, 3):
        raise UnsupportedImageError(
            f"a JPEG of {channels} channels (CMYK): its colours depend on a profile; store RGB"
        )
    if height == 0:
        raise UnsupportedImageError("a JPEG that says its height at its end; store it anew")
    if scans > _MOST_SCANS:
        raise UnsupportedImageError(f"a JPEG of {scans} scans; at most {_MOST_SCANS} are read")
    stripped = b"".join([*kept, b"\xff\xd9"])
    return Header(JPEG, width, height, orientation, stripped)


def _segment(data: bytes, at: int) -> tuple[int, int, int]:
    """Return a marker, where its segment starts, and where it ends; of a scan, its header."""
    if data[at : at + 1] != b"\xff":
        if not data[at:].strip(b"\0"):
            raise DamagedImageError("truncated: no JPEG end-of-image marker")
        raise DamagedImageError(f"no JPEG marker at byte {at}")
    while data[at + 1] == 0xFF:  # fill bytes
        at += 1
    marker = data[at + 1]
    if marker in (0x01, 0xD9) or 0xD0 <= marker <= 0xD7:
        return marker, at, at + 2
    end = at + 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    if end > len(data):
        raise DamagedImageError("truncated: no JPEG end-of-image marker")
    return marker, at, end


def _concerns_pixels(marker: int, body: bytes) -> bool:
    """Whether a decoder needs a segment: of application data, JFIF's and Adobe's colours alone."""
    if marker == 0xE0:
        return body.startswith(b"JFIF\0")
    if marker == 0xEE:
        return body.startswith(b"Adobe")
    return marker != 0xFE and not 0xE1 <= marker <= 0xEF


def _orientation(tiff: bytes) -> int:
    """EXIF's orientation, 1 if it has none or cannot be read."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * entry)
            if tag == 0x0112:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _png(data: bytes) -> Header:
    kept = [_PNG_SIGNATURE]
    orientation, transparent, ihdr = 1, False, b""
    for kind, body, whole in _chunks(data):
        if kind == b"IHDR" and not ihdr:
            ihdr = body
        elif not ihdr:
            raise DamagedImageError("a PNG that does not begin with its header")
        elif kind == b"acTL" and struct.unpack(">I", body[:4])[0] > 1:
            raise _animated("PNG")
        elif kind == b"tRNS":
            transparent = True
        elif kind == b"eXIf":
            orientation = _orientation(body)
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(whole)
    width, height, bits, colour, _, _, _ = struct.unpack(">IIBBBBB", ihdr)
    if bits == 16:
        raise _deep(bits)
    # without a palette, alpha or a colour that is transparent, a file's bytes are its pixels
    alike = bits == 8 and colour in (0, 2) and not transparent
    return Header(PNG, width, height, orientation, b"".join(kept) if alike else None)


def _check_rows(data: bytes) -> None:
    """Check that a PNG has all its rows: Pillow gives black ones for those that are not coded."""
    chunks = list(_chunks(data))
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    depth = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    if interlaced:
        passes = [
            (-(-(width - x) // across), -(-(height - y) // down))
            for x, y, across, down in _ADAM7
            if x < width and y < height
        ]
    else:
        passes = [(width, height)]
    expected = sum(rows * (1 + (cols * depth + 7) // 8) for cols, rows in passes)
    inflate = zlib.decompressobj()
    try:
        coded = b"".join(body for kind, body, _ in chunks if kind == b"IDAT")
        size = len(inflate.decompress(coded, expected + 1))
    except zlib.error as error:
        raise DamagedImageError(str(error)) from error
    if size < expected:
        raise DamagedImageError(f"truncated: {size} bytes of pixels, its header says {expected}")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield the type, the content and the whole of every chunk of a PNG, its checksum verified."""
    at = len(_PNG_SIGNATURE)
    while True:
        if at + 12 > len(data):
            raise DamagedImageError("truncated: no PNG end chunk")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise DamagedImageError("truncated: no PNG end chunk")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[at + 4 : end - 4]) != checksum:
            raise DamagedImageError(f"PNG chunk {kind.decode('latin-1')!r} fails its checksum")
        yield kind, data[at + 8 : end - 4], data[at:end]
        if kind == b"IEND":
            return
        at = end


def _webp(data: bytes) -> Header:
    if len(data) < 8 + int(struct.unpack_from("<I", data, 4)[0]):
        raise DamagedImageError("truncated: the WebP file ends before its image")
    kind, start = data[12:16], 20
    orientation = 1
    if kind == b"VP8X":
        if data[start] & 0x02:
            raise _animated("WebP")
        width, height = (
            1 + int.from_bytes(data[start + n : start + n + 3], "little") for n in (4, 7)
        )
        at = 12
        while at + 8 <= len(data):
            name, length = struct.unpack_from("<4sI", data, at)
            if name == b"EXIF":
                exif = data[at + 8 : at + 8 + length]
                orientation = _orientation(exif.removeprefix(b"Exif\0\0"))
            at += 8 + length + length % 2
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, start + 1)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", data, start + 6))
    else:
        raise DamagedImageError("a WebP file without an image")
    return Header(WEBP, width, height, orientation, None)


def _unknown(data: bytes) -> ImageError:
    name = next((name for start, name in _NAMES.items() if data.startswith(start)), None)
    if data[4:8] == b"ftyp":
        name = "AVIF or HEIF"
    if data.startswith(LFS):
        return DamagedImageError("a pointer of Git LFS is there instead (git lfs pull)")
    if name is not None:
        return UnsupportedImageError(f"{name}; an image is JPEG, PNG or WebP: store it so")
    return DamagedImageError("empty" if not data else "neither JPEG, PNG nor WebP")


def _deep(bits: int) -> UnsupportedImageError:
    return UnsupportedImageError(
        f"{bits} bits a channel, and a picture has 8: leave the camera out if it is depth, else store "
        "it with 8 bits"
    )


def _animated(format: str) -> UnsupportedImageError:
    return UnsupportedImageError(f"an animated {format}; a frame is one picture: store one each")
