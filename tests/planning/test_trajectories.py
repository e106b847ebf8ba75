"""Windows of a stream: what a window shows, and where none may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from planning.trajectories import Trajectories, breaks, within


def stream(lengths: list[int]) -> np.ndarray:
    """Walks of 0.01 m a step along x, each 10 m from the one before; y counts the steps."""
    parts = [np.stack([10.0 * k + 0.01 * np.arange(n), np.full(n, k)], 1) for k, n in enumerate(lengths)]
    return np.concatenate(parts)


def test_a_stream_breaks_where_the_ball_cannot_have_come():
    assert np.flatnonzero(breaks(stream([5, 1, 7]))).tolist() == [4, 5, 12]


def test_every_window_that_fits_is_there_once_and_none_that_crosses_a_break():
    xy, horizon, strides = stream([20, 7, 30]), 4, (2, 5)
    windows = Trajectories(xy, horizon, strides)
    seen = set()
    batch = windows.batch(torch.arange(len(windows)))
    for nodes, dt in zip(batch["xy"].double().numpy(), batch["dt"].tolist(), strict=True):
        stride = round(dt / 0.01)
        np.testing.assert_allclose(np.diff(nodes[:, 0]), 0.01 * stride, atol=1e-5)
        assert len(set(nodes[:, 1])) == 1
        seen.add((round(nodes[0, 0] * 100), stride))
    expected = {
        (1000 * k + i, stride)
        for k, n in enumerate([20, 7, 30])
        for stride in strides
        for i in range(n - stride * (horizon - 1))
    }
    assert seen == expected and len(windows) == len(expected)


@pytest.mark.parametrize(
    ("xy", "message"),
    [
        (stream([5, 5]), "streams of at most 5 steps; expected 7"),
        (np.where(np.arange(40)[:, None] == 7, np.nan, stream([40])), "not finite at step 7"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(xy, message):
    with pytest.raises(WorkbenchError, match=message):
        Trajectories(xy, 4, (2,))


def test_what_is_learned_from_a_region_lies_in_it_and_never_jumps():
    xy = stream([20, 30])
    # of both walks the middle part; the first is broken by a hole of two steps besides
    inside, ends = within(xy, breaks(xy), [0.045, -1.0, 10.105, 2.0])
    assert inside.tolist() == xy[[*range(5, 20), *range(20, 31)]].tolist()
    assert np.flatnonzero(ends).tolist() == [14, 25]
    there_and_back = np.concatenate([xy[:10], xy[9::-1], xy[:10]])
    inside, ends = within(there_and_back, breaks(there_and_back), [-1.0, -1.0, 0.045, 1.0])
    assert inside[:, 0].max() < 0.045 and np.flatnonzero(ends).tolist() == [4, 14]
    windows = Trajectories(inside, 3, (1,), ends=ends)
    moved = windows.batch(torch.arange(len(windows)))["xy"][..., 0].diff(dim=1).abs()
    assert float(moved.max()) < 0.0101


def test_a_region_without_a_place_is_refused():
    with pytest.raises(WorkbenchError, match=r"none of 5 places lies"):
        within(stream([5]), breaks(stream([5])), [3.0, 3.0, 4.0, 4.0])
