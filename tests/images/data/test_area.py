"""Area averages against exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.data.area import CHUNK, area_average, overlaps


def check_area_average(average, side: int, size: int) -> None:
    """The average of pixels each cut into size x size parts, by whole numbers."""
    pixels = np.random.default_rng(side * 100 + size).integers(0, 256, (2, 3, side, side), dtype=np.uint8)
    parts = np.repeat(np.repeat(pixels.astype(np.int64), size, -1), size, -2)
    sums = parts.reshape(2, 3, size, side, size, side).sum((3, 5))
    expected = [int(Fraction(int(v), side**2) + Fraction(1, 2)) for v in sums.flat]
    assert average(pixels, size).flatten().tolist() == expected


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 24).flatmap(lambda side: st.tuples(st.just(side), st.integers(1, side))))
def test_is_exact(sizes):
    check_area_average(area_average, *sizes)


def test_check_sees_a_filter_that_takes_whole_pixels_or_none():
    from PIL import Image

    def box(pixels, size):
        images = [Image.fromarray(p).resize((size, size), Image.Resampling.BOX) for p in pixels.reshape(6, 9, 9)]
        return np.stack([np.asarray(i) for i in images]).reshape(2, 3, size, size)

    with pytest.raises(AssertionError):
        check_area_average(box, 9, 6)


def test_overlaps_cover_everything_once():
    for side, size in [(5, 5), (9, 6), (3000, 32)]:
        assert (overlaps(side, size).sum(0) == size).all() and (overlaps(side, size).sum(1) == side).all()


def test_many_are_averaged_as_one_is():
    pixels = np.random.default_rng(0).integers(0, 256, (CHUNK + 3, 1, 4, 4), dtype=np.uint8)
    small = area_average(pixels, 2)
    for i in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        assert small[i].tolist() == area_average(pixels[i : i + 1], 2)[0].tolist()
