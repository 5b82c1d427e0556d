"""Anti-aliased text on pictures.

Each text is rasterised once; afterwards writing it costs a multiplication of a few pixels.

Pillow's own font has little beyond ASCII, and an instruction may be in any script. A text with
other characters is set in the font that OpenCV 5 carries, which has Latin, Greek, Cyrillic, Hebrew,
Chinese, Japanese, Korean and mathematics. What no font has (emoji; all of these with OpenCV 4) is
written as its code point, ``U+1F916``, never as a sign that stands for another text. A font file can
be passed.
"""

from __future__ import annotations

from functools import cache, lru_cache
from threading import Lock
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from attnstore.store.errors import NotFoundError

Canvas = NDArray[np.uint8]
Color = tuple[int, int, int]
Anchor = Literal["left", "right", "center"]

LONGEST = 600
"""Characters of a text that are looked at; more would never fit, and a store is untrusted."""
WEIGHT = 400
"""Of OpenCV's variable font: regular."""
SMALLEST = 12
"""Font size in pixels below which a text is cut short rather than shrunk."""


@lru_cache(maxsize=64)
def _font(size: int, path: str | None) -> ImageFont.FreeTypeFont:
    if path is None:
        found = ImageFont.load_default(size)
        if isinstance(found, ImageFont.FreeTypeFont):
            return found
        raise NotFoundError("Pillow was built without FreeType; reinstall it from its wheel")
    try:
        return ImageFont.truetype(path, size)
    except OSError:
        raise NotFoundError(f"{path} is not a font file that Pillow can read") from None


def printable(text: str) -> str:
    """Text on one line: control characters and lone surrogates replaced, overlong text cut."""
    text = text[:LONGEST].encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@lru_cache(maxsize=4096)
def _has(character: str, font: str | None) -> bool:
    """Whether Pillow's own font, or a font file, has a character: does not draw its box for it."""
    face = _font(24, font)
    return character == " " or bytes(face.getmask(character)) != bytes(face.getmask("\uffff"))


_SIGNS = {
    "–": "-", "—": "-", "−": "-", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "δ": "delta",
    "‘": "'", "’": "'", "“": '"', "”": '"', "…": "...",
}  # fmt: skip
"""What stands for signs of our own texts in a font without them, as Pillow's is without some."""

_opencv_text = Lock()  # its fonts keep state while they draw


@cache
def _opencv_face() -> cv2.FontFace | None:
    return cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None


@lru_cache(maxsize=4096)
def _opencv_has(character: str) -> bool:
    """Whether OpenCV's font has a character: it draws a question mark for others."""
    with _opencv_text:
        face = _opencv_face()
        if face is None:
            return False
        drawn = []
        for each in (character, "?"):
            canvas = np.zeros((40, 60, 1), np.uint8)
            cv2.putText(canvas, each, (5, 30), (255,), face, 24, WEIGHT)
            drawn.append(canvas.tobytes())
        return character == "?" or drawn[0] != drawn[1]


def _foreign(text: str, font: str | None) -> cv2.FontFace | None:
    """OpenCV's font, if the text needs it and it is there."""
    if font is not None or all(_has(c, None) for c in text):
        return None
    with _opencv_text:
        return _opencv_face()


def spelled(text: str, font: str | None = None) -> str:
    """Text on one line as a font can show it: characters that it lacks by their code points.

    Examples
    --------
    >>> spelled("18 layers × 8 heads")
    '18 layers x 8 heads'
    >>> spelled("lift 🤖🍎 up")
    'lift U+1F916 U+1F34E up'
    """
    text = "".join(c for c in printable(text) if not 0xFE00 <= ord(c) <= 0xFE0F)  # say how, no more
    lacking = {c for c in set(text) if not _has(c, font)}
    if lacking <= _SIGNS.keys():  # no reason to leave a font
        return "".join(_SIGNS[c] if c in lacking else c for c in text)
    if font is None and _opencv_face() is not None:
        lacking = {c for c in set(text) if not _opencv_has(c)}
    if not lacking:
        return text
    parts = [_SIGNS.get(c, f" U+{ord(c):04X} ") if c in lacking else c for c in text]
    return " ".join("".join(parts).split())


