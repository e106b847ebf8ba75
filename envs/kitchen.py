"""Franka Kitchen: nine joint speeds, a kitchen of seven things to do, and four of them asked for, in any order.

    qpos* = clip(qpos + 0.08 s clip(2 a, limits), limits),  a in [-1, 1]^9,  12.5 steps a second

A thing is done when its joints are within 0.3 of where they should be, in the joints' own units, and stays done.

The simulation is Gymnasium-Robotics' with the noise it has on what is observed; it always begins in the same place.

Source: Gupta et al. 2019, "Relay Policy Learning" (arXiv 1910.11956): the kitchen; Chi et al. 2023, Diffusion Policy
(arXiv 2303.04137), section 5.3: the share p1 to p4 of episodes in which so many things are done, within 280 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import gymnasium
import mujoco
import numpy as np
from jaxtyping import Float

from envs.cameras import require_known

TASKS = ("bottom burner", "top burner", "light switch", "slide cabinet", "hinge cabinet", "microwave", "kettle")
CAMERAS = ("overview",)
"""The cameras that the scene itself has see little of it."""
STEPS = 280
ROBOT, OBJECTS, SPEEDS = 9, 21, 20
"""Joints of the robot; numbers of places and of velocities of all others, of which the kettle's are 7 and 6."""


