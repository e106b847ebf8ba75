"""Push-T: slide a T-shaped block onto its outline with a round finger.

World: 512 x 512 px, y downwards, no gravity, no friction, and damping 0, so a body moves only while it is
pushed. The physics is gym-pusht's own pymunk space; what is ours is what surrounds it: published seeds,
keypoint observations, resets to an observed state, an exact coverage without shapely, and the mirror symmetry.

    coverage = area(T(pose) ∩ T(goal)) / area(T),      reward = clip(coverage / 0.95, 0, 1)

Source: Florence et al. 2021, Implicit Behavioral Cloning (arXiv 2109.00137), the task; Chi et al. 2023, Diffusion
Policy (arXiv 2303.04137), the T, the seeds and the keypoints. We differ from gym-pusht in the contact count, a mean
over the 10 sub-steps as in the human data (gym-pusht divides by 1000).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
import pymunk
from gym_pusht.envs.pusht import PushTEnv
from jaxtyping import Float

WORLD = 512.0
RADIUS = 15.0
GOAL = np.array([256.0, 256.0, np.pi / 4])
SUCCESS = 0.95
SUBSTEPS = 10
DT = 0.01
KP, KV = 100.0, 20.0

# Body frame, px: the bar of the T lies along x, its stem along +y. Each rectangle is (x0, y0, x1, y1).
RECTANGLES = np.array([[-60.0, 0.0, 60.0, 30.0], [-15.0, 30.0, 15.0, 120.0]])
OUTLINE = np.array(
    [[-60.0, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]],
)
AREA = 6300.0
COG = np.array([0.0, 45.0])

# The nine tracked points of the human data, body frame, px. Obtained by rotating `keypoint - block_xy` of all 25,650
# human steps back by the block angle and averaging the steps at rest (spread there: float32 rounding, 2e-5 px).
KEYPOINTS = np.array(
    [
        [9.26979, 90.04097],
        [-60.98347, -1.18673],
        [60.91276, -1.39336],
        [-0.2705, 25.54363],
        [-14.06493, 122.81585],
        [39.00274, 32.8574],
        [-39.96641, 32.72966],
        [-16.82434, 62.86318],
        [23.54146, -1.70029],
    ]
)


def rotation(angle: Float[np.ndarray, "..."] | float) -> Float[np.ndarray, "... 2 2"]:
    """Return the matrix R with R @ p = p turned by `angle` rad (clockwise on screen, as y points down)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


