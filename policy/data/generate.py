"""The verb `generate`: demonstrations of a task's scripted expert, one seed each."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from omegaconf import MISSING, OmegaConf

from diffusion_core.errors import WorkbenchError
from policy.data import forms, robomimic
from policy.data.replay import ReplayBuffer

if TYPE_CHECKING:
    from policy.data.recording import Scene

TASKS = Path(__file__).parents[1] / "conf" / "task"
PUSHT_STEPS = 300
WHERE = ("out", "format", "overwrite", "jobs")
"""Options that do not change what is generated."""
OURS = ("near_goal", "noise_px")
"""Options of Push-T alone."""
THEIRS = ("noise_scale", "rest", "cameras")
"""Options of all other tasks alone."""


@dataclass
class Generate:
    """Options of `generate`; see the command's usage."""

    out: str = MISSING
    task: str = "pusht"
    episodes: int = 200
    seed: int = 200_000
    jobs: int = 2
    near_goal: int = 0
    noise_rate: float = 0.0
    noise_steps: int = 6
    noise_px: float = 25.0
    noise_scale: float = 0.1
    rest: int = 8
    max_steps: int = 0
    images: bool = False
    cameras: list[str] = field(default_factory=list)
    format: str = ""
    zarr_format: int = 2
    overwrite: bool = False


def generate(options: Generate) -> None:
    """Record the expert and save its episodes; Ctrl-C saves what is finished beside `out`.

    Raises:
        WorkbenchError: options that do not go together, a task without an expert, or no solved episode.
    """
    leaf = task_leaf(options.task)
    _check(options, _is_pusht(leaf))
    forms.check(Path(options.out), _wish(options))
    (_pusht if _is_pusht(leaf) else _any)(options, leaf)


def task_leaf(name: str) -> dict[str, Any]:
    """The leaf of a task.

    Raises:
        WorkbenchError: there is none of this name.
    """
    path = TASKS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in TASKS.glob("*.yaml"))
        raise WorkbenchError(f"task: got {name!r}; expected one of {', '.join(known)}: choose one.")
    leaf = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(leaf, dict)
    return {str(key): value for key, value in leaf.items()}


def scene(options: Generate, leaf: Mapping[str, Any]) -> tuple[Scene, dict[str, Any]]:
    """What to record of a task, and what to tell of it in the store: its control rate and its instructions.

    Raises:
        WorkbenchError: it has no expert or no camera, or its leaf or its packages are not as they should be.
    """
    # not above: processes that record import this module, and this one imports torch
    from diffusion_core.configure import bind, build, target
    from policy.data.recording import Bursts, Scene

    if not leaf.get("expert"):
        raise WorkbenchError(f"task {options.task}: got no scripted expert; expected one: generate another task.")
    env = dict(leaf["env"])
    if options.max_steps:
        env["max_steps"] = options.max_steps
    if options.cameras:
        env["cameras"] = list(options.cameras)
    elif options.images and not env.get("cameras"):
        env["cameras"] = list(getattr(target(env), "CAMERAS", ()))[:1]
        if not env["cameras"]:
            raise WorkbenchError(f"task {options.task}: got images=true; expected a task with cameras: leave it out.")
    made, _ = build(env), build(leaf["expert"])
    told: dict[str, Any] = {"fps": made.metadata["render_fps"], "env": env, "expert": dict(leaf["expert"])}
    if instruction := getattr(made, "instruction", ""):
        told["tasks"] = list(getattr(made, "instructions", [instruction]))
    whole = Path(options.out).suffix == robomimic.SUFFIX
    if whole and hasattr(made, "env_args"):
        told["robomimic"] = {"data": {"env_args": json.dumps(made.env_args)}}
        told["model_file"] = made.model_file
    made.close()
    bursts = Bursts(options.noise_rate, options.noise_steps, options.noise_scale)
    return Scene(bind(env), bind(leaf["expert"]), bursts, options.rest, whole), told


def _any(options: Generate, leaf: Mapping[str, Any]) -> None:
    from tqdm import tqdm

    from policy.data.recording import demonstrations

    played, told = scene(options, leaf)
    about = {k: v for k, v in asdict(options).items() if k not in (*WHERE, *OURS)}
    episodes: list[dict[str, np.ndarray]] = []
    seeds: list[int] = []
    unsolved: list[int] = []
    model = told.pop("model_file", None)
    attributes = {"generator": __name__, "options": about, "seeds": seeds, "unsolved": unsolved, **told}
    with _kept(options, episodes, attributes) as save:
        with tqdm(total=options.episodes, unit="episode") as bar:
            numbers = range(options.seed, options.seed + options.episodes)
            for episode in demonstrations(played, numbers, options.jobs):
                (seeds if episode.solved else unsolved).append(episode.seed)
                if episode.solved:
                    episodes.append(episode.arrays)
                bar.update()
                bar.set_postfix(unsolved=len(unsolved))
        if model is not None:
            demos = [{"name": f"demo_{i}", "attributes": {"model_file": model}} for i in range(len(episodes))]
            attributes["robomimic"] = attributes["robomimic"] | {"demos": demos}
        save()
    if unsolved:
        shown = ", ".join(map(str, unsolved[:5])) + (", ..." if len(unsolved) > 5 else "")
        sys.stdout.write(f"left out     {len(unsolved)} of {options.episodes} episodes, unsolved: seeds {shown}\n")


