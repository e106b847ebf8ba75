"""Make, look at and convert transitions: `python -m planning.data <verb> key=value ...`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import MISSING

from diffusion_core.errors import require_at_least
from diffusion_core.verbs import Verb, run
from planning.data import files
from planning.data.generate import NOISE, processes, require_maze
from planning.data.generate import generate as make

PROGRAM = "python -m planning.data"
USAGE = """usage: python -m planning.data <verb> key=value ...

  generate out=large.hdf5 maze=large steps=1000000 seed=0
           a ball driven from goal to goal, as D4RL does it: umaze, medium or large
           noise=0.5                 of the actions
           workers=-1                processes; -1: one for each core; the transitions do not depend on it
           overwrite=false           Ctrl-C leaves out as it was
  inspect  FILE                      D4RL's HDF5, a .zarr.zip, Minari's main_data.hdf5, OGBench's .npz
  convert  FILE OUT                  OUT: .hdf5, .h5 (D4RL's layout) or .zarr.zip (the same arrays)
           maze=large                check that it is of this maze; Minari's is turned into its coordinates
           overwrite=false
"""


@dataclass
class Generate:
    """Options of `generate`; see USAGE."""

    out: str = MISSING
    maze: str = MISSING
    steps: int = 1_000_000
    seed: int = 0
    noise: float = NOISE
    workers: int = -1
    overwrite: bool = False


@dataclass
class Inspect:
    """Options of `inspect`."""

    file: str = MISSING


@dataclass
class Convert:
    """Options of `convert`."""

    file: str = MISSING
    out: str = MISSING
    maze: str = ""
    overwrite: bool = False


def generate(options: Generate) -> None:
    """Make transitions and save them."""
    from tqdm import tqdm

    from envs.maze2d import MAPS, Maze

    require_maze(options.maze)
    require_at_least(1, {"generate: steps": options.steps})
    out = Path(options.out)
    files.check(out, options.overwrite)
    workers = processes() if options.workers == -1 else options.workers
    with tqdm(total=options.steps, unit="step", disable=None, dynamic_ncols=True) as bar:
        made = make(options.maze, options.steps, options.seed, options.noise, workers, bar.update)
    files.save(out, made, Maze(MAPS[options.maze]).goal, options.overwrite)
    print(f"{out}: {made.provenance}, sha256 {made.content_sha256}, {out.stat().st_size:,} bytes")


def inspect(options: Inspect) -> None:
    """Print what a file holds."""
    path = Path(options.file).expanduser()
    found = files.load(path)
    lengths = np.diff(np.flatnonzero(found.timeouts), prepend=-1)
    marks = ", ".join(f"{v:.0f}" for v in np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1])) if len(lengths) else "none"
    print(f"{path}: {files.kind(path)}, {path.stat().st_size:,} bytes")
    print(f"{found.provenance}\ncontent sha256 {found.content_sha256}\n")
    columns = [*zip(("x", "y", "vx", "vy"), found.observations.T, strict=True)]
    columns += [*zip(("action x", "action y"), found.actions.T, strict=True)]
    columns += [*zip(("goal x", "goal y"), found.goals.T, strict=True)]
    for name, values in columns:
        print(f"{name:<20}{values.min():>9.3f} to {values.max():.3f}")
    print(f"\nsteps               {len(found):>9}\ngoals               {len(lengths):>9}")
    print(f"steps of a goal     min, 10 %, median, 90 %, max: {marks}")
    for name, value in found.statistics().items():
        print(f"{name:<20}{value:>9.3f}")


def convert(options: Convert) -> None:
    """Rewrite a file in this project's form of D4RL's layout."""
    from envs.maze2d import MAPS, Maze

    path, out = Path(options.file).expanduser(), Path(options.out)
    files.check(out, options.overwrite)
    goal = None
    if options.maze:
        from planning.data import sources

        require_maze(options.maze)
        found, goal = sources.of_file(options.maze, path), Maze(MAPS[options.maze]).goal
    else:
        found = files.load(path)
    files.save(out, found, goal, options.overwrite)
    print(f"{out}: {len(found)} steps, {found.provenance}, {out.stat().st_size:,} bytes")


VERBS = {
    "generate": Verb(Generate, generate),
    "inspect": Verb(Inspect, inspect, 1),
    "convert": Verb(Convert, convert, 2),
}


def main(words: list[str]) -> int:
    """Run one verb; 0 if it went well, 2 after a mistake of the user's, 130 after Ctrl-C."""
    return run(PROGRAM, USAGE, VERBS, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
