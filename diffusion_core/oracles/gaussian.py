"""Gaussians and their mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule


def _scalars(schedule: Schedule, times: Tensor | float) -> tuple[Tensor, Tensor]:
    t = torch.as_tensor(times, dtype=torch.float64)
    return schedule.alpha(t), schedule.sigma(t)


@dataclass(frozen=True)
class GaussianData(Denoiser):
    """``x0 ~ N(mean, std^2)`` in each of d dimensions.

    ``x_t ~ N(alpha mean, alpha^2 std^2 + sigma^2)``; the posterior mean and the probability flow are linear.
    """

    schedule: Schedule
    mean: Float64[Tensor, " d"]
    std: Float64[Tensor, " d"]

    @property
    def process(self) -> Gaussian:  # type: ignore[override]
        return Gaussian(self.schedule)

    def bind(self, times: Float64[Tensor, " n"], cond: Any = None) -> Evaluate:
        alpha, sigma = _scalars(self.schedule, times)
        gain = alpha[:, None] * self.std**2 / (alpha[:, None] ** 2 * self.std**2 + sigma[:, None] ** 2)
        shift = alpha[:, None] * self.mean
        return lambda x, i: self.mean + gain[i] * (x - shift[i])

    def bind_log_density(
        self, times: Float64[Tensor, " n"], cond: Any = None
    ) -> Callable[[Float64[Tensor, "batch d"], int], Float64[Tensor, " batch"]]:
        """``log p_t(x)`` at the i-th of ``times``, in nats."""
        marginals = [self.marginal(t) for t in times.tolist()]
        return lambda x, i: torch.distributions.Normal(*marginals[i]).log_prob(x).sum(1)

    def marginal(self, t: float) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
        """Mean and standard deviation of ``x_t``."""
        alpha, sigma = _scalars(self.schedule, t)
        return alpha * self.mean, (alpha**2 * self.std**2 + sigma**2).sqrt()

    def flow(self, x: Float64[Tensor, "batch d"], t: float, s: float) -> Float64[Tensor, "batch d"]:
        """The probability-flow ODE's solution from time ``t`` to ``s``: quantiles stay quantiles."""
        (mean_t, std_t), (mean_s, std_s) = self.marginal(t), self.marginal(s)
        return mean_s + std_s * (x - mean_t) / std_t


@dataclass(frozen=True)
class GaussianMixture(Denoiser):
    """``x0 ~ sum_k weights_k N(means_k, stds_k^2 I)`` in d dimensions."""

    schedule: Schedule
    weights: Float64[Tensor, " k"]
    means: Float64[Tensor, "k d"]
    stds: Float64[Tensor, " k"]

    def __post_init__(self) -> None:
        total = float(self.weights.sum())
        if (self.weights <= 0).any() or abs(total - 1.0) > 1e-9:
            raise WorkbenchError(f"mixture: got weights {self.weights.tolist()}; expected positive ones that sum to 1.")

    @property
    def process(self) -> Gaussian:  # type: ignore[override]
        return Gaussian(self.schedule)

    def _component_log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = alpha**2 * self.stds**2 + sigma**2
        squared = ((x[:, None] - alpha * self.means) ** 2).sum(-1)
        d = self.means.shape[1]
        return self.weights.log() - 0.5 * (squared / variance + d * (2.0 * math.pi * variance).log())

    def bind(self, times: Float64[Tensor, " n"], cond: Any = None) -> Evaluate:
        alphas, sigmas = _scalars(self.schedule, times)

        def evaluate(x: Tensor, i: int) -> Tensor:
            alpha, sigma = alphas[i], sigmas[i]
            share = self._component_log_density(x, alpha, sigma).softmax(1)
            gain = alpha * self.stds**2 / (alpha**2 * self.stds**2 + sigma**2)
            posterior_mean = self.means + gain[:, None] * (x[:, None] - alpha * self.means)
            return (share[..., None] * posterior_mean).sum(1)

        return evaluate

    def bind_log_density(
        self, times: Float64[Tensor, " n"], cond: Any = None
    ) -> Callable[[Float64[Tensor, "batch d"], int], Float64[Tensor, " batch"]]:
        """``log p_t(x)`` at the i-th of ``times``, in nats."""
        alphas, sigmas = _scalars(self.schedule, times)
        return lambda x, i: self._component_log_density(x, alphas[i], sigmas[i]).logsumexp(1)

    def log_density(self, x: Float64[Tensor, "batch d"], t: float) -> Float64[Tensor, " batch"]:
        """``log p_t(x)`` in nats."""
        return self._component_log_density(x, *_scalars(self.schedule, t)).logsumexp(1)

    def score(self, x: Float64[Tensor, "batch d"], t: float) -> Float64[Tensor, "batch d"]:
        """``grad log p_t(x)``, by Tweedie's formula ``(alpha E[x0 | x] - x) / sigma^2``."""
        alpha, sigma = _scalars(self.schedule, t)
        x0_hat = self.bind(torch.tensor([t], dtype=torch.float64))(x, 0)
        return (alpha * x0_hat - x) / sigma**2

    def sample(self, n: int, generator: torch.Generator) -> Float64[Tensor, "n d"]:
        """``n`` draws of x0."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.stds[k, None] * noise

    def cdf(self, x: Float64[Tensor, " batch"], t: float) -> Float64[Tensor, " batch"]:
        """``P(x_t <= x)``; one-dimensional mixtures only."""
        if self.means.shape[1] != 1:
            raise WorkbenchError(f"mixture cdf: got {self.means.shape[1]} dimensions; expected 1.")
        alpha, sigma = _scalars(self.schedule, t)
        std = (alpha**2 * self.stds**2 + sigma**2).sqrt()
        return (self.weights * torch.special.ndtr((x[:, None] - alpha * self.means[:, 0]) / std)).sum(1)

    def flow(self, x: Float64[Tensor, "batch 1"], t: float, s: float) -> Float64[Tensor, "batch 1"]:
        """The probability-flow ODE's exact solution from ``t`` to ``s`` in one dimension.

        In one dimension the flow keeps the order of points, so it carries each quantile of ``p_t`` to the same
        quantile of ``p_s``; the latter is found by bisection to 1e-13 of its bracket.
        """
        level = self.cdf(x[:, 0], t)
        alpha, sigma = _scalars(self.schedule, s)
        reach = float((alpha * self.means.abs()).max() + 12.0 * (alpha**2 * self.stds**2 + sigma**2).sqrt().max())
        low, high = torch.full_like(level, -reach), torch.full_like(level, reach)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.cdf(middle, s) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (0.5 * (low + high))[:, None]
