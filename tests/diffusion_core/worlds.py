"""The schedules and closed-form data that the tests of the core share."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.schedule import (
    Cosine,
    GeometricVarianceExploding,
    Laplace,
    LearnedLogSnr,
    Linear,
    Range,
    RectifiedFlow,
    Schedule,
    Shifted,
    Sigmoid,
    SubVariancePreserving,
    VarianceExploding,
    ZeroTerminal,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    sigmoid_betas,
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


def bent() -> LearnedLogSnr:
    """A learned schedule whose parameters are not where they begin."""
    schedule, generator = LearnedLogSnr(6), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return schedule.requires_grad_(False)


EVERY_SCHEDULE: dict[str, Schedule] = {
    **SCHEDULES,
    "scaled_linear_betas": scaled_linear_betas(),
    "sigmoid_betas": sigmoid_betas(),
    "sigmoid": Sigmoid(),
    "steep_sigmoid": Sigmoid(0.0, 3.0, 0.3),
    "laplace": Laplace(),
    "wide_laplace": Laplace(0.7, 3.0),
    "sub_preserving": SubVariancePreserving(),
    "geometric": GeometricVarianceExploding(),
    "zero_terminal": ZeroTerminal(Linear()),
    "zero_terminal_betas": ZeroTerminal(scaled_linear_betas()),
    "shifted_linear": Shifted(Linear(), 4.0),
    "shifted_cosine": Shifted(Cosine(), 0.5),
    "shifted_flow": Shifted(RectifiedFlow(), 3.0),
    "shifted_exploding": Shifted(VarianceExploding(20.0), 2.0),
    "range": Range(Cosine(), 0.1, 0.9),
    "learned": bent(),
}
NOISY_AT_ZERO = {"geometric", "range", "learned"}


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
