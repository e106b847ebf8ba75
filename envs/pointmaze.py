"""OGBench's point mazes: a ball that goes where it is told, 0.2 m along each axis in a step, unless a wall stops it.

    xy' = xy + 0.2 a,  a in [-1, 1]^2;  then 5 steps of 0.02 s of MuJoCo, from rest, that push it out of walls
    success: |xy - goal| <= 1 m after a step, at which the episode ends;  at most 1000 steps

Not D4RL's Maze2D: cells of 4 m, a ball of radius 0.7 m, no velocity from one step to the next, and other mazes. Scores
are shares of successes and have nothing to do with D4RL's.

Where the ball comes to touch nothing MuJoCo would leave it, at rest as it is; so MuJoCo is asked at walls only. That
gives OGBench's places to the last digits and is many times faster.

Source: Park et al. 2025, "OGBench" (arXiv 2410.20092): the mazes, the tasks and the measure of success; the numbers
are those of its version 1.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
from jaxtyping import Bool, Float

from envs.maze2d import Maze, Obstacle, World, picture

STRIDE = 0.2
"""Of a unit of action, m."""
SUBSTEPS = 5
STEPS = 1000
JITTER = 1.0
"""Of starts and goals around the middle of their cells, m."""
POINT = World(side=4.0, middle=-4.0, radius=0.7, reach=1.0, dt=0.1, speed=STRIDE / 0.1)

MAPS = {
    "medium": ("########", "#OO##OO#", "#OO#OOO#", "##OOO###", "#OO#OOO#", "#O#OO#O#", "#OOO#OO#", "########"),
    "large": (
        "############",
        "#OOOO#OOOOO#",
        "#O##O#O#O#O#",
        "#OOOOOO#OOO#",
        "#O####O###O#",
        "#OO#O#OOOOO#",
        "##O#O#O#O###",
        "#OO#OOO#OOO#",
        "############",
    ),
    "giant": (
        "################",
        "#O#OOOOOO##OOOO#",
        "#O#O##O#O#OO##O#",
        "#OOO#OO#OOO#OOO#",
        "#O###O######O#O#",
        "#OOO#OOO#OOOO#O#",
        "###O#O#OO#O#O###",
        "#OOO#OO#OOO#OOO#",
        "#O#O#O######O#O#",
        "#O###OOO#OOO##O#",
        "#OOOOO#OOO#OOOO#",
        "################",
    ),
}
"""As OGBench writes them: rows go along *y*, columns along x."""
TASKS = {
    "medium": (((1, 1), (6, 6)), ((6, 1), (1, 6)), ((5, 3), (4, 2)), ((6, 5), (6, 1)), ((2, 6), (1, 1))),
    "large": (((1, 1), (7, 10)), ((5, 4), (7, 1)), ((7, 4), (1, 10)), ((3, 8), (5, 4)), ((1, 1), (5, 4))),
    "giant": (((1, 1), (10, 14)), ((1, 14), (10, 1)), ((8, 14), (1, 1)), ((8, 3), (5, 12)), ((5, 9), (3, 8))),
}
"""(row, column) of the start and of the goal of each of the five tasks."""


def of_name(name: str, obstacles: Sequence[Obstacle] = ()) -> Maze:
    """The walls, with x along the first axis of its arrays as in every `Maze`.

    Raises:
        ValueError: another name.
    """
    if name not in MAPS:
        raise ValueError(f"maze: got {name!r}, expected one of {', '.join(MAPS)}; choose one")
    return Maze(["".join(column) for column in zip(*MAPS[name], strict=True)], obstacles, POINT)


def mjcf(maze: Maze) -> str:
    """The world as MuJoCo reads it: a ball on a floor, on two slides, between boxes."""
    half = POINT.side / 2.0
    places = [*maze.middles(np.argwhere(maze.walls))]
    boxes = "".join(f'<geom type="box" pos="{x:.6g} {y:.6g} 1" size="{half} {half} 1"/>' for x, y in places)
    for obstacle in maze.obstacles:
        x, y, r = *obstacle.centre, obstacle.radius
        shape = f'type="box" size="{r:.6g} {r:.6g} 1"' if obstacle.square else f'type="cylinder" size="{r:.6g} 1"'
        boxes += f'<geom {shape} pos="{x:.6g} {y:.6g} 1"/>'
    joints = "".join(f'<joint type="slide" axis="{axis}"/>' for axis in ("1 0 0", "0 1 0"))
    # the ball's friction with the floor counts where a wall pushes it
    return f"""<mujoco model="pointmaze">
  <option timestep="{POINT.dt / SUBSTEPS}" integrator="RK4"/>
  <default><geom condim="3" friction="1 0.5 0.5" density="100"/></default>
  <worldbody>
    <geom type="plane" size="100 100 0.2"/>
    {boxes}
    <body><geom type="sphere" size="{POINT.radius}" pos="0 0 {POINT.radius}" conaffinity="0"/>{joints}</body>
  </worldbody>
