"""A product process: poses that diffuse and grippers that jump, in one state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core import sample
from diffusion_core.denoise.joint import JointDenoiser, Logits, Regression, joint_loss
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.loss import Draws
from diffusion_core.noise import Noise, On
from diffusion_core.plan import Together
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule.formula import RectifiedFlow
from diffusion_core.solvers import Table
from diffusion_core.solvers.categorical import Reveal
from policy.heads.head import Head, Parts, Shape

CLASSES = 2
"""Open, at -1, and closed, at 1, in normalised units."""


class Product(Head):
    """``q(x_t | x_0) = N(pose_t; alpha_t pose_0, sigma_t^2 I) prod_j q(gripper_t,j | gripper_0,j)``, one network.

    A gripper is open, closed or, on the way, not known yet (absorbing states): a chunk never half closes a hand, where
    a Gaussian head puts out the numbers between. The network sees -1, 1 and 0 for these three, and what it puts out in
    that place is the log-odds of closed, so that any network of `conf/network` will do. Poses go the way of
    the solver, which must evaluate once a step; with each of its steps grippers become known, the nearest first, one at
    a time to begin with and then more: those drawn together do not see each other, and the first decides the most.
    In training each has a time of its own. The configuration's ``clip`` is not used.

    Args:
        discrete: which dimensions of an action are grippers; negative ones count from the last.
        weight: of their cross-entropy beside the poses' squared error.

    Raises:
        WorkbenchError: no gripper or no pose is left, or a dimension that actions do not have.

    Source: the processes of Austin et al. 2021 (arXiv 2107.03006) and Ho et al. 2020, side by side as in MatterGen
    (Zeni et al. 2023, arXiv 2312.03687).
    """

    denoises = True

    def __init__(self, parts: Parts, discrete: Sequence[int] = (-1,), weight: float = 0.1) -> None:
        super().__init__()
        dim = parts.shape.dim
        hands = sorted({i % dim for i in discrete if -dim <= i < dim})
        if len(hands) != len(discrete) or not 0 < len(hands) < dim or not weight > 0.0:
            raise WorkbenchError(
                f"head=product: got discrete={list(discrete)}, weight={weight} for actions of {dim} numbers; expected "
                "some of these dimensions, each once, and not all, and a weight > 0."
            )
        self.shape, self.denoiser, self.times, self.weight = parts.shape, parts.denoiser, parts.times, weight
        self.fields = _Fields(parts.denoiser.network, hands, parts.shape)
        pose = Regression(Gaussian(parts.denoiser.schedule), parts.denoiser.prediction, parts.weighting)
        self.gripper = Absorbing(RectifiedFlow(), CLASSES)
        # in a tuple, so that the network's weights are saved once
        self.joint = (JointDenoiser(self.fields, {"pose": pose, "gripper": Logits(self.gripper)}),)

    def arrange(self, grid: Grid) -> Grid:
        return grid

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        return joint_loss(
            self.joint[0], self.fields.apart(chunk), cond, draws, self.times, {"gripper": self.weight}, together=False
        )

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        if table is None:
            raise WorkbenchError("head=product: got no solver's table; expected one: give sampler, grid and steps.")
        poses, hands = ((len(cond), self.shape.horizon, len(own)) for own in (self.fields.poses, self.fields.hands))
        plan = Together({"pose": table, "gripper": self._revealed(table, hands[1] * hands[2])})
        source, first = On(noise, cond.device), float(table.times[0])
        start = {
            "pose": self.joint[0].heads["pose"].process.prior(source.normal(poses, cond.dtype), first),
            "gripper": self.gripper.prior(source.uniform(hands, torch.float64), first),
        }
        return self.fields.together(sample.sample(self.joint[0], plan, start, cond, noise), cond)

    def _revealed(self, table: Table, entries: int) -> Reveal:
        """Row by row as many entries as the square of the way behind, rounded up."""
        behind = torch.arange(1, len(table.times) + 1, dtype=torch.float64) / len(table.times)
        left = entries - (entries * behind**2).ceil().long()
        return Reveal(self.gripper, table.times, table.reached, left, torch.arange(entries)[None])


class _Fields(nn.Module):
    """A network over chunks as one over poses (batch, horizon, p) and classes of grippers (batch, horizon, g)."""

    order: Tensor

    def __init__(self, network: nn.Module, hands: Sequence[int], shape: Shape) -> None:
        super().__init__()
        self.network = (network,)
        self.hands, self.poses = list(hands), [i for i in range(shape.dim) if i not in hands]
        # where each number of a chunk is, when poses come first
        order = torch.tensor([*self.poses, *self.hands]).argsort()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Mapping[str, Tensor], t: Mapping[str, Tensor], cond: Tensor) -> dict[str, Tensor]:
        out = self.network[0](self.together(x, cond), t["pose"], cond)
        odds = out[..., self.hands]
        return {"pose": out[..., self.poses], "gripper": torch.stack([-odds, odds], -1) / 2.0}

    def together(self, x: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """A chunk of poses and classes; a gripper that is not known is 0."""
        value = torch.tensor([-1.0, 1.0, 0.0]).to(like)[x["gripper"]]
        return torch.cat([x["pose"], value], -1)[..., self.order]

    def apart(self, chunk: Tensor) -> dict[str, Any]:
        """The inverse of `together`: what is not above 0 is open."""
        return {"pose": chunk[..., self.poses], "gripper": (chunk[..., self.hands] > 0.0).long()}
