"""Windows of a stream: what a window shows, and where none may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from planning.trajectories import Trajectories, breaks


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
