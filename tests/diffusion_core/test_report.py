"""Films side by side: where each is, how it is shrunk, and what it shows when it is over."""

import numpy as np

from diffusion_core.report import shrunk, side_by_side


def film(colour: int, steps: int) -> list[np.ndarray]:
    return [np.full((6, 8, 3), colour + step, np.uint8) for step in range(steps)]


def test_every_film_is_in_its_place_and_one_that_is_over_pales():
    frames = side_by_side([film(10, 3), film(50, 1), film(90, 2)], width=2, gap=1)
    assert len(frames) == 3 and {frame.shape for frame in frames} == {(13, 17, 3)}
    assert [int(frame[0, 0, 0]) for frame in frames] == [10, 11, 12]
    assert [int(frame[0, 9, 0]) for frame in frames] == [50, 50 // 2 + 127, 50 // 2 + 127]
    assert [int(frame[7, 0, 0]) for frame in frames] == [90, 91, 91 // 2 + 127]
    assert all((frame[7:, 9:] == 255).all() and (frame[6] == 255).all() for frame in frames)


def test_wide_films_shrink_to_fit():
    frames = side_by_side([film(10, 1)] * 4, width=4, most=20, gap=1)
    assert frames[0].shape == (3, 4 * 4 + 3, 3)
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    np.testing.assert_array_equal(shrunk(image, 2)[0, 0], np.round(image[:2, :2].mean((0, 1))))
    assert shrunk(image, 2).shape == (2, 2, 3)
