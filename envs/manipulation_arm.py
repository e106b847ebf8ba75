"""robosuite's Panda at its tasks, and the law by which it is moved, written so that it costs little.

Operational space control, 500 times a second: a force towards a place and a torque towards an orientation of the
fingertips, each as if the arm had no inertia, and what is left of the seven joints goes to where they began:

    f = kp (x* - x) - kd v,     m = kp e(R*, R) - kd w,     e(R*, R) = (r1 x r1* + r2 x r2* + r3 x r3*) / 2
    tau = Jx^T (Jx M^-1 Jx^T)^-1 f + Jr^T (Jr M^-1 Jr^T)^-1 m + bias + N^T M (10 (q0 - q) - 2 sqrt(10) q')
    N = 1 - M^-1 J^T (J M^-1 J^T)^-1 J,     kp = 150,     kd = 2 sqrt(kp)

robosuite makes the scene, draws the starts and judges success; steps and observations are ours, because it computes
every observation 25 times a step, and its controller is Python throughout. A step gives what its own gives, but for the
first torque of an episode, for which it takes the mass matrix from before the joints were placed.

Source: Khatib 1987, "A unified approach for motion and force control of robot manipulators: the operational space
formulation"; Zhu et al. 2020, robosuite (arXiv 2009.12293), version 1.5.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from types import ModuleType
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

CONTROL, SIMULATION = 20, 500
"""Steps of the controlled and of the simulated arm, 1/s."""
STIFFNESS = 150.0
"""Of the hand, 1/s^2."""
POSTURE = 10.0
"""Of the joints that the hand leaves free, 1/s^2."""
REACH, TURN = 0.05, 0.5
"""What a relative action of 1 asks for, m and rad."""
GRIPPER = 0.2
"""By which the fingers' target goes on with every step, of [-1, 1]."""
ROBOT = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [REACH] * 3 + [TURN] * 3,
    "output_min": [-REACH] * 3 + [-TURN] * 3,
    "kp": STIFFNESS,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "input_ref_frame": "world",
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}
"""robosuite's settings for this law."""


def settings(absolute: bool) -> dict[str, Any]:
    """What robosuite's and robomimic's `controller_configs` say of this arm."""
    # robosuite writes into what it is given
    right = deepcopy(ROBOT) | {"input_type": "absolute" if absolute else "delta"}
    return {"type": "BASIC", "body_parts": {"right": right}}


