"""Defects of published multistep solvers, and the checks that see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_core.schedule import Cosine, Linear, Schedule
from diffusion_core.solvers import Solver, Table, adams, dpm_solver_pp_2m, dpm_solver_pp_3m, sa_solver, unipc
from diffusion_core.solvers.adams import Integral, Rows, rows_of
from tests.diffusion_core.test_solvers_multistep import (
    PUBLISHED,
    check_3m_taylor,
    check_corrector_order,
    check_data_weights,
    check_global_order,
    check_local_order,
    check_point,
    check_unipc_paper,
    check_weak_order,
)

Patch = pytest.MonkeyPatch


def third_order(second_difference: float = 1.0, half: float = 0.5, tau: float = 0.0) -> Solver:
    """The third-order step as the published codes write it, with differences ``D_1`` and ``D_2``.

    ``second_difference=1`` and ``half=0.5`` are right; 0.5 and -0.5 are what was published.
    """

    def solver(schedule: Schedule, grid: Tensor) -> Table:
        integral = Integral(schedule, "data", tau=tau)
        rows = rows_of(grid[:-1], grid[1:], 3)
        y = integral.at(rows.times)
        h = integral.at(rows.reached) - y
        r_0 = (y - rows.at(y, 0)) / h
        r_1 = (rows.at(y, 0) - rows.at(y, 1)) / h
        rate = (1.0 + tau**2) * h
        of_d_1 = schedule.alpha(rows.reached) * (rate + torch.expm1(-rate)) / rate
        bracket = -(rate + torch.expm1(-rate)) / rate**2 + half
        of_d_2 = schedule.alpha(rows.reached) * 2.0 * second_difference * bracket
        # D_1 = first + r_0 bend, D_2 = bend, bend = (first - second) / (r_0 + r_1)
        of_bend = (of_d_1 * r_0 + of_d_2) / (r_0 + r_1)
        of_first, of_second = of_d_1 + of_bend, -of_bend
        exact = integral.lagrange(rows)
        weights = [-of_first / r_0 + of_second / r_1, -of_second / r_1]
        full = rows.nodes[:, 1] >= 0
        return integral.table(rows, [torch.where(full, w, v) for w, v in zip(weights, exact, strict=True)])

    return solver


def wrong_norm(schedule: Schedule, grid: Tensor) -> Table:
    """Second order with ``alpha_s^2 + sigma_t^2`` where the step's end has ``alpha_s^2 + sigma_s^2``."""
    table = dpm_solver_pp_2m(schedule, grid)
    t, s = table.times, table.reached
    norm = (schedule.alpha(s) ** 2 + schedule.sigma(t) ** 2) / (schedule.alpha(s) ** 2 + schedule.sigma(s) ** 2)
    return replace(table, estimate=table.estimate * norm.sqrt()[:, None])


def correction_from(edit: Callable[[Tensor], Tensor]) -> Callable[..., Table]:
    """SA-Solver whose folded correction (the difference to the uncorrected table) is edited."""

    def solver(schedule: Schedule, grid: Tensor, order: int, tau: float, corrector: bool) -> Table:
        plain = sa_solver(schedule, grid, order, tau, corrector=False)
        if not corrector:
            return plain
        table = sa_solver(schedule, grid, order, tau)
        own = torch.cat([plain.estimate, torch.zeros(len(plain.times), 1, dtype=torch.float64)], 1)
        return replace(table, estimate=own + edit(table.estimate - own))

    return solver


def quadrature_of_two_points(patch: Patch) -> None:
    patch.setattr(adams, "_FRACTIONS", [0.5 - 12.0**-0.5, 0.5 + 12.0**-0.5])
    patch.setattr(adams, "_WEIGHTS", [0.5, 0.5])


def stages_of_first_order(patch: Patch) -> None:
    """The stages of a start forget the stage before them."""
    right = Integral.lagrange

    def wrong(self: Integral, rows: Rows) -> list[Tensor]:
        weights = right(self, rows)
        stage = rows.base != torch.arange(len(rows.base))
        return [torch.where(stage, 0.0, w) for w in weights]

    patch.setattr(Integral, "lagrange", wrong)


