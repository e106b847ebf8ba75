"""Distances and shortest ways on a lattice finer than the cells: what a search that knows the map knows."""

from __future__ import annotations

import heapq

import numpy as np
from jaxtyping import Float

from diffusion_core.errors import WorkbenchError
from envs.maze2d import ORIGIN
from planning.plan import Problem
from planning.ways import Room, no_way


class Lattice:
    """Distance to a goal from every place of a lattice, by Dijkstra's algorithm over its 8 neighbours.

    Args:
        problem: its maze and its goal.
        room: what a place must have.
        spacing: of the lattice, m; a whole number of them to the cell.

    Raises:
        WorkbenchError: the spacing does not divide a cell.
    """

    def __init__(self, problem: Problem, room: Room, spacing: float = 0.1) -> None:
        if not (0.02 <= spacing <= 1.0 and abs(1.0 / spacing - round(1.0 / spacing)) < 1e-6):
            raise WorkbenchError(
                f"spacing: got {spacing} m; expected 0.02 to 1 m, and a whole number of them to a cell of 1 m: "
                "choose 0.1, say."
            )
        self.problem, self.room, self.spacing = problem, room, spacing
        nx, ny = (round(n / spacing) for n in problem.maze.walls.shape)
        # places in the middles of squares: with one to the cell, the cell's middle
        self.x, self.y = ((np.arange(n) + 0.5) * spacing - ORIGIN - 0.5 for n in (nx, ny))
        places = np.stack(np.meshgrid(self.x, self.y, indexing="ij"), -1)
        self._free = room.free(places)
        self._steps = [(i, j, spacing * float(np.hypot(i, j))) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
        self._open = {(i, j): room.free(places + np.array([i, j]) * spacing / 2.0) for i, j, _ in self._steps}
        self.distance: Float[np.ndarray, "w h"] = np.full(places.shape[:2], np.inf)
        self._next: dict[tuple[int, int], tuple[int, int] | None] = {}
        self._search()

    def place(self, at: tuple[int, int]) -> Float[np.ndarray, "2"]:
        """Of a point of the lattice, m."""
        return np.array([self.x[at[0]], self.y[at[1]]])

    def way(self, start: Float[np.ndarray, "2"]) -> Float[np.ndarray, "n 2"]:
        """The shortest way over the lattice from a place to the goal, straight at both ends.

        Raises:
            WorkbenchError: there is none.
        """
        found = [(apart + self.distance[at], at) for apart, at in self._around(start)]
        if not found or not np.isfinite(min(found)[0]):
            raise no_way(self.problem, f"lattice of {self.spacing:g} m")
        at: tuple[int, int] | None = min(found)[1]
        way = [start]
        while at is not None:
            way.append(self.place(at))
            at = self._next[at]
        return np.array([*way, self.problem.goal])

    def _around(self, xy: Float[np.ndarray, "2"]) -> list[tuple[float, tuple[int, int]]]:
        """Points of the lattice near a place, in sight and free, with their distance."""
        middle = [int(np.abs(axis - value).argmin()) for axis, value in zip((self.x, self.y), xy, strict=True)]
        found = []
        for i in range(middle[0] - 2, middle[0] + 3):
            for j in range(middle[1] - 2, middle[1] + 3):
                inside = 0 <= i < len(self.x) and 0 <= j < len(self.y)
                if inside and self._free[i, j] and self.room.along(np.stack([xy, self.place((i, j))])):
                    found.append((float(np.linalg.norm(self.place((i, j)) - xy)), (i, j)))
        return found

    def _search(self) -> None:
        queue = self._around(self.problem.goal)
        for apart, at in queue:
            self.distance[at], self._next[at] = apart, None
        heapq.heapify(queue)
        while queue:
            far, (x, y) = heapq.heappop(queue)
            if far > self.distance[x, y]:
                continue
            for i, j, length in self._steps:
                there = x + i, y + j
                # the border is all walls, so an index never runs out of the map
                if self._free[there] and self._open[i, j][x, y] and far + length < self.distance[there]:
                    self.distance[there], self._next[there] = far + length, (x, y)
                    heapq.heappush(queue, (far + length, there))

    def filled(self) -> Float[np.ndarray, "w h"]:
        """The distances, in walls those of the nearest free place and twice the way to it; for interpolation."""
        found = self.distance.copy()
        for _ in range(sum(found.shape)):
            if np.isfinite(found).all():
                break
            padded = np.pad(found, 1, constant_values=np.inf)
            w, h = found.shape
            near = np.min(
                [padded[1 + i : 1 + i + w, 1 + j : 1 + j + h] + 2.0 * length for i, j, length in self._steps], axis=0
            )
            found = np.where(np.isfinite(found), found, near)
        return found
