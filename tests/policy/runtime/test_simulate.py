"""The runtime in the simulator: without latency it is the usual evaluation, with latency nothing is used too early."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.configure import build
from diffusion_core.errors import WorkbenchError
from envs.rollout import Rollout, rollouts
from policy.evaluate import Actor
from policy.runtime.joins import Join, RealTimeChunking, independent
from policy.runtime.simulate import Delayed

STEPS = 40


def episodes(shipped, act, seeds, batch: int = 8) -> dict[int, Rollout]:
    env = {**shipped.config.task.env, "max_steps": STEPS}
    found = rollouts(lambda: build(env), act, seeds, shipped.policy.n_obs_steps, batch)
    return {episode.seed: episode for episode in found}


def test_without_latency_it_is_the_evaluation(shipped):
    seeds = [100_000, 100_001]
    usual = episodes(shipped, Actor(shipped.policy, shipped.table), seeds)
    ours = episodes(shipped, Delayed(shipped.policy, shipped.table), seeds)
    for seed in seeds:
        np.testing.assert_array_equal(np.stack(ours[seed].actions), np.stack(usual[seed].actions[: ours[seed].steps]))


@pytest.mark.parametrize(("delay", "every"), [(3, 8), (4, 4), (5, 1)])
def test_a_chunk_is_executed_from_the_step_it_arrives_in_and_not_before(shipped, delay, every):
    drawn = []

    def spied(policy, table, obs, overlap, noise):
        chunk = policy.plan(obs, table, noise)
        drawn.append(chunk.float().numpy()[0])
        return chunk

    actor = Delayed(shipped.policy, shipped.table, Join(spied, every=every), delay)
    (episode,) = episodes(shipped, actor, [100_003]).values()
    first = actor.records[100_003].actions[:every]
    np.testing.assert_array_equal(np.stack(episode.actions[:every]), np.stack(first))
    # the first takes no time; then one at a time: they begin every max(every, delay) steps
    between, begins = max(every, delay), every + delay
    for step in range(begins, episode.steps):
        number, past = divmod(step - begins, between)
        np.testing.assert_array_equal(episode.actions[step], drawn[number][1 + delay + past])
    record = actor.records[100_003]
    assert set(record.delays) == {delay} and record.starved == 0
    assert record.joins == list(range(begins, episode.steps, between))


def test_an_episode_depends_on_its_seed_alone(shipped):
    join = Join(RealTimeChunking(), every=4)

    def act() -> Delayed:
        return Delayed(shipped.policy, shipped.table, join, lambda chance: int(chance.integers(1, 5)), drop=0.2)

    seeds = [100_000, 100_004, 100_007]
    together, actor = episodes(shipped, act(), seeds), act()
    in_turn = episodes(shipped, actor, seeds[::-1], batch=1)
    for seed in seeds:
        np.testing.assert_array_equal(np.stack(together[seed].actions), np.stack(in_turn[seed].actions))
    delays = [d for seed in seeds for d in actor.records[seed].delays]
    assert set(delays) == {1, 2, 3, 4}
    lost = sum(record.held for record in actor.records.values())
    n = sum(in_turn[seed].steps - 1 for seed in seeds)
    # binomial: four standard deviations
    assert abs(lost - 0.2 * n) < 4 * (n * 0.2 * 0.8) ** 0.5


def test_what_cannot_be_simulated_is_refused(shipped):
    with pytest.raises(WorkbenchError, match="latency: got 8 steps"):
        Delayed(shipped.policy, shipped.table, Join(independent), 8)
    with pytest.raises(WorkbenchError, match="drop: got 1"):
        Delayed(shipped.policy, shipped.table, drop=1.0)
    with pytest.raises(WorkbenchError, match="delay: got -1"):
        Delayed(shipped.policy, shipped.table, delay=-1)
