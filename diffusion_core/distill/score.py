"""Score distillation: a sample follows the difference of two denoised estimates.

Noise the sample, ``x_t = alpha_t x + sigma_t eps``, and ask a denoiser what it was. All methods move ``x`` by

    direction = weight(t) (reference - x0_hat(x_t, t)),          x <- x - direction,

and differ in the reference alone:

======  ===========================================  ======================================================
SDS     ``x`` itself                                 Poole et al. 2022, eq. 3 (arXiv 2209.14988)
VSD     a denoiser of the samples' own distribution  Wang et al. 2023 (arXiv 2305.16213)
CSD     the same denoiser without its condition      Yu et al. 2023 (arXiv 2310.19415)
DDS     ``x - source + x0_hat(source_t)``            Hertz et al. 2023 (arXiv 2304.07090)
======  ===========================================  ======================================================

The papers write differences of eps; since ``eps_hat = (x_t - alpha_t x0_hat) / sigma_t``, these are ours times
``alpha_t / sigma_t``, which the weights below contain. SDS is VSD for samples that are all the same: the denoiser of
a point is that point.

``x`` may be anything with a gradient: an image, a rendering, a plan. A guided denoiser is one like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.distill import estimate, process_of
from diffusion_core.loss import Draws, uniform_times
from diffusion_core.predict import align
from diffusion_core.schedule import Schedule, Times

Weighting = Callable[[Schedule, Times, Tensor, Tensor], Tensor]
"""``weight(schedule, t, x, x0_hat) -> (batch,)`` multiplies the difference of the estimates of x0."""

Reference = Callable[[Tensor, Tensor, Times, Tensor], Tensor]
"""``reference(x, x_t, t, noise)``: the estimate from which the denoiser's is subtracted."""

TrainingTimes = Callable[[Draws, int], Float64[Tensor, " batch"]]

MIDDLE: TrainingTimes = partial(uniform_times, t_min=0.02, t_max=0.98)
"""Away from both ends, as in Poole et al. 2022, section 3 (arXiv 2209.14988)."""


def noise_variance(schedule: Schedule, t: Times, x: Tensor, x0_hat: Tensor) -> Tensor:
    """``alpha_t sigma_t``: weight ``sigma_t^2`` on the difference of eps. Source: Poole et al. 2022, section 3
    (arXiv 2209.14988)."""
    return schedule.alpha(t) * schedule.sigma(t)


def divergence(schedule: Schedule, t: Times, x: Tensor, x0_hat: Tensor) -> Tensor:
    """``alpha_t^2 / sigma_t^2``: with it VSD's mean direction is the gradient of ``KL(fake_t || real_t)``.

    That gradient is ``alpha_t (s_fake - s_real)``, and a score is ``(alpha_t x0_hat - x_t) / sigma_t^2``.
    """
    return schedule.log_snr(t).exp()


def score_distillation(
    x: Float[Tensor, "batch ..."],
    cond: Any,
    denoiser: Denoiser,
    reference: Reference,
    draws: Draws,
    times: TrainingTimes = MIDDLE,
    weighting: Weighting = noise_variance,
) -> Float[Tensor, " batch"]:
    """The loss whose gradient is the direction: ``mean(direction (x - stop(x)) + direction^2 / 2)``.

    Its value is half the mean square of the direction, which is a distance to the fixed point; its gradient with
    respect to ``x`` is the direction divided by the number of entries, to the last bit. No gradient passes through
    a denoiser.

    Args:
        x: samples, with a gradient.
        cond: passed to the denoiser.
        denoiser: of the distribution to go to.
        reference: what is subtracted from; see the table above.
        draws: random numbers of this step.
        times: how the noise levels are drawn.
        weighting: of the difference of the estimates of x0.

    Returns:
        (batch,) one loss per sample.
    """
    with torch.no_grad():
        process = process_of(denoiser)
        t = times(draws, x.shape[0])
        noise = draws.normal(x.shape, x.dtype)
        x_t = process.corrupt(x, t, noise)
        x0_hat = estimate(denoiser, x_t, t, cond)
        weight = align(weighting(process.schedule, t, x, x0_hat), x)
        direction = weight * (reference(x, x_t, t, noise) - x0_hat)
    return (direction * (x - x.detach()) + 0.5 * direction**2).flatten(1).mean(1)


def sds(
    x: Float[Tensor, "batch ..."],
    cond: Any,
    denoiser: Denoiser,
    draws: Draws,
    times: TrainingTimes = MIDDLE,
    weighting: Weighting = noise_variance,
) -> Float[Tensor, " batch"]:
    """Score distillation sampling: ``x - x0_hat``, which is ``(sigma_t / alpha_t) (eps_hat - eps)``.

    It seeks modes: on Gaussian data the mean direction vanishes at the mean and nowhere else.

    Source: Poole et al. 2022, eq. 3 (arXiv 2209.14988).
    """
    return score_distillation(x, cond, denoiser, lambda x, x_t, t, noise: x, draws, times, weighting)


def vsd(
    x: Float[Tensor, "batch ..."],
    cond: Any,
    denoiser: Denoiser,
    fake: Denoiser,
    draws: Draws,
    times: TrainingTimes = MIDDLE,
    weighting: Weighting = noise_variance,
) -> Float[Tensor, " batch"]:
    """Variational score distillation: ``x0_hat_fake - x0_hat``, with ``fake`` trained on the samples as they are now.

    Its training is `matching.fake_loss`; the generator's part of distribution matching distillation is this function.

    Source: Wang et al. 2023, algorithm 1 (arXiv 2305.16213).
    """

    def reference(x: Tensor, x_t: Tensor, t: Times, noise: Tensor) -> Tensor:
        return estimate(fake, x_t, t, cond)

    return score_distillation(x, cond, denoiser, reference, draws, times, weighting)


def csd(
    x: Float[Tensor, "batch ..."],
    cond: Any,
    uncond: Any,
    denoiser: Denoiser,
    draws: Draws,
    times: TrainingTimes = MIDDLE,
    weighting: Weighting = noise_variance,
) -> Float[Tensor, " batch"]:
    """Classifier score distillation: ``x0_hat(uncond) - x0_hat(cond)``, what guidance adds to SDS per unit of scale.

    Args:
        uncond: the condition that stands for none, as the denoiser understands it.

    Source: Yu et al. 2023 (arXiv 2310.19415).
    """

    def reference(x: Tensor, x_t: Tensor, t: Times, noise: Tensor) -> Tensor:
        return estimate(denoiser, x_t, t, uncond)

    return score_distillation(x, cond, denoiser, reference, draws, times, weighting)


def dds(
    x: Float[Tensor, "batch ..."],
    cond: Any,
    source: Float[Tensor, "batch ..."],
    source_cond: Any,
    denoiser: Denoiser,
    draws: Draws,
    times: TrainingTimes = MIDDLE,
    weighting: Weighting = noise_variance,
) -> Float[Tensor, " batch"]:
    """Delta denoising score: SDS at ``x`` minus SDS at ``source``, with the same noise and the same times.

    What SDS does wrong for the source, it does wrong for its edited copy, and the difference is left.

    Args:
        source: what ``x`` was before it was edited, shape of ``x``.
        source_cond: what ``source`` shows, as the denoiser understands it.

    Source: Hertz et al. 2023 (arXiv 2304.07090).
    """

    def reference(x: Tensor, x_t: Tensor, t: Times, noise: Tensor) -> Tensor:
        source_t = process_of(denoiser).corrupt(source, t, noise)
        return x - source + estimate(denoiser, source_t, t, source_cond)

    return score_distillation(x, cond, denoiser, reference, draws, times, weighting)
