"""Several evaluations a step: Heun's method."""

from __future__ import annotations

import torch

from diffusion_core.grid import Grid
from diffusion_core.schedule import Schedule
from diffusion_core.solvers.single import flow_coefficients
from diffusion_core.solvers.table import Table, pairs


def heun(schedule: Schedule, grid: Grid) -> Table:
    """Heun's method on the probability-flow ODE in ``t``: two evaluations a step, second order.

    A step that reaches a time without noise stays Euler's, since the velocity is not defined there.

    Source: Karras et al. 2022, algorithm 1 (arXiv 2206.00364), for any (alpha, sigma).
    """
    t, s = pairs(grid)
    h = s - t
    p_t, q_t = flow_coefficients(schedule, t)
    corrected = schedule.sigma(s) > 0.0
    p_s, q_s = flow_coefficients(schedule, s)
    zero = torch.zeros_like(t)
    # rows interleaved: the predictor at t, then the corrector at s with (x_t, x0_hat_t) one row back
    predictor = torch.stack([1.0 + h * p_t, zero, h * q_t, zero], 1)
    corrector = torch.stack([0.5 * h * p_s, 1.0 + 0.5 * h * p_t, 0.5 * h * q_s, 0.5 * h * q_t], 1)
    rows = torch.stack([predictor, corrector], 1).reshape(-1, 4)
    keep = torch.stack([torch.ones_like(corrected), corrected], 1).reshape(-1)
    return Table(
        times=torch.stack([t, s], 1).reshape(-1)[keep],
        reached=torch.stack([s, s], 1).reshape(-1)[keep],
        x=rows[keep, :2],
        estimate=rows[keep, 2:],
        noise=torch.zeros(int(keep.sum()), dtype=torch.float64),
        ends_step=torch.stack([~corrected, corrected], 1).reshape(-1)[keep],
        evaluates=torch.ones(int(keep.sum()), dtype=torch.bool),
    )
