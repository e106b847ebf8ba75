"""Closed-loop rollouts: many episodes in lockstep, one batched call of the policy per replan.

Episodes run in one process: gymnasium's AsyncVectorEnv is slower than a single plain environment for
simulators as fast as these (inter-process messages cost more than the physics).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

Observation = Any
"""An array, or a dictionary of arrays, as the environment gives it."""

Act = Callable[[Observation, Sequence[int]], np.ndarray]
"""``act(observations, seeds) -> actions``: observations stacked (episodes, n_obs_steps, ...), one seed per
episode, actions (episodes, n_action_steps, action_dim) in the environment's units."""


@dataclass
class Rollout:
    """One episode.

    Args:
        seed: of its start.
        rewards: (steps,) reward after each step.
        coverage: (steps,) ``info["coverage"]`` after each step; empty if the environment does not give it.
        states: (steps + 1, ...) ``info["state"]`` from the start on.
        actions: (steps, action_dim) as executed.
        success: whether ``info["is_success"]`` was ever true.
        frames: rendered frames, one per step; empty unless asked for.
    """

    seed: int
    rewards: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    success: bool = False
    frames: list[np.ndarray] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.rewards)


def stack(observations: Sequence[Observation]) -> Observation:
    """Stack arrays, or dictionaries of arrays key by key, along a new first axis."""
    if isinstance(observations[0], dict):
        return {k: np.stack([o[k] for o in observations]) for k in observations[0]}
    return np.stack(observations)


class _Episode:
    """An environment in the middle of an episode, with its last ``n_obs_steps`` observations."""

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int, n_obs_steps: int, film: bool) -> None:
        self.env, self.film = env, film
        self.record = Rollout(seed)
        observation, info = env.reset(seed=seed)
        # before the first step the first observation stands in for those that never were
        self.history = [observation] * n_obs_steps
        self._note(info)
        self.done = False

    def _note(self, info: dict[str, Any]) -> None:
        if "state" in info:
            self.record.states.append(np.asarray(info["state"]))
        if self.film:
            self.record.frames.append(np.asarray(self.env.render()))

    def step(self, action: np.ndarray) -> None:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.history = [*self.history[1:], observation]
        self.record.actions.append(np.asarray(action))
        self.record.rewards.append(float(reward))
        if "coverage" in info:
            self.record.coverage.append(float(info["coverage"]))
        self.record.success = self.record.success or bool(info.get("is_success", False))
        self._note(info)
        self.done = bool(terminated or truncated)

    def play(self, chunk: np.ndarray) -> None:
        """Its actions one by one, as far as the episode goes."""
        for action in chunk:
            self.step(action)
            if self.done:
                return

    @property
    def threaded(self) -> bool:
        """Whether it may be stepped beside others of this process; pictures are drawn by one thread alone."""
        return not self.film and bool(getattr(self.env.unwrapped, "threaded", False))


def rollouts(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    act: Act,
    seeds: Sequence[int],
    n_obs_steps: int,
    batch: int = 50,
    film: Sequence[int] = (),
    threads: int = 1,
) -> Iterator[Rollout]:
    """Run one episode per seed; yield each as it ends.

    Args:
        make_env: makes one environment.
        act: the policy.
        seeds: reset seeds, one per episode.
        n_obs_steps: how many observations the policy sees.
        batch: how many episodes run side by side. It changes the speed, and must not change the result: that is
            the policy's duty (per-seed noise).
        film: seeds whose episodes are rendered.
        threads: that step the environments, where these are ``threaded``: their steps are MuJoCo's, outside of Python.
    """
    waiting = list(seeds)[::-1]
    idle = [make_env() for _ in range(min(batch, len(waiting)))]
    running: list[_Episode] = []
    with ThreadPoolExecutor(threads) as pool:
        while waiting or running:
            while waiting and idle:
                seed = waiting.pop()
                running.append(_Episode(idle.pop(), seed, n_obs_steps, seed in film))
            actions = act(stack([stack(e.history) for e in running]), [e.record.seed for e in running])
            beside = []
            for episode, chunk in zip(running, actions, strict=True):
                if threads > 1 and episode.threaded:
                    beside.append(pool.submit(episode.play, chunk))
                else:
                    episode.play(chunk)
            for task in beside:
                task.result()
            for episode in [e for e in running if e.done]:
                running.remove(episode)
                idle.append(episode.env)
                yield episode.record
    for env in idle:
        env.close()
