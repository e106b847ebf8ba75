"""A diffusion whose estimate is exact: images of independent Gaussian pixels."""

from __future__ import annotations

import torch

from images.systems import Parts
from images.systems.diffusion import Diffusion

MEAN, STD = -0.2, 0.2


class Noise(torch.nn.Module):
    """``E[eps | x_t] = sigma (x_t - alpha m) / (alpha^2 s^2 + sigma^2)``."""

    def __init__(self, schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x, t, cond=None):
        alpha, sigma = (f(t.double())[:, None, None, None].float() for f in (self.schedule.alpha, self.schedule.sigma))
        return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def gaussian(schedule, size: int = 4, clip: float | None = 1.0) -> Diffusion:
    """The system of that estimate."""
    parts = Parts((1, size, size), 0, lambda **_: Noise(schedule), schedule, "eps", clip)
    return Diffusion(parts, conditional=False)
