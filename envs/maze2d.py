"""Maze2D: a ball in a walled maze, pushed to a goal; D4RL's umaze, medium and large in today's MuJoCo.

    step:    |v| clipped to 5 m/s per axis, force 100 a N for 0.01 s,    a in [-1, 1]^2
    reward   1 while |xy - goal| <= 0.5 m after the step, else 0;  an episode ends by its steps alone
    score    100 (return - random) / (reference - random)

The world is ours (one MJCF text), the numbers are D4RL's: each of 20,000 real transitions of each maze replays within
1e-4, contacts included (`infos/qpos` and `infos/qvel`; among `observations` two at each end of a segment are old ones).
A ball of radius 0.1 m and density 1000 slides without friction, its joints damped by 1.

D4RL's "reference" is no optimum: its controller drives at the first episode's last waypoint in all later ones (D4RL
issues #159 and #215). A controller that goes round the walls scores 145 to 202: see `envs.maze2d_expert`.

Source: Fu et al. 2020, D4RL (arXiv 2004.07219), the task, the mazes and the reference returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import mujoco
import numpy as np
from jaxtyping import Bool, Float

DT = 0.01
GOAL_RADIUS = 0.5
RADIUS = 0.1
MAX_SPEED = 5.0
JITTER = 0.1
"""Of starts, goals and the velocity at the start."""
ORIGIN = 0.2
"""The body's place 1.2 less the walls' 1.0: a cell ``i`` spans ``[i - 0.7, i + 0.3]`` in the coordinates of a state."""

IMPEDANCE = (0.9 / (0.9 + 2.0 / 3.0 * 0.1), 0.95 / (0.95 + 2.0 / 3.0 * 0.05))
"""Of contacts, at the surface and deep inside. MuJoCo 2.0, which D4RL ran in, softened a contact by the ball's mean
mobility over three axes, two of which it has; today's MuJoCo by that along the contact. So ours is made as much harder,
with stiffness and damping, as given below, such that the acceleration asked for stays that of its default."""

MAPS = {
    "umaze": ("#####", "#GOO#", "###O#", "#OOO#", "#####"),
    "medium": ("########", "#OO##OO#", "#OO#OOO#", "##OOO###", "#OO#OOO#", "#O#OO#O#", "#OOO#OG#", "########"),
    "large": (
        "############",
        "#OOOO#OOOOO#",
        "#O##O#O#O#O#",
        "#OOOOOO#OOO#",
        "#O####O###O#",
        "#OO#O#OOOOO#",
        "##O#O#O#O###",
        "#OO#OOO#OGO#",
        "############",
    ),
}
"""Rows go along x, columns along y; ``#`` wall, ``G`` the goal of the single task."""
STEPS = {"umaze": 300, "medium": 600, "large": 800}
RETURNS = {"umaze": (23.85, 161.86), "medium": (13.13, 277.39), "large": (6.7, 273.99)}
"""Return of D4RL's random and of its reference policy, for the score."""


@dataclass(frozen=True)
class World:
    """What all mazes of a task have in common.

    Args:
        side: of a cell, m.
        middle: of the cell (0, 0), along both axes, m.
        radius: of what moves, m.
        reach: distance from the goal at which it counts as reached, m.
        dt: time of a step, s.
        speed: at most, along each axis, m/s.
    """

    side: float
    middle: float
    radius: float
    reach: float
    dt: float
    speed: float

    @property
    def corner(self) -> float:
        """Where the cell (0, 0) begins, along both axes, m."""
        return self.middle - self.side / 2.0


BALL = World(side=1.0, middle=-ORIGIN, radius=RADIUS, reach=GOAL_RADIUS, dt=DT, speed=MAX_SPEED)
"""Maze2D's."""


@dataclass(frozen=True)
class Obstacle:
    """What stands in a maze besides its walls.

    Args:
        centre: (x, y) in the coordinates of a state, m.
        radius: of a disc, or half the side of a square, m.
        square: a square along the axes instead of a disc.
    """

    centre: tuple[float, float]
    radius: float
    square: bool = False


