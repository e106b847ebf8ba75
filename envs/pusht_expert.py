"""A scripted expert for Push-T: two straight pushes looked ahead, one carried out, then again.

Plan at rest. Of all pushes (k, l) of the library take the one that minimises the expected number of steps to the end,

    J = travel(k)/v_travel + l/v_push + min over (k', l') of [travel(k')/v_travel + l'/v_push + h(d'')] + 2 c

where d'' is the misfit of the T (px) after both pushes and h(d) the steps that still has to cost. One push may be
enough: then the second term is h(d') itself. J is a time, so a plan that was best stays best while it is being carried
out: what the expert does is, but for ties, a function of the state alone, and can be imitated from observations.

Travel. Pure pursuit of the shortest way around the T. Push. Pure pursuit of the line of the push; under the
environment's critically damped control a target `lead` px ahead gives a steady lead/2 px per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from envs.pusht import GOAL, OUTLINE, RADIUS, WORLD, coverage, place, rotation
from envs.pusht_push import CENTROID, CLEARANCE, GOAL_CENTROID, GYRATION, clearance, compose, library, misfit, push
from envs.pusht_travel import blocked, inside, roadmap, route, ways


@dataclass(frozen=True)
class ExpertStyle:
    """How the expert moves and weighs.

    Args:
        travel_lead: distance of the target ahead while travelling, px (twice the speed in px per step).
        push_lead: the same while pushing, px.
        setup: cost of one more push, steps: retreat, approach and settling.
        fragility: cost of a push whose outcome moves 1 px per px of sideways error, steps.
        oblique: cost of pushing 1 rad off the normal, steps: of nearly equal pushes it picks the straighter.
        breadth: first pushes whose successors are searched.
        enough: coverage at which it rests.
    """

    travel_lead: float = 36.0
    push_lead: float = 22.0
    setup: float = 6.0
    fragility: float = 2.0
    oblique: float = 12.0
    breadth: int = 96
    enough: float = 0.96


@dataclass(frozen=True)
class Plan:
    """One push: from `start` along unit `direction` for `length` px (world frame), decided at block pose `pose`."""

    start: Float[np.ndarray, "2"]
    direction: Float[np.ndarray, "2"]
    length: float
    final: bool
    pose: Float[np.ndarray, "3"]
    cost: float


def steps_to_go(d: Float[np.ndarray, "..."] | float) -> Float[np.ndarray, "..."] | float:
    """Return h(d) = 40 q/(1+q) + 20 log(1 + d/8) + 1.2 d, q = (d/1.5)²: the steps that misfit d (px) still has to cost.

    One correcting push as soon as d exceeds what counts as solved, more the farther; too small values make it dawdle.
    """
    q = (d / 1.5) ** 2
    return 40.0 * q / (1.0 + q) + 20.0 * np.log1p(d / 8.0) + 1.2 * d


def outside_by(pose: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."] | float:
    """Return how far, px, the block's farthest corner is beyond the walls' inner faces (7 and 504 px)."""
    corner = place(OUTLINE, pose)
    return np.maximum(np.maximum(7.5 - corner, corner - 503.5), 0.0).max((-1, -2))


def plan(state: Float[np.ndarray, "5"], style: ExpertStyle) -> Plan:
    """Choose the next push for a block at rest; deterministic in the state."""
    lib, graph = library(), roadmap()
    pose, agent = state[2:], state[:2]
    turn = rotation(pose[2])
    finger = turn.T @ (agent - pose[:2])
    allowed = inside(pose[:2] + graph.corner @ turn.T)
    _, _, to_dock = ways(finger, allowed)

    begin = pose[:2] + lib.start @ turn.T
    reachable = inside(begin)[:, None] & lib.usable
    end = begin[:, None] + lib.lengths[:, None] * (lib.direction @ turn.T)[:, None]
    first = _own_cost(style) + to_dock[lib.contact][:, None] / (style.travel_lead / 2)
    outcome = compose(pose, lib.motion)
    beyond = outside_by(outcome)
    first = first + 10.0 * np.maximum(beyond - outside_by(pose), 0.0)
    first = np.where(reachable & inside(end), first, np.inf)
    d = np.asarray(misfit(outcome))
    alone = first + steps_to_go(d)

    turned = GYRATION * np.sqrt(2 * (1 - np.cos(outcome[..., 2] - np.pi / 4)))
    choice = _shortlist([alone, first + steps_to_go(turned) + 0.1 * d], style.breadth)
    pair = _second(outcome[choice], lib.last[choice], style)
    total = np.minimum(alone[choice], first[choice] + pair)
    best = int(total.argmin())
    k, length = choice[0][best], choice[1][best]
    final = bool(alone[k, length] <= first[k, length] + pair[best] and d[k, length] < 5.0)
    if final:
        length = int(alone[k].argmin())
    if not np.isfinite(total[best]):
        raise RuntimeError(
            f"plan: got state {np.round(state, 2).tolist()} with no reachable push, expected one; "
            "the block is probably wedged against a wall: drop this start"
        )
    return Plan(begin[k], turn @ lib.direction[k], float(lib.lengths[length]), final, pose.copy(), float(total[best]))


def _shortlist(scores: list[Float[np.ndarray, "k l"]], breadth: int) -> tuple[np.ndarray, np.ndarray]:
    picks = []
    for score in scores:
        # The best length of every push, in four bands of length: neighbours in length are nearly the same plan.
        for band in np.array_split(np.arange(score.shape[1]), 4):
            length = band[score[:, band].argmin(1)]
            value = score[np.arange(len(score)), length]
            k = np.argsort(value, kind="stable")[: breadth // (4 * len(scores))]
            picks.append(np.stack([k, length[k]], 1))
    pick = np.unique(np.concatenate(picks), axis=0)
    return pick[:, 0], pick[:, 1]


@cache
def _coarse(style: ExpertStyle) -> tuple[np.ndarray, ...]:
    """Return every second length of the library, usable pushes only, flat: push, cost, centroid's motion, cos, sin."""
    lib = library()
    push_of, length_of = np.nonzero(lib.usable[:, 1::2])
    length_of = 2 * length_of + 1
    motion = lib.motion[push_of, length_of]
    centre = motion[:, :2] + np.stack([-np.sin(motion[:, 2]), np.cos(motion[:, 2])], -1) * CENTROID[1]
    cost = _own_cost(style)[push_of, length_of]
    single = (array.astype(np.float32) for array in (cost, centre, np.cos(motion[:, 2]), np.sin(motion[:, 2])))
    return push_of, *single


