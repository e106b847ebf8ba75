"""Sources: the transitions that a configuration names, made or found, and turned into the maze's own coordinates.

``generate`` makes them once and keeps them in the user's cache; anything else is the path of a file. One is never put
in the place of another.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from diffusion_core.download import cache, put_aside
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.run import make_folder
from envs.maze2d import GOAL_RADIUS, MAPS, ORIGIN, Maze
from planning.data import files
from planning.data.generate import RECIPE, generate, processes, provenance, require_maze
from planning.data.transitions import Transitions

log = logging.getLogger("workbench.planning")


def load(maze: str, source: str, steps: int, seed: int) -> Transitions:
    """Find, or make, what one learns from; its provenance tells the digest of its content.

    Args:
        maze: of `envs.maze2d.MAPS`.
        source: "generate", or the path of a file that `files.load` reads.
        steps, seed: of what is generated; a file has its own.

    Raises:
        WorkbenchError: another maze, no such file, a damaged one, or one of another maze.
    """
    require_maze(maze)
    found = generated(maze, steps, seed) if source == "generate" else of_file(maze, Path(source).expanduser())
    return replace(found, provenance=f"{found.provenance}; {len(found)} steps, sha256 {found.content_sha256}")


def generated(maze: str, steps: int, seed: int) -> Transitions:
    """Generated transitions, from the cache if they were made before.

    A cached file that is damaged is put aside and made anew; processes that ask at the same time wait for one of them.

    Raises:
        WorkbenchError: a number out of range, or a cache that cannot be written.
    """
    require_at_least(1, {"steps": steps})
    require_at_least(0, {"seed": seed})
    return kept(
        f"maze2d-{maze}-generated-{steps}-seed{seed}-recipe{RECIPE}.hdf5",
        provenance(maze, steps, seed),
        steps,
        lambda progress: generate(maze, steps, seed, workers=processes(), progress=progress),
        Maze(MAPS[maze]).goal,
    )


def kept(
    name: str,
    said: str,
    steps: int,
    make: Callable[[Callable[[int], object]], Transitions],
    goal: Float[np.ndarray, "2"] | None = None,
    reach: float = GOAL_RADIUS,
) -> Transitions:
    """What the cache holds under a name, or what is made now and kept there.

    Args:
        name: of the file.
        said: the provenance it must have.
        steps: about how many there will be.
        make: makes them, and tells how many it has made.
        goal, reach: of the rewards; see `Transitions.rewards`.
    """
    path = make_folder(cache("planning")) / name
    with _alone(path.with_name(f".{name}.lock")):
        if path.exists():
            try:
                found = files.load(path)
            except WorkbenchError as error:
                log.warning("%s; it was %s", error, put_aside(path))
            else:
                if found.provenance == said:
                    log.info("read %s", path)
                    return found
                log.warning("%s: got %s under this name; it was %s", path, found.provenance, put_aside(path))
        log.info("making %s, kept in %s", said, path)
        with tqdm(total=steps, desc="transitions", unit="step", disable=None, dynamic_ncols=True) as bar:
            made = make(bar.update)
        files.save(path, made, goal, reach=reach)
    return made


def of_file(maze: str, path: Path) -> Transitions:
    """A file's transitions in the coordinates of a maze.

    Raises:
        WorkbenchError: the file cannot be read, or its places are not free in the maze.
    """
    found, world = files.load(path), Maze(MAPS[maze])
    # a converted file keeps its provenance, not its frame: only the original is turned
    if files.kind(path) == "minari":
        found = from_point_maze(found, world)
    inside = world.clearance(found.observations[:, :2]) <= 0.0
    if inside.any():
        raise WorkbenchError(
            f"{path}: got {int(inside.sum())} of {len(found)} places inside the walls of {maze}, the first at step "
            f"{int(inside.argmax())}; expected transitions of this maze ({found.provenance}): choose the task of their "
            "maze, or another file."
        )
    return found


def from_point_maze(stream: Transitions, world: Maze) -> Transitions:
    """Gymnasium-Robotics' PointMaze in the coordinates of Maze2D: the same ball in the same walls, turned.

    Its origin is the middle of the map, its y goes up the rows and its x along the columns; a cell's middle is that of
    its walls:  x' = (rows / 2 - y - 0.5) - 0.2,  y' = (x + columns / 2 - 0.5) - 0.2;  vectors turn by 90 degrees.
    """
    rows, columns = world.walls.shape
    shift = np.array([rows, columns]) / 2.0 - 0.5 - ORIGIN

    def turned(vectors: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        return np.stack([-vectors[:, 1], vectors[:, 0]], 1)

    xy, velocity = turned(stream.observations[:, :2]) + shift, turned(stream.observations[:, 2:])
    return Transitions(
        np.concatenate([xy, velocity], 1).astype(np.float32),
        turned(stream.actions),
        (turned(stream.goals) + shift).astype(np.float32),
        stream.timeouts,
        f"{stream.provenance}, turned into Maze2D's frame",
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    # the system lets go of it when the process ends, however it ends
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
