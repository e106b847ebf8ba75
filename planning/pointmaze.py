"""A planner judged in OGBench's point mazes, beside a search that knows the map: results, attempts, a figure."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core import results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import plain
from diffusion_core.report import ACCENT, INK, MUTED, save_figure, subplots
from diffusion_core.results import Estimate
from diffusion_core.run import Run, make_folder
from envs.pointmaze import POINT, TASKS, PointMaze
from planning.config import EvaluationConfig, PlanningConfig
from planning.follow import Attempt, ThroughCells, follow, tasks
from planning.plan import Planner, Problem
from planning.planner import DiffusionPlanner
from planning.prior import restore, sampling_table
from planning.problems import of_file
from planning.tree import TreePlanner

logger = logging.getLogger("workbench.planning")
PLANNER, SEARCH = "planner", "search (BFS, sees the map)"


def metrics(found: Sequence[Attempt], which: Sequence[int]) -> dict[str, Estimate]:
    """What attempts say; ``which`` task each is of."""
    numbers = {
        "success_rate": results.rate(sum(a.success for a in found), len(found)),
        "plan_valid": results.rate(sum(a.valid for a in found), len(found)),
        "touched": results.rate(sum(a.contacts > 0 for a in found), len(found)),
        "plans": results.mean([float(len(a.planning_seconds)) for a in found]),
        "planning_p50": results.quantile([1e3 * s for a in found for s in a.planning_seconds], 0.5, "ms"),
    }
    if steps := [float(a.steps) for a in found if a.success]:
        numbers["steps_to_goal"] = results.mean(steps, f"steps of {POINT.dt} s")
    for task in sorted(set(which)):
        own = [a for a, k in zip(found, which, strict=True) if k == task]
        numbers[f"success_rate, task {task}"] = results.rate(sum(a.success for a in own), len(own))
    return numbers


def evaluate_and_report(
    saved: Checkpoint, config: PlanningConfig, evaluation: EvaluationConfig, out: Path, command: str, run: Run
) -> dict[str, Any]:
    """Plan and follow, and write ``evaluation.json``, ``attempts.csv`` and ``plans.png`` into ``out``.

    Without a file of problems there are ``evaluation.n / 5`` (at least 1) of each task.

    Args:
        config: the checkpoint's, with what is asked for.
    """
    prior, _ = restore(saved)
    table = sampling_table(config, prior)
    planner: DiffusionPlanner | TreePlanner
    if config.planner.tree:
        planner = TreePlanner(prior, table, config.planner.durations[0], config.planner.tree, POINT)
    else:
        planner = DiffusionPlanner(prior, table, config.planner, POINT)
    env = PointMaze(config.task.maze, render_mode=None)
    if evaluation.problems:
        path = Path(evaluation.problems).expanduser()
        asked = of_file(env, path)
        where = f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    else:
        asked = tasks(env, max(evaluation.n // len(TASKS[env.name]), 1), evaluation.seed)
        where = f"each task's, from seed {evaluation.seed} on"
    which = [_task(env, problem) for problem in asked]
    planners: dict[str, tuple[Planner, int]] = {
        PLANNER: (planner, config.planner.plans),
        SEARCH: (ThroughCells(), 1),
    }
    rows: dict[str, list[Attempt]] = {}
    for name, (each, plans) in planners.items():
        pairs = run.progress(enumerate(asked, evaluation.seed), name, len(asked))
        rows[name] = [follow(env, problem, each, seed, plans) for seed, problem in pairs]
    found = {
        "checkpoint": "/".join(saved.path.resolve().parts[-4:]),
        "step": saved.step,
        "task": config.task.name,
        "maze": config.task.maze,
        "problems": where,
        "metrics": metrics(rows[PLANNER], which),
        "peers": {SEARCH: metrics(rows[SEARCH], which)},
        "planner": plain(config.planner),
        "sees_the_map": not config.planner.tree
        and (config.planner.walls > 0.0 or config.planner.select in ("shortest", "quickest")),
        "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
        "training_seed": config.train.seed,
        "data": saved.meta["data"],
        "commit": results.commit(),
        "trained_at_commit": saved.meta["commit"],
        "command": command,
        "hardware": results.hardware(),
    }
    make_folder(out)
    results.write_json(out / "evaluation.json", found)
    with (out / "attempts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", "task", "success", "steps", "contacts", "plan_valid", "plans"])
        for name, attempts in rows.items():
            for seed, (a, task) in enumerate(zip(attempts, which, strict=True), evaluation.seed):
                numbers = [int(a.success), a.steps, a.contacts, int(a.valid), len(a.planning_seconds)]
                writer.writerow([name, seed, task, *numbers])
    firsts = [which.index(task) for task in sorted(set(which))]
    _draw(out / "plans.png", planner, [asked[i] for i in firsts], [rows[PLANNER][i] for i in firsts], evaluation.seed)
    summary = ", ".join(f"{name} {value}" for name, value in found["metrics"].items())
    logger.info("evaluated %d problems: %s", len(asked), summary)
    logger.info("results: %s", out)
    return found


def _task(env: PointMaze, problem: Problem) -> int:
    """The task whose cells a problem's start and goal are in; 0: none's."""
    cells = env.maze.cell(np.stack([problem.start[:2], problem.goal]))[:, ::-1].tolist()
    return next((k for k, places in enumerate(TASKS[env.name], 1) if cells == [list(p) for p in places]), 0)


def _draw(
    path: Path,
    planner: DiffusionPlanner | TreePlanner,
    asked: Sequence[Problem],
    attempts: Sequence[Attempt],
    seed: int,
) -> None:
    """Candidates (or the tree) of one problem of each task, and where the point came."""
    figure, axes = subplots(1, len(asked), 3.2 * len(asked), 2.6)
    for axis, problem, attempt in zip(np.ravel(axes), asked, attempts, strict=True):
        for x0, y0, x1, y1 in problem.maze.boxes:
            axis.fill([x0, x1, x1, x0], [y0, y0, y1, y1], color=MUTED, alpha=0.5, lw=0)
        if isinstance(planner, TreePlanner):
            planner(problem, seed)
            lines = planner.segments
        else:
            lines = list(planner.candidates([problem], [seed])[0][:8])
        for xy in lines:
            axis.plot(*xy.T, color=ACCENT, lw=0.5, alpha=0.6)
        axis.plot(*attempt.xy.T, color=INK, lw=1.2)
        axis.plot(*problem.goal, "o", color=INK, ms=4)
        axis.set_aspect("equal")
        axis.axis("off")
    save_figure(figure, path)
