"""Plans followed in OGBench's point mazes, and what came of it.

    a = clip((xy_plan(t + 0.1 s) - xy) / 0.2 m, -1, 1)

A point without inertia is where its plan is one step later, wherever the plan asks for no more than 2 m/s along an axis
and no wall is in the way. After the last node it goes on to that node.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from diffusion_core.errors import WorkbenchError, require_at_least
from envs.pointmaze import POINT, STRIDE, TASKS, PointMaze
from planning.plan import Plan, Planner, Problem
from planning.ways import resampled

STUCK = 2.0
"""Distance from where the plan is at which a point no longer follows it, m."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """What came of following plans.

    Args:
        success: whether the goal was reached.
        xy: places from the start on, m.
        contacts: steps at which something was touched.
        valid: whether the first plan was free all along and ended at the goal.
        planning_seconds: each plan's.
    """

    success: bool
    xy: Float[np.ndarray, "n 2"]
    contacts: int
    valid: bool
    planning_seconds: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.xy) - 1


def follow(env: PointMaze, problem: Problem, planner: Planner, seed: int, plans: int = 1) -> Attempt:
    """Try to reach a problem's goal.

    Args:
        env: of the problem's maze.
        problem: its start's velocity is ignored.
        planner: of every plan.
        seed: of the first plan's noise; those of others follow from it.
        plans: how many may be made: another one where the point is `STUCK` away from its plan, or at its end and not at
            the goal. With but one, the episode goes on to its end.

    Raises:
        WorkbenchError: the environment is of another maze, or the planner finds no plan.
    """
    require_at_least(1, {"plans": plans})
    if env.maze is not problem.maze:
        raise WorkbenchError("follow: got a problem of another maze; expected one of the environment's: make it anew.")
    xy, info = env.reset(seed=seed, options={"state": problem.start[:2], "goal": problem.goal})
    seconds: list[float] = []
    places, contacts, valid = [xy], 0, False
    plan, since, done = Plan(xy[None], POINT.dt), 0, bool(info["is_success"])
    while not done:
        target = plan.at(since * POINT.dt)[0]
        apart = float(np.linalg.norm(target - xy))
        ended = since * POINT.dt >= (len(plan.xy) - 1) * plan.dt and (apart < 1e-6 or not _moves(places))
        if not seconds or (len(seconds) < plans and (apart > STUCK or ended)):
            here = Problem(problem.maze, np.array([*xy, 0.0, 0.0]), problem.goal)
            chance = seed if not seconds else int(np.random.SeedSequence([seed, len(seconds)]).generate_state(1)[0])
            began = time.perf_counter()
            plan, since = planner(here, chance), 0
            seconds.append(time.perf_counter() - began)
            valid = plan.valid(problem) if len(seconds) == 1 else valid
        since += 1
        action = (plan.at(since * POINT.dt)[0] - xy) / STRIDE
        xy, _, reached, over, info = env.step(np.clip(action, -1.0, 1.0))
        places.append(xy)
        contacts += int(info["contact"])
        done = reached or over
    return Attempt(bool(info["is_success"]), np.array(places), contacts, valid, seconds)


def _moves(places: Sequence[np.ndarray]) -> bool:
    return len(places) < 2 or bool(np.abs(places[-1] - places[-2]).max() > 1e-3)


def tasks(env: PointMaze, each: int, seed: int) -> list[Problem]:
    """``each`` starts and goals of each of the five tasks, the first task's first, as OGBench draws them."""
    found = []
    for task in range(1, len(TASKS[env.name]) + 1):
        for k in range(each):
            start, info = env.reset(seed=seed + k, options={"task": task})
            found.append(Problem(env.maze, np.array([*start, 0.0, 0.0]), info["goal"]))
    return found


class ThroughCells:
    """The way of a search that knows the map, from middle to middle of its cells."""

    def __call__(self, problem: Problem, seed: int = 0) -> Plan:
        """A plan at 2 m/s.

        Raises:
            WorkbenchError: there is none.
        """
        try:
            cells = problem.maze.way(problem.start[:2], problem.goal)
        except ValueError as error:
            raise WorkbenchError(str(error)) from error
        way = np.concatenate([problem.start[None, :2], problem.maze.middles(cells[1:-1]), problem.goal[None]])
        return Plan(resampled(way, POINT.speed * POINT.dt), POINT.dt)
