"""Training losses: how far a prediction is from its target, weighted by noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.predict import Prediction, mixture
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule, Times

Weighting = Callable[[Prediction, Schedule, Times], Times]
"""``weight(prediction, schedule, t)`` multiplies the squared error of the *prediction*, float64."""


class Draws:
    """The random numbers of one training step, the same however many processes share it.

    Every process draws for the whole batch and keeps its own rows ``[rank::world]``, so that two processes
    with half the batch each see exactly the numbers that one process with all of it sees.

    Args:
        generator: seeded by the training loop from (seed, step).
        rank, world: this process and how many there are.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, world: int = 1) -> None:
        self.generator, self.rank, self.world = generator, rank, world

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal, local shape, batch axis first."""
        return self._mine(torch.randn, shape, dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform in [0, 1), local shape, batch axis first."""
        return self._mine(torch.rand, shape, dtype)

    def _mine(self, draw: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        whole = (shape[0] * self.world, *shape[1:])
        return draw(whole, generator=self.generator, dtype=dtype, device=self.generator.device)[self.rank :: self.world]


def simple(prediction: Prediction, schedule: Schedule, t: Times) -> Times:
    """Weight 1 on the prediction. Source: Ho et al. 2020, eq. 14 (arXiv 2006.11239)."""
    return torch.ones_like(t)


def min_snr(prediction: Prediction, schedule: Schedule, t: Times, gamma: float = 5.0) -> Times:
    """``min(SNR, gamma)`` on the error of x0, rewritten for the prediction at hand.

    The error of x0 is ``|sigma / (alpha k_eps - sigma k_x0)|`` times that of the prediction.

    Source: Hang et al. 2023, eq. 8 (arXiv 2303.09556).
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    k_x0, k_eps = mixture(prediction, schedule, t)
    return ((alpha / sigma) ** 2).clamp(max=gamma) * (sigma / (alpha * k_eps - sigma * k_x0)) ** 2


def uniform_times(
    draws: Draws, batch: int, t_min: float = 0.0, t_max: float = 1.0, n_train: int | None = None
) -> Float64[Tensor, " batch"]:
    """Training times: uniform in [t_min, t_max], or on the ``n_train`` steps of a discrete-time model."""
    u = draws.uniform((batch,))
    if n_train is None:
        return t_min + (t_max - t_min) * u
    return ((u * n_train).floor() + 1.0) / n_train


def denoising_loss(
    denoiser: NetworkDenoiser,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    times: Callable[[Draws, int], Float64[Tensor, " batch"]] = uniform_times,
    weighting: Weighting = simple,
) -> Float[Tensor, " batch"]:
    """``weight(t) |prediction(x_t, t) - target|^2``, averaged over all axes but the batch.

    Args:
        denoiser: network, prediction and schedule.
        x0: clean data, normalised.
        cond: passed to the network.
        draws: random numbers of this step.
        times: how training times are drawn.
        weighting: weight of the squared error of the prediction.

    Returns:
        (batch,) one loss per sample.
    """
    t = times(draws, x0.shape[0])
    noise = draws.normal(x0.shape, x0.dtype)
    x_t = Gaussian(denoiser.schedule).corrupt(x0, t, noise)
    error = (denoiser(x_t, t, cond) - denoiser.target(x0, noise, t)) ** 2
    weight = weighting(denoiser.prediction, denoiser.schedule, t).to(error.dtype)
    return error.flatten(1).mean(1) * weight