def _own_cost(style: ExpertStyle) -> Float[np.ndarray, "k l"]:
    lib = library()
    return (
        style.setup
        + lib.lengths / (style.push_lead / 2)
        + style.fragility * lib.spread
        + style.oblique * lib.tilt[:, None] ** 2
    )


def _second(pose: Float[np.ndarray, "m 3"], last: Int[np.ndarray, "m"], style: ExpertStyle) -> Float[np.ndarray, "m"]:
    """Return the least cost of one more push after each pose, misfit to go included."""
    lib, graph = library(), roadmap()
    push_of, cost, centre, c, s = _coarse(style)
    begin = pose[:, None, :2] + np.einsum("mij,kj->mki", rotation(pose[:, 2]), lib.start)
    travel = graph.docks[last][:, lib.contact] / (style.travel_lead / 2)
    travel = np.where(inside(begin), travel, np.inf).astype(np.float32)
    out = np.empty(len(pose))
    for m, (x, y, angle) in enumerate(pose):
        # d² = |R^T (c_goal - xy) - centre|² + 2 g² (1 - cos(θ + Δθ - θ_goal)), all in the body frame of this pose.
        goal = (rotation(angle).T @ (GOAL_CENTROID - np.array([x, y]))).astype(np.float32)
        off, turn = centre - goal, angle - GOAL[2]
        cosine = np.float32(np.cos(turn)) * c - np.float32(np.sin(turn)) * s
        squared = off[:, 0] ** 2 + off[:, 1] ** 2 + np.float32(2 * GYRATION**2) * (1 - cosine)
        out[m] = (cost + travel[m][push_of] + steps_to_go(np.sqrt(np.maximum(squared, 0)))).min()
    return out


