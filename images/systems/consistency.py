"""Consistency models: one jump from anywhere on the flow to its beginning.

Source: Song et al. 2023, "Consistency models" (arXiv 2303.01469).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core import grid
from diffusion_core.distill.consistency import (
    consistency_distillation,
    consistency_training,
    ddim_step,
    squared,
    uniform_neighbours,
    unweighted,
)
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise
from diffusion_core.schedule import Times
from diffusion_core.solvers import consistency
from images.systems import Parts, Sampling, Student, built_on, draw
from images.systems.diffusion import Diffusion

T_MIN = 0.002
"""Where flows begin, with next to no noise."""


class Consistency(Student):
    """``f(x_t, t)``: the beginning of the flow through ``x_t``, learned from neighbours on it that must agree.

    With a parent, its network, schedule, prediction and first weights are the parent's. Sampling jumps to the image,
    noises it less, and jumps again; of `Sampling` only the steps count.

    Args:
        parts: what it is put together from; the parent is a `Diffusion`, the teacher.
        how: "distillation": the neighbour is one DDIM step of the teacher away; "training": it has the data and the
            noise of ``x_t``, and no teacher is asked: there need be none.
        levels: steps between neighbours, even from t = 1 down to ``1 / levels``, and one more to `T_MIN`.
        decay: of the average of the student's weights that answers for the neighbour.

    Source: Song et al. 2023, algorithms 1 to 3; there times are those of Karras et al., and training grows them.
    """

    def __init__(self, parts: Parts, how: str = "distillation", levels: int = 8, decay: float = 0.97) -> None:
        super().__init__(parts)
        if how not in ("distillation", "training"):
            raise WorkbenchError(f"system.how: got {how!r}; expected distillation or training.")
        if levels < 2:
            raise WorkbenchError(f"system.levels: got {levels}; expected at least 2 steps.")
        if not 0.0 <= decay < 1.0:
            raise WorkbenchError(f"system.decay: got {decay}; expected a share in [0, 1).")
        self.how, self.levels, self.decay = how, levels, decay
        if how == "training" and parts.parent is None:
            self.parent: Diffusion | None = None
            self.student = Diffusion(parts)
        else:
            self.parent = built_on(parts, Diffusion, "a diffusion (system=conditional), the teacher")
            self.student = deepcopy(self.parent).requires_grad_(True).train()
        # errors of a target that moves with every step add up along the levels: an average damps them
        self.target = deepcopy(self.student).requires_grad_(False)

    @property
    def times(self) -> Times:
        """Falling times between which neighbours lie."""
        return torch.cat([grid.uniform(self.levels)[:-1], torch.tensor([T_MIN], dtype=torch.float64)])

    def begin(self) -> None:
        if self.parent is not None:
            self.student.load_state_dict(self.parent.state_dict())
        self.target.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        """``target <- decay target + (1 - decay) student``."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.student.parameters()), 1.0 - self.decay)

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        self.follow()
        x0, cond, student = batch["image"], self.student.condition(batch["label"]), self.student.denoiser
        target = self.target.denoiser
        if self.how == "training":
            # uniform and unweighted: the core's defaults give the step from t = 1, without signal, the weight 0
            return consistency_training(
                student, x0, cond, draws, self.times, target, uniform_neighbours, squared, unweighted
            )
        assert self.parent is not None
        return consistency_distillation(student, ddim_step(self.parent.denoiser), x0, cond, draws, self.times, target)

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        table = consistency(self.student.denoiser.schedule, grid.uniform(how.steps))
        cond = self.student.condition(labels)
        return draw(self.student.denoiser, table, (len(labels), *self.shape), noise, labels.device, cond)
