"""One evaluation a step and a memory: exponential integrators that reuse earlier estimates.

They differ in what they interpolate and in which coordinate (`adams.Integral`). In all of them a step of infinite
length, from no signal or to no noise, is of first order, where the higher orders have no limit (`lms` alone has one
at no noise), and the step after one starts without a memory. The deterministic ones are inverted by a reversed grid.

A solver of order 3 or 4 has ``warm_up``: "staged" makes its first step in stages and so delivers the order, for
one evaluation more (two at order 4); "published" starts with a first-order step as the papers' code does: one
evaluation a step, and an error that falls with the square of the step.
"""

from __future__ import annotations

from typing import Literal

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.schedule import Schedule
from diffusion_core.solvers.adams import Integral, WarmUp, check_warm_up, rows_of
from diffusion_core.solvers.table import Table


def dpm_solver_pp_2m(schedule: Schedule, grid: Grid) -> Table:
    """DPM-Solver++(2M): second order with one evaluation a step.

    In half-log-SNR ``lambda = log(alpha / sigma)`` with steps ``h_i``,

        x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) D,   D = (1 + g) x0_hat_i - g x0_hat_{i-1},

    ``g = h_i / (2 h_{i-1})``. The first step, and a step of infinite length (from no signal, or to no noise),
    has g = 0: first order, where the second-order term has no limit.

    Source: Lu et al. 2022, algorithm 2 (arXiv 2211.01095).
    """
    return _midpoint(Integral(schedule, "data"), grid)


def dpm_solver_pp_2m_sde(schedule: Schedule, grid: Grid) -> Table:
    """SDE-DPM-Solver++(2M): `dpm_solver_pp_2m` with DDPM's noise.

        x_s = (sigma_s / sigma_t) exp(-h) x_t + alpha_s (1 - exp(-2 h)) D + sigma_s sqrt(1 - exp(-2 h)) z

    with the same D. A grid of a single step is `ddpm`'s.

    Source: Lu et al. 2022, SDE-DPM-Solver++ (arXiv 2211.01095).
    """
    return _midpoint(Integral(schedule, "data", tau=1.0), grid)


def dpm_solver_pp_3m(schedule: Schedule, grid: Grid, warm_up: WarmUp = "staged") -> Table:
    """DPM-Solver++(3M): x0_hat is the parabola in lambda through three estimates, integrated exactly.

    The published code halves the second difference of that parabola, which leaves a second-order solver; this one
    is of third order. ``warm_up``: see the module.

    Source: Lu et al. 2022 (arXiv 2211.01095).
    """
    return _adams(Integral(schedule, "data"), grid, 3, warm_up)


def dpm_solver_pp_3m_sde(schedule: Schedule, grid: Grid) -> Table:
    """SDE-DPM-Solver++(3M): three estimates and DDPM's noise; `sa_solver` of order 3 with tau = 1, uncorrected.

    With the whole second difference and the sign that the integral has: the published codes halve it, and one of
    them subtracts it. The noise limits the order that is reached in distribution; what the third estimate buys is
    the error of the drift.

    Source: Lu et al. 2022 (arXiv 2211.01095); Xue et al. 2023 (arXiv 2309.05019).
    """
    return _adams(Integral(schedule, "data", tau=1.0), grid, 3, "published")


def dpm_solver_2m(schedule: Schedule, grid: Grid) -> Table:
    """DPM-Solver, multistep of order two: `dpm_solver_pp_2m` with eps_hat for x0_hat.

        x_s = (alpha_s / alpha_t) x_t - sigma_s (exp(h) - 1) ((1 + g) eps_hat_i - g eps_hat_{i-1})

    Source: Lu et al. 2022 (arXiv 2206.00927), in the multistep form of their later work (arXiv 2211.01095).
    """
    return _midpoint(Integral(schedule, "noise"), grid)


def dpm_solver_3m(schedule: Schedule, grid: Grid, warm_up: WarmUp = "staged") -> Table:
    """DPM-Solver, multistep of order three: eps_hat is the parabola in lambda through three estimates.

    It is `deis` of order 3 in lambda. ``warm_up``: see the module.

    Source: Lu et al. 2022, proposition 3.1 (arXiv 2206.00927).
    """
    return _adams(Integral(schedule, "noise"), grid, 3, warm_up)


def deis(
    schedule: Schedule,
    grid: Grid,
    order: int = 3,
    coordinate: Literal["t", "lambda", "rho"] = "t",
    warm_up: WarmUp = "staged",
) -> Table:
    """DEIS, the Adams-Bashforth kind: eps_hat is a polynomial in ``coordinate`` through ``order`` estimates.

        x_s = (alpha_s / alpha_t) x_t + alpha_s integral_{rho_t}^{rho_s} eps_hat d rho,     rho = sigma / alpha

    "t" is the paper's tAB-DEIS, "rho" its rho-AB (= `lms`); "lambda" is the logarithm of rho that its public
    implementations take. ``order`` is 1 (`ddim`), 2 or 3. ``warm_up``: see the module.

    Source: Zhang & Chen 2023, tAB-DEIS (arXiv 2204.13902).
    """
    if coordinate not in ("t", "lambda", "rho"):
        raise WorkbenchError(f"deis: got coordinate={coordinate!r}; expected t, lambda or rho.")
    return _adams(Integral(schedule, "noise", coordinate), grid, _checked("deis", order, 3), warm_up)


def lms(schedule: Schedule, grid: Grid, order: int = 4, warm_up: WarmUp = "staged") -> Table:
    """Linear multistep (Adams-Bashforth) in the noise level ``rho = sigma / alpha``, orders 1 to 4.

    ``d(x / alpha) / d rho = eps_hat``, with eps_hat a polynomial in rho through ``order`` estimates. A step to
    no noise keeps its order. ``warm_up``: see the module.

    Source: Zhang & Chen 2023, rho-AB (arXiv 2204.13902); the flow in rho: Karras et al. 2022 (arXiv 2206.00364).
    """
    return _adams(Integral(schedule, "noise", "rho"), grid, _checked("lms", order, 4), warm_up)


def _midpoint(integral: Integral, grid: Grid) -> Table:
    rows = rows_of(*integral.steps(grid), 2)
    return integral.table(rows, integral.midpoint(rows))


def _adams(integral: Integral, grid: Grid, order: int, warm_up: WarmUp) -> Table:
    check_warm_up("multistep solver", warm_up)
    if warm_up == "staged" and order > 2 and grid.ndim > 1:
        raise WorkbenchError(
            f"multistep solver: got times of shape {tuple(grid.shape)} and warm_up='staged'; expected one time for all "
            "samples, or warm_up='published': samples that start at different rows have no first step in common."
        )
    rows = integral.staged(grid, order, order - 1) if warm_up == "staged" else rows_of(*integral.steps(grid), order)
    return integral.table(rows, integral.lagrange(rows))


def _checked(name: str, order: int, most: int) -> int:
    if not 1 <= order <= most:
        raise WorkbenchError(f"{name}: got order={order}; expected 1 to {most}.")
    return order