def kernel_without_noise(patch: Patch) -> None:
    """The kernel of the flow under the integral of a process with noise."""
    right = Integral.kernel
    patch.setattr(Integral, "kernel", lambda self, y, s: right(replace(self, tau=0.0), y, s))


def used_twice(patch: Patch) -> None:
    """Every older estimate counts as usable, wherever it is."""
    patch.setattr(adams, "usable", lambda start, end, nodes: [torch.ones_like(start, dtype=torch.bool) for _ in nodes])


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


def point(solver: Solver) -> None:
    """`check_point` as an assertion, where a table of infinities is refused."""
    try:
        check_point(solver, Cosine(), torch.linspace(1.0, 0.0, 9, dtype=torch.float64))
    except Exception as error:
        raise AssertionError(str(error)) from error


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "3M: half of the second difference, one step": (none, lambda: check_local_order(third_order(0.5), Linear(), 3)),
    "3M: half of the second difference, Taylor": (none, lambda: check_3m_taylor(third_order(0.5))),
    "3M SDE: half of the second difference": (
        none,
        lambda: check_local_order(third_order(0.5, tau=1.0), Linear(), 3, 1.0),
    ),
    "3M SDE: -1/2 for +1/2": (
        none,
        lambda: check_local_order(third_order(1.0, -0.5, tau=1.0), Linear(), 3, 1.0),
    ),
    "3M SDE: -1/2 for +1/2 and half of the second difference": (
        none,
        lambda: check_local_order(third_order(0.5, -0.5, tau=1.0), Linear(), 3, 1.0),
    ),
    "3M SDE: -1/2 for +1/2, in the variance": (
        none,
        lambda: check_weak_order(third_order(1.0, -0.5, tau=1.0), Linear(), 2.0),
    ),
    "Adams: alpha_s^2 + sigma_t^2": (none, lambda: check_global_order(wrong_norm, Linear(), 2.0)),
    "Adams: alpha_s^2 + sigma_t^2, one step": (none, lambda: check_local_order(wrong_norm, Linear(), 2)),
    "3M: a first-order start": (none, lambda: check_global_order(PUBLISHED["pp_3m"], Cosine(), 3.0)),
    "3M, noise prediction: a first-order start": (none, lambda: check_global_order(PUBLISHED["3m"], Cosine(), 3.0)),
    "LMS4: a first-order start": (none, lambda: check_global_order(PUBLISHED["lms4"], Cosine(), 4.0)),
    "UniPC3: a start of second order": (none, lambda: check_global_order(PUBLISHED["unipc3"], Cosine(), 4.0)),
    "stages of first order": (stages_of_first_order, lambda: check_global_order(dpm_solver_pp_3m, Cosine(), 3.0)),
    "corrector: not there": (
        none,
        lambda: check_corrector_order(correction_from(torch.zeros_like), Linear(), 2, 0.0),
    ),
    "corrector: of the wrong sign": (
        none,
        lambda: check_corrector_order(correction_from(torch.neg), Linear(), 3, 0.5),
    ),
    "corrector: a row late": (
        none,
        lambda: check_corrector_order(correction_from(lambda gain: gain.roll(1, 0)), Linear(), 2, 0.0),
    ),
    "UniPC: bh1 for bh2": (
        none,
        lambda: check_unipc_paper(lambda s, g, order, variant: unipc(s, g, order, "bh1"), 2, "bh2"),
    ),
    "weights: a quadrature of two points": (
        quadrature_of_two_points,
        lambda: check_data_weights(partial(sa_solver, order=3, tau=1.0, corrector=False), 1.0, 3.0),
    ),
    "noise: the kernel of the flow": (
        kernel_without_noise,
        lambda: check_local_order(partial(sa_solver, order=2, tau=1.0, corrector=False), Linear(), 2, 1.0),
    ),
    "a step from no signal: the memory used": (used_twice, lambda: point(dpm_solver_pp_3m)),
}
