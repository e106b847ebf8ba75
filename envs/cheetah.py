"""Half cheetahs side by side: gymnasium's HalfCheetah-v5, many at once, without its wrappers."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

DT = 0.05
"""Time of a step, s: five of the simulator's."""
SUBSTEPS = 5
STEPS = 1000
"""Of an episode; nothing ends it earlier."""
CONTROL = 0.1
"""Cost of a unit of squared action."""
RESET_NOISE = 0.1
OBS, ACTIONS = 17, 6
RETURNS = (-280.178953, 12135.0)
"""D4RL's returns of a random policy and of SAC, on HalfCheetah-v2; for orientation only, as this is v5."""


@cache
def model() -> Any:
    """The model that ships with gymnasium, whose compilation warns of an attribute; so it is compiled but once."""
    return mujoco.MjModel.from_xml_path(str(files("gymnasium") / "envs" / "mujoco" / "assets" / "half_cheetah.xml"))


class Cheetahs:
    """Several half cheetahs, each in a world of its own.

    An observation is (17,): height and pitch of the torso, six joint angles (m, rad), and the velocities of all of
    these and of the torso's x. An action is six torques in [-1, 1]. The reward of a step is

        (x' - x) / dt - 0.1 |a|^2

    Args:
        n: how many.

    Source: gymnasium's HalfCheetah-v5, whose numbers these are; ``tests/envs/test_cheetah.py`` compares step by step.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"cheetahs: got {n}; expected at least 1.")
        self.model = model()
        self.data = [mujoco.MjData(self.model) for _ in range(n)]

    def __len__(self) -> int:
        return len(self.data)

    def reset(self, seed: int) -> Float[np.ndarray, "n 17"]:
        """Begin anew; the k-th begins as it would alone with ``seed + k``."""
        for k, data in enumerate(self.data):
            rng = np.random.default_rng(seed + k)
            mujoco.mj_resetData(self.model, data)
            data.qpos += rng.uniform(-RESET_NOISE, RESET_NOISE, self.model.nq)
            data.qvel += RESET_NOISE * rng.standard_normal(self.model.nv)
            mujoco.mj_forward(self.model, data)
        return self.observed()

    def restore(self, states: Float[np.ndarray, "n 18"]) -> Float[np.ndarray, "n 17"]:
        """Go on from places and velocities of all joints, the torso's x with them."""
        for data, state in zip(self.data, states, strict=True):
            mujoco.mj_resetData(self.model, data)
            data.qpos[:], data.qvel[:] = np.split(state, [self.model.nq])
            mujoco.mj_forward(self.model, data)
        return self.observed()

    def step(self, actions: Float[np.ndarray, "n 6"]) -> tuple[Float[np.ndarray, "n 17"], Float[np.ndarray, " n"]]:
        """What is seen next, and the rewards.

        Raises:
            ValueError: an action is not finite, or there is not one for each.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (len(self), ACTIONS) or not np.isfinite(actions).all():
            raise ValueError(
                f"actions: got shape {actions.shape}, {int((~np.isfinite(actions)).sum())} not finite; expected finite "
                f"({len(self)}, {ACTIONS}): correct what acts."
            )
        before = np.array([data.qpos[0] for data in self.data])
        for data, action in zip(self.data, actions, strict=True):
            data.ctrl[:] = action
            mujoco.mj_step(self.model, data, nstep=SUBSTEPS)
        after = np.array([data.qpos[0] for data in self.data])
        return self.observed(), (after - before) / DT - CONTROL * np.square(actions).sum(1)

    def observed(self) -> Float[np.ndarray, "n 17"]:
        """What is seen now."""
        return np.array([np.concatenate([data.qpos[1:], data.qvel]) for data in self.data])

    def frame(self, k: int, renderer: Any) -> np.ndarray:
        """A picture of the k-th, by a ``mujoco.Renderer`` of this model; the camera goes with it."""
        renderer.update_scene(self.data[k], camera="track")
        # shadows and mirrors cost ten times the picture where there is no graphics card
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = False
        return np.asarray(renderer.render())


def score(total: float) -> float:
    """A return in D4RL's units, 0 for a random policy and 100 for SAC."""
    return 100.0 * (total - RETURNS[0]) / (RETURNS[1] - RETURNS[0])
