"""The ball's motion where it touches nothing: what planners that know the dynamics know.

m dv/dt = F a - D v,    m = 4/3 pi 0.1^3 1000 = 4.19 kg,  F = 100 N,  D = 1 kg/s
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

from torch import Tensor

from envs.maze2d import DT, MAX_SPEED, RADIUS

MASS = 4.0 / 3.0 * pi * RADIUS**3 * 1000.0
FORCE, DAMPING = 100.0, 1.0
ACCELERATION = FORCE / MASS
"""Of a unit of action at rest, m/s^2, along each axis."""


@dataclass(frozen=True)
class Limits:
    """What a plan may ask of the ball; less than it can do, so that errors can be corrected.

    Args:
        speed: along each axis, m/s.
        acceleration: in any direction, m/s^2.
    """

    speed: float = 0.98 * MAX_SPEED
    acceleration: float = 0.9 * ACCELERATION


def advance(xy: Tensor, v: Tensor, action: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Place and velocity after ``steps`` of 0.01 s under one action, any shapes (..., 2).

        v_k+1 = c v_k + g a,   c = m / (m + h D),  g = h F / (m + h D);   xy_k+1 = xy_k + h v_k+1

    in closed form. The speed is limited before the first of them only: exact for one step, and for more wherever the
    ball stays below 5 m/s.
    """
    c, g = MASS / (MASS + DT * DAMPING), DT * FORCE / (MASS + DT * DAMPING)
    v = v.clamp(-MAX_SPEED, MAX_SPEED)
    rest = g / (1.0 - c) * action
    # sum_k v_k = n rest + (v - rest) sum_k c^k
    path = steps * rest + (v - rest) * (c * (1.0 - c**steps) / (1.0 - c))
    return xy + DT * path, rest + (v - rest) * c**steps
