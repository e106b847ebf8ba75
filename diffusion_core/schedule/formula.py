"""Schedules in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule.definition import Schedule, Times, VariancePreserving


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
        if self.offset == 0.0:  # the general line is 0 / 0 at t = 0
            return self._rate * torch.sin(self._rate * (1.0 - t))
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
class GeometricVarianceExploding(Schedule):
    """``alpha_t = 1``, ``sigma_t = sigma_min (sigma_max / sigma_min)^t``.

    The noise level at t = 0 is ``sigma_min``, not 0: data seen through it count as clean, and a grid that ends at
    t = 0 ends there.

    Args:
        sigma_min, sigma_max: noise scales at t = 0 and t = 1, in units of the data.

    Source: Song et al. 2021, section 3.4 and appendix C (arXiv 2011.13456).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max:
            raise WorkbenchError(
                f"GeometricVarianceExploding: got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}; "
                "expected 0 < sigma_min < sigma_max."
            )

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Times) -> Times:
        return torch.ones_like(t)

    def sigma(self, t: Times) -> Times:
        return self.sigma_min * torch.exp(self._rate * t)

    def d_alpha(self, t: Times) -> Times:
        return torch.zeros_like(t)

    def d_sigma(self, t: Times) -> Times:
        return self._rate * self.sigma(t)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._rate


@dataclass(frozen=True)
class SubVariancePreserving(Schedule):
    """``alpha_t = exp(-B(t) / 2)``, ``sigma_t = 1 - exp(-B(t))``, with the ``B`` of `Linear`.

    The variance stays below 1 for t in (0, 1); near t = 0 ``sigma`` grows like t and not like its root.

    Args:
        beta_min, beta_max: noise rates at the two ends, per unit of time.

    Source: Song et al. 2021, section 3.4 and appendix B (arXiv 2011.13456).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        self._preserving  # noqa: B018  its own check refuses impossible rates

    @property
    def _preserving(self) -> Linear:
        return Linear(self.beta_min, self.beta_max)

    def alpha(self, t: Times) -> Times:
        return self._preserving.alpha(t)

    def sigma(self, t: Times) -> Times:
        return -torch.expm1(-self._preserving.integrated_beta(t))

    def d_alpha(self, t: Times) -> Times:
        return self._preserving.d_alpha(t)

    def d_sigma(self, t: Times) -> Times:
        return self._preserving.beta(t) * torch.exp(-self._preserving.integrated_beta(t))

    def t_of_log_snr(self, log_snr: Times) -> Times:
        # ratio = alpha / (1 - alpha^2) is a quadratic equation in alpha, and in sigma; each loses digits at one end
        ratio = torch.exp(0.5 * log_snr)
        root = 1.0 + torch.sqrt(1.0 + 4.0 * ratio**2)
        by_alpha = -2.0 * (0.5 * log_snr + math.log(2.0) - root.log())
        by_sigma = -torch.log1p(-2.0 / root.clamp(min=2.5))
        return self._preserving.t_of_integrated_beta(torch.where(ratio < 1.0, by_alpha, by_sigma))


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """``alpha_t^2 = (S(1) - S(t)) / (S(1) - S(0))``, ``S(t) = sigmoid((start + t (end - start)) / tau)``.

    Variance preserving, with no signal left at t = 1.

    Args:
        start, end: the part of the sigmoid that is used.
        tau: its temperature; smaller is steeper.

    Source: Jabri et al. 2022 (arXiv 2212.11972); Chen 2023, algorithm 1 (arXiv 2301.10972), without its lower
    bound of 1e-9 on ``alpha^2``.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        # beyond, cosh overflows
        if not (self.tau > 0.0 and -600.0 * self.tau < self.start < self.end < 600.0 * self.tau):
            raise WorkbenchError(
                f"Sigmoid schedule: got start={self.start}, end={self.end}, tau={self.tau}; expected tau > 0 and "
                "-600 < start / tau < end / tau < 600."
            )

    @property
    def _half(self) -> float:
        return 0.5 * (self.end - self.start) / self.tau

    @property
    def _cosh_ends(self) -> tuple[float, float]:
        return math.cosh(0.5 * self.start / self.tau), math.cosh(0.5 * self.end / self.tau)

    def _cosh(self, t: Times) -> Times:
        return torch.cosh(0.5 * (self.start + t * (self.end - self.start)) / self.tau)

    # sigmoid(a) - sigmoid(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)) does not cancel at either end

    def alpha(self, t: Times) -> Times:
        falling = torch.sinh(self._half * (1.0 - t)) / math.sinh(self._half)
        return torch.sqrt(falling * self._cosh_ends[0] / self._cosh(t))

    def sigma(self, t: Times) -> Times:
        rising = torch.sinh(self._half * t) / math.sinh(self._half)
        return torch.sqrt(rising * self._cosh_ends[1] / self._cosh(t))

    def _d_variance(self, t: Times) -> Times:
        low, high = self._cosh_ends
        return self._half / math.sinh(self._half) * (low / self._cosh(t)) * (high / self._cosh(t))

    def d_alpha(self, t: Times) -> Times:
        return -0.5 * self._d_variance(t) / self.alpha(t)

    def d_sigma(self, t: Times) -> Times:
        return 0.5 * self._d_variance(t) / self.sigma(t)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        # with d = _half: sinh(d (1 - t)) / sinh(d t) = q gives exp(2 d t) = (q + exp d) / (q + exp -d)
        low, high = self._cosh_ends
        d, log_q = self._half, log_snr - math.log(low / high)
        softplus = torch.nn.functional.softplus
        noisy = 2.0 * d + softplus(log_q - d, threshold=700.0) - softplus(log_q + d, threshold=700.0)
        clean = softplus(d - log_q, threshold=700.0) - softplus(-d - log_q, threshold=700.0)
        return torch.where(log_q > 0.0, clean, noisy) / (2.0 * d)


