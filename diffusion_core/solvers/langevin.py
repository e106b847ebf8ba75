"""Langevin dynamics as tables: steps at constant time, one noise level after another."""

from __future__ import annotations

import math

import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.schedule import Schedule
from diffusion_core.solvers.table import Table, falling_pairs, joined, single_step


def langevin(schedule: Schedule, t: float, n: int = 1, step: float = 0.1) -> Table:
    """``n`` steps ``x <- x + step sigma_t^2 score + sqrt(2 step) sigma_t z`` at time ``t``.

    As ``sigma^2 score = alpha x0_hat - x``, that is ``(1 - step) x + step alpha x0_hat + sqrt(2 step) sigma z``: the
    step of `correct.Ula`, which does it between the steps of any other solver.

    Raises:
        WorkbenchError: no noise at ``t``, or no step.
    """
    times = torch.full((n,), t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    if n < 1 or not 0.0 < step < 2.0 or not bool((sigma > 0.0).all()):
        raise WorkbenchError(
            f"langevin: got n={n}, step={step}, t={t}; expected n >= 1, 0 < step < 2 (in units of sigma_t^2: beyond it "
            "diverges) and a time with noise."
        )
    yes = torch.ones(n, dtype=torch.bool)
    return Table(
        times=times,
        reached=times,
        x=torch.full((n, 1), 1.0 - step, dtype=torch.float64),
        estimate=(step * alpha)[:, None],
        noise=math.sqrt(2.0 * step) * sigma,
        ends_step=torch.arange(n) == n - 1,
        evaluates=yes,
    )


def annealed_langevin(schedule: Schedule, grid: Grid, n: int = 100, step: float = 0.02) -> Table:
    """Annealed Langevin dynamics: ``n`` steps at every time of ``grid`` that has noise, from the noisiest on.

    Between levels x keeps its place in units of the data, ``x_s = (alpha_s / alpha_t) x_t``. A grid that ends at t = 0
    ends with the estimate itself, which takes the last of the noise away.

    Args:
        grid: the noise levels, falling; NCSN's is a geometric sequence of sigma (`grid.log_snr_uniform`).
        n: steps per level.
        step: in units of sigma_t^2, the same at all levels: NCSN's ``alpha_i = eps sigma_i^2 / sigma_L^2`` with
            ``step = eps / (2 sigma_L^2)``.

    Source: Song & Ermon 2019, algorithm 1 (arXiv 1907.05600); the last step: Jolicoeur-Martineau et al. 2020
    (arXiv 2009.05475).
    """
    t, s = falling_pairs(grid)
    if t.ndim > 1:
        raise WorkbenchError(f"annealed langevin: got a grid of shape {tuple(grid.shape)}; expected one time for all.")
    ends = float(grid[-1])
    clean = not float(schedule.sigma(grid[-1])) > 0.0
    tables: list[Table] = []
    for i, level in enumerate(t.tolist()):
        tables.append(langevin(schedule, level, n, step))
        if clean and i == len(t) - 1:
            zero = torch.zeros(1, dtype=torch.float64)
            alpha = schedule.alpha(grid[-1:])
            tables.append(single_step(t[-1:], grid[-1:], zero[:, None], alpha[:, None], zero))
        else:
            tables.append(_carried(schedule, level, float(s[i])))
    return joined(*tables, *([] if clean else [langevin(schedule, ends, n, step)]))


def _carried(schedule: Schedule, t: float, s: float) -> Table:
    """``x_s = (alpha_s / alpha_t) x_t``, one row without an estimate."""
    a, b = (torch.tensor([v], dtype=torch.float64) for v in (t, s))
    no = torch.zeros(1, dtype=torch.bool)
    zero = torch.zeros(1, dtype=torch.float64)
    return Table(a, b, (schedule.alpha(b) / schedule.alpha(a))[:, None], zero[:, None], zero, no, no)
