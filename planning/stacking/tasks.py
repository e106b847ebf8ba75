"""Diffuser's three tasks with blocks, and one of two constraints: what is asked next, and what came of it.

What comes next is written out here: which block to put where, one move at a time. How a move goes is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from envs.stacking import BLOCKS, REACH, SIDE, clear, on, scattered, tower
from planning.energies import Cost
from planning.stacking.data import free_place
from planning.stacking.energies import At, Either, OnTop

Blocks = Float[np.ndarray, "4 3"]


@dataclass(frozen=True)
class Asked:
    """A subgoal.

    Args:
        costs: the energies of the move.
        block, target: for a scripted hand: what to put where, m.
        met: whether it is, in a state of the blocks.
    """

    costs: tuple[Cost, ...]
    block: int
    target: Float[np.ndarray, "3"]
    met: Callable[[Blocks], bool]


@dataclass(frozen=True)
class Task:
    """An episode.

    Args:
        blocks: at the beginning.
        order: of the tower that is wanted, the lowest block first; empty: as high as it gets.
        moves: that may be made.
    """

    blocks: Blocks
    order: tuple[int, ...]
    moves: int

    def asked(self, blocks: Blocks, rng: np.random.Generator) -> Asked | None:
        """What comes next; None: nothing does."""
        if not self.order:
            return self._higher(blocks)
        for below, above in pairwise(self.order):
            if on(blocks, above, below):
                continue
            for k in (above, below):
                if not clear(blocks, k):
                    return self._off(blocks, k, rng)
            return Asked((OnTop(above, below),), above, blocks[below] + [0, 0, SIDE], partial(_stands, above, below))
        return None

    def reward(self, blocks: Blocks) -> int:
        """Blocks that stand where they should, 0 to 3: on the one below them in the order, or on any."""
        if self.order:
            return sum(on(blocks, above, below) for below, above in pairwise(self.order))
        return _height(blocks) - 1

    def _higher(self, blocks: Blocks) -> Asked | None:
        highest = int(blocks[:, 2].argmax())
        under = {highest} | {j for j in range(BLOCKS) if _beneath(blocks, j, highest)}
        loose = [k for k in range(BLOCKS) if k not in under and clear(blocks, k)]
        if not loose:
            return None
        before = _height(blocks)
        any_of_them = Either(tuple(OnTop(k, highest) for k in loose))
        return Asked((any_of_them,), loose[0], blocks[highest] + [0, 0, SIDE], lambda b: _height(b) > before)

    def _off(self, blocks: Blocks, k: int, rng: np.random.Generator) -> Asked:
        """What stands on a block must go to the table first, the highest before the others."""
        top = k
        while not clear(blocks, top):
            top = next(j for j in range(BLOCKS) if j != top and on(blocks, j, top))
        place = free_place(blocks, rng)
        x, y, z = (float(v) for v in place)
        return Asked((At(top, (x, y, z)),), top, place, partial(_down, top))


def _stands(above: int, below: int, blocks: Blocks) -> bool:
    return on(blocks, above, below)


def _down(block: int, blocks: Blocks) -> bool:
    return bool(blocks[block, 2] < SIDE)


def _height(blocks: Blocks) -> int:
    return round((float(blocks[:, 2].max()) + SIDE / 2) / SIDE)


def _beneath(blocks: Blocks, low: int, high: int) -> bool:
    apart = blocks[high] - blocks[low]
    return bool(np.linalg.norm(apart[:2]) < SIDE / 2 and apart[2] > SIDE / 2)


def unconditional(rng: np.random.Generator) -> Task:
    """As high a tower as there can be, in three moves and one to spare."""
    return Task(scattered(rng), (), 4)


def conditional(rng: np.random.Generator) -> Task:
    """A tower in a given order, from blocks that lie about."""
    return Task(scattered(rng), tuple(int(k) for k in rng.permutation(BLOCKS)), 4)


def rearrangement(rng: np.random.Generator) -> Task:
    """A tower in a given order, from a tower in another."""
    before = rng.permutation(BLOCKS)
    after = rng.permutation(BLOCKS)
    while set(pairwise(before.tolist())) & set(pairwise(after.tolist())):
        after = rng.permutation(BLOCKS)
    (x0, x1), (y0, y1) = REACH
    base = rng.uniform([x0 + 0.06, y0 + 0.06], [x1 - 0.06, y1 - 0.06])
    return Task(tower(base, before[:3], rng), tuple(int(k) for k in after), 7)


TASKS: dict[str, Callable[[np.random.Generator], Task]] = {
    "unconditional stacking": unconditional,
    "conditional stacking": conditional,
    "rearrangement": rearrangement,
}
