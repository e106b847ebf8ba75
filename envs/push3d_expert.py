"""A scripted expert for the T on a table with friction: Push-T's planner, which knows of no friction, asked anew.

The planner looks two straight pushes ahead with a closed form that holds where nothing rubs (`envs.pusht_push`). Here
it is wrong by some millimetres a push, and so what it wants next is planned from where the block really came to lie.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from envs import pusht
from envs.push3d import HALF, MM, planar
from envs.pusht_expert import Expert, ExpertStyle


class Push3DExpert:
    """Sees what `envs.push3d.Push3D` shows; every episode has a style of its own, drawn from its seed.

    Args:
        enough: coverage at which it rests.
    """

    def __init__(self, enough: float = 0.91) -> None:
        self.enough = enough
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin an episode: forget the plan, draw how fast it travels and pushes and which pushes it likes."""
        rng = np.random.default_rng([seed, 3])
        style = ExpertStyle(
            travel_lead=float(rng.uniform(26.0, 40.0)),
            push_lead=float(rng.uniform(14.0, 22.0)),
            oblique=float(rng.uniform(8.0, 24.0)),
            enough=self.enough,
        )
        self._planner = Expert(style)

    def act(self, observation: Mapping[str, np.ndarray]) -> Float[np.ndarray, "2"]:
        """The target that it wants, m.

        Raises:
            RuntimeError: no push helps; the episode is lost.
        """
        finger, block, goal = (np.asarray(observation[key], dtype=np.float64) for key in ("finger", "block", "goal"))
        block, goal = (np.array([*p[:2], np.arctan2(p[3], p[2])]) for p in (block, goal))
        state = np.concatenate([planar(np.array([*finger, 0.0]), goal)[:2], planar(block, goal)])
        state[4] %= 2 * np.pi
        back = pusht.rotation(goal[2] - pusht.GOAL[2])
        wanted = goal[:2] + back @ (self._planner.act(state) - pusht.GOAL[:2]) * MM
        return np.clip(wanted, -HALF, HALF).astype(np.float32)
