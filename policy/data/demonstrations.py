"""Demonstrations as training windows, in memory, on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from policy.data.windows import windows


class Demonstrations:
    """All windows of a set of episodes: ``n_obs_steps`` observations and ``horizon`` actions each.

    Args:
        obs: (steps, features) observations, episodes one after the other.
        action: (steps, action_dim).
        episode_ends: (episodes,) exclusive ends.
        horizon, n_obs_steps, n_action_steps: in control steps. Windows overhang an episode by
            ``n_obs_steps - 1`` steps at its start and ``n_action_steps - 1`` at its end, where its first and last
            steps are repeated, as diffusion_policy's SequenceSampler does.
        device: where the arrays live; batches are gathered there.
    """

    def __init__(
        self,
        obs: Float[np.ndarray, "steps features"],
        action: Float[np.ndarray, "steps action"],
        episode_ends: np.ndarray[Any, np.dtype[np.int64]],
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        device: torch.device | None = None,
    ) -> None:
        index = windows(episode_ends, horizon, n_obs_steps - 1, n_action_steps - 1)
        if len(index) == 0:
            raise WorkbenchError(
                f"demonstrations: {len(episode_ends)} episodes of at most {np.diff(episode_ends, prepend=0).max()} "
                f"steps give no window of horizon={horizon}; expected longer episodes or a shorter horizon."
            )
        self.obs = torch.as_tensor(obs, dtype=torch.float32, device=device)
        self.action = torch.as_tensor(action, dtype=torch.float32, device=device)
        self.index = torch.as_tensor(index, device=device)
        self.n_obs_steps = n_obs_steps

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, rows: Int64[Tensor, " batch"]) -> dict[str, Tensor]:
        """``obs`` (batch, n_obs_steps, features) and ``action`` (batch, horizon, action_dim)."""
        steps = self.index[rows.to(self.index.device)]
        return {"obs": self.obs[steps[:, : self.n_obs_steps]], "action": self.action[steps]}

    def chunks(self, reference: Sequence[int]) -> Float[Tensor, "windows flat"]:
        """Every window's actions, flat, measured from the features ``reference`` of its newest observation."""
        features, dim = self.obs.shape[1], self.action.shape[1]
        if reference and (len(reference) != dim or not all(0 <= i < features for i in reference)):
            raise WorkbenchError(
                f"task.reference: got {list(reference)}; expected {dim} indices, one per action dimension, of the "
                f"{features} observation features, or []."
            )
        chunks = self.action[self.index]
        if reference:
            chunks = chunks - self.obs[self.index[:, self.n_obs_steps - 1]][:, None, list(reference)]
        return chunks.flatten(1)