</mujoco>"""


class Walls:
    """What walls do to balls that were told to go somewhere.

    Args:
        maze: of `of_name`, or one of your own in the same world.
    """

    def __init__(self, maze: Maze) -> None:
        self.maze = maze
        self._model = mujoco.MjModel.from_xml_string(mjcf(maze))
        self._data = mujoco.MjData(self._model)

    def moved(
        self, xy: Float[np.ndarray, "n 2"], actions: Float[np.ndarray, "n 2"]
    ) -> tuple[Float[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
        """Where one step leads each of ``n`` balls, and which of them touched something.

        Args:
            xy: places, m.
            actions: in [-1, 1]; what exceeds that is clipped.
        """
        there = xy + STRIDE * np.clip(actions, -1.0, 1.0)
        touches = self.maze.clearance(there) <= self.maze.world.radius
        for i in np.flatnonzero(touches):
            there[i] = self.settled(there[i])
        return there, touches

    def settled(self, xy: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        """Where a ball comes to in a step's time that is put down at a place."""
        # the solver starts from where it was: a step must not depend on the one before
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = xy
        mujoco.mj_step(self._model, self._data, nstep=SUBSTEPS)
        return self._data.qpos.copy()


class PointMaze(gymnasium.Env[np.ndarray, np.ndarray]):
    """OGBench's pointmaze.

    Observation (2,): x, y in m. Action (2,): strides of 0.2 m, clipped to [-1, 1].

    Args:
        maze: "medium", "large" or "giant".
        obstacles: beside the walls.
        max_steps: truncation.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: the map, an obstacle or the render mode is none of these.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        maze: str = "giant",
        obstacles: Sequence[Obstacle] = (),
        max_steps: int = STEPS,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: got {render_mode!r}, expected 'rgb_array' or None; choose one of them")
        self.name, self.maze = maze, of_name(maze, obstacles)
        self.max_steps, self.render_mode = max_steps, render_mode
        self.walls = Walls(self.maze)
        self.xy: Float[np.ndarray, "2"] = np.zeros(2)
        self.goal: Float[np.ndarray, "2"] = np.zeros(2)
        self._steps, self._running, self._touches = 0, False, False
        far = POINT.side * max(self.maze.walls.shape)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-far, far, (2,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the task, the start and the goal where they are drawn.
            options: {"task": 1 to 5} chooses a task, {"state": (2,)} and {"goal": (2,)} the places themselves.

        Raises:
            ValueError: other options, no such task, or a start or goal in a wall.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        drawn = int(self.np_random.integers(len(TASKS[self.name])))
        task = options.pop("task", drawn + 1)
        if task not in range(1, len(TASKS[self.name]) + 1):
            raise ValueError(f"task: got {task!r}, expected 1 to {len(TASKS[self.name])}; choose one")
        (start, goal) = (
            self.maze.middles(np.array(place[::-1])) + self.np_random.uniform(-JITTER, JITTER, 2)
            for place in TASKS[self.name][task - 1]
        )
        self.xy = np.array(options.pop("state", start), float)
        self.goal = np.array(options.pop("goal", goal), float)
        if options:
            raise ValueError(f"options: got keys {sorted(options)}, expected 'task', 'state' and 'goal'; remove them")
        for name, xy in (("state", self.xy), ("goal", self.goal)):
            if xy.shape != (2,) or not np.isfinite(xy).all() or float(self.maze.clearance(xy)) <= 0.0:
                raise ValueError(f"{name}: got {xy!r}, expected a free place in the maze, 2 numbers in m; correct it")
        self._steps, self._running, self._touches = 0, True, False
        return self.xy.copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Go one stride."""
        if not self._running:
            raise RuntimeError("step: got a call before reset, expected reset first; call env.reset(seed=...)")
        stride = np.asarray(action, dtype=np.float64)
        if stride.shape != (2,) or not np.isfinite(stride).all():
            raise ValueError(f"action: got {action!r}, expected 2 finite numbers in [-1, 1]; check the controller")
        there, touches = self.walls.moved(self.xy[None], stride[None])
        self.xy, self._touches = there[0], bool(touches[0])
        self._steps += 1
        info = self._info()
        return self.xy.copy(), float(info["is_success"]), info["is_success"], self._steps >= self.max_steps, info

    def render(self) -> np.ndarray | None:
        """The maze from above, (height, width, 3) uint8; None without a render mode."""
        return None if self.render_mode is None else picture(self.maze, self.goal, self.xy)

    def _info(self) -> dict[str, Any]:
        distance = float(np.linalg.norm(self.xy - self.goal))
        return {
            "state": self.xy.copy(),
            "goal": self.goal.copy(),
            "distance": distance,
            "is_success": distance <= POINT.reach,
            "contact": self._touches,
        }
