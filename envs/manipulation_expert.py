"""Scripted hands for Lift, Can and Square that go from place to place by what they see, each episode in its own manner.

    a = clip(gain (goal - tips) / 5 cm), clip(gain log(R* R^T) / 0.5 rad), fingers

A hand goes above the object, down, closes, up, and where there is something to fill or to fit onto also over it, down,
opens and away. When it closed on nothing, or lost what it held, it begins again. Square's nut is taken by its handle
and turned, in the air, by the least angle that makes it fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from envs.manipulation import INSTRUCTIONS
from envs.manipulation_arm import REACH, TURN

GAIN = 1.5
BIN, PEG = np.array([0.155, 0.355]), np.array([0.23, 0.1])
"""A place in the can's bin, whose middle an upright hand cannot reach, and the square peg, m."""
PEG_TOP = 0.95
HANDLE = 0.063
"""From the middle of the nut to where its handle is free, m."""
DOWN = Rotation.from_rotvec([np.pi, 0.0, 0.0])
"""Of a hand that points down, its fingers along y."""
SITE = Rotation.from_rotvec([0.0, 0.0, -np.pi / 2])
"""Of the fingertips, whose pose an absolute action is, in the hand, whose orientation is seen."""
LOST = 0.05
"""How far the object may come from where it was held, m."""


@dataclass(frozen=True)
class Style:
    """What differs between episodes.

    Args:
        speed: the largest step asked for, of 1.
        height: of the fingertips above the object's middle when they close, m.
        along: of the grasp from where it would be best, m.
        bow: how far a long way goes sideways, of its length.
        travel: height on the way, m above what must be passed.
        turn: of the hand when any will do, rad.
        pause: steps it waits for its fingers.
        drop: height at which it opens, m above the lowest.
        put: of the can from `BIN`, x and y, m.
    """

    speed: float
    height: float
    along: float
    bow: float
    travel: float
    turn: float
    pause: int
    drop: float
    put: tuple[float, float]

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Style:
        """One of many."""
        return cls(
            speed=float(rng.uniform(0.55, 1.0)),
            height=float(rng.uniform(-0.004, 0.008)),
            along=float(rng.uniform(-0.004, 0.004)),
            bow=float(rng.uniform(-0.25, 0.25)),
            travel=float(rng.uniform(0.0, 0.05)),
            turn=float(rng.uniform(-0.5, 0.5)),
            pause=int(rng.integers(6, 11)),
            drop=float(rng.uniform(0.0, 0.03)),
            put=(float(rng.uniform(-0.02, 0.02)), float(rng.uniform(-0.03, 0.02))),
        )


class Seen(NamedTuple):
    """An observation, taken apart: places in m, turns about the vertical in rad."""

    tips: np.ndarray
    hand: Rotation
    place: np.ndarray
    yaw: float


class Goal(NamedTuple):
    """Where a leg of the way ends, turned how, and the fingers on the way: open (-1) or closed (1)."""

    place: np.ndarray
    yaw: float
    fingers: float


