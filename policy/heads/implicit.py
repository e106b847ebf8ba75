"""Implicit behaviour cloning: an energy of chunks, and the search for its lowest."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.grid import Grid
from diffusion_core.loss import Draws
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table
from policy.heads.head import Head, Parts


class Implicit(Head):
    """``p(chunk | cond) ~ exp(-E(chunk, cond))``, learned by telling the demonstrated chunk from random ones.

    The loss is ``-log(exp(-E(chunk)) / (exp(-E(chunk)) + sum_j exp(-E(negative_j))))`` with negatives drawn evenly
    from the normalised range. To draw, many chunks are resampled by ``exp(-E)`` and disturbed less and less; the best
    is the answer. Only the executed part of the chunk is modelled where ``horizon`` is short (``head=ibc``), since
    even draws fill a large space thinly.

    Args:
        width, depth: of the perceptron.
        negatives: for each sample of the loss.
        samples, rounds: of the search.
        noise: standard deviation of the first disturbance in normalised units; halved every round.
        bound: candidates stay within plus and minus this.

    Source: Florence et al. 2021, section 3, appendix B.1 (arXiv 2109.00137).
    """

    denoises = False

    def __init__(
        self,
        parts: Parts,
        width: int = 256,
        depth: int = 4,
        negatives: int = 256,
        samples: int = 1024,
        rounds: int = 3,
        noise: float = 0.33,
        bound: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape = parts.shape
        self.negatives, self.samples, self.rounds, self.noise, self.bound = negatives, samples, rounds, noise, bound
        sizes = [parts.shape.horizon * parts.shape.dim, *[width] * (depth - 1)]
        self.cond = nn.Linear(parts.shape.cond_dim, width)
        self.layers = nn.ModuleList(nn.Linear(i, width) for i in sizes)
        self.outlet = nn.Linear(width, 1)

    def energy(
        self, chunks: Float[Tensor, "batch n horizon dim"], cond: Float[Tensor, "batch cond"]
    ) -> Float[Tensor, "batch n"]:
        """E of several chunks for each condition."""
        # the condition enters once, by the first layer's bias
        h = self.layers[0](chunks.flatten(2)) + self.cond(cond)[:, None]
        for layer in self.layers[1:]:
            h = layer(torch.relu(h))
        return self.outlet(torch.relu(h)).squeeze(-1)

    def arrange(self, grid: Grid) -> Grid:
        return grid

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        u = draws.uniform((len(chunk), self.negatives, *chunk.shape[1:]), torch.float32)
        against = torch.cat([chunk[:, None], self.bound * (2.0 * u - 1.0).to(chunk)], 1)
        return -(-self.energy(against, cond)).log_softmax(1)[:, 0]

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        shape = (len(cond), self.samples, self.shape.horizon, self.shape.dim)
        found = self.bound * (2.0 * noise.uniform(shape, cond.dtype, cond.device).to(cond.dtype) - 1.0)
        for i in range(self.rounds):
            below = (-self.energy(found, cond)).double().softmax(1).cumsum(1)
            u = noise.uniform((len(cond), self.samples, 1), torch.float64, cond.device).squeeze(-1)
            again = torch.searchsorted(below, u * below[:, -1:]).clamp(max=self.samples - 1)
            found = found.gather(1, again[..., None, None].expand(shape))
            stir = noise.normal(shape, cond.dtype, cond.device)
            found = (found + self.noise * 0.5**i * stir).clamp(-self.bound, self.bound)
        best = self.energy(found, cond).argmin(1)
        return found[torch.arange(len(cond), device=cond.device), best]
