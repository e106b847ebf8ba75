"""Several robots from the prior of one, and an energy that keeps them apart.

    python -m planning.experiments.robots --priors runs/a runs/b runs/c --out robots.json --figure robots.png

Pairs of robots change places in the large maze: each one's goal is the other's start. The prior has seen one ball at a
time; its product over the robots is multiplied with the energies of walls and of `planning.energies.Separation`, both
of the denoised estimate. All robots of a plan move at one pace, and a plan is selected as a whole.

A plan is valid if every ball fits all along its way, all end in their goals, and no two middles come nearer to each
other than a ball's diameter at any time. Success is that of the execution, by the same words for what the balls did;
each has a simulation of its own, in which the others are not felt but their distance is measured at every step. The
problems are dealt to the priors in turn.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import start
from diffusion_core.noise import Shared
from diffusion_core.report import ACCENT, MUTED, save_figure, subplots
from diffusion_core.sample import sample
from envs.maze2d import DT, RADIUS, Maze, Maze2d
from planning.compose import composed
from planning.energies import Separation, Walls
from planning.energies.algebra import Cost
from planning.energies.motion import every_pair
from planning.execute import STIFF, execute
from planning.experiments import lab
from planning.plan import Plan, Problem
from planning.report import WARM, draw_maze

ROBOTS = (2, 4)
DURATIONS = (288, 384, 480)
DISTANCE = 0.5
"""Between two middles from which on the energy asks nothing, m."""
MARGIN = 0.15
"""Of walls, as the planner's."""


@dataclass(frozen=True)
class Row:
    """What is multiplied with the priors, and how many joint plans are drawn."""

    walls: float
    separation: float
    candidates: int


ROWS = {
    "the prior of each": Row(0.0, 0.0, 1),
    "the prior of each, best of 32": Row(0.0, 0.0, 32),
    "x walls": Row(1.0, 0.0, 1),
    "x walls x separation": Row(1.0, 3.0, 1),
    "x walls, best of 32": Row(1.0, 0.0, 32),
    "x walls x separation, best of 32": Row(1.0, 3.0, 32),
}


