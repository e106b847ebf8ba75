"""Solvers as tables.

Every sampler of a Gaussian diffusion is a linear recursion in the samples and the denoised estimates so far,

    x_{i+1} = sum_k A_ik x_{i-k} + sum_k B_ik x0_hat_{i-k} + C_i z,        z ~ N(0, 1),

where ``x0_hat_i`` is the denoiser at row i's time and at the newest sample. The numbers A, B, C depend on the
schedule and the grid alone. So a solver is a pure function ``(schedule, grid) -> Table``, the loop that
runs it is written once (``diffusion_core.sample``), and what one would test about a solver can be read off
its table without any network.

Inversion is the same solver on the reversed grid; a warm start is a sliced grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid, check_grid
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule, Times


class Row(NamedTuple):
    """One row of a table as host numbers: zeros dropped, so that the loop does only the work there is.

    Pairs are (rows back, number). The newest estimate, which every row uses, is not among them.
    """

    x: tuple[tuple[int, float], ...]
    x0_hat: tuple[tuple[int, float], ...]
    noise: float
    ends_step: bool


@dataclass(frozen=True)
class Table:
    """The coefficients of a sampler, float64.

    Args:
        times: time at which row i evaluates the denoiser.
        reached: time of the sample that row i produces.
        x: A; column k multiplies the sample k rows back (0 is the newest).
        x0_hat: B; column k multiplies the estimate k rows back (0 is the one just evaluated).
        noise: C; standard deviation of the fresh noise.
        ends_step: False for a stage inside a step (Heun's predictor), whose sample is not on the trajectory.

    Raises:
        WorkbenchError: a coefficient is not finite.
    """

    times: Float64[Tensor, " n"]
    reached: Float64[Tensor, " n"]
    x: Float64[Tensor, "n kx"]
    x0_hat: Float64[Tensor, "n kb"]
    noise: Float64[Tensor, " n"]
    ends_step: Bool[Tensor, " n"]

    def __post_init__(self) -> None:
        for name, values in (("x", self.x), ("x0_hat", self.x0_hat), ("noise", self.noise)):
            bad = ~torch.isfinite(values.reshape(len(self.times), -1)).all(1)
            if bad.any():
                i = int(bad.nonzero()[0])
                raise WorkbenchError(
                    f"solver table: the {name} coefficient of the step from t={float(self.times[i]):.6g} to "
                    f"{float(self.reached[i]):.6g} is not finite; expected a grid that does not start at a time "
                    "without noise (an inversion starts at a small t > 0) and does not end at one without signal."
                )

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The table row by row, as Python numbers."""

        def terms(values: list[float]) -> tuple[tuple[int, float], ...]:
            return tuple((k, v) for k, v in enumerate(values) if v != 0.0)

        return tuple(
            Row(terms(a), terms([0.0, *b[1:]]), c, e)
            for a, b, c, e in zip(
                self.x.tolist(), self.x0_hat.tolist(), self.noise.tolist(), self.ends_step.tolist(), strict=True
            )
        )


Solver = Callable[[Schedule, Grid], Table]


def ddpm(schedule: Schedule, grid: Grid, variance: Literal["small", "large"] = "small") -> Table:
    """Ancestral sampling: each row is ``q(x_s | x_t, x0_hat)``.

    ``variance="small"`` is the posterior's own variance; ``"large"`` is that of ``q(x_t | x_s)``, with no
    noise in a last step that reaches t = 0.

    Source: Ho et al. 2020, algorithm 2 and section 3.2 (arXiv 2006.11239).
    """
    t, s = _falling_pairs(grid)
    process = Gaussian(schedule)
    a, b, std = process.posterior(t, s)
    if variance == "large":
        std = torch.where(schedule.sigma(s) > 0.0, process.forward(t, s)[1].sqrt(), 0.0)
    return _single_step(t, s, a, b, std)


def ddim(schedule: Schedule, grid: Grid, eta: float = 0.0) -> Table:
    """``x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z``, with ``c = eta`` times DDPM's noise.

    eta = 0 is deterministic (and is Euler's method for a rectified flow), eta = 1 is `ddpm`.

    Source: Song et al. 2021, eq. 12 and 16 (arXiv 2010.02502), written for any (alpha, sigma).
    """
    if not 0.0 <= eta <= 1.0:
        raise WorkbenchError(f"ddim: got eta={eta}; expected a number in [0, 1] (1 is DDPM).")
    t, s = _pairs(grid) if eta == 0.0 else _falling_pairs(grid)
    alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    if eta == 0.0:
        a, c = sigma_s / sigma_t, torch.zeros_like(t)
    else:
        c = eta * Gaussian(schedule).posterior(t, s)[2]
        a = (sigma_s**2 - c**2).sqrt() / sigma_t
    return _single_step(t, s, a, alpha_s - a * alpha_t, c)


def euler(schedule: Schedule, grid: Grid) -> Table:
    """Euler's method on the probability-flow ODE in ``t``: ``x_s = x_t + (s - t) dx/dt``.

    ``dx/dt = (d_sigma / sigma) x + (d_alpha - alpha d_sigma / sigma) x0_hat``: the flow's velocity with x0 and
    eps replaced by their estimates.

    Source: Song et al. 2021, eq. 13 (arXiv 2011.13456); Lipman et al. 2023 (arXiv 2210.02747).
    """
    t, s = _pairs(grid)
    p, q = _flow(schedule, t)
    return _single_step(t, s, 1.0 + (s - t) * p, (s - t) * q, torch.zeros_like(t))


def heun(schedule: Schedule, grid: Grid) -> Table:
    """Heun's method on the probability-flow ODE in ``t``: two evaluations a step, second order.

    A step that reaches a time without noise stays Euler's, since the velocity is not defined there.

    Source: Karras et al. 2022, algorithm 1 (arXiv 2206.00364), for any (alpha, sigma).
    """
    t, s = _pairs(grid)
    h = s - t
    p_t, q_t = _flow(schedule, t)
    corrected = schedule.sigma(s) > 0.0
    p_s, q_s = _flow(schedule, s)
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
        x0_hat=rows[keep, 2:],
        noise=torch.zeros(int(keep.sum()), dtype=torch.float64),
        ends_step=torch.stack([~corrected, corrected], 1).reshape(-1)[keep],
    )


