"""Tasks: which world a configuration plans in, and the transitions that it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from diffusion_core.errors import WorkbenchError
from envs import maze2d, pointmaze
from envs.maze2d import Maze, Obstacle, World
from planning.config import DataConfig, TaskConfig
from planning.data import pointmaze as points
from planning.data import sources
from planning.data.transitions import Transitions


def world(task: TaskConfig) -> World:
    """Sizes, speed and time of a step."""
    return maze2d.BALL if task.env == "maze2d" else pointmaze.POINT


def maze(task: TaskConfig, obstacles: Sequence[Obstacle] = ()) -> Maze:
    """The maze of a task.

    Raises:
        WorkbenchError: there is none of that name.
    """
    maps = maze2d.MAPS if task.env == "maze2d" else pointmaze.MAPS
    if task.maze not in maps:
        raise WorkbenchError(f"task.maze: got {task.maze!r}; expected one of {', '.join(maps)}: choose one.")
    return Maze(maps[task.maze], obstacles) if task.env == "maze2d" else pointmaze.of_name(task.maze, obstacles)


def transitions(task: TaskConfig, data: DataConfig) -> Transitions:
    """What one learns from, made or found; its provenance tells the digest of its content.

    Raises:
        WorkbenchError: another maze, a recipe that the task does not have, or a file that does not fit.
    """
    if task.env == "maze2d":
        if data.recipe:
            raise WorkbenchError(f"data.recipe: got {data.recipe!r}; Maze2D has but one: leave it out.")
        return sources.load(task.maze, data.source, data.steps, data.seed)
    maze(task)
    if data.source == "generate":
        found = sources.kept(
            f"pointmaze-{task.maze}-{data.recipe}-generated-{data.steps}-seed{data.seed}-recipe{points.VERSION}.hdf5",
            points.provenance(task.maze, data.recipe, data.steps, data.seed),
            data.steps,
            lambda progress: points.generate(task.maze, data.recipe, data.steps, data.seed, progress=progress),
            reach=pointmaze.POINT.reach,
        )
    else:
        found = points.of_file(task.maze, Path(data.source).expanduser())
    return replace(found, provenance=f"{found.provenance}; {len(found)} steps, sha256 {found.content_sha256}")


def ends(task: TaskConfig, stream: Transitions) -> Bool[np.ndarray, " n"] | None:
    """Where the task's streams end, if its transitions tell; see `planning.trajectories.Trajectories`."""
    return None if task.env == "maze2d" else points.ends(stream)
