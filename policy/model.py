"""The diffusion policy: a distribution over action chunks given the last observations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core import sample
from diffusion_core.checkpoint import Checkpoint, fill
from diffusion_core.configure import bind, build, table, typed
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws, Weighting, denoising_loss, simple, uniform_times
from diffusion_core.noise import Noise
from diffusion_core.normalize import MinMax
from diffusion_core.predict import PREDICTIONS
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.solvers import Table
from policy.config import PolicyConfig


class DiffusionPolicy(nn.Module):
    """``p(action chunk | last observations)`` as a diffusion over normalised actions.

    A chunk spans ``horizon`` steps and begins with the oldest of the ``n_obs_steps`` observations, so the action
    for now sits at index ``n_obs_steps - 1``; from there ``n_action_steps`` are executed before the next replan.

    With ``reference`` the actions are measured from where the robot is: a chunk is learned as displacements from
    those features of the newest observation, each step of the horizon on its own scale, so that the next few
    actions, which are small, are resolved as finely as the far ones.

    Args:
        denoiser: over chunks (batch, horizon, action_dim), conditioned on flat normalised observations.
        obs_normalizer, action_normalizer: to [-1, 1], of observations (features) and of flat chunks
            (horizon * action_dim); their values are part of the weights.
        horizon, n_obs_steps, n_action_steps: in control steps.
        reference: for each action dimension the observation feature it is measured from; empty: absolute.
        weighting: of the training loss.
        n_train: training times are drawn on the steps of a discrete-time model with this many; 0: uniformly.

    Source: Chi et al. 2023, section 3 (arXiv 2303.04137); relative chunks: Chi et al. 2024
    (arXiv 2402.10329).
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        obs_normalizer: MinMax,
        action_normalizer: MinMax,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        reference: Sequence[int] = (),
        weighting: Weighting = simple,
        n_train: int = 0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.obs_normalizer = obs_normalizer
        self.action_normalizer = action_normalizer
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.reference = list(reference)
        self.weighting = weighting
        self.times = partial(uniform_times, n_train=n_train or None)

    def condition(self, obs: Float[Tensor, "batch n_obs features"]) -> Float[Tensor, "batch cond"]:
        """Observations in their own units to the denoiser's condition."""
        return self.obs_normalizer.normalize(obs).flatten(1)

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each sample; ``batch`` has ``obs`` (batch, n_obs, features) and ``action``."""
        action, obs = batch["action"], batch["obs"]
        chunk = (action - self.origin(obs)).flatten(1)
        x0 = self.action_normalizer.normalize(chunk).reshape(action.shape)
        return denoising_loss(self.denoiser, x0, self.condition(obs), draws, self.times, self.weighting)

    def origin(self, obs: Float[Tensor, "batch n_obs features"]) -> Float[Tensor, "batch 1 action"] | float:
        """What actions are measured from: features of the newest observation, or 0."""
        return obs[:, -1:, self.reference] if self.reference else 0.0

    @torch.no_grad()
    def plan(
        self, obs: Float[Tensor, "batch n_obs features"], table: Table, noise: Noise
    ) -> Float[Tensor, "batch horizon action"]:
        """Sample one chunk per observation, in the environment's units.

        Args:
            obs: the last ``n_obs_steps`` observations, oldest first, in their own units.
            table: a solver's table.
            noise: source of the starting and of the fresh noise.
        """
        x = sample.sample(self.denoiser, table, self.start(len(obs), table, noise), self.condition(obs), noise)
        return self.actions(x, obs)

    def actions(
        self, x: Float[Tensor, "batch horizon action"], obs: Float[Tensor, "batch n_obs features"]
    ) -> Float[Tensor, "batch horizon action"]:
        """A normalised chunk in the environment's units."""
        return self.action_normalizer.unnormalize(x.flatten(1)).reshape(x.shape) + self.origin(obs)

    def denoising(self, obs: Tensor, table: Table, noise: Noise) -> Iterator[sample.State]:
        """The trajectory behind `plan`, in normalised units, after `start`."""
        return sample.trajectory(self.denoiser, table, self.start(len(obs), table, noise), self.condition(obs), noise)

    def start(self, n: int, table: Table, noise: Noise) -> Float[Tensor, "n horizon action"]:
        """``n`` samples of the prior at the table's first time, in the policy's precision."""
        low = self.action_normalizer.low
        z = noise.normal((n, self.horizon, len(low) // self.horizon), low.dtype, low.device)
        return Gaussian(self.denoiser.schedule).prior(z, float(table.times[0]))

    def executed(self, chunk: Float[Tensor, "batch horizon action"]) -> Any:
        """The part of a chunk that is carried out before the next replan."""
        first = self.n_obs_steps - 1
        return chunk[:, first : first + self.n_action_steps]


def assemble(config: PolicyConfig, obs_normalizer: MinMax, action_normalizer: MinMax) -> DiffusionPolicy:
    """The policy that ``config`` describes.

    Args:
        obs_normalizer, action_normalizer: of observations and of flat chunks; their sizes give the network's.
    """
    network = build(
        config.network,
        horizon=config.horizon,
        dim=len(action_normalizer.low) // config.horizon,
        cond_dim=config.n_obs_steps * len(obs_normalizer.low),
    )
    if config.prediction not in PREDICTIONS:
        raise WorkbenchError(f"prediction: got {config.prediction!r}; expected one of {', '.join(PREDICTIONS)}.")
    denoiser = NetworkDenoiser(network, build(config.schedule), config.prediction, config.clip)
    return DiffusionPolicy(
        denoiser,
        obs_normalizer,
        action_normalizer,
        config.horizon,
        config.n_obs_steps,
        config.n_action_steps,
        config.task.reference,
        bind(config.loss),
        config.n_train,
    )


def sampling_table(config: PolicyConfig, policy: DiffusionPolicy) -> Table:
    """The solver's table that ``config`` asks for, under the policy's schedule."""
    return table(config.sampler, config.grid, config.steps, policy.denoiser.schedule)


def restore(saved: Checkpoint) -> tuple[DiffusionPolicy, PolicyConfig]:
    """The policy in a checkpoint, in evaluation mode, and its configuration.

    Raises:
        WorkbenchError: the checkpoint is not a policy's, or is damaged.
    """
    saved.require("policy")
    config = typed(PolicyConfig, saved.config)
    weights = saved.tensors("model")
    sizes = [len(weights.get(f"{name}_normalizer.low", ())) for name in ("obs", "action")]
    policy = assemble(config, *(MinMax.empty(size) for size in sizes))
    fill(policy, weights, saved.path)
    return policy.requires_grad_(False).eval(), config
