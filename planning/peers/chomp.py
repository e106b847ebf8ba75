"""CHOMP: a trajectory bent by smoothness and obstacles alone; the product of experts without its prior.

    U(xi) = eta/2 |A^(1/2) xi|^2 (n + 1) + sum_i c(d(xi_i)) |xi_i+1 - xi_i-1| / 2,      xi <- xi - step A^-1 grad U
    c(d) = eps/2 - d  if d < 0;   (d - eps)^2 / (2 eps)  if d <= eps;   else 0

with A the inner nodes' second differences and d the clearance beyond the ball's radius. Here the gradient of the sum is
that of the sum itself (by differentiation), where the paper projects that of an integral.

Source: Ratliff et al. 2009, "CHOMP" (doi 10.1109/ROBOT.2009.5152817), the cost and the covariant step; starts drawn
from the smoothness alone as in Kalakrishnan et al. 2011, "STOMP" (doi 10.1109/ICRA.2011.5980280).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.errors import WorkbenchError, require_at_least
from envs.maze2d import RADIUS
from planning.ball import Limits
from planning.energies.solid import clearance
from planning.plan import Plan, Problem
from planning.timing import timed
from planning.ways import MARGIN, Room, no_way, rounded


@dataclass(frozen=True)
class Chomp:
    """Descends from the straight line and from random curves; takes the shortest that fits. Knows the map and the
    ball's limits; needs no data, and has no idea of where ways lead.

    Args:
        starts: curves; the first is the straight line.
        noise: standard deviation of the others in their middle, m.
        nodes: of each.
        steps: of descent.
        rate: of a step: the share of a smoothness step.
        smooth: eta, weight of smoothness.
        room: eps plus the ball's radius: clearance from which on nothing is paid, m.
        limits: of the plan.

    Raises:
        WorkbenchError: a number is out of range.
    """

    starts: int = 32
    noise: float = 1.5
    nodes: int = 64
    steps: int = 300
    rate: float = 0.2
    smooth: float = 0.05
    room: float = 0.35
    limits: Limits = Limits()  # noqa: RUF009

    def __post_init__(self) -> None:
        require_at_least(1, {"starts": self.starts, "steps": self.steps})
        require_at_least(4, {"nodes": self.nodes})
        if not (min(self.rate, self.smooth, self.noise) >= 0.0 and self.room > RADIUS):
            raise WorkbenchError(
                f"chomp: got {self}; expected rate, smooth and noise of at least 0, and room > {RADIUS} m: correct it."
            )

    def __call__(self, problem: Problem, seed: int) -> Plan:
        """The plan.

        Raises:
            WorkbenchError: the ball fits along none of the curves.
        """
        room = Room.of(problem, RADIUS + MARGIN / 2)
        curves = [xy for xy in self.descended(problem, seed).numpy() if room.along(xy)]
        if not curves:
            raise no_way(problem, f"CHOMP, {self.starts} starts of {self.steps} steps")
        shortest = min(curves, key=lambda xy: float(np.linalg.norm(np.diff(xy, axis=0), axis=1).sum()))
        return timed(rounded(room, shortest), problem.start[2:], self.limits)

    @torch.no_grad()
    def descended(self, problem: Problem, seed: int) -> Float[Tensor, "starts nodes 2"]:
        """The curves after the descent, whether they fit or not."""
        n = self.nodes - 2
        ends = torch.as_tensor(np.stack([problem.start[:2], problem.goal]))
        share = torch.linspace(0.0, 1.0, self.nodes, dtype=torch.float64)[:, None]
        line = ends[0] + share * (ends[1] - ends[0])
        a = 2.0 * torch.eye(n, dtype=torch.float64)
        beside = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
        a -= beside + beside.T
        inverse = torch.linalg.inv(a)
        z = torch.randn(self.starts, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        # the middle of a bridge with this covariance has the variance (n + 1) / 4
        noise = torch.linalg.cholesky(inverse) @ z * (self.noise * (4.0 / (n + 1)) ** 0.5)
        noise[0] = 0.0
        x = line[1:-1] + noise
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                full = torch.cat([line[:1].expand(len(x), 1, 2), leaf, line[-1:].expand(len(x), 1, 2)], 1)
                (pull,) = torch.autograd.grad(self.cost(problem, full).sum(), leaf)
            x = x - self.rate * (self.smooth * (x - line[1:-1]) + inverse @ pull / (n + 1))
        return torch.cat([line[:1].expand(len(x), 1, 2), x, line[-1:].expand(len(x), 1, 2)], 1)

    def cost(self, problem: Problem, xy: Float[Tensor, "batch nodes 2"]) -> Float[Tensor, " batch"]:
        """What coming near costs, m^2."""
        eps = self.room - RADIUS
        d = clearance(problem.maze, xy[:, 1:-1]) - RADIUS
        c = torch.where(d < 0.0, eps / 2 - d, (d.clamp(max=eps) - eps) ** 2 / (2 * eps))
        return (c * torch.linalg.vector_norm(xy[:, 2:] - xy[:, :-2], dim=-1) / 2).sum(1)
