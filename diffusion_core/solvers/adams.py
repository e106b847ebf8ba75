"""Exponential Adams integrators: what every multistep solver shares.

A reverse step solves the linear part exactly; what is left is an integral of the estimate ``m`` along the way,
in which m is replaced by the polynomial through the estimates at hand (the newest, ``m_0``, and older ``m_k``),

    x_s = (the first-order row) + sum_k w_k (m_k - m_0),     w_k = integral_{y_t}^{y_s} kernel(y) l_k(y) dy,

with ``l_k`` the Lagrange basis in a coordinate y of time. Written so, the first-order part (DDIM; with noise,
DDPM) is exact whatever becomes of the weights, and a row without a second usable estimate is that part alone.

The choices: m is x0_hat ("data") or eps_hat ("noise"), and y is ``lambda = log(alpha / sigma)``,
``rho = sigma / alpha`` or ``t``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.schedule import Schedule, Times
from diffusion_core.solvers.table import Table, falling_pairs, pairs, single_step

WarmUp = Literal["staged", "published"]
"""How a solver of high order starts: `Integral.staged`, or with a first-order step as the papers' codes do."""

# Gauss-Legendre on [0, 1], exact for polynomials of degree 47: for exp on an interval of length 20, times a cubic, to
# 1e-15 of its maximum
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_FRACTIONS, _WEIGHTS = (0.5 * (1.0 + _POINTS)).tolist(), (0.5 * _WEIGHTS).tolist()


