"""The diffusion head: DDPM, DDIM, flow matching and all other Gaussian processes and solvers of the core."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from diffusion_core import sample
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.loss import Draws, denoising_loss
from diffusion_core.noise import Noise
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.solvers import Table
from policy.heads.head import Head, Parts, Shape


class Diffusion(Head):
    """A denoiser of chunks, sampled by any solver.

    With ``schedule=rectified_flow prediction=velocity sampler=euler`` it is flow matching (``head=flow``).

    Source: Chi et al. 2023, section 3 (arXiv 2303.04137); Lipman et al. 2023 (arXiv 2210.02747).
    """

    denoises = True

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.shape, self.denoiser = parts.shape, parts.denoiser
        self.weighting, self.times = parts.weighting, parts.times

    def arrange(self, grid: Grid) -> Grid:
        return grid

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        return denoising_loss(self.denoiser, chunk, cond, draws, self.times, self.weighting)

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        return drawn(self.denoiser, self.shape, cond, table, noise)

    def denoising(self, cond: Float[Tensor, "batch cond"], table: Table, noise: Noise) -> Iterator[sample.State]:
        """The trajectory behind `draw`, after `start`."""
        return sample.trajectory(self.denoiser, table, self.start(cond, table, noise), cond, noise)

    def start(
        self, cond: Float[Tensor, "batch cond"], table: Table, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        """Samples of the prior at the table's first time, in the condition's precision."""
        return prior(self.denoiser, self.shape, cond, table, noise)


def drawn(denoiser: NetworkDenoiser, shape: Shape, cond: Tensor, table: Table | None, noise: Noise) -> Tensor:
    """A chunk for each condition, out of the prior: what every head that denoises draws.

    Raises:
        WorkbenchError: there is no table.
    """
    if table is None:
        raise WorkbenchError("head: got no solver's table; expected one: give sampler, grid and steps.")
    return sample.sample(denoiser, table, prior(denoiser, shape, cond, table, noise), cond, noise)


def prior(denoiser: NetworkDenoiser, shape: Shape, cond: Tensor, table: Table, noise: Noise) -> Tensor:
    """Samples of the prior at the table's first time, in the condition's precision."""
    z = noise.normal((len(cond), shape.horizon, shape.dim), cond.dtype, cond.device)
    return Gaussian(denoiser.schedule).prior(z, float(table.times[0].max()))
