"""Blocks on a table and a Franka Panda that stacks them, in MuJoCo.

The arm is the Panda of Gymnasium-Robotics (its meshes, joints and fingers, Apache License 2.0; only these files are
used), on a table of our own with four blocks of 4 cm. One tells it where its fingertips should be and how wide; damped
least squares turns that into joint angles, the hand always upright:

    dq = J^T (J J^T + lambda^2 I)^-1 e,   e = (position error, rotation error)

Blocks are held by friction alone.

Source: the task: Janner et al. 2022, section 5.3 (arXiv 2205.09991), there with a Kuka in PyBullet. The inverse
kinematics: Buss 2009, "Introduction to inverse kinematics with Jacobian transpose, pseudoinverse and damped least
squares methods", eq. 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

BLOCKS = 4
SIDE = 0.04
"""Of a block, m."""
WIDTH = 0.08
"""Of the open gripper, m."""
REACH = ((0.36, 0.64), (-0.24, 0.24))
"""x and y of the table's part on which blocks are put, m from the arm's foot."""
APART = 0.075
"""Between the middles of two blocks on the table, at least, m."""
DT = 0.05
"""Of a step, s."""
HOME = np.array([0.0, -0.785, 0.0, -2.356, 0.0, 0.0, 0.0])
TIP = 0.033
"""From the model's site in the hand down to between the fingertips, m."""
STIFFNESS = np.array([3500.0, 3500.0, 3500.0, 3500.0, 480.0, 480.0, 480.0])
"""Of the joints' servos, N m/rad."""
DAMPING = np.array([60.0, 60.0, 60.0, 60.0, 8.0, 8.0, 8.0])
"""Of the joints, N m s/rad; the model's 100 and 10 trail by a fifth of a second."""
STATE = 4 + 3 * BLOCKS
COLOURS = ("0.84 0.29 0.25 1", "0.21 0.47 0.75 1", "0.30 0.65 0.36 1", "0.93 0.70 0.20 1")


@cache
def model() -> Any:
    """The scene.

    Raises:
        ValueError: Gymnasium-Robotics is not installed.
    """
    spec = find_spec("gymnasium_robotics")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "stacking: got no gymnasium_robotics; expected it for the arm's model: "
            "pip install 'diffusion-workbench[arm]'."
        )
    # only files are wanted: importing the package registers dozens of environments
    arm = Path(next(iter(spec.submodule_search_locations))) / "envs" / "assets" / "kitchen_franka" / "franka_assets"
    blocks = "".join(
        f'<body name="block{k}" pos="{0.4 + 0.08 * k} 0 {SIDE / 2}"><freejoint name="block{k}"/><geom type="box" '
        f'size="{SIDE / 2} {SIDE / 2} {SIDE / 2}" mass="0.05" rgba="{colour}" friction="1.2 0.02 0.001" condim="4" '
        f'solref="0.01 1"/></body>'
        for k, colour in enumerate(COLOURS)
    )
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><include file="{arm}/assets.xml"/><compiler meshdir="{arm}/meshes"/>'
        '<option impratio="10" cone="elliptic" timestep="0.004"/><visual><global offwidth="640" offheight="480"/>'
        '<headlight diffuse="0.5 0.5 0.5" ambient="0.4 0.4 0.4"/></visual>'
        '<asset><texture name="sky" type="skybox" builtin="flat" rgb1="0.95 0.96 0.98" width="8" height="8"/></asset>'
        '<worldbody><light pos="0.5 -0.6 1.6" dir="0 0.3 -1" diffuse="0.5 0.5 0.5"/>'
        '<camera name="side" pos="1.15 -0.62 0.48" xyaxes="0.68 0.73 0 -0.33 0.31 0.89"/>'
        '<geom name="table" type="plane" size="1.2 1.2 0.1" rgba="0.86 0.85 0.83 1" '
        'friction="1 0.02 0.001" condim="4"/>'
        f'<include file="{arm}/chain.xml"/>{blocks}</worldbody><include file="{arm}/actuator.xml"/></mujoco>'
    )