class Maze:
    """Where one can be: walls, obstacles, distances and ways.

    Args:
        rows: of the map, as in `MAPS`; all as long as one another, the border all walls.
        obstacles: beside the walls.
        world: sizes and place of its cells, and of what moves between them.

    Raises:
        ValueError: the map has another form, or an obstacle has no size.
    """

    def __init__(self, rows: Sequence[str], obstacles: Sequence[Obstacle] = (), world: World = BALL) -> None:
        cells = [list(row) for row in rows]
        if len(cells) < 3 or len({len(row) for row in cells}) != 1 or {c for row in cells for c in row} - set("#OG"):
            raise ValueError(
                f"map: got {list(rows)}, expected rows of one length of '#', 'O' and 'G'; correct the rows"
            )
        self.walls: Bool[np.ndarray, "w h"] = np.array(cells) == "#"
        if not (self.walls[[0, -1]].all() and self.walls[:, [0, -1]].all()):
            raise ValueError(f"map: got {list(rows)} with a gap in the border, expected walls all around; close it")
        for obstacle in obstacles:
            if not (np.isfinite([*obstacle.centre, obstacle.radius]).all() and obstacle.radius > 0.0):
                raise ValueError(f"obstacle: got {obstacle}, expected finite numbers and a radius > 0; correct it")
        self.rows, self.obstacles, self.world = tuple(rows), tuple(obstacles), world
        goals = np.argwhere(np.array(cells) == "G")
        self.goal = goals[0].astype(float) if len(goals) else None

    @cached_property
    def free(self) -> Float[np.ndarray, "n 2"]:
        """Cells without a wall, in Maze2D also their coordinates; D4RL's order, empty ones first, then the goal's."""
        cells = np.argwhere(~self.walls).astype(float)
        if self.goal is None:
            return cells
        is_goal = (cells == self.goal).all(1)
        return np.concatenate([cells[~is_goal], cells[is_goal]])

    @cached_property
    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """Walls as x0, y0, x1, y1, m; neighbours along y joined to one box."""
        found = []
        at = self.world.corner + self.world.side * np.arange(max(self.walls.shape) + 1)
        for x, row in enumerate(self.walls):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
            found += [(at[x], at[start], at[x + 1], at[stop]) for start, stop in edges.reshape(-1, 2)]
        squares = [o for o in self.obstacles if o.square]
        found += [(x - o.radius, y - o.radius, x + o.radius, y + o.radius) for o in squares for x, y in [o.centre]]
        return np.array(found)

    @cached_property
    def discs(self) -> Float[np.ndarray, "n 3"]:
        """Round obstacles as x, y, radius, m."""
        return np.array([(*o.centre, o.radius) for o in self.obstacles if not o.square]).reshape(-1, 3)

    def clearance(self, xy: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
        """Distance to the nearest wall or obstacle, m; negative inside, and outside of the maze."""
        xy = np.asarray(xy, dtype=np.float64)[..., None, :]
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        out = np.maximum(low - xy, xy - high)
        boxes = np.linalg.norm(np.maximum(out, 0.0), axis=-1) + np.minimum(out.max(-1), 0.0)
        found = boxes.min(-1)
        first = self.world.corner
        end = first + self.world.side * np.array(self.walls.shape)
        found = np.minimum(found, np.minimum(xy[..., 0, :] - first, end - xy[..., 0, :]).min(-1))
        if len(self.discs):
            found = np.minimum(found, (np.linalg.norm(xy - self.discs[:, :2], axis=-1) - self.discs[:, 2]).min(-1))
        return np.asarray(found)

    def cell(self, xy: Float[np.ndarray, "... 2"]) -> np.ndarray:
        """The cell that holds a place, (..., 2) whole numbers; the nearest one of the map."""
        cells = np.floor((np.asarray(xy) - self.world.corner) / self.world.side).astype(int)
        return np.clip(cells, 0, np.array(self.walls.shape) - 1)

    def middles(self, cells: np.ndarray) -> np.ndarray:
        """The middles of cells (..., 2), m."""
        return self.world.middle + self.world.side * np.asarray(cells, dtype=np.float64)

    @cached_property
    def blocked(self) -> Bool[np.ndarray, "w h"]:
        """Cells with a wall, or whose middle the ball cannot be at for an obstacle."""
        middles = self.middles(np.stack(np.meshgrid(*map(np.arange, self.walls.shape), indexing="ij"), -1))
        return self.walls | (self.clearance(middles) < self.world.radius)

    def way(self, start: Float[np.ndarray, "2"], goal: Float[np.ndarray, "2"]) -> Float[np.ndarray, "n 2"]:
        """The shortest way through neighbouring cells, from that of ``start`` to that of ``goal``.

        Raises:
            ValueError: there is none.
        """
        first, last = tuple(self.cell(start).tolist()), tuple(self.cell(goal).tolist())
        before: dict[tuple[int, int], tuple[int, int] | None] = {last: None}
        queue = deque([last])
        while queue and first not in before:
            x, y = queue.popleft()
            for there in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)):
                # a cell that an obstacle fills may still be where one starts
                if there not in before and (there == first or not self.blocked[there]):
                    before[there] = (x, y)
                    queue.append(there)
        if first not in before or self.walls[first] or self.walls[last]:
            raise ValueError(
                f"way: got no connection from {np.round(start, 2)} to {np.round(goal, 2)}, expected free cells that "
                "are connected; choose another start, goal or map"
            )
        cells, at = [first], before[first]
        while at is not None:
            cells.append(at)
            at = before[at]
        return np.array(cells, dtype=float)


