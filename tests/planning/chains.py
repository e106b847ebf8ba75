"""Gaussian trajectories whose every posterior is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Chain(Denoiser):
    """``x0 ~ N(mean, covariance)`` over the nodes, the same covariance in x and in y, which are independent."""

    schedule: Schedule
    mean: Tensor
    """(horizon, 2)"""
    covariance: Tensor
    """(horizon, horizon)"""

    @property
    def process(self) -> Gaussian:  # type: ignore[override]
        return Gaussian(self.schedule)

    def bind(self, times: Tensor, cond: Any = None) -> Evaluate:
        alphas, sigmas = self.schedule.alpha(times), self.schedule.sigma(times)
        unit = torch.eye(len(self.covariance), dtype=torch.float64)
        gains = [
            a * self.covariance @ torch.linalg.inv(a**2 * self.covariance + s**2 * unit)
            for a, s in zip(alphas, sigmas, strict=True)
        ]
        return lambda x, i: self.mean + gains[i] @ (x - alphas[i] * self.mean)

    def part(self, first: int, stop: int) -> Chain:
        """The marginal of some nodes."""
        return Chain(self.schedule, self.mean[first:stop], self.covariance[first:stop, first:stop])

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, *self.mean.shape, generator=generator, dtype=torch.float64)
        return self.mean + torch.linalg.cholesky(self.covariance) @ z


def walk(schedule: Schedule, horizon: int, tie: float = 0.9) -> Chain:
    """A Markov chain: covariance ``tie^|i - j|`` between nodes i and j."""
    nodes = torch.arange(horizon, dtype=torch.float64)
    mean = torch.stack([torch.sin(nodes / 2.0), 0.1 * nodes], 1)
    return Chain(schedule, mean, tie ** (nodes[:, None] - nodes).abs())
