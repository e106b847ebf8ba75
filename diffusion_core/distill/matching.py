"""Distribution matching distillation: a generator whose noised samples have the scores of the noised data.

The gradient of ``KL(fake_t || real_t)`` with respect to a sample is ``alpha_t (s_fake - s_real)``: `score.vsd`, with a
denoiser ``fake`` that is trained on the generator's samples along the way (`fake_loss`, five steps for each of the
generator's in DMD2). What this module adds is the weight of the papers, the second network's loss, and the samples
on which a generator of several steps is trained. DMD2's third part, a discriminator on noised samples, is
``adversarial`` with ``Duel(real_t, fake_t, ...)``.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.distill import estimate, process_of
from diffusion_core.distill.score import MIDDLE, TrainingTimes, Weighting, vsd
from diffusion_core.loss import Draws, denoising_loss, simple, uniform_times
from diffusion_core.loss import Weighting as PredictionWeighting
from diffusion_core.schedule import Schedule, Times


def alike(schedule: Schedule, t: Times, x: Tensor, x0_hat: Tensor) -> Tensor:
    """``alpha_t / mean |x - x0_hat|``: makes the directions of all noise levels about equally long.

    It is the paper's ``w_t = sigma_t^2 / (alpha_t mean |x - x0_hat|)`` for its ``w_t alpha_t (s_fake - s_real)``: a
    difference of scores is ``alpha_t / sigma_t^2`` times that of the estimates of x0.

    Source: Yin et al. 2024, section 3.2 (arXiv 2311.18828).
    """
    return schedule.alpha(t).to(x) / (x - x0_hat).abs().flatten(1).mean(1)


def matching_loss(
    x: Float[Tensor, "batch ..."],
    cond: Any,
    real: Denoiser,
    fake: Denoiser,
    draws: Draws,
    times: TrainingTimes = MIDDLE,
    weighting: Weighting = alike,
) -> Float[Tensor, " batch"]:
    """The generator's loss: `score.vsd` under the papers' weight.

    Args:
        x: the generator's samples, with a gradient.
        cond: passed to both denoisers.
        real: of the data; may be guided.
        fake: of the generator's samples, trained by `fake_loss`.
        draws: random numbers of this step.
        times: how the noise levels are drawn.
        weighting: `score.divergence` for the exact gradient of the divergence.

    Returns:
        (batch,) one loss per sample; its value is no measure of the divergence.

    Source: Yin et al. 2024, section 3.2 (arXiv 2311.18828).
    """
    return vsd(x, cond, real, fake, draws, times, weighting)


def fake_loss(
    fake: NetworkDenoiser,
    x: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    times: TrainingTimes = uniform_times,
    weighting: PredictionWeighting = simple,
) -> Float[Tensor, " batch"]:
    """`loss.denoising_loss` on the generator's samples, which receive no gradient.

    Source: Yin et al. 2024, section 3.2 (arXiv 2311.18828).
    """
    return denoising_loss(fake, x.detach(), cond, draws, times, weighting)


@torch.no_grad()
def simulated(
    student: Denoiser,
    noise: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    grid: Float64[Tensor, " n"],
) -> tuple[Float[Tensor, "batch ..."], Float64[Tensor, " batch"]]:
    """What the student meets when it samples: ``(x_t, t)`` with ``t`` one of its ``grid``, all equally likely.

    A few-step generator that is trained on noised data and sampled from its own noised output never saw the latter.
    So run its own sampler (jump to x0_hat, noise again to the next time) and stop each sample at a random time.

    Args:
        student: jumps to x0_hat at each time of the grid.
        noise: standard normal.
        cond: passed to the student.
        draws: random numbers of this step.
        grid: (n,) falling; the times at which the student is evaluated, so the last one is not 0.

    Source: Yin et al. 2024 (arXiv 2405.14867).
    """
    process = process_of(student)
    batch = noise.shape[0]
    stop = (draws.uniform((batch,)) * len(grid)).long()
    times = grid.to(stop.device)
    x = process.prior(noise, float(grid[0]))
    for i in range(1, len(grid)):
        x0_hat = estimate(student, x, times[i - 1].expand(batch), cond)
        further = process.corrupt(x0_hat, times[i].expand(batch), draws.normal(x.shape, x.dtype))
        x = torch.where((stop >= i).to(x.device).reshape(-1, *[1] * (x.ndim - 1)), further, x)
    return x, times[stop]
