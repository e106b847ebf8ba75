"""Multistep solvers that correct: each step is repeated with the estimate found at its end, at no evaluation more.

The corrected sample ``x_i + sum_k (v_k - w_k) (m_k - m_0)`` (v the corrector's weights, w the predictor's that
led to x_i) is linear in what the table has, so it never appears: the next row starts from it. The samples of a
trajectory are the predicted ones, and the last is not corrected, which would cost an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.schedule import Schedule, Times
from diffusion_core.solvers.adams import Integral, Rows, WarmUp, check_warm_up, rows_of, usable
from diffusion_core.solvers.table import Table

Weights = Callable[[Rows, list[Times]], list[Times]]
"""``(rows, coordinates of the nodes) -> weights`` of a predictor or a corrector."""


def unipc(
    schedule: Schedule,
    grid: Grid,
    order: int = 2,
    variant: Literal["bh1", "bh2"] = "bh2",
    warm_up: WarmUp = "published",
) -> Table:
    """UniPC with data prediction: UniP of the given order, and its corrector UniC of one order more.

    Both interpolate x0_hat in lambda; from three estimates on they are the exact integral of the polynomial. Through
    two, the paper takes

        w = alpha_s B(h) / (2 r),      B(h) = h ("bh1") or 1 - exp(-h) ("bh2"),   r = (lambda_1 - lambda_t) / h

    (r = 1 for the corrector, lambda_1 being the end of the step), which needs no solve and is of the same order.
    ``order`` is 1, 2 or 3; the error falls with one power of the step more, but for order 3 only if ``warm_up`` is
    "staged": the published start, a corrected first-order step, leaves an error of the third power. Staged, the first
    step costs three evaluations instead of one.

    Source: Zhao et al. 2023 (arXiv 2302.04867).
    """
    if not 1 <= order <= 3 or variant not in ("bh1", "bh2"):
        raise WorkbenchError(f"unipc: got order={order}, variant={variant!r}; expected 1, 2 or 3, and bh1 or bh2.")
    check_warm_up("unipc", warm_up)
    integral = Integral(schedule, "data")

    def weights(rows: Rows, nodes: list[Times]) -> list[Times]:
        if not nodes:
            return []
        exact = integral.weights(rows, nodes)
        start, end = integral.at(rows.start), integral.at(rows.reached)
        use = usable(start, end, nodes)
        h = end - start
        scale = schedule.alpha(rows.reached) * (h if variant == "bh1" else -torch.expm1(-h))
        # the stages of a staged start need the exact integral for their order
        two = (torch.stack(use).sum(0) == 1) & (rows.base == torch.arange(len(h)))
        return [
            torch.where(two, torch.where(u, scale * h / (2.0 * (node - start)), 0.0), w)
            for u, node, w in zip(use, nodes, exact, strict=True)
        ]

    return _corrected(integral, grid, order, weights, warm_up)


def sa_solver(schedule: Schedule, grid: Grid, order: int = 3, tau: float = 1.0, corrector: bool = True) -> Table:
    """SA-Solver: stochastic Adams with noise of strength ``tau``, 0 the probability flow and 1 DDPM's process.

    The predictor interpolates x0_hat in lambda through ``order`` estimates (1 to 3), the corrector through one more,
    at the end of the step and with the predictor's noise. Order 1 without corrector is `ddpm` for tau = 1 and `ddim`
    for tau = 0. The paper lets tau vary over the steps; here it is one number.

    Source: Xue et al. 2023 (arXiv 2309.05019).
    """
    if not 1 <= order <= 3 or not 0.0 <= tau < float("inf"):
        raise WorkbenchError(f"sa_solver: got order={order}, tau={tau}; expected 1, 2 or 3, and a finite tau >= 0.")
    integral = Integral(schedule, "data", tau=tau)
    if not corrector:
        rows = rows_of(*integral.steps(grid), order)
        return integral.table(rows, integral.lagrange(rows))
    return _corrected(integral, grid, order, integral.weights, "published")


def _corrected(integral: Integral, grid: Grid, order: int, weights: Weights, warm_up: WarmUp) -> Table:
    if grid.ndim > 1:
        raise WorkbenchError(
            f"predictor-corrector: got times of shape {tuple(grid.shape)}; expected one time for all samples: a token "
            "that stands still would lose its correction. Take a solver without one, such as dpm_solver_pp_2m."
        )
    staged = warm_up == "staged" and order > 2
    rows = integral.staged(grid, 4, order - 1) if staged else rows_of(*integral.steps(grid), order)
    y, n = integral.at(rows.times), len(rows.times)
    older = [rows.at(y, k) for k in range(order - 1)]
    predictor = weights(rows, older)
    table = integral.table(rows, predictor)
    width = table.estimate.shape[1]
    # what a step's corrector adds to its predictor, in columns of the row after it; a step of stages is not corrected
    gain, own = torch.zeros(n, width + 1, dtype=torch.float64), torch.arange(n)
    whole = rows.ends_step & (rows.base == own)
    columns = [torch.zeros_like(own), *(own + 1 - node for node in rows.nodes.unbind(1))]
    target, *others = weights(rows, [integral.at(rows.reached), *older])
    for column, v in zip(columns, [target, *(v - w for v, w in zip(others, predictor, strict=True))], strict=True):
        change = torch.where(whole, v, 0.0)
        gain[own, torch.where(change == 0.0, 0, column)] += change
        gain[own, 1] -= change
    estimate = torch.cat([table.estimate, torch.zeros(n, 1, dtype=torch.float64)], 1)
    estimate[1:] += table.x[1:, :1] * gain[:-1]
    return replace(table, estimate=estimate)