@dataclass(frozen=True)
class Rows:
    """Which rows a multistep table has: where each starts, what it remembers, whether it ends a step.

    Args:
        times, reached: as in `Table`.
        base: row whose sample and estimate the step starts from: its own, or the first of its stages.
        nodes: the other rows whose estimates it interpolates; -1 for none.
        ends_step: as in `Table`.
    """

    times: Times
    reached: Times
    base: Int64[Tensor, " n"]
    nodes: Int64[Tensor, "n k"]
    ends_step: Bool[Tensor, " n"]

    @property
    def start(self) -> Times:
        """The time at which each row's step starts."""
        return self.times[self.base]

    def back(self, rows: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """How many rows back they are."""
        return torch.arange(len(rows)) - rows

    def at(self, values: Tensor, k: int) -> Tensor:
        """``values`` (one a row) at every row's k-th node; not a number where there is none."""
        nodes = self.nodes[:, k]
        missing = (nodes < 0).reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(missing, torch.nan, values[nodes.clamp(min=0)])


def rows_of(t: Times, s: Times, order: int) -> Rows:
    """One row a step, which remembers ``order - 1`` estimates besides its own."""
    own = torch.arange(len(t))
    nodes = (own[:, None] - torch.arange(1, order)).clamp(min=-1)
    return Rows(t, s, own, nodes, torch.ones(len(t), dtype=torch.bool))


@dataclass(frozen=True)
class Integral:
    """What is interpolated, in which coordinate, against which kernel.

    With data prediction, and noise of strength ``tau`` (0 the flow, 1 DDPM's process),

        x_s = (sigma_s / sigma_t) exp(-tau^2 h) x_t
              + (1 + tau^2) alpha_s integral exp(-(1 + tau^2) (lambda_s - lambda)) x0_hat d lambda
              + sigma_s sqrt(1 - exp(-2 tau^2 h)) z,              h = lambda_s - lambda_t,

    and with noise prediction ``x_s = (alpha_s / alpha_t) x_t + alpha_s integral eps_hat d rho``.

    Source: data: Xue et al. 2023, with a constant tau (arXiv 2309.05019). Noise: Lu et al. 2022,
    proposition 3.1 (arXiv 2206.00927); Zhang & Chen 2023 (arXiv 2204.13902).
    """

    schedule: Schedule
    of: Literal["data", "noise"]
    coordinate: Literal["lambda", "rho", "t"] = "lambda"
    tau: float = 0.0

    def steps(self, grid: Grid) -> tuple[Times, Times]:
        """The steps of a grid, which falls if there is noise."""
        return falling_pairs(grid) if self.tau > 0.0 else pairs(grid)

    def at(self, t: Times) -> Times:
        """The coordinate; infinite where no polynomial in it can reach."""
        half_log_snr = 0.5 * self.schedule.log_snr(t)
        match self.coordinate:
            case "lambda":
                return half_log_snr
            case "rho":
                return torch.exp(-half_log_snr)
            case "t":
                return torch.where(half_log_snr.isfinite(), t, torch.inf)

    def time_of(self, y: Times) -> Times:
        """The inverse of `at`."""
        match self.coordinate:
            case "lambda":
                return self.schedule.t_of_log_snr(2.0 * y)
            case "rho":
                return self.schedule.t_of_log_snr(-2.0 * y.log())
            case "t":
                return y

    def kernel(self, y: Times, s: Times) -> Times:
        """The factor of the estimate under the integral to ``s``."""
        alpha_s = self.schedule.alpha(s)
        if self.of == "data":
            rate = 1.0 + self.tau**2
            return rate * alpha_s * torch.exp(rate * (y - 0.5 * self.schedule.log_snr(s)))
        match self.coordinate:
            case "lambda":
                return -alpha_s * torch.exp(-y)
            case "rho":
                return alpha_s.expand_as(y)
            case "t":
                alpha, sigma = self.schedule.alpha(y), self.schedule.sigma(y)
                return alpha_s * (sigma / alpha) * (self.schedule.d_sigma(y) / sigma - self.schedule.d_alpha(y) / alpha)

    def first_order(self, t: Times, s: Times) -> tuple[Times, Times, Times]:
        """``(a, b, c)`` of ``x_s = a x_t + b x0_hat + c z``: the estimate, data or noise, taken as constant."""
        schedule, h = self.schedule, self.length(t, s)
        a, c = schedule.sigma(s) / schedule.sigma(t), torch.zeros_like(t)
        if self.tau > 0.0:
            a = a * torch.exp(-(self.tau**2) * h)
            c = schedule.sigma(s) * torch.sqrt(-torch.expm1(-2.0 * self.tau**2 * h))
        return a, schedule.alpha(s) - a * schedule.alpha(t), c

    def length(self, t: Times, s: Times) -> Times:
        """``h = lambda_s - lambda_t``."""
        return 0.5 * (self.schedule.log_snr(s) - self.schedule.log_snr(t))

    def total(self, t: Times, s: Times) -> Times:
        """The weight of a constant estimate: the integral of the kernel, in closed form."""
        if self.of == "data":
            return self.first_order(t, s)[1]
        return -self.schedule.sigma(s) * torch.expm1(self.length(t, s))

    def lagrange(self, rows: Rows) -> list[Times]:
        """The weights ``w_k`` of exact interpolation through all usable nodes of each row."""
        y = self.at(rows.times)
        return self.weights(rows, [rows.at(y, k) for k in range(rows.nodes.shape[1])])

    def weights(self, rows: Rows, nodes: Sequence[Times]) -> list[Times]:
        """`lagrange` for given coordinates of the nodes, one tensor for each k."""
        start, end = self.at(rows.start), self.at(rows.reached)
        use = usable(start, end, nodes)
        # all points at once, along a new first axis
        fraction, share = (torch.tensor(v, dtype=torch.float64) for v in (_FRACTIONS, _WEIGHTS))
        y = start + fraction.reshape(-1, *[1] * start.ndim) * (end - start)
        measure = share.reshape(-1, *[1] * start.ndim) * (end - start) * self.kernel(y, rows.reached)
        weights = []
        for k, node in enumerate(nodes):
            basis = (y - start) / (node - start)
            for j, other in enumerate(nodes):
                if j != k:
                    basis = basis * torch.where(use[j], (y - other) / (node - other), 1.0)
            weights.append(torch.where(use[k], (measure * basis).sum(0), 0.0))
        return weights

    def midpoint(self, rows: Rows) -> list[Times]:
        """The published weight of one older estimate, ``w = total / (2 r)``, ``r = (y_1 - y_t) / (y_s - y_t)``.

        It takes the slope through the middle of the step: of second order, but not the integral of the straight line.
        """
        start, end, node = self.at(rows.start), self.at(rows.reached), rows.at(self.at(rows.times), 0)
        (use,) = usable(start, end, [node])
        return [torch.where(use, self.total(rows.start, rows.reached) * (end - start) / (2.0 * (node - start)), 0.0)]

    def table(self, rows: Rows, weights: Sequence[Times]) -> Table:
        """The first-order row plus ``sum_k w_k (m_k - m_0)``, where ``eps_k = (x_k - alpha_k x0_hat_k) / sigma_k``."""
        a, b, c = self.first_order(rows.start, rows.reached)
        alpha, sigma = self.schedule.alpha(rows.times), self.schedule.sigma(rows.times)
        own, base = torch.arange(len(a)), rows.back(rows.base)
        back = [torch.where(node < 0, 0, rows.back(node)) for node in rows.nodes.unbind(1)]
        width = 1 + max([len(back), int(base.max()), *(int(k.max()) for k in back)])
        x, estimate = (torch.zeros(len(a), width, *a.shape[1:], dtype=torch.float64) for _ in range(2))
        x[own, base] = a
        estimate[own, base] = b
        for k, w in zip(back, weights, strict=True):
            for rows_back, weight in ((k, w), (base, -w)):
                if self.of == "data":
                    estimate[own, rows_back] += weight
                else:
                    x[own, rows_back] += weight / sigma[own - rows_back]
                    estimate[own, rows_back] -= weight * alpha[own - rows_back] / sigma[own - rows_back]
        used = 1 + int(base.max()) if self.of == "data" else width
        return replace(single_step(rows.times, rows.reached, x[:, :used], estimate, c), ends_step=rows.ends_step)

    def staged(self, grid: Grid, order: int, memory: int) -> Rows:
        """One row a step, but the first step of finite length in stages, so that the whole is of order 3 or 4.

        A multistep solver of order p that starts with a first-order step is of order 2 however large p is: that one
        step leaves an error ``h^2``. Each stage here starts at ``y_t`` again, reaches the fraction ``c`` of the step
        and interpolates between its beginning and the stage before,

            order 3:  c = 1/2, 1                   (one evaluation more; the step's error is h^3)
            order 4:  c = c_2 / 2, c_2, 1          (two more; h^4),     c_2 = M_2 / M_1,

        with ``M_j`` the integral of ``kernel v^j`` over the step's fraction v: with that node a straight line
        integrates a parabola exactly (for a constant kernel c_2 = 2/3, Heun's third-order method). The rows after it
        remember ``memory`` estimates besides their own.
        """
        t, s = self.steps(grid)
        y = self.at(grid)
        finite = (y[:-1].isfinite() & y[1:].isfinite()).nonzero()
        if order < 3 or len(finite) == 0:
            return rows_of(t, s, memory + 1)
        first = int(finite[0])
        fractions = [0.5] if order == 3 else [0.5 * self._radau(y[first], y[first + 1], s[first])]
        if order > 3:
            fractions.append(2.0 * fractions[0])
        stages = self.time_of(y[first] + torch.tensor(fractions, dtype=torch.float64) * (y[first + 1] - y[first]))
        last = first + len(stages)
        times, reached = torch.cat([t[: first + 1], stages, t[first + 1 :]]), torch.cat([s[:first], stages, s[first:]])
        base, nodes = list(range(len(times))), []
        # the last stage's estimate is off by h^3: good enough to be remembered at order 4, not needed at order 3
        history: list[int] = []
        for i in range(len(times)):
            if first < i <= last:
                base[i] = first
                nodes.append([i])
            else:
                nodes.append(history[: -memory - 1 : -1])
            if i <= first or i > last or (i == last and order > 3):
                history.append(i)
        padded = [[*row, *[-1] * (memory - len(row))] for row in nodes]
        ends_step = torch.tensor([not first <= i < last for i in range(len(times))])
        return Rows(times, reached, torch.tensor(base), torch.tensor(padded), ends_step)

    def _radau(self, start: Tensor, end: Tensor, s: Tensor) -> float:
        """``c_2 = M_2 / M_1``: the node beside the start that makes a straight line exact to the second degree."""
        fraction, share = (torch.tensor(v, dtype=torch.float64) for v in (_FRACTIONS, _WEIGHTS))
        kernel = share * self.kernel(start + fraction * (end - start), s)
        return float((kernel * fraction**2).sum() / (kernel * fraction).sum())


def usable(start: Times, end: Times, nodes: Sequence[Times]) -> list[Tensor]:
    """Which nodes a polynomial over the step from ``start`` to ``end`` can use.

    None, where the step has infinite length or none. Else those that are there, finite, and not at a place that the
    start or a node before them in the list has: a token that stood still has several estimates at one time.
    """
    possible = start.isfinite() & end.isfinite() & (start != end)
    use: list[Tensor] = []
    for k, node in enumerate(nodes):
        new = possible & node.isfinite() & (node != start)
        for j in range(k):
            new = new & ~(use[j] & (nodes[j] == node))
        use.append(new)
    return use


def check_warm_up(solver: str, warm_up: str) -> None:
    """Refuse what is not a `WarmUp`."""
    if warm_up not in ("staged", "published"):
        raise WorkbenchError(f"{solver}: got warm_up={warm_up!r}; expected staged or published.")