def score(maze: str, returned: float) -> float:
    """D4RL's normalised score of an undiscounted return: 0 random, 100 D4RL's (stale) reference controller."""
    random, reference = RETURNS[maze]
    return 100.0 * (returned - random) / (reference - random)


def mjcf(maze: Maze) -> str:
    """The world of a maze as MuJoCo reads it."""

    def box(x0: float, y0: float, x1: float, y1: float) -> str:
        middle, half = (
            f"{(x0 + x1) / 2 + 1.2:.6g} {(y0 + y1) / 2 + 1.2:.6g} 0",
            f"{(x1 - x0) / 2:.6g} {(y1 - y0) / 2:.6g}",
        )
        return f'<geom type="box" pos="{middle}" size="{half} 0.2" rgba="0.45 0.5 0.55 1"/>'

    soft, hard = IMPEDANCE
    # D4RL has one box a cell; contacts with joined ones would differ at their seams
    cells = [(x - 0.7, y - 0.7, x + 0.3, y + 0.3) for x, y in np.argwhere(maze.walls)]
    squares = [
        (o.centre[0] - o.radius, o.centre[1] - o.radius, o.centre[0] + o.radius, o.centre[1] + o.radius)
        for o in maze.obstacles
        if o.square
    ]
    solid = "".join(box(*corners) for corners in [*cells, *squares])
    round_ = "".join(
        f'<geom type="cylinder" pos="{x + 1.2:.6g} {y + 1.2:.6g} 0" size="{r:.6g} 0.2" rgba="0.75 0.4 0.2 1"/>'
        for x, y, r in maze.discs
    )
    joints = "".join(f'<joint name="{n}" type="slide" axis="{a}"/>' for n, a in (("x", "1 0 0"), ("y", "0 1 0")))
    motors = "".join(f'<motor joint="{n}" gear="100" ctrllimited="true" ctrlrange="-1 1"/>' for n in "xy")
    return f"""<mujoco model="maze2d">
  <compiler angle="radian" inertiafromgeom="true"/>
  <option timestep="{DT}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction="0.5 0.1 0.1" density="1000" margin="0.001" condim="1" contype="1" conaffinity="1"
          solref="{-hard / (0.95 * 0.02**2):.8f} {-2.0 * hard / (0.95 * 0.02):.8f}"
          solimp="{soft:.8f} {hard:.8f} 0.001"/>
  </default>
  <worldbody>
    <light pos="0 0 10" dir="0 0 -1"/>
    <body name="ball" pos="1.2 1.2 0"><geom type="sphere" size="{RADIUS}" rgba="0.1 0.3 0.8 1"/>{joints}</body>
    {solid}{round_}
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>"""


