"""The loss of denoising: how far a prediction is from its target."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.draws import Draws
from diffusion_core.loss.weighting import Weighting, simple
from diffusion_core.predict import align
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.times import Importance, TrainingTimes, uniform_times


def denoising_loss(
    denoiser: NetworkDenoiser,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    times: TrainingTimes = uniform_times,
    weighting: Weighting = simple,
    known: Bool[Tensor, "batch ..."] | None = None,
) -> Float[Tensor, " batch"]:
    """``weight(t) |prediction(x_t, t) - target|^2``, averaged over all axes but the batch.

    Args:
        denoiser: network, prediction and schedule.
        x0: clean data, normalised.
        cond: passed to the network.
        draws: random numbers of this step.
        times: how training times are drawn; (batch, tokens) gives every token its own.
        weighting: weight of the squared error of the prediction.
        known: entries that the network is shown clean, of the shape of x0; they do not count in the average. For
            sampling with `Known(..., mode="clean")`.

    Returns:
        (batch,) one loss per sample.
    """
    t = times(draws, x0.shape[0])
    noise = draws.normal(x0.shape, x0.dtype)
    x_t = Gaussian(denoiser.schedule).corrupt(x0, t, noise)
    if known is not None:
        x_t = torch.where(known, x0, x_t)
    error = (denoiser(x_t, t, cond) - denoiser.target(x0, noise, t)) ** 2
    weight = weighting(denoiser.prediction, denoiser.schedule, t).to(error.dtype)
    if t.ndim > 1:
        error, weight = align(weight, error) * error, weight.new_ones(len(error))
    if known is None:
        return error.flatten(1).mean(1) * weight
    counted = (~known).to(error.dtype).flatten(1)
    return (error.flatten(1) * counted).sum(1) / counted.sum(1).clamp_min(1.0) * weight


def importance_loss(
    denoiser: NetworkDenoiser,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    importance: Importance,
    weighting: Weighting = simple,
) -> Float[Tensor, " batch"]:
    """`denoising_loss` at times that are drawn by how large the loss has been, weighted so that its mean stays.

    Args:
        denoiser, x0, cond, draws, weighting: see `denoising_loss`.
        importance: draws the times, and is told the losses; keep it in the model, so that a checkpoint has it.

    Returns:
        (batch,) one loss per sample.

    Source: Nichol & Dhariwal 2021, section 3.3 (arXiv 2102.09672).
    """
    t, weight = importance(draws, x0.shape[0])
    loss = denoising_loss(denoiser, x0, cond, draws, lambda draws, batch: t, weighting)
    importance.record(t, loss.detach())
    return loss * weight.to(loss.dtype)
