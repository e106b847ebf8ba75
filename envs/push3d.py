"""A T-shaped block that a finger pushes over a table with friction onto its outline, in MuJoCo.

    finger: an upright rod of 5 kg on two slides, x'' = 100 (target - x) - 20 x' + contact / m, 10 targets a second
    block:  a T of 0.1 kg that lies there with friction 0.5 and that the finger rubs with friction 0.15
    coverage = area(T(pose) ∩ T(goal)) / area(T),      reward = clip(coverage / 0.9, 0, 1)

Shape and measure are those of Push-T, 1 mm for its px, and everything that moves the block is different: two kinds of
Coulomb friction, inertia, six degrees of freedom. The scene is our own.

Source: Florence et al. 2021, Implicit Behavioral Cloning (arXiv 2109.00137), and Chi et al. 2023, Diffusion Policy
(arXiv 2303.04137): the planar task.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium
import mujoco
import numpy as np
from jaxtyping import Float

from envs import pusht
from envs.cameras import require_known, require_sizes
from envs.pusht_push import clearance

MM = 1e-3
"""m; the planar task's px."""
RADIUS = 0.015
"""Of the finger, m."""
HEIGHT = 0.03
"""Of the block, m."""
HALF = 0.3
"""Targets are within this of the table's middle along each axis, m."""
NEAR, FAR = 0.05, 0.15
"""From the goal to the block at the start, m."""
CLEAR = 0.02
"""Between finger and block at the start, at least, m."""
SUCCESS = 0.9
DT, TIMESTEP = 0.1, 0.004
STEPS = 300
CAMERAS = ("side", "top")
MASS = 0.1
"""Of the block, kg."""


def _t(height: float, more: str) -> str:
    """The bar and the stem, from the middle of the bar's outer edge."""
    return "".join(
        f'<geom type="box" pos="{(x0 + x1) / 2 * MM} {(y0 + y1) / 2 * MM} 0" '
        f'size="{(x1 - x0) / 2 * MM} {(y1 - y0) / 2 * MM} {height / 2}" '
        f'mass="{MASS * (x1 - x0) * (y1 - y0) / pusht.AREA}" {more}/>'
        for x0, y0, x1, y1 in pusht.RECTANGLES
    )


SCENE = f"""
<mujoco model="push3d">
  <option timestep="{TIMESTEP}" cone="elliptic" impratio="5" integrator="implicitfast"/>
  <visual>
    <headlight diffuse="0.5 0.5 0.5" ambient="0.4 0.4 0.4"/><quality offsamples="0"/>
  </visual>
  <asset><texture name="sky" type="skybox" builtin="flat" rgb1="0.95 0.96 0.98" width="8" height="8"/></asset>
  <worldbody>
    <light pos="0.3 -0.4 1.5" dir="-0.2 0.3 -1" diffuse="0.5 0.5 0.5"/>
    <camera name="side" pos="0 -0.6 0.6" xyaxes="1 0 0 0 0.7071 0.7071" fovy="45"/>
    <camera name="top" pos="0 0 0.85" xyaxes="1 0 0 0 1 0" fovy="45"/>
    <geom name="table" type="plane" size="1 1 0.1" rgba="0.86 0.85 0.83 1" friction="0.5"/>
    <body name="goal" mocap="true" pos="0 0 0.0005">
      {_t(0.001, 'rgba="0.45 0.75 0.5 1" contype="0" conaffinity="0"')}
    </body>
    <body name="block" pos="0 0 {HEIGHT / 2}">
      <freejoint name="block"/>{_t(HEIGHT, 'rgba="0.36 0.45 0.62 1" friction="0.5"')}
    </body>
    <body name="finger" pos="0 0 0.05">
      <joint name="x" type="slide" axis="1 0 0" damping="100"/>
      <joint name="y" type="slide" axis="0 1 0" damping="100"/>
      <geom type="cylinder" size="{RADIUS} 0.045" mass="5" friction="0.15" priority="1" rgba="0.84 0.29 0.25 1"/>
    </body>
  </worldbody>
  <actuator><position joint="x" kp="500"/><position joint="y" kp="500"/></actuator>
</mujoco>
"""


