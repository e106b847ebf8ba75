"""Transitions of OGBench's point mazes: made by its recipes, or read from its files.

    action = clip(d + N(0, noise^2)),    d the unit vector to the middle of the next cell on a shortest way

"stitch": episodes of 201 steps, from a free cell to one whose shortest way is 4 cells long; having arrived, the ball
stays there. No episode shows a long way. "navigate": episodes of 1001 steps (giant: 2001) to goals in cells that are no
mere passages, a new one as soon as it is reached. Starts and goals are up to 1 m from the middles of their cells.

Episodes go side by side, in groups with randomness of their own, so more of them begin with those of fewer.

Source: Park et al. 2025, "OGBench" (arXiv 2410.20092), the recipes; the groups are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from diffusion_core.errors import WorkbenchError, require_at_least
from envs.maze2d import Maze
from envs.pointmaze import JITTER, MAPS, POINT, STRIDE, Walls, of_name
from planning.data import files
from planning.data.transitions import Transitions, transitions

VERSION = 1
"""Of the recipes here: raised whenever the same seed gives other transitions."""
GROUP = 250
NOISE = 0.5
FAR = 4
"""Cells from the start of an episode of "stitch" to its goal."""
LENGTHS = {
    "stitch": {"medium": 201, "large": 201, "giant": 201},
    "navigate": {"medium": 1001, "large": 1001, "giant": 2001},
}


@dataclass(frozen=True, eq=False)
class Ways:
    """Shortest ways between the free cells of a maze, which are known by their number in ``cells``.

    Args:
        cells: (row along x, column along y).
        steps: from one (the first axis) to the other; -1: there is no way.
        following: the next one, from one (the first axis) on a way to the other; itself where it is the other.
    """

    cells: Int[np.ndarray, "n 2"]
    steps: Int[np.ndarray, "n n"]
    following: Int[np.ndarray, "n n"]

    @classmethod
    def of(cls, maze: Maze) -> Ways:
        """Those of a maze; of several shortest ones OGBench's: along y first, towards lower places first."""
        cells = np.argwhere(~maze.walls)
        n, numbers = len(cells), np.full(maze.walls.shape, -1)
        numbers[tuple(cells.T)] = np.arange(n)
        # the border is all walls, so every neighbour is on the map
        beside = np.stack([numbers[tuple((cells + step).T)] for step in ((0, -1), (-1, 0), (0, 1), (1, 0))], 1)
        steps = np.where(np.eye(n, dtype=bool), 0, -1)
        for k in range(1, n):
            near = np.any([(beside[:, [j]] >= 0) & (steps[beside[:, j]] == k - 1) for j in range(4)], 0)
            steps[near & (steps < 0)] = k
        following = np.tile(np.arange(n)[:, None], (1, n))
        for j in range(3, -1, -1):
            nearer = (beside[:, [j]] >= 0) & (steps[beside[:, j]] == steps - 1) & (steps > 0)
            following = np.where(nearer, beside[:, [j]], following)
        return cls(cells, steps, following)

    @property
    def vertices(self) -> Int[np.ndarray, " m"]:
        """Cells that are no mere passages, with walls on two opposite sides and none on the others."""
        free = {tuple(cell) for cell in self.cells.tolist()}

        def passage(x: int, y: int) -> bool:
            along_x, along_y = {(x - 1, y), (x + 1, y)}, {(x, y - 1), (x, y + 1)}
            return any(one <= free and not other & free for one, other in ((along_x, along_y), (along_y, along_x)))

        return np.array([k for k, (x, y) in enumerate(self.cells.tolist()) if not passage(x, y)])


@lru_cache(maxsize=4)
def _ways(maze: str) -> Ways:
    return Ways.of(of_name(maze))


def generate(
    maze: str,
    recipe: str,
    steps: int,
    seed: int,
    noise: float = NOISE,
    progress: Callable[[int], object] = lambda _: None,
) -> Transitions:
    """Let balls go from cell to cell.

    Args:
        maze: of `envs.pointmaze.MAPS`.
        recipe: "stitch" or "navigate".
        steps: as many whole episodes as they are enough for; OGBench's have 5000 x 201, and 1000 x 1001 (500 x 2001).
        seed: the same one gives the same bytes.
        noise: standard deviation of what is added to each component of an action.
        progress: told how many steps were made, group by group.

    Raises:
        WorkbenchError: another maze or recipe, or a number out of range.
    """
    length = _length(maze, recipe)
    require_at_least(length, {"data.steps": steps})
    require_at_least(0, {"data.seed": seed, "noise": noise})
    episodes = steps // length
    sizes = [min(GROUP, episodes - first) for first in range(0, episodes, GROUP)]
    made = []
    for size, chance in zip(sizes, np.random.SeedSequence(seed).spawn(len(sizes)), strict=True):
        made.append(_group(maze, recipe, size, np.random.default_rng(chance), noise))
        progress(size * length)
    whole = {name: np.concatenate([arrays[name] for arrays in made]) for name in made[0]}
    return transitions(whole, provenance(maze, recipe, steps, seed, noise))


