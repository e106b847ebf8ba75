"""One evaluation a step and no memory: DDPM, DDIM, Euler, consistency sampling."""

from __future__ import annotations

from typing import Literal

import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule, Times
from diffusion_core.solvers.table import Table, falling_pairs, pairs, single_step


def ddpm(schedule: Schedule, grid: Grid, variance: Literal["small", "large", "learned"] = "small") -> Table:
    """Ancestral sampling: each row is ``q(x_s | x_t, x0_hat)``.

    ``variance="small"`` is the posterior's own variance; ``"large"`` is that of ``q(x_t | x_s)``; ``"learned"``
    lets the denoiser interpolate the logarithms of the two (`NetworkDenoiser.with_variance`). None of them adds
    noise in a last step that reaches t = 0.

    Source: Ho et al. 2020, algorithm 2 and section 3.2 (arXiv 2006.11239); learned: Nichol & Dhariwal 2021, eq. 15
    (arXiv 2102.09672).
    """
    t, s = falling_pairs(grid)
    process = Gaussian(schedule)
    a, b, small = process.posterior(t, s)
    large = torch.where(schedule.sigma(s) > 0.0, process.forward(t, s)[1].sqrt(), 0.0)
    match variance:
        case "small":
            return single_step(t, s, a[:, None], b[:, None], small)
        case "large":
            return single_step(t, s, a[:, None], b[:, None], large)
        case "learned":
            return single_step(t, s, a[:, None], b[:, None], small, noise_large=large)
    raise WorkbenchError(f"ddpm: got variance={variance!r}; expected small, large or learned.")


def ddim(schedule: Schedule, grid: Grid, eta: float = 0.0) -> Table:
    """``x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z``, with ``c = eta`` times DDPM's noise.

    eta = 0 is deterministic (and is Euler's method for a rectified flow, DPM-Solver-1 and DPM-Solver++(1) for any
    schedule), eta = 1 is `ddpm` (and the ancestral Euler of the variance-exploding literature).

    Source: Song et al. 2021, eq. 12 and 16 (arXiv 2010.02502), written for any (alpha, sigma).
    """
    if not 0.0 <= eta <= 1.0:
        raise WorkbenchError(f"ddim: got eta={eta}; expected a number in [0, 1] (1 is DDPM).")
    t, s = pairs(grid) if eta == 0.0 else falling_pairs(grid)
    alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    if eta == 0.0:
        a, c = sigma_s / sigma_t, torch.zeros_like(t)
    else:
        c = eta * Gaussian(schedule).posterior(t, s)[2]
        a = (sigma_s**2 - c**2).sqrt() / sigma_t
    return single_step(t, s, a[:, None], (alpha_s - a * alpha_t)[:, None], c)


def euler(schedule: Schedule, grid: Grid) -> Table:
    """Euler's method on the probability-flow ODE in ``t``: ``x_s = x_t + (s - t) dx/dt``.

    ``dx/dt = (d_sigma / sigma) x + (d_alpha - alpha d_sigma / sigma) x0_hat``: the flow's velocity with x0 and
    eps replaced by their estimates.

    Source: Song et al. 2021, eq. 13 (arXiv 2011.13456); Lipman et al. 2023 (arXiv 2210.02747).
    """
    t, s = pairs(grid)
    p, q = flow_coefficients(schedule, t)
    return single_step(t, s, (1.0 + (s - t) * p)[:, None], ((s - t) * q)[:, None], torch.zeros_like(t))


def consistency(schedule: Schedule, grid: Grid) -> Table:
    """Multistep consistency sampling: jump to the data, noise again, ``x_s = alpha_s x0_hat + sigma_s z``.

    For a consistency model, whose x0_hat is the end of the flow and not a mean.

    Source: Song et al. 2023, algorithm 1 (arXiv 2303.01469), written for any (alpha, sigma).
    """
    t, s = falling_pairs(grid)
    return single_step(t, s, torch.zeros_like(t)[:, None], schedule.alpha(s)[:, None], schedule.sigma(s))


def flow_coefficients(schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """``(p, q)`` of the probability flow ``dx/dt = p x + q x0_hat``; not finite where there is no noise."""
    p = schedule.d_sigma(t) / schedule.sigma(t)
    return p, schedule.d_alpha(t) - schedule.alpha(t) * p
