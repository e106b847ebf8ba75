"""Rollouts in the real Push-T simulator: what an episode is does not depend on who runs beside it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from envs.push3d import Push3D
from envs.pusht import PushT
from envs.rollout import Rollout, rollouts, stack

SEEDS = (100_000, 100_003, 7, 100_001, 100_002)


def env(max_steps: int = 40, obs: str = "state") -> PushT:
    return PushT(obs=obs, max_steps=max_steps)


def lengths(seed: int) -> int:
    """Episodes of unequal length, so that they end in another order than they began."""
    return 8 + 11 * (seed % 4)


class Short(PushT):
    """Push-T whose episodes end after a number of steps that depends on the seed."""

    def reset(self, *, seed=None, options=None):
        self.max_steps = lengths(seed)
        return super().reset(seed=seed, options=options)


def push(observations: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Chase the block from where the finger is, with a wobble that is the seed's own: three actions at a time."""
    agent, block = observations[:, -1, :2], observations[:, -1, 2:4]
    wobble = np.array([np.random.default_rng(seed).normal(0.0, 20.0, (3, 2)) for seed in seeds])
    ramp = np.array([0.4, 0.8, 1.2])[:, None]
    return np.clip(agent[:, None] + ramp * (block - agent)[:, None] + wobble, 0.0, 512.0).astype(np.float32)


def run(batch: int, seeds: Sequence[int] = SEEDS, film: Sequence[int] = (), make=Short) -> list[Rollout]:
    return list(rollouts(make, push, seeds, 2, batch, film))


def same(a: Rollout, b: Rollout) -> bool:
    return (
        (a.seed, a.rewards, a.coverage, a.success) == (b.seed, b.rewards, b.coverage, b.success)
        and np.array_equal(a.states, b.states)
        and np.array_equal(a.actions, b.actions)
    )


def short() -> Short:
    return Short(obs="state")


@pytest.mark.parametrize("batch", [2, 3, 5, 50])
def test_the_number_of_episodes_side_by_side_changes_nothing(batch):
    alone = {e.seed: e for e in run(1, make=short)}
    together = {e.seed: e for e in run(batch, make=short)}
    assert alone.keys() == together.keys() == set(SEEDS)
    assert all(same(alone[seed], together[seed]) for seed in SEEDS)
    assert len({tuple(e.actions[0]) for e in alone.values()}) == len(SEEDS)


def test_an_episode_is_what_a_plain_loop_over_the_environment_gives():
    (episode,) = run(1, [100_003], make=env)
    world = env()
    observation, info = world.reset(seed=100_003)
    history, states, rewards, coverage, done = [observation] * 2, [info["state"]], [], [], False
    while not done:
        for action in push(np.stack(history)[None], [100_003])[0]:
            observation, reward, terminated, truncated, info = world.step(action)
            history = [history[1], observation]
            states.append(info["state"])
            rewards.append(reward)
            coverage.append(info["coverage"])
            done = terminated or truncated
            if done:
                break
    assert episode.rewards == rewards and episode.coverage == coverage and episode.steps == 40
    assert np.array_equal(episode.states, states)
    assert np.ptp([s[2:4] for s in states], axis=0).max() > 5.0  # the block was pushed


def test_alone_episodes_come_in_the_order_asked_for_and_side_by_side_as_they_end():
    assert [e.seed for e in run(1, make=short)] == list(SEEDS)
    ended = [e.seed for e in run(5, make=short)]
    steps = [e.steps for e in run(5, make=short)]
    assert steps == [lengths(seed) for seed in ended] == sorted(steps)
    assert ended != list(SEEDS)


@pytest.mark.parametrize("n_obs_steps", [1, 2, 3])
def test_before_the_first_step_the_first_observation_stands_in_for_those_that_never_were(n_obs_steps):
    seen: list[np.ndarray] = []

    def watch(observations: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        seen.append(observations[0].copy())
        return push(observations, seeds)

    (episode,) = rollouts(env, watch, [100_000], n_obs_steps)
    padded = [episode.states[0]] * (n_obs_steps - 1) + episode.states
    for call, observations in enumerate(seen):
        expected = padded[3 * call : 3 * call + n_obs_steps]
        np.testing.assert_array_equal(observations, np.asarray(expected, np.float32))


def test_actions_left_over_at_the_end_of_an_episode_are_dropped():
    (episode,) = run(1, [100_000], make=env)  # 40 steps are 13 chunks of three and one action
    assert episode.steps == len(episode.actions) == len(episode.rewards) == 40
    assert len(episode.states) == 41


def test_only_the_seeds_asked_for_are_filmed_one_frame_per_state():
    episodes = run(2, film=[7, 100_002], make=short)
    assert {e.seed for e in episodes if e.frames} == {7, 100_002}
    for e in episodes:
        assert len(e.frames) == (e.steps + 1 if e.seed in (7, 100_002) else 0)
        assert all(f.shape == (512, 512, 3) and f.dtype == np.uint8 for f in e.frames)
        assert not e.frames or not np.array_equal(e.frames[0], e.frames[-1])


def test_an_episode_that_is_solved_stops_there_and_counts_as_solved():
    """From a start at the goal the first step already covers it."""

    class Solved(PushT):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed, options={"state": np.array([50.0, 50.0, 256.0, 256.0, np.pi / 4])})

    def stay(observations: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        return np.full((len(seeds), 3, 2), 50.0, np.float32)

    (episode,) = rollouts(Solved, stay, [1], 2)
    assert episode.success and episode.steps == 1 and episode.rewards == [1.0]
    assert not any(e.success for e in run(5, make=short))


def test_dictionaries_of_observations_are_stacked_key_by_key():
    seen: list[dict[str, np.ndarray]] = []

    def watch(observations: dict[str, np.ndarray], seeds: Sequence[int]) -> np.ndarray:
        seen.append(observations)
        return np.full((len(seeds), 4, 2), 250.0, np.float32)

    episodes = list(rollouts(lambda: env(4, "image"), watch, [1, 2], 2))
    assert len(episodes) == 2
    assert seen[0]["image"].shape == (2, 2, 96, 96, 3) and seen[0]["agent_pos"].shape == (2, 2, 2)
    assert stack([{"a": np.ones(2)}, {"a": np.zeros(2)}])["a"].tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_threads_change_nothing_and_are_used_where_the_environment_allows():
    here: set[int] = set()

    class Watched(Push3D):
        def step(self, action):
            here.add(threading.get_ident())
            return super().step(action)

    def wander(observations: dict[str, np.ndarray], seeds: Sequence[int]) -> np.ndarray:
        toward = observations["block"][:, -1, None, :2] - observations["finger"][:, -1, None]
        return (observations["finger"][:, -1, None] + np.linspace(0.2, 1.0, 8)[:, None] * toward).astype(np.float32)

    def played(threads: int, film: Sequence[int] = (), **made: Any) -> dict[int, Rollout]:
        here.clear()
        env = partial(Watched, max_steps=24, **made)
        return {e.seed: e for e in rollouts(env, wander, [1, 2, 3, 4], 2, 4, film, threads)}

    alone = played(1)
    assert here == {threading.get_ident()}
    together = played(3)
    assert here and threading.get_ident() not in here
    assert all(same(alone[seed], together[seed]) for seed in alone)
    # pictures are drawn where they always are
    filmed = played(3, film=[1, 2, 3, 4])
    assert here == {threading.get_ident()} and all(same(alone[seed], filmed[seed]) for seed in alone)
    assert len(played(3, cameras=["top"], size=16)) == 4 and here == {threading.get_ident()}
