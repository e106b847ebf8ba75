"""The correct waypoint controller: who made the demonstrations, and the honest reference of the scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.maze2d_expert import WaypointController
from planning.plan import Problem
from planning.ways import no_way


@dataclass(frozen=True)
class Waypoint:
    """Makes a `WaypointController` for a problem. It knows the map; nothing of the dynamics, no data.

    A new one for each episode: one that is kept remembers its waypoints, which is what is wrong with D4RL's reference.

    Args:
        spread: waypoints moved at random in their cells, as in the demonstrations; else the cells' middles.
    """

    spread: bool = True

    def __call__(self, problem: Problem, seed: int) -> WaypointController:
        """The controller.

        Raises:
            WorkbenchError: the goal cannot be reached.
        """
        controller = WaypointController(problem.maze, np.random.default_rng(seed) if self.spread else None)
        try:
            controller.begin(problem.start[:2], problem.goal)
        except ValueError:
            raise no_way(problem, "cells") from None
        return controller
