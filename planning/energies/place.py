"""Where a trajectory should be: goals, regions on the way, and learned values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from planning.energies.algebra import Cost

Place = tuple[float, float] | Tensor
"""x, y in m, for all trajectories; or a tensor (batch, 2), (robots, 2) or (batch, robots, 2)."""


@dataclass(frozen=True, eq=False)
class Goal(Cost):
    """``|xy_k - goal|^2``, m^2, at one step, or softly the least over all steps k.

    ``-softness log mean_k exp(-|xy_k - goal|^2 / softness)`` for any step: at least the least of them, and at most
    ``softness log horizon`` above it. So a plan need not be as long as the horizon.

    Args:
        goal: a `Place`.
        step: "any", or the number of a node, from the end where negative.
        softness: for any step, m^2: how much nearer a step must be to count alone.

    Source: a goal at any step: Chen et al. 2024, "Diffusion Forcing" (arXiv 2407.01392); the form is ours.
    """

    goal: Place
    step: int | str = "any"
    softness: float = 0.05

    def __post_init__(self) -> None:
        _check_soft(self.softness, "Goal")
        if isinstance(self.step, str) and self.step != "any":
            raise WorkbenchError(f"Goal: got step={self.step!r}; expected any, or the number of a node: correct it.")

    @property
    def name(self) -> str:
        return f"goal{_text(self.goal)}" + ("" if self.step == "any" else f" at step {self.step}")

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        if isinstance(self.step, int):
            if not -xy.shape[-2] <= self.step < xy.shape[-2]:
                raise WorkbenchError(
                    f"Goal: got step={self.step}; expected a node of the {xy.shape[-2]} of a trajectory: correct it."
                )
            xy = xy[..., self.step, None, :]
        return _soft_least((xy - _at_nodes(self.goal, xy)).square().sum(-1), self.softness)


@dataclass(frozen=True, eq=False)
class Via(Cost):
    """``max(|xy_k - centre| - radius, 0)^2``, m^2, softly the least over all steps k: be in a region at some step.

    With a negative scale it keeps trajectories away, but pulls only at their nearest nodes, and nowhere inside of the
    region: `Discs` is the better repulsion.

    Args:
        centre: a `Place`.
        radius: of the region, m.
        softness: as in `Goal`.
    """

    centre: Place
    radius: float
    softness: float = 0.05

    def __post_init__(self) -> None:
        _check_soft(self.softness, "Via")
        if not self.radius >= 0.0:
            raise WorkbenchError(f"Via: got a radius of {self.radius} m; expected at least 0: correct it.")

    @property
    def name(self) -> str:
        return f"via{_text(self.centre)} within {self.radius:g} m"

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        apart = torch.linalg.vector_norm(xy - _at_nodes(self.centre, xy), dim=-1)
        return _soft_least((apart - self.radius).clamp(min=0.0).square(), self.softness)


@dataclass(frozen=True, eq=False)
class Through(Cost):
    """``exp(-via / width^2)``, `via` the cost of `Via`: near 1 for ways through a region, near 0 for others.

    Unlike a penalty of every node in there it does not grow with the time spent, nor with the number of nodes: with the
    strength s, a way through the region is ``exp(-s)`` as likely as it was.

    Args:
        centre, radius, softness: as in `Via`.
        width: over which it falls, m.
    """

    centre: Place
    radius: float
    width: float = 0.5
    softness: float = 0.05

    def __post_init__(self) -> None:
        _check_soft(self.softness, "Through")
        if not (self.radius >= 0.0 and self.width > 0.0):
            raise WorkbenchError(
                f"Through: got a radius of {self.radius} m, a width of {self.width} m; expected at least 0, and more "
                "than 0: correct them."
            )

    @property
    def name(self) -> str:
        return f"through{_text(self.centre)} within {self.radius:g} m"

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        apart = torch.linalg.vector_norm(xy - _at_nodes(self.centre, xy), dim=-1)
        least = -self.softness * torch.logsumexp(-(apart - self.radius).clamp(min=0.0).square() / self.softness, -1)
        return torch.exp(-least.clamp(min=0.0) / self.width**2)[:, None].flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Value(Cost):
    """``-network(xy)``: what a learned value is high for is likely.

    Args:
        network: trajectories in m -> (batch,), or (batch, robots), differentiable; its parameters should need no
            gradient.
        label: what messages call it.
    """

    network: Callable[[Tensor], Tensor]
    label: str = "value"

    @property
    def name(self) -> str:
        return self.label

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        value = self.network(xy)
        if value.shape not in (xy.shape[:1], xy.shape[:-2]):
            raise WorkbenchError(
                f"{self.label}: got the shape {tuple(value.shape)}; expected {tuple(xy.shape[:-2])}, one value for "
                "each trajectory: correct the network."
            )
        return -value[:, None].flatten(1).sum(1)


def _soft_least(costs: Float[Tensor, "batch *robots horizon"], softness: float) -> Float[Tensor, " batch"]:
    """``-softness log mean_k exp(-cost_k / softness)``, summed over robots."""
    least = -softness * (torch.logsumexp(-costs / softness, -1) - math.log(costs.shape[-1]))
    return least[:, None].flatten(1).sum(1)


def _at_nodes(place: Place, xy: Float[Tensor, "batch *robots horizon 2"]) -> Tensor:
    return torch.as_tensor(place, dtype=xy.dtype, device=xy.device)[..., None, :]


def _text(place: Place) -> str:
    values = torch.as_tensor(place)
    return f"({values[0]:g}, {values[1]:g})" if values.ndim == 1 else f"({len(values)} places)"


def _check_soft(softness: float, name: str) -> None:
    if not softness > 0.0:
        raise WorkbenchError(f"{name}: got softness={softness} m^2; expected more than 0: raise it.")
