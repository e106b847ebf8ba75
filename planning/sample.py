"""Plan one way and go it: ``python -m planning.sample checkpoint=<run> start=[1,1] goal=[7,9]``."""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from diffusion_core.configure import typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.report import save_figure, subplots
from diffusion_core.run import launch, make_folder, one_line_errors
from envs.maze2d import RADIUS, Maze2d, Obstacle
from planning import report
from planning.config import PlanningConfig, SampleConfig
from planning.evaluate import opened
from planning.execute import Episode, Gains, execute
from planning.peers.lattice import Lattice
from planning.plan import Problem
from planning.planner import DiffusionPlanner
from planning.prior import restore, sampling_table
from planning.ways import Room

logger = logging.getLogger("workbench.planning")


def run(request: SampleConfig) -> tuple[Path, Episode]:
    """Plan, go, and write ``plan.npz`` (xy, dt; states, actions), ``plan.png`` and ``plan.mp4``.

    Raises:
        WorkbenchError: the start or the goal is not free, or there is no way between them that the ball fits through.
    """
    saved = opened(request.checkpoint, request.expect_task)
    config = request.of(typed(PlanningConfig, saved.config))
    prior, _ = restore(saved)
    if torch.cuda.is_available():
        prior = prior.cuda()
    planner = DiffusionPlanner(prior, sampling_table(config, prior), config.planner)
    try:
        obstacles = tuple(Obstacle((float(x), float(y)), float(radius)) for x, y, radius in request.obstacles)
        env = Maze2d(config.task.maze, multi=True, obstacles=obstacles)
    except ValueError as error:
        raise WorkbenchError(f"{error}.") from None
    state = np.array([*request.start, 0.0, 0.0][:4])
    problem = Problem(env.maze, state, np.array(request.goal))
    # finer than cells, which do not know a way beside an obstacle; where there is none, no prior finds one
    try:
        Lattice(problem, Room.of(problem, RADIUS)).way(problem.start[:2])
    except WorkbenchError:
        raise WorkbenchError(
            f"goal: got {request.goal}, which cannot be reached from {request.start}; expected a way that the ball "
            f"({RADIUS:g} m) fits through: choose another start or goal, or fewer or smaller obstacles."
        ) from None
    drawn = report.Drawn.of(planner, problem, request.seed)
    plan = drawn.plan
    episode = execute(env, problem, plan, request.seed, Gains(config.planner.kp, config.planner.kd))
    if not episode.valid:
        logger.warning(
            "the plan does not fit: it comes as near as %.2f m to what is solid (the ball needs %.2f m) and ends "
            "%.2f m from the goal; %d of %d candidates fit: try more (candidates=256), another seed, or more walls",
            plan.clearance(env.maze),
            RADIUS,
            np.linalg.norm(plan.xy[-1] - problem.goal),
            drawn.fits.sum(),
            len(drawn.fits),
        )
    out = make_folder(Path(request.out or "runs/plan-" + config.task.name))
    np.savez_compressed(out / "plan.npz", xy=plan.xy, dt=plan.dt, states=episode.states, actions=episode.actions)
    width, height = env.maze.walls.shape
    figure, axes = subplots(1, 1, 5.0, 5.0 * (height - 1) / (width - 1))
    report.draw_episode(axes[0, 0], drawn, episode)
    save_figure(figure, out / "plan.png")
    report.video(out / "plan.mp4", plan, episode, env.maze)
    logger.info("%s; plan, picture and film are in %s", report.describe(request.seed, episode), out)
    return out, episode


@hydra.main(version_base=None, config_path="conf", config_name="sample")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(SampleConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