@dataclass(frozen=True)
class Laplace(Schedule):
    """``log_snr`` of a uniform time has the Laplace density ``exp(-|log_snr - mean| / scale) / (2 scale)``.

        log_snr(t) = mean - scale log(2 t)          for t <= 1/2,
        log_snr(t) = mean + scale log(2 (1 - t))    for t >= 1/2,

    and the variance is preserved. No truncation: the ends are free of noise and free of signal.

    Args:
        mean: log-SNR at t = 1/2.
        scale: width of the density.

    Source: Hang et al. 2024 (arXiv 2407.03297), table of schedules, "Laplace".
    """

    mean: float = 0.0
    scale: float = 0.5

    def __post_init__(self) -> None:
        if not (self.scale > 0.0 and math.isfinite(self.mean)):
            raise WorkbenchError(
                f"Laplace schedule: got mean={self.mean}, scale={self.scale}; expected a number and a scale > 0."
            )

    def _curve(self, t: Times) -> Times:
        return self.mean - self.scale * torch.where(t < 0.5, (2.0 * t).log(), -(2.0 * (1.0 - t)).log())

    def alpha(self, t: Times) -> Times:
        return torch.sqrt(torch.sigmoid(self._curve(t)))

    def sigma(self, t: Times) -> Times:
        return torch.sqrt(torch.sigmoid(-self._curve(t)))

    def _slopes(self, to_end: Times, large: Times, mean: float) -> tuple[Times, Times]:
        # |d small/dt|, |d large/dt| near the end where small / large = exp(-mean / 2) (2 to_end)^(scale / 2): powers,
        # since at the end itself small times d log_snr/dt would be 0 times infinity
        u, b = 2.0 * to_end.clamp(max=0.5), self.scale
        rate = b * large**3
        return rate * math.exp(-0.5 * mean) * u ** (0.5 * b - 1.0), rate * math.exp(-mean) * u ** (b - 1.0)

    def d_alpha(self, t: Times) -> Times:
        early = self._slopes(t, self.alpha(t), self.mean)[1]
        late = self._slopes(1.0 - t, self.sigma(t), -self.mean)[0]
        return -torch.where(t < 0.5, early, late)

    def d_sigma(self, t: Times) -> Times:
        early = self._slopes(t, self.alpha(t), self.mean)[0]
        late = self._slopes(1.0 - t, self.sigma(t), -self.mean)[1]
        return torch.where(t < 0.5, early, late)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        tail = 0.5 * torch.exp(-(log_snr - self.mean).abs() / self.scale)
        return torch.where(log_snr > self.mean, tail, 1.0 - tail)
