"""A scripted arm for the kitchen: it goes to a handle, takes or touches it, and leads it along its way.

    dq = rest + J^T (J J^T + 0.05^2)^-1 (v - J rest),  rest = 0.08 (q_rest - q),  v: of the fingertips, per step
    a  = dq / (0.16 * 0.55) + g / (0.16 kp)

`J` is the Jacobian of the fingertips at the joints that are seen, in a model of the simulation's own; a joint at its
limit stays there and the others move for it. An action of 1 asks for 0.16 rad, of which a step makes 55 %; `g` is what
gravity asks of a motor of stiffness kp, N m. Where a handle goes is read from the same model, its joint a bit further.

Source: Wampler 1986, "Manipulator inverse kinematic solutions based on vector formulations and damped least-squares
methods": the inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from envs.kitchen import TASKS, model

ARM = 7
STEP, RESPONSE = 0.08, 0.55
"""Of the simulation, s; share of what is asked for that a joint moves within one."""
SPEED = 2.0
"""What an action of 1 asks for, rad/s."""
AHEAD = Rotation.from_matrix([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Of a hand that points along y, from the arm to the kitchen, its fingers opening along x."""
TIPS = 0.03
"""From the model's site to the middle of the fingertips, m."""
REST = np.array([-0.9, -1.0, 1.6, -2.1, 0.1, 1.3, 0.9])
"""An arm that reaches most handles without coming near a limit, rad."""
LOW = np.array([-2.85, -1.7, -2.85, -3.0, -2.85, 0.05, -2.85])
HIGH = np.array([2.85, 1.7, 2.85, -0.45, 2.85, 2.09, 2.85])
"""Limits of the arm, rad."""
GAIN, TURN, DAMPING, POSTURE = 0.7, 2.0, 0.05, 0.08
"""Share of the way asked for within a step; the fastest turn of the hand, rad/s; of the inverse; towards `REST`."""
SLOW, ASIDE, STEER = 0.7, 0.01, 0.5
"""Share of the speed near a handle; how far beside it the hand slows, m; how far it follows a kettle aside, of that."""
NEAR = {"before": 0.03, "at": 0.012, "away": 0.05}
"""Where a leg ends, m from its goal."""
LOST, PATIENCE = {True: 0.055, False: 0.09}, {"at": 40, "lead": 50}
"""How far a handle may be from the fingers that have it, or that push it, m; steps that a leg may take."""


@dataclass(frozen=True)
class Thing:
    """What is done to a thing.

    Args:
        site: its handle, in the model.
        joints: indices in qpos of the joints it moves along: one, or the kettle's x and y.
        start: of those joints, rad or m.
        goal: of those joints, rad or m.
        lead: how far ahead of them the hand is asked to be, rad or m.
        touch: from the handle to the fingertips, m.
        grasp: whether the fingers take it.
        closed: whether they are closed on the way.
        follow: share of the handle's turning that the hand follows.
        down: how far the hand points down, rad.
        left: how far it points to the left, rad.
    """

    site: str
    joints: tuple[int, ...]
    start: tuple[float, ...]
    goal: tuple[float, ...]
    lead: float
    touch: tuple[float, float, float] = (0.0, 0.0, 0.0)
    grasp: bool = False
    closed: bool = False
    follow: float = 0.0
    down: float = 0.0
    left: float = 0.0

    @property
    def margin(self) -> float:
        """What may be missing, rad or m; less than what the kitchen lets pass."""
        return min(0.5 * self.lead, 0.12)

    @property
    def way(self) -> Float[np.ndarray, "joints"]:
        """From start to goal, of length 1."""
        way = np.subtract(self.goal, self.start)
        return way / np.linalg.norm(way)


THINGS = {
    "bottom burner": Thing("knob2_site", (11,), (0.0,), (-0.88,), 0.45, grasp=True, follow=1.0, down=0.4),
    "top burner": Thing("knob4_site", (15,), (0.0,), (-0.92,), 0.45, grasp=True, follow=1.0, down=0.4),
    "light switch": Thing("light_site", (17,), (0.0,), (-0.69,), 0.8, (0.065, 0.0, 0.0), closed=True, down=0.4),
    "slide cabinet": Thing("slide_site", (19,), (0.0,), (0.37,), 0.06, (-0.045, 0.0, 0.0), closed=True),
    "hinge cabinet": Thing("hinge_site2", (21,), (0.0,), (1.45,), 0.2, (0.0, 0.02, 0.0), grasp=True, follow=0.3),
    "microwave": Thing(
        "microhandle_site", (22,), (0.0,), (-0.75,), 0.15, (0.0, 0.016, 0.0), grasp=True, down=0.7, left=0.15
    ),
    # pushed by its body with two fingers apart
    "kettle": Thing("kettle_site", (23, 24), (-0.27, 0.35), (-0.23, 0.75), 0.07, (0.0, -0.14, -0.17), down=0.7),
}
assert set(THINGS) == set(TASKS)