@lru_cache(maxsize=4096)
def width(text: str, size: int, font: str | None = None) -> int:
    """Width of a text in pixels."""
    foreign = _foreign(text, font)
    if foreign is not None:
        with _opencv_text:
            left, _, wide, _ = cv2.getTextSize((1, 1), text, (0, 0), foreign, size, WEIGHT)
        return max(0, left + wide) + 1
    return int(np.ceil(_font(size, font).getlength(text)))


@lru_cache(maxsize=2048)
def raster(text: str, size: int, font: str | None = None) -> NDArray[np.uint8]:
    """Coverage of each pixel by a text, (line height, width) uint8, read-only."""
    face = _font(size, font)
    ascent, descent = face.getmetrics()
    foreign = _foreign(text, font)
    shape = ascent + descent, max(1, width(text, size, font))
    if foreign is not None:
        canvas = np.zeros((*shape, 1), np.uint8)
        with _opencv_text:
            cv2.putText(canvas, text, (0, ascent), (255,), foreign, size, WEIGHT)
        pixels = canvas[..., 0]
    else:
        mask = Image.new("L", shape[::-1])
        ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=face)
        pixels = np.array(mask)
    pixels.setflags(write=False)
    return pixels


@lru_cache(maxsize=2048)
def fit(
    text: str, room: int, size: int, smallest: int = SMALLEST, font: str | None = None
) -> tuple[str, int]:
    """Shrink a text to the room it has, then cut it short with an ellipsis.

    Parameters
    ----------
    room
        Width in pixels.
    size, smallest
        Font size wanted, and the least that is still readable, in pixels.

    Returns
    -------
    (text, size) that fits; the text is empty where not even an ellipsis does.
    """
    text = spelled(text, font)
    while size > smallest and width(text, size, font) > room:
        size -= 1
    if width(text, size, font) <= room:
        return text, size
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if width(text[:middle].rstrip() + "…", size, font) <= room:
            low = middle
        else:
            high = middle - 1
    return (text[:low].rstrip() + "…" if low else ""), size


def write(
    canvas: Canvas,
    text: str,
    x: int,
    y: int,
    *,
    size: int,
    color: Color,
    room: int | None = None,
    anchor: Anchor = "left",
    smallest: int = SMALLEST,
    font: str | None = None,
) -> str:
    """Write a text onto a canvas, in place.

    Parameters
    ----------
    canvas
        (height, width, 3) uint8 RGB; what leaves it is cut off.
    x, y
        Pixel of the anchor, and of the vertical middle of a line in the size asked for; a text
        that had to shrink stays on that line's baseline.
    room
        Width in pixels that the text may take; unlimited by default.

    Returns
    -------
    The text as it was written, shortened where it had to be.
    """
    text, wanted = spelled(text, font), size
    if room is not None:
        text, size = fit(text, room, size, min(smallest, size), font)
    if not text:
        return ""
    mask = raster(text, size, font)
    left = x - {"left": 0, "right": mask.shape[1], "center": mask.shape[1] // 2}[anchor]
    ascent, descent = _font(wanted, font).getmetrics()
    top = y - (ascent + descent) // 2 + ascent - _font(size, font).getmetrics()[0]
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + mask.shape[0], canvas.shape[0]), min(left + mask.shape[1], canvas.shape[1])
    if y0 >= y1 or x0 >= x1:
        return text
    share = mask[y0 - top : y1 - top, x0 - left : x1 - left, None].astype(np.uint16)
    under = canvas[y0:y1, x0:x1].astype(np.uint16)
    mixed = under * (255 - share) + share * np.asarray(color, np.uint16)
    canvas[y0:y1, x0:x1] = (mixed + 127) // 255
    return text
