"""Time along a way: as fast as the ball can follow.

    v <= v_max / max(|e_x|, |e_y|),    (v^2 k)^2 + (dv/dt)^2 <= a_max^2,    v(0) = v_start . e(0),    v(end) = 0

with the way's direction e and curvature k. On a straight line that is a trapezoid; before a bend the ball brakes as
late as it can.

Source: the two sweeps are Bobrow, Dubowsky and Gibson 1985 (doi 10.1177/027836498500400301) with a limit that does not
depend on the place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from envs.maze2d import DT
from planning.ball import Limits
from planning.plan import Plan
from planning.ways import resampled

STEP = 0.01
"""Between places where the speed is decided, m."""
WINDOW = 2
"""Legs between them, on either side, that the curvature is measured over: a sharp corner counts as a bend that long."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Speeds along a way.

    Args:
        xy: places at equal distances along it, m.
        ds: that distance, m.
        v: the speed at each, m/s.
        t: when it is passed, s.
    """

    xy: Float[np.ndarray, "n 2"]
    ds: float
    v: Float[np.ndarray, " n"]
    t: Float[np.ndarray, " n"]


def profile(way: Float[np.ndarray, "n 2"], velocity: Float[np.ndarray, "2"], limits: Limits) -> Profile:
    """The greatest speeds within the limits; the arguments are those of `timed`."""
    xy = resampled(way, STEP)
    legs = np.diff(xy, axis=0)
    # along the way, so that it is no less at its corners
    ds = float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum()) / len(legs)
    if ds < 1e-9:
        return Profile(xy, 0.0, np.zeros(len(xy)), np.zeros(len(xy)))
    e = legs / np.linalg.norm(legs, axis=1, keepdims=True).clip(1e-12)
    wide = np.pad(e, ((WINDOW - 1, WINDOW - 1), (0, 0)), mode="edge")
    apart = 2 * WINDOW - 1
    bends = np.pad(np.linalg.norm(wide[apart:] - wide[:-apart], axis=1), 1) / (apart * ds)
    axis = np.abs(np.concatenate([e, e[-1:]])).max(1)
    top = np.minimum(limits.speed / axis, np.sqrt(limits.acceleration / np.maximum(bends, 1e-9)))
    # plain numbers: a loop over numpy's takes five times as long
    v, bend = top.tolist(), bends.tolist()
    v[0], v[-1] = min(v[0], max(0.0, float(velocity @ e[0]))), 0.0
    for order, step in ((range(1, len(v)), 1), (range(len(v) - 2, -1, -1), -1)):
        for i in order:
            square = v[i - step] ** 2
            left = max(limits.acceleration**2 - (square * bend[i - step]) ** 2, 0.0) ** 0.5
            v[i] = min(v[i], (square + 2.0 * left * ds) ** 0.5)
    speed = np.array(v)
    t = (2.0 * ds / np.maximum(speed[1:] + speed[:-1], 1e-6)).cumsum()
    return Profile(xy, ds, speed, np.concatenate([[0.0], t]))


def timed(
    way: Float[np.ndarray, "n 2"],
    velocity: Float[np.ndarray, "2"],
    limits: Limits = Limits(),  # noqa: B008
    dt: float = DT,
) -> Plan:
    """The plan that goes along a way as fast as the limits allow, and stops at its end.

    Args:
        way: corners, m; round ones, as a sharp one is passed at walking pace.
        velocity: at the start, m/s; what of it goes along the way is kept.
        limits: of the plan.
        dt: between nodes, s.
    """
    found = profile(way, velocity, limits)
    xy, v, t = found.xy, found.v, found.t
    if found.ds == 0.0:
        return Plan(np.stack([way[0], way[-1]]), dt)
    at = np.arange(int(np.ceil(t[-1] / dt)) + 1) * dt
    i = np.clip(np.searchsorted(t, at, "right") - 1, 0, len(t) - 2)
    since = np.minimum(at, t[-1]) - t[i]
    a = (v[i + 1] ** 2 - v[i] ** 2) / (2.0 * found.ds)
    share = np.clip((v[i] * since + a * since**2 / 2.0) / found.ds, 0.0, 1.0)
    nodes = xy[i] + share[:, None] * (xy[i + 1] - xy[i])
    nodes[0], nodes[-1] = way[0], way[-1]
    return Plan(nodes, dt)