def _pusht(options: Generate, leaf: Mapping[str, Any]) -> None:
    from tqdm import tqdm

    from envs.pusht_generate import Noise, Recipe
    from policy.data.recording import record

    noise = Noise(options.noise_rate, options.noise_steps, options.noise_px)
    max_steps = options.max_steps or PUSHT_STEPS
    images = options.images or "image" in leaf["obs"].values()
    episodes: list[dict[str, np.ndarray]] = []
    parts: dict[Literal["published", "near_goal"], int]
    parts = {"published": options.episodes, "near_goal": options.near_goal}
    seeds: dict[str, list[int]] = {starts: [] for starts in parts}
    told = asdict(options) | {"max_steps": max_steps, "images": images}
    about = {k: v for k, v in told.items() if k not in (*WHERE, *THEIRS, "task")}
    attributes = {"generator": "envs.pusht_generate", "options": about, "seeds": seeds}
    with _kept(options, episodes, attributes) as save:
        with tqdm(total=sum(parts.values()), unit="episode") as bar:
            for starts, n in parts.items():
                recipe = Recipe(starts, noise, max_steps=max_steps)
                numbers = range(options.seed, options.seed + n)
                for seed, arrays in record(recipe, numbers, options.jobs, images) if n else ():
                    episodes.append(arrays)
                    seeds[starts].append(seed)
                    done = seed - options.seed + 1 + (options.episodes if starts == "near_goal" else 0)
                    bar.update(done - bar.n)
        save()


@contextmanager
def _kept(
    options: Generate, episodes: list[dict[str, np.ndarray]], attributes: Mapping[str, Any]
) -> Iterator[Callable[[], None]]:
    """Yield what saves the episodes; on Ctrl-C those there are go beside `out`."""
    out = Path(options.out)

    def save(path: Path, wish: forms.Wish) -> None:
        buffer = ReplayBuffer.from_episodes(episodes, attributes)
        buffer.save_as(path, wish)
        size = sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())
        sys.stdout.write(f"{path}: {buffer.n_episodes} episodes, {buffer.n_steps} steps, {size:,} bytes\n")

    def save_all() -> None:
        if not episodes:
            raise WorkbenchError("generate: got no solved episode; expected at least one: raise episodes or max_steps.")
        save(out, _wish(options))

    try:
        yield save_all
    except KeyboardInterrupt:
        if episodes:
            stem = re.sub(r"(\.zarr)?(\.zip|\.npz|\.hdf5)?$", "", out.name)
            save(out.with_name(f"{stem}.partial.zarr.zip"), forms.Wish(overwrite=True))
        raise


def _wish(options: Generate) -> forms.Wish:
    return forms.Wish(options.format, options.zarr_format, options.overwrite)


def _is_pusht(leaf: Mapping[str, Any]) -> bool:
    """Push-T's recorder draws starts, rests and files of its own, kept as they were for the published seeds."""
    return str(leaf.get("env", {}).get("_target_")) == "envs.pusht.PushT"


def _check(options: Generate, pusht: bool) -> None:
    lows = {"episodes": 0, "near_goal": 0, "seed": 0, "jobs": 1, "max_steps": 0, "noise_steps": 1, "rest": 0}
    for name, low in lows.items():
        if getattr(options, name) < low:
            raise WorkbenchError(f"generate: got {name}={getattr(options, name)}; expected at least {low}.")
    if options.episodes + options.near_goal == 0:
        raise WorkbenchError("generate: got episodes=0 and near_goal=0; expected at least one episode.")
    if not 0.0 <= options.noise_rate <= 1.0:
        raise WorkbenchError(f"generate: got noise_rate={options.noise_rate}; expected a probability from 0 to 1.")
    # an option that would do nothing is a mistake
    for name in THEIRS if pusht else OURS:
        if getattr(options, name) != getattr(Generate(out=""), name):
            whose = "tasks other than Push-T" if pusht else "Push-T"
            raise WorkbenchError(
                f"generate: got {name}={getattr(options, name)} for task {options.task}; expected it with {whose} "
                "only: leave it out."
            )