class ManipulationExpert:
    """Sees what `envs.manipulation.Manipulation` shows; every episode has a style of its own, drawn from its seed.

    Args:
        task: as the environment's.
        absolute: as the environment's.

    Raises:
        ValueError: an unknown task.
    """

    LEGS = ("above", "down", "close", "up", "over", "lower", "open", "away")

    def __init__(self, task: str, absolute: bool = False) -> None:
        if task not in INSTRUCTIONS:
            raise ValueError(f"task: got {task!r}; expected one of {', '.join(INSTRUCTIONS)}: choose one.")
        self.task, self.absolute = task, absolute
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self.style = Style.drawn(np.random.default_rng([seed, 5]))
        self._begin()

    def act(self, observation: Mapping[str, np.ndarray]) -> Float[np.ndarray, "7"]:
        """The action that it wants."""
        seen = _seen(observation)
        if self._lost(seen):
            self._begin()
        goal = self._goal(seen)
        while self._arrived(seen, goal):
            self._leg, self._waited = self._next(seen), 0
            goal = self._goal(seen)
        self._waited += 1
        return self._towards(seen, goal)

    def _begin(self) -> None:
        self._leg, self._waited = "above", 0
        self._held, self._fit = np.zeros(3), 0.0

    def _next(self, seen: Seen) -> str:
        if self._leg == "close":
            # the object as the hand has it
            self._held = Rotation.from_rotvec([0.0, 0.0, -_yaw(seen.hand)]).apply(seen.place - seen.tips)
        if self._leg == "up" and self.task == "NutAssemblySquare":
            self._fit = _fit(seen)
        last = "up" if self.task == "Lift" else "away"
        return last if self._leg == last else self.LEGS[self.LEGS.index(self._leg) + 1]

    def _lost(self, seen: Seen) -> bool:
        if self._leg in ("up", "over", "lower"):
            held = Rotation.from_rotvec([0.0, 0.0, _yaw(seen.hand)]).apply(self._held)
            return bool(np.linalg.norm(seen.place - seen.tips - held) > LOST)
        # away from it without success: what was put down is not where it should be
        return self._leg == "away" and self._waited > 20

    def _arrived(self, seen: Seen, goal: Goal) -> bool:
        if self._leg in ("close", "open"):
            return self._waited >= self.style.pause
        if self._leg == "away" or (self._leg == "up" and self.task == "Lift"):
            return False
        fine = {"down": 0.006, "over": 0.004 if self.task == "NutAssemblySquare" else 0.03}.get(self._leg, 0.015)
        turned = abs(_wrapped(goal.yaw - _yaw(seen.hand)))
        near = np.linalg.norm(goal.place - seen.tips) < fine and turned < (0.05 if fine < 0.01 else 0.2)
        # what it stands on may keep it from going all the way down
        return bool(near) or (self._leg in ("down", "lower") and self._waited > 40)

    def _goal(self, seen: Seen) -> Goal:
        grasp, yaw = self._grasp(seen)
        style, up = self.style, np.array([0.0, 0.0, 1.0])
        match self._leg:
            case "above":
                return Goal(grasp + (0.07 + style.travel) * up, yaw, -1.0)
            case "down":
                return Goal(grasp, yaw, -1.0)
            case "close":
                # stay: the object may still move
                return Goal(seen.tips, _yaw(seen.hand), 1.0)
            case "open":
                return Goal(seen.tips, _yaw(seen.hand), -1.0)
            case "away":
                return Goal(seen.tips + 0.1 * up, _yaw(seen.hand), -1.0)
        if self._leg == "up":
            top = {"Lift": 0.9, "PickPlaceCan": 1.03, "NutAssemblySquare": PEG_TOP + 0.06}[self.task] + style.travel
            return Goal(np.array([*seen.tips[:2], top]), _yaw(seen.hand), 1.0)
        return self._put(seen, lower=self._leg == "lower")

    def _grasp(self, seen: Seen) -> tuple[np.ndarray, float]:
        """Where to close, and how turned."""
        if self.task == "PickPlaceCan":
            # upright, of any turn; 2 cm above the middle it is far from the bin's floor
            return seen.place + np.array(
                [self.style.along, self.style.along, 0.02 + self.style.height]
            ), self.style.turn
        if self.task == "Lift":
            yaw = _nearest(seen.yaw, np.pi / 2)
            aside = _direction(yaw) * self.style.along
            return seen.place + np.array([*aside, self.style.height]), yaw
        handle = _direction(seen.yaw) * (HANDLE + self.style.along)
        return seen.place + np.array([*handle, 0.5 * self.style.height]), _nearest(seen.yaw, np.pi)

    def _put(self, seen: Seen, lower: bool) -> Goal:
        """Where the hand has to be for the object to be over its place, or down in it."""
        if self.task == "PickPlaceCan":
            floor = 0.9 + self.style.drop
            return Goal(
                np.array([*(BIN + self.style.put), floor if lower else 1.03 + self.style.travel]), self.style.turn, 1.0
            )
        # as the nut is seen to be held, not as it was meant to be
        turn = _wrapped(self._fit - seen.yaw)
        yaw, hand = _yaw(seen.hand) + turn, Rotation.from_rotvec([0.0, 0.0, turn]).apply(seen.tips - seen.place)
        height = (PEG_TOP - 0.06 + self.style.drop) if lower else PEG_TOP + 0.035 + 0.5 * self.style.travel
        return Goal(np.array([*PEG, height]) + hand, yaw, 1.0)

    def _towards(self, seen: Seen, goal: Goal) -> Float[np.ndarray, "7"]:
        way = goal.place - seen.tips
        if self._leg in ("above", "over"):
            way = way + self.style.bow * np.array([-way[1], way[0], 0.0]) * min(float(np.linalg.norm(way)) / 0.1, 1.0)
        turn = (Rotation.from_rotvec([0.0, 0.0, goal.yaw]) * DOWN * seen.hand.inv()).as_rotvec()
        step = _limited(GAIN * way / REACH, self.style.speed)
        turning = _limited(GAIN * turn / TURN, 0.5 * self.style.speed)
        if self.absolute:
            pose = Rotation.from_rotvec(TURN * turning) * seen.hand * SITE
            return np.array([*(seen.tips + REACH * step), *pose.as_rotvec(), goal.fingers], dtype=np.float32)
        return np.array([*step, *turning, goal.fingers], dtype=np.float32)


def expert(task: str, absolute: bool = False) -> ManipulationExpert:
    """The expert of a task."""
    return ManipulationExpert(task, absolute)


def _fit(seen: Seen) -> float:
    """The turn of the nut at which it fits that takes the least turning, and within the arm's reach.

    Of the four the one with its handle away from the arm's foot is too far; and the wrist turns by no more than 110
    degrees to either side.
    """
    turns = [_wrapped(fit - seen.yaw) for fit in (np.pi / 2, np.pi, -np.pi / 2)]
    return seen.yaw + min(turns, key=lambda turn: (abs(_yaw(seen.hand) + turn) > 1.92, abs(turn)))


def _seen(observation: Mapping[str, np.ndarray]) -> Seen:
    numbers = np.asarray(observation["object"], dtype=np.float64)
    return Seen(
        np.asarray(observation["robot0_eef_pos"], dtype=np.float64),
        Rotation.from_quat(observation["robot0_eef_quat"]),
        numbers[:3],
        float(Rotation.from_quat(numbers[3:7]).as_euler("ZYX")[0]),
    )


def _yaw(hand: Rotation) -> float:
    """Of a hand that points down, 0 at home."""
    x = hand.apply([1.0, 0.0, 0.0])
    return float(np.arctan2(x[1], x[0]))


def _direction(yaw: float) -> Float[np.ndarray, "2"]:
    return np.array([np.cos(yaw), np.sin(yaw)])


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _nearest(angle: float, period: float) -> float:
    """The angle, up to whole periods, that is nearest to 0."""
    return float((angle + period / 2) % period - period / 2)


def _limited(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))
