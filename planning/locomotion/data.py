"""Motions to learn from: episodes of a half cheetah, made by policies of several stages or read from a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from diffusion_core.download import cache, content_sha256, put_aside
from diffusion_core.durable import flush
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import make_folder
from envs.cheetah import ACTIONS, OBS, STEPS, Cheetahs
from envs.cheetah_search import stages
from planning.locomotion.config import TASK, MotionDataConfig

logger = logging.getLogger("workbench.planning")
KEYS = {"observations": OBS, "actions": ACTIONS, "rewards": 0, "ends": 0}


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes one after another.

    Args:
        observations, actions, rewards: step by step; see `envs.cheetah.Cheetahs`.
        ends: which steps are the last of an episode.
        provenance: where they come from.
    """

    observations: Float[np.ndarray, "n 17"]
    actions: Float[np.ndarray, "n 6"]
    rewards: Float[np.ndarray, " n"]
    ends: Bool[np.ndarray, " n"]
    provenance: str

    @property
    def content_sha256(self) -> str:
        """A digest of all arrays."""
        return content_sha256({name: getattr(self, name) for name in KEYS})

    @property
    def returns(self) -> Float[np.ndarray, " episodes"]:
        """Of each whole episode."""
        return np.add.reduceat(self.rewards, np.r_[0, np.flatnonzero(self.ends)[:-1] + 1])


def generate(
    config: MotionDataConfig, progress: Callable[[int], object] = lambda n: None, steps: int = STEPS
) -> Episodes:
    """Episodes of the policies that ship, in equal parts and turns, their actions made noisy.

    Args:
        progress: told how many steps were made.
        steps: of an episode.
    """
    policies = stages()
    cheetahs, rng = Cheetahs(config.episodes), np.random.default_rng(config.seed)
    obs, seen = cheetahs.reset(int(rng.integers(2**31))), []
    own = [policies[k % len(policies)] for k in range(config.episodes)]
    for _ in range(steps):
        exact = np.concatenate([policy(one[None]) for policy, one in zip(own, obs, strict=True)])
        actions = np.clip(exact + config.noise * rng.standard_normal(exact.shape), -1.0, 1.0)
        following, rewards = cheetahs.step(actions)
        seen.append((obs, actions, rewards))
        obs = following
        progress(config.episodes)
    # from step by episode to episode after episode
    obs_all, actions_all, rewards_all = (np.stack(column, 1).astype(np.float32) for column in zip(*seen, strict=True))
    ends = np.zeros((config.episodes, steps), dtype=bool)
    ends[:, -1] = True
    return Episodes(
        obs_all.reshape(-1, OBS), actions_all.reshape(-1, ACTIONS), rewards_all.ravel(), ends.ravel(), said(config)
    )


def said(config: MotionDataConfig) -> str:
    """The provenance of what `generate` makes."""
    return (
        f"{TASK}, {config.episodes} episodes of the linear policies that ship, all stages in turns, action noise "
        f"{config.noise}, seed {config.seed}"
    )


def load(config: MotionDataConfig) -> Episodes:
    """What a configuration asks for: made once and kept in the cache, or read from a file.

    Raises:
        WorkbenchError: the file is not there, or not such a one.
    """
    if config.source != "generate":
        return of_file(Path(config.source).expanduser())
    name = f"{TASK}-{config.episodes}-noise{config.noise:g}-seed{config.seed}.hdf5"
    path = make_folder(cache("planning")) / name
    if path.exists():
        try:
            found = of_file(path)
        except WorkbenchError as error:
            logger.warning("%s; it was %s", error, put_aside(path))
        else:
            if found.provenance == said(config):
                return found
            logger.warning("%s: got %s under this name; it was %s", path, found.provenance, put_aside(path))
    with tqdm(total=config.episodes * STEPS, desc="motions", unit="step", disable=None, dynamic_ncols=True) as bar:
        made = generate(config, bar.update)
    save(path, made)
    return made


