"""Defects of staged and jumping solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_core.predict import align
from diffusion_core.schedule import Linear, Schedule
from diffusion_core.solvers import (
    Learned,
    Solver,
    Table,
    annealed_langevin,
    consistency,
    corrected,
    ddim,
    dpm_solver_3s,
    dpm_solver_pp_3s,
    edm,
    langevin,
    renoise,
    restart,
    single,
    staged,
)
from diffusion_core.solvers.table import joined
from tests.diffusion_core.test_solvers import check_folded, check_order
from tests.diffusion_core.test_solvers_jumps import (
    check_annealed,
    check_corrected,
    check_no_memory_across_jumps,
    check_renoise,
    check_restart,
    check_stationary,
)
from tests.diffusion_core.test_solvers_staged import check_churn, check_dpm_solver_3, check_pp_3s
from tests.diffusion_core.test_token_grid import check_half_way, check_standing, check_tokens

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


def annealed_with_twice_the_step(schedule: Schedule, grid: Tensor, n: int, step: float) -> Table:
    """The paper's alpha_i taken for its half, the step of the score."""
    return annealed_langevin(schedule, grid, n, 2.0 * step)


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


def restart_with_standard_noise(solver: Solver, schedule: Schedule, grid: Tensor, **interval: float) -> Table:
    """The noise between two levels as the difference of the levels, not of their squares."""
    table = restart(solver, schedule, grid, **interval)
    difference = schedule.sigma(table.reached) - schedule.sigma(table.times)
    return replace(table, noise=torch.where(table.evaluates, table.noise, difference))


def corrected_memory_counts_every_row(table: Table, schedule: Schedule, n: int, step: float) -> Table:
    """The rows of the corrector put in and the solver's columns left as they were."""
    right = corrected(table, schedule, n, step)
    own = torch.isin(torch.arange(len(right.times)), own_rows(table, n))
    x, estimate = right.x.clone(), right.estimate.clone()
    x[own], estimate[own] = 0.0, 0.0
    x[own, : table.x.shape[1]], estimate[own, : table.estimate.shape[1]] = table.x, table.estimate
    return replace(right, x=x, estimate=estimate)


def own_rows(table: Table, n: int) -> Tensor:
    followed = (table.ends_step & (table.reached > 0.0)).long()
    return torch.arange(len(table.times)) + n * (followed.cumsum(0) - followed)


def corrected_inside_of_steps(table: Table, schedule: Schedule, n: int, step: float) -> Table:
    return corrected(replace(table, ends_step=torch.ones_like(table.ends_step)), schedule, n, step)


def standing_tokens_take_the_step(patch: Patch) -> None:
    """What the formula of a step gives where ``s = t``: for `consistency` a jump to the data and new noise."""

    def wrong(t: Tensor, s: Tensor, x: Tensor, estimate: Tensor, noise: Tensor) -> Table:
        return Table(t, s, x, estimate, noise, *[torch.ones(len(t), dtype=torch.bool)] * 2)

    patch.setattr(single, "single_step", wrong)


def one_time_for_all_tokens(schedule: Schedule, grid: Tensor) -> Table:
    return ddim(schedule, grid if grid.ndim == 1 else grid.mean(2, keepdim=True).expand_as(grid))


def variances_interpolated_without_logarithm(patch: Patch) -> None:
    def wrong(self: Table, like: Tensor) -> Callable[[Learned, int], Tensor] | None:
        if self.noise_large is None:
            return None
        small, large = ([align(c, like) for c in v.unbind()] for v in (self.noise, self.noise_large))
        return lambda estimate, i: torch.lerp(small[i].expand_as(estimate.fraction), large[i], estimate.fraction)

    patch.setattr(Table, "_deviation", wrong)


def folded_without_its_sample(table: Table, c_x: Tensor, c_p: Tensor) -> Table:
    """The prediction is scaled and what belongs to the sample forgotten."""
    return table.folded(torch.zeros_like(c_x), c_p.clone())


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "3S: last term halved, order": (third_order_term_halved, lambda: check_order(dpm_solver_3s, Linear(), 3.0)),
    "3S: last term halved, paper": (third_order_term_halved, lambda: check_dpm_solver_3(dpm_solver_3s)),
    "++3S: last term halved": (third_order_term_halved, lambda: check_order(dpm_solver_pp_3s, Linear(), 3.0)),
    "++3S: last term halved, integral": (third_order_term_halved, lambda: check_pp_3s(dpm_solver_pp_3s)),
    "3S: phi without its 1": (phi_without_its_one, lambda: check_order(dpm_solver_3s, Linear(), 3.0)),
    "churn: variance for deviation": (none, lambda: check_churn(churn_without_its_root)),
    "churn: noise scale ignored": (none, lambda: check_churn(noise_scale_ignored)),
    "churn: limits ignored": (none, lambda: check_churn(churn_everywhere)),
    "jump: the whole variance": (none, lambda: check_renoise(jump_with_the_whole_variance)),
    "jump: signal kept": (none, lambda: check_renoise(jump_without_shrinking)),
    "jump: memory crosses it": (none, lambda: check_no_memory_across_jumps(memory_across_jumps)),
    "Restart: difference of levels": (none, lambda: check_restart(restart_with_standard_noise)),
    "corrected: memory counts every row": (none, lambda: check_corrected(corrected_memory_counts_every_row)),
    "corrected: inside of steps": (none, lambda: check_corrected(corrected_inside_of_steps)),
    "tokens: one time for all": (none, lambda: check_tokens(one_time_for_all_tokens, Linear())),
    "tokens: standing ones take the step": (standing_tokens_take_the_step, lambda: check_standing(consistency)),
    "learned variance: no logarithm": (variances_interpolated_without_logarithm, check_half_way),
    "folded: the sample's part forgotten": (none, lambda: check_folded(folded_without_its_sample)),
    "annealed Langevin: twice the step": (none, lambda: check_annealed(annealed_with_twice_the_step)),
    "Langevin: no root of two": (none, lambda: check_stationary(langevin_without_root_two)),
}
