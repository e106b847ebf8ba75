"""Long plans by a search over samples of a prior of short ones, without a map.

    grow:     from the places that are reached soonest, of those not grown from yet, draw trajectories
    keep:     of each as much as the critic of strides believes; its places are reached, if nothing near them was
    connect:  from places near the goal draw trajectories to it; one that the critic believes all along ends the search

Data of short trips shows what is next to what. Segments that are stitched (`planning.stitch`) must agree on one way at
once, which the more of them the less they do; a search asks only for the next piece, and remembers what did not go on.

Source: search with a diffusion model's samples as moves: Yoon et al. 2025, "Monte Carlo tree diffusion" (arXiv
2502.07202), whose tree is of denoising steps; this one is a tree of places, in the order of arrival (Dijkstra 1959).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core import sample
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.experts import start
from diffusion_core.noise import Shared
from diffusion_core.solvers import Table
from envs.maze2d import BALL, World
from planning.compose import composed
from planning.plan import Plan, Problem
from planning.prior import TrajectoryPrior

TOGETHER = 16
"""Places that are grown from in one call of the network."""
EACH = 8
"""Trajectories drawn from each."""
LEAST = -3.0
"""Log ratio, nats, the mean of `RUN` strides, below which these are not believed; see `planning.critic`."""
RUN = 3
"""Strides: a wall is wider than one, and one alone may well be odd."""
NEAR = 0.25
"""Side of the squares of which one place is enough, in sides of a cell."""


@dataclass(frozen=True, eq=False)
class Reached:
    """A place of the tree.

    Args:
        xy: m.
        steps: nodes since the start.
        before: the place that it was grown from; None: it is the start.
        way: nodes from there to here, without the first, m.
    """

    xy: Float[np.ndarray, "2"]
    steps: int
    before: Reached | None
    way: Float[np.ndarray, "n 2"]

    def path(self) -> Float[np.ndarray, "n 2"]:
        """All nodes from the start to here."""
        parts, at = [], self
        while at.before is not None:
            parts.append(at.way)
            at = at.before
        return np.concatenate([at.xy[None], *parts[::-1]])


class TreePlanner:
    """Searches a way to the goal with samples of a prior.

    Args:
        prior: of short trajectories, with a critic.
        table: the sampler.
        duration: of a trajectory, steps of the environment.
        rounds: of growing, at most.
        world: that plans are carried out in.

    Raises:
        WorkbenchError: the prior has no critic.
    """

    def __init__(self, prior: TrajectoryPrior, table: Table, duration: int, rounds: int, world: World = BALL) -> None:
        require_at_least(1, {"planner.tree": rounds, "duration": duration})
        if prior.critic is None:
            raise WorkbenchError(
                "planner.tree: got a prior without a critic; expected one that says where one can go: train it with "
                "critic=true, or set tree=0."
            )
        self.prior, self.table, self.rounds, self.world = prior, table, rounds, world
        self.dt = world.dt * duration / (prior.horizon - 1)
        self.segments: list[Float[np.ndarray, "n 2"]] = []

    def __call__(self, problem: Problem, seed: int) -> Plan:
        """A plan; where the search does not come to the goal, one to the place that it found nearest to it."""
        noise = Shared(torch.Generator().manual_seed(seed))
        goal, self.segments = problem.goal, []
        first = Reached(problem.start[:2], 0, None, np.zeros((0, 2)))
        order = count()
        queue = [(0, next(order), first)]
        taken = {self._square(first.xy)}
        kept = [first]
        for _ in range(self.rounds):
            # what is all grown from is grown from again: other samples may go on
            grown = [heapq.heappop(queue)[2] for _ in range(min(TOGETHER, len(queue)))] or kept[-TOGETHER:]
            if found := self._connected(grown, goal, noise):
                return Plan(found.path(), self.dt)
            xy, believed = self._drawn(grown, None, noise)
            for k, (way, n) in enumerate(zip(xy, believed, strict=True)):
                before = grown[k // EACH]
                self.segments.append(way[: n + 1])
                for i in range(1, n + 1):
                    square = self._square(way[i])
                    if square not in taken:
                        taken.add(square)
                        reached = Reached(way[i], before.steps + i, before, way[1 : i + 1])
                        heapq.heappush(queue, (reached.steps, next(order), reached))
                        kept.append(reached)
        nearest = min(kept, key=lambda one: float(np.linalg.norm(one.xy - goal)))
        return Plan(nearest.path(), self.dt)

    def _connected(self, grown: list[Reached], goal: Float[np.ndarray, "2"], noise: Shared) -> Reached | None:
        """The goal, if a trajectory from some place to it is believed; of several the soonest."""
        # no more than a trajectory's way: what is farther cannot be reached by one
        far = self.world.speed * self.dt * (self.prior.horizon - 1)
        near = [one for one in grown if float(np.linalg.norm(one.xy - goal)) <= far]
        if not near:
            return None
        xy, believed = self._drawn(near, goal, noise)
        last = self.prior.horizon - 1
        found = []
        for k, (way, n) in enumerate(zip(xy, believed, strict=True)):
            # the end is known; one may come to it before, and stay
            arrived = int((np.linalg.norm(way - goal, axis=1) <= 0.5 * self.world.reach).argmax())
            if n == last:
                before = near[k // EACH]
                found.append(Reached(goal, before.steps + arrived, before, way[1:]))
        return min(found, key=lambda one: one.steps, default=None)

    @torch.no_grad()
    def _drawn(
        self, places: list[Reached], goal: Float[np.ndarray, "2"] | None, noise: Shared
    ) -> tuple[Float[np.ndarray, "n horizon 2"], list[int]]:
        """Trajectories from places, `EACH` of each, and how many strides of each are believed."""
        horizon, like = self.prior.horizon, self.prior.normalizer.low
        n = len(places) * EACH
        mask = torch.zeros(n, horizon, 2, dtype=torch.bool, device=like.device)
        values = torch.zeros(n, horizon, 2, dtype=like.dtype, device=like.device)
        mask[:, 0] = True
        values[:, 0] = torch.as_tensor(np.stack([one.xy for one in places])).to(like).repeat_interleave(EACH, 0)
        if goal is not None:
            mask[:, -1], values[:, -1] = True, torch.as_tensor(goal).to(like)
        dt = torch.full((n,), self.dt, dtype=like.dtype, device=like.device)
        expert = composed({"prior": self.prior}, known=(mask, values), dt=dt)
        z = noise.normal((n, horizon, 2), like.dtype, like.device)
        x = sample.sample(expert, self.table, start(expert, z, float(self.table.times[0])), noise=noise)
        xy = self.prior.normalizer.unnormalize(x)
        assert self.prior.critic is not None
        ratio: Tensor = self.prior.critic(xy, dt)
        runs = ratio.unfold(1, RUN, 1).mean(-1)
        # all strides of a run that is not believed are not
        good = torch.nn.functional.pad((runs >= LEAST).long().cumprod(1), (0, RUN - 1))
        whole = good[:, -RUN] == 1
        counts = torch.where(whole, torch.full_like(good[:, 0], horizon - 1), good.sum(1))
        return xy.double().cpu().numpy(), counts.tolist()

    def _square(self, xy: Float[np.ndarray, "2"]) -> tuple[int, int]:
        i, j = np.floor(xy / (NEAR * self.world.side)).astype(int)
        return int(i), int(j)
