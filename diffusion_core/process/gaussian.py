"""The Gaussian process: ``x_t = alpha_t x0 + sigma_t eps``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import align, factor
from diffusion_core.process import Process, Source, mean_by_shares
from diffusion_core.schedule import Schedule, Times


@dataclass(frozen=True)
class Gaussian(Process):
    """Gaussian noising of a real-valued field under a schedule. Its estimate is ``x0_hat = E[x0 | x_t]``.

    Source: Kingma et al. 2021, section 3 and appendix A (arXiv 2107.00630).
    """

    schedule: Schedule

    def noise(self, x0: Tensor, source: Source) -> Tensor:
        return source.normal(x0.shape, x0.dtype)

    def corrupt(self, x0: Tensor, t: Times, noise: Tensor) -> Tensor:
        """``x_t = alpha_t x0 + sigma_t noise``.

        Args:
            x0: (*t, ...) clean data.
            t: float64 times; their shape is the leading axes of ``x0``.
            noise: standard normal, shape of ``x0``.
        """
        return align(self.schedule.alpha(t), x0) * x0 + align(self.schedule.sigma(t), x0) * noise

    def prior(self, noise: Tensor, t: float = 1.0, exponent: float = 1.0) -> Tensor:
        """``sigma_t noise / sqrt(exponent)``: as wide as ``x_t`` where no data is left, to the given power."""
        sigma = float(self.schedule.sigma(torch.tensor(t, dtype=torch.float64)))
        return sigma / math.sqrt(exponent) * noise

    def combine(self, weights: Tensor, times: Times) -> Callable[[Tensor, Sequence[Tensor], int], Tensor]:
        """``x0_hat = sum_k w_k x0_hat_k + (1 - sum_k w_k) x_t / alpha_t``.

        That is the sum of scores, ``s = sum_k w_k s_k`` with ``s_k = (alpha x0_hat_k - x) / sigma^2``, solved for
        x0_hat. Summing the estimates alone would be right only for weights that sum to 1.

        Raises:
            WorkbenchError: at a time without signal and weights that do not sum to 1: there the score of a
                product has no clean sample that belongs to it.
        """
        rest = 1.0 - weights.sum(1)
        rest = torch.where(rest.abs() < 1e-12, 0.0, rest)
        alpha = self.schedule.alpha(times)
        if bool(((rest != 0.0) & (alpha <= 0.0)).any()):
            raise WorkbenchError(
                f"product of experts: at t={float(times[(rest != 0.0) & (alpha <= 0.0)][0]):.6g} the schedule "
                f"{self.schedule} leaves no signal and the exponents sum to {float(weights.sum(1).max()):.4g}; "
                "expected a grid that starts a little below (for example 0.99), or exponents that sum to 1 (guidance)."
            )
        of_x = torch.where(rest == 0.0, 0.0, rest / alpha)
        return weighted_sum(of_x, weights)

    def mix(self, times: Times) -> Callable[[Tensor, Sequence[Tensor], Tensor, int], Tensor]:
        return mean_by_shares

    def clean(self, times: Times) -> Callable[[Tensor, Tensor, int], Tensor]:
        return lambda x, x0_hat, i: x0_hat

    def tilt(self, times: Times, of: Literal["x_t", "x0_hat"]) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """``x0_hat + (sigma^2 / alpha) J gradient``: the score is increased by ``J gradient``.

        ``J = 1`` for a gradient in x_t. For one in x0_hat it is ``d x0_hat / d x_t``, of which unit Gaussian data has
        ``alpha / (alpha^2 + sigma^2)``: that stands in for it, as in Song et al. 2023, "Pseudoinverse-guided
        diffusion models", section 3.

        Raises:
            WorkbenchError: at a time without signal, for a gradient in x_t.
        """
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        if of == "x0_hat":
            factors = sigma**2 / (alpha**2 + sigma**2)
        elif bool((alpha > 0.0).all()):
            factors = sigma**2 / alpha
        else:
            raise WorkbenchError(
                f"energy: at t={float(times[alpha <= 0.0][0]):.6g} the schedule {self.schedule} leaves no signal, and "
                "a gradient in x_t says nothing about the data; expected a grid that starts a little below."
            )
        return lambda x, x0_hat, gradient, i: x0_hat + factor(factors[i], x0_hat) * gradient

    def pin(self, times: Times) -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
        return lambda x, x0_hat, mask, values, i: torch.where(mask, values, x0_hat)

    def posterior(self, t: Times, s: Times) -> tuple[Times, Times, Times]:
        """``q(x_s | x_t, x0) = N(a x_t + b x0, std^2)`` for ``s < t``; returns ``(a, b, std)``.

        With ``alpha_ts = alpha_t / alpha_s`` and ``var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2``::

            a = alpha_ts sigma_s^2 / sigma_t^2,  b = alpha_s var_ts / sigma_t^2,  std = sigma_s sqrt(var_ts) / sigma_t

        Source: Ho et al. 2020, eq. 7 (arXiv 2006.11239), for any schedule as in Kingma et al. 2021, appendix A.
        """
        alpha_s, sigma_s, sigma_t = self.schedule.alpha(s), self.schedule.sigma(s), self.schedule.sigma(t)
        alpha_ts, variance_ts = self.forward(t, s)
        a = alpha_ts * (sigma_s / sigma_t) ** 2
        b = alpha_s * variance_ts / sigma_t**2
        return a, b, sigma_s / sigma_t * variance_ts.sqrt()

    def forward(self, t: Times, s: Times) -> tuple[Times, Times]:
        """``q(x_t | x_s) = N(alpha_ts x_s, var_ts)`` for ``s < t``; returns ``(alpha_ts, var_ts)``."""
        alpha_ts = self.schedule.alpha(t) / self.schedule.alpha(s)
        variance_ts = self.schedule.sigma(t) ** 2 - (alpha_ts * self.schedule.sigma(s)) ** 2
        return alpha_ts, variance_ts.clamp(min=0.0)


def weighted_sum(
    of_x: Float64[Tensor, "n *extra"], weights: Float64[Tensor, "n k *extra"]
) -> Callable[[Tensor, Sequence[Tensor], int], Tensor]:
    """``combined(x, estimates, i) = of_x_i x + sum_k w_ik estimate_k``, without the terms whose factor is 0."""
    if weights.ndim == 2:
        rows, x_row = weights.tolist(), of_x.tolist()

        def combined(x: Tensor, estimates: Sequence[Tensor], i: int) -> Tensor:
            (w, first), *others = [(w, e) for w, e in zip(rows[i], estimates, strict=True) if w != 0.0]
            total = first if w == 1.0 and not others and x_row[i] == 0.0 else first * w
            for w, estimate in others:
                total.add_(estimate, alpha=w)
            return total if x_row[i] == 0.0 else total.add_(x, alpha=x_row[i])

        return combined

    def columns(x: Tensor, estimates: Sequence[Tensor], i: int) -> Tensor:
        total = align(of_x[i], x) * x
        for k, estimate in enumerate(estimates):
            total = total + align(weights[i, k], x) * estimate
        return total

    return columns
