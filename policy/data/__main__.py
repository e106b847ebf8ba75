"""Make, look at, convert and fetch demonstrations: `python -m policy.data <verb> key=value ...`."""

from __future__ import annotations

import difflib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_core.errors import WorkbenchError
from policy.data import reader, sources
from policy.data.replay import ReplayBuffer

USAGE = """usage: python -m policy.data <verb> key=value ...

  generate out=demos.zarr.zip episodes=200 seed=200000 jobs=2
           demonstrations of the scripted Push-T expert, one seed each; unsolved ones are left out
           near_goal=0               as many more that start with the block near its goal
           noise_rate=0 noise_steps=6 noise_px=25   disturb the executed, not the recorded, actions
           max_steps=300 images=false zarr_format=2 overwrite=false
           Ctrl-C keeps what is finished in demos.partial.zarr.zip and leaves demos.zarr.zip alone
  inspect  SOURCE [images=false]     SOURCE: expert, human, or a path (.zarr, .zarr.zip, .npz)
  convert  src=SOURCE out=PATH       the name of PATH decides: .zarr, .zarr.zip or .npz
           zarr_format=2 keys=[action,state] as_uint8=[img] fill_absent=false overwrite=false
  fetch    human [images=false]      find, or download, the published demonstrations and verify them
"""


@dataclass
class Generate:
    """Options of `generate`; see USAGE."""

    out: str = MISSING
    episodes: int = 200
    seed: int = 200_000
    jobs: int = 2
    near_goal: int = 0
    noise_rate: float = 0.0
    noise_steps: int = 6
    noise_px: float = 25.0
    max_steps: int = 300
    images: bool = False
    zarr_format: int = 2
    overwrite: bool = False


@dataclass
class Inspect:
    """Options of `inspect`."""

    source: str = MISSING
    images: bool = False


@dataclass
class Convert:
    """Options of `convert`; without `keys` every array is kept."""

    src: str = MISSING
    out: str = MISSING
    zarr_format: int = 2
    keys: list[str] | None = None
    as_uint8: list[str] = field(default_factory=list)
    fill_absent: bool = False
    overwrite: bool = False


@dataclass
class Fetch:
    """Options of `fetch`."""

    what: str = "human"
    images: bool = False


Options = TypeVar("Options", Generate, Inspect, Convert, Fetch)


def parse(kind: type[Options], words: list[str]) -> Options:
    """Read `key=value` words into the verb's dataclass; `inspect` and `fetch` take their first option without key.

    Raises:
        WorkbenchError: an unknown, ill-typed or missing option.
    """
    verb, names = kind.__name__.lower(), [f.name for f in fields(kind)]
    if kind in (Inspect, Fetch) and words and "=" not in words[0]:
        words = [f"{names[0]}={words[0]}", *words[1:]]
    for word in words:
        name = word.split("=", 1)[0]
        if "=" not in word or name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}=...?" if near else "see python -m policy.data --help."
            raise WorkbenchError(f"{verb}: got {word!r}; expected key=value with one of {', '.join(names)}: {hint}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(words))
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise WorkbenchError(f"{verb}: got no {', '.join(missing)}; expected it: add {missing[0]}=...")
        options = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None) or "option"
        types = {f.name: f.type for f in fields(kind)}
        like = f" like {key}=[a,b]" if "list" in str(types.get(key)) else ""
        reason = str(error).splitlines()[0]
        raise WorkbenchError(f"{verb}: got a bad {key}: {reason}; expected {types.get(key, 'key=value')}{like}.") from error
    assert isinstance(options, kind)
    return options


def generate(options: Generate) -> None:
    """Record the expert and save its episodes; Ctrl-C saves what is finished beside `out`."""
    from tqdm import tqdm

    from envs.pusht_generate import Noise, Recipe
    from envs.pusht_generate import generate as record

    out = Path(options.out)
    for name, low in (("episodes", 0), ("near_goal", 0), ("jobs", 1), ("max_steps", 1), ("seed", 0)):
        if getattr(options, name) < low:
            raise WorkbenchError(f"generate: got {name}={getattr(options, name)}; expected at least {low}.")
    if options.episodes + options.near_goal == 0:
        raise WorkbenchError("generate: got episodes=0 and near_goal=0; expected at least one episode.")
    _check_out(out, options.overwrite)
    noise = Noise(options.noise_rate, options.noise_steps, options.noise_px)
    recipes = [Recipe(s, noise, max_steps=options.max_steps) for s in ("published", "near_goal")]
    seeds = [range(options.seed, options.seed + n) for n in (options.episodes, options.near_goal)]
    episodes, used = [], []

    def save(path: Path, overwrite: bool) -> None:
        made = {"generator": "envs.pusht_generate", "options": asdict(options) | {"out": out.name}, "seeds": used}
        ReplayBuffer.from_episodes(episodes, made).save(path, options.zarr_format, overwrite)
        steps = sum(len(e["action"]) for e in episodes)
        print(f"{path}: {len(episodes)} episodes, {steps} steps, {path.stat().st_size} bytes")

    try:
        with tqdm(total=sum(map(len, seeds)), unit="episode") as bar:
            for recipe, numbers in zip(recipes, seeds, strict=True):
                if not numbers:
                    continue
                made = record(numbers, options.jobs, recipe)
                with _children_deaf_to_interrupts():
                    first = next(made, None)
                for episode in (() if first is None else (first, *())):
                    pass
                while first is not None:
                    arrays = {k: getattr(first, k) for k in ("action", "state", "keypoint", "n_contacts")}
                    episodes.append(arrays | ({"img": _images(first.state)} if options.images else {}))
                    used.append(first.seed)
                    bar.update(first.seed - numbers[0] + 1 + (recipe is recipes[1]) * options.episodes - bar.n)
                    first = next(made, None)
    except KeyboardInterrupt:
        if episodes:
            save(out.with_name(out.name.removesuffix(".zip").removesuffix(".npz").removesuffix(".zarr") + ".partial.zarr.zip"), True)
        raise
    if not episodes:
        raise WorkbenchError("generate: got no solved episode; expected at least one: raise episodes or max_steps.")
    save(out, options.overwrite)
