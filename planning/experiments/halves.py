"""Priors of two halves of a maze, stitched to plans through both.

    python -m planning.experiments.halves --west runs/a0 runs/a1 --east runs/b0 runs/b1 --priors runs/c0 runs/c1 \\
        --out halves.json --figure halves.png

Every problem begins where only the western prior has been and ends where only the eastern one has; what both have seen
is a strip of two columns of cells. Each prior by itself draws from start to goal, as does one that saw the whole maze;
stitched, the first segment of a plan is the western prior's and the second the eastern one's. The halves are trained
with ``data.region=[0,0,8,6.3]`` and ``[0,4.3,8,11]`` on the steps of the same data that lie there.

Best of 32 by the map for all rows, no refinement; without and with the energy of walls, which knows ways that a prior
does not. The problems are dealt to the training seeds in turn. Success is the executed ball's.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.report import ACCENT, MUTED, save_figure, subplots
from envs.maze2d import MAPS, Maze, Maze2d
from planning.evaluate import attempt
from planning.execute import STIFF, Peer, way_length
from planning.experiments import lab
from planning.plan import Plan, Problem
from planning.planner import DiffusionPlanner
from planning.report import WARM, draw_maze

CANDIDATES = 32
WALLS = (0.0, 1.0)


def planners(west: lab.Trained, east: lab.Trained, whole: lab.Trained, walls: float) -> dict[str, Peer]:
    """The rows of one training seed."""
    config = replace(whole.config.planner, refine="none", walls=walls, candidates=CANDIDATES)
    two, half = replace(config, segments=2), replace(config, candidates=CANDIDATES // 2)

    def either(problem: Problem, seed: int) -> Plan:
        plans = [DiffusionPlanner(one.prior, one.table, half)(problem, seed) for one in (west, east)]
        return min(plans, key=lambda plan: (not plan.valid(problem), plan.length))

    return {
        "west alone": DiffusionPlanner(west.prior, west.table, config),
        "east alone": DiffusionPlanner(east.prior, east.table, config),
        "either, half of the candidates each": either,
        "west and east, stitched": DiffusionPlanner(west.prior, west.table, two, segments=[west.prior, east.prior]),
        "the whole maze's": DiffusionPlanner(whole.prior, whole.table, config),
        "the whole maze's, stitched": DiffusionPlanner(whole.prior, whole.table, two),
    }


def problem(rows: tuple[str, ...], west: float, east: float, rng: np.random.Generator, tries: int = 1000) -> Problem:
    """From below y = ``west`` to above y = ``east``, m.

    Raises:
        WorkbenchError: none was found.
    """
    for _ in range(tries):
        found = lab.between(Maze(rows), rng)
        if found.start[1] < west and found.goal[1] > east:
            return found
    raise WorkbenchError(f"halves: got no problem from y < {west} m to y > {east} m; expected halves that differ.")


def measured(asked: argparse.Namespace) -> tuple[dict[str, Any], Callable[[Path], None]]:
    """The table, and what draws the figure."""
    if len({len(asked.west), len(asked.east), len(asked.priors)}) > 1:
        raise WorkbenchError("halves: got numbers of runs that differ; expected as many --west as --east and --priors.")
    seeds = [lab.priors(names) for names in zip(asked.west, asked.east, asked.priors, strict=True)]
    (one, other, whole) = seeds[0]
    maze = whole.config.task.maze
    if not (one.config.data.region and other.config.data.region):
        raise WorkbenchError("halves: got a prior without a region; expected those of data.region=[...]: train them.")
    rows = tuple(MAPS[maze])
    # where only one of both has been
    west, east = other.config.data.region[1], one.config.data.region[3]
    numbers = range(lab.SEED, lab.SEED + asked.n)
    problems = [problem(rows, west, east, np.random.default_rng([seed, 2])) for seed in numbers]
    env = Maze2d(maze, multi=True)
    table: dict[str, dict[str, Any]] = {}
    for walls in WALLS:
        each = [planners(three[0], three[1], three[2], walls) for three in seeds]
        for name in each[0]:
            dealt = itertools.cycle(peers[name] for peers in each)
            jobs = zip(problems, dealt, numbers, strict=False)
            words = name + (", with walls" if walls else "")
            found = [attempt(env, p, by, s, STIFF)[0] for p, by, s in tqdm(jobs, words, len(problems), disable=None)]
            table[words] = {
                "valid": results.rate(sum(bool(e.valid) for e in found), len(found)),
                "success": results.rate(sum(e.success for e in found), len(found)),
                "by_prior": [float(np.mean([e.success for e in found[k :: len(seeds)]])) for k in range(len(seeds))],
                "path_ratio": lab.spread([e.path_ratio for e in found]),
                "planning_p50": results.quantile([1e3 * s for e in found for s in e.planning_seconds], 0.5, "ms"),
            }
            lab.logger.info("%s: valid %s, success %s", words, table[words]["valid"], table[words]["success"])
    draw = partial(figure, planners(one, other, whole, 0.0), max(problems, key=way_length), (west, east))
    trained = [lab.described(three) for three in seeds]
    return {"maze": maze, "priors": trained, "seeds": [numbers[0], numbers[-1]], "rows": table}, draw


def figure(peers: dict[str, Peer], asked: Problem, strip: tuple[float, float], path: Path) -> None:
    """Candidates of each planner for one problem."""
    shown = {name: p for name, p in peers.items() if isinstance(p, DiffusionPlanner) and "maze's, st" not in name}
    fig, axes = subplots(1, 4, 10.0, 3.7)
    for axis, (name, planner) in zip(axes.flat, shown.items(), strict=True):
        draw_maze(axis, asked)
        axis.axhspan(*strip, color=MUTED, alpha=0.15, zorder=0)
        cut = planner.prior.horizon - planner.config.overlap // 2
        for xy in planner.candidates([asked], [0])[0]:
            axis.plot(*xy.T, color=ACCENT, alpha=0.35, linewidth=1)
            if planner.windows:
                axis.plot(*xy[cut:].T, color=WARM, alpha=0.5, linewidth=1)
        axis.set_title(name, fontsize=10)
    save_figure(fig, path)


if __name__ == "__main__":
    halves = {"nargs": "+", "required": True}
    more = (("--west", halves | {"help": "runs of the one half"}), ("--east", halves | {"help": "runs of the other"}))
    lab.run(measured, lab.arguments(__doc__, *more), "halves")
