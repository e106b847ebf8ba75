"""Loss weightings: which noise levels count how much.

Each is one formula for the weight on the squared error of x0, a function of the SNR ``alpha^2 / sigma^2``; `_of_x0`
rewrites it for whatever the network predicts. With ``d = alpha k_eps - sigma k_x0`` of `predict.mixture`, the error
of x0 is ``-sigma / d`` times that of the prediction, so that

    weight = weight_x0 (sigma / d)^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import Prediction, mixture
from diffusion_core.schedule import Schedule, Times

Weighting = Callable[[Prediction, Schedule, Times], Times]
"""``weight(prediction, schedule, t)`` multiplies the squared error of the *prediction*, float64."""


def _inside(schedule: Schedule, t: Times) -> Times:
    # without noise or signal a weight is 0/0 or 0 times infinity; 1e-9 inside it is its limit, where there is one
    at_end = (schedule.alpha(t) == 0.0) | (schedule.sigma(t) == 0.0)
    return torch.where(at_end, t.clamp(1e-9, 1.0 - 1e-9), t)


def _of_x0(weight_x0: Callable[[Times], Times], prediction: Prediction, schedule: Schedule, t: Times) -> Times:
    """``weight_x0(t) (sigma / (alpha k_eps - sigma k_x0))^2``, the weight of the prediction's squared error."""
    t = _inside(schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    k_x0, k_eps = mixture(prediction, schedule, t)
    return weight_x0(t) * (sigma / (alpha * k_eps - sigma * k_x0)) ** 2


def simple(prediction: Prediction, schedule: Schedule, t: Times) -> Times:
    """Weight 1 on the prediction. Source: Ho et al. 2020, eq. 14 (arXiv 2006.11239)."""
    return torch.ones_like(t)


def snr(prediction: Prediction, schedule: Schedule, t: Times, power: float = 1.0, offset: float = 0.0) -> Times:
    """``SNR^power + offset`` on the error of x0, rewritten for the prediction at hand.

    Power 0 is the simple loss of x0, power 1 that of eps, whatever the network predicts; power 1 and offset 1
    is that of v ("SNR + 1").

    Args:
        prediction, schedule, t: see `Weighting`.
        power, offset: of the weight.

    Source: Salimans & Ho 2022, section 4 (arXiv 2202.00512).
    """
    return _of_x0(lambda t: (power * schedule.log_snr(t)).exp() + offset, prediction, schedule, t)


def min_snr(prediction: Prediction, schedule: Schedule, t: Times, gamma: float = 5.0, soft: bool = False) -> Times:
    """``min(SNR, gamma)`` on the error of x0, rewritten for the prediction at hand.

    Args:
        prediction, schedule, t: see `Weighting`.
        gamma: bound of the weight.
        soft: ``gamma SNR / (gamma + SNR)`` instead, which turns without a corner.

    Source: Hang et al. 2023, eq. 8 (arXiv 2303.09556); soft: Crowson et al. 2024, section 4 (arXiv 2401.11605).
    """
    if not gamma > 0.0:
        raise WorkbenchError(f"min_snr: got gamma={gamma}; expected a number > 0.")

    def weight_x0(t: Times) -> Times:
        ratio = schedule.log_snr(t).exp()
        return 1.0 / (1.0 / ratio + 1.0 / gamma) if soft else ratio.clamp(max=gamma)

    return _of_x0(weight_x0, prediction, schedule, t)


def p2(prediction: Prediction, schedule: Schedule, t: Times, k: float = 1.0, gamma: float = 1.0) -> Times:
    """``1 / (k + SNR)^gamma`` on the error of eps, hence ``SNR / (k + SNR)^gamma`` on that of x0.

    Args:
        prediction, schedule, t: see `Weighting`.
        k: SNR at which the weight begins to fall.
        gamma: how fast it falls; 0 is the simple loss of eps.

    Source: Choi et al. 2022, eq. 8 (arXiv 2204.00227).
    """
    if not k > 0.0:
        raise WorkbenchError(f"p2: got k={k}; expected a number > 0.")

    def weight_x0(t: Times) -> Times:
        ratio = schedule.log_snr(t).exp()
        return ratio / (k + ratio) ** gamma

    return _of_x0(weight_x0, prediction, schedule, t)


def edm(prediction: Prediction, schedule: Schedule, t: Times, sigma_data: float = 0.5) -> Times:
    """``SNR + 1 / sigma_data^2`` on the error of x0: weight 1 on `predict.F` of that width.

    EDM writes it ``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2``, with ``sigma / alpha`` for sigma.

    Args:
        prediction, schedule, t: see `Weighting`.
        sigma_data: width of the data.

    Source: Karras et al. 2022, table 1, "Loss weighting" (arXiv 2206.00364).
    """
    if not sigma_data > 0.0:
        raise WorkbenchError(f"edm: got sigma_data={sigma_data}; expected a number > 0.")
    return _of_x0(lambda t: schedule.log_snr(t).exp() + sigma_data**-2, prediction, schedule, t)


def sigmoid(prediction: Prediction, schedule: Schedule, t: Times, bias: float = -3.0) -> Times:
    """``-1/2 dlog_snr/dt sigmoid(bias - log_snr)`` on the error of eps.

    The derivative turns the mean over uniform times into an integral over log-SNR, so that the loss is the same under
    every schedule (of the same ends): draw times uniformly with it. On the error of x0, with
    ``-1/2 dlog_snr/dt = (alpha dsigma/dt - sigma dalpha/dt) / (alpha sigma)``, it is
    ``exp(bias) sigmoid(log_snr - bias)`` times that.

    Args:
        prediction, schedule, t: see `Weighting`.
        bias: log-SNR above which the weight falls.

    Source: Kingma & Gao 2023 (arXiv 2303.00848); Hoogeboom et al. 2024, "sigmoid loss" (arXiv 2410.19324).
    """

    def weight_x0(t: Times) -> Times:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        slope = (schedule.d_sigma(t) / sigma) - (schedule.d_alpha(t) / alpha)
        return slope * math.exp(bias) * torch.sigmoid(schedule.log_snr(t) - bias)

    return _of_x0(weight_x0, prediction, schedule, t)


class LearnedWeights(nn.Module):
    """``loss / exp(u) + u`` with a learned ``u(log_snr)``, which tends to the logarithm of the expected loss.

    At that minimum every noise level contributes the same gradient: the uncertainties of a multi-task loss. Train it
    with the model and drop it afterwards. Where EDM2 has random Fourier features, ``u`` is a cosine series of
    ``log_snr`` clamped to [-20, 20]; at first it is 0 and the loss unchanged.

    Args:
        terms: of the series.

    Source: Karras et al. 2024, section 2.2 and appendix B (arXiv 2312.02696); Kendall et al. 2018 (arXiv 1705.07115).
    """

    def __init__(self, terms: int = 16) -> None:
        super().__init__()
        if terms < 1:
            raise WorkbenchError(f"LearnedWeights: got terms={terms}; expected at least 1.")
        self.series = nn.Parameter(torch.zeros(terms))

    def log_loss(self, schedule: Schedule, t: Times) -> Float[Tensor, "..."]:
        """``u`` at times ``t``, in the precision of the parameters."""
        position = 0.5 + schedule.log_snr(t).clamp(-20.0, 20.0) / 40.0
        order = torch.arange(len(self.series), dtype=torch.float64, device=t.device)
        return torch.cos(math.pi * order * position[..., None]).to(self.series) @ self.series

    def forward(self, loss: Float[Tensor, " batch"], schedule: Schedule, t: Times) -> Float[Tensor, " batch"]:
        """The loss to minimise, from the per-sample ``loss`` at times ``t`` (batch,)."""
        u = self.log_loss(schedule, t).to(loss)
        return loss * torch.exp(-u) + u
