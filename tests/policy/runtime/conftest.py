"""The shipped Push-T policy, and plans it made, for all tests of the runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_core import checkpoint
from diffusion_core.configure import build
from diffusion_core.noise import PerSample
from diffusion_core.solvers import Table
from envs.rollout import stack
from policy.config import PolicyConfig
from policy.evaluate import PRETRAINED
from policy.model import Policy, restore, sampling_table
from policy.runtime.joins import Overlap


@dataclass(frozen=True, eq=False)
class Shipped:
    """A policy in float64, how it is sampled, and observations of resets."""

    policy: Policy
    config: PolicyConfig
    table: Table
    windows: list
    obs: dict[str, Tensor]

    def noise(self, first: int = 0) -> PerSample:
        return PerSample.from_seeds(range(first, first + len(self.windows)))

    def overlap(self, frozen: int = 5, known: int = 8) -> Overlap:
        """A chunk of the same observations, drawn with other noise, as what was planned."""
        planned = self.policy.normalized(self.policy.plan(self.obs, self.table, self.noise(1000)), self.obs)
        index = torch.arange(self.policy.horizon).expand(len(self.windows), -1)
        return Overlap(torch.where((index < known)[..., None], planned, 0.0), index < known, index < frozen)


@pytest.fixture(scope="session")
def shipped() -> Shipped:
    policy, config = restore(checkpoint.find("pretrained/pusht", PRETRAINED))
    policy = policy.double()
    env = build(config.task.env)
    windows = [stack([env.reset(seed=seed)[0]] * policy.n_obs_steps) for seed in range(8)]
    obs = policy.seen(stack(windows))
    return Shipped(policy, config, sampling_table(config, policy), windows, obs)


def row(value: float, dim: int = 1) -> np.ndarray:
    return np.full(dim, value, np.float32)