def dpm_solver_pp_2m(schedule: Schedule, grid: Grid) -> Table:
    """DPM-Solver++(2M): second order with one evaluation a step.

    In half-log-SNR ``lambda = log(alpha / sigma)`` with steps ``h_i``,

        x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) D,   D = (1 + g) x0_hat_i - g x0_hat_{i-1},

    ``g = h_i / (2 h_{i-1})``. The first step, and a step of infinite length (from no signal, or to no noise),
    has g = 0: first order, where the second-order term has no limit.

    Source: Lu et al. 2022, algorithm 2 (arXiv 2211.01095).
    """
    t, s = _pairs(grid)
    alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    a = sigma_s / sigma_t
    b = alpha_s - a * alpha_t
    h = 0.5 * (schedule.log_snr(s) - schedule.log_snr(t))
    g = torch.zeros_like(t)
    g[1:] = h[1:] / (2.0 * h[:-1])
    g = torch.where(torch.isfinite(h) & torch.isfinite(g), g, 0.0)
    return Table(
        times=t,
        reached=s,
        x=a[:, None],
        x0_hat=torch.stack([b * (1.0 + g), -b * g], 1),
        noise=torch.zeros_like(t),
        ends_step=torch.ones_like(t, dtype=torch.bool),
    )


def _pairs(grid: Grid) -> tuple[Times, Times]:
    check_grid(grid)
    return grid[:-1], grid[1:]


def _falling_pairs(grid: Grid) -> tuple[Times, Times]:
    t, s = _pairs(grid)
    if s[0] > t[0]:
        raise WorkbenchError(
            f"solver table: got a rising grid, from t={float(t[0]):.6g} to {float(s[-1]):.6g}, for a solver that adds "
            "noise; expected a falling one: only a deterministic solver, such as ddim with eta=0, can be inverted."
        )
    return t, s


def _flow(schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """``(p, q)`` of ``dx/dt = p x + q x0_hat``; not finite where there is no noise."""
    p = schedule.d_sigma(t) / schedule.sigma(t)
    return p, schedule.d_alpha(t) - schedule.alpha(t) * p


def _single_step(t: Times, s: Times, a: Times, b: Times, c: Times) -> Table:
    return Table(t, s, a[:, None], b[:, None], c, torch.ones_like(t, dtype=torch.bool))
