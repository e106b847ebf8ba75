"""Gymnasium-Robotics' PointMaze_Large-v3: priors that were trained for Maze2D, in somebody else's environment.

    python -m planning.experiments.gym_pointmaze --priors runs/a runs/b runs/c --n 34 --out ... --figure ...

It is the same ball in the same walls, turned by a quarter and with goals of 0.45 m, starts and goals anywhere in their
cells, and no velocity at the start. That makes it another task with another score: here it is the share of episodes in
which the goal was reached, the steps until then, and the share of 800 steps that were spent there. Never beside D4RL's.

Source: the environment: Gymnasium-Robotics (Farama Foundation), version 3 of PointMaze.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.report import ACCENT, INK, MUTED, save_figure, subplots
from envs.maze2d import MAPS, ORIGIN, STEPS, Maze
from planning.evaluate import PEERS
from planning.execute import Gains, Peer, Tracker
from planning.experiments import lab
from planning.plan import Plan, Problem
from planning.planner import DiffusionPlanner

MAZE = "large"
NAME = "PointMaze_Large-v3"
SEED = 800_000
ROWS: dict[str, dict[str, Any]] = {
    "prior x walls, best of 64 by the map, refined": {},
    "best of 64 by the critic, no map": {"walls": 0.0, "select": "critic", "refine": "none"},
    "one sample of the prior": {
        "walls": 0.0,
        "select": "first",
        "refine": "none",
        "candidates": 1,
        "durations": [288],
    },
}


class Turned:
    """PointMaze in the coordinates of Maze2D: ``x' = rows / 2 - y - 0.7``, ``y' = x + columns / 2 - 0.7``.

    Raises:
        WorkbenchError: Gymnasium-Robotics is not installed.
    """

    def __init__(self) -> None:
        try:
            import gymnasium
            import gymnasium_robotics
        except ImportError as error:
            raise WorkbenchError(
                "PointMaze: got no gymnasium_robotics; expected it: pip install 'diffusion-workbench[arm]'."
            ) from error
        gymnasium.register_envs(gymnasium_robotics)
        self.env = gymnasium.make(NAME, continuing_task=True)
        self.maze = Maze(MAPS[MAZE])
        walls = np.array(self.env.get_wrapper_attr("maze").maze_map) == 1
        if walls.shape != self.maze.walls.shape or (walls != self.maze.walls).any():
            raise WorkbenchError(f"{NAME}: got other walls than Maze2D's; expected the same: install version 1.4.")
        rows, columns = walls.shape
        self.shift = np.array([rows, columns]) / 2.0 - 0.5 - ORIGIN

    def reset(self, seed: int) -> Problem:
        """A problem of the environment's own."""
        found, _ = self.env.reset(seed=seed)
        goal = self._turned(found["desired_goal"]) + self.shift
        return Problem(self.maze, self.state(found["observation"]), goal)

    def step(self, force: Float[np.ndarray, "2"]) -> tuple[Float[np.ndarray, "4"], bool, bool]:
        """The state, whether it is in the goal, and whether the episode is over."""
        found, _, ended, cut, info = self.env.step(np.array([force[1], -force[0]]))
        return self.state(found["observation"]), bool(info["success"]), bool(ended or cut)

    def state(self, observation: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
        """Place and velocity."""
        return np.concatenate([self._turned(observation[:2]) + self.shift, self._turned(observation[2:])])

    def _turned(self, vector: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        return np.array([-vector[1], vector[0]])


@dataclass(frozen=True, eq=False)
class Went:
    """What came of an episode.

    Args:
        states: all of it.
        inside: at which steps it was in the goal.
    """

    states: Float[np.ndarray, "n 4"]
    inside: np.ndarray

    @property
    def first(self) -> int | None:
        """Steps until the goal; None if it was never reached."""
        return int(self.inside.argmax()) + 1 if self.inside.any() else None


def went(env: Turned, peer: Peer, gains: Gains, seed: int) -> Went:
    """One episode: planned once, and followed."""
    problem = env.reset(seed)
    try:
        made = peer(problem, seed)
    except WorkbenchError:
        made = Plan(np.stack([problem.start[:2]] * 2), 0.01)
    actor = Tracker(made, gains) if isinstance(made, Plan) else made
    states, inside, over = [problem.start], [], False
    while not over:
        force = np.clip(actor.act(states[-1], problem.goal), -1.0, 1.0)
        state, reached, over = env.step(force)
        states.append(state)
        inside.append(reached)
    return Went(np.array(states), np.array(inside))


def measured(asked: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """All rows."""
    trained, env = lab.priors(asked.priors), Turned()
    made: dict[str, list[tuple[Peer, Gains]]] = {}
    for name, changes in ROWS.items():
        settings = [replace(one.config.planner, **changes) for one in trained]
        made[name] = [
            (DiffusionPlanner(one.prior, one.table, s), Gains(s.kp, s.kd))
            for one, s in zip(trained, settings, strict=True)
        ]
    for peer in ("waypoint", "bfs"):
        made[PEERS[peer].title] = [(PEERS[peer].make(), PEERS[peer].gains)] * len(trained)
    rows, ways = [], {}
    for name, peers in made.items():
        found = [
            [went(env, peer, gains, SEED + 1000 * k + i) for i in range(asked.n)]
            for k, (peer, gains) in enumerate(peers)
        ]
        every = [one for own in found for one in own]
        row: dict[str, Any] = {
            "row": name,
            "success": lab.pooled([[one.first is not None for one in own] for own in found]),
            "steps_to_goal": results.mean([float(one.first) for one in every if one.first], "steps of 0.01 s"),
            "in_goal": results.mean([float(one.inside.mean()) for one in every]),
        }
        lab.logger.info("%s: success %s, in the goal %s", name, row["success"]["rate"], row["in_goal"])
        rows.append(row)
        ways[name] = found[0][0]
    measurements = {
        "environment": NAME,
        "steps": STEPS[MAZE],
        "priors": lab.described(trained),
        "episodes_each": asked.n,
        "rows": rows,
    }
    return measurements, partial(figure, env, ways)


def figure(env: Turned, ways: dict[str, Went], path: Path) -> None:
    """The first episode of every row."""
    fig, axes = subplots(1, len(ways), 2.6 * len(ways), 3.6)
    problem = env.reset(SEED)
    for axis, (name, one) in zip(np.ravel(axes), ways.items(), strict=True):
        for x0, y0, x1, y1 in env.maze.boxes:
            axis.fill([x0, x1, x1, x0], [y0, y0, y1, y1], color=MUTED, alpha=0.5, lw=0)
        axis.plot(*one.states[:, :2].T, color=ACCENT, lw=1.2)
        axis.plot(*problem.start[:2], "o", mfc="white", color=INK, ms=5)
        axis.plot(*problem.goal, "o", color=INK, ms=5)
        axis.set_title(name.replace(", ", ",\n"), fontsize=8)
        axis.set_aspect("equal")
        axis.axis("off")
    save_figure(fig, path)


if __name__ == "__main__":
    lab.run(measured, lab.arguments(__doc__), "gym_pointmaze")
