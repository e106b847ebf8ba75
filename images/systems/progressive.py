"""Progressive distillation: a student that does in one step what its teacher does in two.

Source: Salimans & Ho 2022, "Progressive distillation for fast sampling of diffusion models" (arXiv 2202.00512).
"""

from __future__ import annotations

from copy import deepcopy

from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core import grid
from diffusion_core.distill.progressive import progressive_loss
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise
from diffusion_core.solvers import ddim
from images.systems import Parts, Sampling, Student, built_on
from images.systems.diffusion import Diffusion


class Progressive(Student):
    """``x0_hat`` such that one DDIM step of it lands where two of the parent's land.

    Its weights, schedule and prediction are the parent's, a `Diffusion` or another student of twice as many steps. It
    is sampled on its own uniform grid; `Sampling`'s steps and grid do not count.

    Args:
        parts: what it is put together from; the parent is the teacher.
        steps: of the student; the teacher's are twice as many.

    Source: Salimans & Ho 2022, algorithm 2, with the weight ``max(SNR, 1)`` of section 4.
    """

    def __init__(self, parts: Parts, steps: int = 16) -> None:
        super().__init__(parts)
        self.steps: int = steps
        if steps < 1:
            raise WorkbenchError(f"system.steps: got {steps}; expected at least 1.")
        if isinstance(parts.parent, Progressive):
            self.parent: Diffusion | Progressive = built_on(parts, Progressive, "a student of twice as many steps")
            if self.parent.steps != 2 * steps:
                raise WorkbenchError(
                    f"system.steps: got {steps} after a student of {self.parent.steps}; expected half of it."
                )
        else:
            self.parent = built_on(parts, Diffusion, "a diffusion (system=conditional) or a student of 2 x steps")
        self.student = deepcopy(self.teacher).requires_grad_(True).train()

    @property
    def teacher(self) -> Diffusion:
        """The diffusion inside of the parent."""
        return self.parent.student if isinstance(self.parent, Progressive) else self.parent

    def begin(self) -> None:
        self.student.denoiser.load_state_dict(self.teacher.denoiser.state_dict())

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        cond = self.student.condition(batch["label"])
        times = grid.uniform(2 * self.steps)
        return progressive_loss(self.student.denoiser, self.teacher.denoiser, batch["image"], cond, draws, times)

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        return self.student.sample(labels, noise, Sampling(ddim, self.steps, grid.uniform))
