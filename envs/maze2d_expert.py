"""Controllers that know the map of a maze: what the demonstrations are made by, and a ceiling for planners.

`WaypointController` goes from cell to cell along the shortest way, `a = 10 (waypoint - xy) - v`. D4RL's script made one
such controller, and its waypoints stayed those of the first goal (D4RL issues #159 and #215); ``stale=True`` repeats
that, since D4RL's scale of scores is built on it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from envs.maze2d import Maze

KP, KD = 10.0, 1.0
REACHED = 0.1
"""Distance at which the next waypoint's turn comes, m."""
SPREAD = 0.2
"""How far waypoints are moved at random towards the corner of lower coordinates, m; 0.2 is the middle of a cell."""


class WaypointController:
    """Drives a ball through the cells of the shortest way.

    Args:
        maze: the map.
        generator: moves the waypoints at random, as D4RL does; None: the cells' middles.
        stale: keeps to the waypoints of the first goal for ever, as D4RL's reference does.
    """

    def __init__(self, maze: Maze, generator: np.random.Generator | None = None, stale: bool = False) -> None:
        self.maze, self.generator, self.stale = maze, generator, stale
        self.goal: np.ndarray | None = None
        self.waypoints: Float[np.ndarray, "n 2"] = np.zeros((0, 2))

    def begin(self, xy: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> None:
        """Find the way to a goal.

        Raises:
            ValueError: there is none.
        """
        middle = self.maze.way(xy, goal)[1:-1]
        chance = np.ones(middle.shape) if self.generator is None else self.generator.random(middle.shape)
        self.waypoints = np.concatenate([middle - SPREAD * chance, np.asarray(goal, float)[None]])
        self.goal = np.array(goal, dtype=float)

    def act(self, state: Float[np.ndarray, "4"], goal: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """The force (not clipped) in a state, on the way to ``goal``."""
        xy, velocity = state[:2], state[2:]
        if self.goal is None or (not self.stale and (self.goal != goal).any()):
            self.begin(xy, goal)
        force = KP * (self.waypoints[0] - xy) - KD * velocity
        # after acting, as D4RL does: before, the ball is 2 % faster than in its data
        if len(self.waypoints) > 1 and np.linalg.norm(self.waypoints[0] - xy) < REACHED:
            self.waypoints = self.waypoints[1:]
        return force

    def arrived(self, state: Float[np.ndarray, "4"]) -> bool:
        """Whether the ball is at the goal, and slow."""
        assert self.goal is not None
        return bool(np.linalg.norm(state[:2] - self.goal) < REACHED and np.linalg.norm(state[2:]) < REACHED)
