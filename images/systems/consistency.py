"""Consistency models: one jump from anywhere on the flow to its beginning.

Source: Song et al. 2023, "Consistency models" (arXiv 2303.01469); Song & Dhariwal 2023, "Improved techniques for
training consistency models" (arXiv 2310.14189).
"""

from __future__ import annotations

from copy import deepcopy

from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core import grid
from diffusion_core.distill.consistency import (
    consistency_distillation,
    consistency_training,
    ddim_step,
    discretisation,
    inverse_gap,
    lognormal_neighbours,
    pseudo_huber,
)
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise
from diffusion_core.solvers import consistency
from images.systems import Parts, Sampling, Student, built_on, draw
from images.systems.diffusion import Diffusion

START, T_MIN = 0.99, 0.002
"""Where jumps begin and where they end. At t = 1 the schedule may leave no signal, and neighbours there no weight."""


class Consistency(Student):
    """``f(x_t, t)``: the beginning of the flow through ``x_t``, learned from neighbours on it that must agree.

    With a parent, its network, schedule, prediction and first weights are the parent's. Sampling jumps to the image,
    noises it less, and jumps again; of `Sampling` only the steps count.

    Args:
        parts: what it is put together from; the parent is a `Diffusion`, the teacher.
        how: "distillation": the neighbour is one DDIM step of the teacher away; "training": it has the data and the
            noise of ``x_t``, and no teacher is asked: there need be none.
        levels: steps of the grid on which neighbours are.

    Source: Song et al. 2023, algorithms 1 to 3, with the neighbours, the distance, the weight and the target (the
    student itself) of Song & Dhariwal 2023, where the number of levels grows while training.
    """

    def __init__(self, parts: Parts, how: str = "distillation", levels: int = 18) -> None:
        super().__init__(parts)
        if how not in ("distillation", "training"):
            raise WorkbenchError(f"system.how: got {how!r}; expected distillation or training.")
        if levels < 2:
            raise WorkbenchError(f"system.levels: got {levels}; expected at least 2 steps.")
        self.how, self.levels = how, levels
        if how == "training" and parts.parent is None:
            self.parent: Diffusion | None = None
            self.student = Diffusion(parts)
        else:
            self.parent = built_on(parts, Diffusion, "a diffusion (system=conditional), the teacher")
            self.student = deepcopy(self.parent).requires_grad_(True).train()

    def begin(self) -> None:
        if self.parent is not None:
            self.student.denoiser.load_state_dict(self.parent.denoiser.state_dict())

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        x0, cond, student = batch["image"], self.student.condition(batch["label"]), self.student.denoiser
        times = discretisation(student.schedule, self.levels, START, T_MIN)
        if self.how == "training":
            return consistency_training(student, x0, cond, draws, times)
        assert self.parent is not None
        step = ddim_step(self.parent.denoiser)
        return consistency_distillation(
            student, step, x0, cond, draws, times, None, lognormal_neighbours, pseudo_huber, inverse_gap
        )

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        table = consistency(self.student.denoiser.schedule, START * grid.uniform(how.steps))
        cond = self.student.condition(labels)
        return draw(self.student.denoiser, table, (len(labels), *self.shape), noise, labels.device, cond)
