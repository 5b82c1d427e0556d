"""What images are taken, what their pixels are, and that every decoder has the same of a plain one."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_kinds import REFUSED, TAKEN, exif, jpeg, picture, pillow, png, with_segment
from PIL import Image, ImageOps

from attnstore.store.image import (
    DamagedImageError,
    ImageError,
    UnsupportedImageError,
    decode,
    plain,
    read_header,
)


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.filterwarnings("error")
def test_pixels_are_those_of_the_file_and_every_decoder_shows_them(kind: str) -> None:
    data, expected = TAKEN[kind]
    np.testing.assert_array_equal(decode(data), expected)
    kept, media_type = plain(data)
    header = read_header(kept)
    assert (header.media_type, header.height, header.width) == (media_type, *expected.shape[:2])
    assert plain(kept) == (kept, media_type)
    np.testing.assert_array_equal(decode(kept), expected)
    # Pillow turned as EXIF says, alpha applied; OpenCV as people call it, which turns too
    with Image.open(io.BytesIO(kept)) as image:
        assert image.format == {"image/jpeg": "JPEG", "image/png": "PNG"}[media_type]
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "adobe",
                                   "adobe_transform", "progressive", "progression", "interlace"}  # fmt: skip
        np.testing.assert_array_equal(ImageOps.exif_transpose(image).convert("RGB"), expected)
    by_opencv = cv2.imdecode(np.frombuffer(kept, np.uint8), cv2.IMREAD_COLOR)
    assert by_opencv is not None
    np.testing.assert_array_equal(by_opencv[..., ::-1], expected)


@pytest.mark.parametrize(
    "kind",
    ["jpeg", "jpeg 4:4:4", "jpeg progressive", "jpeg grey", "jpeg rgb", "png rgb", "png grey"],
)
def test_a_plain_file_keeps_its_own_bytes(kind: str) -> None:
    data, _ = TAKEN[kind]
    assert plain(data)[0] == data


def test_a_jpeg_is_not_coded_anew() -> None:
    """What stands beside the coded pixels is left out, and the second picture."""
    base, _ = TAKEN["jpeg"]
    for kind in ("jpeg turned, with a profile", "jpeg and a second one"):
        assert plain(TAKEN[kind][0])[0] == base


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_exact_picture_is_refused_by_name(kind: str) -> None:
    data, message = REFUSED[kind]
    for read in (decode, plain, read_header):
        with pytest.raises(UnsupportedImageError, match=message):
            read(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_an_orientation_says(orientation: int) -> None:
    pixels = picture()
    made = [
        with_segment(jpeg(pixels), 0xE1, b"Exif\0\0" + exif(orientation)),
        with_segment(jpeg(pixels), 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01"
                     + bytes((0, orientation)) + b"\0\0\0\0\0\0"),
    ]  # fmt: skip
    for data in made:
        assert read_header(data).orientation == orientation
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        kept, media_type = plain(data, upright=True)
        np.testing.assert_array_equal(decode(kept), expected)
        assert media_type == ("image/jpeg" if orientation == 1 else "image/png")
        np.testing.assert_array_equal(decode(plain(data)[0]), pillow(jpeg(pixels)))


def test_damage_is_seen() -> None:
    flipped = bytearray(TAKEN["png rgb"][0])
    flipped[60] ^= 1
    for data, message in (
        (b"", "empty"),
        (b"not an image", "neither JPEG, PNG nor WebP"),
        (bytes(flipped), "PNG chunk 'IDAT' fails its checksum"),
        (png(picture().reshape(36, -1)[:20], 2), "truncated"),
        (TAKEN["webp"][0][:-9], "the WebP file ends before its image"),
        (jpeg(picture())[:2] + b"\0" * 999, "no JPEG end-of-image marker"),
        (jpeg(picture())[:-2], "no JPEG end-of-image marker"),
    ):
        with pytest.raises(DamagedImageError, match=message):
            decode(data)


@settings(max_examples=600, deadline=None)
@given(
    kind=st.sampled_from([*TAKEN, *REFUSED]),
    cut=st.integers(0, 8000),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
)
def test_mutated_files_are_decoded_or_refused(
    kind: str, cut: int, changes: list[tuple[int, int]]
) -> None:
    """Nothing else is raised; and what is decoded is what the plain file is decoded to."""
    data = bytearray((TAKEN | REFUSED)[kind][0][: cut if cut < 4000 else None])
    for place, value in changes:
        if place < len(data):
            data[place] = value
    said = None
    try:
        pixels = decode(bytes(data))
        kept, _ = plain(bytes(data))
    except ImageError as error:
        said = str(error)
    if said is None:
        np.testing.assert_array_equal(decode(kept), pixels)
    else:
        assert said
        assert "\n" not in said
        assert " at 0x" not in said
