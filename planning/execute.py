"""Plans carried out: a ball that tracks a plan in `envs.maze2d.Maze2d`, and what came of it.

    a = clip(kp (xy_plan(t) - xy) + kd (v_plan(t) - v), -1, 1)

After the plan's last node the ball is held there. A unit of action accelerates the ball by 23.9 m/s^2, so the errors
decay as `e'' + (23.9 kd + 0.24) e' + 23.9 kp e = 0`: D4RL's gains (10, 1) have 15.5 rad/s and a damping ratio of 0.78,
and trail a plan that accelerates by A m/s^2 by A / 239 m. `STIFF` (40, 2.5) has 30.9 rad/s, a ratio of 0.97 and a
quarter of the trail; at 100 Hz that is still far from the rate at which such a loop rings (kd near 8).

Whatever acts in a state can take a plan's place: a `Controller`; so can what makes either of them for a problem.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from diffusion_core.errors import WorkbenchError, require_at_least
from envs.maze2d import DT, RETURNS, Maze2d, score
from envs.maze2d_expert import KD, KP
from planning.plan import Plan, Planner, Problem


@runtime_checkable
class Controller(Protocol):
    """Acts in a state; of one episode only, as it may remember."""

    def act(self, state: Float[np.ndarray, "4"], goal: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """The force in units of 100 N; what exceeds [-1, 1] is clipped."""
        ...


Peer = Callable[[Problem, int], "Plan | Controller"]
"""What is compared: it makes a plan or a controller for a problem and a seed. WorkbenchError where it cannot."""


@dataclass(frozen=True)
class Gains:
    """Of the tracking controller.

    Args:
        kp: unit actions per m.
        kd: unit actions per m/s.
    """

    kp: float = KP
    kd: float = KD

    def __post_init__(self) -> None:
        require_at_least(0, {"kp": self.kp, "kd": self.kd})


STIFF = Gains(40.0, 2.5)
"""Near critical damping: for plans that are as fast as the ball, or pass walls closely."""


@dataclass(frozen=True)
class Replan:
    """When to plan anew, from where the ball is.

    Args:
        planner: that makes the new plans.
        every: steps from one plan to the next; 0: never for their number.
        deviation: distance from the plan's place at which the next one's turn comes, m.

    Raises:
        WorkbenchError: neither would ever happen, or at every step.
    """

    planner: Planner
    every: int = 0
    deviation: float = float("inf")

    def __post_init__(self) -> None:
        require_at_least(0, {"replan.every": self.every})
        if not (self.deviation > 0.0 and (self.every or np.isfinite(self.deviation))):
            raise WorkbenchError(
                f"replan: got every={self.every} and deviation={self.deviation} m; expected a number of steps or a "
                "positive distance: set one of them."
            )

    def due(self, steps: int, error: float) -> bool:
        """Whether after so many steps of a plan, and so far from it, another is wanted."""
        return steps > 0 and (error > self.deviation or (self.every > 0 and steps % self.every == 0))


@dataclass(frozen=True, eq=False)
class Episode:
    """What came of an attempt at a problem.

    Args:
        states: from the start on, m and m/s.
        actions: as clipped.
        rewards: after each step.
        contacts: whether the ball touched what is solid after each step.
        score: D4RL's, of the return; nan in mazes that have none.
        way_length: of the shortest way through cells with straight ends, m; nan where there is none.
        tracking: distance from the plan at each step while it lasts, m; empty for a controller.
        valid: whether the (first) plan was; None for a controller.
        planning_seconds: each plan's; the controller's own time counts as that of one plan.
        failed_replans: how often no new plan was found; the old one was kept then.
    """

    states: Float[np.ndarray, "moments 4"]
    actions: Float[np.ndarray, "steps 2"]
    rewards: Float[np.ndarray, " steps"]
    contacts: Bool[np.ndarray, " steps"]
    score: float
    goal: Float[np.ndarray, "2"]
    way_length: float
    tracking: Float[np.ndarray, " tracked"]
    valid: bool | None
    planning_seconds: list[float] = field(default_factory=list)
    failed_replans: int = 0

    @property
    def success(self) -> bool:
        """Whether the ball was ever in the goal."""
        return bool(self.rewards.any())

    @property
    def first(self) -> int | None:
        """Steps until the ball was in the goal; None if it never was."""
        return int(self.rewards.argmax()) + 1 if self.success else None

    @property
    def length(self) -> float:
        """Of the ball's way until it was in the goal, or of all of it if it never was, m."""
        return float(
            np.linalg.norm(np.diff(self.states[: (self.first or len(self.actions)) + 1, :2], axis=0), axis=1).sum()
        )

    @property
    def path_ratio(self) -> float:
        """The ball's way, from the goal's edge straight to its middle, in units of the shortest through cells.

        Below 1 where corners were cut; nan where the ball never arrived, began in the goal, or there is no way.
        """
        if self.first is None or self.first == 1:
            return float("nan")
        return (self.length + float(np.linalg.norm(self.states[self.first, :2] - self.goal))) / self.way_length

    @property
    def collisions(self) -> int:
        """Steps with a contact."""
        return int(self.contacts.sum())

    @property
    def tracking_mean(self) -> float:
        """m; nan for a controller."""
        return float(self.tracking.mean()) if len(self.tracking) else float("nan")

    @property
    def tracking_max(self) -> float:
        """m; nan for a controller."""
        return float(self.tracking.max()) if len(self.tracking) else float("nan")


