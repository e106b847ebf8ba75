"""Closed-form pushing of the T, and the library of straight pushes it yields.

Damping 0 makes every contact quasi-static and there is no friction, so one increment of a push is an impulse along the
normal that just removes the penetration p of the finger (a disc of radius r) into the body:

    j = p / (1/m + (ρ × n)²/I),      Δx_cog = (j/m) n,      Δθ = j (ρ × n)/I

with ρ the contact point from the centre of gravity, n the inward normal, m = 1 and I = 3000 px² as in the environment.
In the body frame the outcome of a straight push depends on nothing but where it starts, its direction and its length:
the library below is simulated once and serves every pose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int

from envs.pusht import COG, GOAL, OUTLINE, RADIUS, RECTANGLES, rotation

INERTIA = 3000.0
# pymunk lets bodies sink into each other by its slop of 0.1 px before it pushes them apart.
CONTACT = RADIUS - 0.1
CLEARANCE = 7.0
# The finger may come this much closer than `CLEARANCE`, or a way along an edge would count as blocked.
SLACK = 2.0
SPACING = 5.0
LENGTHS = np.arange(2.0, 150.0, 2.0)
ANGLES = np.deg2rad([-30.0, -15.0, 0.0, 15.0, 30.0])

CENTROID = np.array([0.0, (3600 * 15 + 2700 * 75) / 6300])
# Radius of gyration of the T's area about its centroid, px: from the two rectangles by the parallel-axis theorem.
GYRATION = float(
    np.sqrt(
        (
            3600 * ((120**2 + 30**2) / 12 + (15 - CENTROID[1]) ** 2)
            + 2700 * ((30**2 + 90**2) / 12 + (75 - CENTROID[1]) ** 2)
        )
        / 6300
    )
)
GOAL_CENTROID = GOAL[:2] + rotation(GOAL[2]) @ CENTROID


def clearance(
    point: Float[np.ndarray, "... 2"],
) -> tuple[Float[np.ndarray, "..."] | float, Float[np.ndarray, "... 2"]]:
    """Return distance to the T and the nearest point of it, for body-frame points outside it, px."""
    near = np.clip(point[..., None, :], RECTANGLES[:, :2], RECTANGLES[:, 2:])
    gap = np.linalg.norm(point[..., None, :] - near, axis=-1)
    first = gap[..., 0] <= gap[..., 1]
    return gap.min(-1), np.where(first[..., None], near[..., 0, :], near[..., 1, :])


def misfit(pose: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."] | float:
    """Return the root mean square distance, px, of the T's points from where they belong in the goal.

    d² = |c - c_goal|² + 2 g² (1 - cos(θ - θ_goal)),   c the area's centroid, g its radius of gyration.
    """
    c, s = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    dx = pose[..., 0] - s * CENTROID[1] - GOAL_CENTROID[0]
    dy = pose[..., 1] + c * CENTROID[1] - GOAL_CENTROID[1]
    turn = (c + s) * np.sqrt(0.5)
    return np.sqrt(dx * dx + dy * dy + 2 * GYRATION**2 * (1 - turn))


def compose(pose: Float[np.ndarray, "... 3"], motion: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """Apply body-frame motions to poses: xy + R(θ) Δ, θ + Δθ; leading axes broadcast."""
    c, s = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    x, y = motion[..., 0], motion[..., 1]
    return np.stack([pose[..., 0] + c * x - s * y, pose[..., 1] + s * x + c * y, pose[..., 2] + motion[..., 2]], -1)


def push(
    pose: Float[np.ndarray, "n 3"],
    start: Float[np.ndarray, "n 2"],
    direction: Float[np.ndarray, "n 2"],
    lengths: Float[np.ndarray, "m"],
    stride: float = 1.0,
) -> Float[np.ndarray, "n m 3"]:
    """Return the block's pose after the finger has moved each of `lengths` from `start` along unit `direction`.

    Args:
        pose: block poses before, px and rad; n pushes are simulated at once.
        start: finger centres, px.
        direction: unit vectors.
        lengths: increasing finger travels, px.
        stride: increment of the simulation, px.
    """
    cog = pose[:, :2] + np.einsum("nij,j->ni", rotation(pose[:, 2]), COG)
    angle = pose[:, 2].copy()
    out = np.empty((len(pose), len(lengths), 3))
    travelled = 0.0
    for k, length in enumerate(lengths):
        for step in np.diff(np.linspace(travelled, length, 1 + max(1, int(np.ceil((length - travelled) / stride))))):
            travelled += step
            finger = start + travelled * direction
            # Twice: a finger that slides into an inner corner touches bar and stem at once, and each undoes the other.
            for _ in range(2):
                c, s = np.cos(angle), np.sin(angle)
                fx, fy = finger[:, 0] - cog[:, 0], finger[:, 1] - cog[:, 1]
                q = np.stack([c * fx + s * fy, c * fy - s * fx], -1) + COG
                gap, near = clearance(q)
                depth = np.maximum(CONTACT - gap, 0.0)
                if not depth.any():
                    break
                normal = (near - q) / np.maximum(gap, 1e-9)[:, None]
                arm = near - COG
                lever = arm[:, 0] * normal[:, 1] - arm[:, 1] * normal[:, 0]
                impulse = depth / (1 + lever**2 / INERTIA)
                cog[:, 0] += impulse * (c * normal[:, 0] - s * normal[:, 1])
                cog[:, 1] += impulse * (s * normal[:, 0] + c * normal[:, 1])
                angle += impulse * lever / INERTIA
        out[:, k, 0] = cog[:, 0] + np.sin(angle) * COG[1]
        out[:, k, 1] = cog[:, 1] - np.cos(angle) * COG[1]
        out[:, k, 2] = angle
    return out


@dataclass(frozen=True)
class Library:
    """Straight pushes in the body frame: from `start[k]` along `direction[k]`; `motion[k, l]` after `lengths[l]` px.

    `contact[k]` numbers the finger's place along the outline, `dock[c]` is that place at `CLEARANCE` from the block,
    `tilt` the angle (rad) off the normal, `spread[k, l]` how many px the outcome moves per px of sideways error of the
    start, `last[k, l]` the place along the outline where it leaves the finger, and `usable[k, l]` tells whether it
    still touches the block there.
    """

    contact: Int[np.ndarray, "k"]
    dock: Float[np.ndarray, "c 2"]
    start: Float[np.ndarray, "k 2"]
    direction: Float[np.ndarray, "k 2"]
    tilt: Float[np.ndarray, "k"]
    lengths: Float[np.ndarray, "l"]
    motion: Float[np.ndarray, "k l 3"]
    spread: Float[np.ndarray, "k l"]
    last: Int[np.ndarray, "k l"]
    usable: Bool[np.ndarray, "k l"]


def contacts() -> tuple[Float[np.ndarray, "c 2"], Float[np.ndarray, "c 2"]]:
    """Return finger centres in touch with the T, every `SPACING` px along it, and the inward normals.

    Symmetric about the stem. Points within a few px of a convex corner, where the finger would slip off, are left out,
    and so are those whose dock is too close to the other arm of the T.
    """
    centres, normals = [], []
    for a, b in zip(OUTLINE, np.roll(OUTLINE, -1, axis=0), strict=True):
        length = np.linalg.norm(b - a)
        along = (b - a) / length
        inward = np.array([-along[1], along[0]])
        half = np.arange(0.0, length / 2 - 3.0, SPACING)
        for offset in np.unique(np.concatenate([-half, half])):
            centres.append((a + b) / 2 + offset * along - RADIUS * inward)
            normals.append(inward)
    centre, normal = np.array(centres), np.array(normals)
    dock = centre - CLEARANCE * normal
    free = clearance(dock)[0] >= RADIUS + CLEARANCE - SLACK
    return centre[free], normal[free]


@cache
def library() -> Library:
    """Simulate the library; about a second, once per process."""
    centre, normal = contacts()
    turn = rotation(ANGLES)
    direction = np.einsum("aij,cj->cai", turn, normal).reshape(-1, 2)
    contact = np.repeat(np.arange(len(centre)), len(ANGLES))
    back = CLEARANCE / (direction * normal[contact]).sum(-1)
    start = centre[contact] - back[:, None] * direction
    free = clearance(start)[0] >= RADIUS + CLEARANCE - 2 * SLACK
    tilt = np.tile(ANGLES, len(centre))[free]
    contact, direction, start = contact[free], direction[free], start[free]
    still = np.zeros((len(start), 3))
    motion = push(still, start, direction, LENGTHS, 0.5)
    aside = np.stack([-direction[:, 1], direction[:, 0]], -1)
    left = push(still, start + aside, direction, LENGTHS)
    right = push(still, start - aside, direction, LENGTHS)
    middle = [m[..., :2] + np.stack([-np.sin(m[..., 2]), np.cos(m[..., 2])], -1) * CENTROID[1] for m in (left, right)]
    spread = 0.5 * np.hypot(np.linalg.norm(middle[0] - middle[1], axis=-1), GYRATION * (left[..., 2] - right[..., 2]))
    finger = start[:, None] + LENGTHS[:, None] * direction[:, None]
    body = np.einsum("klji,klj->kli", rotation(motion[..., 2]), finger - motion[..., :2])
    last = np.linalg.norm(body[:, :, None] - centre, axis=-1).argmin(-1)
    touching = clearance(body)[0] < RADIUS + 0.5
    moved = np.abs(motion).sum(-1) > 1e-6
    dock = centre - CLEARANCE * normal
    return Library(contact, dock, start, direction, tilt, LENGTHS, motion, spread, last, touching & moved)
