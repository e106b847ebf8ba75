"""Corridors that were free in the data are blocked: what the prior, an energy, a selection and particles make of it.

    python -m planning.experiments.obstacles --priors runs/a runs/b runs/c --out obstacles.json --figure obstacles.png

Corridors: a cell of the shortest way is filled, then one of the shortest way that is left, and so on; there is always
a way round. Discs: cells of the shortest way get a disc of 0.15 m radius in their middle, which leaves 0.35 m on either
side for a ball of 0.2 m. The priors know nothing of it; what stands there reaches them as the energy `Walls`, or is
looked at when one of 32 candidates is selected. Plans are carried out as they were drawn, without any refinement: what
is measured is the product of experts. Search and two optimisers get the same problems.

A plan is valid if the ball fits all along it and it ends in the goal; success is the executed ball's, by the goal's
radius, within the episode's steps. The problems are dealt to the priors in turn. Single samples take the duration at
which the prior alone does best.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.report import MUTED, save_figure, subplots
from envs.maze2d import MAPS, Maze, Maze2d, Obstacle
from planning.evaluate import attempt
from planning.execute import STIFF, Peer
from planning.experiments import lab
from planning.peers.bfs import Bfs
from planning.peers.chomp import Chomp
from planning.peers.ompl_planner import Ompl
from planning.plan import Problem
from planning.planner import DiffusionPlanner

SERIES = (("corridors", 0), ("corridors", 1), ("corridors", 2), ("corridors", 3), ("discs", 4))
"""What stands in the way, and how often. The large maze has three loops: a fourth filled cell would leave no way."""
SINGLE = 288
"""Duration of a plan where only one is drawn, steps: the best in a pilot with 96, 192, 288 and 384 (30 problems)."""
DISC = 0.15
"""Radius, m."""
CANDIDATES = 32
ROWS: dict[str, dict[str, Any]] = {
    "prior": {"walls": 0.0, "candidates": 1, "select": "first", "durations": [SINGLE]},
    "prior, best of 32": {"walls": 0.0},
    "prior x energy": {"candidates": 1, "select": "first", "durations": [SINGLE]},
    "prior x energy, particles, best of 32": {"particles": True},
    "prior x energy, best of 32": {},
    "two priors, stitched, x energy, best of 32": {"segments": 2},
}
"""What is drawn from the priors, and what of `PlannerConfig` makes it."""
OTHERS: dict[str, Peer] = {
    "energy alone (CHOMP)": Chomp(),
    "search (on a lattice)": Bfs(spacing=0.1, room=0.12, cut_rooms=(0.13,), polish=0),
    "RRTConnect (OMPL)": Ompl("rrtconnect"),
}
"""What knows the map, and no prior."""


def problem(rows: Sequence[str], kind: str, count: int, rng: np.random.Generator, tries: int = 1000) -> Problem:
    """One with so many obstacles of a kind.

    Raises:
        WorkbenchError: none was found.
    """
    for _ in range(tries):
        found = lab.between(Maze(rows), rng, least=6.0)
        obstacles = _discs(found, count, rng) if kind == "discs" else _filled(found, count, rng)
        if obstacles is not None:
            return Problem(Maze(rows, obstacles), found.start, found.goal)
    raise WorkbenchError(
        f"obstacles: got no problem with {count} {kind} in {tries} tries; expected a maze with more ways: take "
        "maze2d_large."
    )


def _inner(maze: Maze, asked: Problem) -> np.ndarray:
    """Cells of the shortest way that are not next to its ends."""
    return maze.way(asked.start[:2], asked.goal)[2:-2]


def _discs(asked: Problem, count: int, rng: np.random.Generator) -> list[Obstacle] | None:
    cells = _inner(asked.maze, asked)
    if len(cells) < count:
        return None
    middles = asked.maze.middles(rng.permutation(cells)[:count])
    return [Obstacle((float(x), float(y)), DISC) for x, y in middles]


def _filled(asked: Problem, count: int, rng: np.random.Generator) -> list[Obstacle] | None:
    """Each fills a cell of the way that the others have left, and leaves one; None where none can."""
    found: list[Obstacle] = []
    for _ in range(count):
        for cell in rng.permutation(_inner(Maze(asked.maze.rows, found), asked)):
            x, y = asked.maze.middles(cell)
            new = Obstacle((float(x), float(y)), asked.maze.world.side / 2.0, square=True)
            try:
                Maze(asked.maze.rows, [*found, new]).way(asked.start[:2], asked.goal)
            except ValueError:
                continue
            found.append(new)
            break
        else:
            return None
    return found


def planner(one: lab.Trained, changes: dict[str, Any]) -> DiffusionPlanner:
    """Of a row."""
    config = replace(one.config.planner, refine="none", **({"candidates": CANDIDATES} | changes))
    return DiffusionPlanner(one.prior, one.table, config)


def measured(asked: argparse.Namespace) -> tuple[dict[str, Any], Callable[[Path], None]]:
    """The table, and what draws the figure."""
    trained = lab.priors(asked.priors)
    maze = trained[0].config.task.maze
    seeds = range(lab.SEED, lab.SEED + asked.n)
    rows: dict[str, dict[str, Any]] = {name: {} for name in [*ROWS, *OTHERS]}
    planners = {name: [planner(one, changes) for one in trained] for name, changes in ROWS.items()}
    for kind, count in SERIES:
        problems = [problem(MAPS[maze], kind, count, np.random.default_rng([seed, count])) for seed in seeds]
        worlds = [Maze2d(maze, multi=True, obstacles=p.maze.obstacles) for p in problems]
        for name in rows:
            dealt = itertools.cycle(planners.get(name, ()) or (OTHERS[name],))
            jobs = zip(worlds, problems, dealt, seeds, strict=False)
            words = f"{count} {kind}, {name}"
            found = [attempt(w, p, by, s, STIFF)[0] for w, p, by, s in tqdm(jobs, words, len(seeds), disable=None)]
            rows[name][f"{count} {kind}"] = {
                "valid": results.rate(sum(bool(e.valid) for e in found), len(found)),
                "success": results.rate(sum(e.success for e in found), len(found)),
                "by_prior": [
                    float(np.mean([e.success for e in found[k :: len(trained)]])) for k in range(len(trained))
                ],
                "path_ratio": lab.spread([e.path_ratio for e in found]),
                "planning_p50": results.quantile([1e3 * s for e in found for s in e.planning_seconds], 0.5, "ms"),
            }
            lab.logger.info("%s: success %s", words, rows[name][f"{count} {kind}"]["success"])
    measurements = {"maze": maze, "priors": lab.described(trained), "seeds": [seeds[0], seeds[-1]], "rows": rows}
    return measurements, partial(figure, rows)


COLOURS = ("#b9cfe8", "#8fb3dd", "#e0a070", "#c0591f", "#5f93cf", "#1f5fae")
"""Of the rows of `ROWS`, in their order."""


def figure(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Success against the number of filled corridors."""
    fig, axes = subplots(1, 1, 7.6, 4.6)
    axis = axes.flat[0]
    counts = [count for kind, count in SERIES if kind == "corridors"]
    for k, (name, row) in enumerate(rows.items()):
        rates = [row[f"{count} corridors"]["success"] for count in counts]
        own = name in ROWS
        bold = name == list(ROWS)[-1]
        axis.errorbar(
            counts,
            [r.value for r in rates],
            lab.bars(rates),
            label=name,
            marker="os^vDPXo*"[k % 9],
            markersize=5,
            capsize=2,
            color=COLOURS[k % len(COLOURS)] if own else MUTED,
            linestyle="-" if own else ("--", ":", "-.")[k % 3],
            linewidth=2.4 if bold else 1.2,
        )
    axis.set(xlabel="corridors filled", ylabel="executed successfully", xticks=counts, ylim=(-0.03, 1.03))
    fig.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    save_figure(fig, path)


if __name__ == "__main__":
    lab.run(measured, lab.arguments(__doc__), "obstacles")