class Push3D(gymnasium.Env[Any, np.ndarray]):
    """Push the T onto its outline.

    An observation has ``finger`` (2,), x and y, m; ``block`` and ``goal`` (4,) each, x, y (m), cosine and sine of the
    angle, of the middle of the T's outer edge; and ``<camera>_image`` of each camera asked for. The action is the
    finger's target, x and y, m.

    Args:
        goals: "one": the goal is always the same, in the middle and turned by 45 degrees; "any": drawn within 5 cm of
            the middle, at any angle.
        cameras: "side", "top" or both.
        size: height and width of their pictures, px.
        max_steps: of an episode, 0.1 s each.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: an unknown word, or a size or number of steps below 1.
    """

    CAMERAS = CAMERAS
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        goals: str = "one",
        cameras: Sequence[str] = (),
        size: int = 84,
        max_steps: int = STEPS,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if goals not in ("one", "any"):
            raise ValueError(f"goals: got {goals!r}; expected 'one' or 'any': choose one.")
        require_known(cameras, CAMERAS)
        require_sizes(size, max_steps)
        self.goals, self.cameras, self.size, self.max_steps = goals, tuple(cameras), size, max_steps
        self.render_mode = render_mode
        self.model = model()
        self.data = mujoco.MjData(self.model)
        self.goal = np.zeros(3)
        self._steps = 0
        box = gymnasium.spaces.Box
        self.action_space = box(-HALF, HALF, (2,), np.float32)
        poses = {key: box(-1.0, 1.0, (4,), np.float32) for key in ("block", "goal")}
        images = {f"{camera}_image": box(0, 255, (size, size, 3), np.uint8) for camera in cameras}
        self.observation_space = gymnasium.spaces.Dict({"finger": box(-1.0, 1.0, (2,), np.float32), **poses, **images})

    @property
    def state(self) -> Float[np.ndarray, "8"]:
        """Finger x, y; block x, y (m) and angle (rad); goal x, y and angle."""
        turned = self.data.body("block").xmat.reshape(3, 3)
        angle = np.arctan2(turned[1, 0], turned[0, 0])
        return np.concatenate([self.data.qpos[-2:], self.data.body("block").xpos[:2], [angle], self.goal])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode that depends on the seed alone.

        The block lies with its bar's outer edge 5 to 15 cm from the goal's, at any angle; the finger stands anywhere
        within 20 cm of the middle, but 2 cm off the block.
        """
        super().reset(seed=seed)
        rng = self.np_random
        self.goal = np.array([0.0, 0.0, np.pi / 4])
        if self.goals == "any":
            self.goal = np.array([*rng.uniform(-0.05, 0.05, 2), rng.uniform(-np.pi, np.pi)])
        away, bearing = rng.uniform(NEAR, FAR), rng.uniform(-np.pi, np.pi)
        offset = away * np.array([np.cos(bearing), np.sin(bearing)])
        block = np.array([*(self.goal[:2] + offset), rng.uniform(-np.pi, np.pi)])
        while True:
            finger = rng.uniform(-0.2, 0.2, 2)
            relative = pusht.rotation(block[2]).T @ (finger - block[:2]) / MM
            if clearance(relative)[0] > (RADIUS + CLEAR) / MM:
                break
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:2], self.data.qpos[-2:], self.data.ctrl[:] = block[:2], finger, finger
        self.data.qpos[3:7] = _quaternion(block[2])
        self.data.mocap_pos[0, :2], self.data.mocap_quat[0] = self.goal[:2], _quaternion(self.goal[2])
        mujoco.mj_forward(self.model, self.data)
        self._steps = 0
        return self._observed(), self._info()

    @property
    def threaded(self) -> bool:
        """Whether threads may step several at a time: without pictures a step is MuJoCo's own, outside of Python."""
        return not self.cameras

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Move the finger towards its target for 0.1 s.

        Raises:
            ValueError: the action is not two finite numbers.
        """
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise ValueError(f"action: got {action!r}; expected 2 finite numbers, x and y in m: correct what acts.")
        self.data.ctrl[:] = np.clip(target, -HALF, HALF)
        mujoco.mj_step(self.model, self.data, nstep=round(DT / TIMESTEP))
        mujoco.mj_kinematics(self.model, self.data)
        self._steps += 1
        info = self._info()
        reward = float(np.clip(info["coverage"] / SUCCESS, 0.0, 1.0))
        return self._observed(), reward, info["is_success"], self._steps >= self.max_steps, info

    def render(self) -> np.ndarray | None:
        """The scene from the side, (240, 240, 3) uint8, or None without a render mode."""
        return None if self.render_mode is None else self._picture("side", 240)

    def _observed(self) -> dict[str, np.ndarray]:
        finger, block, goal = np.split(self.state, [2, 5])
        poses = {key: np.array([*p[:2], np.cos(p[2]), np.sin(p[2])]) for key, p in (("block", block), ("goal", goal))}
        seen = {key: values.astype(np.float32) for key, values in {"finger": finger, **poses}.items()}
        return seen | {f"{camera}_image": self._picture(camera, self.size) for camera in self.cameras}

    def _info(self) -> dict[str, Any]:
        state = self.state
        covered = float(coverage(state[2:5], state[5:]))
        return {"state": state, "coverage": covered, "is_success": covered > SUCCESS}

    def _picture(self, camera: str, size: int) -> np.ndarray:
        renderer = _renderer(size)
        renderer.update_scene(self.data, camera=camera)
        # shadows and mirrors cost ten times the picture where there is no graphics card
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = False
        return np.asarray(renderer.render())


def planar(pose: Float[np.ndarray, "... 3"], goal: Float[np.ndarray, "3"]) -> Float[np.ndarray, "... 3"]:
    """A pose (m, rad) as the planar task would have it (px, rad), where the goal is always the same one."""
    turn = pusht.GOAL[2] - goal[2]
    xy = pusht.GOAL[:2] + (pose[..., :2] - goal[:2]) @ pusht.rotation(turn).T / MM
    return np.concatenate([xy, pose[..., 2:] + turn], -1)


def coverage(pose: Float[np.ndarray, "... 3"], goal: Float[np.ndarray, "3"]) -> Float[np.ndarray, "..."] | float:
    """Share of the goal that a block lying flat at ``pose`` covers."""
    return pusht.coverage(planar(pose, goal))


@cache
def model() -> Any:
    """The scene; nothing changes it, so one serves all."""
    return mujoco.MjModel.from_xml_string(SCENE)


@cache
def _renderer(size: int) -> Any:
    return mujoco.Renderer(model(), size, size)


def _quaternion(angle: float) -> Float[np.ndarray, "4"]:
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])
