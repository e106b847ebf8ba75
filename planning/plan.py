"""What a planner is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from diffusion_core.errors import WorkbenchError
from envs.maze2d import Maze


@dataclass(frozen=True, eq=False)
class Problem:
    """From where to where, and through what.

    Args:
        maze: walls and obstacles.
        start: place and velocity, m and m/s.
        goal: place, m.

    Raises:
        WorkbenchError: the start or the goal is in a wall or an obstacle, or outside of the maze.
    """

    maze: Maze
    start: Float[np.ndarray, "4"]
    goal: Float[np.ndarray, "2"]

    def __post_init__(self) -> None:
        for name, xy in (("start", self.start[:2]), ("goal", self.goal)):
            if not np.isfinite(xy).all() or float(self.maze.clearance(xy)) <= 0.0:
                raise WorkbenchError(
                    f"{name}: got {np.round(xy, 3).tolist()}, inside a wall or an obstacle or outside of the maze; "
                    "expected a free place: choose another."
                )


@dataclass(frozen=True, eq=False)
class Plan:
    """A way through a maze in time; after its last node the ball stays there.

    Args:
        xy: places, m; the first is the start.
        dt: time from one to the next, s.
    """

    xy: Float[np.ndarray, "n 2"]
    dt: float

    @property
    def length(self) -> float:
        """Of the way, m."""
        return float(np.linalg.norm(np.diff(self.xy, axis=0), axis=1).sum())

    def at(self, seconds: float) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
        """Place and velocity at a time, on straight lines between the nodes."""
        where = seconds / self.dt
        i = int(where)
        if i + 1 >= len(self.xy):
            return self.xy[-1], np.zeros(2)
        step = self.xy[i + 1] - self.xy[i]
        return self.xy[i] + (where - i) * step, step / self.dt

    def dense(self, spacing: float = 0.02) -> Float[np.ndarray, "m 2"]:
        """Places along the way, none farther than ``spacing`` m from the next."""
        parts = [self.xy[:1]]
        for a, b in zip(self.xy[:-1], self.xy[1:], strict=True):
            n = max(int(np.ceil(np.linalg.norm(b - a) / spacing)), 1)
            parts.append(a + (b - a) * (np.arange(1, n + 1) / n)[:, None])
        return np.concatenate(parts)

    def clearance(self, maze: Maze) -> float:
        """Least distance of the way to what is solid, m; negative where it goes through."""
        return float(maze.clearance(self.dense(0.02 * maze.world.side)).min())

    def valid(self, problem: Problem, radius: float | None = None, reach: float | None = None) -> bool:
        """Whether the ball fits all along the way, and the way ends at the goal.

        Args:
            radius: that must be free around every place, m; None: the ball's.
            reach: of the goal, m; None: the task's.
        """
        world = problem.maze.world
        ends = float(np.linalg.norm(self.xy[-1] - problem.goal)) <= (world.reach if reach is None else reach)
        return ends and self.clearance(problem.maze) >= (world.radius if radius is None else radius)


@runtime_checkable
class Planner(Protocol):
    """Finds plans."""

    def __call__(self, problem: Problem, seed: int) -> Plan:
        """A plan.

        Raises:
            WorkbenchError: none was found.
        """
        ...
