from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from attnstore.store.format.precision import absent, decode, dtype, encode, log8_table

Floats = NDArray[np.float32]

weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=8),
    elements=st.floats(0, 1, width=32) | st.just(math.nan) | st.floats(0, 2**-10, width=32),
)
# every float32 exponent of the coded range, densely, and both ends
DENSE: Floats = np.exp2(np.linspace(-17.5, 0, 200_001)).astype(np.float32)


def nearest_code(weight: float) -> tuple[float, int]:
    """The definition, slowly: distance in octaves to the nearest level, and its code."""
    distances = ((abs(math.log2(weight) - 16 * (code - 254) / 253), code) for code in range(1, 255))
    return min(distances)


def test_table_is_the_format() -> None:
    """Golden values of format version 1; a change here breaks every store in the world."""
    lut = log8_table()
    assert lut.shape == (256,)
    assert lut.dtype == np.float32
    assert lut[0] == 0
    assert lut[1] == np.float32(2**-16)
    assert lut[254] == 1
    assert np.isnan(lut[255])
    for code in range(1, 255):
        assert lut[code] == pytest.approx(2 ** (16 * (code - 254) / 253), rel=1e-7)


@given(st.floats(2**-17, 1, width=32))
def test_log8_takes_the_nearest_level_of_the_logarithm(weight: float) -> None:
    distance, _ = nearest_code(weight)
    code = int(encode(np.array([weight], np.float32), "log8")[0])
    assert 1 <= code <= 254
    chosen = abs(math.log2(weight) - 16 * (code - 254) / 253)
    assert chosen <= distance + 1e-5  # two levels may be equally near up to float32 rounding


def test_log8_relative_error() -> None:
    inside = DENSE[DENSE >= 2**-16]
    back = decode(encode(inside, "log8"), "log8")
    worst = float(np.max(np.abs(back - inside) / inside))
    assert 0.022 < worst <= 2 ** (8 / 253) - 1 + 2e-6
    assert worst <= 0.023


def test_log8_absolute_error_below_the_lowest_level() -> None:
    below = np.append(DENSE[DENSE < 2**-16], np.float32(0))
    back = decode(encode(below, "log8"), "log8")
    assert np.max(np.abs(back - below)) <= 2**-17


def test_log8_boundary_of_zero() -> None:
    edge = np.float32(2**-17)
    just_below = np.nextafter(edge, np.float32(0))
    smallest = np.nextafter(np.float32(0), np.float32(1))
    codes = encode(np.array([edge, just_below, smallest, 0.0, -0.0], np.float32), "log8")
    assert_array_equal(codes, [1, 0, 0, 0, 0])


def test_log8_is_monotonic() -> None:
    codes = encode(np.sort(DENSE), "log8").astype(int)
    assert (np.diff(codes) >= 0).all()
    assert set(codes) == set(range(255))


def test_log8_codes_are_fixed_points() -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert_array_equal(encode(log8_table(), "log8"), codes)


@given(weights)
def test_log8_decodes_through_the_table_alone(values: Floats) -> None:
    codes = encode(values, "log8")
    assert codes.dtype == dtype("log8") == np.uint8
    assert codes.shape == values.shape
    assert_array_equal(decode(codes, "log8"), log8_table()[codes])
    assert_array_equal(codes == 255, np.isnan(values))
    assert_array_equal(decode(codes, "log8") == 0, values < 2**-17)


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("precision", ["float16", "log8"])
def test_any_float_type_is_coded_alike(source: type[np.floating], precision: str) -> None:
    values = np.array([0, 2**-14, 0.125, 0.3330078125, 1, np.nan])
    assert_array_equal(encode(values.astype(source), precision), encode(values, precision))


def every_bfloat16_weight() -> Floats:
    """All 16,257 bfloat16 numbers from 0 to 1."""
    one = int(np.float32(1).view(np.uint32)) >> 16  # a bfloat16 is the upper half of a float32
    return (np.arange(one + 1, dtype=np.uint32) << 16).view(np.float32)


def test_float16_of_every_bfloat16_weight() -> None:
    """bfloat16's 8 bits fit float16's 11 down to 2**-17; below, spacing 2**-24 rounds."""
    values = every_bfloat16_weight()
    assert len(values) == 16_257
    assert values[-1] == 1
    error = np.abs(encode(values, "float16").astype(np.float32) - values)
    assert error.max() <= 2**-25 < 3e-8
    assert error[values >= 2**-17].max() == 0
    assert error[values < 2**-17].max() == 2**-25


@given(weights)
def test_float16_is_rounded_to_the_nearest(values: Floats) -> None:
    stored = encode(values, "float16")
    assert stored.dtype == dtype("float16") == np.float16
    assert decode(stored, "float16") is stored
    assert_array_equal(np.isnan(stored.astype(np.float32)), np.isnan(values))
    present = ~np.isnan(values)
    _, exponent = np.frexp(values[present])  # 11 significant bits, the least of them 2**-24
    spacing = np.exp2(np.maximum(exponent - 11, -24).astype(np.float64))
    assert (np.abs(stored[present].astype(np.float64) - values[present]) <= spacing / 2).all()


@pytest.mark.parametrize("precision", ["float16", "log8"])
def test_absent_is_what_nan_becomes_and_makes_no_warning(precision: str) -> None:
    stored = encode(np.full((2, 3), np.nan, np.float32), precision)
    assert_array_equal(stored, np.full((2, 3), absent(precision), dtype(precision)))
    assert np.isnan(decode(stored, precision)).all()


@pytest.mark.parametrize("precision", ["float16", "log8"])
def test_an_empty_block(precision: str) -> None:
    assert encode(np.empty((0, 4), np.float32), precision).shape == (0, 4)


@pytest.mark.parametrize("precision", ["float16", "log8"])
@pytest.mark.parametrize("wrong", [-1e-6, 1.01, math.inf, -math.inf])
def test_what_is_no_weight_is_refused(precision: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=r"weights lie in 0\.\.1; got"):
        encode(np.array([0.5, math.nan, wrong], np.float32), precision)


def test_rounding_above_one_is_one() -> None:
    assert decode(encode(np.array([1.0005], np.float32), "log8"), "log8") == 1


def test_an_unknown_precision_names_the_known_ones() -> None:
    message = "one of float16, log8; got 'float8'"
    with pytest.raises(ValueError, match=message):
        dtype("float8")
    with pytest.raises(ValueError, match=message):
        encode(np.zeros(1, np.float32), "float8")
    with pytest.raises(ValueError, match=message):
        decode(np.zeros(1, np.float16), "float8")
