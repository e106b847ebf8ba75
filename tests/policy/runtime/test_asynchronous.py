"""Inference beside a control loop in real time."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from diffusion_core.configure import build
from diffusion_core.errors import WorkbenchError
from policy.runtime.asynchronous import Background, Pace
from policy.runtime.joins import Join, RealTimeChunking

PERIOD = 0.05


def slow(seconds: float, draw=None):
    """A draw that takes so long, as a large network does."""

    def drawn(policy, table, obs, overlap, noise):
        time.sleep(seconds)
        if draw is None:
            return policy.plan(obs, table, noise)
        return draw(policy, table, obs, overlap, noise)

    return drawn


@pytest.fixture
def env(shipped):
    made = build(shipped.config.task.env)
    yield made
    made.close()


def test_the_control_loop_never_waits_for_a_slow_policy(shipped, env):
    observation, _ = env.reset(seed=100_000)
    asked = []

    def noted(policy, table, obs, overlap, noise):
        asked.append((int(overlap.known.sum()), int(overlap.frozen.sum())))
        return RealTimeChunking()(policy, table, obs, overlap, noise)

    with Background(shipped.policy, shipped.table, Join(slow(0.3, noted)), first_delay=1) as mind:
        thread = mind._thread
        pace, waited = Pace(PERIOD), []
        while len(mind.record.delays) < 3:
            began = time.perf_counter()
            action = mind.act(observation)
            waited.append(time.perf_counter() - began)
            observation, *_ = env.step(action)
            pace.wait()
    assert not thread.is_alive()
    # a call that waited for the policy would take 0.3 s, as the first may
    assert max(waited[1:]) < 0.25
    record = mind.record
    assert len(record.actions) == len(waited) and len(mind.seconds) >= 4
    # 0.3 s are 6 ticks of 0.05 s, fewer where a busy machine stretches the ticks
    assert min(record.delays) >= 2
    # a prefix is made for the longest delay that was expected or measured till then, and is never longer than the plans
    for i, (known, frozen) in enumerate(asked):
        assert frozen == min(known, 1 + max([1, *record.delays[:i]]))
    # the first chunk has nothing to join, and is drawn at once
    assert min(mind.seconds[1:]) >= 0.3


def test_waiting_costs_no_processor_time(shipped, env):
    observation, _ = env.reset(seed=100_000)
    with Background(shipped.policy, shipped.table) as mind:
        mind.act(observation)
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.1


def test_what_fails_in_the_thread_is_one_error_of_the_loop(shipped, env):
    observation, _ = env.reset(seed=100_000)

    def broken(policy, table, obs, overlap, noise):
        raise ZeroDivisionError("a number\nwas zero")

    mind = Background(shipped.policy, shipped.table, Join(broken, every=1))
    reason = r"got ZeroDivisionError in its thread \(a number was zero\)"
    with pytest.raises(WorkbenchError, match=reason) as caught, mind:
        for _ in range(15):
            mind.act(observation)
            time.sleep(0.05)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert mind._thread is not None and not mind._thread.is_alive()
    with pytest.raises(WorkbenchError, match="does not run"):
        mind.act(observation)


def test_leaving_early_ends_the_thread_and_keeps_the_loops_own_error(shipped, env):
    observation, _ = env.reset(seed=100_000)
    with (
        pytest.raises(KeyError, match="mine"),
        Background(shipped.policy, shipped.table, Join(slow(0.2), every=1)) as mind,
    ):
        mind.act(observation)
        mind.act(observation)
        raise KeyError("mine")
    assert not any(thread.name == "inference" for thread in threading.enumerate())


def test_a_first_chunk_that_does_not_come_is_reported(shipped, env, monkeypatch):
    observation, _ = env.reset(seed=100_000)
    mind = Background(shipped.policy, shipped.table, patience=0.2)
    plan = mind.policy.plan

    def late(*arguments):
        time.sleep(0.6)
        return plan(*arguments)

    monkeypatch.setattr(mind.policy, "plan", late)
    with pytest.raises(WorkbenchError, match=r"no first chunk in 0\.2 s"), mind:
        mind.act(observation)


def test_ticks_are_a_period_apart_and_a_missed_one_is_told():
    pace = Pace(0.05)
    began = time.perf_counter()
    late = [pace.wait() for _ in range(4)]
    assert time.perf_counter() - began >= 0.2 - 1e-3
    assert np.mean(late) < 0.05
    time.sleep(0.15)
    assert pace.wait() >= 0.09
    with pytest.raises(WorkbenchError, match="period of 0"):
        Pace(0.0)
