"""Noise schedules: how much signal and how much noise there is at each time.

A schedule is a pair of functions of time ``t`` in [0, 1] (0 is data, 1 is noise),

    x_t = alpha_t x0 + sigma_t eps,        log_snr(t) = log(alpha_t^2 / sigma_t^2),

together with their derivatives and the inverse of ``log_snr``. Everything is computed in float64: tables
are built once, in full precision, and only their entries meet float32 data.

A schedule knows nothing of steps. A choice of times is a grid (``diffusion_core.grid``), and what a solver
does between two of them is a table (``diffusion_core.solvers``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError

Times = Float64[Tensor, "..."]


class Schedule(ABC):
    """``t -> (alpha_t, sigma_t)`` with derivatives and an inverse in log-SNR.

    All methods map float64 tensors of any shape to float64 tensors of that shape.
    """

    @abstractmethod
    def alpha(self, t: Times) -> Times:
        """Signal scale ``alpha_t`` >= 0."""

    @abstractmethod
    def sigma(self, t: Times) -> Times:
        """Noise scale ``sigma_t`` >= 0."""

    @abstractmethod
    def d_alpha(self, t: Times) -> Times:
        """``d alpha_t / dt``."""

    @abstractmethod
    def d_sigma(self, t: Times) -> Times:
        """``d sigma_t / dt``."""

    @abstractmethod
    def t_of_log_snr(self, log_snr: Times) -> Times:
        """The time at which ``log_snr`` is reached; inverse of `log_snr`."""

    def log_snr(self, t: Times) -> Times:
        """``log(alpha_t^2 / sigma_t^2)``: +inf where there is no noise, -inf where there is no signal."""
        return 2.0 * (self.alpha(t).log() - self.sigma(t).log())


class VariancePreserving(Schedule):
    """Schedules with ``alpha^2 + sigma^2 = 1``, given by the integrated noise rate ``B(t)``.

    ``alpha_t^2 = exp(-B(t))`` and ``sigma_t^2 = 1 - exp(-B(t))`` with ``B(0) = 0`` and ``B' = beta >= 0``.

    Source: Song et al. 2021, eq. 11 and 29 (arXiv 2011.13456).
    """

    @abstractmethod
    def integrated_beta(self, t: Times) -> Times:
        """``B(t)``, the integral of ``beta`` from 0 to ``t``."""

    @abstractmethod
    def beta(self, t: Times) -> Times:
        """``dB/dt``."""

    @abstractmethod
    def t_of_integrated_beta(self, integrated_beta: Times) -> Times:
        """The inverse of `integrated_beta`."""

    def alpha(self, t: Times) -> Times:
        return torch.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: Times) -> Times:
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def d_alpha(self, t: Times) -> Times:
        return -0.5 * self.beta(t) * self.alpha(t)

    def d_sigma(self, t: Times) -> Times:
        return 0.5 * self.beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        # alpha^2 = sigmoid(log_snr), hence B = -log(alpha^2) = softplus(-log_snr)
        return self.t_of_integrated_beta(torch.nn.functional.softplus(-log_snr, threshold=700.0))


@dataclass(frozen=True)
class Linear(VariancePreserving):
    """``beta(t) = beta_min + t (beta_max - beta_min)``.

    The continuous limit of DDPM's linear betas (1e-4 .. 0.02 over 1000 steps is 0.1 .. 20).

    Args:
        beta_min: noise rate at the data end, per unit of time.
        beta_max: noise rate at the noise end, per unit of time.

    Source: Ho et al. 2020, section 4 (arXiv 2006.11239); Song et al. 2021, eq. 32 (arXiv 2011.13456).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min <= self.beta_max:
            raise WorkbenchError(
                f"Linear schedule: got beta_min={self.beta_min}, beta_max={self.beta_max}; "
                "expected 0 < beta_min <= beta_max."
            )

    def integrated_beta(self, t: Times) -> Times:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def beta(self, t: Times) -> Times:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def t_of_integrated_beta(self, integrated_beta: Times) -> Times:
        # the positive root of (d/2) t^2 + beta_min t - B = 0, in the form that does not cancel
        d = self.beta_max - self.beta_min
        return 2.0 * integrated_beta / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * d * integrated_beta))


