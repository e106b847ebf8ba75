"""Shortest ways of the finger around the T: a visibility graph in the body frame.

The finger's centre must keep `RADIUS + CLEARANCE` from the T. The shortest way around a polygon bends at its convex
corners only, so two nodes per convex corner of the T suffice, with the docks of the push library as destinations:

    distance(a, dock) = min over corners i, j of |a - i| + G(i, j) + |j - dock|   or |a - dock| where that is free
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float

from envs.pusht import OUTLINE, RADIUS, WORLD
from envs.pusht_push import CLEARANCE, SLACK, clearance, library

# The finger is kinematic and passes through walls; a demonstration should not.
MARGIN = 8.0


def blocked(a: Float[np.ndarray, "*a 2"], b: Float[np.ndarray, "*b 2"], gap: float) -> Bool[np.ndarray, "..."]:
    """Tell which segments a-b (body frame, px) come closer than `gap` to the T. Leading axes broadcast.

    Checked at 49 points: for segments up to 200 px a corner can be cut by no more than 0.2 px unnoticed.
    """
    t = np.linspace(0.0, 1.0, 49)[:, None]
    point = a[..., None, :] + t * (b - a)[..., None, :]
    return np.asarray((np.asarray(clearance(point)[0]) < gap).any(-1))


def shorten(distance: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Return all shortest distances of a graph (Floyd and Warshall): d(i,j) <- min(d(i,j), d(i,k) + d(k,j))."""
    d = distance.copy()
    for k in range(len(d)):
        d = np.minimum(d, d[:, k : k + 1] + d[k : k + 1])
    return d


@dataclass(frozen=True)
class Roadmap:
    """Corners around the T (body frame, px) and the free direct distances among corners and docks, inf if blocked."""

    corner: Float[np.ndarray, "n 2"]
    between: Float[np.ndarray, "n n"]
    to_dock: Float[np.ndarray, "n c"]
    docks: Float[np.ndarray, "c c"]


def _direct(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n m"]:
    length = np.linalg.norm(a[:, None] - b, axis=-1)
    return np.where(blocked(a[:, None], b[None], RADIUS + CLEARANCE - SLACK), np.inf, length)


@cache
def roadmap() -> Roadmap:
    """Build the graph once per process."""
    corner = []
    for before, here, after in zip(np.roll(OUTLINE, 1, 0), OUTLINE, np.roll(OUTLINE, -1, 0), strict=True):
        a, b = (here - before) / np.linalg.norm(here - before), (after - here) / np.linalg.norm(after - here)
        if a[0] * b[1] - a[1] * b[0] < 0:
            continue
        out = np.array([a[1], -a[0]]), np.array([b[1], -b[0]])
        # 22.5 degrees off either edge's normal, so that both neighbouring legs and the chord between keep the distance.
        for near, far in (out, out[::-1]):
            node = np.cos(np.pi / 8) * near + np.sin(np.pi / 8) * far
            corner.append(here + (RADIUS + CLEARANCE) / np.cos(np.pi / 8) * node)
    points = np.array(corner)
    dock = library().dock
    between, to_dock = _direct(points, points), _direct(points, dock)
    around = shorten(between)
    direct = _direct(dock, dock)
    via = (to_dock.T[:, :, None] + around[None]).min(1)
    docks = np.minimum(direct, (via[:, :, None] + to_dock[None]).min(1))
    return Roadmap(points, between, to_dock, docks)


def inside(world: Float[np.ndarray, "*n 2"]) -> Bool[np.ndarray, "*n"]:
    """Tell which world points the finger may go to."""
    return np.asarray(((world > MARGIN) & (world < WORLD - MARGIN)).all(-1))


def leave(finger: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """Return the nearest body-frame point at full clearance (the point itself if it has that)."""
    point = finger
    for _ in range(6):
        gap, near = clearance(point)
        if gap >= RADIUS + CLEARANCE - 1e-6:
            return point
        if gap < 1e-6:
            break
        point = near + (point - near) * ((RADIUS + CLEARANCE) / gap)
    if clearance(point)[0] >= RADIUS + CLEARANCE - SLACK:
        return point
    # Starts may put the finger inside the T, where no direction leads outward: make for the nearest free place.
    free = np.concatenate([roadmap().corner, library().dock])
    return free[np.linalg.norm(free - finger, axis=-1).argmin()]


def ways(
    finger: Float[np.ndarray, "2"], allowed: Bool[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "n"], Float[np.ndarray, "c"]]:
    """Return the finger's point of leave, and its distances from there to all corners and docks.

    Args:
        finger: body frame, px.
        allowed: corners inside the walls at the present pose.
    """
    graph = roadmap()
    out = leave(finger)
    first = np.where(allowed, _direct(out[None], graph.corner)[0], np.inf)
    between = np.where(allowed[:, None] & allowed, graph.between, np.inf)
    to_corner = (first[:, None] + shorten(between)).min(0)
    to_corner = np.minimum(first, to_corner)
    direct = _direct(out[None], library().dock)[0]
    to_dock = np.minimum(direct, (to_corner[:, None] + graph.to_dock).min(0))
    return out, to_corner, to_dock + np.linalg.norm(out - finger)


def route(
    finger: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"], allowed: Bool[np.ndarray, "n"]
) -> Float[np.ndarray, "w 2"]:
    """Return the shortest way from the finger to `goal` as waypoints after the finger's own, body frame, px."""
    graph = roadmap()
    out = leave(finger)
    gap = min(RADIUS + CLEARANCE - SLACK, float(clearance(goal)[0]) - 0.1)
    points = np.concatenate([out[None], graph.corner, goal[None]])
    n = len(points)
    direct = np.full((n, n), np.inf)
    direct[1:-1, 1:-1] = np.where(allowed[:, None] & allowed, graph.between, np.inf)
    direct[0, 1:-1] = np.where(allowed, _direct(out[None], graph.corner)[0], np.inf)
    last = np.linalg.norm(points - goal, axis=-1)
    direct[:, -1] = np.where(blocked(points, goal[None], gap), np.inf, last)
    direct[1:-1, -1] = np.where(allowed, direct[1:-1, -1], np.inf)
    remaining = shorten(direct)[:, -1]
    remaining[-1] = 0.0
    way, at = [0], 0
    while at != n - 1 and len(way) <= n:
        step = direct[at] + remaining
        step[at] = np.inf
        at = int(step.argmin())
        way.append(at)
    points = points[way]
    return points if np.linalg.norm(points[0] - finger) > 0.5 else points[1:]