def place(points: Float[np.ndarray, "n 2"], pose: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... n 2"]:
    """Move body-frame points into the world: p = xy + R(angle) q.

    Args:
        points: body frame, px.
        pose: block x, y in px and angle in rad.
    """
    return pose[..., None, :2] + points @ np.swapaxes(rotation(pose[..., 2]), -1, -2)


def keypoints(state: Float[np.ndarray, "... 5"]) -> Float[np.ndarray, "... 18"]:
    """Return the nine block keypoints (x, y each, px) in the order of the human data.

    Args:
        state: agent_x, agent_y, block_x, block_y (px), block_angle (rad).
    """
    state = np.asarray(state, dtype=np.float64)
    return place(KEYPOINTS, state[..., 2:]).reshape(*state.shape[:-1], 18)


def coverage(pose: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."] | float:
    r"""Return the share of the goal T that the block covers, exactly.

    By Green's theorem, for a polygon P and a box [x0, x1] x [y0, y1],

        area(P ∩ box) = -∮_{∂P} (clamp(y, y0, y1) - y0) d clamp(x, x0, x1)

    Along an edge both clamps are piecewise linear in t in [0, 1]; they bend where the edge crosses a side's line, so
    the trapezoid rule on those nodes is exact. Agrees with shapely to 1e-12 and takes whole arrays of poses.

    Args:
        pose: block x, y in px and angle in rad.
    """
    pose = np.asarray(pose, dtype=np.float64)
    relative = np.concatenate([(pose[..., :2] - GOAL[:2]) @ rotation(GOAL[2]), pose[..., 2:] - GOAL[2]], axis=-1)
    start = place(OUTLINE, relative)[..., None, :, :]
    edge = np.roll(start, -1, axis=-2) - start
    low, high = RECTANGLES[:, None, :2], RECTANGLES[:, None, 2:]
    # An edge parallel to a side never crosses its line: the quotient is then ±inf or nan, and both mean "no node".
    with np.errstate(divide="ignore", invalid="ignore"):
        nodes = np.concatenate([(low - start) / edge, (high - start) / edge], axis=-1)
    nodes = np.where(np.isfinite(nodes), np.clip(nodes, 0.0, 1.0), 0.0)
    ends = np.broadcast_to(np.array([0.0, 1.0]), (*nodes.shape[:-1], 2))
    nodes = np.sort(np.concatenate([nodes, ends], axis=-1), axis=-1)
    at = start[..., None, :] + nodes[..., None] * edge[..., None, :]
    x = np.clip(at[..., 0], low[..., None, 0], high[..., None, 0])
    y = np.clip(at[..., 1], low[..., None, 1], high[..., None, 1]) - low[..., None, 1]
    integral = 0.5 * (y[..., 1:] + y[..., :-1]) * np.diff(x, axis=-1)
    return np.abs(integral.sum((-1, -2))).sum(-1) / AREA


def mirror_xy(xy: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "... 2"]:
    """Reflect points about the goal's stem axis x + y = 512: (x, y) -> (512 - y, 512 - x).

    The reflection maps the goal T onto itself. It is a symmetry of pushing, exact but for the walls, which stand at
    5 and 506 px and so are 1 px off the mirrored ones.
    """
    return WORLD - np.asarray(xy)[..., ::-1]


def mirror_state(state: Float[np.ndarray, "... 5"]) -> Float[np.ndarray, "... 5"]:
    """Reflect a state: positions by `mirror_xy`, angle -> pi/2 - angle (mod 2 pi), so the goal's pi/4 stays."""
    state = np.asarray(state)
    return np.concatenate(
        [
            mirror_xy(state[..., :2]),
            mirror_xy(state[..., 2:4]),
            np.mod(np.pi / 2 - state[..., 4:], 2 * np.pi),
        ],
        axis=-1,
    )


def mirror_keypoints(flat: Float[np.ndarray, "... 18"]) -> Float[np.ndarray, "... 18"]:
    """Reflect the keypoints of a state: `mirror_keypoints(keypoints(s)) == keypoints(mirror_state(s))`.

    The nine points are not symmetric on the T, so no permutation of the reflected points is in the standard order;
    the pose is recovered instead, by the rigid motion that fits the nine points (two-dimensional Procrustes:
    angle = atan2(Σ q x p, Σ q . p) for centred q, p), reflected, and the points are placed anew. Works on noisy or
    predicted keypoints too, and returns those of the nearest rigid T.
    """
    points = np.asarray(flat, dtype=np.float64)
    points = points.reshape(*points.shape[:-1], 9, 2)
    body = KEYPOINTS - KEYPOINTS.mean(0)
    centred = points - points.mean(-2, keepdims=True)
    cross = (body[:, 0] * centred[..., 1] - body[:, 1] * centred[..., 0]).sum(-1)
    angle = np.arctan2(cross, (body * centred).sum((-1, -2)))
    xy = points.mean(-2) - np.einsum("...ij,j->...i", rotation(angle), KEYPOINTS.mean(0))
    state = np.concatenate([np.zeros_like(xy), xy, angle[..., None]], axis=-1)
    return keypoints(mirror_state(state)).astype(np.asarray(flat).dtype)


def mirror_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reflect recorded steps: any of `state`, `action`, `keypoint` (n, 9, 2), `img` (n, 96, 96, 3); others are kept.

    Raises:
        ValueError: keypoints without the states they were computed from.
    """
    reflected = dict(arrays)
    if "state" in arrays:
        reflected["state"] = mirror_state(arrays["state"]).astype(arrays["state"].dtype)
    if "action" in arrays:
        reflected["action"] = mirror_xy(arrays["action"]).astype(arrays["action"].dtype)
    if "keypoint" in arrays:
        if "state" not in arrays:
            raise ValueError(f"mirror_arrays: got {sorted(arrays)}, expected `state` beside `keypoint`; keep both")
        points = keypoints(reflected["state"]).reshape(arrays["keypoint"].shape)
        reflected["keypoint"] = points.astype(arrays["keypoint"].dtype)
    if "img" in arrays:
        # (x, y) -> (512 - y, 512 - x) is a transposition of rows and columns followed by a turn by 180 degrees
        reflected["img"] = np.ascontiguousarray(arrays["img"].swapaxes(1, 2)[:, ::-1, ::-1])
    return reflected


def observations(
    arrays: Mapping[str, np.ndarray], obs: Literal["state", "keypoints", "image"]
) -> dict[str, np.ndarray]:
    """View recorded steps as the environment's observations of the same name.

    Args:
        arrays: `state` (n, 5), and for keypoints `keypoint` (n, 9, 2), for images `img` (n, 96, 96, 3).

    Returns:
        "state": agent xy, block xy (px), block angle (rad, in [0, 2 pi): it jumps where the T turns through 0).
        "keypoints": nine block keypoints, then agent xy (px).
        "image": `image` (n, 96, 96, 3) uint8 and `agent_pos` (n, 2) px.
    """
    state = arrays["state"]
    if obs == "state":
        return {"state": state}
    if obs == "keypoints":
        return {"keypoints": np.concatenate([arrays["keypoint"].reshape(len(state), 18), state[:, :2]], axis=1)}
    return {"image": arrays["img"], "agent_pos": state[:, :2]}


def published_reset(seed: int) -> Float[np.ndarray, "5"]:
    """Return the start vector of diffusion_policy's `RandomState(seed)`, before the legacy placing of the block.

    The block's position is set before its angle, and setting the angle turns the block about its centre of gravity,
    so the state then observed is another one.
    """
    draw = np.random.RandomState(seed)
    return np.array(
        [
            draw.randint(50, 450),
            draw.randint(50, 450),
            draw.randint(100, 400),
            draw.randint(100, 400),
            draw.randn() * 2 * np.pi - np.pi,
        ],
        dtype=np.float64,
    )


class PushT(gymnasium.Env[Any, np.ndarray]):
    """Push-T with a position-controlled finger at 10 Hz.

    The action is the finger's target in px. Ten times per step, `a = 100 (target - x) - 20 v`, critically damped, and
    the physics advances 0.01 s.

    Args:
        obs: "state" (5,): agent xy, block xy (px), block angle in [0, 2 pi); "keypoints" (20,): nine block keypoints
            then agent xy (px); "image": {"image": (96, 96, 3) uint8, "agent_pos": (2,) px}.
        resets: "published" starts where diffusion_policy's environment starts for the same seed; "gym" where
            gym-pusht does. `reset(options={"state": s})` starts with observed state `s` under either.
        render_mode: "rgb_array" or None.
        max_steps: truncation, steps of 0.1 s.
    """

    # Gymnasium declares it as an instance variable with a mutable default.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        obs: Literal["state", "keypoints", "image"] = "keypoints",
        resets: Literal["published", "gym"] = "published",
        render_mode: str | None = "rgb_array",
        max_steps: int = 300,
    ) -> None:
        if obs not in ("state", "keypoints", "image"):
            raise ValueError(f"obs: got {obs!r}, expected 'state', 'keypoints' or 'image'; choose one of them")
        if resets not in ("published", "gym"):
            raise ValueError(f"resets: got {resets!r}, expected 'published' or 'gym'; choose one of them")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: got {render_mode!r}, expected 'rgb_array' or None; choose one of them")
        # pygame draws on a memory surface only, yet probes for a display when there is none.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        self.obs, self.resets, self.render_mode, self.max_steps = obs, resets, render_mode, max_steps
        self._inner = PushTEnv(obs_type="state", visualization_width=512, visualization_height=512)
        self._steps = 0
        self._running = False
        self.action_space = gymnasium.spaces.Box(0.0, WORLD, (2,), np.float32)
        box = gymnasium.spaces.Box
        # The finger may stand anywhere; a block squeezed against a wall can leave the window by a few px.
        spaces: dict[str, gymnasium.Space[Any]] = {
            "state": box(
                np.full(5, -WORLD, np.float32), np.array([2 * WORLD] * 4 + [2 * np.pi], np.float32), dtype=np.float32
            ),
            "keypoints": box(-WORLD, 2 * WORLD, (20,), np.float32),
            "image": gymnasium.spaces.Dict(
                {"image": box(0, 255, (96, 96, 3), np.uint8), "agent_pos": box(-WORLD, 2 * WORLD, (2,), np.float32)}
            ),
        }
        self.observation_space = spaces[obs]

    @property
    def state(self) -> Float[np.ndarray, "5"]:
        """Agent xy, block xy (px) and block angle (rad, in [0, 2 pi)) now."""
        agent, block = self._inner.agent, self._inner.block
        return np.array([*agent.position, *block.position, block.angle % (2 * np.pi)])

    @property
    def velocity(self) -> Float[np.ndarray, "2"]:
        """The finger's velocity now, px/s; not observed by any policy."""
        return np.array(self._inner.agent.velocity)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: start state of the "published" protocol, or seed of the "gym" one. Without it the environment's own
                generator draws one, so an unseeded reset is still a published start.
            options: {"state": (5,)} starts with exactly that state observed.
        """
        super().reset(seed=seed)
        self._running = True
        self._steps = 0
        self._inner._last_action = None
        options = options or {}
        if unknown := set(options) - {"state"}:
            raise ValueError(f"options: got keys {sorted(unknown)}, expected only 'state'; remove them")
        if "state" in options:
            self._place(np.asarray(options["state"], dtype=np.float64))
        elif self.resets == "published":
            drawn = int(self.np_random.integers(2**31)) if seed is None else seed
            self._inner.reset(options={"reset_to_state": published_reset(drawn)})
        else:
            self._inner.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        self._inner.n_contact_points = 0
        return self._observe(), self._info(float(coverage(self.state[2:])))

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Chase the target `action` (xy, px) for 0.1 s."""
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise ValueError(
                f"action: got {action!r}, expected 2 finite numbers (x, y in px, 0 to 512); check the policy's output "
                "and that it is unnormalised"
            )
        if not self._running:
            raise RuntimeError("step: got a call before reset, expected reset first; call env.reset(seed=...)")
        self._inner._last_action = target
        self._inner.n_contact_points = 0
        self._chase(float(target[0]), float(target[1]))
        self._steps += 1
        cover = float(coverage(self.state[2:]))
        reward = min(max(cover / SUCCESS, 0.0), 1.0)
        info = self._info(cover)
        return self._observe(), reward, info["is_success"], self._steps >= self.max_steps, info

    def render(self) -> np.ndarray | None:
        """Return the scene as (512, 512, 3) uint8 with a cross at the last action, or None without a render mode."""
        return None if self.render_mode is None else self._inner.render()

    def close(self) -> None:
        """Release nothing: no window is ever opened."""

    def _chase(self, x: float, y: float) -> None:
        agent, space = self._inner.agent, self._inner.space
        vx, vy = agent.velocity
        for _ in range(SUBSTEPS):
            px, py = agent.position
            vx += (KP * (x - px) + KV * (0 - vx)) * DT
            vy += (KP * (y - py) + KV * (0 - vy)) * DT
            agent.velocity = (vx, vy)
            space.step(DT)

    def _place(self, state: np.ndarray) -> None:
        if state.shape != (5,) or not np.isfinite(state).all():
            raise ValueError(
                f"options['state']: got {state!r}, expected 5 finite numbers (agent xy, block xy in px, angle in rad); "
                "pass a state as observed"
            )
        self._inner._setup()
        # Angle first: setting it turns the block about its centre of gravity and so moves the origin.
        self._inner.block.angle = float(state[4])
        self._inner.block.position = pymunk.Vec2d(float(state[2]), float(state[3]))
        self._inner.agent.position = pymunk.Vec2d(float(state[0]), float(state[1]))
        self._inner.space.reindex_shapes_for_body(self._inner.block)
        self._inner.space.reindex_shapes_for_body(self._inner.agent)

    def _observe(self) -> Any:
        state = self.state
        if self.obs == "state":
            return state.astype(np.float32)
        if self.obs == "keypoints":
            return np.concatenate([keypoints(state), state[:2]]).astype(np.float32)
        screen = self._inner._draw()
        image = self._inner._get_img(screen, width=96, height=96, render_action=False)
        return {"image": image, "agent_pos": state[:2].astype(np.float32)}

    def _info(self, cover: float) -> dict[str, Any]:
        return {
            "state": self.state,
            "coverage": cover,
            "is_success": cover > SUCCESS,
            "n_contacts": int(np.ceil(self._inner.n_contact_points / SUBSTEPS)),
        }