@dataclass(frozen=True)
class Style:
    """What differs between episodes.

    Args:
        order: of the things to do.
        speed: of the fingertips, m/s.
        height: of the fingertips on a handle, m from its middle.
        back: from where it comes to a handle and to where it leaves, m.
        bow: how far a long way goes sideways, of its length.
        pause: steps it waits for its fingers.
    """

    order: tuple[str, ...]
    speed: float
    height: float
    back: float
    bow: float
    pause: int

    @classmethod
    def drawn(cls, rng: np.random.Generator, tasks: Sequence[str], enough: int) -> Style:
        """One of many."""
        order = [str(task) for task in rng.permutation(tasks)]
        return cls(
            # an open hinge cabinet is in the way of others, and so comes last of those that are enough
            order=(*sorted(order[:enough], key="hinge cabinet".__eq__), *order[enough:]),
            speed=float(rng.uniform(0.65, 0.85)),
            height=float(rng.uniform(-0.01, 0.01)),
            back=float(rng.uniform(0.09, 0.12)),
            bow=float(rng.uniform(-0.15, 0.15)),
            pause=int(rng.integers(3, 6)),
        )


class Pose(NamedTuple):
    """Of the fingertips, m, and of the hand."""

    place: np.ndarray
    turn: Rotation


class KitchenExpert:
    """Sees what `envs.kitchen.Kitchen` shows; every episode has a style of its own, drawn from its seed.

    Before a handle, at it, close, lead, open, away: a leg that lasts too long, or a handle lost, makes it go away and
    begin again.

    Args:
        tasks: as the environment's.
        enough: as the environment's; so many, drawn, are done first.

    Raises:
        ValueError: an unknown task.
    """

    def __init__(self, tasks: Sequence[str] = TASKS, enough: int = 4) -> None:
        if unknown := [task for task in tasks if task not in THINGS]:
            raise ValueError(f"tasks: got {unknown[0]!r}; expected some of {', '.join(THINGS)}: choose among them.")
        self.tasks, self.enough = tuple(tasks), enough
        self._model = model()
        self._now, self._then = mujoco.MjData(self._model), mujoco.MjData(self._model)
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self.style = Style.drawn(np.random.default_rng([seed, 6]), self.tasks, self.enough)
        self._left = list(self.style.order)
        self._thing = THINGS[self._left[0]]
        self._leg, self._waited = "before", 0
        self._stay = Pose(np.zeros(3), AHEAD)

    def act(self, observation: Mapping[str, np.ndarray]) -> Float[np.ndarray, "9"]:
        """The joint speeds that it wants, of the largest."""
        self._now.qpos[:] = np.concatenate([observation["robot_qpos"], observation["object_qpos"]])
        mujoco.mj_forward(self._model, self._now)
        hand = self._hand()
        if self._lost(hand):
            self._enter("away", hand)
        while self._arrived(hand):
            self._enter(self._next(), hand)
        self._waited += 1
        return self._towards(hand)

    def _hand(self) -> Pose:
        site = self._now.site("end_effector")
        turn = Rotation.from_matrix(site.xmat.reshape(3, 3))
        return Pose(site.xpos + TIPS * _ahead(turn), turn)

    def _enter(self, leg: str, hand: Pose) -> None:
        self._leg, self._waited = leg, 0
        back = self.style.back if leg == "away" else 0.0
        self._stay = Pose(hand.place - back * _ahead(hand.turn), hand.turn)
        if leg == "before":
            self._thing = THINGS[self._left[0]]

    def _next(self) -> str:
        match self._leg:
            case "before":
                return "at"
            case "at":
                return "close" if self._thing.grasp else "lead"
            case "close":
                return "lead"
            case "lead":
                self._left.pop(0)
                return "open" if self._thing.grasp else "away"
            case "open":
                return "away"
        return "before"

    def _lost(self, hand: Pose) -> bool:
        if self._leg in PATIENCE and self._waited > PATIENCE[self._leg]:
            return True
        return self._leg == "lead" and float(np.linalg.norm(self._touch().place - hand.place)) > LOST[self._thing.grasp]

    def _arrived(self, hand: Pose) -> bool:
        if self._leg in ("close", "open"):
            return self._waited >= self.style.pause
        if self._leg == "lead":
            return float(self._missing() @ self._thing.way) < self._thing.margin
        if self._leg == "away" and (self._waited > 15 or not self._left):
            return bool(self._left)
        goal = self._goal()
        near = float(np.linalg.norm(goal.place - hand.place)) < NEAR[self._leg]
        return near and bool((goal.turn * hand.turn.inv()).magnitude() < 0.25)

    def _goal(self) -> Pose:
        match self._leg:
            case "before":
                touch = self._touch()
                return Pose(touch.place - self.style.back * _ahead(touch.turn), touch.turn)
            case "at" | "close":
                return self._touch()
            case "lead":
                missing, way = self._missing(), self._thing.way
                # a kettle that drifts to a side is pushed from there
                return self._touch(self._thing.lead * way - STEER * (missing - missing @ way * way))
        return self._stay

    def _missing(self) -> Float[np.ndarray, "joints"]:
        """Of the joints' way, rad or m."""
        return np.asarray(np.subtract(self._thing.goal, self._now.qpos[list(self._thing.joints)]))

    def _touch(self, further: np.ndarray | float = 0.0) -> Pose:
        """Where the hand touches the thing, or would with its joints further by so much."""
        thing, there = self._thing, self._then
        there.qpos[:] = self._now.qpos
        there.qpos[list(thing.joints)] += further
        mujoco.mj_kinematics(self._model, there)
        aim = Rotation.from_euler("ZX", [thing.left, -thing.down]) * AHEAD
        axis, ahead = np.zeros(3), _ahead(aim)
        if thing.follow:
            axis = there.xaxis[self._model.jnt_qposadr.tolist().index(thing.joints[0])]
        if abs(axis @ ahead) > 0.7:
            # of a knob: the wrist turns and the hand stays
            axis = np.sign(axis @ ahead) * ahead
        turn = Rotation.from_rotvec(thing.follow * there.qpos[thing.joints[0]] * axis)
        place = there.site(thing.site).xpos + turn.apply(thing.touch) + [0.0, 0.0, self.style.height]
        return Pose(place, turn * aim)

    def _towards(self, hand: Pose) -> Float[np.ndarray, "9"]:
        goal = self._goal()
        way, speed = goal.place - hand.place, self.style.speed
        if self._leg == "before":
            way = way + self.style.bow * np.array([-way[1], way[0], 0.0]) * min(float(np.linalg.norm(way)) / 0.2, 1.0)
        if self._leg == "at":
            # fingers that pass on both sides of a handle have to come straight
            on = way @ _ahead(goal.turn) * _ahead(goal.turn)
            way = way - on + on * np.clip(1.5 - np.linalg.norm(way - on) / ASIDE, 0.1, 1.0)
        if self._leg not in ("before", "away"):
            speed *= SLOW
        turn = (goal.turn * hand.turn.inv()).as_rotvec()
        dq = self._solved(np.concatenate([_limited(GAIN * way, speed * STEP), _limited(GAIN * turn, TURN * STEP)]))
        asked = dq / (SPEED * STEP * RESPONSE)
        weight = self._now.qfrc_bias[:ARM] / (SPEED * STEP * self._model.actuator_gainprm[:ARM, 0])
        # all slower rather than one too slow: the way stays the way
        asked *= min(1.0, *((1.0 - np.sign(asked) * weight) / np.maximum(np.abs(asked), 1e-9)))
        fingers = -1.0 if self._thing.closed or (self._thing.grasp and self._leg in ("close", "lead")) else 1.0
        return np.clip([*(asked + weight), fingers, fingers], -1.0, 1.0).astype(np.float32)

    def _solved(self, move: Float[np.ndarray, "6"]) -> Float[np.ndarray, "7"]:
        """The arm's turning that moves and turns the hand so, m and rad, and stays within the limits."""
        jacobian = np.zeros((6, self._model.nv))
        body = self._model.site("end_effector").bodyid[0]
        mujoco.mj_jac(self._model, self._now, jacobian[:3], jacobian[3:], self._hand().place, body)
        J, q = jacobian[:, :ARM], self._now.qpos[:ARM]
        low, high = LOW - q, HIGH - q
        dq, free = np.zeros(ARM), np.ones(ARM, dtype=bool)
        while True:
            A, rest = J[:, free], POSTURE * (REST - q)[free]
            inverse = A.T @ np.linalg.inv(A @ A.T + DAMPING**2 * np.eye(6))
            dq[free] = rest + inverse @ (move - J[:, ~free] @ dq[~free] - A @ rest)
            out = free & ((dq < low) | (dq > high))
            if not out.any():
                return dq
            dq[out] = np.clip(dq, low, high)[out]
            free &= ~out


def _ahead(turn: Rotation) -> Float[np.ndarray, "3"]:
    """Where a hand points."""
    return turn.apply([0.0, 0.0, 1.0])


def _limited(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))
