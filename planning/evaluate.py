"""Judge a planner in its maze: ``python -m planning.evaluate checkpoint=runs/<date>/planning-maze2d_large-...``.

Every problem is planned and carried out for a whole episode; the correct waypoint controller, which made the
demonstrations, and a search that knows the map and the ball get the same problems in the same run.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import plain, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from diffusion_core.run import Run, command, launch, make_folder, one_line_errors
from envs.maze2d import Maze2d
from planning import report
from planning.config import EvaluateConfig, EvaluationConfig, PlanningConfig
from planning.execute import STIFF, Episode, Gains, Peer, execute
from planning.peers.bfs import Bfs
from planning.peers.waypoint import Waypoint
from planning.plan import Problem
from planning.planner import DiffusionPlanner
from planning.prior import restore, sampling_table

logger = logging.getLogger("workbench.planning")
PLANNER, WAYPOINT, SEARCH = "planner", "correct waypoint controller", "search (BFS)"


def problems(env: Maze2d, seeds: Sequence[int]) -> list[Problem]:
    """The start of each seed's episode, and its goal; all with the environment's own maze."""
    return [Problem(env.maze, env.reset(seed=seed)[0], env.goal) for seed in seeds]


def episodes(
    env: Maze2d, asked: Sequence[Problem], peer: Peer, seeds: Sequence[int], gains: Gains, name: str, run: Run
) -> list[Episode]:
    """One of each problem, planned one by one; an episode depends on nothing but its problem and its seed."""
    pairs = run.progress(zip(asked, seeds, strict=True), name, len(seeds))
    return [execute(env, problem, peer, seed, gains) for problem, seed in pairs]


def metrics(found: Sequence[Episode]) -> dict[str, Estimate]:
    """What the episodes say; the score is D4RL's, of the steps spent in the goal."""
    plans = [e.valid for e in found if e.valid is not None]
    milliseconds = [1e3 * seconds for e in found for seconds in e.planning_seconds]
    numbers = {
        "score": results.mean([e.score for e in found], "D4RL"),
        "success_rate": results.rate(sum(e.success for e in found), len(found)),
        "steps_to_goal": results.mean([float(e.first) for e in found if e.first is not None], "steps of 0.01 s"),
        "path_ratio": results.mean([e.path_ratio for e in found if np.isfinite(e.path_ratio)]),
        "collided": results.rate(sum(e.collisions > 0 for e in found), len(found)),
        "planning_p50": results.quantile(milliseconds, 0.50, "ms"),
        "planning_p95": results.quantile(milliseconds, 0.95, "ms"),
    }
    if plans:
        numbers["plan_valid"] = results.rate(sum(plans), len(plans))
        numbers["tracking_error"] = results.mean([e.tracking_mean for e in found], "m")
    return numbers


def evaluate(
    saved: Checkpoint, config: PlanningConfig, evaluation: EvaluationConfig, run: Run
) -> tuple[dict[str, Any], dict[str, list[Episode]], DiffusionPlanner]:
    """Plan and carry out; returns the results, the episodes of each row and the planner.

    Args:
        config: the checkpoint's, with what is asked for.
    """
    prior, _ = restore(saved)
    planner = DiffusionPlanner(prior, sampling_table(config, prior), config.planner)
    multi = config.task.multi if evaluation.multi is None else evaluation.multi
    env = Maze2d(config.task.maze, multi=multi)
    seeds = list(range(evaluation.seed, evaluation.seed + evaluation.n))
    asked = problems(env, seeds)
    rows: dict[str, tuple[Peer, Gains]] = {
        PLANNER: (planner, Gains(config.planner.kp, config.planner.kd)),
        WAYPOINT: (Waypoint(), Gains()),
        SEARCH: (Bfs(), STIFF),
    }
    found = {name: episodes(env, asked, peer, seeds, gains, name, run) for name, (peer, gains) in rows.items()}
    ours = np.array([e.score for e in found[PLANNER]])
    return (
        {
            "checkpoint": "/".join(saved.path.resolve().parts[-4:]),
            "step": saved.step,
            "task": config.task.name,
            "maze": config.task.maze,
            "multi": multi,
            "metrics": metrics(found[PLANNER]),
            "peers": {name: metrics(found[name]) for name in (WAYPOINT, SEARCH)},
            "score_above": {
                name: results.mean((ours - [e.score for e in found[name]]).tolist(), "D4RL, paired by problem")
                for name in (WAYPOINT, SEARCH)
            },
            "planner": plain(config.planner),
            "sees_the_map": config.planner.walls > 0.0
            or config.planner.select in ("shortest", "quickest")
            or config.planner.refine != "none",
            "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
            "training_seed": config.train.seed,
            "data": saved.meta["data"],
            "seeds": [seeds[0], seeds[-1]],
            "commit": results.commit(),
            "trained_at_commit": saved.meta["commit"],
            "hardware": results.hardware(),
        },
        found,
        planner,
    )


def evaluate_and_report(
    saved: Checkpoint, config: PlanningConfig, evaluation: EvaluationConfig, out: Path, command: str, run: Run
) -> dict[str, Any]:
    """Evaluate, and write results, episodes, figures, videos and ``report.html`` into ``out``."""
    found, rows, planner = evaluate(saved, config, evaluation, run)
    found["command"] = command
    make_folder(out)
    results.write_json(out / "evaluation.json", found)
    with (out / "episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", "score", "success", "first", "path_ratio", "collisions", "valid"])
        for name, each in rows.items():
            for seed, e in enumerate(each, evaluation.seed):
                writer.writerow([name, seed, e.score, int(e.success), e.first, e.path_ratio, e.collisions, e.valid])
    page = report.write(out, found, rows, planner, config, evaluation.film, checkpoint.run_of(saved.path))
    summary = ", ".join(f"{name} {value}" for name, value in found["metrics"].items())
    logger.info("evaluated %d problems: %s", evaluation.n, summary)
    logger.info("report: %s", page)
    return found


def opened(name: str) -> Checkpoint:
    """The checkpoint that ``name`` means.

    Raises:
        WorkbenchError: there is none, or it is not a planner's.
    """
    if not name:
        raise WorkbenchError(
            "checkpoint: got none; expected checkpoint=<run folder> or one of its checkpoints; python -m "
            "planning.train task=maze2d_large makes one."
        )
    return checkpoint.find(name).require("planning")


def run(request: EvaluateConfig) -> dict[str, Any]:
    """Evaluate what ``request`` names."""
    saved = opened(request.checkpoint)
    own = typed(PlanningConfig, saved.config)
    others = {name: (getattr(request, name), getattr(own.evaluation, name)) for name in ("n", "seed", "multi")}
    others |= {name: (value, getattr(own.planner, name)) for name, value in request.changed.items()}
    out = Path(request.out) if request.out else checkpoint.evaluation_folder(saved, request, others)
    words = command("planning.evaluate")
    return evaluate_and_report(saved, request.of(own), request, out, words, Run(make_folder(out)))


@hydra.main(version_base=None, config_path="conf", config_name="evaluate")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(EvaluateConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
