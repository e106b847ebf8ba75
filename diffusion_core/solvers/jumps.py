"""Tables that go back to more noise and solve again: Restart and RePaint.

A jump from s back to t > s is one draw of ``q(x_t | x_s)``: a row with noise and without an estimate. What comes after
it starts afresh; no solver reads what it saw before a jump.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid, check_grid, log_snr_uniform
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule
from diffusion_core.solvers.table import Solver, Table, joined


def renoise(schedule: Schedule, low: float, high: float) -> Table:
    """One row from time ``low`` back to ``high``, a draw of ``q(x_high | x_low)``; see `Gaussian.forward`.

    Raises:
        WorkbenchError: ``high`` is not above ``low``.
    """
    if not 0.0 <= low < high <= 1.0:
        raise WorkbenchError(f"renoise: got low={low}, high={high}; expected 0 <= low < high <= 1.")
    s, t = (torch.tensor([v], dtype=torch.float64) for v in (low, high))
    scale, variance = Gaussian(schedule).forward(t, s)
    no = torch.zeros(1, dtype=torch.bool)
    return Table(s, t, scale[:, None], torch.zeros(1, 1, dtype=torch.float64), variance.sqrt(), no, no)


def restart(
    solver: Solver,
    schedule: Schedule,
    grid: Grid,
    low: float = 0.05,
    high: float = 0.4,
    repeats: int = 2,
    steps: int = 4,
) -> Table:
    """Restart sampling: where ``grid`` has come down to ``low``, ``repeats`` times back to ``high`` and down again.

    The noise contracts the errors made before; the deterministic ``solver`` makes few new ones.

    Args:
        solver: of the whole grid and of the repeats.
        grid: falling, from above ``low`` to below it; ``low`` is added to it.
        low, high: the interval, as times.
        repeats: K, how often.
        steps: of each repeat, equally spaced in log-SNR.

    Raises:
        WorkbenchError: the grid does not cross ``low``, or there is nothing to repeat.

    Source: Xu et al. 2023, algorithm 1 (arXiv 2306.14878).
    """
    _falls(grid, "restart")
    if repeats < 1 or steps < 1 or not 0.0 < low < high <= 1.0 or not float(grid[-1]) <= low < float(grid[0]):
        raise WorkbenchError(
            f"restart: got low={low}, high={high}, repeats={repeats}, steps={steps} on a grid from "
            f"{float(grid[0]):.4g} to {float(grid[-1]):.4g}; expected 0 < low < high <= 1 with low on its way, "
            "repeats >= 1 and steps >= 1."
        )
    at = torch.tensor([low], dtype=torch.float64)
    down = torch.cat([grid[grid > low], at])
    again = log_snr_uniform(schedule, steps + 1, start=high, end=low)[:-1]
    rest = torch.cat([at, grid[grid < low]])
    tables = [solver(schedule, down)]
    for _ in range(repeats):
        tables += [renoise(schedule, low, high), solver(schedule, again)]
    return joined(*tables, *([solver(schedule, rest)] if len(rest) > 1 else []))


def repaint(solver: Solver, schedule: Schedule, grid: Grid, jump: int = 10, resamplings: int = 10) -> Table:
    """RePaint's order of steps: every ``jump`` steps of ``grid`` are done ``resamplings`` times, noised in between.

    To be used with a factor `Known`: going back and forth lets the unknown part agree with the known one. With one
    resampling it is the solver itself.

    Raises:
        WorkbenchError: a rising grid, or numbers below 1.

    Source: Lugmayr et al. 2022, section 4.2 (arXiv 2201.09865). Their code counts the blocks from the data, does the
    noisiest once, and never starts a jump from clean data; ours counts from the noise and treats all blocks alike.
    """
    _falls(grid, "repaint")
    if jump < 1 or resamplings < 1:
        raise WorkbenchError(f"repaint: got jump={jump}, resamplings={resamplings}; expected at least 1 of both.")
    tables: list[Table] = []
    for i in range(0, len(grid) - 1, jump):
        block = grid[i : i + jump + 1]
        once = solver(schedule, block)
        tables.append(once)
        for _ in range(resamplings - 1):
            tables += [renoise(schedule, float(block[-1]), float(block[0])), once]
    return joined(*tables)


def _falls(grid: Tensor, name: str) -> None:
    check_grid(grid)
    if grid.ndim > 1 or bool(grid[-1] > grid[0]):
        raise WorkbenchError(
            f"{name}: got a grid of shape {tuple(grid.shape)} from {float(grid[0].max()):.4g}; expected one falling "
            "time for all samples: an inversion has no jumps."
        )
