"""Demonstrations as training windows, in memory, on the training device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        obs: of each key (steps, ...) observations, episodes one after the other; bytes stay bytes.
        action: (steps, action_dim).
        episode_ends: (episodes,) exclusive ends.
        horizon, n_obs_steps, n_action_steps: in control steps. Windows overhang an episode by
            ``n_obs_steps - 1`` steps at its start and ``n_action_steps - 1`` at its end, where its first and last
            steps are repeated, as diffusion_policy's SequenceSampler does.
        device: where the arrays live; batches are gathered there.
    """

    def __init__(
        self,
        obs: Mapping[str, np.ndarray],
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
        self.obs = {key: _tensor(values, device) for key, values in obs.items()}
        self.action = torch.as_tensor(action, dtype=torch.float32, device=device)
        self.index = torch.as_tensor(index, device=device)
        self.n_obs_steps = n_obs_steps

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, rows: Int64[Tensor, " batch"]) -> dict[str, Any]:
        """``obs``, of each key (batch, n_obs_steps, ...), and ``action`` (batch, horizon, action_dim)."""
        steps = self.index[rows.to(self.index.device)]
        seen = {key: values[steps[:, : self.n_obs_steps]] for key, values in self.obs.items()}
        return {"obs": seen, "action": self.action[steps]}

    def low_dim(self, keys: Sequence[str]) -> Float[Tensor, "steps features"]:
        """The observations ``keys`` of every step side by side."""
        rows = [self.obs[key].flatten(1) for key in keys]
        return torch.cat(rows, 1) if rows else self.action.new_zeros(len(self.action), 0)

    def chunks(self, keys: Sequence[str], reference: Sequence[int]) -> Float[Tensor, "windows flat"]:
        """Every window's actions, flat, measured from the features ``reference`` of its newest `low_dim`."""
        low, dim = self.low_dim(keys), self.action.shape[1]
        features = low.shape[1]
        if reference and (len(reference) != dim or not all(0 <= i < features for i in reference)):
            raise WorkbenchError(
                f"task.reference: got {list(reference)}; expected {dim} indices, one per action dimension, of the "
                f"{features} observation features, or []."
            )
        chunks = self.action[self.index]
        if reference:
            chunks = chunks - low[self.index[:, self.n_obs_steps - 1]][:, None, list(reference)]
        return chunks.flatten(1)


def _tensor(values: np.ndarray, device: torch.device | None) -> Tensor:
    return torch.as_tensor(values, dtype=None if values.dtype == np.uint8 else torch.float32, device=device)
