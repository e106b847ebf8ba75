"""Consistency policies: one jump, or a few, from noise to a chunk."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.distill.consistency import (
    consistency_distillation,
    consistency_training,
    ddim_step,
    discretisation,
    inverse_gap,
    lognormal_neighbours,
    pseudo_huber,
)
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.loss import Draws
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table
from policy.heads.diffusion import drawn
from policy.heads.head import Head, Parts


class Consistency(Head):
    """``f(x_t, t)``: the end of the flow through ``x_t``, learned from neighbours on it that must agree.

    Without a teacher the neighbours have the same data and noise; with one (``teacher=<run>``, whose weights it begins
    with) they are one DDIM step of the teacher apart.

    Args:
        levels: steps of the grid on which neighbours are.
        start, t_min: where jumps begin and end.

    Source: Prasad et al. 2024, "Consistency policy" (arXiv 2405.07503), on the losses of Song & Dhariwal 2023
    (arXiv 2310.14189), where the number of levels grows while training.
    """

    denoises = True

    def __init__(self, parts: Parts, levels: int = 40, start: float = 0.99, t_min: float = 0.002) -> None:
        super().__init__()
        if levels < 2 or not 0.0 < t_min < start <= 1.0:
            raise WorkbenchError(
                f"head: got levels={levels}, start={start}, t_min={t_min}; expected at least 2 levels and "
                "0 < t_min < start <= 1."
            )
        self.shape, self.denoiser = parts.shape, parts.denoiser
        self.levels, self.begin, self.t_min = levels, start, t_min
        # in a tuple, as it is no part of the weights
        self.teacher: tuple[NetworkDenoiser, ...] = ()

    def taught_by(self, teacher: NetworkDenoiser) -> None:
        """Learn from this denoiser's flow."""
        self.teacher = (teacher.requires_grad_(False).eval(),)

    def arrange(self, grid: Grid) -> Grid:
        return self.begin * grid

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        levels = discretisation(self.denoiser.schedule, self.levels, self.begin, self.t_min)
        if not self.teacher:
            return consistency_training(self.denoiser, chunk, cond, draws, levels)
        step = ddim_step(self.teacher[0])
        return consistency_distillation(
            self.denoiser, step, chunk, cond, draws, levels, None, lognormal_neighbours, pseudo_huber, inverse_gap
        )

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        return drawn(self.denoiser, self.shape, cond, table, noise)