def provenance(maze: str, recipe: str, steps: int, seed: int, noise: float = NOISE) -> str:
    """What is said of generated transitions; never the name of a published set."""
    length = _length(maze, recipe)
    return (
        f"pointmaze-{maze}, generated: {recipe}, {steps // length} episodes of {length} steps, seed {seed}, noise "
        f"{noise:g}, recipe {VERSION}"
    )


def _group(maze: str, recipe: str, n: int, rng: np.random.Generator, noise: float) -> dict[str, np.ndarray]:
    """``n`` episodes side by side, as many as a group has at most."""
    walls, ways, length = Walls(of_name(maze)), _ways(maze), _length(maze, recipe)
    middles = walls.maze.middles(ways.cells)
    numbers = np.full(walls.maze.walls.shape, -1)
    numbers[tuple(ways.cells.T)] = np.arange(len(ways.cells))

    def around(cells: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m 2"]:
        return middles[cells] + rng.uniform(-JITTER, JITTER, (len(cells), 2))

    # a whole group's randomness is drawn, so that a smaller one has the same episodes
    first = rng.integers(len(ways.cells), size=GROUP)
    if recipe == "stitch":
        far = [np.flatnonzero(ways.steps[cell] == FAR) for cell in first]
        chosen = rng.random(GROUP)
        last = np.array([c[int(u * len(c))] if len(c) else f for c, u, f in zip(far, chosen, first, strict=True)])
    else:
        last = ways.vertices[rng.integers(len(ways.vertices), size=GROUP)]
    xy, goal = around(first), around(last)
    seen, acts = np.empty((length, n, 2), np.float32), np.empty((length, n, 2), np.float32)
    goals = np.empty((length, n, 2), np.float32)
    for t in range(length):
        kicks = rng.normal(0.0, noise, (GROUP, 2))
        cell = numbers[tuple(walls.maze.cell(xy).T)]
        aim = middles[ways.following[cell, last]] - xy
        aim /= np.linalg.norm(aim, axis=1, keepdims=True) + 1e-6
        actions = np.clip(aim + kicks, -1.0, 1.0)
        seen[t], acts[t], goals[t] = xy[:n], actions[:n], goal[:n]
        xy, _ = walls.moved(xy, actions)
        if recipe == "navigate":
            fresh = ways.vertices[rng.integers(len(ways.vertices), size=GROUP)]
            places, done = around(fresh), np.linalg.norm(xy - goal, axis=1) <= POINT.reach
            last, goal = np.where(done, fresh, last), np.where(done[:, None], places, goal)
    ends = np.zeros((length, n), bool)
    ends[-1] = True
    # its ball has no velocity: an action moves it
    rows = {"observations": np.concatenate([seen, np.zeros_like(seen)], -1), "actions": acts, "goals": goals}
    stream = {name: np.swapaxes(row, 0, 1).reshape(n * length, -1) for name, row in rows.items()}
    return stream | {"timeouts": ends.T.reshape(-1)}


def of_file(maze: str, path: Path) -> Transitions:
    """A file of OGBench's, or of what was generated here.

    Raises:
        WorkbenchError: the file cannot be read, holds something else, or its places are not free in the maze.
    """
    found, kind = files.load(path), files.kind(path)
    if kind != "ogbench" and "pointmaze-" not in found.provenance:
        raise WorkbenchError(
            f"{path}: got {found.provenance}; expected a pointmaze of OGBench's, or one generated here: choose "
            "its task, or another file."
        )
    inside = of_name(maze).clearance(found.observations[:, :2].astype(float)) <= 0.0
    if inside.any():
        raise WorkbenchError(
            f"{path}: got {int(inside.sum())} of {len(found)} places inside the walls of {maze}, the first at step "
            f"{int(inside.argmax())}; expected transitions of this maze ({found.provenance}): choose the task of their "
            "maze, or another file."
        )
    return found


def ends(stream: Transitions) -> Bool[np.ndarray, " n"]:
    """The last step of each episode; all ``timeouts`` are, and where the ball was put elsewhere."""
    xy = stream.observations[:, :2]
    far = np.abs(np.diff(xy, axis=0)).max(1) > STRIDE + 1e-3
    return stream.timeouts | np.concatenate([far, [True]])


def _length(maze: str, recipe: str) -> int:
    for name, got, known in (("maze", maze, MAPS), ("data.recipe", recipe, LENGTHS)):
        if got not in known:
            raise WorkbenchError(f"{name}: got {got!r}; expected one of {', '.join(known)}: choose one.")
    return LENGTHS[recipe][maze]
