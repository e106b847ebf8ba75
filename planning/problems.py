"""The problems that planners are judged by: those of seeds, or those of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diffusion_core.errors import WorkbenchError
from envs.maze2d import MAPS, Maze2d
from envs.pointmaze import PointMaze
from planning.plan import Problem


def drawn(env: Maze2d, seeds: Sequence[int]) -> list[Problem]:
    """The start of each seed's episode, and its goal; all with the environment's own maze."""
    return [Problem(env.maze, env.reset(seed=seed)[0], env.goal) for seed in seeds]


def of_file(env: Maze2d | PointMaze, path: Path) -> list[Problem]:
    """The problems in an HDF5 file: ``start_state`` (n, 2 or 4) and ``goal_pos`` (n, 2), m and m/s, in Maze2D's frame.

    Its attribute ``env_name``, where it has one, must not name another maze.

    Raises:
        WorkbenchError: it cannot be read, or has problems of another maze.
    """
    starts, goals, about = _read(path)
    # umaze's places are free in the larger mazes, too: there only the name tells
    others = [name for name in MAPS if name in about.lower() and name != env.name]
    if others and env.name in MAPS:
        raise WorkbenchError(f"{path}: got problems of {about}; expected some of {env.name}: choose another file.")
    for name, xy in (("start_state", starts[:, :2]), ("goal_pos", goals)):
        solid = env.maze.clearance(xy) <= 0.0
        if solid.any():
            raise WorkbenchError(
                f"{path}: got {int(solid.sum())} of {len(xy)} places of {name} inside the walls of {env.name}, the "
                f"first {np.round(xy[solid.argmax()], 2).tolist()}; expected problems of this maze in Maze2D's frame, "
                "m: choose another file."
            )
    states = np.concatenate([starts, np.zeros((len(starts), 4 - starts.shape[1]))], 1)
    return [Problem(env.maze, start, goal) for start, goal in zip(states, goals, strict=True)]


def _read(path: Path) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n 2"], str]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            starts, goals = (np.asarray(file[name][()], dtype=np.float64) for name in ("start_state", "goal_pos"))
            about = str(file.attrs.get("env_name", ""))
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WorkbenchError(
            f"{path}: cannot be read ({reason}); expected an HDF5 file with start_state (n, 2 or 4) and goal_pos "
            "(n, 2): choose another file."
        ) from error
    fits = starts.ndim == 2 and starts.shape[1] in (2, 4) and len(starts) > 0 and goals.shape == (len(starts), 2)
    if not (fits and np.isfinite(starts).all() and np.isfinite(goals).all()):
        raise WorkbenchError(
            f"{path}: got start_state {starts.shape} and goal_pos {goals.shape}; expected finite (n, 2 or 4) and "
            "(n, 2), n > 0: choose another file."
        )
    return starts, goals, about
