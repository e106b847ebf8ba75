"""LSTM-GMM: a recurrent network with a mixture of Gaussians for every step."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.grid import Grid
from diffusion_core.loss import Draws
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table
from policy.heads.head import Head, Parts


class LstmGmm(Head):
    """``p(chunk | cond) = prod_h sum_k w_hk N(action_h; mean_hk, diag std_hk^2)`` from the states of an LSTM.

    Step h of the LSTM sees observation ``min(h, n_obs_steps - 1)``: after the newest it goes on with that one. With
    ``horizon = n_obs_steps = 10`` and ``n_action_steps = 1`` (``head=lstm_gmm``) that is robomimic's BC-RNN, whose
    state starts anew every ten steps. Means are bounded by tanh. Drawn with little noise: a component by its weight,
    then its mean.

    Args:
        width, layers: of the LSTM.
        modes: components.
        least_std: of a component, in normalised units.

    Source: Mandlekar et al. 2021 (arXiv 2108.03298), BC-RNN with its GMM head.
    """

    denoises = False

    def __init__(
        self, parts: Parts, width: int = 400, layers: int = 2, modes: int = 5, least_std: float = 1e-4
    ) -> None:
        super().__init__()
        self.shape, self.modes, self.least_std = parts.shape, modes, least_std
        self.lstm = nn.LSTM(parts.shape.features, width, layers, batch_first=True)
        self.outlet = nn.Linear(width, modes * (1 + 2 * parts.shape.dim))

    def arrange(self, grid: Grid) -> Grid:
        return grid

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        log_weights, means, stds = self._components(cond)
        z = (chunk[:, :, None] - means) / stds
        log_p = -0.5 * (z**2 + math.log(2.0 * math.pi)).sum(-1) - stds.log().sum(-1)
        return -torch.logsumexp(log_weights + log_p, -1).mean(1)

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        log_weights, means, _ = self._components(cond)
        u = noise.uniform((len(cond), self.shape.horizon, 1), torch.float64, cond.device)
        below = log_weights.double().exp().cumsum(-1)
        mode = (u * below[..., -1:] > below).sum(-1).clamp(max=self.modes - 1)
        return means.gather(2, mode[..., None, None].expand(-1, -1, 1, self.shape.dim)).squeeze(2)

    def _components(self, cond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log weights (batch, horizon, modes), means and standard deviations (batch, horizon, modes, dim)."""
        steps = torch.arange(self.shape.horizon, device=cond.device).clamp(max=self.shape.n_obs_steps - 1)
        seen = cond.unflatten(1, (self.shape.n_obs_steps, self.shape.features))[:, steps]
        out = self.outlet(self.lstm(seen)[0])
        log_weights = out[..., : self.modes].log_softmax(-1)
        means, spread = out[..., self.modes :].unflatten(-1, (2, self.modes, self.shape.dim)).unbind(2)
        return log_weights, means.tanh(), nn.functional.softplus(spread) + self.least_std