class Stacking:
    """An arm and four blocks.

    A state is (16,): fingertips x, y, z; width of the gripper; x, y, z of each block's middle, m. An action is (4,):
    where the fingertips should be, and how wide.
    """

    def __init__(self) -> None:
        self.model = model()
        # the servos are ours: four times as stiff, and fingers that are not as slow as 5 kg would be
        self.model.actuator_gainprm[:7, 0], self.model.actuator_biasprm[:7, 1] = STIFFNESS, -STIFFNESS
        self.model.dof_damping[:7] = DAMPING
        self.model.dof_armature[7:9], self.model.dof_damping[7:9] = 0.5, 30.0
        self.data, self.kinematics = mujoco.MjData(self.model), mujoco.MjData(self.model)
        self.site = self.model.site("end_effector").id
        self.places = [int(self.model.joint(f"block{k}").qposadr[0]) for k in range(BLOCKS)]
        hand = [k for k in range(self.model.ngeom) if "link" in self.model.body(self.model.geom_bodyid[k]).name]
        # of the arm only the fingers touch: the rest is high above, and its meshes are what costs
        self.model.geom_contype[hand] = self.model.geom_conaffinity[hand] = 0

    def reset(self, blocks: Float[np.ndarray, "4 3"]) -> Float[np.ndarray, "16"]:
        """Begin with blocks at these places, the hand at home and open; what is in the air falls.

        Raises:
            ValueError: a block is out of reach, in the table, or in another.
        """
        blocks = np.asarray(blocks, dtype=np.float64)
        gaps = np.abs(blocks[:, None] - blocks[None]).max(-1)[np.triu_indices(len(blocks), 1)]
        low, high = np.array(REACH).T
        fits = blocks.shape == (BLOCKS, 3) and np.isfinite(blocks).all() and (gaps >= SIDE - 1e-6).all()
        if not (
            fits and (blocks[:, :2] >= low).all() and (blocks[:, :2] <= high).all() and blocks[:, 2].min() >= 0.0199
        ):
            raise ValueError(
                f"blocks: got {np.round(blocks, 3).tolist()}; expected four middles, none in another, x in "
                f"{REACH[0]}, y in {REACH[1]}, z of at least {SIDE / 2} m: move them."
            )
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:7] = HOME
        self.data.qpos[7:9] = WIDTH / 2
        for place, xyz in zip(self.places, blocks, strict=True):
            self.data.qpos[place : place + 7] = [*xyz, 1.0, 0.0, 0.0, 0.0]
        self.kinematics.qpos[:] = self.data.qpos
        mujoco.mj_forward(self.model, self.data)
        self.data.ctrl[:7], self.data.ctrl[7:9] = HOME, WIDTH / 2
        self._simulate(0.2)
        return self.state()

    def state(self) -> Float[np.ndarray, "16"]:
        """What is."""
        blocks = [self.data.qpos[place : place + 3] for place in self.places]
        return np.concatenate([self.tips(), [self.data.qpos[7:9].sum()], *blocks])

    def tips(self) -> Float[np.ndarray, "3"]:
        """Between the fingertips, m."""
        return self.data.site_xpos[self.site] + TIP * self.data.site_xmat[self.site].reshape(3, 3)[:, 2]

    def step(self, action: Float[np.ndarray, "4"]) -> Float[np.ndarray, "16"]:
        """Move for `DT` towards what is asked.

        Raises:
            ValueError: it is not finite.
        """
        if np.shape(action) != (4,) or not np.isfinite(action).all():
            raise ValueError(f"action: got {action}; expected finite x, y, z and width, m: correct what acts.")
        self.data.ctrl[:7] = self.solved(np.asarray(action[:3]))
        self.data.ctrl[7:9] = np.clip(action[3] / 2, 0.0, WIDTH / 2)
        self._simulate(DT)
        return self.state()

    def solved(self, xyz: Float[np.ndarray, "3"], rounds: int = 12, damping: float = 0.05) -> Float[np.ndarray, "7"]:
        """Joint angles that bring the fingertips there, from those of the last call."""
        q = self.kinematics
        linear, angular = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
        for _ in range(rounds):
            mujoco.mj_kinematics(self.model, q)
            mujoco.mj_comPos(self.model, q)
            rotation = q.site_xmat[self.site].reshape(3, 3)
            tip = q.site_xpos[self.site] + TIP * rotation[:, 2]
            # towards x forwards, z down: half the sum of the axes' cross products
            wanted = np.diag([1.0, -1.0, -1.0])
            turn = 0.5 * np.cross(rotation, wanted, axis=0).sum(1)
            error = np.concatenate([xyz - tip, turn])
            if np.abs(error).max() < 1e-4:
                break
            mujoco.mj_jac(self.model, q, linear, angular, tip, self.model.site_bodyid[self.site])
            jacobian = np.concatenate([linear, angular])[:, :7]
            dq = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + damping**2 * np.eye(6), error)
            q.qpos[:7] = np.clip(q.qpos[:7] + dq, *self.model.jnt_range[:7].T)
        return q.qpos[:7].copy()

    def frame(self, renderer: Any) -> np.ndarray:
        """A picture, by a ``mujoco.Renderer`` of this model."""
        renderer.update_scene(self.data, camera="side")
        # shadows and mirrors cost ten times the picture where there is no graphics card
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = False
        return np.asarray(renderer.render())

    def _simulate(self, seconds: float) -> None:
        for _ in range(round(seconds / self.model.opt.timestep)):
            # the real arm's controller makes up for gravity, too
            self.data.qfrc_applied[:9] = self.data.qfrc_bias[:9]
            mujoco.mj_step(self.model, self.data)


