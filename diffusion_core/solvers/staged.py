"""Several evaluations a step and no memory: Heun, EDM's sampler, the single-step DPM-Solvers.

The rows of a step are its stages. A stage finds the newest sample, evaluates the denoiser there and makes the next
stage's sample from all that the step has seen; only the last one's is on the trajectory. A step of infinite length (to
a time without noise, or from one without signal) has no higher order: it is a single first-order row.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.schedule import Schedule, Times
from diffusion_core.solvers.single import flow_coefficients
from diffusion_core.solvers.table import Table, falling_pairs, pairs


def heun(schedule: Schedule, grid: Grid) -> Table:
    """Heun's method on the probability-flow ODE in ``t``: two evaluations a step, second order.

    A step that reaches a time without noise stays Euler's, since the velocity is not defined there.

    Source: Karras et al. 2022, algorithm 1 (arXiv 2206.00364), for any (alpha, sigma).
    """
    t, s = _one_time(*pairs(grid))
    h = s - t
    p_t, q_t = flow_coefficients(schedule, t)
    p_s, q_s = flow_coefficients(schedule, s)
    predictor = ([1.0 + h * p_t], [h * q_t])
    corrector = ([0.5 * h * p_s, 1.0 + 0.5 * h * p_t], [0.5 * h * q_s, 0.5 * h * q_t])
    return _interleaved(t, s, [t, s], [predictor, corrector], schedule.sigma(s) > 0.0)


def edm(
    schedule: Schedule,
    grid: Grid,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    noise_scale: float = 1.0,
) -> Table:
    """EDM's stochastic sampler: raise the noise a little, then a Heun step in ``rho = sigma / alpha``.

    With ``gamma = min(churn / n, sqrt(2) - 1)`` where ``churn_min <= rho <= churn_max``, else 0,

        rho_hat = rho + gamma rho,   x_hat / alpha_hat = x / alpha + sqrt(rho_hat^2 - rho^2) noise_scale z.

    ``churn = 0`` is Heun's method in rho, which for a variance-exploding schedule is `heun`.

    Args:
        churn: S_churn; the amount of noise in all n steps together.
        churn_min, churn_max: S_min, S_max, in units of rho.
        noise_scale: S_noise.

    Raises:
        WorkbenchError: negative amounts of noise, or a rising grid with churn.

    Source: Karras et al. 2022, algorithm 2 (arXiv 2206.00364), written for any (alpha, sigma). Where theirs raises the
    noise of the first step above sigma_max, ours stays inside the schedule.
    """
    if churn < 0.0 or noise_scale < 0.0 or not 0.0 <= churn_min <= churn_max:
        raise WorkbenchError(
            f"edm: got churn={churn}, churn_min={churn_min}, churn_max={churn_max}, noise_scale={noise_scale}; "
            "expected churn >= 0, noise_scale >= 0 and 0 <= churn_min <= churn_max."
        )
    t, s = _one_time(*(pairs(grid) if churn == 0.0 else falling_pairs(grid)))
    rho, rho_s = (torch.exp(-0.5 * schedule.log_snr(u)) for u in (t, s))
    largest = torch.exp(-0.5 * schedule.log_snr(torch.ones((), dtype=torch.float64)))
    inside = (rho >= churn_min) & (rho <= churn_max) & torch.isfinite(rho)
    gamma = inside.to(t.dtype) * min(churn / len(t), math.sqrt(2.0) - 1.0)
    rho_hat = torch.minimum(rho * (1.0 + gamma), torch.maximum(rho, largest))
    raised = rho_hat > rho
    t_hat = torch.where(raised, schedule.t_of_log_snr(-2.0 * rho_hat.log()).clamp(max=1.0), t)
    alpha, alpha_hat, alpha_s = (schedule.alpha(u) for u in (t, t_hat, s))
    sigma_hat, sigma_s = schedule.sigma(t_hat), schedule.sigma(s)
    added = torch.where(raised, alpha_hat * noise_scale * (rho_hat**2 - rho**2).clamp(min=0.0).sqrt(), 0.0)
    # in samples over alpha the velocity is (x / alpha - x0_hat) / rho; its Euler step is DDIM's
    step = rho_s - rho_hat
    ratio = sigma_s / sigma_hat
    predictor = ([ratio], [alpha_s - ratio * alpha_hat])
    corrector = (
        [0.5 * step / rho_s, alpha_s / alpha_hat * (1.0 + 0.5 * step / rho_hat)],
        [-0.5 * alpha_s * step / rho_s, -0.5 * alpha_s * step / rho_hat],
    )
    whole = (sigma_s > 0.0) & torch.isfinite(rho) & torch.isfinite(rho_s)
    table = _interleaved(t_hat, s, [t_hat, s], [predictor, corrector], whole)
    return _raised_before(table, t, raised, alpha_hat / alpha, added)


def dpm_solver_2s(schedule: Schedule, grid: Grid) -> Table:
    """DPM-Solver-2: second order, two evaluations a step, in eps. Source: Lu et al. 2022, algorithm 1 (2206.00927)."""
    return _exponential(schedule, grid, "eps", (0.5,))


def dpm_solver_3s(schedule: Schedule, grid: Grid) -> Table:
    """DPM-Solver-3: third order, three evaluations a step, in eps. Source: Lu et al. 2022, algorithm 2 (2206.00927)."""
    return _exponential(schedule, grid, "eps", (1.0 / 3.0, 2.0 / 3.0))


def dpm_solver_pp_2s(schedule: Schedule, grid: Grid) -> Table:
    """DPM-Solver++(2S): second order, two evaluations a step, in x0.

    Source: Lu et al. 2022, algorithm 1 (arXiv 2211.01095).
    """
    return _exponential(schedule, grid, "x0", (0.5,))


def dpm_solver_pp_3s(schedule: Schedule, grid: Grid) -> Table:
    """DPM-Solver++(3S): third order, three evaluations a step, in x0.

    Source: Lu et al. 2022 (arXiv 2211.01095), the data-prediction form of DPM-Solver-3.
    """
    return _exponential(schedule, grid, "x0", (1.0 / 3.0, 2.0 / 3.0))


def _exponential(schedule: Schedule, grid: Grid, of: Literal["x0", "eps"], nodes: tuple[float, ...]) -> Table:
    """Exponential Runge-Kutta steps in ``lambda = log(alpha / sigma)`` with stages at ``lambda_t + r h``.

    With ``z = h`` for eps and ``-h`` for x0, ``a`` the coefficient of what is not estimated (alpha for eps, sigma for
    x0), ``b`` that of what is, ``D_k = m_k - m_0`` and ``phi(y) = (exp(y) - 1) / y - 1``::

        u_1 = a_1 / a_t x - b_1 (exp(r_1 z) - 1) m_0
        u_2 = a_2 / a_t x - b_2 (exp(r_2 z) - 1) m_0 - b_2 r_2 / r_1 phi(r_2 z) D_1
        x_s = a_s / a_t x - b_s (exp(z) - 1) m_0 - (b_s (exp(z) - 1) / (2 r_1) D_1,  or  b_s phi(z) / r_2 D_2)
    """
    t, s = _one_time(*pairs(grid))
    low, high = (0.5 * schedule.log_snr(u) for u in (t, s))
    finite = torch.isfinite(low) & torch.isfinite(high)
    h = torch.where(finite, high - low, 1.0)
    # where the step is infinite only the first row is kept, and its node is the step's end
    places = [t, *(torch.where(finite, schedule.t_of_log_snr(2.0 * (low + r * h)), s) for r in nodes), s]
    alphas, sigmas = [schedule.alpha(u) for u in places], [schedule.sigma(u) for u in places]
    a, b = (alphas, sigmas) if of == "eps" else (sigmas, alphas)
    z = h if of == "eps" else -h
    stages = [(a[1] / a[0], [-b[1] * torch.expm1(nodes[0] * z)])]
    if len(nodes) == 1:
        first, second = torch.expm1(z), torch.expm1(z) / (2.0 * nodes[0])
        stages.append((a[2] / a[0], [-b[2] * (first - second), -b[2] * second]))
    else:
        first, second = torch.expm1(nodes[1] * z), nodes[1] / nodes[0] * _phi(nodes[1] * z)
        stages.append((a[2] / a[0], [-b[2] * (first - second), -b[2] * second]))
        first, second = torch.expm1(z), _phi(z) / nodes[1]
        stages.append((a[3] / a[0], [-b[3] * (first - second), torch.zeros_like(h), -b[3] * second]))
    rows = []
    for k, (of_x, of_m) in enumerate(stages):
        # m_j belongs to the sample of stage j, which is k - j rows back; eps_j = (u_j - alpha_j x0_j) / sigma_j
        samples = [torch.zeros_like(h) for _ in range(k + 1)]
        samples[k] = of_x
        estimates = []
        for j in reversed(range(len(of_m))):
            if of == "eps":
                samples[k - j] = samples[k - j] + of_m[j] / sigmas[j]
                estimates.append(-of_m[j] * alphas[j] / sigmas[j])
            else:
                estimates.append(of_m[j])
        rows.append((samples, estimates))
    ratio = sigmas[-1] / sigmas[0]
    ((first_x,), (first_m,)) = rows[0]
    first_row = (
        [torch.where(finite, first_x, ratio)],
        [torch.where(finite, first_m, alphas[-1] - ratio * alphas[0])],
    )
    return _interleaved(t, s, places[:-1], [first_row, *rows[1:]], finite)


def _phi(y: Times) -> Times:
    # (exp(y) - 1) / y - 1 loses its digits near 0, where its series has them
    series = y / 2.0 + y**2 / 6.0 + y**3 / 24.0 + y**4 / 120.0
    return torch.where(y.abs() < 1e-3, series, torch.expm1(y) / y - 1.0)


def _one_time(t: Times, s: Times) -> tuple[Times, Times]:
    if t.ndim > 1:
        raise WorkbenchError(
            f"solver table: got a grid of shape {(len(t) + 1, *t.shape[1:])}, times for each sample or token, for a "
            "solver with stages; expected a grid of shape (n + 1,), or a solver of one row a step: ddim, ddpm, euler, "
            "dpm_solver_pp_2m."
        )
    return t, s


def _interleaved(
    t: Times,
    s: Times,
    places: list[Times],
    rows: list[tuple[list[Times], list[Times]]],
    whole: Bool[Tensor, " n"],
) -> Table:
    """The table of steps from ``t`` to ``s`` with one row per stage; where a step is not ``whole``, only its first.

    Args:
        places: where each stage evaluates.
        rows: for each stage the factors of the samples and of the estimates, newest first.
        whole: which steps have all their stages; a first row that stands alone reaches ``s``.
    """
    width, n = len(rows), len(t)

    def stack(values: list[list[Times]]) -> Tensor:
        zero = torch.zeros_like(t)
        wide = [torch.stack([*v, *[zero] * (width - len(v))], 1) for v in values]
        return torch.stack(wide, 1).reshape(n * width, width)

    keep = torch.stack([torch.ones_like(whole), *[whole] * (width - 1)], 1).reshape(-1)
    last = torch.zeros(n, width, dtype=torch.bool)
    last[:, -1], last[:, 0] = True, ~whole | (width == 1)
    reached = [torch.where(whole, place, s) for place in [*places[1:], s]]
    return Table(
        times=torch.stack(places, 1).reshape(-1)[keep],
        reached=torch.stack(reached, 1).reshape(-1)[keep],
        x=stack([x for x, _ in rows])[keep],
        estimate=stack([e for _, e in rows])[keep],
        noise=torch.zeros(int(keep.sum()), dtype=torch.float64),
        ends_step=last.reshape(-1)[keep],
        evaluates=torch.ones(int(keep.sum()), dtype=torch.bool),
    )


def _raised_before(table: Table, t: Times, raised: Bool[Tensor, " n"], factor: Times, added: Times) -> Table:
    """Before every step of ``table``: a row without an estimate that multiplies by ``factor`` and adds noise."""
    starts = torch.cat([torch.ones(1, dtype=torch.bool), table.ends_step[:-1]])
    step = starts.cumsum(0) - 1
    # row i of the table comes after all the raising rows of the steps up to its own
    place = torch.arange(len(starts)) + raised.cumsum(0)[step]
    extra = (torch.arange(len(starts)) + raised.cumsum(0)[step] - 1)[starts & raised[step]]

    def spread(old: Tensor, new: Tensor) -> Tensor:
        out = old.new_zeros(len(old) + len(new), *old.shape[1:])
        out[place], out[extra] = old, new
        return out

    count = int(raised.sum())
    only_newest = torch.zeros(count, table.x.shape[1], dtype=torch.float64)
    only_newest[:, 0] = factor[raised]
    no = torch.zeros(count, dtype=torch.bool)
    return Table(
        times=spread(table.times, t[raised]),
        reached=spread(table.reached, table.times[starts][raised]),
        x=spread(table.x, only_newest),
        estimate=spread(table.estimate, torch.zeros(count, table.estimate.shape[1], dtype=torch.float64)),
        noise=spread(table.noise, added[raised]),
        ends_step=spread(table.ends_step, no),
        evaluates=spread(table.evaluates, no),
    )