class Maze2d(gymnasium.Env[np.ndarray, np.ndarray]):
    """D4RL's Maze2D.

    Observation (4,): x, y in m and their velocities in m/s. Action (2,): force in units of 100 N, clipped to [-1, 1].

    Args:
        maze: "umaze", "medium", "large", or the rows of a map of your own.
        multi: a goal drawn anew for every episode (Multi2D) instead of the map's own.
        obstacles: beside the walls.
        max_steps: truncation; 0: as D4RL's (300, 600, 800; 600 with a map of your own).
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: the map, an obstacle or the render mode is none of these.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def __init__(
        self,
        maze: str | Sequence[str] = "large",
        multi: bool = False,
        obstacles: Sequence[Obstacle] = (),
        max_steps: int = 0,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if isinstance(maze, str) and maze not in MAPS:
            raise ValueError(f"maze: got {maze!r}, expected one of {', '.join(MAPS)} or the rows of a map; choose one")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: got {render_mode!r}, expected 'rgb_array' or None; choose one of them")
        self.name = maze if isinstance(maze, str) else "custom"
        self.maze = Maze(MAPS[maze] if isinstance(maze, str) else maze, obstacles)
        if self.maze.goal is None and not multi:
            raise ValueError("maze: got a map without 'G', expected a goal for the single task; mark one or set multi")
        self.multi, self.render_mode = multi, render_mode
        self.max_steps = max_steps or STEPS.get(self.name, 600)
        self._model = mujoco.MjModel.from_xml_string(mjcf(self.maze))
        self._data = mujoco.MjData(self._model)
        self._steps, self._running = 0, False
        self.goal: Float[np.ndarray, "2"] = np.zeros(2)
        far = np.array([*self.maze.walls.shape, 2.0 * MAX_SPEED, 2.0 * MAX_SPEED])
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Box(low=-far, high=far, dtype=np.float64)

    @property
    def state(self) -> Float[np.ndarray, "4"]:
        """Place and velocity now, m and m/s."""
        return np.concatenate([self._data.qpos, self._data.qvel])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the start, of its velocity, and of the goal where that is drawn.
            options: {"state": (2,) or (4,)} starts there, {"goal": (2,)} sets the goal.

        Raises:
            ValueError: other options, or a start or goal in a wall.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        drawn = self._drawn()
        state = np.asarray(options.pop("state", np.concatenate([drawn, self.np_random.normal(0.0, JITTER, 2)])), float)
        goal = self._drawn() if self.multi else self.maze.goal
        self.goal = np.asarray(options.pop("goal", goal), float)
        if options:
            raise ValueError(f"options: got keys {sorted(options)}, expected 'state' and 'goal' alone; remove them")
        state = np.concatenate([state, np.zeros(2)]) if state.shape == (2,) else state
        self._require("state", state, (4,))
        self._require("goal", self.goal, (2,))
        self._place(state)
        self._steps, self._running = 0, True
        return self.state, self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push for 0.01 s."""
        if not self._running:
            raise RuntimeError("step: got a call before reset, expected reset first; call env.reset(seed=...)")
        force = np.asarray(action, dtype=np.float64)
        if force.shape != (2,) or not np.isfinite(force).all():
            raise ValueError(f"action: got {action!r}, expected 2 finite numbers in [-1, 1]; check the controller")
        self.advance(force)
        self._steps += 1
        info = self._info()
        return self.state, float(info["is_success"]), False, self._steps >= self.max_steps, info

    def advance(self, force: Float[np.ndarray, "2"]) -> None:
        """One step of the physics alone: what `step` does to the ball."""
        # D4RL sets the clipped velocity as the state and lets the world look at it anew
        np.clip(self._data.qvel, -MAX_SPEED, MAX_SPEED, out=self._data.qvel)
        np.clip(force, -1.0, 1.0, out=self._data.ctrl)
        mujoco.mj_step(self._model, self._data)

    def replay(self, state: Float[np.ndarray, "4"], action: Float[np.ndarray, "2"]) -> Float[np.ndarray, "4"]:
        """Where one step leads from any state; the episode goes on from there."""
        self._place(np.asarray(state, dtype=np.float64))
        self.advance(np.asarray(action, dtype=np.float64))
        return self.state

    def render(self) -> np.ndarray | None:
        """The maze from above, x to the right and y up, (height, width, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        return picture(self.maze, self.goal, self._data.qpos)

    def _drawn(self) -> Float[np.ndarray, "2"]:
        cells = self.maze.free
        return cells[self.np_random.integers(len(cells))] + self.np_random.uniform(-JITTER, JITTER, 2)

    def _place(self, state: Float[np.ndarray, "4"]) -> None:
        # the solver starts from where it was: an episode must not depend on the one before
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:], self._data.qvel[:] = state[:2], state[2:]
        mujoco.mj_forward(self._model, self._data)

    def _require(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
        if values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"{name}: got {values!r}, expected {shape[0]} finite numbers in m and m/s; correct it")
        clearance = float(self.maze.clearance(values[:2]))
        if clearance <= 0.0:
            raise ValueError(
                f"{name}: got {np.round(values[:2], 3)}, {-clearance:.2f} m inside a wall or outside of the maze; "
                "expected a free place: choose another"
            )

    def _info(self) -> dict[str, Any]:
        distance = float(np.linalg.norm(self._data.qpos - self.goal))
        return {
            "state": self.state,
            "goal": self.goal.copy(),
            "distance": distance,
            "is_success": distance <= GOAL_RADIUS,
            "contact": bool(self._data.ncon),
        }


def picture(
    maze: Maze, goal: Float[np.ndarray, "2"] | None = None, ball: Float[np.ndarray, "2"] | None = None, scale: int = 40
) -> np.ndarray:
    """A maze from above, ``scale`` px a cell: x to the right, y up; the goal's disc green, the ball blue."""
    width, height = (scale * n for n in maze.walls.shape)
    world, side = maze.world, maze.world.side
    x, y = (side * (pixels + 0.5) / scale + world.corner for pixels in (np.arange(width), np.arange(height)[::-1]))
    xy = np.stack(np.meshgrid(x, y), -1)
    image = np.full((height, width, 3), 250, np.uint8)
    image[maze.clearance(xy) <= 0.0] = (90, 98, 110)

    def disc(centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
        image[np.linalg.norm(xy - centre, axis=-1) <= radius] = colour

    if goal is not None:
        ring = np.abs(np.linalg.norm(xy - goal, axis=-1) - world.reach) < 0.03 * side
        image[ring] = (60, 160, 90)
        disc(goal, 0.12 * side, (60, 160, 90))
    if ball is not None:
        disc(ball, world.radius, (35, 90, 200))
    return image