class Arm:
    """A task of robosuite's: its scene, its starts, its measure of success, moved by the law above.

    Args:
        task: of robosuite, like "Lift".
        absolute: whether actions are poses; else steps from where the hand is.

    Raises:
        ValueError: robosuite is not installed.
    """

    def __init__(self, task: str, absolute: bool) -> None:
        self.absolute = absolute
        suite = _robosuite()
        # some sizes are drawn when the scene is made; so all scenes of a task are one
        with _drawn(0):
            self.task = suite.make(
                task,
                robots="Panda",
                controller_configs=settings(absolute),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                control_freq=CONTROL,
                ignore_done=True,
                hard_reset=False,
                renderer="mujoco",
            )
        self.model, self.data = self.task.sim.model._model, self.task.sim.data._data
        robot = self.task.robots[0]
        self.site, self.hand = robot.eef_site_id["right"], self.model.body(robot.robot_model.eef_name["right"]).id
        self.dofs, self.places = np.array(robot._ref_joint_vel_indexes), np.array(robot._ref_joint_pos_indexes)
        self.fingers = np.array(robot._ref_gripper_joint_pos_indexes["right"])
        self.motors = np.array(robot._ref_actuators_indexes_dict["right"])
        self.grip = np.array(robot._ref_joint_gripper_actuator_indexes["right"])
        self._block = np.ix_(self.dofs, self.dofs)
        self._linear, self._angular = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
        self._mass = np.zeros((self.model.nv, self.model.nv))

    def reset(self, seed: int) -> None:
        """Begin where the seed says, the hand at home within the noise that robosuite has there."""
        with _drawn(seed):
            self.task.reset()
        self._posture = self.data.qpos[self.places].copy()
        self._width = np.zeros(2)

    def step(self, action: Float[np.ndarray, "7"]) -> None:
        """Move for 1/20 s; `action` is a pose or a step, and closes (> 0) or opens (< 0) the fingers."""
        goal: tuple[np.ndarray, np.ndarray] | None = None
        low, high = self.model.actuator_ctrlrange.T
        weakest, strongest = low[self.motors], high[self.motors]
        for _ in range(SIMULATION // CONTROL):
            mujoco.mj_step1(self.model, self.data)
            if goal is None:
                goal = self._goal(action)
                self._width = np.clip(self._width + GRIPPER * np.sign(action[6]) * np.array([-1.0, 1.0]), -1.0, 1.0)
                middle, half = (high + low)[self.grip] / 2, (high - low)[self.grip] / 2
                self.data.ctrl[self.grip] = middle + half * self._width
            self.data.ctrl[self.motors] = np.clip(self._torque(*goal), weakest, strongest)
            mujoco.mj_step2(self.model, self.data)

    def close(self) -> None:
        """Give its memory back, 110 MB, now: robosuite's objects refer to each other in circles."""
        self.task.close()
        del self.model, self.data

    def success(self) -> bool:
        """What robosuite says."""
        return bool(self.task._check_success())

    @property
    def state(self) -> Float[np.ndarray, " n"]:
        """Time (s), places and velocities of all joints, as robomimic's files have it."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def _goal(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.absolute:
            return action[:3], Rotation.from_rotvec(action[3:6]).as_matrix()
        turn = Rotation.from_rotvec(TURN * action[3:6]).as_matrix()
        here = self.data.site_xmat[self.site].reshape(3, 3)
        return self.data.site_xpos[self.site] + REACH * action[:3], turn @ here

    def _torque(self, place: np.ndarray, orientation: np.ndarray) -> np.ndarray:
        mujoco.mj_jacSite(self.model, self.data, self._linear, self._angular, self.site)
        jacobian = np.concatenate([self._linear, self._angular])[:, self.dofs]
        velocity = self.data.qvel[self.dofs]
        mass = dense(self.model, self.data, self._mass)[self._block]
        here = self.data.site_xmat[self.site].reshape(3, 3)
        turn = 0.5 * _cross(here, orientation)
        error = np.concatenate([place - self.data.site_xpos[self.site], turn])
        wanted = STIFFNESS * error - 2 * np.sqrt(STIFFNESS) * (jacobian @ velocity)
        mobility = jacobian @ np.linalg.solve(mass, jacobian.T)
        force = np.concatenate(
            [np.linalg.solve(mobility[:3, :3], wanted[:3]), np.linalg.solve(mobility[3:, 3:], wanted[3:])]
        )
        posture = POSTURE * (self._posture - self.data.qpos[self.places]) - 2 * np.sqrt(POSTURE) * velocity
        # N^T M a = M a - J^T (J M^-1 J^T)^-1 J a
        rest = mass @ posture - jacobian.T @ np.linalg.solve(mobility, jacobian @ posture)
        return jacobian.T @ force + self.data.qfrc_bias[self.dofs] + rest


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of the cross products of the columns; numpy's own costs ten times this."""
    c = b @ a.T
    return np.array([c[2, 1] - c[1, 2], c[0, 2] - c[2, 0], c[1, 0] - c[0, 1]])


def dense(model: Any, data: Any, out: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The mass matrix; MuJoCo 4 changed both where it is and what is asked for."""
    if hasattr(data, "qM"):
        mujoco.mj_fullM(model, out, data.qM)
    else:
        mujoco.mj_fullM(model, data, out)
    return out


@contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """robosuite draws from numpy's global generator: lend it one, and put everything back."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


@cache
def _robosuite() -> ModuleType:
    """robosuite, made to work with MuJoCo 4, and quiet.

    Raises:
        ValueError: it is not installed.
    """
    # its import says how to render, for the whole process, and warns of what it does not find
    rendering, log = os.environ.get("MUJOCO_GL"), logging.getLogger("robosuite_logs")
    log.addFilter(_only_errors)
    try:
        import robosuite
        from robosuite.controllers.parts.controller import Controller
        from robosuite.utils.binding_utils import MjModel
    except ImportError as error:
        raise ValueError(
            f"robosuite: got no package of this name ({error}); expected it for its tasks: "
            "pip install 'diffusion-workbench[robosuite]'."
        ) from error
    finally:
        if rendering is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = rendering
    MjModel.get_joint_qpos_addr = _address("jnt_qposadr", {0: 7, 1: 4})
    MjModel.get_joint_qvel_addr = _address("jnt_dofadr", {0: 6, 1: 3})
    Controller.update = _update
    return robosuite


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _address(table: str, widths: dict[int, int]) -> Any:
    # robosuite asks whether a number is one of MuJoCo's enumeration, which since MuJoCo 4 it never is
    def address(self: Any, name: str) -> Any:
        joint = self.joint_name2id(name)
        first, width = getattr(self, table)[joint], widths.get(int(self.jnt_type[joint]), 1)
        return first if width == 1 else (first, first + width)

    return address


def _update(self: Any, force: bool = False) -> None:
    # as robosuite's, but for the mass matrix
    if not (self.new_update or force):
        return
    if force or not self.lite_physics:
        self.sim.forward()
    if self.ref_name is not None:
        self.update_reference_data()
    model, data = self.sim.model._model, self.sim.data._data
    self.joint_pos, self.joint_vel = data.qpos[self.qpos_index].copy(), data.qvel[self.qvel_index].copy()
    mass = dense(model, data, np.zeros((model.nv, model.nv)))
    self.mass_matrix = mass[np.ix_(self.qvel_index, self.qvel_index)]
    self.new_update = False
