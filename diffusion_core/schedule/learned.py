"""A schedule that is learned with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule.definition import Schedule, Times


class LearnedLogSnr(nn.Module, Schedule):
    """A variance-preserving schedule whose log-SNR is a learned falling function of time.

        log_snr(t) = first + (last - first) (G(t) - G(0)) / (G(1) - G(0)),
        G(t) = t + sum_k exp(gain_k) sigmoid(exp(steepness_k) (t - place_k))

    ``G`` rises whatever its parameters are. The ends are fixed: the variational bound depends on them alone, the curve
    between them changes only the variance of its estimate.

    Args:
        units: sigmoids in the sum.
        first, last: log-SNR at t = 0 and t = 1; both finite.

    Source: Kingma et al. 2021, section 4 and appendix H (arXiv 2107.00630), where the ends are learned as well and
    the network has one more layer.
    """

    def __init__(self, units: int = 32, first: float = 13.3, last: float = -5.0) -> None:
        super().__init__()
        if units < 1 or not -80.0 <= last < first <= 80.0:
            raise WorkbenchError(
                f"LearnedLogSnr: got units={units}, first={first}, last={last}; expected units >= 1 and "
                "-80 <= last < first <= 80."
            )
        self.first, self.last = first, last
        self.place = nn.Parameter((torch.arange(units) + 0.5) / units)
        self.steepness = nn.Parameter(torch.full((units,), float(units)).log())
        self.gain = nn.Parameter(torch.full((units,), 1.0 / units).log())

    def _terms(self, t: Times) -> tuple[Tensor, Tensor, Tensor]:
        place, steepness, gain = (p.to(t.device, torch.float64) for p in (self.place, self.steepness, self.gain))
        return torch.sigmoid(steepness.exp() * (t[..., None] - place)), steepness.exp(), gain.exp()

    def _rising(self, t: Times) -> Times:
        bend, _, gain = self._terms(t)
        return t + (gain * bend).sum(-1)

    def _ends(self, like: Times) -> tuple[Tensor, Tensor]:
        low, high = self._rising(torch.tensor([0.0, 1.0], dtype=torch.float64, device=like.device)).unbind()
        return low, (self.last - self.first) / (high - low)

    def _curve(self, t: Times) -> Times:
        low, scale = self._ends(t)
        return self.first + scale * (self._rising(t) - low)

    def _d_curve(self, t: Times) -> Times:
        bend, steep, gain = self._terms(t)
        return self._ends(t)[1] * (1.0 + (gain * steep * bend * (1.0 - bend)).sum(-1))

    def alpha(self, t: Times) -> Times:
        return torch.sqrt(torch.sigmoid(self._curve(t)))

    def sigma(self, t: Times) -> Times:
        return torch.sqrt(torch.sigmoid(-self._curve(t)))

    def d_alpha(self, t: Times) -> Times:
        return 0.5 * self.alpha(t) * self.sigma(t) ** 2 * self._d_curve(t)

    def d_sigma(self, t: Times) -> Times:
        return -0.5 * self.sigma(t) * self.alpha(t) ** 2 * self._d_curve(t)

    def t_of_log_snr(self, log_snr: Times) -> Times:
        """By bisection in [0, 1]; the last step is Newton's, and carries the gradient of the inverse."""
        with torch.no_grad():
            low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
            for _ in range(50):
                middle = 0.5 * (low + high)
                above = self._curve(middle) > log_snr
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
            t = 0.5 * (low + high)
        return t - (self._curve(t) - log_snr) / self._d_curve(t).detach()
