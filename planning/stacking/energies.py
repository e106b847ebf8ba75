"""What a move should come to, and what it should not do: costs of (batch, horizon, 16), m."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from envs.stacking import BLOCKS, SIDE
from planning.energies import Cost

FAR = 0.08
"""Way of a block that surely went, m."""
EXACT = 0.02
"""Deviation at which a cost of a place is 1/2, m."""


def block(x: Float[Tensor, "batch horizon 16"], k: int) -> Float[Tensor, "batch horizon 3"]:
    """The middles of one block, m."""
    return x[..., 4 + 3 * k : 7 + 3 * k]


def _check(*blocks: int) -> None:
    if not all(0 <= k < BLOCKS for k in blocks) or len(set(blocks)) < len(blocks):
        raise WorkbenchError(f"blocks: got {list(blocks)}; expected different ones of 0 to {BLOCKS - 1}: correct them.")


@dataclass(frozen=True, eq=False)
class OnTop(Cost):
    """``|a - b - (0, 0, side)|^2 / (2 EXACT^2)`` at the end: one block stands on another."""

    above: int
    below: int

    def __post_init__(self) -> None:
        _check(self.above, self.below)

    @property
    def name(self) -> str:
        return f"block {self.above} on block {self.below}"

    def __call__(self, xy: Tensor) -> Float[Tensor, " batch"]:
        apart = block(xy, self.above)[:, -1] - block(xy, self.below)[:, -1]
        return (apart - apart.new_tensor([0.0, 0.0, SIDE])).square().sum(-1) / (2.0 * EXACT**2)


@dataclass(frozen=True, eq=False)
class At(Cost):
    """``|a - place|^2 / (2 EXACT^2)`` at the end: a block is somewhere.

    Args:
        which: block.
        place: x, y, z of its middle, m.
    """

    which: int
    place: tuple[float, float, float]

    def __post_init__(self) -> None:
        _check(self.which)

    @property
    def name(self) -> str:
        return f"block {self.which} at {self.place}"

    def __call__(self, xy: Tensor) -> Float[Tensor, " batch"]:
        here = block(xy, self.which)[:, -1]
        return (here - here.new_tensor(self.place)).square().sum(-1) / (2.0 * EXACT**2)


@dataclass(frozen=True, eq=False)
class Either(Cost):
    """``-log mean_k exp(-cost_k)``: any one of several will do."""

    costs: tuple[Cost, ...]

    def __post_init__(self) -> None:
        if not self.costs:
            raise WorkbenchError("Either: got no costs; expected at least one: say what would do.")

    @property
    def name(self) -> str:
        return " or ".join(cost.name for cost in self.costs)

    def __call__(self, xy: Tensor) -> Float[Tensor, " batch"]:
        each = torch.stack([cost(xy) for cost in self.costs])
        return math.log(len(self.costs)) - torch.logsumexp(-each, 0)


@dataclass(frozen=True, eq=False)
class Goes(Cost):
    """``max(FAR - |a_end - a_start|, 0)^2 / (2 EXACT^2)``: a block goes somewhere, wherever that be."""

    which: int

    def __post_init__(self) -> None:
        _check(self.which)

    @property
    def name(self) -> str:
        return f"block {self.which} goes"

    def __call__(self, xy: Tensor) -> Float[Tensor, " batch"]:
        own = block(xy, self.which)
        way = torch.linalg.vector_norm(own[:, -1] - own[:, 0] + 1e-9, dim=-1)
        return (FAR - way).clamp(min=0.0).square() / (2.0 * EXACT**2)


@dataclass(frozen=True, eq=False)
class Avoid(Cost):
    """``sum_k max(radius - |tips_k - centre|, 0)^2 / (2 EXACT^2)``: the hand stays out of an upright column.

    Args:
        centre: x, y, m.
        radius: m.
    """

    centre: tuple[float, float]
    radius: float

    @property
    def name(self) -> str:
        return f"the hand away from {self.centre}"

    def __call__(self, xy: Tensor) -> Float[Tensor, " batch"]:
        tips = xy[..., :2]
        # one more at the middle of each stride, so that none jumps over it
        tips = torch.cat([tips, 0.5 * (tips[:, 1:] + tips[:, :-1])], 1)
        apart = torch.linalg.vector_norm(tips - tips.new_tensor(self.centre) + 1e-9, dim=-1)
        return (self.radius - apart).clamp(min=0.0).square().sum(-1) / (2.0 * EXACT**2)