@dataclass(frozen=True)
class Cosine(Schedule):
    """``alpha_t = cos(a_t) / cos(a_0)`` with the angle ``a_t = (pi/2) (t + offset) / (1 + offset)``.

    ``alpha_1 = 0``: at t = 1 nothing of the data is left (zero terminal SNR). A grid that must avoid this
    (epsilon prediction cannot start there) begins a little below 1.

    Source: Nichol & Dhariwal 2021, eq. 17 (arXiv 2102.09672).
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        if not 0.0 <= self.offset < 1.0:
            raise WorkbenchError(f"Cosine schedule: got offset={self.offset}; expected a number in [0, 1).")

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1.0 + self.offset)

    def _angle(self, t: Times) -> Times:
        return self._rate * (t + self.offset)

    @property
    def _cos_0(self) -> float:
        return math.cos(self._rate * self.offset)

    def alpha(self, t: Times) -> Times:
        # sin of the complement, so that alpha(1) is 0 and not 6e-17
        return torch.sin(self._rate * (1.0 - t)) / self._cos_0

    def sigma(self, t: Times) -> Times:
        # 1 - cos^2(a)/cos^2(a0) = sin(a - a0) sin(a + a0) / cos^2(a0): does not cancel near t = 0
        a, a_0 = self._angle(t), self._rate * self.offset
        return torch.sqrt(torch.sin(a - a_0) * torch.sin(a + a_0)) / self._cos_0

    def d_alpha(self, t: Times) -> Times:
        return -self._rate * torch.cos(self._rate * (1.0 - t)) / self._cos_0

    def d_sigma(self, t: Times) -> Times:
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        alpha = torch.sqrt(torch.sigmoid(log_snr))
        sigma = torch.sqrt(torch.sigmoid(-log_snr))
        # cos a = alpha cos a_0 loses digits near a = 0; sin a = sqrt(1 - alpha^2 cos^2 a_0) does not
        sin_a = torch.sqrt(sigma**2 + (alpha * math.sin(self._rate * self.offset)) ** 2)
        return torch.atan2(sin_a, alpha * self._cos_0) / self._rate - self.offset


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """``alpha_t = 1 - t``, ``sigma_t = t``: straight lines from data to noise.

    Source: Liu et al. 2023, eq. 1 (arXiv 2209.03003); Lipman et al. 2023, eq. 20 (arXiv 2210.02747). Their
    time runs from noise to data; ours, as everywhere in the project, from data to noise.
    """

    def alpha(self, t: Times) -> Times:
        return 1.0 - t

    def sigma(self, t: Times) -> Times:
        return t.clone()

    def d_alpha(self, t: Times) -> Times:
        return -torch.ones_like(t)

    def d_sigma(self, t: Times) -> Times:
        return torch.ones_like(t)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        return torch.sigmoid(-0.5 * log_snr)


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """``alpha_t = 1``, ``sigma_t = sigma_max t``: EDM's schedule, in which time *is* the noise level.

    Args:
        sigma_max: noise scale at t = 1, in units of the data.

    Source: Karras et al. 2022, table 1, column "Ours" (arXiv 2206.00364), with time scaled to [0, 1].
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not self.sigma_max > 0.0:
            raise WorkbenchError(f"VarianceExploding: got sigma_max={self.sigma_max}; expected a number > 0.")

    def alpha(self, t: Times) -> Times:
        return torch.ones_like(t)

    def sigma(self, t: Times) -> Times:
        return self.sigma_max * t

    def d_alpha(self, t: Times) -> Times:
        return torch.zeros_like(t)

    def d_sigma(self, t: Times) -> Times:
        return torch.full_like(t, self.sigma_max)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        return torch.exp(-0.5 * log_snr) / self.sigma_max


@dataclass(frozen=True)
class DiscreteBetas(VariancePreserving):
    """A table of ``betas`` of a discrete-time model, made continuous.

    Step i (1..n) of the table sits at ``t = i / n``, where ``alpha_t^2 = prod_{j <= i} (1 - beta_j)`` holds
    exactly; in between ``beta`` is constant, so ``B(t) = -log alpha_t^2`` is piecewise linear and the
    derivative and the inverse are exact. A grid made of the model's own steps is `grid.trailing`.

    Source: Ho et al. 2020, eq. 4 (arXiv 2006.11239).
    """

    betas: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        wrong = [(i, b) for i, b in enumerate(self.betas) if not 0.0 < b < 1.0]
        if wrong or not self.betas:
            got = f"betas[{wrong[0][0]}]={wrong[0][1]}" if wrong else "no betas"
            raise WorkbenchError(
                f"DiscreteBetas: got {got}; expected at least one number, each in (0, 1) "
                "(for a zero-terminal-SNR model use the Cosine or RectifiedFlow schedule)."
            )

    @cached_property
    def _steps(self) -> Float64[Tensor, " n"]:
        return -torch.log1p(-torch.tensor(self.betas, dtype=torch.float64))

    @cached_property
    def _knots(self) -> Float64[Tensor, " n_plus_1"]:
        return torch.cat([torch.zeros(1, dtype=torch.float64), self._steps.cumsum(0)])

    def _segment(self, position: Times) -> Tensor:
        # a knot belongs to the segment it ends, although (i / n) n may round to a little more than i
        return (position - 1e-11).ceil().long().clamp(1, len(self.betas)) - 1

    def integrated_beta(self, t: Times) -> Times:
        position = t * len(self.betas)
        i = self._segment(position)
        return self._knots.to(t.device)[i] + (position - i) * self._steps.to(t.device)[i]

    def beta(self, t: Times) -> Times:
        n = len(self.betas)
        return self._steps.to(t.device)[self._segment(t * n)] * n

    def t_of_integrated_beta(self, integrated_beta: Times) -> Times:
        knots = self._knots.to(integrated_beta.device)
        i = torch.searchsorted(knots, integrated_beta.contiguous()).clamp(1, len(self.betas)) - 1
        return (i + (integrated_beta - knots[i]) / (knots[i + 1] - knots[i])) / len(self.betas)


def linear_betas(n: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteBetas:
    """DDPM's betas: ``n`` values from ``beta_start`` to ``beta_end``. Source: Ho et al. 2020, section 4."""
    return DiscreteBetas(tuple(torch.linspace(beta_start, beta_end, n, dtype=torch.float64).tolist()))


def cosine_betas(n: int = 100, beta_max: float = 0.999, offset: float = 0.008) -> DiscreteBetas:
    """Improved DDPM's cosine betas, ``beta_i = min(1 - alpha_i^2 / alpha_{i-1}^2, beta_max)``.

    This is the ``squaredcos_cap_v2`` of diffusers and of diffusion_policy (n = 100, beta_max = 0.999).

    Source: Nichol & Dhariwal 2021, section 3.2 (arXiv 2102.09672).
    """
    alpha_squared = Cosine(offset).alpha(torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)) ** 2
    return DiscreteBetas(tuple((1.0 - alpha_squared[1:] / alpha_squared[:-1]).clamp(max=beta_max).tolist()))