def problem(maze: Maze, robots: int, rng: np.random.Generator, tries: int = 1000) -> list[Problem]:
    """Pairs that change places; all places are a metre apart or more.

    Raises:
        WorkbenchError: none was found.
    """
    for _ in range(tries):
        found: list[Problem] = []
        for _ in range(robots // 2):
            one = lab.between(maze, rng)
            back = Problem(maze, np.concatenate([one.goal, np.zeros(2)]), one.start[:2])
            found += [one, back]
        places = np.array([p.goal for p in found])
        apart = [np.linalg.norm(places[i] - places[j]) for i, j in every_pair(robots)]
        if min(apart) >= 1.0:
            return found
    raise WorkbenchError(f"robots: got no places for {robots} a metre apart in {tries} tries; expected a larger maze.")


def drawn(
    one: lab.Trained, asked: Sequence[Problem], row: Row, seed: int
) -> tuple[Float[np.ndarray, "n robots horizon 2"], Float[np.ndarray, " n"]]:
    """Joint plans, m, and the time between their nodes, s."""
    prior, robots, maze = one.prior, len(asked), asked[0].maze
    durations = DURATIONS if row.candidates > 1 else (288,)
    each = -(-row.candidates // len(durations))
    steps = torch.tensor(durations, dtype=torch.float32).repeat_interleave(each)[: row.candidates]
    dt, n = DT * steps / (prior.horizon - 1), row.candidates
    mask = torch.zeros(robots, prior.horizon, 2, dtype=torch.bool)
    values = torch.zeros(robots, prior.horizon, 2)
    for k, p in enumerate(asked):
        mask[k, [0, -1]] = True
        values[k, 0], values[k, -1] = torch.as_tensor(p.start[:2]).float(), torch.as_tensor(p.goal).float()
    energies: list[tuple[Cost, float]] = []
    energies += [(Walls(maze, MARGIN + RADIUS), row.walls)] if row.walls else []
    energies += [(Separation(DISTANCE), row.separation)] if row.separation else []
    expert = composed(
        {"prior": prior},
        [cost for cost, _ in energies],
        [strength for _, strength in energies],
        (mask, values),
        through="estimate",
        dt=dt.repeat_interleave(robots),
        robots=True,
    )
    noise, like = Shared(torch.Generator().manual_seed(seed)), prior.normalizer.low
    z = noise.normal((n, robots, prior.horizon, 2), like.dtype, like.device)
    x = sample(expert, one.table, start(expert, z, float(one.table.times[0])), noise=noise)
    return prior.normalizer.unnormalize(x).double().numpy(), dt.double().numpy()


def apart(ways: Float[np.ndarray, "robots moments 2"]) -> float:
    """Least distance between two middles at the same moment, m."""
    return min(float(np.linalg.norm(ways[i] - ways[j], axis=-1).min()) for i, j in every_pair(len(ways)))


def rooms(asked: Sequence[Problem], xy: Float[np.ndarray, "robots horizon 2"], dt: float) -> tuple[float, float]:
    """Least clearance to walls, and least distance between two, along the straight lines between nodes; m."""
    share = np.linspace(0.0, 1.0, 20, endpoint=False)[:, None]
    lines = xy[:, :-1, None] + share * (xy[:, 1:, None] - xy[:, :-1, None])
    dense = np.concatenate([lines.reshape(len(xy), -1, 2), xy[:, -1:]], 1)
    return min(Plan(way, dt).clearance(p.maze) for p, way in zip(asked, xy, strict=True)), apart(dense)


def attempt(one: lab.Trained, asked: Sequence[Problem], row: Row, env: Maze2d, seed: int) -> dict[str, Any]:
    """One joint plan, selected and carried out."""
    began = time.perf_counter()
    ways, dt = drawn(one, asked, row, seed)
    found = [rooms(asked, xy, float(t)) for xy, t in zip(ways, dt, strict=True)]
    fits = np.array([room >= RADIUS and gap >= 2.0 * RADIUS for room, gap in found])
    lengths = np.linalg.norm(np.diff(ways, axis=2), axis=-1).sum((1, 2))
    # where none fits, the one that comes nearest to it
    lacks = np.array([max(RADIUS - room, 2.0 * RADIUS - gap, 0.0) for room, gap in found])
    best = int(np.where(fits, lengths, 1e6 + lacks).argmin())
    seconds = time.perf_counter() - began
    episodes = [
        execute(env, p, Plan(xy, float(dt[best])), seed, STIFF) for p, xy in zip(asked, ways[best], strict=True)
    ]
    gap = apart(np.stack([e.states[:, :2] for e in episodes]))
    return {
        "valid": bool(fits[best]),
        "arrived": all(e.success for e in episodes),
        "gap": gap,
        "success": all(e.success for e in episodes) and gap >= 2.0 * RADIUS,
        "seconds": seconds,
    }


def measured(asked: argparse.Namespace) -> tuple[dict[str, Any], Callable[[Path], None]]:
    """The table, and what draws the figure."""
    trained = lab.priors(asked.priors)
    env, maze = Maze2d("large", multi=True), Maze2d("large", multi=True).maze
    seeds = range(lab.SEED, lab.SEED + asked.n)
    rows: dict[str, dict[str, Any]] = {name: {} for name in ROWS}
    for robots in ROBOTS:
        problems = [problem(maze, robots, np.random.default_rng([seed, robots])) for seed in seeds]
        for name, row in ROWS.items():
            words = f"{robots} robots, {name}"
            jobs = zip(itertools.cycle(trained), problems, seeds, strict=False)
            found = [attempt(one, p, row, env, s) for one, p, s in tqdm(jobs, words, len(seeds), disable=None)]
            rows[name][str(robots)] = {
                **{
                    key: results.rate(sum(f[key] for f in found), len(found)) for key in ("valid", "arrived", "success")
                },
                "by_prior": [
                    float(np.mean([f["success"] for f in found[k :: len(trained)]])) for k in range(len(trained))
                ],
                "gap": lab.spread([f["gap"] for f in found], "m"),
                "planning_p50": results.quantile([1e3 * f["seconds"] for f in found], 0.5, "ms"),
            }
            lab.logger.info("%s: %s", words, rows[name][str(robots)]["success"])
    measurements = {"maze": "large", "priors": lab.described(trained), "seeds": [seeds[0], seeds[-1]], "rows": rows}
    return measurements, partial(figure, trained[0], problems[0])


def figure(one: lab.Trained, asked: Sequence[Problem], path: Path) -> None:
    """The ways of a joint plan, and how near the robots come to each other, without the energy and with it."""
    fig, axes = subplots(1, 3, 11.0, 4.2)
    colours = (ACCENT, WARM, "#3f8f5f", "#7a5ca8")
    rows = {"x walls": MUTED, "x walls x separation": ACCENT}
    for axis, (name, colour) in zip(axes.flat, rows.items(), strict=False):
        ways, dt = drawn(one, asked, ROWS[name], 0)
        draw_maze(axis, asked[0])
        for xy, own in zip(ways[0], colours, strict=False):
            axis.plot(*xy.T, color=own, lw=1.6)
            axis.plot(*xy[0], "o", color=own, ms=6, zorder=7)
        axis.set_title(name, fontsize=10)
        share = np.linspace(0.0, 1.0, 20, endpoint=False)[:, None]
        lines = ways[0][:, :-1, None] + share * np.diff(ways[0], axis=1)[:, :, None]
        dense = lines.reshape(len(asked), -1, 2)
        gap = np.min([np.linalg.norm(dense[i] - dense[j], axis=-1) for i, j in every_pair(len(asked))], axis=0)
        seconds = np.arange(len(gap)) / 20.0 * float(dt[0])
        axes.flat[2].plot(seconds, gap, color=colour, label=name)
    axes.flat[2].axhline(2.0 * RADIUS, color=MUTED, ls=":", label="they touch")
    axes.flat[2].set(xlabel="s", ylabel="nearest two, m", ylim=(0, None))
    axes.flat[2].legend(fontsize=8)
    save_figure(fig, path)


if __name__ == "__main__":
    lab.run(measured, lab.arguments(__doc__), "robots")
