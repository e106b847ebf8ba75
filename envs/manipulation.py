"""Lift, Can and Square: the three tasks of robomimic that one Panda does alone, seen by robomimic's names.

    action = (step / 5 cm, rotation vector / 0.5 rad, gripper) in [-1, 1]^7, or the pose itself (m, rad) and the gripper
    object = (position, quaternion, its place and orientation as the hand has them),       20 steps a second

``object`` is as in robomimic's published files, that is as robosuite had it up to 1.4. Version 1.5 turned the sign of
Lift's last three numbers, put the last seven of the other tasks first, and computes these from where the object was a
step before.

Source: Mandlekar et al. 2021, "What Matters in Learning from Offline Human Demonstrations for Robot Manipulation"
(arXiv 2108.03298): the tasks; Chi et al. 2023, Diffusion Policy (arXiv 2303.04137), section 5.2: poses as actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium
import mujoco
import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from envs.cameras import require_known, require_sizes
from envs.manipulation_arm import CONTROL, Arm, settings

INSTRUCTIONS = {
    "Lift": "lift the cube",
    "PickPlaceCan": "put the can into its bin",
    "NutAssemblySquare": "put the square nut onto the square peg",
}
OBJECTS = {"Lift": "cube_main", "PickPlaceCan": "Can_main", "NutAssemblySquare": "SquareNut_main"}
"""The body that each task is about."""
CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "birdview")
STEPS = 400


class Manipulation(gymnasium.Env[Any, np.ndarray]):
    """One of the tasks.

    An observation has ``object``, of Lift (10,): the cube's position, m, and quaternion, and from it to the fingertips,
    m; of the others (14,): position and quaternion of the object, and both again as seen from the hand;
    ``robot0_eef_pos`` (3,), the fingertips, m; ``robot0_eef_quat`` (4,), of the hand; ``robot0_gripper_qpos`` (2,), the
    fingers, m; and ``<camera>_image`` of each camera asked for. Quaternions are x, y, z, w.

    Success is what robosuite says it is and ends the episode; one may step on after it.

    Args:
        task: one of `INSTRUCTIONS`.
        absolute: whether an action is a pose of the fingertips, m and rotation vector, and the gripper; else a step.
        cameras: any of `CAMERAS`.
        size: height and width of their pictures, px.
        max_steps: of an episode, 1/20 s each.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: an unknown task or camera, a size or number of steps below 1, or robosuite is not installed.
    """

    CAMERAS = CAMERAS
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CONTROL}  # noqa: RUF012

    def __init__(
        self,
        task: str = "Lift",
        absolute: bool = False,
        cameras: Sequence[str] = (),
        size: int = 84,
        max_steps: int = STEPS,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if task not in INSTRUCTIONS:
            raise ValueError(f"task: got {task!r}; expected one of {', '.join(INSTRUCTIONS)}: choose one.")
        require_known(cameras, CAMERAS)
        require_sizes(size, max_steps)
        self.task, self.instruction = task, INSTRUCTIONS[task]
        self.cameras, self.size, self.max_steps, self.render_mode = tuple(cameras), size, max_steps, render_mode
        self.arm = Arm(task, absolute)
        self._object = self.arm.model.body(OBJECTS[task]).id
        self._steps = 0
        box = gymnasium.spaces.Box
        bounds = np.array([2.0] * 3 + [np.pi] * 3 + [1.0] if absolute else [1.0] * 7, dtype=np.float32)
        self.action_space = box(-bounds, bounds, dtype=np.float32)
        numbers = {
            "object": box(-10.0, 10.0, (10 if task == "Lift" else 14,), np.float32),
            "robot0_eef_pos": box(-2.0, 2.0, (3,), np.float32),
            "robot0_eef_quat": box(-1.0, 1.0, (4,), np.float32),
            "robot0_gripper_qpos": box(-0.1, 0.1, (2,), np.float32),
        }
        images = {f"{camera}_image": box(0, 255, (size, size, 3), np.uint8) for camera in cameras}
        self.observation_space = gymnasium.spaces.Dict({**numbers, **images})

    @property
    def state(self) -> Float[np.ndarray, " n"]:
        """Time (s), places and velocities of all joints, as robomimic's ``states`` are; its length is the task's."""
        return self.arm.state

    @property
    def env_args(self) -> dict[str, Any]:
        """What robomimic's files say, as JSON in the attribute ``env_args``, of the environment they are from."""
        return {
            "env_name": self.task,
            # robosuite's, among robomimic's kinds of environment
            "type": 1,
            "env_version": "1.5.1",
            "env_kwargs": {
                "robots": ["Panda"],
                "controller_configs": settings(self.arm.absolute),
                "control_freq": CONTROL,
                "has_renderer": False,
                "has_offscreen_renderer": bool(self.cameras),
                "use_camera_obs": bool(self.cameras),
                "use_object_obs": True,
                "camera_names": list(self.cameras) or ["agentview"],
                "camera_heights": self.size,
                "camera_widths": self.size,
                "camera_depths": False,
                "ignore_done": True,
                "reward_shaping": False,
                "lite_physics": True,
            },
        }

    @property
    def model_file(self) -> str:
        """The scene as MJCF, as robomimic's files have it of each episode; it names meshes by where they are here."""
        return str(self.arm.task.sim.model.get_xml())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode that depends on the seed alone."""
        super().reset(seed=seed)
        self.arm.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
        self._steps = 0
        return self._observed(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act for 1/20 s.

        Raises:
            ValueError: the action is not seven finite numbers.
        """
        wanted = np.asarray(action, dtype=np.float64)
        if wanted.shape != (7,) or not np.isfinite(wanted).all():
            raise ValueError(f"action: got {action!r}; expected 7 finite numbers: correct what acts.")
        self.arm.step(wanted if self.arm.absolute else np.clip(wanted, -1.0, 1.0))
        self._steps += 1
        info = self._info()
        return self._observed(), float(info["is_success"]), info["is_success"], self._steps >= self.max_steps, info

    def close(self) -> None:
        """Give the simulator's memory back; nothing else works afterwards."""
        if hasattr(self.arm, "model"):
            self.arm.close()

    def render(self) -> np.ndarray | None:
        """What the camera "agentview" sees, (240, 240, 3) uint8, or None without a render mode."""
        return None if self.render_mode is None else self._picture("agentview", 240)

    def _observed(self) -> dict[str, np.ndarray]:
        data, arm = self.arm.data, self.arm
        tips, hand = data.site_xpos[arm.site], _xyzw(data.xquat[arm.hand])
        place, turned = data.xpos[self._object], _xyzw(data.xquat[self._object])
        if self.task == "Lift":
            relative = tips - place
        else:
            back = Rotation.from_quat(hand).inv()
            seen = (back * Rotation.from_quat(turned)).as_quat(canonical=True)
            relative = np.concatenate([back.apply(place - tips), seen])
        numbers = {
            "object": np.concatenate([place, turned, relative]),
            "robot0_eef_pos": tips,
            "robot0_eef_quat": hand,
            "robot0_gripper_qpos": data.qpos[arm.fingers],
        }
        found = {key: np.asarray(values, dtype=np.float32) for key, values in numbers.items()}
        return found | {f"{camera}_image": self._picture(camera, self.size) for camera in self.cameras}

    def _info(self) -> dict[str, Any]:
        return {"is_success": self.arm.success(), "state": self.state, "instruction": self.instruction}

    def _picture(self, camera: str, size: int) -> np.ndarray:
        renderer, option = _renderer(self.task, size)
        renderer.update_scene(self.arm.data, camera=camera, scene_option=option)
        # mirrors and shadows cost ten times the picture where there is no graphics card
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = False
        return np.asarray(renderer.render())


def _xyzw(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    return np.roll(quaternion, -1)


@cache
def _renderer(task: str, size: int) -> tuple[Any, Any]:
    """One for all environments of a task, and what it shall show: looks instead of what collides."""
    arm = Arm(task, absolute=False)
    # robosuite hides its markers when an episode begins
    arm.reset(0)
    option = mujoco.MjvOption()
    option.geomgroup[0] = 0
    # smooth edges cost three times the picture where there is no graphics card
    arm.model.vis.quality.offsamples = 0
    return mujoco.Renderer(arm.model, size, size), option
