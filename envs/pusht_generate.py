"""Demonstrations of the scripted Push-T expert, seeded one by one and made in parallel.

Rows follow diffusion_policy's convention: row t holds what was observed before action t was sent. With noise
(disturbances injected into the expert, Laskey et al. 2017, DART, arXiv 1703.09327) the *executed* action is disturbed
in bursts while the *recorded* one is what the expert wants in the state it sees, so recovery stands in the data.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from envs.pusht import GOAL, RADIUS, SUCCESS, WORLD, PushT, coverage, keypoints, rotation
from envs.pusht_expert import Expert, ExpertStyle, outside_by
from envs.pusht_push import clearance

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    Args:
        seed: what it was made from.
        state: (T, 5) agent xy, block xy (px), block angle (rad, in [0, 2 pi)).
        action: (T, 2) target sent, or with noise the target the expert wanted, px.
        keypoint: (T, 9, 2) px.
        n_contacts: (T, 1) contact points per sub-step during the step before.
        coverage: (T,) share of the goal covered.
        solved: whether the coverage passed 0.95.
    """

    seed: int
    state: Float[np.ndarray, "t 5"]
    action: Float[np.ndarray, "t 2"]
    keypoint: Float[np.ndarray, "t 9 2"]
    n_contacts: Float[np.ndarray, "t 1"]
    coverage: Float[np.ndarray, "t"]
    solved: bool


@dataclass(frozen=True)
class Noise:
    """Bursts of disturbance: each step one begins with `rate`, lasts up to `steps`, shifts the target by N(0, px²)."""

    rate: float = 0.0
    steps: int = 6
    px: float = 25.0


@dataclass(frozen=True)
class Recipe:
    """What to demonstrate.

    Args:
        starts: "published" resets, or "near_goal": block within 80 px and 0.8 rad of the goal, finger anywhere.
        noise: disturbances of the executed action.
        style: the expert's.
        max_steps: give up after so many steps of 0.1 s.
        rest: rows recorded at rest once solved.
    """

    starts: Literal["published", "near_goal"] = "published"
    noise: Noise = field(default_factory=Noise)
    style: ExpertStyle = field(default_factory=ExpertStyle)
    max_steps: int = 300
    rest: int = 8


DEFAULT = Recipe()


def near_goal(rng: np.random.Generator) -> Float[np.ndarray, "5"]:
    """Draw a start with the block within 80 px and 0.8 rad of the goal and the finger anywhere off the block."""
    while True:
        radius, bearing = 80.0 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        pose = GOAL + np.array([radius * np.cos(bearing), radius * np.sin(bearing), rng.uniform(-0.8, 0.8)])
        agent = rng.uniform(30.0, WORLD - 30.0, 2)
        finger = rotation(pose[2]).T @ (agent - pose[:2])
        if clearance(finger)[0] > RADIUS + 1.0 and outside_by(pose) == 0.0 and coverage(pose) < SUCCESS:
            return np.concatenate([agent, pose])


def demonstrate(seed: int, recipe: Recipe = DEFAULT) -> Episode | None:
    """Let the expert play one episode; None if the expert finds no push at all.

    The environment ends at 0.95; the recording goes on until the push under way has done its best and the expert has
    rested for `recipe.rest` rows, so that an imitator aims beyond the threshold.
    """
    rng = np.random.default_rng([seed, 0 if recipe.starts == "published" else 1])
    env = PushT(obs="state", resets="published", render_mode=None, max_steps=recipe.max_steps)
    start = {"state": near_goal(rng)} if recipe.starts == "near_goal" else None
    _, info = env.reset(seed=seed, options=start)
    expert = Expert(recipe.style)
    rows: list[tuple[np.ndarray, np.ndarray, int, float]] = []
    rested, left, drift = 0, 0, np.zeros(2)
    while len(rows) < recipe.max_steps and rested < recipe.rest:
        state = info["state"]
        try:
            action = expert.act(state)
        except RuntimeError as error:
            log.warning("seed %d: %s", seed, error)
            return None
        rows.append((state, action, info["n_contacts"], info["coverage"]))
        resting = expert.plan is None
        rested = rested + 1 if resting else 0
        if left == 0 and not resting and rng.uniform() < recipe.noise.rate:
            left = int(rng.integers(1, recipe.noise.steps + 1))
            drift = rng.normal(scale=recipe.noise.px, size=2)
        sent = np.clip(action + drift, 0.0, WORLD) if left else action
        left = max(left - 1, 0)
        _, _, _, _, info = env.step(sent)
    state, action, n_contacts, cover = (np.array(column) for column in zip(*rows, strict=True))
    return Episode(
        seed,
        state.astype(np.float32),
        action.astype(np.float32),
        keypoints(state).reshape(-1, 9, 2).astype(np.float32),
        n_contacts[:, None].astype(np.float32),
        cover,
        bool(cover.max() > SUCCESS),
    )


def generate(
    seeds: Iterable[int], n_jobs: int = 1, recipe: Recipe = DEFAULT, failures: bool = False
) -> Iterator[Episode]:
    """Yield one episode per seed, in seed order; each depends on its seed and the recipe alone.

    Args:
        seeds: one per episode.
        n_jobs: processes.
        recipe: what to demonstrate.
        failures: also yield unsolved episodes; by default they are logged and left out.
    """
    if n_jobs < 1:
        raise ValueError(f"n_jobs: got {n_jobs}, expected at least 1; give the number of processes")
    work = partial(demonstrate, recipe=recipe)
    if n_jobs == 1:
        yield from _kept(map(work, seeds), failures)
        return
    # Ctrl-C reaches a whole process group, and only the first process knows what to save
    deaf = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with _single_threaded(), ProcessPoolExecutor(n_jobs, multiprocessing.get_context("spawn"), deaf) as pool:
        yield from _kept(pool.map(work, seeds, chunksize=2), failures)


def _kept(episodes: Iterable[Episode | None], failures: bool) -> Iterator[Episode]:
    for episode in episodes:
        if episode is not None and (episode.solved or failures):
            yield episode
        elif episode is not None:
            log.warning("seed %d: unsolved, best coverage %.3f, left out", episode.seed, episode.coverage.max())


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Give child processes one BLAS thread each: the arrays are small and the processes many."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
