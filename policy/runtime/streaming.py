"""Streaming: a chunk is not drawn anew but goes on from where the last one was left, half denoised.

    now   | 0 0 0 0 | 1 1 1 1 | 2 2 2 2 |      levels of noise of the actions ahead, in groups
    turn  | carried out | 0 0 0 0 | 1 1 1 1 | 2 2 2 2 |

A turn takes each group down by one of as many levels as there are groups: the nearest is clean then and is carried out,
and one of pure noise joins the end. So an action has seen every step of the solver when it is carried out, and a turn
costs ``steps / groups`` evaluations, with the newest observation at each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core import sample
from diffusion_core.configure import table
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.noise import PerSample
from diffusion_core.solvers import Table
from diffusion_core.token_grid import TokenGrid, staircase
from envs.rollout import Observation
from policy.config import PolicyConfig
from policy.heads.diffusion import prior
from policy.heads.forcing import Forcing
from policy.model import Observations, Policy


class _Buffer(NamedTuple):
    """What a robot keeps from one turn to the next, row by row of its last chunk.

    ``planned`` (horizon, action) is what the chunk was expected to become, in the environment's units, and ``noise``
    (horizon, dim) what was still on it.
    """

    planned: Tensor
    noise: Tensor


@dataclass(eq=False)
class Streaming:
    """A policy with ``head=forcing`` that streams, for ``envs.rollout.rollouts``: one call a turn.

    The rows of a chunk from the present step on must be whole groups of ``every``: with two observations a horizon of
    17 has groups of 1, 2, 4 and 8. In the first turn of an episode all groups start as noise and stop at their level.
    When a robot has moved, what a row was expected to become is expressed anew, as the policy sees it from there,
    under the same noise.

    Args:
        policy: not modified; a copy in ``precision`` is used.
        config: its own; the sampler is a deterministic one with a row a step, as `ddim` is.
        every: actions that are carried out in a turn; 0: the policy's ``n_action_steps``.
        precision: "float64" makes an episode independent of its batch; "float32" is faster.

    Raises:
        WorkbenchError: another head, or numbers that do not fit each other.

    Source: Hoeg et al. 2024, "Streaming diffusion policy" (arXiv 2406.04806), section 4.
    """

    policy: Policy
    config: PolicyConfig
    every: int = 0
    precision: str = "float64"
    buffers: dict[int, _Buffer] = field(init=False, default_factory=dict)
    streams: dict[int, torch.Generator] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.policy.head, Forcing):
            raise WorkbenchError(
                f"streaming: got a head of {type(self.policy.head).__name__}; expected head=forcing, which knows "
                "actions at different levels of noise."
            )
        self.shape = self.policy.head.shape
        self.policy = copy.deepcopy(self.policy).to(torch.float64 if self.precision == "float64" else torch.float32)
        self.every = self.every or self.policy.n_action_steps
        self.past = self.policy.n_obs_steps - 1
        ahead = self.policy.horizon - self.past
        if not 0 < self.every <= ahead or ahead % self.every or self.config.steps % (ahead // self.every):
            raise WorkbenchError(
                f"streaming: got {self.config.steps} denoising steps and {self.every} actions a turn, of {ahead}; "
                "expected groups of so many actions to fill what is ahead; and the steps to be a multiple of their "
                "number: change steps, every or horizon."
            )
        self.groups = ahead // self.every
        self.first, self.turn = self._table(self._opening), self._table(self._descent)
        if self.turn.noisy:
            raise WorkbenchError(
                "streaming: got a sampler that adds noise; expected a deterministic one, such as ddim."
            )

    @property
    def evaluations(self) -> int:
        """Of the network in a turn; the first takes ``config.steps``."""
        return int(self.turn.evaluates.sum())

    def __call__(self, observations: Observation, seeds: Sequence[int]) -> Float[np.ndarray, "episodes every action"]:
        """The next actions of the episodes ``seeds``; observations are stacked (episodes, n_obs_steps, ...)."""
        obs = self.policy.seen(observations)
        found: dict[int, Tensor] = {}
        begun = [i for i, seed in enumerate(seeds) if seed in self.buffers]
        new = [i for i, seed in enumerate(seeds) if seed not in self.buffers]
        for members, plan in ((new, self.first), (begun, self.turn)):
            if members:
                own = {key: value[members] for key, value in obs.items()}
                found |= dict(zip(members, self._drawn([seeds[i] for i in members], own, plan), strict=True))
        actions = torch.stack([found[i] for i in range(len(seeds))])
        return actions[:, self.past : self.past + self.every].to("cpu", torch.float32).numpy()

    def _drawn(self, seeds: Sequence[int], obs: Observations, plan: Table) -> Float[Tensor, "batch horizon action"]:
        """One turn of the robots ``seeds``, whose buffers it replaces."""
        policy, cond = self.policy, self.policy.condition(obs)
        noise = PerSample([self.streams.setdefault(seed, torch.Generator().manual_seed(seed)) for seed in seeds])
        x = prior(policy.denoiser, self.shape, cond, plan, noise)
        if plan is self.turn:
            x = self._moved_up(seeds, obs, x)
        *_, state = sample.trajectory(policy.denoiser, plan, x, cond, noise)
        alpha, sigma = self._levels(plan.reached[-1], state.x)
        left = torch.where(sigma > 0.0, (state.x - alpha * state.estimate) / sigma, 0.0)
        planned = policy.actions(state.estimate, obs)
        self.buffers |= dict(zip(seeds, map(_Buffer, planned, left), strict=True))
        return planned

    def _moved_up(self, seeds: Sequence[int], obs: Observations, fresh: Tensor) -> Tensor:
        """The buffers, ``every`` rows on, and the last group of ``fresh``, all as the policy sees them now."""
        planned, left = (torch.stack(parts) for parts in zip(*[self.buffers[seed] for seed in seeds], strict=True))
        x0 = self.policy.normalized(planned.roll(-self.every, 1), obs)
        alpha, sigma = self._levels(self.turn.times[0], x0)
        x = alpha * x0 + sigma * left.roll(-self.every, 1)
        return torch.cat([x[:, : -self.every], fresh[:, -self.every :]], 1)

    def _levels(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of each row, (1, horizon, 1)."""
        schedule = self.policy.denoiser.schedule
        return schedule.alpha(times)[..., None].to(like), schedule.sigma(times)[..., None].to(like)

    def _table(self, arrange: Callable[[Grid], TokenGrid]) -> Table:
        config = self.config
        return table(config.sampler, config.grid, config.steps, self.policy.denoiser.schedule, arrange)

    def _opening(self, grid: Grid) -> TokenGrid:
        """From pure noise: every group goes down together with the others and stops at its level."""
        share = (len(grid) - 1) // self.groups
        rows = torch.arange(len(grid))[:, None].minimum(len(grid) - 1 - share * torch.arange(self.groups))
        return self._of_rows(grid[rows])

    def _descent(self, grid: Grid) -> TokenGrid:
        """One turn; what has been carried out is clean."""
        found = self._of_rows(staircase(grid, self.groups)[:, 0])
        found[..., : self.past] = grid[-1]
        return found

    def _of_rows(self, of_groups: Tensor) -> TokenGrid:
        group = (torch.arange(self.policy.horizon) - self.past).clamp(min=0) // self.every
        return of_groups[:, group][:, None]
