"""Consistency models: one jump from anywhere on the flow to its beginning.

Source: Song et al. 2023, "Consistency models" (arXiv 2303.01469); Song & Dhariwal 2023 (arXiv 2310.14189).
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
    pseudo_huber,
    uniform_neighbours,
    unweighted,
)
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise
from diffusion_core.solvers import consistency
from images.systems import Parts, Sampling, Student, built_on, draw
from images.systems.diffusion import Diffusion


class Consistency(Student):
    """``f(x_t, t)``: the beginning of the flow through ``x_t``, learned from neighbours on it that must agree.

    Begins with the teacher's weights in both ways. Sampling jumps to the image, noises it less, and jumps again;
    `Sampling`'s solver, grid and guidance do not count.

    Args:
        parts: what it is put together from; the parent is a `Diffusion`, the teacher.
        how: "distillation": the neighbour is one DDIM step of the teacher away; "training": it has the data and the
            noise of ``x_t``, and no teacher is asked.
        levels: times between which neighbours lie, evenly from 1 to ``1 / levels``.

    Source: Song et al. 2023, algorithms 1 to 3; the distance Song & Dhariwal 2023, section 3.3. There times are those
    of Karras et al. and the target is an average of the student; here they are even and the target is the student.
    """

    def __init__(self, parts: Parts, how: str = "distillation", levels: int = 32) -> None:
        super().__init__(parts)
        if how not in ("distillation", "training"):
            raise WorkbenchError(f"system.how: got {how!r}; expected distillation or training.")
        if levels < 2:
            raise WorkbenchError(f"system.levels: got {levels}; expected at least 2 times.")
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
        times = grid.uniform(self.levels)[:-1]
        if self.how == "training":
            # unweighted: the usual weight is 0 for the step from t = 1, at which the schedule leaves no signal
            return consistency_training(
                student, x0, cond, draws, times, neighbours=uniform_neighbours, weighting=unweighted
            )
        assert self.parent is not None
        step = ddim_step(self.parent.denoiser)
        return consistency_distillation(student, step, x0, cond, draws, times, distance=pseudo_huber)

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        table = consistency(self.student.denoiser.schedule, grid.uniform(how.steps))
        cond = self.student.condition(labels)
        return draw(self.student.denoiser, table, (len(labels), *self.shape), noise, labels.device, cond)
