"""One robot's bookkeeping: what it knows of the chunk to come, what it does meanwhile, and what it notes."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from policy.runtime.execution import Execution, Forecast, Timing
from tests.policy.runtime.conftest import row

TIMING = Timing(horizon=8, n_obs_steps=2, every=4)


def planned(first: float) -> np.ndarray:
    return np.arange(first, first + 8, dtype=np.float32)[:, None]


def begun(delay: int = 2) -> Execution:
    """A robot after four steps of its first chunk, whose actions are 0 for the step before the first, 1, 2, ..."""
    execution = Execution(TIMING, first_delay=delay)
    for step in range(4):
        execution.see(row(step))
        if step == 0:
            assert execution.due
            origin, plans = execution.ask()
            assert origin == 0 and not plans.known.any()
            execution.deliver(planned(0.0), origin)
        assert float(execution.act()[0]) == step + 1
    return execution


def test_plans_are_what_was_done_and_what_will_be_beside_the_rows_of_the_new_chunk():
    execution = begun(delay=2)
    execution.see(row(4))
    assert execution.due
    origin, plans = execution.ask()
    # rows are steps 3 to 10; the first chunk ends with step 6
    assert origin == 4
    assert plans.actions[:, 0].tolist() == [4, 5, 6, 7, 0, 0, 0, 0]
    assert plans.known.tolist() == [True] * 4 + [False] * 4
    # step 3 is over, 4 and 5 will be before the new chunk arrives
    assert plans.frozen.tolist() == [True] * 3 + [False] * 5
    assert not execution.due


def test_a_chunk_that_comes_late_is_joined_at_the_step_it_comes_in():
    execution = begun(delay=2)
    execution.see(row(4))
    origin, _ = execution.ask()
    assert float(execution.act()[0]) == 5.0
    execution.see(row(5))
    assert float(execution.act()[0]) == 6.0
    execution.see(row(6))
    execution.deliver(planned(100.0), origin)
    # row 1 is for step 4, so row 3 is for step 6, for which 7 was planned before
    assert float(execution.act()[0]) == 103.0
    record = execution.record
    assert (record.joins, record.gaps, record.delays, record.starved) == ([6], [96.0], [2], 0)


def test_a_robot_that_knows_nothing_of_latency_begins_each_chunk_at_its_beginning():
    execution = Execution(Timing(8, 2, 4, aligned=False))
    for step in range(7):
        execution.see(row(step))
        if step in (0, 4):
            origin, _ = execution.ask()
        if step == 0:
            execution.deliver(planned(0.0), origin)
        if step == 6:
            execution.deliver(planned(100.0), origin)
        action = float(execution.act()[0])
    assert action == 101.0


def test_where_nothing_is_planned_the_last_command_is_held_and_counted():
    execution = begun()
    for step in range(4, 9):
        execution.see(row(step))
        action = float(execution.act()[0])
    assert action == 7.0 and execution.record.starved == 2
    with pytest.raises(WorkbenchError, match="chunks end before step None"):
        fresh = Execution(TIMING)
        fresh.see(row(0))
        fresh.act()


def test_a_lost_observation_is_replaced_by_the_last_that_was_seen():
    execution = Execution(Timing(8, 3, 4))
    for value, lost in ((0, False), (1, False), (2, True), (3, False)):
        execution.see({"state": row(value)}, lost)
    assert execution.window()["state"][:, 0].tolist() == [1, 1, 3]
    assert execution.record.held == 1


def test_the_longest_of_the_last_delays_is_expected():
    forecast = Forecast(3, window=2)
    assert forecast() == 3
    for delay, expected in ((1, 3), (1, 1), (5, 5), (2, 5), (2, 2)):
        forecast.observe(delay)
        assert forecast() == expected


def test_a_latency_that_a_chunk_cannot_bridge_is_refused():
    Timing(16, 2, 8).check(7)
    Timing(16, 2, 8, aligned=False).check(8)
    with pytest.raises(WorkbenchError, match="latency: got 8 steps"):
        Timing(16, 2, 8).check(8)
    with pytest.raises(WorkbenchError, match="every: got 16; expected 1 to 15"):
        Timing(16, 2, 16)
