"""Ways through a maze, without time: what sees what, shortcuts, round corners."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from diffusion_core.errors import WorkbenchError
from envs.maze2d import RADIUS, Maze
from planning.plan import Problem

MARGIN = 0.05
"""Beyond the ball's radius: for errors of tracking, and as places are looked at every `SPACING`."""
SPACING = 0.05
"""Between places looked at, m: at a room of 0.15 m it misses 2 mm, `SPACING^2 / (8 room)`."""
SMALLEST = 0.02
"""Of a corner's rounding, m."""


@dataclass(frozen=True, eq=False)
class Room:
    """What must be free around the ball's middle.

    Args:
        maze: walls and obstacles.
        room: the clearance asked for, m.
        ends: places where one must begin or stop: within twice ``room`` of them their own clearance is enough.
    """

    maze: Maze
    room: float
    ends: Float[np.ndarray, "n 2"]

    @classmethod
    def of(cls, problem: Problem, room: float = RADIUS + MARGIN) -> Room:
        """Around a problem's way."""
        return cls(problem.maze, room, np.stack([problem.start[:2], problem.goal]))

    def free(self, xy: Float[np.ndarray, "... 2"]) -> Bool[np.ndarray, "..."]:
        """Which of the places have it."""
        asked = np.full(xy.shape[:-1], self.room)
        for end in self.ends:
            near = np.linalg.norm(xy - end, axis=-1) < 2.0 * self.room
            asked[near] = np.minimum(asked[near], self.maze.clearance(end) - 1e-9)
        return np.asarray(self.maze.clearance(xy) >= asked)

    def along(self, way: Float[np.ndarray, "n 2"]) -> bool:
        """Whether every place on a way has it."""
        return bool(self.free(resampled(way, SPACING)).all())


def resampled(way: Float[np.ndarray, "n 2"], spacing: float) -> Float[np.ndarray, "m 2"]:
    """Places at equal distances along a way, none farther from the next than ``spacing`` m; both ends kept."""
    s = np.concatenate([[0.0], np.linalg.norm(np.diff(way, axis=0), axis=1).cumsum()])
    at = np.linspace(0.0, s[-1], max(int(np.ceil(s[-1] / spacing)), 1) + 1)
    return np.stack([np.interp(at, s, way[:, 0]), np.interp(at, s, way[:, 1])], -1)


def corner_cut(room: Room, way: Float[np.ndarray, "n 2"], sweeps: int = 6) -> Float[np.ndarray, "m 2"]:
    """The way's shortcuts: its farthest place in sight each time, then every corner pulled tight.

    A corner is moved towards the line between its neighbours as far as both still see it. The way's own legs are kept
    where nothing shorter is free, whatever room they have. It ends in the way's own class: to the other side of a wall
    or an obstacle no shortcut leads.

    Args:
        room: that shortcuts must have.
        way: corners; a way through cells, say.
        sweeps: over all corners.
    """
    cut, before = _seen(room, way), len(way) + 1
    while len(cut) < before:
        before = len(cut)
        cut = _seen(room, _pulled(room, cut, sweeps))
    straight = np.abs(_turns(cut)) < 1e-6
    return cut[~np.concatenate([[False], straight, [False]])]


def _seen(room: Room, way: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """From each kept place on to the farthest in sight."""
    kept, i = [way[0]], 0
    while i < len(way) - 1:
        # from the farthest back: the first in sight is taken, the next one always is
        i = next((j for j in range(len(way) - 1, i + 1, -1) if room.along(way[[i, j]])), i + 1)
        kept.append(way[i])
    return np.array(kept)


def _pulled(room: Room, way: Float[np.ndarray, "n 2"], sweeps: int) -> Float[np.ndarray, "n 2"]:
    """Each corner as near to the line between its neighbours as both still see it from."""
    way = way.copy()
    for _ in range(sweeps):
        before = way.copy()
        for i in range(1, len(way) - 1):
            a, b, c = way[i - 1 : i + 2]
            leg = c - a
            foot = a + leg * np.clip((b - a) @ leg / max(float(leg @ leg), 1e-12), 0.0, 1.0)
            for share in (1.0, 0.5, 0.25, 0.125, 0.0625):
                moved = b + share * (foot - b)
                if room.along(np.stack([a, moved, c])):
                    way[i] = moved
                    break
        if np.abs(way - before).max(initial=0.0) < 0.005:
            break
    return way


def rounded(room: Room, way: Float[np.ndarray, "n 2"], reach: float = 1.0) -> Float[np.ndarray, "m 2"]:
    """The way with a parabola in place of each corner, as wide as has room.

        p(u) = (1 - u)^2 (b - d e_1) + 2 u (1 - u) b + u^2 (b + d e_2)

    with the legs' directions ``e_1`` and ``e_2``.

    Args:
        room: that the parabola must have; the corner stays where not even the smallest has it.
        way: corners.
        reach: d at most, m; and half the shorter leg.
    """
    u = np.linspace(0.0, 1.0, 97)[:, None]
    parts = [way[:1]]
    for a, b, c in zip(way[:-2], way[1:-1], way[2:], strict=True):
        before, after = float(np.linalg.norm(b - a)), float(np.linalg.norm(c - b))
        d, curve = min(reach, before / 2, after / 2), b[None]
        while d > SMALLEST:
            arc = (1 - u) ** 2 * (b - d * (b - a) / before) + 2 * u * (1 - u) * b + u**2 * (b + d * (c - b) / after)
            if room.along(arc):
                curve = arc
                break
            d *= 0.8
        parts.append(curve)
    return np.concatenate([*parts, way[-1:]])


def no_way(problem: Problem, tried: str) -> WorkbenchError:
    """What a planner raises that has found nothing."""
    start, goal = (np.round(xy, 2).tolist() for xy in (problem.start[:2], problem.goal))
    return WorkbenchError(
        f"plan: got no way from {start} to {goal} ({tried}); expected one that the ball fits through: choose another "
        "start, goal or map, or search longer."
    )


def _turns(way: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n-2"]:
    """Angle of each corner, rad."""
    legs = np.diff(way, axis=0)
    a, b = legs[:-1], legs[1:]
    return np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(1))
