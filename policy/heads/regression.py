"""Behaviour cloning: one chunk for each condition, by least squares."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.grid import Grid
from diffusion_core.loss import Draws
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table
from policy.heads.head import Head, Parts


class Regression(Head):
    """``chunk = network(0, 1, cond)``, trained on ``|chunk - target|^2``: the diffusion's network without its noise.

    What a diffusion gains over it is due to the distribution, not to the network. Where two ways lead to the goal it
    answers with their mean.

    Source: Pomerleau 1988, behaviour cloning; the comparison is that of Chi et al. 2023 (arXiv 2303.04137).
    """

    denoises = False

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.shape, self.network = parts.shape, parts.denoiser.network

    def arrange(self, grid: Grid) -> Grid:
        return grid

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        return ((self._answer(cond) - chunk) ** 2).flatten(1).mean(1)

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        return self._answer(cond)

    def _answer(self, cond: Tensor) -> Tensor:
        nothing = cond.new_zeros(len(cond), self.shape.horizon, self.shape.dim)
        return self.network(nothing, torch.ones(len(cond), dtype=cond.dtype, device=cond.device), cond)
