"""Time grids: at which times a solver evaluates the model.

A grid is a float64 tensor of strictly falling times ``(n + 1,)``: n steps from ``grid[0]`` (noise) to
``grid[-1]`` (data). Its endpoints are data, not flags: to end at a clean sample the last entry is 0; to
start in the middle (warm start, SDEdit) slice it; to invert a solver reverse it. A grid with more axes gives every
sample or token its own times; one may stand still for a while, if none turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Schedule, Times

Grid = Float64[Tensor, "n_plus_1 *extra"]


def uniform(n: int, start: float = 1.0, end: float = 0.0) -> Grid:
    """``n`` steps equally spaced in time.

    Args:
        n: number of steps.
        start, end: first and last time.

    Raises:
        WorkbenchError: not ``n >= 1`` and ``0 <= end < start <= 1``.
    """
    _check(n, start, end)
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def karras(
    schedule: Schedule,
    n: int,
    start: float = 1.0,
    end: float = 0.002,
    rho: float = 7.0,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
) -> Grid:
    """``n`` steps, equally spaced in ``(sigma/alpha)^(1/rho)`` between two noise levels, then to t = 0.

    Args:
        schedule: noise schedule.
        n: number of steps.
        start, end: *times* of the first and the last noise level.
        rho: 1 is uniform in sigma/alpha; larger puts more steps at low noise.
        sigma_max, sigma_min: the same two noise levels given as ``sigma/alpha``, in units of the data, as EDM gives
            them; each takes the place of its time.

    Raises:
        WorkbenchError: the schedule does not reach these levels, or has no signal at ``start``.

    Source: Karras et al. 2022, eq. 5 (arXiv 2206.00364).
    """
    start = start if sigma_max is None else _time_of(schedule, sigma_max)
    end = end if sigma_min is None else _time_of(schedule, sigma_min)
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
            "expected a finite log-SNR: start a little below, for example at 0.99, or give sigma_max."
        )
    ramp = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    root = noise_to_signal ** (1.0 / rho)
    sigmas = (root[0] + ramp * (root[1] - root[0])) ** rho
    inner = schedule.t_of_log_snr(-2.0 * sigmas.log())
    return _from_inner(inner, start, end)


def log_snr_uniform(schedule: Schedule, n: int, start: float = 0.99, end: float = 0.001) -> Grid:
    """``n`` steps, equally spaced in log-SNR from ``start`` to ``end``, then to t = 0.

    Args:
        schedule: noise schedule.
        n: number of steps.
        start, end: times of the first and the last noise level.

    Raises:
        WorkbenchError: the log-SNR is infinite at one of the two.

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


def beta(n: int, a: float = 0.6, b: float = 0.6, start: float = 1.0, end: float = 0.0) -> Grid:
    """``n`` steps between quantiles of a Beta distribution: ``t_i = end + (start - end) Q(1 - i / n)``.

    Below 1, ``a`` makes steps short near the data and ``b`` near the noise; a = b = 1 is `uniform`.

    Args:
        n: number of steps.
        a, b: of the distribution, in (0, 10].
        start, end: first and last time.

    Raises:
        WorkbenchError: a or b outside (0, 10], or impossible n, start, end.

    Source: Lee et al. 2024 (arXiv 2407.12173).
    """
    _check(n, start, end)
    if not (0.0 < a <= 10.0 and 0.0 < b <= 10.0):
        raise WorkbenchError(f"beta grid: got a={a}, b={b}; expected two numbers in (0, 10].")
    level = torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64)
    return end + (start - end) * _beta_quantile(level, a, b)


def shifted(grid: Times, factor: float) -> Times:
    """The times at which `RectifiedFlow` has ``factor`` times the noise-to-signal ratio it has on ``grid``.

        t' = factor t / (1 + (factor - 1) t)

    A function of the grid and of nothing else: applied twice it is a shift by ``factor^2``. Do not combine it with a
    schedule that is `schedule.Shifted` already, unless two shifts are meant.

    Args:
        grid: times of any shape.
        factor: > 1 spends more steps at high noise; 3 in Stable Diffusion 3.

    Raises:
        WorkbenchError: the factor is not a number > 0.

    Source: Esser et al. 2024, section 5.3.2 (arXiv 2403.03206).
    """
    if not 0.0 < factor < torch.inf:
        raise WorkbenchError(f"shifted grid: got factor={factor}; expected a finite number > 0.")
    return factor * grid / (1.0 + (factor - 1.0) * grid)


def of_steps(n_train: int, steps: Sequence[int]) -> Grid:
    """These of the ``n_train`` steps of a discrete-time model, then t = 0; step 1 is the least noisy.

    Args:
        n_train: steps the model was trained on.
        steps: strictly falling, in 1..n_train.

    Raises:
        WorkbenchError: a step that the model does not have, or an order that does not fall.
    """
    falls = all(later < earlier for earlier, later in pairwise(steps))
    if not steps or not falls or not 1 <= min(steps) <= max(steps) <= n_train:
        raise WorkbenchError(
            f"grid: got steps {list(steps)[:12]} of a model trained on {n_train}; expected strictly falling whole "
            f"numbers in 1..{n_train} (a list that counts from 0 needs 1 added)."
        )
    return torch.tensor([*steps, 0], dtype=torch.float64) / n_train