def scattered(rng: np.random.Generator, n: int = BLOCKS) -> Float[np.ndarray, "n 3"]:
    """Blocks on the table, none near another."""
    (x0, x1), (y0, y1) = REACH
    while True:
        xy = rng.uniform([x0 + 0.02, y0 + 0.02], [x1 - 0.02, y1 - 0.02], (n, 2))
        gaps = np.linalg.norm(xy[:, None] - xy[None], axis=-1)[np.triu_indices(n, 1)]
        if n < 2 or gaps.min() >= APART:
            return np.concatenate([xy, np.full((n, 1), SIDE / 2)], 1)


def on(blocks: Float[np.ndarray, "4 3"], above: int, below: int, slack: float = 0.012) -> bool:
    """Whether one block stands on another."""
    apart = blocks[above] - blocks[below]
    return bool(np.linalg.norm(apart[:2]) < SIDE / 2 and abs(apart[2] - SIDE) < slack)


def clear(blocks: Float[np.ndarray, "4 3"], block: int) -> bool:
    """Whether nothing stands on a block."""
    return not any(on(blocks, other, block) for other in range(len(blocks)) if other != block)


def tower(
    base: Sequence[float] | np.ndarray, order: Sequence[int] | np.ndarray, rng: np.random.Generator | None = None
) -> Float[np.ndarray, "4 3"]:
    """Places of blocks stacked in an order, the lowest first, at x, y; blocks not named lie apart."""
    blocks = np.zeros((BLOCKS, 3))
    rest = [k for k in range(BLOCKS) if k not in order]
    rng = rng or np.random.default_rng(0)
    while rest:
        xy = scattered(rng, len(rest))
        if np.linalg.norm(xy[:, :2] - np.asarray(base), axis=1).min() >= APART:
            blocks[rest] = xy
            break
    for level, k in enumerate(order):
        blocks[k] = [*base, SIDE * (level + 0.5)]
    return blocks