def save(path: Path, episodes: Episodes) -> None:
    """Write an HDF5 file with D4RL's keys, completely or not at all."""
    import h5py

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(partial, "w") as file:
            for name in ("observations", "actions", "rewards"):
                file.create_dataset(name, data=getattr(episodes, name), compression="gzip", compression_opts=4)
            file["terminals"] = np.zeros(len(episodes.rewards), dtype=bool)
            file["timeouts"] = episodes.ends
            file.attrs["provenance"] = episodes.provenance
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def of_file(path: Path) -> Episodes:
    """Episodes in an HDF5 file with D4RL's keys.

    Raises:
        WorkbenchError: it cannot be read, or its arrays do not fit a half cheetah.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            obs, actions, rewards = (
                np.asarray(file[name][()], np.float32) for name in ("observations", "actions", "rewards")
            )
            ends = np.asarray(file["terminals"][()], bool) | np.asarray(file["timeouts"][()], bool)
            about = str(file.attrs.get("provenance", f"file {path.name}"))
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WorkbenchError(
            f"{path}: cannot be read ({reason}); expected an HDF5 file with D4RL's observations, actions, rewards, "
            "terminals and timeouts: choose another file."
        ) from error
    n = len(rewards)
    fits = (
        obs.shape == (n, OBS) and actions.shape == (n, ACTIONS) and rewards.shape == (n,) and ends.shape == (n,) and n
    )
    if not (fits and all(np.isfinite(x).all() for x in (obs, actions, rewards))):
        raise WorkbenchError(
            f"{path}: got observations {obs.shape}, actions {actions.shape}, rewards {rewards.shape}; expected finite "
            f"(n, {OBS}), (n, {ACTIONS}), (n,), those of a half cheetah: choose another file."
        )
    ends[-1] = True
    return Episodes(obs, actions, rewards, ends, about)


def returns_to_go(
    rewards: Float[np.ndarray, " n"], ends: Bool[np.ndarray, " n"], lookahead: int, discount: float
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The mean discounted reward from each step on, and for which steps all of it is known.

    R_t = sum_(k < lookahead) discount^k r_(t + k) / sum_(k < lookahead) discount^k
    """
    weights = discount ** np.arange(lookahead)
    known = np.zeros(len(rewards), dtype=bool)
    values = np.zeros(len(rewards), dtype=np.float32)
    first = 0
    for last in np.flatnonzero(ends).tolist():
        n = last + 1 - first - lookahead + 1
        if n > 0:
            sums = np.convolve(rewards[first : last + 1], weights[::-1], "valid")
            values[first : first + n], known[first : first + n] = sums / weights.sum(), True
        first = last + 1
    return values, known


class Motions:
    """Every window of ``horizon`` steps of some episodes whose return-to-go is known.

    Args:
        episodes: to cut.
        horizon: steps of a window.
        lookahead, discount: of the returns-to-go.
        device: of the batches.

    Raises:
        WorkbenchError: no window fits.
    """

    def __init__(
        self, episodes: Episodes, horizon: int, lookahead: int, discount: float, device: torch.device | None = None
    ) -> None:
        values, known = returns_to_go(episodes.rewards, episodes.ends, max(lookahead, horizon), discount)
        if not known.any():
            raise WorkbenchError(
                f"motions: got no episode of {max(lookahead, horizon)} steps; expected at least one: collect longer "
                "ones, or lower data.lookahead or horizon."
            )
        steps = np.concatenate([episodes.observations, episodes.actions], 1)
        self.steps = torch.as_tensor(steps, dtype=torch.float32, device=device)
        self.values = torch.as_tensor(values, device=device)
        self.starts = torch.as_tensor(np.flatnonzero(known), device=device)
        self.nodes = torch.arange(horizon, device=device)

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, rows: Int64[Tensor, " batch"]) -> dict[str, Tensor]:
        """``motion`` (batch, horizon, 23) and ``value`` (batch,), the return-to-go of its first step."""
        first = self.starts[rows.to(self.starts.device)]
        return {"motion": self.steps[first[:, None] + self.nodes], "value": self.values[first]}
