"""The Gaussian process: ``x_t = alpha_t x0 + sigma_t eps``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core.predict import align
from diffusion_core.schedule import Schedule, Times


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noising of a real-valued field under a schedule.

    Source: Kingma et al. 2021, section 3 and appendix A (arXiv 2107.00630).
    """

    schedule: Schedule

    def corrupt(self, x0: Tensor, t: Times, noise: Tensor) -> Tensor:
        """``x_t = alpha_t x0 + sigma_t noise``.

        Args:
            x0: (*t, ...) clean data.
            t: float64 times; their shape is the leading axes of ``x0``.
            noise: standard normal, shape of ``x0``.
        """
        return align(self.schedule.alpha(t), x0) * x0 + align(self.schedule.sigma(t), x0) * noise

    def prior(self, noise: Tensor, t: float = 1.0) -> Tensor:
        """Standard normal ``noise`` scaled to the width of ``x_t`` where no data is left: ``sigma_t noise``."""
        return float(self.schedule.sigma(torch.tensor(t, dtype=torch.float64))) * noise

    def posterior(self, t: Times, s: Times) -> tuple[Times, Times, Times]:
        """``q(x_s | x_t, x0) = N(a x_t + b x0, std^2)`` for ``s < t``; returns ``(a, b, std)``.

        With ``alpha_ts = alpha_t / alpha_s`` and ``var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2``::

            a = alpha_ts sigma_s^2 / sigma_t^2,  b = alpha_s var_ts / sigma_t^2,  std = sigma_s sqrt(var_ts) / sigma_t

        Source: Ho et al. 2020, eq. 7 (arXiv 2006.11239), in the form of Kingma et al. 2021, eq. 27.
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
