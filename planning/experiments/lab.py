"""What the experiments share: priors, problems, and a file of results that says where it comes from."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from diffusion_core.run import launch
from diffusion_core.solvers import Table
from envs.maze2d import JITTER, Maze
from planning.config import PlanningConfig
from planning.evaluate import opened
from planning.plan import Problem
from planning.prior import TrajectoryPrior, restore, sampling_table

logger = logging.getLogger("workbench.planning")

SEED = 300_000
"""Of the first problem, and of its plan's noise: those of evaluations begin elsewhere."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A prior, how it was trained, and how it is sampled."""

    prior: TrajectoryPrior
    config: PlanningConfig
    table: Table
    commit: str

    @classmethod
    def of(cls, name: str) -> Trained:
        """The prior of a run.

        Raises:
            WorkbenchError: there is none.
        """
        saved = opened(name)
        prior, config = restore(saved)
        return cls(prior, config, sampling_table(config, prior), saved.meta["commit"])


def arguments(text: str, *more: tuple[str, dict[str, Any]]) -> argparse.ArgumentParser:
    """What every experiment is told; ``more`` adds to it."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--priors", nargs="+", required=True, help="runs of planning.train, one for each training seed")
    parser.add_argument("--n", type=int, default=100, help="problems for each prior")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    parser.add_argument("--figure", type=Path, help="a PNG file for the figure")
    for name, options in more:
        parser.add_argument(name, **options)
    return parser


def priors(names: Sequence[str]) -> list[Trained]:
    """Those of some runs, all of one maze.

    Raises:
        WorkbenchError: they are of several mazes.
    """
    found = [Trained.of(name) for name in names]
    mazes = sorted({one.config.task.maze for one in found})
    if len(mazes) > 1:
        raise WorkbenchError(f"priors: got those of the mazes {', '.join(mazes)}; expected one maze: leave some out.")
    return found


def pooled(each: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """The rate over all priors and problems, and that of each prior."""
    return {
        "rate": results.rate(sum(map(sum, each)), sum(map(len, each))),
        "by_prior": [float(np.mean(one)) for one in each],
    }


Experiment = Callable[[argparse.Namespace], tuple[dict[str, Any], Callable[[Path], None]]]
"""Results, and what draws their figure into a file."""


def run(experiment: Experiment, parser: argparse.ArgumentParser, name: str) -> None:
    """Measure with one thread, and write what came of it; the figure last, so that it cannot cost the results."""

    def main() -> None:
        asked = parser.parse_args()
        torch.set_num_threads(1)
        began = time.perf_counter()
        found, draw = experiment(asked)
        found |= {
            "command": f"python -m planning.experiments.{name} {shlex.join(sys.argv[1:])}",
            "commit": results.commit(),
            "seconds": round(time.perf_counter() - began, 1),
            "hardware": results.hardware(),
        }
        if asked.out:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            results.write_json(asked.out, found)
            logger.info("wrote %s", asked.out)
        if asked.figure:
            draw(asked.figure)

    launch(main)


def described(found: Sequence[Trained]) -> list[dict[str, Any]]:
    """Where priors come from, for the results."""
    return [
        {
            "task": one.config.task.name,
            "seed": one.config.train.seed,
            "steps": one.config.train.steps,
            "region": list(one.config.data.region),
            "commit": one.commit,
        }
        for one in found
    ]


def between(maze: Maze, rng: np.random.Generator, least: float = 4.0, tries: int = 1000) -> Problem:
    """A problem in a maze: two free places, jittered as Maze2D's, at rest.

    Args:
        least: distance along the way through cells, m.

    Raises:
        WorkbenchError: none so far apart was found.
    """
    for _ in range(tries):
        start, goal = (place(maze, rng) for _ in range(2))
        if start is None or goal is None:
            continue
        try:
            way = maze.way(start, goal)
        except ValueError:
            continue
        if len(way) - 1 >= least:
            return Problem(maze, np.concatenate([start, np.zeros(2)]), goal)
    raise WorkbenchError(f"problems: got none of {least} m in {tries} tries; expected a larger maze, or a lower least.")


def place(maze: Maze, rng: np.random.Generator) -> np.ndarray | None:
    """A place in a free cell, drawn as Maze2D's are; None where an obstacle has taken it."""
    xy = maze.free[rng.integers(len(maze.free))] + rng.uniform(-JITTER, JITTER, 2)
    return xy if float(maze.clearance(xy)) >= maze.world.radius else None


def bars(values: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of error bars, down and up: roundings put a bound of a rate of 0 to its other side."""
    return [[max(v.value - v.low, 0.0) for v in values], [max(v.high - v.value, 0.0) for v in values]]


def spread(values: Sequence[float], unit: str = "1") -> Estimate:
    """The mean of what is finite."""
    x = np.asarray(values, dtype=np.float64)
    return results.mean(x[np.isfinite(x)].tolist(), unit)
