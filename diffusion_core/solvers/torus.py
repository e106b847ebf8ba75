"""Solvers on the torus: the rows of a table, wrapped.

x_{i+1} = wrap(x_i + sum_k B_ik score_{i-k} + C_i z),        z ~ N(0, 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.noise import Noise
from diffusion_core.plan import Advance
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.torus import Torus
from diffusion_core.process.wrapped_normal import wrap
from diffusion_core.schedule import Schedule, Times
from diffusion_core.solvers.table import Table, Tabled, falling_pairs, pairs, single_step


@dataclass(frozen=True, eq=False)
class Wrapped(Tabled):
    """A table whose every sample is taken modulo ``period``.

    Args:
        table: its samples enter with factor 1 alone, its estimates are scores.
        period: circumference.
    """

    table: Table
    period: float

    def begin(self, x: Tensor, noise: Noise | None) -> Advance:
        advance, period = self.table.begin(x, noise), self.period
        return lambda x, score, i: wrap(advance(x, score, i), period)


def ancestral(process: Torus, grid: Grid) -> Wrapped:
    """``x_s = x_t + (sigma_t^2 - sigma_s^2) score + (sigma_s / sigma_t) sqrt(sigma_t^2 - sigma_s^2) z``.

    DDPM's step for alpha = 1, with ``x0_hat = x_t + sigma_t^2 score``.

    Source: Song et al. 2021, appendix F (arXiv 2011.13456); on the torus Jiao et al. 2023
    (arXiv 2309.04475).
    """
    t, s = falling_pairs(grid)
    gain, std = ancestral_factors(process.schedule, t, s)
    return _wrapped(process, single_step(t, s, torch.ones_like(t)[:, None], gain[:, None], std))


def flow(process: Torus, grid: Grid, order: int = 2) -> Wrapped:
    """The probability flow ``dx/du = -score`` in ``u = sigma^2 / 2``, by Adams and Bashforth's method.

    The score is integrated as the polynomial through its newest ``order`` values; the first steps, which have
    fewer, are of lower order. Order 1 is Euler's method in u. A rising grid inverts it.

    Args:
        process: the torus.
        grid: (n + 1,), or with more axes for order 1.
        order: 1, 2 or 3.

    Raises:
        WorkbenchError: another order, or an order above 1 on a grid with per-sample times.

    Source: Song et al. 2021, eq. 13 (arXiv 2011.13456); Hairer, Norsett & Wanner 1993, section III.5.
    """
    if not 1 <= order <= 3 or (order > 1 and grid.ndim > 1):
        raise WorkbenchError(
            f"torus flow: got order={order} on a grid with {grid.ndim} axes; expected an order from 1 to 3, and 1 for "
            "per-sample times."
        )
    t, s = pairs(grid)
    gain = flow_factor(process.schedule, t, s)
    estimate = torch.zeros(len(t), order, *t.shape[1:], dtype=torch.float64)
    estimate[:, 0] = gain
    if order > 1:
        u = 0.5 * process.schedule.sigma(grid) ** 2
        for i in range(1, len(t)):
            k = min(i + 1, order)
            nodes = (u[i - k + 1 : i + 1].flip(0) - u[i]) / (u[i + 1] - u[i])
            powers = torch.arange(k, dtype=torch.float64)
            # weights that integrate 1, v, v^2 over the step [0, 1] exactly
            weights = torch.linalg.solve(nodes[None, :] ** powers[:, None], 1.0 / (powers + 1.0))
            estimate[i, :k] = gain[i] * weights
    return _wrapped(process, single_step(t, s, torch.ones_like(t)[:, None], estimate, torch.zeros_like(t)))


def corrected(plan: Wrapped, process: Torus, steps: int = 1, size: float = 0.1) -> Wrapped:
    """``plan`` with ``steps`` of Langevin dynamics after each of its steps that reaches a noisy time s.

    ``x <- x + delta score + sqrt(2 delta) z`` at time s with ``delta = size sigma_s^2``.

    Raises:
        WorkbenchError: the plan remembers older scores, between which these rows would come, or a bad number.

    Source: Song et al. 2021, algorithm 2 (arXiv 2011.13456), with a step in units of sigma^2 and not of the
    measured ratio of norms, so that no sample depends on its batch.
    """
    table = plan.table
    if table.estimate.shape[1] > 1 or table.times.ndim > 1 or steps < 0 or not size > 0.0:
        raise WorkbenchError(
            f"Langevin corrector: got steps={steps}, size={size} on a plan with {table.estimate.shape[1]} scores a row"
            "; expected steps >= 0, size > 0, and a plan of one score a row with one time for all samples (ancestral, "
            "flow of order 1)."
        )
    rows: list[tuple[float, float, float, float, bool]] = []
    columns = (table.times, table.reached, table.estimate[:, 0], table.noise, process.schedule.sigma(table.reached))
    for t, s, gain, std, sigma in zip(*(c.tolist() for c in columns), strict=True):
        extra = steps if sigma > 0.0 else 0
        rows.append((t, s, gain, std, extra == 0))
        delta = size * sigma**2
        rows += [(s, s, delta, (2.0 * delta) ** 0.5, j == extra - 1) for j in range(extra)]
    *numbers, ends = zip(*rows, strict=True)
    t, s, gain, std = (torch.tensor(column, dtype=torch.float64) for column in numbers)
    always = torch.ones(len(rows), dtype=torch.bool)
    return _wrapped(
        process, Table(t, s, torch.ones_like(t)[:, None], gain[:, None], std, torch.tensor(ends), evaluates=always)
    )


def ancestral_factors(schedule: Schedule, t: Times, s: Times) -> tuple[Times, Times]:
    """Factors of the score and of the fresh noise in an ancestral step of a schedule with alpha = 1."""
    _, of_x0, std = Gaussian(schedule).posterior(t, s)
    return of_x0 * schedule.sigma(t) ** 2, std


def flow_factor(schedule: Schedule, t: Times, s: Times) -> Float64[Tensor, "n *extra"]:
    """``(sigma_t^2 - sigma_s^2) / 2``: how far a step of the flow follows the score."""
    return 0.5 * (schedule.sigma(t) ** 2 - schedule.sigma(s) ** 2)


def _wrapped(process: Torus, table: Table) -> Wrapped:
    return Wrapped(table, process.period)
