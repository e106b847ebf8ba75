"""A critic of strides, learned from the same trajectories: says without a map whether one can go there from here."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError

PAIRS = 4
"""Strides of a trajectory that are looked at in a step of training."""


class StrideCritic(nn.Module):
    """``log p(displacement | place, dt) / p(displacement | dt)`` of the strides of trajectories.

    Learned as the logit that tells true strides from those that were made elsewhere at the same pace,

        r* = argmin E_true softplus(-r) + E_elsewhere softplus(r)

    Through a wall nobody goes, so there r is low, however usual such a stride is in the open. What r is *in* a wall is
    learned only if some of the strides that were made elsewhere are put anywhere at all, ``anywhere``: then it is

        r* = log p(displacement, place | dt) / (p(displacement | dt) ((1 - anywhere) p(place | dt) + anywhere / area))

    Args:
        width: of the network.
        features: random Fourier features of place, displacement and pace.
        anywhere: share of the strides made elsewhere whose place is uniform in the batch's bounding box.

    Source: the ratio as a classifier's logit: Sugiyama et al. 2012, "Density ratio estimation in machine learning",
    chapter 4; choosing among unguided candidates by a critic: Lu et al. 2025, "What makes a good diffusion planner"
    (arXiv 2503.00535), whose critic is a value. Which critic, and that it sees strides, is ours.
    """

    def __init__(self, width: int = 256, features: int = 64, anywhere: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= anywhere <= 1.0:
            raise WorkbenchError(f"critic_anywhere: got {anywhere}; expected a share in [0, 1].")
        self.anywhere = anywhere
        # 1 rad/m for places, as walls are a metre thick; twice that for displacements, which are shorter
        scale = torch.tensor([1.0, 1.0, 2.0, 2.0, 1.0])[:, None]
        self.register_buffer("frequencies", scale * torch.randn(5, features))
        self.frequencies: Tensor
        self.network = nn.Sequential(
            nn.Linear(2 * features + 5, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, xy: Float[Tensor, "*batch horizon 2"], dt: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch s"]:
        """r of each stride, nats.

        Args:
            xy: places, m.
            dt: time between them, s.
        """
        pace = dt[..., None].expand(*dt.shape, xy.shape[-2] - 1)
        return self.ratio(xy[..., :-1, :], xy.diff(dim=-2), pace)

    def ratio(
        self, place: Float[Tensor, "*batch 2"], stride: Float[Tensor, "*batch 2"], dt: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """r of single strides."""
        told = torch.cat([place, stride, dt[..., None].log()], -1)
        waves = told @ self.frequencies
        return self.network(torch.cat([told, waves.sin(), waves.cos()], -1)).squeeze(-1)

    def loss(
        self, xy: Float[Tensor, "batch horizon 2"], dt: Float[Tensor, " batch"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        """The training loss, over some strides of each trajectory; "elsewhere" is another trajectory of the batch."""
        strides = xy.shape[1] - 1
        node = (draws.uniform((len(xy), PAIRS)) * strides).long().to(xy.device)
        rows = torch.arange(len(xy), device=xy.device)[:, None]
        place, stride = xy[rows, node], xy[rows, node + 1] - xy[rows, node]
        order = dt.argsort(stable=True)
        # the neighbour in this order has the same pace, except at the first of each
        other = torch.empty_like(order).scatter_(0, order, order.roll(1))
        same = (dt[other] == dt)[:, None]
        paces = dt[:, None].expand(-1, PAIRS)
        put = place
        if self.anywhere:
            low, high = xy.flatten(0, 1).amin(0), xy.flatten(0, 1).amax(0)
            chance = draws.uniform((len(xy), PAIRS, 3)).to(xy)
            put = torch.where(chance[..., :1] < self.anywhere, low + (high - low) * chance[..., 1:], place)
        true, elsewhere = self.ratio(place, stride, paces), self.ratio(put, stride[other], paces)
        return (softplus(-true) + same * softplus(elsewhere)).mean(1)
