"""Make, look at, convert and fetch demonstrations: `python -m policy.data <verb> key=value ...`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import MISSING

from diffusion_core.errors import WorkbenchError
from diffusion_core.verbs import Verb, run
from policy.data import doctor, forms, robomimic, sources
from policy.data.generate import Generate, generate
from policy.data.replay import ReplayBuffer, concatenate

PROGRAM = "python -m policy.data"
USAGE = """usage: python -m policy.data <verb> key=value ...

  generate task=pusht out=demos.zarr.zip episodes=200 seed=200000 jobs=2
           demonstrations of a task's scripted expert, one seed each; unsolved ones are left out
           noise_rate=0 noise_steps=6   bursts that disturb the executed, not the recorded, actions, of a size of
             noise_scale=0.1         half ranges of the action, or in Push-T noise_px=25
           near_goal=0               Push-T: as many more that start with the block near its goal
           rest=8 cameras=[]         but in Push-T: rows after the success, cameras other than the task's
           max_steps=0               of an episode; 0: as the task has it
           images=false zarr_format=2 overwrite=false
           out's name decides as for convert (format=lerobot: a folder); robosuite's tasks as .hdf5 have the simulator's
             states and env_args, as robomimic wants them
           Ctrl-C keeps the finished episodes in demos.partial.zarr.zip; demos.zarr.zip is left alone
  inspect  SOURCE [images=false]     SOURCE: expert, human, or a path (.zarr, .zarr.zip, .npz, robomimic's .hdf5, or
           a folder of LeRobot's format 2 or 3)
  convert  src=SOURCE[,SOURCE] out=PATH   several are put end to end; PATH's name decides: .zarr, .zarr.zip, .npz, .hdf5
           format=lerobot            a folder of LeRobot's format 3.0, with
             fps=10 task="Push the T" images=png   control rate in Hz, instruction; images=video is small and lossy
           filter=train              of robomimic's filter keys
           zarr_format=2 keys=[action,state] as_uint8=[img] fill_absent=false overwrite=false
  doctor   [SOURCE] [images=false]   without: what is installed; with: what would make learning from it fail or poor
           exits with 1 if it finds anything
  fetch    human [images=false]      find, or download, the published demonstrations and verify them
"""


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
    format: str = ""
    fps: float = 0.0
    task: str = ""
    images: str = "png"
    filter: str = ""
    zarr_format: int = 2
    keys: list[str] | None = None
    as_uint8: list[str] = field(default_factory=list)
    fill_absent: bool = False
    overwrite: bool = False


@dataclass
class Doctor:
    """Options of `doctor`; without a source it looks at what is installed."""

    source: str = ""
    images: bool = False


@dataclass
class Fetch:
    """Options of `fetch`."""

    what: str = "human"
    images: bool = False


def inspect(options: Inspect) -> None:
    """Print what a store holds, and whether a run would accept it."""
    path, checksum = _located(options.source, options.images)
    form, described = forms.describe(path)
    print(f"{options.source}: {path}")
    if options.source in sources.ABOUT:
        print(sources.ABOUT[options.source])
    print(f"{form}, {_bytes(path):,} bytes{checksum}\n")
    keys = [k for k, v in described.items() if options.images or len(v.shape) < 4]
    found = forms.read(path, keys)
    buffer = ReplayBuffer(found.arrays, found.episode_ends, str(path), found.attributes)
    wide = max(12, *(len(key) + 2 for key in described))
    print(f"{'array':<{wide}}{'dtype':<9}{'shape':<22}{'chunks':<18}{'bytes':>12}  {'range':<24}{'NaN/inf':>8}")
    for key, stored in described.items():
        spread, bad = _spread(buffer.arrays[key]) if key in buffer.arrays else ("images=true reads it", "")
        line = f"{key:<{wide}}{stored.dtype:<9}{stored.shape!s:<22}{stored.chunks!s:<18}{stored.stored_bytes:>12,}  "
        print(f"{line}{spread:<24}{bad:>8}")
    lengths = buffer.episode_lengths
    marks = ", ".join(f"{v:.0f}" for v in np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1])) if len(lengths) else "none"
    print(f"\nepisodes     {buffer.n_episodes}; length min, 10 %, median, 90 %, max: {marks} steps")
    for name, value in buffer.attributes.items():
        text = str(value)
        print(f"{name:<13}{text if len(text) <= 150 else text[:150] + '...'}")
    pusht = {"action", "state"} <= {k for k, v in buffer.arrays.items() if v.shape[1:] == sources.SHAPES.get(k)}
    buffer.validate(sources.SHAPES if pusht or options.source in sources.ABOUT else None)
    if pusht:
        from envs.pusht import coverage

        last = coverage(buffer.arrays["state"][buffer.episode_ends - 1, 2:])
        marks = ", ".join(f"{v:.3f}" for v in np.quantile(last, [0, 0.1, 0.5, 0.9, 1]))
        print(
            f"coverage     at the last step, min, 10 %, median, 90 %, max: {marks}; above 0.95: {np.sum(last > 0.95)}"
        )
    print("sound        every chunk present and whole, every value finite")


def convert(options: Convert) -> None:
    """Rewrite a data set in another form, or several as one."""
    out = Path(options.out)
    wish = forms.Wish(options.format, options.zarr_format, options.overwrite, options.fps, options.task, options.images)
    forms.check(out, wish)
    paths = [_located(source, options.keys is None or "img" in options.keys)[0] for source in options.src.split(",")]
    chosen = options.keys, None, options.as_uint8, options.fill_absent, options.filter or None
    parts = [ReplayBuffer.load(path, *chosen) for path in paths]
    buffer = parts[0] if len(parts) == 1 else concatenate(parts)
    if len(parts) > 1 and any("robomimic" in part.attributes for part in parts):
        told = [part.attributes.get("robomimic", {}) for part in parts]
        joined = robomimic.join(told, [part.n_episodes for part in parts])
        buffer = ReplayBuffer(buffer.arrays, buffer.episode_ends, buffer.source, {"robomimic": joined})
    buffer.save_as(out, wish)
    held = ", ".join(buffer.arrays)
    print(f"{out}: {buffer.n_episodes} episodes, {buffer.n_steps} steps of {held}, {_bytes(out):,} bytes")


def examine(options: Doctor) -> None:
    """Print one line for each finding, of a data set or of what is installed; exit with 1 if there is any."""
    findings = 0
    for line in doctor.installation() if not options.source else _examined(options):
        print(line)
        findings += line.bad
    print(f"{findings} findings" if findings else "sound")
    if findings:
        raise SystemExit(1)


def _examined(options: Doctor) -> Iterator[doctor.Line]:
    path, _ = _located(options.source, options.images)
    described = forms.describe(path)[1]
    keys = [k for k, v in described.items() if not k.startswith("next_obs.") and (options.images or len(v.shape) < 4)]
    found = forms.read(path, keys)
    yield from doctor.examine(ReplayBuffer(found.arrays, found.episode_ends, str(path), found.attributes))


def fetch(options: Fetch) -> None:
    """Find or download the human demonstrations and verify them."""
    if options.what != "human":
        raise WorkbenchError(f"fetch: got {options.what!r}; expected human, the one published set.")
    located = sources.fetch_human(options.images, progress=True)
    print(f"human: {located.path}, verified, sha256 {located.sha256}")


VERBS = {
    "generate": Verb(Generate, generate),
    "inspect": Verb(Inspect, inspect, 1),
    "convert": Verb(Convert, convert),
    "doctor": Verb(Doctor, examine, 1),
    "fetch": Verb(Fetch, fetch, 1),
}


def main(words: list[str]) -> int:
    """Run one verb; 0 if it went well, 2 after a mistake of the user's, 130 after Ctrl-C."""
    return run(PROGRAM, USAGE, VERBS, words)


def _located(source: str, images: bool) -> tuple[Path, str]:
    located = sources.locate(source, images)
    return located.path, f", sha256 {located.sha256}" if located.sha256 else ""


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


def _spread(values: np.ndarray) -> tuple[str, str]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    text = f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "nothing finite"
    return text, str(values.size - finite.size)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
