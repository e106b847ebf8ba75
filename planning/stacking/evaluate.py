"""Judge a planner with blocks: ``python -m planning.stacking.evaluate checkpoint=runs/<date>/planning-stacking-...``.

The reward of an episode is the number of blocks that stand where they should, of 3; the score is 100 times its mean
share, as Diffuser counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from jaxtyping import Float
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import plain, typed
from diffusion_core.report import write_video
from diffusion_core.run import Run, command, launch, make_folder, one_line_errors
from envs.stacking import BLOCKS, DT, REACH, Stacking
from envs.stacking_expert import carried_out, motion
from planning.stacking.config import TASK, BlocksConfig
from planning.stacking.data import opened, travel
from planning.stacking.planner import BlocksPlanner, actions, carry_out
from planning.stacking.prior import restore, sampling_table
from planning.stacking.tasks import TASKS, Asked, Task

logger = logging.getLogger("workbench.planning")
Hand = Callable[[Stacking, Float[np.ndarray, "16"], Asked], list[np.ndarray]]
"""Makes a move, and returns all states of it."""
FULL = 3
"""Blocks that can stand right."""


@dataclass(frozen=True)
class Played:
    """What came of an episode.

    Args:
        reward: see the module.
        moves: that were made.
        came_off: subgoals that one move met.
    """

    reward: int
    moves: int
    came_off: int


def scripted(env: Stacking, state: Float[np.ndarray, "16"], asked: Asked) -> list[np.ndarray]:
    """The hand that made the demonstrations."""
    blocks = state[4:].reshape(BLOCKS, 3)
    return list(carried_out(env, motion(state, asked.block, asked.target, travel(blocks)))[1:])


def planned(planner: BlocksPlanner) -> Hand:
    """A hand that follows a planner."""
    return lambda env, state, asked: carry_out(env, planner(state, asked.costs))


def play(env: Stacking, task: Task, hand: Hand, seed: int, film: Callable[[], None] = lambda: None) -> Played:
    """One episode.

    Args:
        seed: of the places that are chosen on the table.
        film: called after every move.
    """
    rng = np.random.default_rng(seed)
    state = env.reset(task.blocks)
    moves = came_off = 0
    while moves < task.moves:
        blocks = state[4:].reshape(BLOCKS, 3)
        # a block that was thrown off the table's part cannot be taken again
        low, high = np.array(REACH).T
        lost = bool((blocks[:, :2] < low - 0.02).any() or (blocks[:, :2] > high + 0.02).any())
        asked = None if lost else task.asked(blocks, rng)
        if asked is None:
            break
        state = hand(env, state, asked)[-1]
        moves += 1
        came_off += asked.met(state[4:].reshape(BLOCKS, 3))
        film()
    return Played(task.reward(state[4:].reshape(BLOCKS, 3)), moves, came_off)


def played(hand: Hand, task: str, n: int, seed: int, run: Run) -> list[Played]:
    """Episodes of a task, those of the seeds from ``seed`` on."""
    env = opened()
    return [
        play(env, TASKS[task](np.random.default_rng(seed + k)), hand, seed + k) for k in run.progress(range(n), task, n)
    ]


def metrics(found: list[Played]) -> dict[str, Any]:
    """What episodes say."""
    return {
        "score": results.mean([100.0 * one.reward / FULL for one in found], "Diffuser's"),
        "success_rate": results.rate(sum(one.reward == FULL for one in found), len(found)),
        "moves": results.mean([float(one.moves) for one in found]),
        "move_came_off": results.rate(sum(one.came_off for one in found), sum(one.moves for one in found)),
    }


def evaluate_and_report(saved: Checkpoint, config: BlocksConfig, out: Path, words: str, run: Run) -> dict[str, Any]:
    """Play all tasks, film one episode, and write ``evaluation.json`` and ``episode.mp4`` into ``out``."""
    prior, _ = restore(saved)
    planner = BlocksPlanner(prior, sampling_table(config, prior), config.planner, config.seed)
    make_folder(out)
    found = {task: metrics(played(planned(planner), task, config.n, config.seed, run)) for task in TASKS}
    filmed(planner, out / "episode.mp4", config.seed)
    content = {
        "checkpoint": "/".join(saved.path.resolve().parts[-4:]),
        "step": saved.step,
        "task": TASK,
        "metrics": found,
        "planner": plain(config.planner),
        "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
        "seeds": [config.seed, config.seed + config.n - 1],
        "training_seed": config.train.seed,
        "data": saved.meta["data"],
        "commit": results.commit(),
        "trained_at_commit": saved.meta["commit"],
        "command": words,
        "hardware": results.hardware(),
    }
    results.write_json(out / "evaluation.json", content)
    for task, numbers in found.items():
        logger.info("%s: %s", task, ", ".join(f"{name} {value}" for name, value in numbers.items()))
    logger.info("results: %s", out)
    return content


def filmed(planner: BlocksPlanner, path: Path, seed: int, every: int = 4) -> list[np.ndarray]:
    """One episode of conditional stacking as a film; returns its frames."""
    import mujoco

    env = opened()
    renderer = mujoco.Renderer(env.model, 480, 640)
    frames: list[np.ndarray] = []

    def hand(env: Stacking, state: Float[np.ndarray, "16"], asked: Asked) -> list[np.ndarray]:
        states = []
        for k, action in enumerate(actions(planner(state, asked.costs))):
            states.append(env.step(action))
            if k % every == 0:
                frames.append(env.frame(renderer))
        return states

    play(env, TASKS["conditional stacking"](np.random.default_rng(seed)), hand, seed)
    renderer.close()
    write_video(path, frames, fps=1.0 / (every * DT))
    return frames


@dataclass
class BlocksEvaluateConfig:
    """``python -m planning.stacking.evaluate``: what is given replaces what was trained.

    Args:
        checkpoint: a run or a checkpoint folder.
        n, seed: see `BlocksConfig`.
        candidates, strength: see `BlocksPlannerConfig`.
        out: where results go.
    """

    checkpoint: str = ""
    n: int = 20
    seed: int = 100_000
    candidates: int | None = None
    strength: float | None = None
    out: str = ""


ConfigStore.instance().store(name="stacking_evaluate_schema", node=BlocksEvaluateConfig)


def run(request: BlocksEvaluateConfig) -> dict[str, Any]:
    """Evaluate what ``request`` names."""

    saved = checkpoint.find(request.checkpoint).require("stacking", None)
    own = typed(BlocksConfig, saved.config)
    given = {name: getattr(request, name) for name in ("candidates", "strength") if getattr(request, name) is not None}
    config = replace(own, n=request.n, seed=request.seed, planner=replace(own.planner, **given))
    out = Path(request.out) if request.out else (checkpoint.run_of(saved.path) or saved.path) / "evaluation-again"
    return evaluate_and_report(saved, config, out, command("planning.stacking.evaluate"), Run(make_folder(out)))


@hydra.main(version_base=None, config_path="../conf", config_name="stacking_evaluate")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(BlocksEvaluateConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