class Expert:
    """Closed-loop expert; `act` takes the observed state and returns the target to send.

    Args:
        style: how it moves.
    """

    def __init__(self, style: ExpertStyle | None = None) -> None:
        self.style = style or ExpertStyle()
        self.plan: Plan | None = None
        self._pushing = False
        self._age = 0

    def reset(self) -> None:
        """Forget the plan; call at the start of an episode."""
        self.plan, self._pushing, self._age = None, False, 0

    def act(self, state: Float[np.ndarray, "5"]) -> Float[np.ndarray, "2"]:
        """Return the target (x, y in px) the expert wants in `state`."""
        if self.plan is None and coverage(state[2:]) >= self.style.enough:
            return state[:2].copy()
        for _ in range(2):
            if self.plan is None:
                self.plan, self._pushing, self._age = plan(state, self.style), False, 0
            target = self._follow(state, self.plan)
            if target is not None:
                return np.clip(target, 0.0, WORLD)
            self.plan = None
            if coverage(state[2:]) >= self.style.enough:
                return state[:2].copy()
        raise RuntimeError(f"act: got two empty plans at state {state.tolist()}, expected a move; report this state")

    def _follow(self, state: Float[np.ndarray, "5"], now: Plan) -> Float[np.ndarray, "2"] | None:
        self._age += 1
        agent, pose = state[:2], state[2:]
        ahead = float((agent - now.start) @ now.direction)
        aside = agent - now.start - ahead * now.direction
        if not self._pushing:
            moved = np.linalg.norm(pose[:2] - now.pose[:2]) > 1.0 or abs(pose[2] - now.pose[2]) > 0.02
            if (moved and self._age > 1) or self._age > 100:
                return None
            if np.hypot(np.linalg.norm(aside), min(ahead, 0.0)) > 4.0 or ahead > 6.0:
                return self._pursue(agent, pose, now.start)
            self._pushing = True
        if np.linalg.norm(aside) > 8.0 or self._age > 200:
            return None
        length = self._stop(agent, pose, now, ahead) if now.final else now.length
        if ahead >= length - np.clip(0.1 * (now.length - CLEARANCE), 0.4, 0.7 if now.final else 2.5):
            return None
        return now.start + min(ahead + self.style.push_lead, length) * now.direction

    def _stop(self, agent: np.ndarray, pose: np.ndarray, now: Plan, ahead: float) -> float:
        """Return where along the push the T fits best, seen from here (closed loop)."""
        rest = np.arange(0.0, max(now.length - ahead, 0.0) + 12.0, 0.5)
        stride = 1.0 if now.length - ahead < 30 else 2.0
        if stride > 1:
            rest = np.concatenate([rest[:1], rest[1:][::4]])
        after = push(pose[None], agent[None], now.direction[None], rest[1:], stride)[0]
        return ahead + float(rest[np.concatenate([[misfit(pose)], misfit(after)]).argmin()])

    def _pursue(self, agent: np.ndarray, pose: np.ndarray, goal: np.ndarray) -> np.ndarray:
        turn = rotation(pose[2])
        finger, target = turn.T @ (agent - pose[:2]), turn.T @ (goal - pose[:2])
        allowed = inside(pose[:2] + roadmap().corner @ turn.T)
        way = np.concatenate([finger[None], route(finger, target, allowed)])
        gap = min(RADIUS + 2.0, float(clearance(finger)[0]) - 0.05)
        for lead in self.style.travel_lead * np.array([1.0, 0.8, 0.6, 0.4, 0.2]):
            carrot = _along(way, lead)
            if not blocked(finger[None], carrot[None], gap)[0]:
                break
        return pose[:2] + turn @ carrot


def _along(way: Float[np.ndarray, "w 2"], length: float) -> Float[np.ndarray, "2"]:
    """Return the point `length` px along a polyline, or its end."""
    for a, b in pairwise(way):
        leg = float(np.linalg.norm(b - a))
        if leg >= length:
            return a + (b - a) * (length / leg)
        length -= leg
    return way[-1]
