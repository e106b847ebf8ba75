"""Moves from a prior, energies and a choice; carried out in the simulator, and planned anew after each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core import sample
from diffusion_core.experts import Energy, Known, Product, power, product, start
from diffusion_core.experts.factors import given
from diffusion_core.noise import Shared
from diffusion_core.solvers import Table
from envs.stacking import BLOCKS, SIDE, WIDTH, Stacking
from planning.compose import InMetres
from planning.energies import Cost
from planning.stacking.config import BlocksPlannerConfig
from planning.stacking.energies import block
from planning.stacking.prior import MovePrior

STRETCH = 2
"""Steps of the environment to a node."""
CLOSED = 0.06
"""Width of the gripper below which a move means to hold, m."""
GRIP = 0.012
"""Width that is asked for then, m: the block stops the fingers before."""
GOOD = 4.5
"""Faults below which no other moves are drawn, cm."""
MOVED = 0.015
"""Way of a block from which on it counts as moved, m."""


class BlocksPlanner:
    """Draws moves from ``prior * prod_j exp(-strength cost_j(x0_hat)) * Known(first state)``, and chooses one.

    Args:
        prior: of moves.
        table: the sampler.
        config: see there.
        seed: of the noise.
    """

    def __init__(self, prior: MovePrior, table: Table, config: BlocksPlannerConfig, seed: int) -> None:
        self.prior, self.table, self.config = prior, table, config
        self.noise = Shared(torch.Generator().manual_seed(seed))

    def __call__(self, state: Float[np.ndarray, "16"], costs: Sequence[Cost]) -> Float[np.ndarray, "horizon 16"]:
        """The chosen move, m."""
        best, least = None, float("inf")
        for _ in range(1 + self.config.again):
            x = self.candidates(state, costs)
            found = faults(x, costs)
            if float(found.min()) < least or best is None:
                best, least = x[int(found.argmin())], float(found.min())
            if least < GOOD:
                break
        assert best is not None
        return best.double().cpu().numpy()

    def candidates(self, state: Float[np.ndarray, "16"], costs: Sequence[Cost]) -> Float[Tensor, "n horizon 16"]:
        """Moves, m."""
        normalizer = self.prior.normalizer
        like = normalizer.low
        shape = (self.config.candidates, self.prior.horizon, like.numel())
        first = normalizer.normalize(torch.as_tensor(state).to(like))
        values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        values[:, 0] = first
        expert: Product = product(Product(), given(self.prior.denoiser, first.expand(shape[0], -1)))
        if self.config.strength:
            for cost in costs:
                expert = product(expert, power(Energy(InMetres(cost, normalizer)), self.config.strength))
        expert = product(expert, Known(self.prior.clean(values), values, "clean"))
        z = self.noise.normal(shape, like.dtype, like.device)
        x = sample.sample(expert, self.table, start(expert, z, float(self.table.times[0])), noise=self.noise)
        return normalizer.unnormalize(x)


@torch.no_grad()
def faults(x: Float[Tensor, "n horizon 16"], costs: Sequence[Cost]) -> Float[Tensor, " n"]:
    """What speaks against moves: their costs, and what no hand can do; it knows blocks and fingers, and no simulator.

    sum of costs + |way of blocks that should stay| + |tips - block| while it is carried + |end in the air|,
    distances in units of 1 cm
    """
    total = x.new_zeros(len(x))
    for cost in costs:
        total = total + cost(x)
    ways = torch.stack([(block(x, k)[:, -1] - block(x, k)[:, 0]).norm(dim=-1) for k in range(BLOCKS)], 1)
    moved = ways.argmax(1)
    others = ways.scatter(1, moved[:, None], 0.0).sum(1)
    blocks = x[..., 4:].unflatten(-1, (BLOCKS, 3))
    own = blocks.gather(2, moved[:, None, None, None].expand(-1, x.shape[1], 1, 3)).squeeze(2)
    carried = ((own - own[:, :1]).norm(dim=-1) > MOVED) & ((own - own[:, -1:]).norm(dim=-1) > MOVED)
    apart = (x[..., :3] - own).norm(dim=-1)
    slip = (apart * carried).sum(1) / carried.sum(1).clamp(min=1)
    # a block ends on the table or on another
    end = blocks[:, -1]
    mine = own[:, -1, None]
    beside = (end[..., :2] - mine[..., :2]).norm(dim=-1) + 1e3 * (end - mine).norm(dim=-1).lt(1e-6)
    top = torch.where(beside < SIDE / 2, end[..., 2] + SIDE, torch.full_like(beside, SIDE / 2)).amax(1)
    air = (own[:, -1, 2] - top).abs()
    return total + 100.0 * (others + slip + air)


def refined(move: Float[np.ndarray, "horizon 16"]) -> Float[np.ndarray, "horizon 4"]:
    """The fingertips and width of a move made exact where it closes and where it opens.

    A sample's hand is a centimetre off, and a grasp has no centimetre to spare. Which block goes where, by what way and
    when stays as it was drawn; the fingertips are moved, smoothly, so that they close where the block *is* and open
    where the move says that it ends. A width is open or closed.
    """
    tips, blocks = move[:, :3], move[:, 4:].reshape(len(move), BLOCKS, 3)
    moved = int(np.linalg.norm(blocks[-1] - blocks[0], axis=1).argmax())
    closed = np.flatnonzero(move[:, 3] < CLOSED)
    width = np.full(len(move), WIDTH)
    if not len(closed):
        return np.concatenate([tips, width[:, None]], 1)
    first, last = int(closed[0]), int(closed[-1])
    width[first : last + 1] = GRIP
    at_first, at_last = blocks[0, moved] - tips[first], blocks[-1, moved] - tips[last]
    pause = max(len(move) // 8, 1)
    # without knots out of order: a short move is corrected in one
    knots = np.maximum.accumulate([0, max(first - pause, 1), first + pause // 2, last - pause, len(move)])
    shifts = np.stack([np.zeros(3), at_first, at_first, at_last, at_last])
    shift = np.stack([np.interp(np.arange(len(move)), knots, column) for column in shifts.T], 1)
    return np.concatenate([tips + shift, width[:, None]], 1)


def actions(move: Float[np.ndarray, "horizon 16"]) -> Float[np.ndarray, "steps 4"]:
    """What carries out a move, step by step."""
    exact = refined(move)
    at = np.linspace(0, len(move) - 1, STRETCH * (len(move) - 1) + 1)[1:]
    return np.stack([np.interp(at, np.arange(len(move)), column) for column in exact.T], 1)


def carry_out(env: Stacking, move: Float[np.ndarray, "horizon 16"]) -> list[np.ndarray]:
    """Follow a move; all states."""
    return [env.step(action) for action in actions(move)]
