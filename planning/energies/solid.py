"""What is solid: distances to walls and obstacles, and the costs of coming near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from envs.maze2d import Maze
from planning.energies.algebra import Cost

BETWEEN = 4
"""Points looked at between two nodes: at a stride of 1 m, one every 0.2 m."""


@dataclass(frozen=True, eq=False)
class Walls(Cost):
    """``sum max(margin - clearance, 0)^2``, m^2, over all nodes and ``between`` points on the way to each next one.

    The points between are why a stride cannot jump a wall: whatever is thicker than a stride's (between + 1)-th part is
    met. Their number is fixed, as the longest stride is not known without waiting for the device.

    Args:
        maze: walls, obstacles and border.
        margin: clearance from which on there is no cost, m: the radius of what moves, and some room.
        between: points looked at between two nodes.

    Source: the penalty follows Ratliff et al. 2009, "CHOMP" (doi 10.1109/ROBOT.2009.5152817), with its square
    all the way in, and not weighted by speed.
    """

    maze: Maze
    margin: float
    between: int = BETWEEN

    def __post_init__(self) -> None:
        _check(self.margin, self.between, "Walls")

    @property
    def name(self) -> str:
        return f"walls({self.margin:g} m)"

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        return _penalty(clearance(self.maze, between(xy, self.between)), self.margin)


@dataclass(frozen=True, eq=False)
class Discs(Cost):
    """The cost of `Walls` for round obstacles alone.

    Args:
        discs: x, y and radius of each, m.
        margin, between: as in `Walls`.
    """

    discs: Sequence[tuple[float, float, float]]
    margin: float = 0.0
    between: int = BETWEEN

    def __post_init__(self) -> None:
        _check(self.margin, self.between, "Discs")
        if not (np.ndim(self.discs) == 2 and np.shape(self.discs)[1] == 3 and np.isfinite(self.discs).all()):
            raise WorkbenchError(
                f"Discs: got {list(self.discs)}; expected x, y and radius of one or more discs, in m: correct them."
            )

    @property
    def name(self) -> str:
        return f"{len(self.discs)} discs({self.margin:g} m)"

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        discs = torch.as_tensor(np.asarray(self.discs), dtype=xy.dtype, device=xy.device)
        return _penalty(_to_discs(between(xy, self.between), discs), self.margin)


def between(xy: Float[Tensor, "*batch horizon 2"], n: int) -> Float[Tensor, "*batch points 2"]:
    """The nodes, and ``n`` points at equal distances on the line from each one to the next."""
    shares = torch.arange(n + 1, dtype=xy.dtype, device=xy.device)[:, None] / (n + 1)
    first = xy[..., :-1, None, :]
    return torch.cat([(first + shares * (xy[..., 1:, None, :] - first)).flatten(-3, -2), xy[..., -1:, :]], -2)


def clearance(maze: Maze, xy: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """Distance to what is solid, m; minus the way out where something is.

    Where it is positive it is `Maze.clearance`, and it has the same sign everywhere. Deep inside, that is the least
    over single boxes, hence 0 at the seam of two neighbours: on its gradient a trajectory slides along a wall and stays
    at the seam. Here the depth in walls is the distance to the nearest free cell, from beyond
    the border by way of it.
    """
    solid = _solid(maze, xy.dtype, xy.device)
    # from beyond the border the way out leads over it
    on_map = torch.minimum(torch.maximum(xy, solid.border[0]), solid.border[1])
    found = _to_walls(on_map, solid) - torch.linalg.vector_norm(xy - on_map, dim=-1)
    if len(solid.squares):
        apart = torch.maximum(solid.squares[:, :2] - xy[..., None, :], xy[..., None, :] - solid.squares[:, 2:])
        signed = torch.linalg.vector_norm(apart.clamp(min=0.0), dim=-1) + apart.amax(-1).clamp(max=0.0)
        found = torch.minimum(found, signed.amin(-1))
    return torch.minimum(found, _to_discs(xy, solid.discs)) if len(solid.discs) else found


class _Solid(NamedTuple):
    near: Float[Tensor, "w h k 2"]
    """Middles of the cells of the other kind (free for a wall, a wall for a free one) that may be a place's nearest."""
    sign: Float[Tensor, "w h"]
    """1 of a free cell, -1 of a wall."""
    border: Float[Tensor, "2 2"]
    side: float
    squares: Float[Tensor, "s 4"]
    discs: Float[Tensor, "d 3"]


