"""The torus: coordinates modulo a period, such as fractional coordinates of a crystal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import align
from diffusion_core.process import Process, Source, mean_by_shares
from diffusion_core.process import wrapped_normal as wrapped
from diffusion_core.process.gaussian import weighted_sum
from diffusion_core.schedule import Schedule, Times

ScoreScale = Literal["sigma", "norm"]
"""What a network predicts of a score: ``sigma score``, or ``score / sqrt(E |score|^2)``."""

FLAT_ENOUGH = 1e-2
"""Total variation between x_t and the uniform distribution up to which sampling may start from the latter."""


@dataclass(frozen=True)
class Torus(Process):
    """Noise that is wrapped: ``x_t = x0 + sigma_t z`` modulo ``period``. Its estimate is the score at ``x_t``.

    Args:
        schedule: one whose alpha is 1 (variance exploding): to shrink a coordinate means nothing on a circle.
        period: circumference of every axis, in units of the data; samples lie in [0, period).

    Raises:
        WorkbenchError: the schedule's alpha is not 1, or the period not positive.

    Source: Jiao et al. 2023 (arXiv 2309.04475); De Bortoli et al. 2022 (arXiv 2202.02763). There the
    wrapped normal's score is a truncated sum of images; here it is exact at every sigma.
    """

    schedule: Schedule
    period: float = 1.0

    def __post_init__(self) -> None:
        refuse_shrinking(self.schedule, "torus")
        if not 0.0 < self.period < math.inf:
            raise WorkbenchError(f"torus: got period={self.period}; expected a number > 0.")

    def noise(self, x0: Tensor, source: Source) -> Tensor:
        return source.normal(x0.shape, x0.dtype)

    def corrupt(self, x0: Tensor, t: Times, noise: Tensor) -> Tensor:
        """``x_t = wrap(x0 + sigma_t noise)``.

        Args:
            x0: (*t, ...) clean data, any representative.
            t: float64 times; their shape is the leading axes of ``x0``.
            noise: standard normal, shape of ``x0``.
        """
        return wrapped.wrap(x0 + align(self.schedule.sigma(t), x0) * noise, self.period)

    def prior(self, noise: Tensor, t: float = 1.0, exponent: float = 1.0) -> Tensor:
        """Uniform on the torus, ``period * Phi(noise)``; any power of it is uniform, too.

        Raises:
            WorkbenchError: at ``t`` the data has not been forgotten (see `prior_error`).
        """
        refuse_early_start(self.prior_error(t), t, self.schedule, "0.42 periods")
        return wrapped.wrap(self.period * torch.special.ndtr(noise), self.period)

    def prior_error(self, t: float) -> float:
        """The total variation between one coordinate of ``x_t`` given ``x0`` and the uniform distribution.

        That of a state is at most the sum over its coordinates.

        ``(2 / pi) exp(-2 pi^2 sigma_t^2 / period^2)``, the first term of its Fourier series.
        """
        sigma = float(self.schedule.sigma(torch.tensor(t, dtype=torch.float64)))
        return 2.0 / math.pi * math.exp(-2.0 * (math.pi * sigma / self.period) ** 2)

    def score(self, x0: Tensor, x_t: Tensor, t: Times) -> Tensor:
        """``grad log q(x_t | x0)``; arguments as `corrupt`."""
        return wrapped.score(x_t - x0, align(self.schedule.sigma(t), x_t), self.period)

    def target(self, x0: Tensor, x_t: Tensor, t: Times, scale: ScoreScale = "norm") -> Tensor:
        """What a network with output of this ``scale`` should return: `score` divided by `output_scale`."""
        sigma = align(self.schedule.sigma(t), x_t)
        if scale == "norm":
            return wrapped.normalised_score(x_t - x0, sigma, self.period)
        return sigma * wrapped.score(x_t - x0, sigma, self.period)

    def output_scale(self, t: Times, scale: ScoreScale = "norm") -> Times:
        """``c(t)`` with ``score = c(t) output``: ``sqrt(score_norm)`` or ``1 / sigma``, float64."""
        sigma = self.schedule.sigma(t)
        return wrapped.score_norm(sigma, self.period).sqrt() if scale == "norm" else 1.0 / sigma

    def combine(self, weights: Tensor, times: Times) -> Callable[[Tensor, Sequence[Tensor], int], Tensor]:
        """``score = sum_k w_k score_k``."""
        return weighted_sum(torch.zeros_like(times), weights)

    def mix(self, times: Times) -> Callable[[Tensor, Sequence[Tensor], Tensor, int], Tensor]:
        return mean_by_shares

    def clean(self, times: Times) -> Callable[[Tensor, Tensor, int], Tensor]:
        """``wrap(x_t + sigma^2 score)``: Tweedie's formula, a mean over the images of x0 nearest to ``x_t``."""
        variance = self.schedule.sigma(times) ** 2
        return lambda x, score, i: wrapped.wrap(x + align(variance[i], x) * score, self.period)

    def tilt(self, times: Times, of: Literal["x_t", "x0_hat"]) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """``score + J gradient``.

        ``J = 1`` for a gradient in x_t. For one in x0_hat, data that is spread over the whole circle, of variance
        ``v = period^2 / 12``, stands in: ``J = v / (v + sigma^2)``, as `Gaussian.tilt` does with unit data.
        """
        add = tilted(self.schedule.sigma(times), of, self.period**2 / 12.0)
        return lambda x, score, gradient, i: add(score, gradient, i)

    def pin(self, times: Times) -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
        """Where the data is known, the score is that of ``q(x_t | values)``."""
        sigma = self.schedule.sigma(times)

        def pinned(x: Tensor, score: Tensor, mask: Tensor, values: Tensor, i: int) -> Tensor:
            return torch.where(mask, wrapped.score(x - values, align(sigma[i], x), self.period), score)

        return pinned


def tilted(sigma: Times, of: Literal["x_t", "x0_hat"], variance: float) -> Callable[[Tensor, Tensor, int], Tensor]:
    """``score + J gradient`` with ``J = variance / (variance + sigma^2)``, or 1 for a gradient in x_t."""
    factors = torch.ones_like(sigma) if of == "x_t" else variance / (variance + sigma**2)
    return lambda score, gradient, i: score + align(factors[i], score) * gradient


def refuse_shrinking(schedule: Schedule, where: str) -> None:
    """Refuse a schedule whose alpha is not 1.

    Raises:
        WorkbenchError: alpha differs from 1 somewhere.
    """
    alpha = schedule.alpha(torch.linspace(0.0, 1.0, 5, dtype=torch.float64))
    if not bool((alpha == 1.0).all()):
        raise WorkbenchError(
            f"{where}: got the schedule {schedule}, whose alpha is {float(alpha[2]):.4g} at t=0.5; expected alpha = 1 "
            "everywhere, such as VarianceExploding."
        )


def refuse_early_start(error: float, t: float, schedule: Schedule, enough: str) -> None:
    """Refuse to start from the uniform distribution where the data is not forgotten.

    Raises:
        WorkbenchError: ``error``, a total variation, is above `FLAT_ENOUGH`.
    """
    if error > FLAT_ENOUGH:
        sigma = float(schedule.sigma(torch.tensor(t, dtype=torch.float64)))
        raise WorkbenchError(
            f"prior: got sigma={sigma:.4g} at t={t:.4g}, where x_t is {error:.2g} in total variation from uniform; "
            f"expected at most {FLAT_ENOUGH:g}: raise the schedule's largest sigma to {enough} or more."
        )
