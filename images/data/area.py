"""Area: make square pictures smaller by averaging, exactly and with the same bytes on every machine."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float64, UInt8

CHUNK = 4096


@functools.lru_cache(maxsize=256)
def overlaps(side: int, size: int) -> Float64[np.ndarray, "size side"]:
    """Return by how much each old pixel lies under each new one, in units of 1/size of an old pixel.

        o_ks = max(0, min((k + 1) side, (s + 1) size) - max(k side, s size)),    Σ_s o_ks = side

    Whole numbers, so that float64 sums of them are exact.
    """
    k, s = np.arange(size)[:, None], np.arange(side)
    length = np.minimum((k + 1) * side, (s + 1) * size) - np.maximum(k * side, s * size)
    return np.maximum(length, 0).astype(np.float64)


def area_average(
    pixels: UInt8[np.ndarray, "n channels side side"], size: int
) -> UInt8[np.ndarray, "n channels size size"]:
    """Average the area under each new pixel, old pixels by the share of them that lies under it; halves round up.

        y_kl = floor(Σ_sr o_ks o_lr x_sr / side^2 + 1/2)

    Pillow's BOX filter takes whole pixels or none, which shifts the picture when side is no multiple of size.

    Args:
        pixels: of side at least `size`.
        size: new side.
    """
    side = pixels.shape[-1]
    if side == size:
        return pixels
    weights = overlaps(side, size)
    small = np.empty((*pixels.shape[:2], size, size), np.uint8)
    for begin in range(0, len(pixels), CHUNK):
        chunk = pixels[begin : begin + CHUNK]
        rows = np.empty((*chunk.shape[:2], size, side))
        for k in range(size):
            # only the old rows under the new one, so that a photograph is never held whole in float64
            low, high = k * side // size, -(-(k + 1) * side // size)
            rows[:, :, k] = weights[k, low:high] @ chunk[:, :, low:high]
        small[begin : begin + CHUNK] = (2 * (rows @ weights.T) + side**2) // (2 * side**2)
    return small