@lru_cache(maxsize=32)
def _solid(maze: Maze, dtype: torch.dtype, device: torch.device) -> _Solid:
    """A maze on a device; a maze never changes and is equal to itself only."""
    walls = maze.walls
    cells = np.argwhere(np.ones_like(walls))
    near: list[np.ndarray] = []
    for cell in cells:
        others = np.argwhere(walls != walls[tuple(cell)])
        apart = np.abs(others - cell)
        # of two cells so many rows and columns apart, the nearest places and those that are farthest from the other
        least, most = (np.maximum(apart - 1, 0) ** 2).sum(1), (apart**2).sum(1)
        near.append(others[least < most.min(initial=1 << 30)])
    k = max(map(len, near))
    # filled up with one of their own, which changes no least distance
    table = maze.middles(np.stack([chosen[np.minimum(np.arange(k), len(chosen) - 1)] for chosen in near]))
    squares = sum(obstacle.square for obstacle in maze.obstacles)
    border = maze.world.corner + maze.world.side * np.stack([np.zeros(2), np.array(walls.shape)])

    def moved(part: np.ndarray) -> Tensor:
        return torch.as_tensor(part, dtype=dtype, device=device)

    return _Solid(
        near=moved(table.reshape(*walls.shape, k, 2)),
        sign=moved(np.where(walls, -1.0, 1.0)),
        border=moved(border),
        side=maze.world.side,
        squares=moved(maze.boxes[len(maze.boxes) - squares :]),
        discs=moved(maze.discs),
    )


def _to_walls(xy: Float[Tensor, "*batch 2"], solid: _Solid) -> Float[Tensor, "*batch"]:
    """Distance to the nearest wall; for places in walls minus that to the nearest free cell."""
    # which one is nearest needs no gradient: to keep one for each cell takes most of the memory of a step
    with torch.no_grad():
        w, h = solid.sign.shape
        row, column = ((xy - solid.border[0]) / solid.side).nan_to_num(0.0).long().unbind(-1)
        row, column = row.clamp(0, w - 1), column.clamp(0, h - 1)
        near = solid.near[row, column]
        nearest = (near - xy[..., None, :]).abs_().sub_(solid.side / 2.0).clamp_(min=0.0).square_().sum(-1).argmin(-1)
        middle = near.gather(-2, nearest[..., None, None].expand(*nearest.shape, 1, 2)).squeeze(-2)
    out = ((xy - middle).abs() - solid.side / 2.0).clamp(min=0.0)
    return solid.sign[row, column] * torch.linalg.vector_norm(out, dim=-1)


def _to_discs(xy: Float[Tensor, "*batch 2"], discs: Float[Tensor, "n 3"]) -> Float[Tensor, "*batch"]:
    return (torch.linalg.vector_norm(xy[..., None, :] - discs[:, :2], dim=-1) - discs[:, 2]).amin(-1)


def _penalty(room: Float[Tensor, "batch *points"], margin: float) -> Float[Tensor, " batch"]:
    return (margin - room).clamp(min=0.0).square().flatten(1).sum(1)


def _check(margin: float, n: int, name: str) -> None:
    if not (np.isfinite(margin) and margin >= 0.0 and n >= 0):
        raise WorkbenchError(
            f"{name}: got margin={margin} m and {n} points between nodes; expected finite numbers of at least 0: "
            "correct them."
        )
