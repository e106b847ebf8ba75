"""Plan one way and go it: ``python -m planning.sample checkpoint=<run> start=[1,1] goal=[7,9]``."""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig

from diffusion_core.configure import typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.report import INK, save_figure, subplots
from diffusion_core.run import launch, make_folder, one_line_errors
from envs.maze2d import MAPS, Maze2d, Obstacle
from planning import report
from planning.config import PlanningConfig, SampleConfig
from planning.evaluate import opened
from planning.execute import Episode, Gains, execute
from planning.plan import Problem
from planning.planner import DiffusionPlanner
from planning.prior import restore, sampling_table

logger = logging.getLogger("workbench.planning")


def run(request: SampleConfig) -> tuple[Path, Episode]:
    """Plan, go, and write ``plan.npz`` (xy, dt; states, actions), ``plan.png`` and ``plan.mp4``.

    Raises:
        WorkbenchError: the start or the goal is not free, or no way connects them.
    """
    saved = opened(request.checkpoint)
    config = request.of(typed(PlanningConfig, saved.config))
    prior, _ = restore(saved)
    planner = DiffusionPlanner(prior, sampling_table(config, prior), config.planner)
    try:
        obstacles = tuple(Obstacle((x, y), radius) for x, y, radius in request.obstacles)
        env = Maze2d(MAPS[config.task.maze], multi=True, obstacles=obstacles)
    except ValueError as error:
        raise WorkbenchError(f"{error}.") from None
    state = np.array([*request.start, 0.0, 0.0][:4])
    problem = Problem(env.maze, state, np.array(request.goal))
    try:
        env.maze.way(problem.start[:2], problem.goal)
    except ValueError as error:
        raise WorkbenchError(f"{error}.") from None
    plan = planner(problem, request.seed)
    episode = execute(env, problem, plan, request.seed, Gains(config.planner.kp, config.planner.kd))
    if not episode.valid:
        logger.warning("the plan touches what is solid: no candidate fits; try candidates=256, or another seed")
    out = make_folder(Path(request.out or "runs/plan-" + config.task.name))
    np.savez_compressed(out / "plan.npz", xy=plan.xy, dt=plan.dt, states=episode.states, actions=episode.actions)
    figure, axes = subplots(1, 1, 5.0, 5.5)
    report.draw_candidates(axes[0, 0], planner, problem, planner.candidates([problem], [request.seed])[0])
    axes[0, 0].plot(*episode.states[: episode.first or None, :2].T, color=INK, lw=1.6)
    save_figure(figure, out / "plan.png")
    report.video(out / "plan.mp4", env.maze, episode)
    logger.info("%s; plan, picture and film are in %s", report.describe(request.seed, episode), out)
    return out, episode


@hydra.main(version_base=None, config_path="conf", config_name="sample")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(SampleConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
