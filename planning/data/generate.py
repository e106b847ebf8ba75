"""Transitions made on the spot: D4RL's recipe, with the controller that finds a new way for every goal.

    action = clip(clip(controller) + N(0, noise²)),    goal ~ free cell ± 0.1 m,    clip to [-1, 1]

D4RL clips before it adds the noise, too; without that half of all actions would be at their bounds, not a third. A goal
is done with once the ball comes within 0.1 m of its *cell's* coordinates, at whatever speed (that is what D4RL's data
show: its controller rounds the goal, and its test of the speed compares metres per step with 0.1), or after as many
steps as an episode has.

The stream is cut into chunks of `CHUNK` steps, each with a start and randomness of its own, so that it does not depend
on how many processes made it, and a longer one begins with the whole chunks of a shorter one.

Source: Fu et al. 2020, D4RL (arXiv 2004.07219), the recipe; the chunks are ours.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from jaxtyping import Shaped

from diffusion_core.errors import WorkbenchError, require_at_least
from envs.maze2d import JITTER, MAPS, STEPS, Maze2d
from envs.maze2d_expert import REACHED, WaypointController
from planning.data.transitions import Transitions, transitions

RECIPE = 1
"""Its version: raised whenever the same seed gives other transitions."""
CHUNK = 10_000
NOISE = 0.5

Arrays: TypeAlias = dict[str, Shaped[np.ndarray, "..."]]
Piece: TypeAlias = tuple[str, int, np.random.SeedSequence, float]


def generate(
    maze: str,
    steps: int,
    seed: int,
    noise: float = NOISE,
    workers: int = 0,
    progress: Callable[[int], object] = lambda _: None,
) -> Transitions:
    """Drive a ball from goal to goal.

    Args:
        maze: of `envs.maze2d.MAPS`.
        steps: of 0.01 s.
        seed: the same one gives the same bytes, whatever ``workers``.
        noise: standard deviation of what is added to each component of an action.
        workers: processes that share the work; 0: this one does it.
        progress: told how many steps were made, chunk by chunk.

    Raises:
        WorkbenchError: another maze, a number out of range, or a process that died.
    """
    require_maze(maze)
    require_at_least(1, {"steps": steps})
    require_at_least(0, {"seed": seed, "noise": noise, "workers": workers})
    lengths = [min(CHUNK, steps - first) for first in range(0, steps, CHUNK)]
    chances = np.random.SeedSequence(seed).spawn(len(lengths))
    work = [(maze, n, chance, noise) for n, chance in zip(lengths, chances, strict=True)]
    made: list[Arrays] = []
    for arrays in map(_drive, work) if min(workers, len(work)) <= 1 else _shared(work, workers):
        made.append(arrays)
        progress(len(arrays["timeouts"]))
    whole = {name: np.concatenate([arrays[name] for arrays in made]) for name in made[0]}
    return transitions(whole, provenance(maze, steps, seed, noise))


def provenance(maze: str, steps: int, seed: int, noise: float = NOISE) -> str:
    """What is said of generated transitions; never the name of a published set."""
    return f"maze2d-{maze}, generated: {steps} steps, seed {seed}, noise {noise:g}, recipe {RECIPE}"


def require_maze(maze: str) -> None:
    """Refuse what is no maze of `MAPS`.

    Raises:
        WorkbenchError: lists those that are.
    """
    if maze not in MAPS:
        raise WorkbenchError(f"maze: got {maze!r}; expected one of {', '.join(MAPS)}: choose one.")


def processes() -> int:
    """How many processes this one may keep busy."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _drive(piece: Piece) -> Arrays:
    maze, steps, chance, noise = piece
    rng = np.random.default_rng(chance)
    env = Maze2d(maze, multi=True, render_mode=None)
    free = env.maze.free
    controller = WaypointController(env.maze, rng)
    kicks = rng.normal(0.0, noise, (steps, 2))
    state, _ = env.reset(seed=int(rng.integers(2**31)))
    observations, actions = np.empty((steps, 4), np.float32), np.empty((steps, 2), np.float32)
    goals, timeouts = np.empty((steps, 2), np.float32), np.zeros(steps, bool)
    goal, since = np.zeros(2), 0
    for t in range(steps):
        if since == 0:
            goal = free[rng.integers(len(free))] + rng.uniform(-JITTER, JITTER, 2)
            cell = np.round(goal)
        since += 1
        wanted = np.clip(controller.act(state, cell), -1.0, 1.0)
        observations[t], goals[t] = state, goal
        # carried out as it is recorded, rounded, so that every transition replays
        actions[t] = np.clip(wanted + kicks[t], -1.0, 1.0)
        if np.linalg.norm(state[:2] - cell) < REACHED or since == STEPS[maze]:
            timeouts[t], since = True, 0
        env.advance(actions[t].astype(np.float64))
        state = env.state
    # the next chunk starts elsewhere
    timeouts[-1] = True
    return {"observations": observations, "actions": actions, "goals": goals, "timeouts": timeouts}


def _shared(work: Sequence[Piece], workers: int) -> Iterator[Arrays]:
    pool = ProcessPoolExecutor(min(workers, len(work)), multiprocessing.get_context("spawn"))
    try:
        with _children_deaf_to_interrupts():
            futures = [pool.submit(_drive, piece) for piece in work]
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise WorkbenchError(
            "generate: got a process that died; expected it to finish: a script that generates needs "
            "`if __name__ == '__main__':`, or use workers=0."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _children_deaf_to_interrupts() -> Iterator[None]:
    # Ctrl-C reaches the whole process group; a signal blocked now stays blocked in the processes started meanwhile
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
