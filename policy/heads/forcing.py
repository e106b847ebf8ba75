"""Diffusion forcing: every action of a chunk has a noise level of its own."""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.loss import Draws, denoising_loss
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table
from diffusion_core.times import token_times
from diffusion_core.token_grid import TokenGrid, pyramid
from policy.heads.diffusion import drawn
from policy.heads.head import Head, Parts


class Forcing(Head):
    """A denoiser trained with a level for every action, sampled with the near actions clean before the far ones.

    Action h starts ``delay h`` steps after the first; 0 denoises all together. The network must take a time for every
    action (``network.token_times=true``).

    Args:
        delay: steps.
        share: of training samples whose actions have levels of their own; the others have one for all.

    Source: Chen et al. 2024 (arXiv 2407.01392); for action chunks Hoeg et al. 2024 (arXiv 2406.04806), whose buffer
    goes on from one chunk to the next, where this one begins anew.
    """

    denoises = True

    def __init__(self, parts: Parts, delay: int = 1, share: float = 0.5) -> None:
        super().__init__()
        if not getattr(parts.denoiser.network, "token_times", False):
            raise WorkbenchError(
                "head=forcing: got a network of one time for all actions; expected network.token_times=true, which "
                "network=mlp and network=dit have."
            )
        if delay < 0 or not 0.0 <= share <= 1.0:
            raise WorkbenchError(f"head: got delay={delay}, share={share}; expected a delay >= 0, a share in [0, 1].")
        self.shape, self.denoiser, self.weighting = parts.shape, parts.denoiser, parts.weighting
        self.delay = delay
        self.times = partial(token_times, tokens=parts.shape.horizon, share=share)

    def arrange(self, grid: Grid) -> TokenGrid:
        return pyramid(grid, self.shape.horizon, self.delay)

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        return denoising_loss(self.denoiser, chunk, cond, draws, self.times, self.weighting)

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        return drawn(self.denoiser, self.shape, cond, table, noise)
