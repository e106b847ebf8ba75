"""Consistency models: every point of a trajectory jumps to the trajectory's end.

The consistency function of a network with output F,

    f(x_t, t) = c_skip(t) x_t + c_out(t) F(x_t, t),          f(x, t_min) = x,

is here one DDIM step from ``t`` to ``t_min`` with the network's x0_hat, whatever it predicts and whatever the schedule:
the boundary holds exactly because a step to where one stands is none. So one-step sampling is `solvers.ddim` on the
grid ``(t_max, t_min)`` and several steps are `solvers.consistency`.

Song et al. 2023 (arXiv 2303.01469) shift EDM's coefficients by t_min instead, which is another function
with the same boundary, for one schedule and one kind of output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.distill import ddim_coefficients, estimate, grid_pairs, jump, process_of
from diffusion_core.errors import require_at_least
from diffusion_core.grid import karras
from diffusion_core.loss import Draws, uniform_times
from diffusion_core.predict import Prediction, align, convert, mixture, to_x0
from diffusion_core.schedule import Schedule, Times

Solve = Callable[[Tensor, Times, Times, Any], Tensor]
"""``solve(x_t, t, s, cond) -> x_s``: one step of the teacher's probability flow."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""``distance(a, b) -> (batch,)``."""

Neighbours = Callable[[Schedule, Times, Draws, int], tuple[Times, Times]]
"""``neighbours(schedule, grid, draws, batch) -> (t, s)``: a step of the grid for each sample."""


def boundary_coefficients(prediction: Prediction, schedule: Schedule, t: Times, t_min: float) -> tuple[Times, Times]:
    """``(c_skip, c_out)`` with ``f = c_skip x_t + c_out F``: ``a x_t + b x0_hat`` with ``x0_hat = c_x x_t + c_p F``."""
    a, b = ddim_coefficients(schedule, t, torch.full_like(t, t_min))
    c_x, c_p = to_x0(prediction, schedule, t)
    return a + b * c_x, b * c_p


def consistency_function(
    denoiser: NetworkDenoiser, x_t: Float[Tensor, "batch ..."], t: Times, cond: Any, t_min: float
) -> Float[Tensor, "batch ..."]:
    """``f(x_t, t)``, an estimate of the trajectory's point at ``t_min``, with gradients.

    The denoiser's ``clip`` does not act: a clamped jump would learn nothing.
    """
    c_skip, c_out = (align(c, x_t) for c in boundary_coefficients(denoiser.prediction, denoiser.schedule, t, t_min))
    return c_skip * x_t + c_out * denoiser(x_t, t, cond)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """``|a - b|^2``, averaged over all axes but the batch."""
    return ((a - b) ** 2).flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """``sqrt(|a - b|^2 + c^2) - c`` with ``c = 0.00054 sqrt(d)`` and d entries per sample.

    Source: Song & Dhariwal 2023, section 3.3 (arXiv 2310.14189).
    """
    difference = (a - b).flatten(1)
    c = 0.00054 * math.sqrt(difference.shape[1])
    return ((difference**2).sum(1) + c**2).sqrt() - c


def noise_to_signal(schedule: Schedule, t: Times) -> Times:
    """``sigma_t / alpha_t``: the noise level of the variance-exploding literature."""
    return torch.exp(-0.5 * schedule.log_snr(t))


def inverse_gap(schedule: Schedule, t: Times, s: Times) -> Times:
    """``1 / (u_t - u_s)`` with ``u = sigma / alpha``; 0 where nothing is left of the data.

    Source: Song & Dhariwal 2023, table 1 (arXiv 2310.14189).
    """
    return 1.0 / (noise_to_signal(schedule, t) - noise_to_signal(schedule, s))


def unweighted(schedule: Schedule, t: Times, s: Times) -> Times:
    """Weight 1. Source: Song et al. 2023 (arXiv 2303.01469)."""
    return torch.ones_like(t)


def uniform_neighbours(schedule: Schedule, grid: Times, draws: Draws, batch: int) -> tuple[Times, Times]:
    """All steps of the grid equally likely. Source: Song et al. 2023, algorithm 2 (arXiv 2303.01469)."""
    return grid_pairs(grid)(draws, batch)


