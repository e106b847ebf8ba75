"""Recordings: scripted experts' episodes as the arrays of a replay buffer.

Row t holds what was observed before action t was sent, and the reward after it. With bursts (disturbances injected
into the expert, Laskey et al. 2017, DART, arXiv 1703.09327) the *executed* action is disturbed while the *recorded* one
is what the expert wants in the state it sees, so recovery stands in the data.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

from envs.pusht import PushT
from envs.pusht_generate import Recipe, generate

log = logging.getLogger(__name__)
TOGETHER = 4
"""Episodes that a process makes at a time: one environment serves them all."""


@runtime_checkable
class Expert(Protocol):
    """A scripted expert: what a task's leaf builds under ``expert``."""

    def reset(self, seed: int) -> None:
        """Begin an episode; what the expert draws it draws from the seed."""

    def act(self, observation: Any) -> np.ndarray:
        """The action that it wants; a RuntimeError says that it is at a loss."""


@dataclass(frozen=True)
class Bursts:
    """Disturbances: each step one begins with probability `rate`, lasts 1 to `steps` and adds N(0, (scale h)²).

    Args:
        rate: per step.
        steps: the longest.
        scale: in units of h, half the range of each dimension of the action.
    """

    rate: float = 0.0
    steps: int = 6
    scale: float = 0.1


@dataclass(frozen=True)
class Scene:
    """What is recorded; it travels to other processes.

    Args:
        env: makes the environment. It depends on the seeds of its resets alone, and can be stepped after a success.
        expert: makes the expert.
        bursts: disturbances of the executed action.
        rest: rows recorded after the success, so that an imitator aims beyond the threshold.
        states: also record the simulator's, where it tells them (``sim_state``), and whether a step solved the task
            (``done``): with them robomimic can play a file back.
    """

    env: Callable[[], gymnasium.Env[Any, np.ndarray]]
    expert: Callable[[], Expert]
    bursts: Bursts = field(default_factory=Bursts)
    rest: int = 8
    states: bool = False


@dataclass(frozen=True)
class Demonstration:
    """One episode.

    Args:
        seed: what it was made from.
        arrays: each key of the observation but texts, `action`, `reward`, and `task_index` if the task says it.
        solved: whether there was a success.
    """

    seed: int
    arrays: dict[str, np.ndarray]
    solved: bool


def demonstrate(scene: Scene, seeds: Sequence[int]) -> list[Demonstration]:
    """Let the expert play one episode for each seed."""
    env, expert = scene.env(), scene.expert()
    try:
        return [play(env, expert, seed, scene) for seed in seeds]
    finally:
        env.close()


def play(env: gymnasium.Env[Any, np.ndarray], expert: Expert, seed: int, scene: Scene) -> Demonstration:
    """Let the expert play one episode, to `scene.rest` rows beyond its success."""
    bursts = scene.bursts
    rng = np.random.default_rng([seed, 0])
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    observation, info = env.reset(seed=seed)
    expert.reset(seed)
    rows: list[dict[str, np.ndarray]] = []
    left, drift, rested, solved, truncated = 0, np.zeros(space.shape), 0, False, False
    while not truncated and (not solved or rested < scene.rest):
        try:
            action = np.asarray(expert.act(observation), dtype=np.float32)
        except RuntimeError as error:
            log.warning("seed %d: %s", seed, error)
            break
        if left == 0 and not solved and rng.uniform() < bursts.rate:
            left = int(rng.integers(1, bursts.steps + 1))
            drift = rng.normal(size=space.shape) * bursts.scale * (space.high - space.low) / 2
        sent = np.clip(action + drift, space.low, space.high).astype(np.float32) if left else action
        left, rested = max(left - 1, 0), rested + solved
        row = _row(observation) | {"action": action}
        if "task_index" in info:
            row["task_index"] = np.asarray(info["task_index"], dtype=np.int64)
        if scene.states and "state" in info:
            row["sim_state"] = np.asarray(info["state"], dtype=np.float64)
        observation, reward, terminated, truncated, info = env.step(sent)
        if scene.states:
            row["done"] = np.asarray(info["is_success"], dtype=np.int64)
        rows.append(row | {"reward": np.asarray(reward, dtype=np.float32)})
        solved = solved or bool(info["is_success"])
        truncated = truncated or (terminated and not solved)
    arrays = {key: np.stack([row[key] for row in rows]) for key in (rows[0] if rows else ())}
    return Demonstration(seed, arrays, solved)


def demonstrations(scene: Scene, seeds: Sequence[int], n_jobs: int) -> Iterator[Demonstration]:
    """Yield one episode per seed, in seed order, solved or not; each depends on its seed and the scene alone.

    Args:
        scene: what is recorded.
        seeds: one per episode.
        n_jobs: processes.
    """
    parts = [seeds[i : i + TOGETHER] for i in range(0, len(seeds), TOGETHER)]
    work = partial(demonstrate, scene)
    if n_jobs == 1:
        env, expert = scene.env(), scene.expert()
        yield from (play(env, expert, seed, scene) for seed in seeds)
        env.close()
        return
    deaf = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(n_jobs, multiprocessing.get_context("spawn"), deaf) as pool:
        with _children_deaf_to_interrupts():
            made = pool.map(work, parts)
        for part in made:
            yield from part


def record(
    recipe: Recipe, seeds: Sequence[int], n_jobs: int, images: bool
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield the seed and the arrays of each solved episode of Push-T, in seed order.

    Args:
        recipe: what the expert demonstrates.
        seeds: one per episode; those the expert does not solve are left out.
        n_jobs: processes.
        images: also render every observation.
    """
    made = generate(seeds, n_jobs, recipe)
    with _children_deaf_to_interrupts():
        episode = next(made, None)
    while episode is not None:
        arrays = {
            "action": episode.action,
            "state": episode.state,
            "keypoint": episode.keypoint,
            "n_contacts": episode.n_contacts,
        }
        yield episode.seed, arrays | ({"img": render(episode.state)} if images else {})
        episode = next(made, None)


def render(state: Float[np.ndarray, "steps 5"]) -> UInt8[np.ndarray, "steps 96 96 3"]:
    """Draw what Push-T shows in each state, but for a pixel or two.

    An observation shows the present state alone, no velocity and no action, so the states suffice; what differs is the
    rounding of a state kept as float32 with its angle in one turn.
    """
    env = PushT(obs="image", render_mode=None)
    return np.stack([env.reset(options={"state": row})[0]["image"] for row in state])


def _row(observation: Any) -> dict[str, np.ndarray]:
    if not isinstance(observation, Mapping):
        return {"obs": np.asarray(observation)}
    return {key: np.asarray(value) for key, value in observation.items() if not isinstance(value, str)}


@contextmanager
def _children_deaf_to_interrupts() -> Iterator[None]:
    """Start processes inside: Ctrl-C reaches a whole process group, and only this process knows what to save.

    A blocked signal stays blocked in the processes started meanwhile; one that arrives meanwhile is delivered after.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
