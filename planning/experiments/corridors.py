"""Which of two ways is taken under costs that disagree, beside the exact posterior.

    python -m planning.experiments.corridors --priors runs/a runs/b runs/c --out corridors.json --figure corridors.png

From a start to a goal of the large maze lead two ways. One cost is 1 for a plan by the first, another for a plan by the
second (`planning.energies.Through`); with strengths a and b the prior's odds of the first way change by the factor
``exp(b - a)``. That is exact, and where costs are not quite 0 or 1 the posterior is that of many samples of the prior,
weighted by ``exp(-cost)``. Samples that were guided by the costs, and weighted particles, are compared with it: how far
the share that takes the first way is from the share that should.

From (3, 6) to (5, 9) of the large maze, cells, 94 % of the first prior's samples take exactly one of the ways by the
cells (1, 7) and (5, 7); shares are of these. All plans take 288 steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_core.configure import table
from diffusion_core.experts import start
from diffusion_core.noise import Shared
from diffusion_core.particles import sample_particles
from diffusion_core.report import ACCENT, MUTED, save_figure, subplots
from diffusion_core.sample import sample
from envs.maze2d import DT, MAPS, Maze
from planning.compose import composed
from planning.energies import Through
from planning.experiments import lab
from planning.plan import Problem
from planning.report import WARM, draw_maze, draw_ways

DURATION = 288
STRENGTHS = ((0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (0.0, 1.0), (0.0, 2.0), (0.0, 3.0), (3.0, 3.0), (3.0, 1.5))
"""Of the costs of the first and of the second way."""
SAMPLES = 512
PARTICLES = 2048
"""More than samples: copies are not independent."""
PROPOSALS = 4096
"""Of the prior, for the exact posterior."""
STEPS = 40
FROM, TO, WAYS = (3, 6), (5, 9), ((1, 7), (5, 7))
"""Cells of the large maze."""
METHODS = {
    "guided through the estimate": ("estimate", False),
    "guided through the denoiser": ("denoiser", False),
    "weighted particles": ("estimate", True),
}


class Fork:
    """Samples between a start and a goal with two ways.

    Args:
        one: the prior.
        ends: start and goal, m.
        costs: of the two ways.
    """

    def __init__(self, one: lab.Trained, ends: Tensor, costs: tuple[Through, Through]) -> None:
        self.prior, self.costs, self.ends = one.prior, costs, ends
        config = one.config
        self.table = table(config.sampler, config.grid, STEPS, one.prior.denoiser.schedule)

    def expert(self, n: int, strengths: tuple[float, float], through: Any) -> Any:
        """The product, for so many samples."""
        mask = torch.zeros(self.prior.horizon, 2, dtype=torch.bool)
        values = torch.zeros(self.prior.horizon, 2)
        for node, end in ((0, self.ends[0]), (-1, self.ends[1])):
            mask[node], values[node] = True, end
        dt = torch.full((n,), DT * DURATION / (self.prior.horizon - 1))
        return composed({"prior": self.prior}, self.costs, strengths, (mask, values), through=through, dt=dt)

    def drawn(
        self, n: int, strengths: tuple[float, float], seed: int, through: str = "estimate", particles: bool = False
    ) -> Tensor:
        """Trajectories (n, horizon, 2), m."""
        noise = Shared(torch.Generator().manual_seed(seed))
        expert, times = self.expert(n, strengths, through), self.table.times
        like = self.prior.normalizer.low
        x = start(expert, noise.normal((n, self.prior.horizon, 2), like.dtype, like.device), float(times[0]))
        if particles:
            grid = torch.cat([times, times.new_zeros(1)])
            x = sample_particles(expert, grid, x, noise).resampled(noise)
        else:
            x = sample(expert, self.table, x, noise=noise)
        return self.prior.normalizer.unnormalize(x)

    def share(self, xy: Tensor, weights: Tensor | None = None) -> float:
        """Of the first way among the (weighted) trajectories that take exactly one of both."""
        first, second = (cost(xy) > 0.5 for cost in self.costs)
        weights = torch.ones(len(xy)) if weights is None else weights
        one, other = float(weights[first & ~second].sum()), float(weights[second & ~first].sum())
        return one / (one + other)

    def either(self, xy: Tensor) -> float:
        """The share of trajectories that take exactly one of both ways."""
        first, second = (cost(xy) > 0.5 for cost in self.costs)
        return float((first ^ second).float().mean())

    def exact(self, proposals: Tensor, strengths: tuple[float, float]) -> float:
        """`share` under the posterior, from many samples of the prior."""
        logits = -sum(strength * cost(proposals) for strength, cost in zip(strengths, self.costs, strict=True))
        return self.share(proposals, torch.as_tensor(logits).double().softmax(0))


def measured(asked: argparse.Namespace) -> tuple[dict[str, Any], Callable[[Path], None]]:
    """The table, and what draws the figure."""
    trained = lab.priors(asked.priors)
    maze = Maze(MAPS["large"])

    def middle(cell: tuple[int, int]) -> tuple[float, float]:
        x, y = maze.middles(np.array(cell))
        return float(x), float(y)

    ends = torch.tensor([middle(FROM), middle(TO)])
    costs = (Through(middle(WAYS[0]), 0.5), Through(middle(WAYS[1]), 0.5))
    points: list[dict[str, Any]] = []
    for number, one in enumerate(trained):
        fork = Fork(one, ends, costs)
        proposals = fork.drawn(PROPOSALS, (0.0, 0.0), lab.SEED - 1)
        for strengths in tqdm(STRENGTHS, f"prior {number}", disable=None):
            point = {"prior": number, "strengths": list(strengths), "exact": fork.exact(proposals, strengths)}
            for name, (through, particles) in METHODS.items():
                xy = fork.drawn(PARTICLES if particles else SAMPLES, strengths, lab.SEED, through, particles)
                point[name] = {"share": fork.share(xy), "either": fork.either(xy)}
            points.append(point)
            lab.logger.info("%s", point)
    errors = {name: [abs(point[name]["share"] - point["exact"]) for point in points] for name in METHODS}
    summary = {
        name: {
            "largest_error": max(error),
            "error": lab.spread(error),
            "either": lab.spread([p[name]["either"] for p in points]),
        }
        for name, error in errors.items()
    }
    lab.logger.info("%s", summary)
    measurements = {
        "maze": "large",
        "priors": lab.described(trained),
        "samples": SAMPLES,
        "particles": PARTICLES,
        "proposals": PROPOSALS,
        "steps": STEPS,
        "points": points,
        "rows": summary,
    }
    return measurements, partial(figure, points, Fork(trained[0], ends, costs))


def figure(points: list[dict[str, Any]], fork: Fork, path: Path) -> None:
    """Shares beside the exact ones, and samples under either cost."""
    fig, axes = subplots(1, 3, 11.0, 3.9)
    axis = axes.flat[0]
    axis.plot([0, 1], [0, 1], color=MUTED, lw=1)
    axis.fill_between([0, 1], [-0.1, 0.9], [0.1, 1.1], color=MUTED, alpha=0.15, lw=0)
    for (name, marker), colour in zip(zip(METHODS, "o^s", strict=True), (ACCENT, MUTED, WARM), strict=True):
        xs, ys = [p["exact"] for p in points], [p[name]["share"] for p in points]
        axis.plot(xs, ys, marker, ms=5, label=name, color=colour, alpha=0.8)
    axis.set(xlabel="share by the first way, exact posterior", ylabel="drawn", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.legend(fontsize=8)
    maze = Maze(MAPS["large"])
    asked = Problem(maze, np.concatenate([fork.ends[0].double().numpy(), np.zeros(2)]), fork.ends[1].double().numpy())
    for axis, strengths in zip(axes.flat[1:], ((0.0, 0.0), (3.0, 0.0)), strict=True):
        xy = fork.drawn(128, strengths, lab.SEED, particles=True).double().numpy()
        draw_maze(axis, asked)
        fits = np.array([float(maze.clearance(way).min()) >= 0.0 for way in xy])
        draw_ways(axis, xy, fits, None)
        axis.set_title(
            "prior" if not strengths[0] else f"the first (left) way costs {strengths[0]:g}, particles", fontsize=10
        )
    save_figure(fig, path)


if __name__ == "__main__":
    lab.run(measured, lab.arguments(__doc__), "corridors")