class Kitchen(gymnasium.Env[Any, np.ndarray]):
    """The kitchen.

    An observation has ``robot_qpos`` and ``robot_qvel`` (9,), the arm's seven joints, rad, and the two fingers, m;
    ``object_qpos`` (21,) and ``object_qvel`` (20,), knobs, switches, doors and the kettle; and ``<camera>_image`` of
    each camera asked for. ``info`` has ``completed``, the names of what is done in the order in which it was, and
    ``p1`` to ``p4``, whether so many are. The reward is how many were done by this step.

    Args:
        tasks: any of `TASKS`; others do not count.
        enough: how many of them are success, which ends the episode.
        noise: of what is observed, 1 as the simulation has it.
        cameras: any of `CAMERAS`.
        size: height and width of their pictures, px.
        max_steps: of an episode, 0.08 s each.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: an unknown task or camera, `enough` that cannot be reached, a size or number of steps below 1, noise
            below 0, or Gymnasium-Robotics is not installed.
    """

    CAMERAS = CAMERAS
    # the simulation's own word for 12.5
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 12}  # noqa: RUF012

    def __init__(
        self,
        tasks: Sequence[str] = TASKS,
        enough: int = 4,
        noise: float = 1.0,
        cameras: Sequence[str] = (),
        size: int = 84,
        max_steps: int = STEPS,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if unknown := [task for task in tasks if task not in TASKS]:
            raise ValueError(f"tasks: got {unknown[0]!r}; expected some of {', '.join(TASKS)}: choose among them.")
        require_known(cameras, CAMERAS)
        if not 1 <= enough <= len(tasks):
            raise ValueError(f"enough: got {enough} of {len(tasks)} tasks; expected at least 1 and no more than those.")
        if size < 1 or max_steps < 1 or not noise >= 0.0:
            raise ValueError(
                f"size, max_steps, noise: got {size}, {max_steps} and {noise}; expected at least 1, 1 and 0."
            )
        self.tasks, self.enough, self.cameras, self.size = tuple(tasks), enough, tuple(cameras), size
        self.max_steps, self.render_mode = max_steps, render_mode
        self._inner = _simulator().KitchenEnv(
            tasks_to_complete=list(tasks),
            terminate_on_tasks_completed=False,
            robot_noise_ratio=0.01 * noise,
            object_noise_ratio=0.0005 * noise,
        )
        self._steps = 0
        box = gymnasium.spaces.Box
        self.action_space = box(-1.0, 1.0, (ROBOT,), np.float32)
        sizes = {"robot_qpos": ROBOT, "robot_qvel": ROBOT, "object_qpos": OBJECTS, "object_qvel": SPEEDS}
        numbers = {key: box(-100.0, 100.0, (n,), np.float32) for key, n in sizes.items()}
        images = {f"{camera}_image": box(0, 255, (size, size, 3), np.uint8) for camera in cameras}
        self.observation_space = gymnasium.spaces.Dict({**numbers, **images})

    @property
    def state(self) -> Float[np.ndarray, "59"]:
        """Places and velocities of all joints, without noise."""
        return np.concatenate([self._inner.data.qpos, self._inner.data.qvel])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode; the seed decides on the noise, the start is always the same."""
        super().reset(seed=seed)
        raw, _ = self._inner.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        self._steps = 0
        return self._observed(raw), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act for 0.08 s.

        Raises:
            ValueError: the action is not nine finite numbers.
        """
        wanted = np.asarray(action, dtype=np.float64)
        if wanted.shape != (ROBOT,) or not np.isfinite(wanted).all():
            raise ValueError(f"action: got {action!r}; expected {ROBOT} finite numbers in [-1, 1]: correct what acts.")
        raw, reward, *_ = self._inner.step(wanted)
        self._steps += 1
        info = self._info()
        return self._observed(raw), float(reward), info["is_success"], self._steps >= self.max_steps, info

    def render(self) -> np.ndarray | None:
        """What the camera "overview" sees, (240, 240, 3) uint8, or None without a render mode."""
        return None if self.render_mode is None else self._picture(240)

    def _observed(self, raw: dict[str, Any]) -> dict[str, np.ndarray]:
        parts = np.split(raw["observation"].astype(np.float32), np.cumsum([ROBOT, ROBOT, OBJECTS]))
        seen = dict(zip(("robot_qpos", "robot_qvel", "object_qpos", "object_qvel"), parts, strict=True))
        return seen | {f"{camera}_image": self._picture(self.size) for camera in self.cameras}

    def _info(self) -> dict[str, Any]:
        done = list(self._inner.episode_task_completions)
        counted = {f"p{n}": len(done) >= n for n in range(1, 5)}
        return {"is_success": len(done) >= self.enough, "state": self.state, "completed": done, **counted}

    def _picture(self, size: int) -> np.ndarray:
        renderer, camera = _renderer(size)
        renderer.update_scene(self._inner.data, camera=camera)
        # shadows and mirrors cost ten times the picture where there is no graphics card
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = False
        return np.asarray(renderer.render())


@cache
def _simulator() -> ModuleType:
    """Gymnasium-Robotics' kitchen, made to work with MuJoCo 4.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from gymnasium_robotics.envs.franka_kitchen import kitchen_env
        from gymnasium_robotics.utils import mujoco_utils
    except ImportError as error:
        raise ValueError(
            f"kitchen: got no gymnasium_robotics ({error}); expected it for the kitchen: "
            "pip install 'diffusion-workbench[arm]'."
        ) from error

    # it asks whether a number is one of MuJoCo's enumeration, which since MuJoCo 4 it never is
    mujoco_utils.get_joint_qpos = lambda model, data, name: data.joint(name).qpos.copy()
    mujoco_utils.get_joint_qvel = lambda model, data, name: data.joint(name).qvel.copy()
    return kitchen_env


@cache
def model() -> mujoco.MjModel:
    """The simulation's: one for all who look at it and change nothing."""
    return _simulator().KitchenEnv().model


@cache
def _renderer(size: int) -> tuple[Any, Any]:
    """One for all kitchens, for episodes move joints, whose places are in the data, and nothing else; and a camera."""
    # smooth edges cost three times the picture where there is no graphics card
    model().vis.quality.offsamples = 0
    camera = mujoco.MjvCamera()
    camera.lookat[:] = [-0.2, 0.5, 2.0]
    camera.distance, camera.azimuth, camera.elevation = 2.2, 70.0, -35.0
    return mujoco.Renderer(model(), size, size), camera
