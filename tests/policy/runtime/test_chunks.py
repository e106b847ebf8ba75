"""Which of several chunks that speak of a step is obeyed."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from policy.runtime.chunks import Chunk, ChunkQueue, Ensemble


def chunk(begins: int, values: list[float], origin: int | None = None) -> Chunk:
    return Chunk(begins, np.array(values, np.float32)[:, None], begins if origin is None else origin)


def test_a_chunk_speaks_of_its_own_control_steps():
    one = chunk(5, [10, 11, 12])
    assert [one.covers(step) for step in (4, 5, 7, 8)] == [False, True, True, False]
    assert (float(one.at(5)[0]), float(one.at(7)[0]), one.ends) == (10.0, 12.0, 8)


def test_the_newest_chunk_is_obeyed_where_it_speaks_and_the_older_one_beyond():
    queue = ChunkQueue()
    queue.push(chunk(0, [0, 1, 2, 3, 4, 5]))
    queue.push(chunk(2, [20, 30]))
    assert [float(queue.at(step)[0]) for step in range(6)] == [0, 1, 20, 30, 4, 5]


@pytest.mark.parametrize("m", [0.0, 0.01, 1.5])
def test_the_ensemble_weighs_the_oldest_most(m):
    queue = ChunkQueue(Ensemble(m))
    for begins, value in ((0, 1.0), (1, 10.0), (2, 100.0)):
        queue.push(chunk(begins, [value] * 4))
    w = [1.0, float(np.exp(-m)), float(np.exp(-2 * m))]
    assert float(queue.at(2)[0]) == pytest.approx((w[0] + 10 * w[1] + 100 * w[2]) / sum(w))
    # the first is over at step 4: the second is then the oldest
    assert float(queue.at(4)[0]) == pytest.approx((10 * w[0] + 100 * w[1]) / (w[0] + w[1]))


def test_what_is_over_is_forgotten_and_what_nobody_planned_is_refused():
    queue = ChunkQueue()
    queue.push(chunk(0, [0, 1, 2]))
    queue.drop_before(2)
    assert queue.covers(2)
    with pytest.raises(WorkbenchError, match="got step 3, but the chunks end before step 3"):
        queue.at(3)
    queue.drop_before(3)
    assert not queue.covers(2)


def test_chunks_that_come_out_of_order_are_refused():
    queue = ChunkQueue()
    queue.push(chunk(4, [1.0]))
    with pytest.raises(WorkbenchError, match="a chunk of step 4 after one of step 4"):
        queue.push(chunk(4, [1.0]))
    with pytest.raises(WorkbenchError, match="got m=-1"):
        Ensemble(-1.0)
