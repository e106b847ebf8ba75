"""The schedules and closed-form data that the tests of the core share."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.schedule import (
    Cosine,
    Linear,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    cosine_betas,
    linear_betas,
)

SMOOTH: dict[str, Schedule] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "exploding": VarianceExploding(20.0),
}
SCHEDULES: dict[str, Schedule] = {
    **SMOOTH,
    "cosine_without_offset": Cosine(0.0),
    "linear_betas": linear_betas(),
    "cosine_betas": cosine_betas(),
}


def vector(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def mixture(schedule: Schedule) -> GaussianMixture:
    """Three unequal modes on a line: a score that is far from linear."""
    return GaussianMixture(schedule, vector(0.3, 0.5, 0.2), vector(-1.5, 0.2, 1.6)[:, None], vector(0.3, 0.5, 0.25))


def plane_mixture(schedule: Schedule) -> GaussianMixture:
    """Two modes in the plane."""
    means = torch.tensor([[1.0, -0.5], [-1.0, 0.8]], dtype=torch.float64)
    return GaussianMixture(schedule, vector(0.4, 0.6), means, vector(0.4, 0.7))


def gaussian(schedule: Schedule) -> GaussianData:
    """Two independent features of different mean and width."""
    return GaussianData(schedule, vector(0.7, -1.2), vector(0.4, 1.5))