def trailing(n_train: int, n: int) -> Grid:
    """``n`` of the ``n_train`` steps of a discrete-time model, counted from the noise end, then t = 0.

    Args:
        n_train: steps the model was trained on; with ``n`` as many this is the model's own grid.
        n: number of steps.

    Raises:
        WorkbenchError: more steps than the model has.

    Source: Lin et al. 2024, table 2 (arXiv 2305.08891).
    """
    _check_discrete(n_train, n)
    return _of(n_train, torch.arange(n, 0, -1, dtype=torch.float64) * (n_train / n))


def leading(n_train: int, n: int) -> Grid:
    """``n`` of the ``n_train`` steps of a discrete-time model, counted from the data end, then t = 0.

    Args:
        n_train: steps the model was trained on; step 1 is the least noisy.
        n: number of steps.

    Raises:
        WorkbenchError: more steps than the model has.

    Source: Song et al. 2021, section D.2 (arXiv 2010.02502).
    """
    _check_discrete(n_train, n)
    return _of(n_train, torch.arange(n - 1, -1, -1, dtype=torch.float64) * (n_train // n) + 1.0)


def linspace(n_train: int, n: int) -> Grid:
    """``n`` of the ``n_train`` steps of a discrete-time model, equally spaced with both ends, then t = 0.

    One step is the noisiest (diffusers takes the least noisy).

    Args:
        n_train: steps the model was trained on.
        n: number of steps.

    Raises:
        WorkbenchError: more steps than the model has.

    Source: Lin et al. 2024, table 2, "linspace" (arXiv 2305.08891).
    """
    _check_discrete(n_train, n)
    # rounded from 0, as the published tables are: half-way cases go to the even number
    return _of(n_train, torch.linspace(n_train - 1, 0, n, dtype=torch.float64).round() + 1.0)


def check_grid(grid: Float64[Tensor, "n_plus_1 *extra"]) -> None:
    """Refuse what no solver can use.

    A grid (n + 1,) must rise or fall strictly. One of per-sample or per-token times (n + 1, *extra) may let some of
    them wait, so each column rises or falls or stays; but all in one direction, and every step moves at least one.

    Raises:
        WorkbenchError: fewer than two times, times outside [0, 1], a turn, or a step that moves nothing.
    """
    steps = grid.diff(dim=0).flatten(1) if grid.ndim > 1 else grid.diff()[:, None]
    moves = bool((steps != 0.0).any(1).all()) and bool((steps <= 0.0).all() or (steps >= 0.0).all())
    if len(grid) < 2 or not moves or grid.min() < 0.0 or grid.max() > 1.0:
        raise WorkbenchError(
            f"grid: got {[round(v, 6) for v in grid.flatten().tolist()][:12]}; expected at least two times in [0, 1], "
            "strictly falling (sampling) or strictly rising (inversion); with times for each sample or token, all in "
            "one direction and at least one of them moving in every step."
        )


def _of(n_train: int, steps: Times) -> Grid:
    return of_steps(n_train, steps.round().long().tolist())


def _time_of(schedule: Schedule, sigma: float) -> float:
    """The time at which ``sigma/alpha`` is ``sigma``, at most 1."""
    t = float(schedule.t_of_log_snr(-2.0 * torch.tensor(sigma, dtype=torch.float64).log()))
    if not (sigma > 0.0 and 0.0 <= t <= 1.0 + 1e-12):
        ends = torch.exp(-0.5 * schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))).tolist()
        raise WorkbenchError(
            f"karras grid: got a noise level sigma/alpha={sigma}, which {schedule} does not reach; expected one from "
            f"{ends[0]:.6g} to {ends[1]:.6g}."
        )
    return 1.0 if t > 1.0 - 1e-12 else t


def _beta_quantile(level: Times, a: float, b: float) -> Times:
    # B_x(a, b) = z sum_k (1 - b)_k / (k! (a + k)) x^k with z = x^a converges like 2^-k up to x = 1/2; beyond, the
    # distribution is read from its other end. Bisection in z and not in x: tiny quantiles keep their digits
    def lower(z: Times, p: float, q: float) -> Times:
        k = torch.arange(64, dtype=torch.float64)
        factors = torch.cat([torch.ones(1, dtype=torch.float64), ((k - q + 1.0) / (k + 1.0)).cumprod(0)[:-1]])
        return z * (factors / (p + k) * z[..., None] ** (k / p)).sum(-1)

    def inverse(target: Times, p: float, q: float) -> Times:
        low, high = torch.zeros_like(target), torch.full_like(target, 0.5**p)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = lower(middle, p, q) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (0.5 * (low + high)) ** (1.0 / p)

    half = torch.full_like(level, 0.5)
    below, above = lower(half**a, a, b), lower(half**b, b, a)
    total = below + above
    x = torch.where(level * total < below, inverse(level * total, a, b), 1.0 - inverse((1.0 - level) * total, b, a))
    return torch.where(level == 0.0, 0.0, torch.where(level == 1.0, 1.0, x))


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
