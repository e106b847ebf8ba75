"""Distillation losses: fewer steps, one step, or no sampling at all, taught by a denoiser that takes many.

==============  ==========================================================================================
progressive     one step of the student is two of the teacher's
consistency     all points of a trajectory jump to the same end
adversarial     a discriminator cannot tell the student's jump from the truth, or from the teacher's
score           a sample follows the difference of two denoised estimates: SDS, VSD, CSD, DDS
matching        a generator does so: distribution matching, VSD's formula with a network that is trained along
==============  ==========================================================================================

A loss is a function; the loop, the optimizers and the averages stay outside. Each returns one number per sample
(batch,), takes its random numbers from `loss.Draws`, and never sends a gradient into a teacher. Times come as pairs
``(t, s)`` with ``s < t``, one pair per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.predict import align
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule, Times

Pairs = Callable[[Draws, int], tuple[Times, Times]]
"""``pairs(draws, batch) -> (t, s)``: from where to where each sample of the batch goes, float64."""


@torch.no_grad()
def estimate(
    denoiser: Denoiser, x_t: Float[Tensor, "batch ..."], t: Float64[Tensor, " batch"], cond: Any = None
) -> Float[Tensor, "batch ..."]:
    """What a frozen denoiser, a network or an expression of several, makes of each sample at its own time ``t``."""
    return denoiser.bind(t[None], cond)(x_t, 0)


def process_of(denoiser: Denoiser) -> Gaussian:
    """The Gaussian process under which ``denoiser`` works.

    Raises:
        WorkbenchError: its field is of another kind.
    """
    if not isinstance(denoiser.process, Gaussian):
        raise WorkbenchError(
            f"distillation: got a denoiser of the process {type(denoiser.process).__name__}; expected Gaussian, "
            "the only one whose steps are jumps along an ordinary differential equation."
        )
    return denoiser.process


def ddim_coefficients(schedule: Schedule, t: Times, s: Times) -> tuple[Times, Times]:
    """``(a, b)`` of the step ``x_s = alpha_s x0_hat + sigma_s eps_hat = a x_t + b x0_hat``.

    ``a = sigma_s / sigma_t``, ``b = alpha_s - a alpha_t``; exactly (1, 0) where ``s = t``, even without noise.

    The row of `solvers.ddim`, without the checks of a table, which would wait for the device in every training step.

    Source: Song et al. 2021, eq. 12 (arXiv 2010.02502), for any (alpha, sigma).
    """
    a = torch.where(s == t, 1.0, schedule.sigma(s) / schedule.sigma(t))
    return a, schedule.alpha(s) - a * schedule.alpha(t)


def jump(
    schedule: Schedule, x_t: Float[Tensor, "batch ..."], x0_hat: Float[Tensor, "batch ..."], t: Times, s: Times
) -> Float[Tensor, "batch ..."]:
    """One DDIM step of every sample from its ``t`` to its ``s``: ``x_s = a x_t + b x0_hat``; keeps gradients."""
    a, b = (align(c, x_t) for c in ddim_coefficients(schedule, t, s))
    return a * x_t + b * x0_hat


def grid_pairs(grid: Float64[Tensor, " n_plus_1"]) -> Pairs:
    """The steps of a falling ``grid``, all equally likely."""

    def pairs(draws: Draws, batch: int) -> tuple[Times, Times]:
        i = (draws.uniform((batch,)) * (len(grid) - 1)).long()
        on = grid.to(i.device)
        return on[i], on[i + 1]

    return pairs
