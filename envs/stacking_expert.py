"""A scripted hand: one block is taken and put somewhere."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from envs.stacking import DT, SIDE, WIDTH, Stacking

TRAVEL = 0.12
"""Height of the fingertips above the table on their way, m, above the highest of what stands there."""
SPEED = 0.5
"""Of the fingertips, m/s."""
HOLD = 0.3
"""For which the hand waits while its fingers move, s."""


def motion(
    state: Float[np.ndarray, "16"], block: int, target: Float[np.ndarray, "3"], travel: float
) -> Float[np.ndarray, "n 4"]:
    """The actions that take a block and put its middle at a target.

    Args:
        state: see `envs.stacking.Stacking`.
        travel: height of the fingertips on their way, m.
    """
    tips, middle = state[:3], state[4 + 3 * block : 7 + 3 * block]
    held, put = SIDE * 0.6, target + np.array([0.0, 0.0, 0.002])
    legs: list[tuple[np.ndarray, float, float]] = [
        (np.array([tips[0], tips[1], travel]), WIDTH, 0.0),
        (np.array([middle[0], middle[1], travel]), WIDTH, 0.0),
        (middle, WIDTH, 0.2),
        (middle, held / 2, HOLD),
        (np.array([middle[0], middle[1], travel]), held / 2, 0.0),
        (np.array([put[0], put[1], travel]), held / 2, 0.1),
        (put, held / 2, 0.2),
        (put, WIDTH, HOLD),
        (np.array([put[0], put[1], travel]), WIDTH, 0.0),
    ]
    actions, at = [], tips
    for to, width, wait in legs:
        n = int(np.ceil(np.linalg.norm(to - at) / (SPEED * DT)))
        share = np.arange(1, n + 1)[:, None] / max(n, 1)
        actions += [np.append(xyz, width) for xyz in at + share * (to - at)]
        actions += [np.append(to, width)] * round(wait / DT)
        at = to
    return np.array(actions)


def carried_out(env: Stacking, actions: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "m 16"]:
    """All states, the one before the first action with them."""
    return np.array([env.state(), *[env.step(action) for action in actions]])