def lognormal_neighbours(
    schedule: Schedule, grid: Times, draws: Draws, batch: int, mean: float = -1.1, std: float = 2.0
) -> tuple[Times, Times]:
    """Steps as likely as ``log(sigma / alpha) ~ N(mean, std^2)`` falls into them.

    Source: Song & Dhariwal 2023, section 3.5 (arXiv 2310.14189).
    """
    below = torch.special.ndtr((noise_to_signal(schedule, grid).log() - mean) / std)
    u = draws.uniform((batch,))
    so_far = (below[0] - below[1:]).to(u.device)
    i = torch.searchsorted(so_far, u * so_far[-1], right=True).clamp(max=len(grid) - 2)
    on = grid.to(u.device)
    return on[i], on[i + 1]


def doubling_steps(step: int, total: int, first: int = 10, last: int = 1280) -> int:
    """Steps of the grid at optimizer step ``step`` of ``total``: ``min(first 2^floor(step / stage), last)``.

    ``stage = floor(total / (log2 floor(last / first) + 1))``: every number of steps trains equally long.

    Source: Song & Dhariwal 2023, section 3.4 (arXiv 2310.14189), where N counts times, one more than steps.
    """
    require_at_least(1, {"total": total, "first": first})
    require_at_least(first, {"last": last})
    stage = max(math.floor(total / (math.log2(last // first) + 1.0)), 1)
    # not 2 ** (step // stage) alone: a long run would make it a number of thousands of digits
    return min(first * 2 ** min(step // stage, last.bit_length()), last)


def discretisation(
    schedule: Schedule, n: int, start: float, t_min: float, rho: float = 7.0
) -> Float64[Tensor, " n_plus_1"]:
    """`grid.karras` of ``n`` steps from ``start`` to ``t_min``, the last: the boundary is there, not at 0."""
    return karras(schedule, n + 1, start, t_min, rho)[:-1]


def ddim_step(teacher: Denoiser) -> Solve:
    """The teacher's flow by one DDIM step: first order.

    With a guided teacher this is latent consistency distillation; `guidance.classifier_free` takes a strength for each
    sample, as a function of time, and the student gets it as part of its condition.

    Source: Luo et al. 2023 (arXiv 2310.04378).
    """
    schedule = process_of(teacher).schedule
    return lambda x_t, t, s, cond: jump(schedule, x_t, estimate(teacher, x_t, t, cond), t, s)


def heun_step(teacher: Denoiser) -> Solve:
    """The teacher's flow by two evaluations, second order; a step must not end at a time without noise.

    ``x_s = a x_t + b (x0_hat_t + x0_hat_s) / 2``: the trapezoid in ``alpha / sigma``, the variable in which the flow
    of ``x / sigma`` is the integral of x0_hat. Song et al. 2023 use Heun's method in ``sigma / alpha``, of equal order.

    Source: Song et al. 2023 (arXiv 2303.01469).
    """
    schedule = process_of(teacher).schedule

    def solve(x_t: Tensor, t: Times, s: Times, cond: Any) -> Tensor:
        first = estimate(teacher, x_t, t, cond)
        second = estimate(teacher, jump(schedule, x_t, first, t, s), s, cond)
        return jump(schedule, x_t, 0.5 * (first + second), t, s)

    return solve


def consistency_distillation(
    student: NetworkDenoiser,
    solve: Solve,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    grid: Float64[Tensor, " n_plus_1"],
    target: NetworkDenoiser | None = None,
    neighbours: Neighbours = uniform_neighbours,
    distance: Distance = squared,
    weighting: Callable[[Schedule, Times, Times], Times] = unweighted,
) -> Float[Tensor, " batch"]:
    """``weight(t, s) distance(f_student(x_t, t), f_target(x_s, s))`` with ``x_s`` the teacher's step from ``x_t``.

    Args:
        student: its network's consistency function is trained.
        solve: the teacher's step: `ddim_step` or `heun_step` of any denoiser.
        x0: clean data, normalised.
        cond: passed to all.
        draws: random numbers of this step.
        grid: falling; its last time is t_min > 0.
        target: an average of the student; None is the student itself. Neither receives a gradient. A student with
            dropout should draw the same mask for both calls; that is up to its network.
        neighbours: how steps of the grid are drawn.
        distance, weighting: of the two jumps.

    Returns:
        (batch,) one loss per sample.

    Source: Song et al. 2023, algorithm 2 (arXiv 2303.01469).
    """
    t, s = neighbours(student.schedule, grid, draws, x0.shape[0])
    x_t = process_of(student).corrupt(x0, t, draws.normal(x0.shape, x0.dtype))
    with torch.no_grad():
        x_s = solve(x_t, t, s, cond)
    return _disagreement(student, target, x_t, x_s, t, s, cond, float(grid[-1]), distance, weighting)


def consistency_training(
    student: NetworkDenoiser,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    grid: Float64[Tensor, " n_plus_1"],
    target: NetworkDenoiser | None = None,
    neighbours: Neighbours = lognormal_neighbours,
    distance: Distance = pseudo_huber,
    weighting: Callable[[Schedule, Times, Times], Times] = inverse_gap,
) -> Float[Tensor, " batch"]:
    """`consistency_distillation` without a teacher: ``x_s`` has the data and the noise of ``x_t``.

    The mean of that step over the data behind ``x_t`` is the exact DDIM step. The defaults are the improved techniques;
    with `uniform_neighbours`, `squared` and `unweighted` it is the first paper's.

    Source: Song et al. 2023, algorithm 3 (arXiv 2303.01469); Song & Dhariwal 2023, table 1 (arXiv 2310.14189).
    """
    t, s = neighbours(student.schedule, grid, draws, x0.shape[0])
    noise, process = draws.normal(x0.shape, x0.dtype), process_of(student)
    x_t, x_s = process.corrupt(x0, t, noise), process.corrupt(x0, s, noise)
    return _disagreement(student, target, x_t, x_s, t, s, cond, float(grid[-1]), distance, weighting)


def _disagreement(
    student: NetworkDenoiser,
    target: NetworkDenoiser | None,
    x_t: Tensor,
    x_s: Tensor,
    t: Times,
    s: Times,
    cond: Any,
    t_min: float,
    distance: Distance,
    weighting: Callable[[Schedule, Times, Times], Times],
) -> Tensor:
    ours = consistency_function(student, x_t, t, cond, t_min)
    with torch.no_grad():
        theirs = consistency_function(target or student, x_s, s, cond, t_min)
    loss = distance(ours, theirs)
    return loss * weighting(student.schedule, t, s).to(loss)


def continuous_consistency(
    student: NetworkDenoiser,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    t_min: float,
    teacher: Denoiser | None = None,
    times: Callable[[Draws, int], Float64[Tensor, " batch"]] = uniform_times,
    c: float = 0.1,
) -> Float[Tensor, " batch"]:
    """The limit of infinitely many steps: ``|F - stop(F + g / (|g| + c))|^2``, averaged over all axes but the batch.

    ``g = -sign(c_out) alpha_t df/dt`` with ``df/dt`` the derivative of ``f(x_t, t)`` along the flow, one
    forward-mode product: for ``f`` to stop changing, F moves against it. For v-prediction on ``alpha = cos, sigma =
    sin`` this is the paper's tangent with its weight ``1 / tan``, up to the units of time, which only ``c`` feels.

    Args:
        student: its network must allow forward-mode derivatives.
        x0: clean data, normalised.
        cond: passed to both.
        draws: random numbers of this step.
        t_min: where trajectories end.
        teacher: gives the flow's velocity; None takes that of the pair (x0, noise), which is consistency training.
        times: how training times are drawn; at t_min there is nothing to learn.
        c: keeps a small tangent small.

    Returns:
        (batch,) one loss per sample.

    Source: Lu & Song 2024 (arXiv 2410.11081); without its adaptive weight and its warm-up of the tangent.
    """
    schedule = student.schedule
    t = times(draws, x0.shape[0])
    noise = draws.normal(x0.shape, x0.dtype)
    x_t = process_of(student).corrupt(x0, t, noise)
    if teacher is None:
        k_x0, k_eps = (align(k, x0) for k in mixture("velocity", schedule, t))
        velocity = k_x0 * x0 + k_eps * noise
    else:
        velocity = convert(estimate(teacher, x_t, t, cond), x_t, "x0", "velocity", schedule, t)

    def jumped(x: Tensor, at: Tensor) -> Tensor:
        return consistency_function(student, x, at, cond, t_min)

    with torch.no_grad():
        change = torch.func.jvp(jumped, (x_t, t), (velocity, torch.ones_like(t)))[1]
        _, c_out = boundary_coefficients(student.prediction, schedule, t, t_min)
        tangent = align(-c_out.sign() * schedule.alpha(t), x_t) * change
        length = align(torch.linalg.vector_norm(tangent.flatten(1), dim=1), x_t)
        tangent = tangent / (length + c)
    output = student(x_t, t, cond)
    return squared(output, output.detach() + tangent)
