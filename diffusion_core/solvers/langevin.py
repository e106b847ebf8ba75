"""Langevin dynamics as tables: steps at constant time, one noise level after another."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.schedule import Schedule
from diffusion_core.solvers.table import Solver, Table, falling_pairs, joined, single_step


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


def annealed_langevin(schedule: Schedule, grid: Grid, n: int = 100, step: float = 0.1) -> Table:
    """Annealed Langevin dynamics: ``n`` steps at every time of ``grid`` that has noise, from the noisiest on.

    Between levels x keeps its place in units of the data, ``x_s = (alpha_s / alpha_t) x_t``. A grid that ends at t = 0
    ends with the estimate itself, which takes the last of the noise away.

    Args:
        grid: the noise levels, falling; NCSN's is a geometric sequence of sigma (`grid.log_snr_uniform`).
        n: steps per level.
        step: in units of sigma_t^2, the same at all levels: NCSN's ``alpha_i = eps sigma_i^2 / sigma_L^2`` with
            ``step = eps / (2 sigma_L^2)``, 0.1 for the eps = 2e-5 and sigma_L = 0.01 of their images.

    Raises:
        WorkbenchError: a time without signal, times for each sample, or steps that `langevin` refuses.

    Source: Song & Ermon 2019, algorithm 1 (arXiv 1907.05600); the last step: Jolicoeur-Martineau et al. 2020
    (arXiv 2009.05475).
    """
    t, s = falling_pairs(grid)
    if t.ndim > 1:
        raise WorkbenchError(f"annealed langevin: got a grid of shape {tuple(grid.shape)}; expected one time for all.")
    if not bool((schedule.alpha(t) > 0.0).all()):
        raise WorkbenchError(
            f"annealed langevin: at t={float(t[0]):.6g} the schedule {schedule} leaves no signal, and x has no place "
            "in units of the data; expected a grid that starts a little below (for example at 0.99)."
        )
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


def corrected(table: Table, schedule: Schedule, n: int = 1, step: float = 0.1) -> Table:
    """``n`` steps of `langevin` after every step of ``table`` that does not reach t = 0.

    What `sample` does with the corrector `correct.Ula`, but as rows of one table. The solver's memory skips them: its
    older samples and estimates are the ones that it saw itself.

    Args:
        table: of any solver with one time for all samples.
        schedule: of the table.
        n: steps after each of the table's.
        step: in units of sigma_t^2.

    Raises:
        WorkbenchError: a table of times for each sample or token, or steps that `langevin` refuses.
    """
    if table.times.ndim > 1:
        raise WorkbenchError(
            f"corrected table: got times of shape {tuple(table.times.shape)}; expected one time for all samples."
        )
    rows = torch.arange(len(table.times))
    followed = table.ends_step & (table.reached > 0.0)
    inserted = n * (followed.cumsum(0) - followed.long())
    place = rows + inserted
    steps = [langevin(schedule, t, n, step) for t in table.reached[followed].tolist()]
    if not steps:
        return table
    between = joined(*steps)
    place_between = (place[followed][:, None] + 1 + torch.arange(n)).flatten()
    # the k-th sample, and the k-th evaluation, back from row i
    sample = (rows[:, None] - torch.arange(table.x.shape[1])).clamp(min=0)
    evaluated, newest = rows[table.evaluates], table.evaluates.cumsum(0) - 1
    evaluation = (newest[:, None] - torch.arange(table.estimate.shape[1])).clamp(min=0)
    back_x = place[:, None] - place[sample]
    back_estimate = (newest + inserted)[:, None] - (evaluation + inserted[evaluated[evaluation]])

    def spread(own: Tensor, other: Tensor) -> Tensor:
        out = own.new_zeros(len(own) + len(other), *own.shape[1:])
        out[place], out[place_between] = own, other
        return out

    def widened(own: Tensor, back: Tensor, other: Tensor) -> Tensor:
        width = 1 + int(back[own != 0.0].max()) if bool((own != 0.0).any()) else 1
        wide = own.new_zeros(len(own), width)
        # what is 0 may point anywhere
        wide.scatter_add_(1, back.clamp(0, width - 1), own)
        return spread(wide, torch.cat([other, other.new_zeros(len(other), width - other.shape[1])], 1))

    large = table.noise_large
    return replace(
        table,
        times=spread(table.times, between.times),
        reached=spread(table.reached, between.reached),
        x=widened(table.x, back_x, between.x),
        estimate=widened(table.estimate, back_estimate, between.estimate),
        noise=spread(table.noise, between.noise),
        ends_step=spread(table.ends_step & ~followed, between.ends_step),
        evaluates=spread(table.evaluates, between.evaluates),
        noise_large=None if large is None else spread(large, between.noise),
    )


def pc(solver: Solver, schedule: Schedule, grid: Grid, n: int = 1, snr: float = 0.16) -> Table:
    """Predictor-corrector sampling: ``n`` Langevin steps after each step of ``solver``.

    With a signal-to-noise ratio r a step has the length ``2 (r |z| / |score|)^2``. They measure the two norms on the
    batch; ours takes ``|score| = |z| / sigma_t``, its value for data of no width and its upper bound on average, which
    gives ``step = 2 r^2`` in units of sigma_t^2 and a table that depends on times alone. Their further factor
    ``1 - beta_i`` for variance-preserving models, which is near 1, is left out.

    Args:
        solver: the predictor; theirs is `ddpm`.
        n: corrector steps.
        snr: r; 0.16 in their experiments.

    Raises:
        WorkbenchError: see `corrected`.

    Source: Song et al. 2021, algorithms 2 to 5 (arXiv 2011.13456).
    """
    return corrected(solver(schedule, grid), schedule, n, 2.0 * snr**2)


def _carried(schedule: Schedule, t: float, s: float) -> Table:
    """``x_s = (alpha_s / alpha_t) x_t``, one row without an estimate."""
    a, b = (torch.tensor([v], dtype=torch.float64) for v in (t, s))
    no = torch.zeros(1, dtype=torch.bool)
    zero = torch.zeros(1, dtype=torch.float64)
    return Table(a, b, (schedule.alpha(b) / schedule.alpha(a))[:, None], zero[:, None], zero, no, no)
