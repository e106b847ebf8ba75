"""Search, the honest ceiling of a known map: the shortest way through cells, as fast as the ball can follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from envs.maze2d import ORIGIN, RADIUS
from planning.ball import Limits
from planning.peers.lattice import Lattice
from planning.plan import Plan, Problem
from planning.timing import profile, timed
from planning.ways import MARGIN, Room, corner_cut, no_way, rounded

DIRECTIONS = np.array([(np.cos(a), np.sin(a)) for a in np.arange(8) * np.pi / 4])


@dataclass(frozen=True)
class Bfs:
    """Plans along the shortest way. Knows the map and the ball's limits; needs no data and no seed.

    Args:
        cut: corners, by line of sight; else from middle to middle of the cells, as the waypoint controller goes.
        spacing: of a lattice to search instead of the cells, m; 0: the cells. Cells know of an obstacle only if it
            covers their middle: what stands between two of them takes a lattice to get around.
        room: that the ball's middle must have, m.
        cut_rooms: that shortcuts must have, m; each is tried, and the quickest plan taken. The least is the shortest
            way, with more there is some left to round the corners in.
        polish: sweeps over all corners, moving each a little wherever that makes the plan quicker.
        limits: of the plan.
    """

    cut: bool = True
    spacing: float = 0.0
    room: float = RADIUS + MARGIN
    cut_rooms: tuple[float, ...] = (0.15, 0.2, 0.3)
    polish: int = 3
    limits: Limits = Limits()  # noqa: RUF009

    def __call__(self, problem: Problem, seed: int) -> Plan:
        """The plan; the same for every seed.

        Raises:
            WorkbenchError: there is no way that the ball fits through.
        """
        room = Room.of(problem, self.room)
        way = self.way(problem, room)
        if not room.along(way):
            raise no_way(problem, "cells, one of them too narrow; a lattice (spacing=0.1) may find one")
        ways = [corner_cut(Room.of(problem, cut), way) for cut in self.cut_rooms] if self.cut else [way]
        velocity = problem.start[2:]
        quickest = min(ways, key=lambda way: self.seconds(way, room, velocity))
        return timed(rounded(room, self.polished(quickest, room, velocity)), velocity, self.limits)

    def way(self, problem: Problem, room: Room) -> Float[np.ndarray, "n 2"]:
        """The corners before any is cut."""
        start, goal = problem.start[:2], problem.goal
        if self.spacing:
            return Lattice(problem, room, self.spacing).way(start)
        try:
            cells = problem.maze.way(start, goal)
        except ValueError:
            raise no_way(problem, "cells") from None
        return np.concatenate([start[None], cells[1:-1] - ORIGIN, goal[None]])

    def seconds(self, way: Float[np.ndarray, "n 2"], room: Room, velocity: Float[np.ndarray, "2"]) -> float:
        """How long the plan along a way takes."""
        return float(profile(rounded(room, way), velocity, self.limits).t[-1])

    def polished(
        self, way: Float[np.ndarray, "n 2"], room: Room, velocity: Float[np.ndarray, "2"]
    ) -> Float[np.ndarray, "n 2"]:
        """The way with its corners where they make it quickest; the move is halved with each sweep."""
        way = way.copy()
        least = self.seconds(way, room, velocity)
        for sweep in range(self.polish):
            for i in range(1, len(way) - 1):
                for direction in DIRECTIONS:
                    other = way.copy()
                    other[i] += 0.2 * 0.5**sweep * direction
                    if room.along(other[i - 1 : i + 2]):
                        taken = self.seconds(other, room, velocity)
                        if taken < least:
                            way, least = other, taken
        return way
