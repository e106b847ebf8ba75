"""Progressive distillation: one DDIM step of the student is two of the teacher's; repeated, N steps become N / 2^k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.distill import ddim_coefficients, estimate, jump, process_of
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.predict import align
from diffusion_core.schedule import Schedule, Times

Weighting = Callable[[Schedule, Times], Times]
"""``weight(schedule, t)`` multiplies the squared error of x0_hat, float64."""


def truncated_snr(schedule: Schedule, t: Times) -> Times:
    """``max(alpha_t^2 / sigma_t^2, 1)``. Source: Salimans & Ho 2022, section 4 (arXiv 2202.00512)."""
    return schedule.log_snr(t).exp().clamp(min=1.0)


def snr_plus_one(schedule: Schedule, t: Times) -> Times:
    """``1 + alpha_t^2 / sigma_t^2``: the error of v. Source: Salimans & Ho 2022, section 4 (arXiv 2202.00512)."""
    return 1.0 + schedule.log_snr(t).exp()


def halved(grid: Float64[Tensor, " n_plus_1"]) -> Float64[Tensor, " half_plus_1"]:
    """The student's grid: every other time of the teacher's, both ends kept.

    Raises:
        WorkbenchError: the teacher's number of steps is odd.
    """
    n = len(grid) - 1
    if n < 2 or n % 2:
        raise WorkbenchError(f"progressive distillation: got a teacher's grid of {n} steps; expected an even number.")
    return grid[::2]


def progressive_target(
    teacher: Denoiser, x_t: Float[Tensor, "batch ..."], t: Times, middle: Times, s: Times, cond: Any = None
) -> Float[Tensor, "batch ..."]:
    """The x0 with which one DDIM step goes from ``t`` to where the teacher's two steps ``t -> middle -> s`` go.

    The paper solves ``x_s = a x_t + b x0`` for x0: ``x0 = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s /
    sigma_t) alpha_t)``. With the teacher's steps ``x_middle = a_1 x_t + b_1 x0_hat_1`` and ``x_s = a_2 x_middle + b_2
    x0_hat_2`` put in, x_t drops out, since ``a = a_1 a_2``, and with it the difference that cancels in float32::

        x0 = (a_2 b_1 x0_hat_1 + b_2 x0_hat_2) / b

    This is a mean of the teacher's two estimates, its weights sum to 1, and it needs no exception at ``s = 0``, where
    it is ``x0_hat_2``.

    Args:
        teacher: its two estimates; no gradient reaches it.
        x_t: (batch, ...) noisy samples.
        t, middle, s: (batch,) float64, falling.
        cond: passed to the teacher.

    Source: Salimans & Ho 2022, algorithm 2 (arXiv 2202.00512).
    """
    schedule = process_of(teacher).schedule
    _, b_1 = ddim_coefficients(schedule, t, middle)
    a_2, b_2 = ddim_coefficients(schedule, middle, s)
    _, b = ddim_coefficients(schedule, t, s)
    first = estimate(teacher, x_t, t, cond)
    with torch.no_grad():
        x_middle = jump(schedule, x_t, first, t, middle)
        second = estimate(teacher, x_middle, middle, cond)
        return align(a_2 * b_1 / b, x_t) * first + align(b_2 / b, x_t) * second


def progressive_loss(
    student: NetworkDenoiser,
    teacher: Denoiser,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    grid: Float64[Tensor, " n_plus_1"],
    weighting: Weighting = truncated_snr,
) -> Float[Tensor, " batch"]:
    """``weight(t) |x0_hat_student(x_t) - target|^2``, averaged over all axes but the batch, at the student's times.

    Distil one halving after the other: the trained student is the next teacher, and its grid is `halved`.

    Args:
        student: begins as a copy of the teacher; predicts anything that gives x0 at the grid's first time.
        teacher: takes the steps of ``grid``; may be guided.
        x0: clean data, normalised.
        cond: passed to both.
        draws: random numbers of this step.
        grid: the teacher's, falling, with an even number of steps.
        weighting: of the error of x0_hat.

    Returns:
        (batch,) one loss per sample.

    Source: Salimans & Ho 2022, algorithm 2 (arXiv 2202.00512), where the grid is uniform.
    """
    halved(grid)
    i = 2 * (draws.uniform((x0.shape[0],)) * ((len(grid) - 1) // 2)).long()
    t, middle, s = (grid.to(i.device)[i + k] for k in range(3))
    x_t = process_of(student).corrupt(x0, t, draws.normal(x0.shape, x0.dtype))
    error = (student.x0_hat(x_t, t, cond) - progressive_target(teacher, x_t, t, middle, s, cond)) ** 2
    return error.flatten(1).mean(1) * weighting(student.schedule, t).to(error)
