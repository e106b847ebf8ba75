"""Plans from a prior, what it is multiplied with, and a selection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_core import sample
from diffusion_core.correct import Ula
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Product, start
from diffusion_core.noise import Noise, PerSample
from diffusion_core.particles import sample_particles
from diffusion_core.sample import State
from diffusion_core.solvers import Table
from envs.maze2d import BALL, Maze, World
from planning.compose import Prior, composed, stitched
from planning.config import PlannerConfig
from planning.energies import Walls
from planning.plan import Plan, Problem
from planning.prior import TrajectoryPrior
from planning.refine import refined
from planning.stitch import evenly

LANGEVIN = 0.2
"""Of the corrector, see `diffusion_core.correct`."""


class DiffusionPlanner:
    """Draws trajectories from ``prior * Energy(walls) ** strength * Known(start, goal)``, and selects one.

    Args:
        prior: of trajectories.
        table: the sampler.
        config: what it is multiplied with, how many are drawn, and which is taken.
        world: that plans are carried out in.
        segments: the priors of the segments in order, where ``config.segments`` of them are stitched; empty: ``prior``
            is that of all.

    Raises:
        WorkbenchError: the segments' overlap is none, or more than half a segment, or they have too few priors.
    """

    def __init__(
        self,
        prior: TrajectoryPrior,
        table: Table,
        config: PlannerConfig,
        world: World = BALL,
        segments: Sequence[TrajectoryPrior] = (),
    ) -> None:
        self.prior, self.table, self.config, self.world = prior, table, config, world
        self.segments = list(segments) or [prior] * config.segments
        if len(self.segments) != config.segments:
            raise WorkbenchError(
                f"planner.segments: got {config.segments} and {len(self.segments)} priors; expected one for each."
            )
        self.horizon = prior.horizon + (config.segments - 1) * (prior.horizon - config.overlap)
        self.windows = evenly(self.horizon, prior.horizon, config.overlap) if config.segments > 1 else ()
        steps = torch.tensor(config.durations, dtype=torch.float32)
        each = -(-config.candidates // len(steps))
        self.dt = (world.dt * steps / (prior.horizon - 1)).repeat_interleave(each)[: config.candidates]

    def __call__(self, problem: Problem, seed: int) -> Plan:
        """A plan; the same for the same problem and seed, whatever is planned beside it."""
        return self.plans([problem], [seed])[0]

    def plans(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Plan]:
        """A plan for each problem; all of one maze."""
        candidates = self.candidates(problems, seeds)
        return [self.selected(problem, xy) for problem, xy in zip(problems, candidates, strict=True)]

    def candidates(
        self, problems: Sequence[Problem], seeds: Sequence[int]
    ) -> Float[np.ndarray, "problems n horizon 2"]:
        """Trajectories from each problem's start to its goal, m; the j-th at the pace ``self.dt[j]``.

        Raises:
            WorkbenchError: the problems are not all in one maze.
        """
        maze = problems[0].maze
        if any(problem.maze is not maze for problem in problems):
            raise WorkbenchError("plans: got problems of several mazes; expected those of one: plan them one by one.")
        n = len(self.dt)
        noise = PerSample([torch.Generator().manual_seed(seed) for seed in seeds], each=n)
        ends = np.stack([np.stack([problem.start[:2], problem.goal]) for problem in problems])
        x = self.drawn(torch.as_tensor(ends).repeat_interleave(n, 0), self.dt.repeat(len(problems)), noise, maze)
        return self.prior.normalizer.unnormalize(x).reshape(len(problems), n, *x.shape[1:]).double().cpu().numpy()

    def drawn(
        self, ends: Float[Tensor, "n 2 2"], dt: Float[Tensor, " n"], noise: Noise, maze: Maze
    ) -> Float[Tensor, "n horizon 2"]:
        """Normalised trajectories between ends in m."""
        if self.config.particles:
            return self.weighted(ends, dt, noise, maze)
        *_, last = self.states(ends, dt, noise, maze)
        return last.x

    def weighted(
        self, ends: Float[Tensor, "n 2 2"], dt: Float[Tensor, " n"], noise: Noise, maze: Maze
    ) -> Float[Tensor, "n horizon 2"]:
        """`drawn` by weighted particles; those of one problem and duration are a group."""
        expert, z = self.product(ends, dt, maze), self._noised(noise, len(ends))
        # a copy goes on at its own pace
        groups = len(ends) * len(self.config.durations) // len(self.dt)
        times = torch.cat([self.table.times, self.table.times.new_zeros(1)])
        found = sample_particles(
            expert, times, start(expert, z, float(times[0])), noise, groups=groups, corrector=self._corrector
        )
        return found.resampled(noise)

    def states(
        self, ends: Float[Tensor, "n 2 2"], dt: Float[Tensor, " n"], noise: Noise, maze: Maze
    ) -> Iterator[State]:
        """The sampler's state after every step; see `drawn`."""
        expert, z = self.product(ends, dt, maze), self._noised(noise, len(ends))
        x = start(expert, z, float(self.table.times[0].max()))
        return sample.trajectory(expert, self.table, x, noise=noise, corrector=self._corrector)

    def product(self, ends: Float[Tensor, "n 2 2"], dt: Float[Tensor, " n"], maze: Maze) -> Product:
        """What trajectories between ends in m are drawn from."""
        config = self.config
        priors: dict[str, Prior] = {"prior": self.prior}
        if self.windows:
            # segments are told their pace here, and of the ends: only those of the whole are clean
            names = [f"prior {k}" for k in range(config.segments)]
            segments: dict[str, Prior] = dict(zip(names, self.segments, strict=True))
            priors = {"prior": stitched(segments, self.windows, names, dt=dt)}
        return composed(
            priors,
            [Walls(maze, config.margin + maze.world.radius)] if config.walls > 0.0 else [],
            [config.walls] if config.walls > 0.0 else [],
            _clamped(ends, self.horizon),
            config.space,  # type: ignore[arg-type]
            config.through,  # type: ignore[arg-type]
            dt=None if self.windows else dt,
        )

    def _noised(self, noise: Noise, n: int) -> Float[Tensor, "n horizon 2"]:
        like = self.prior.normalizer.low
        return noise.normal((n, self.horizon, 2), like.dtype, like.device)

    @property
    def _corrector(self) -> Ula | None:
        return Ula(self.config.langevin, LANGEVIN) if self.config.langevin else None

    def selected(self, problem: Problem, candidates: Float[np.ndarray, "n horizon 2"]) -> Plan:
        """The plan that is carried out."""
        plans = [Plan(xy, float(dt)) for xy, dt in zip(candidates, self.dt, strict=True)]
        return refined(problem, plans[self.best(problem, plans)], self.config.refine)

    def best(self, problem: Problem, plans: Sequence[Plan]) -> int:
        """Which one is selected; where none fits, the one that comes nearest to it."""
        if self.config.select == "first":
            return 0
        if self.config.select == "critic":
            return self._likeliest(plans)
        room = np.array([plan.clearance(problem.maze) for plan in plans])
        lengths = np.array([plan.length for plan in plans])
        if self.config.select == "quickest":
            # no way is as long as 1 km
            lengths = lengths / 1000.0 + np.array([plan.dt for plan in plans])
        fits: Bool[np.ndarray, " n"] = room >= min(problem.maze.world.radius, room.max())
        return int(np.where(fits, lengths, np.inf).argmin())

    @torch.no_grad()
    def _likeliest(self, plans: Sequence[Plan]) -> int:
        critic = self.prior.critic
        if critic is None:
            raise WorkbenchError(
                "planner.select: got critic, and a prior without one; expected first, shortest or quickest: choose "
                "one, or train with critic=true."
            )
        like = self.prior.normalizer.low
        xy = torch.as_tensor(np.stack([plan.xy for plan in plans])).to(like)
        dt = torch.tensor([plan.dt for plan in plans]).to(like)
        return int(critic(xy, dt).min(-1).values.argmax())


def _clamped(ends: Float[Tensor, "n 2 2"], horizon: int) -> tuple[Bool[Tensor, "n h 2"], Float[Tensor, "n h 2"]]:
    """Which entries of trajectories are known, and their values."""
    mask = torch.zeros(len(ends), horizon, 2, dtype=torch.bool, device=ends.device)
    values = ends.new_zeros(mask.shape)
    for place, end in ((0, 0), (-1, 1)):
        mask[:, place], values[:, place] = True, ends[:, end]
    return mask, values
