"""RRTConnect and BIT* of the Open Motion Planning Library, timed as every other way here.

Source: Kuffner and LaValle 2000 (doi 10.1109/ROBOT.2000.844730); Gammell, Srinivasa and Barfoot 2015, BIT* (arXiv
1405.5848); Sucan, Moll and Kavraki 2012, OMPL (doi 10.1109/MRA.2012.2205651).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_core.errors import WorkbenchError, require_at_least
from envs.maze2d import RADIUS
from planning.ball import Limits
from planning.plan import Plan, Problem
from planning.timing import timed
from planning.ways import MARGIN, Room, no_way, rounded

KINDS = {"rrtconnect": "RRTConnect", "bitstar": "BITstar"}


@dataclass(frozen=True)
class Ompl:
    """Samples a way, simplifies it, and times it. Knows the map and the ball's limits; needs no data.

    Its effort is counted in legs whose clearance was checked, not in seconds, so that a seed gives the same plan on any
    machine. RRTConnect stops at its first way; BIT* goes on to better ones until the effort is spent.

    Args:
        kind: "rrtconnect" or "bitstar".
        legs: checked at most while searching.
        simplify: checked at most while simplifying; 0: the way as it was found.
        rooms: that the ball's middle must have, m: a way is sought with each, and the quickest plan taken; with more
            than the least there is some left to round the corners in.
        limits: of the plan.

    Raises:
        WorkbenchError: OMPL is not installed, or there is no such kind.
    """

    kind: str = "rrtconnect"
    legs: int = 2000
    simplify: int = 1000
    rooms: tuple[float, ...] = (RADIUS + MARGIN, 0.25)
    limits: Limits = Limits()  # noqa: RUF009

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise WorkbenchError(f"kind: got {self.kind!r}; expected one of {', '.join(KINDS)}: choose one.")
        require_at_least(1, {"legs": self.legs})
        require_at_least(0, {"simplify": self.simplify})
        if find_spec("ompl") is None:
            raise WorkbenchError("ompl: got no such package; expected it for this peer: pip install 'ompl>=2.0'.")

    def __call__(self, problem: Problem, seed: int) -> Plan:
        """The plan.

        Raises:
            WorkbenchError: none was found with this effort.
        """
        least, plans = Room.of(problem, min(self.rooms)), []
        for room in self.rooms:
            way = self.way(problem, Room.of(problem, room), seed)
            if way is not None:
                plans.append(timed(rounded(least, way), problem.start[2:], self.limits))
        if not plans:
            raise no_way(problem, f"{KINDS[self.kind]}, {self.legs} legs")
        return min(plans, key=lambda plan: len(plan.xy))

    def way(self, problem: Problem, room: Room, seed: int) -> Float[np.ndarray, "n 2"] | None:
        """The corners that OMPL found."""
        from ompl import base, geometric, util

        util.setLogLevel(util.LOG_NONE)
        # OMPL's generators take their seeds, in turn, from this one; it refuses 0
        util.RNG.setSeed(seed % (2**31 - 2) + 1)
        space = base.RealVectorStateSpace(2)
        bounds = base.RealVectorBounds(2)
        for axis, n in enumerate(problem.maze.walls.shape):
            bounds.setLow(axis, -0.7)
            bounds.setHigh(axis, n - 0.7)
        space.setBounds(bounds)
        setup = geometric.SimpleSetup(space)
        information = setup.getSpaceInformation()
        setup.setStateValidityChecker(lambda state: bool(room.free(_xy(state))))
        legs = _legs(base, information, room)
        information.setMotionValidator(legs)
        setup.setPlanner(getattr(geometric, KINDS[self.kind])(information))
        ends = []
        for xy in (problem.start[:2], problem.goal):
            state = space.allocState()
            state[0], state[1] = float(xy[0]), float(xy[1])
            ends.append(state)
        setup.setStartAndGoalStates(*ends)
        setup.solve(base.PlannerTerminationCondition(lambda: legs.count >= self.legs))
        if not setup.haveExactSolutionPath():
            return None
        path = setup.getSolutionPath()
        if self.simplify:
            most = legs.count + self.simplify
            stop = base.PlannerTerminationCondition(lambda: legs.count >= most)
            setup.getPathSimplifier().simplify(path, stop)
        return np.array([_xy(state) for state in path.getStates()])


def _xy(state: Any) -> Float[np.ndarray, "2"]:
    return np.array([state[0], state[1]])


def _legs(base: Any, information: Any, room: Room) -> Any:
    """The check of a leg that OMPL calls: all its places at once, where OMPL's own asks for one after the other."""

    # information must not be in a closure of the class: that is a circle through C++, which is never collected
    class Legs(base.MotionValidator):  # type: ignore[misc]
        def __init__(self, information: Any) -> None:
            super().__init__(information)
            self.count = 0

        def checkMotion(self, a: Any, b: Any, *_: Any) -> bool:  # noqa: N802
            self.count += 1
            return room.along(np.stack([_xy(a), _xy(b)]))

    return Legs(information)