def way_length(problem: Problem) -> float:
    """Of the shortest way through cells, its ends straight lines to the start and the goal, m; nan if there is none."""
    try:
        cells = problem.maze.way(problem.start[:2], problem.goal)
    except ValueError:
        return float("nan")
    way = np.concatenate([problem.start[None, :2], cells[1:-1] - 0.2, problem.goal[None]])
    return float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum())


class Tracker:
    """Follows a plan from the moment that it is made.

    Args:
        plan: to follow.
        gains: of the force.
    """

    def __init__(self, plan: Plan, gains: Gains) -> None:
        self.plan, self.gains, self.steps = plan, gains, 0

    @property
    def over(self) -> bool:
        """Whether the plan's last node is behind."""
        return self.steps * DT > (len(self.plan.xy) - 1) * self.plan.dt

    def error(self, state: Float[np.ndarray, "4"]) -> float:
        """Distance from where the plan is now, m."""
        return float(np.linalg.norm(self.plan.at(self.steps * DT)[0] - state[:2]))

    def act(self, state: Float[np.ndarray, "4"], goal: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """The force (not clipped); the goal is the plan's affair."""
        xy, velocity = self.plan.at(self.steps * DT)
        self.steps += 1
        return self.gains.kp * (xy - state[:2]) + self.gains.kd * (velocity - state[2:])


def execute(
    env: Maze2d,
    problem: Problem,
    plan: Plan | Controller | Peer,
    seed: int,
    gains: Gains = Gains(),
    replan: Replan | None = None,
) -> Episode:
    """Carry out a plan, or let a controller act, for a whole episode.

    Args:
        env: with the problem's maze.
        problem: where from, where to.
        plan: a plan, a controller that has not acted yet, or what makes one of them (its time is measured).
        seed: of the planner; nothing else is random.
        gains: of the tracking.
        replan: when to plan anew.

    Returns:
        What came of it. Time stands still while a planner thinks.

    Raises:
        WorkbenchError: the environment has another maze, a plan is broken or starts elsewhere, a controller was to
            be replanned, or the planner found no plan.
    """
    if env.maze.rows != problem.maze.rows or env.maze.obstacles != problem.maze.obstacles:
        raise WorkbenchError(
            "env: got another maze or other obstacles than the problem's; expected the same: make the environment "
            "from the problem's rows and obstacles."
        )
    state = env.reset(seed=seed, options={"state": problem.start, "goal": problem.goal})[0]
    seconds: list[float] = []
    if not isinstance(plan, Plan | Controller):
        plan = _timed(plan, problem, seed, seconds)
    if replan is not None and not isinstance(plan, Plan):
        raise WorkbenchError(
            "replan: got a controller; expected a plan: leave replan away, a controller always reacts."
        )
    actor = Tracker(_checked(plan, problem), gains) if isinstance(plan, Plan) else plan
    states, actions, rewards, contacts, tracking, failed = [state], [], [], [], [], 0
    acting, done, since = 0.0, False, 0
    while not done:
        if replan is not None and isinstance(actor, Tracker) and replan.due(since, actor.error(state)):
            try:
                here = Problem(problem.maze, state, problem.goal)
                new = _timed(replan.planner, here, _drawn(seed, len(seconds)), seconds)
                assert isinstance(new, Plan)
                actor = Tracker(_checked(new, here), gains)
            except WorkbenchError:
                failed += 1
            since = 0
        if isinstance(actor, Tracker) and not actor.over:
            tracking.append(actor.error(state))
        began = time.perf_counter()
        force = np.clip(actor.act(state, problem.goal), -1.0, 1.0)
        acting += time.perf_counter() - began
        state, reward, _, done, info = env.step(force)
        since += 1
        states.append(state)
        actions.append(force)
        rewards.append(reward)
        contacts.append(info["contact"])
    return Episode(
        states=np.array(states),
        actions=np.array(actions),
        rewards=np.array(rewards),
        contacts=np.array(contacts),
        score=score(env.name, float(np.sum(rewards))) if env.name in RETURNS else float("nan"),
        goal=problem.goal,
        way_length=way_length(problem),
        tracking=np.array(tracking),
        valid=plan.valid(problem) if isinstance(plan, Plan) else None,
        planning_seconds=seconds if isinstance(plan, Plan) else [sum(seconds) + acting],
        failed_replans=failed,
    )


def _timed(peer: Peer, problem: Problem, seed: int, seconds: list[float]) -> Plan | Controller:
    began = time.perf_counter()
    try:
        return peer(problem, seed)
    finally:
        seconds.append(time.perf_counter() - began)


def _drawn(seed: int, count: int) -> int:
    """The seed of a later plan; those of neighbouring episodes must not be one another's."""
    return int(np.random.SeedSequence([seed, count]).generate_state(1)[0])


def _checked(plan: Plan, problem: Problem) -> Plan:
    away = float(np.linalg.norm(plan.xy[0] - problem.start[:2])) if len(plan.xy) else float("nan")
    if not (np.isfinite(plan.xy).all() and plan.dt > 0.0 and away <= 0.1):
        raise WorkbenchError(
            f"plan: got {len(plan.xy)} nodes, dt={plan.dt} s, the first {away:.3g} m from the start; expected finite "
            "places, dt > 0 and at most 0.1 m: correct the planner."
        )
    return plan
