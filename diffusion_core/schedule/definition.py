"""What a schedule is: alpha_t and sigma_t, their derivatives, and the inverse of the log-SNR."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float64
from torch import Tensor

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
