"""One evaluation a step and a memory: exponential integrators that reuse earlier estimates."""

from __future__ import annotations

import torch

from diffusion_core.grid import Grid
from diffusion_core.schedule import Schedule
from diffusion_core.solvers.table import Table, pairs, single_step


def dpm_solver_pp_2m(schedule: Schedule, grid: Grid) -> Table:
    """DPM-Solver++(2M): second order with one evaluation a step.

    In half-log-SNR ``lambda = log(alpha / sigma)`` with steps ``h_i``,

        x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) D,   D = (1 + g) x0_hat_i - g x0_hat_{i-1},

    ``g = h_i / (2 h_{i-1})``. The first step, and a step of infinite length (from no signal, or to no noise),
    has g = 0: first order, where the second-order term has no limit.

    Source: Lu et al. 2022, algorithm 2 (arXiv 2211.01095).
    """
    t, s = pairs(grid)
    alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    a = sigma_s / sigma_t
    b = alpha_s - a * alpha_t
    h = 0.5 * (schedule.log_snr(s) - schedule.log_snr(t))
    g = torch.zeros_like(t)
    g[1:] = h[1:] / (2.0 * h[:-1])
    g = torch.where(torch.isfinite(h) & torch.isfinite(g), g, 0.0)
    return single_step(t, s, a[:, None], torch.stack([b * (1.0 + g), -b * g], 1), torch.zeros_like(t))
