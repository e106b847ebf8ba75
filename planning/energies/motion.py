"""How a trajectory should go: short, smooth, slow, and far from the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from planning.energies.algebra import Cost
from planning.energies.solid import BETWEEN, between


@dataclass(frozen=True, eq=False)
class Length(Cost):
    """``sum_k |xy_{k+1} - xy_k|``, m."""

    @property
    def name(self) -> str:
        return "length"

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        return _strides(xy).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Smooth(Cost):
    """``sum_k |xy_{k+1} - 2 xy_k + xy_{k-1}|^2``, m^2: nothing for a straight line at constant speed."""

    @property
    def name(self) -> str:
        return "smooth"

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        return xy.diff(n=2, dim=-2).square().flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Speed(Cost):
    """``sum_k max(|xy_{k+1} - xy_k| / dt - limit, 0)^2``, (m/s)^2.

    Args:
        limit: m/s.
        dt: time between nodes, s; a tensor (batch,) or (batch, robots) for trajectories of several paces.
    """

    limit: float
    dt: float | Tensor

    def __post_init__(self) -> None:
        if not (self.limit >= 0.0 and bool((torch.as_tensor(self.dt) > 0.0).all())):
            raise WorkbenchError(
                f"Speed: got limit={self.limit} m/s and dt={self.dt} s; expected a limit of at least 0, and times more "
                "than 0: correct them."
            )

    @property
    def name(self) -> str:
        return f"speed({self.limit:g} m/s)"

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        dt = torch.as_tensor(self.dt, dtype=xy.dtype, device=xy.device)
        dt = dt.reshape(*dt.shape, *[1] * (xy.ndim - 1 - dt.ndim))
        return (_strides(xy) / dt - self.limit).clamp(min=0.0).square().flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Separation(Cost):
    """``sum max(distance - |xy_i - xy_j|, 0)^2``, m^2, over pairs, nodes and ``between`` points after each node.

    The points between are those of the same moments, so robots cannot change places between two nodes. Two robots at
    the very same place have no direction to part in, and feel nothing.

    Args:
        distance: between centres from which on there is no cost, m.
        pairs: numbers of the robots that mind each other; None: all of them.
        between: points looked at between two nodes.
    """

    distance: float
    pairs: tuple[tuple[int, int], ...] | None = None
    between: int = BETWEEN

    def __post_init__(self) -> None:
        if not (self.distance > 0.0 and self.between >= 0):
            raise WorkbenchError(
                f"Separation: got distance={self.distance} m, between={self.between}; expected more than 0, and at "
                "least 0: correct them."
            )

    @property
    def name(self) -> str:
        return f"separation({self.distance:g} m)"

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        robots = xy.shape[1] if xy.ndim == 4 else 1
        pairs = every_pair(robots) if self.pairs is None else self.pairs
        if robots < 2 or not pairs or any(i == j or not (0 <= i < robots and 0 <= j < robots) for i, j in pairs):
            raise WorkbenchError(
                f"Separation: got trajectories of shape {tuple(xy.shape)} and pairs {pairs}; expected (batch, robots, "
                "horizon, 2) and pairs of different ones of these robots: stack the trajectories of the robots."
            )
        first, second = zip(*pairs, strict=True)
        apart = torch.linalg.vector_norm(between(xy[:, list(first)] - xy[:, list(second)], self.between), dim=-1)
        return (self.distance - apart).clamp(min=0.0).square().flatten(1).sum(1)


def every_pair(robots: int) -> tuple[tuple[int, int], ...]:
    """Each two of ``robots``, once."""
    return tuple((i, j) for i in range(robots) for j in range(i + 1, robots))


def _strides(xy: Float[Tensor, "*batch horizon 2"]) -> Float[Tensor, "*batch strides"]:
    """Length of each, m."""
    return torch.linalg.vector_norm(xy.diff(dim=-2), dim=-1)
