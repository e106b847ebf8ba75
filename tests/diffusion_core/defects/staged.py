"""Defects of staged and jumping solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_core.schedule import Linear, Schedule
from diffusion_core.solvers import (
    Solver,
    Table,
    dpm_solver_3s,
    dpm_solver_pp_3s,
    edm,
    langevin,
    renoise,
    staged,
)
from diffusion_core.solvers.table import joined
from tests.diffusion_core.test_solvers import check_folded, check_order
from tests.diffusion_core.test_solvers_jumps import check_no_memory_across_jumps, check_renoise, check_stationary
from tests.diffusion_core.test_solvers_staged import check_churn, check_dpm_solver_3

Patch = pytest.MonkeyPatch


def third_order_term_halved(patch: Patch) -> None:
    right = staged._phi
    patch.setattr(staged, "_phi", lambda y: 0.5 * right(y))


def phi_without_its_one(patch: Patch) -> None:
    patch.setattr(staged, "_phi", lambda y: torch.expm1(y) / y)


def churn_without_its_root(schedule: Schedule, grid: Tensor, **settings: float) -> Table:
    table = edm(schedule, grid, **settings)
    return replace(table, noise=table.noise**2)


def noise_scale_ignored(schedule: Schedule, grid: Tensor, **settings: float) -> Table:
    return edm(schedule, grid, **(settings | {"noise_scale": 1.0}))


def churn_everywhere(schedule: Schedule, grid: Tensor, **settings: float) -> Table:
    return edm(schedule, grid, churn=settings["churn"], noise_scale=settings["noise_scale"])


def jump_with_the_whole_variance(schedule: Schedule, low: float, high: float) -> Table:
    return replace(renoise(schedule, low, high), noise=schedule.sigma(torch.tensor([high], dtype=torch.float64)))


def jump_without_shrinking(schedule: Schedule, low: float, high: float) -> Table:
    table = renoise(schedule, low, high)
    return replace(table, x=torch.ones_like(table.x))


def langevin_without_root_two(schedule: Schedule, t: float, n: int, step: float) -> Table:
    table = langevin(schedule, t, n, step)
    return replace(table, noise=table.noise / math.sqrt(2.0))


def memory_across_jumps(solver: Solver, schedule: Schedule, grid: Tensor, jump: int, resamplings: int) -> Table:
    """The rows of one long table cut where the jumps are, not a table for each block."""
    whole, tables = solver(schedule, grid), []
    for i in range(0, len(grid) - 1, jump):
        rows = {
            name: getattr(whole, name)[i : i + jump]
            for name in ("times", "reached", "x", "estimate", "noise", "ends_step", "evaluates")
        }
        block = Table(**rows)
        tables += [block, renoise(schedule, float(grid[i + jump]), float(grid[i])), block]
    return joined(*tables)


def folded_without_its_sample(table: Table, c_x: Tensor, c_p: Tensor) -> Table:
    """The prediction is scaled and what belongs to the sample forgotten."""
    return table.folded(torch.zeros_like(c_x), c_p.clone())


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "3S: last term halved, order": (third_order_term_halved, lambda: check_order(dpm_solver_3s, Linear(), 3.0)),
    "3S: last term halved, paper": (third_order_term_halved, lambda: check_dpm_solver_3(dpm_solver_3s)),
    "++3S: last term halved": (third_order_term_halved, lambda: check_order(dpm_solver_pp_3s, Linear(), 3.0)),
    "3S: phi without its 1": (phi_without_its_one, lambda: check_order(dpm_solver_3s, Linear(), 3.0)),
    "churn: variance for deviation": (none, lambda: check_churn(churn_without_its_root)),
    "churn: noise scale ignored": (none, lambda: check_churn(noise_scale_ignored)),
    "churn: limits ignored": (none, lambda: check_churn(churn_everywhere)),
    "jump: the whole variance": (none, lambda: check_renoise(jump_with_the_whole_variance)),
    "jump: signal kept": (none, lambda: check_renoise(jump_without_shrinking)),
    "jump: memory crosses it": (none, lambda: check_no_memory_across_jumps(memory_across_jumps)),
    "folded: the sample's part forgotten": (none, lambda: check_folded(folded_without_its_sample)),
    "Langevin: no root of two": (none, lambda: check_stationary(langevin_without_root_two)),
}
