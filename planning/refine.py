"""A plan made better where it is known how: shortcuts, round corners, as fast as the ball can follow.

A prior of trajectories says which way round to go, at a pace that the demonstrations had; it knows nothing of what the
ball can do, and little of walls. Who knows the map and the ball can use that last, on the one plan that was selected.
"""

from __future__ import annotations

from diffusion_core.errors import WorkbenchError
from envs.maze2d import BALL
from planning.ball import Limits
from planning.config import REFINE
from planning.plan import Plan, Problem
from planning.timing import timed
from planning.ways import Room, corner_cut, rounded


def refined(problem: Problem, plan: Plan, how: str, limits: Limits = Limits()) -> Plan:  # noqa: B008
    """The plan that is carried out instead.

    Args:
        problem: its map is looked at, except by "none".
        plan: from the start to the goal.
        how: "none": as it is; "timed": corners rounded where there is room, and as fast as the limits allow; "cut":
            its shortcuts first, which never lead to the other side of a wall or an obstacle.
        limits: of the ball.

    Raises:
        WorkbenchError: there is no such way.
    """
    if how not in REFINE:
        raise WorkbenchError(f"refine: got {how!r}; expected one of {', '.join(REFINE)}: choose one.")
    if how == "none":
        return plan
    if problem.maze.world != BALL:
        raise WorkbenchError(
            f"planner.refine: got {how!r} in a world without inertia; expected none: only Maze2D's ball has limits."
        )
    room = Room.of(problem)
    way = corner_cut(room, plan.xy) if how == "cut" else plan.xy
    return timed(rounded(room, way), problem.start[2:], limits)
