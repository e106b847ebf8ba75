"""Time grids: at which times a solver evaluates the model.

A grid is a float64 tensor of strictly falling times ``(n + 1,)``: n steps from ``grid[0]`` (noise) to
``grid[-1]`` (data). Its endpoints are data, not flags: to end at a clean sample the last entry is 0; to
start in the middle (warm start, SDEdit) slice it; to invert a solver reverse it. A grid with more axes gives every
sample or token its own times; one may stand still for a while, if none turns.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Schedule, Times

Grid = Float64[Tensor, "n_plus_1 *extra"]


def uniform(n: int, start: float = 1.0, end: float = 0.0) -> Grid:
    """``n`` steps equally spaced in time."""
    _check(n, start, end)
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def karras(schedule: Schedule, n: int, start: float = 1.0, end: float = 0.002, rho: float = 7.0) -> Grid:
    """``n`` steps, equally spaced in ``(sigma/alpha)^(1/rho)`` from ``start`` to ``end``, then to t = 0.

    Source: Karras et al. 2022, eq. 5 (arXiv 2206.00364).
    """
    _check(n, start, end)
    if not end > 0.0:
        raise WorkbenchError(f"karras grid: got end={end}; expected a time > 0 (t = 0 is added as the last entry).")
    if n == 1:
        return torch.tensor([start, 0.0], dtype=torch.float64)
    ends = torch.tensor([start, end], dtype=torch.float64)
    noise_to_signal = torch.exp(-0.5 * schedule.log_snr(ends))
    if not torch.isfinite(noise_to_signal).all():
        raise WorkbenchError(
            f"karras grid: got start={start}, where the schedule {schedule} has no signal at all; "
            "expected a finite log-SNR: start a little below, for example at 0.99."
        )
    ramp = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    root = noise_to_signal ** (1.0 / rho)
    sigmas = (root[0] + ramp * (root[1] - root[0])) ** rho
    inner = schedule.t_of_log_snr(-2.0 * sigmas.log())
    return _from_inner(inner, start, end)


def log_snr_uniform(schedule: Schedule, n: int, start: float = 0.99, end: float = 0.001) -> Grid:
    """``n`` steps, equally spaced in log-SNR from ``start`` to ``end``, then to t = 0.

    Source: Lu et al. 2022, section 3.4 (arXiv 2206.00927).
    """
    _check(n, start, end)
    ends = schedule.log_snr(torch.tensor([start, end], dtype=torch.float64))
    if not torch.isfinite(ends).all():
        raise WorkbenchError(
            f"log-SNR grid: got start={start}, end={end}, where the log-SNR of {schedule} is {ends.tolist()}; "
            "expected finite values: move the endpoints inside (0, 1)."
        )
    if n == 1:
        return torch.tensor([start, 0.0], dtype=torch.float64)
    ramp = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    inner = schedule.t_of_log_snr(ends[0] + ramp * (ends[1] - ends[0]))
    return _from_inner(inner, start, end)


def trailing(n_train: int, n: int) -> Grid:
    """``n`` of the ``n_train`` steps of a discrete-time model, counted from the noise end, then t = 0.

    ``n = n_train`` is the model's own grid. Source: Lin et al. 2024, table 2 (arXiv 2305.08891).
    """
    _check_discrete(n_train, n)
    steps = torch.round(torch.arange(n, 0, -1, dtype=torch.float64) * (n_train / n))
    return torch.cat([steps / n_train, torch.zeros(1, dtype=torch.float64)])


def leading(n_train: int, n: int) -> Grid:
    """``n`` of the ``n_train`` steps of a discrete-time model, counted from the data end, then t = 0.

    Step 1 is the least noisy. Source: Song et al. 2021, section D.2 (arXiv 2010.02502).
    """
    _check_discrete(n_train, n)
    steps = torch.arange(n - 1, -1, -1, dtype=torch.float64) * (n_train // n) + 1.0
    return torch.cat([steps / n_train, torch.zeros(1, dtype=torch.float64)])


def check_grid(grid: Grid) -> None:
    """Refuse what no solver can use: fewer than two times, times outside [0, 1], turns; repeats of the only time.

    Raises:
        WorkbenchError: the grid is not strictly monotone inside [0, 1].
    """
    differences = grid.diff()
    if grid.ndim > 1:
        monotone = bool((differences <= 0).all() or (differences >= 0).all())
    else:
        monotone = bool((differences < 0).all() or (differences > 0).all())
    if grid.ndim < 1 or len(grid) < 2 or not monotone or grid.min() < 0.0 or grid.max() > 1.0:
        raise WorkbenchError(
            f"grid: got {[round(v, 6) for v in grid.flatten().tolist()][:12]}; expected at least two times in [0, 1], "
            "strictly falling (sampling) or strictly rising (inversion)."
        )


def _from_inner(inner: Times, start: float, end: float) -> Grid:
    # the way through log-SNR and back rounds: a start of 1 must not become 1 + 2e-16, outside the schedule
    inner[0], inner[-1] = start, end
    return torch.cat([inner, torch.zeros(1, dtype=torch.float64)])


def _check(n: int, start: float, end: float) -> None:
    if n < 1 or not 0.0 <= end < start <= 1.0:
        raise WorkbenchError(
            f"grid: got n={n}, start={start}, end={end}; expected n >= 1 steps and 0 <= end < start <= 1."
        )


def _check_discrete(n_train: int, n: int) -> None:
    if not 1 <= n <= n_train:
        raise WorkbenchError(
            f"grid: got steps={n} of a model trained on {n_train} steps; expected 1 <= steps <= {n_train}."
        )
