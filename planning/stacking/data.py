"""Moves to learn from: a scripted hand takes a block that nothing stands on, and puts it on another or on the table."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from diffusion_core.download import cache
from diffusion_core.durable import flush
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import make_folder
from envs.stacking import APART, BLOCKS, REACH, SIDE, STATE, Stacking, clear, on, tower
from envs.stacking_expert import TRAVEL, carried_out, motion
from planning.stacking.config import MovesConfig

logger = logging.getLogger("workbench.planning")
MOVES = 3
"""In an episode: the later ones begin where the hand was left."""
KEPT = 96
"""Moments of a move that are kept, equally far apart in time."""
VERSION = 1
"""Of the recipe: raised whenever the same seed gives other moves."""


@dataclass(frozen=True, eq=False)
class Moves:
    """Moves that came off.

    Args:
        states: see `envs.stacking.Stacking`.
        tried: how many there were before those that failed were left out.
        provenance: where they come from.
    """

    states: Float[np.ndarray, "n kept 16"]
    tried: int
    provenance: str


def opened() -> Stacking:
    """The arm and its blocks.

    Raises:
        WorkbenchError: the arm's model is not installed.
    """
    try:
        return Stacking()
    except ValueError as error:
        raise WorkbenchError(str(error)) from error


def arranged(rng: np.random.Generator) -> Float[np.ndarray, "4 3"]:
    """Blocks here and there, some of them in towers."""
    order = rng.permutation(BLOCKS)
    high = int(rng.integers(1, BLOCKS + 1))
    (x0, x1), (y0, y1) = REACH
    base = rng.uniform([x0 + 0.03, y0 + 0.03], [x1 - 0.03, y1 - 0.03])
    return tower(base, order[:high], rng)


def free_place(blocks: Float[np.ndarray, "4 3"], rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """Somewhere on the table with room."""
    (x0, x1), (y0, y1) = REACH
    while True:
        xy = rng.uniform([x0 + 0.02, y0 + 0.02], [x1 - 0.02, y1 - 0.02])
        if np.linalg.norm(blocks[:, :2] - xy, axis=1).min() >= APART:
            return np.array([*xy, SIDE / 2])


def travel(blocks: Float[np.ndarray, "4 3"]) -> float:
    """Height at which the fingertips pass over all, m."""
    return TRAVEL + float(blocks[:, 2].max()) - SIDE / 2


def generate(config: MovesConfig, progress: Callable[[int], object] = lambda n: None) -> Moves:
    """Moves of the scripted hand; half of them onto blocks, half onto the table."""
    env, rng = opened(), np.random.default_rng(config.seed)
    kept, tried = [], 0
    for _ in range(config.episodes):
        state = env.reset(arranged(rng))
        for _ in range(MOVES):
            blocks = state[4:].reshape(BLOCKS, 3)
            free = [k for k in range(BLOCKS) if clear(blocks, k)]
            block = int(rng.choice(free))
            others = [k for k in free if k != block]
            below = int(rng.choice(others)) if others and rng.random() < 0.5 else None
            target = free_place(blocks, rng) if below is None else blocks[below] + [0.0, 0.0, SIDE]
            states = carried_out(env, motion(state, block, target, travel(blocks)))
            state, tried = states[-1], tried + 1
            after = state[4:].reshape(BLOCKS, 3)
            came_off = np.linalg.norm(after[block] - target) < 0.02
            others_stayed = np.linalg.norm(np.delete(after - blocks, block, 0), axis=1).max() < 0.015
            if came_off and others_stayed and (below is None or on(after, block, below)):
                at = np.linspace(0, len(states) - 1, KEPT)
                kept.append(np.stack([np.interp(at, np.arange(len(states)), column) for column in states.T], 1))
            elif not _in_reach(after):
                break
        progress(1)
    return Moves(np.array(kept, dtype=np.float32), tried, said(config))


def _in_reach(blocks: Float[np.ndarray, "4 3"]) -> bool:
    low, high = np.array(REACH).T
    return bool((blocks[:, :2] >= low).all() and (blocks[:, :2] <= high).all())


def said(config: MovesConfig) -> str:
    """The provenance of what `generate` makes."""
    return f"stacking, {config.episodes} episodes of {MOVES} scripted moves, seed {config.seed}, recipe {VERSION}"


def load(config: MovesConfig) -> Moves:
    """The moves of a configuration, made once and kept in the cache."""
    path = make_folder(cache("planning")) / f"stacking-{config.episodes}-seed{config.seed}-recipe{VERSION}.npz"
    if not path.exists():
        with tqdm(total=config.episodes, desc="moves", unit="episode", disable=None, dynamic_ncols=True) as bar:
            made = generate(config, bar.update)
        partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
        try:
            np.savez_compressed(partial, states=made.states, tried=np.array(made.tried))
            flush(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    with np.load(path) as file:
        states, tried = file["states"], int(file["tried"])
    logger.info("%d of %d scripted moves came off", len(states), tried)
    digest = hashlib.sha256(np.ascontiguousarray(states).tobytes()).hexdigest()
    return Moves(states, tried, f"{said(config)}; {len(states)} of {tried} came off, sha256 {digest}")


class Windows:
    """Moves with their blocks renamed in every way, and seen in a mirror: none of that matters to a hand.

    Args:
        moves: to learn from.
        horizon: nodes of a move.
        device: of the batches.
    """

    def __init__(self, moves: Moves, horizon: int, device: torch.device | None = None) -> None:
        at = np.linspace(0, KEPT - 1, horizon).round().astype(int)
        self.states = torch.as_tensor(moves.states[:, at], dtype=torch.float32, device=device)
        self.orders = torch.tensor(list(permutations(range(BLOCKS))), device=device)

    def __len__(self) -> int:
        return 2 * len(self.orders) * len(self.states)

    def batch(self, rows: Int64[Tensor, " batch"]) -> Float[Tensor, "batch horizon 16"]:
        """Moves, m."""
        rows = rows.to(self.states.device)
        x = self.states[rows % len(self.states)]
        which = rows // len(self.states)
        order = self.orders[which % len(self.orders)]
        blocks = x[..., 4:].unflatten(-1, (BLOCKS, 3))
        blocks = blocks.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, 3))
        x = torch.cat([x[..., :4], blocks.flatten(2)], -1)
        flip = torch.ones(STATE, device=x.device)
        flip[[1, *range(5, STATE, 3)]] = -1.0
        mirrored = (which >= len(self.orders))[:, None, None]
        return torch.where(mirrored, x * flip, x)
