"""Schedules made of schedules: zero terminal SNR, a shift of the SNR, a part of the range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule.definition import Schedule, Times

_PROBES = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)


def _power(schedule: Schedule) -> int:
    """The p with ``alpha^p + sigma^p = 1``: 2 preserves variance, 1 is a flow; 0 stands for ``alpha = 1``."""
    alpha, sigma = schedule.alpha(_PROBES), schedule.sigma(_PROBES)
    for p, total in ((0, alpha), (1, alpha + sigma), (2, alpha**2 + sigma**2)):
        if float((total - 1.0).detach().abs().max()) < 1e-9:
            return p
    return -1


@dataclass(frozen=True)
class ZeroTerminal(Schedule):
    """A variance-preserving schedule whose signal is shifted and scaled so that none is left at t = 1.

        alpha'_t = (alpha_t - alpha_1) / (1 - alpha_1),    sigma'_t^2 = 1 - alpha'_t^2

    Lin et al. keep alpha at a table's first step, we at t = 0, where it is 1; for `betas.scaled_linear_betas` alpha
    then differs from their table's by a factor of 1 + 3e-5, for `betas.linear_betas` of 1 + 3e-7.

    Args:
        schedule: with ``alpha^2 + sigma^2 = 1``, no noise at t = 0, and some signal left at t = 1.

    Source: Lin et al. 2024, algorithm 1 (arXiv 2305.08891).
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        ends = self.schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
        if _power(self.schedule) != 2 or abs(float(ends[0]) - 1.0) > 1e-12 or not float(ends[1]) > 0.0:
            raise WorkbenchError(
                f"ZeroTerminal: got {self.schedule} with alpha from {float(ends[0]):.6g} to {float(ends[1]):.6g}; "
                "expected alpha^2 + sigma^2 = 1, alpha = 1 at t = 0 and > 0 at t = 1 (else there is nothing to do)."
            )

    @property
    def _last(self) -> float:
        return float(self.schedule.alpha(torch.ones((), dtype=torch.float64)))

    def alpha(self, t: Times) -> Times:
        return (self.schedule.alpha(t) - self._last) / (1.0 - self._last)

    def sigma(self, t: Times) -> Times:
        # 1 - alpha' = (1 - alpha) / (1 - alpha_1), and 1 - alpha = sigma^2 / (1 + alpha) keeps its digits near t = 0
        missing = self.schedule.sigma(t) ** 2 / (1.0 + self.schedule.alpha(t)) / (1.0 - self._last)
        return torch.sqrt(missing * (1.0 + self.alpha(t)))

    def d_alpha(self, t: Times) -> Times:
        return self.schedule.d_alpha(t) / (1.0 - self._last)

    def d_sigma(self, t: Times) -> Times:
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        alpha, variance = torch.sqrt(torch.sigmoid(log_snr)), torch.sigmoid(-log_snr)
        # both of the schedule's own: alpha by the definition backwards, sigma^2 = 1 - alpha^2 without cancelling
        own = self._last + (1.0 - self._last) * alpha
        missing = variance / (1.0 + alpha) * (1.0 - self._last)
        return self.schedule.t_of_log_snr(2.0 * own.log() - (missing * (1.0 + own)).log())


@dataclass(frozen=True)
class Shifted(Schedule):
    """A schedule with ``factor`` times the noise-to-signal ratio: ``log_snr'(t) = log_snr(t) - 2 log(factor)``.

    Of all (alpha, sigma) with that ratio it has those that lie on the schedule's own curve, so that its family is kept:

        alpha^p + sigma^p = 1:  alpha' = alpha / N, sigma' = factor sigma / N, N^p = alpha^p + (factor sigma)^p
        alpha = 1:              alpha' = 1,         sigma' = factor sigma

    with p = 2 where variance is preserved and p = 1 for a flow, for which this is `RectifiedFlow` at the time
    ``factor t / (1 + (factor - 1) t)``. A shift of a shift is a shift by the product of the factors; `grid.shifted`
    moves the times of a grid instead, and is never applied by itself.

    Images of ``size`` pixels a side have the noise of ``base`` pixels with ``factor = size / base``.

    Args:
        schedule: of one of the three families.
        factor: > 1 is noisier.

    Source: Hoogeboom et al. 2023, section 3.1 (arXiv 2301.11093); for flows Esser et al. 2024, section 5.3.2
    (arXiv 2403.03206).
    """

    schedule: Schedule
    factor: float

    def __post_init__(self) -> None:
        if not 0.0 < self.factor < math.inf:
            raise WorkbenchError(f"Shifted: got factor={self.factor}; expected a finite number > 0.")
        if _power(self.schedule) < 0:
            raise WorkbenchError(
                f"Shifted: got {self.schedule}; expected alpha^2 + sigma^2 = 1, alpha + sigma = 1 or alpha = 1."
            )

    def _norm(self, t: Times) -> Times:
        p = _power(self.schedule)
        alpha = self.schedule.alpha(t)
        return alpha if p == 0 else (alpha**p + (self.factor * self.schedule.sigma(t)) ** p) ** (1.0 / p)

    def alpha(self, t: Times) -> Times:
        return self.schedule.alpha(t) / self._norm(t)

    def sigma(self, t: Times) -> Times:
        return self.factor * self.schedule.sigma(t) / self._norm(t)

    # alpha^(p-1) d_alpha = -sigma^(p-1) d_sigma along the curve turns the quotient rule into these

    def d_alpha(self, t: Times) -> Times:
        p = _power(self.schedule)
        return self.factor**p * self.schedule.d_alpha(t) / self._norm(t) ** (p + 1)

    def d_sigma(self, t: Times) -> Times:
        return self.factor * self.schedule.d_sigma(t) / self._norm(t) ** (_power(self.schedule) + 1)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        return self.schedule.t_of_log_snr(log_snr + 2.0 * math.log(self.factor))


@dataclass(frozen=True)
class Range(Schedule):
    """The part of a schedule between two of its times, as a schedule: ``t`` is its ``(1 - t) t_min + t t_max``.

    Args:
        schedule: the whole.
        t_min, t_max: its times that become 0 and 1. At 0 there is then noise, unless ``t_min`` = 0.
    """

    schedule: Schedule
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.t_min < self.t_max <= 1.0:
            raise WorkbenchError(
                f"Range: got t_min={self.t_min}, t_max={self.t_max}; expected 0 <= t_min < t_max <= 1."
            )

    def _own(self, t: Times) -> Times:
        # t_min + t (t_max - t_min) may round past t_max, outside the schedule
        return (1.0 - t) * self.t_min + t * self.t_max

    def alpha(self, t: Times) -> Times:
        return self.schedule.alpha(self._own(t))

    def sigma(self, t: Times) -> Times:
        return self.schedule.sigma(self._own(t))

    def d_alpha(self, t: Times) -> Times:
        return (self.t_max - self.t_min) * self.schedule.d_alpha(self._own(t))

    def d_sigma(self, t: Times) -> Times:
        return (self.t_max - self.t_min) * self.schedule.d_sigma(self._own(t))

    def t_of_log_snr(self, log_snr: Times) -> Times:
        return (self.schedule.t_of_log_snr(log_snr) - self.t_min) / (self.t_max - self.t_min)
