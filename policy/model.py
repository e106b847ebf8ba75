"""A policy: a distribution over action chunks given the last observations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core import sample
from diffusion_core.checkpoint import Checkpoint, fill
from diffusion_core.configure import bind, build, table, typed
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws, uniform_times
from diffusion_core.noise import Noise
from diffusion_core.normalize import MinMax
from diffusion_core.predict import PREDICTIONS
from diffusion_core.solvers import Table
from policy import language, poses
from policy.config import PolicyConfig
from policy.heads import Head, Parts, Shape
from policy.heads.diffusion import Diffusion
from policy.observer import Observer

Observations = Mapping[str, Tensor]
"""Of each key (batch, n_obs_steps, ...), oldest first, in their own units."""


class Policy(nn.Module):
    """``p(action chunk | last observations)``: an observer, a head over normalised chunks, and the units between.

    A chunk spans ``horizon`` steps and begins with the oldest of the ``n_obs_steps`` observations, so the action
    for now sits at index ``n_obs_steps - 1``; from there ``n_action_steps`` are executed before the next replan.

    With ``reference`` the actions are measured from where the robot is: a chunk is learned as displacements from
    those features of the newest observation, each step of the horizon on its own scale, so that the next few
    actions, which are small, are resolved as finely as the far ones.

    Args:
        observer: makes a condition of observations.
        head: over chunks (batch, horizon, action_dim).
        action_normalizer: of flat chunks (horizon * action_dim) to [-1, 1]; its values are part of the weights.
        shape: of chunks and conditions.
        reference: for each action dimension the low-dimensional feature it is measured from; empty: absolute.
        rotations: actions are poses that the head sees as `poses.encode` has them.

    Source: Chi et al. 2023, section 3 (arXiv 2303.04137); relative chunks: Chi et al. 2024
    (arXiv 2402.10329).
    """

    def __init__(
        self,
        observer: Observer,
        head: Head,
        action_normalizer: MinMax,
        shape: Shape,
        reference: Sequence[int] = (),
        rotations: bool = False,
    ) -> None:
        super().__init__()
        self.observer, self.head, self.action_normalizer = observer, head, action_normalizer
        self.horizon, self.n_obs_steps, self.n_action_steps = shape.horizon, shape.n_obs_steps, shape.n_action_steps
        self.reference, self.rotations = list(reference), rotations

    @property
    def denoiser(self) -> NetworkDenoiser:
        """The denoiser of a head that has one.

        Raises:
            WorkbenchError: this one has none.
        """
        found = getattr(self.head, "denoiser", None)
        if not isinstance(found, NetworkDenoiser):
            raise WorkbenchError(f"policy: got a head of {type(self.head).__name__}; expected one that denoises.")
        return found

    @property
    def diffusion(self) -> Diffusion:
        """The head, if it is a diffusion.

        Raises:
            WorkbenchError: it is another.
        """
        if not isinstance(self.head, Diffusion):
            raise WorkbenchError(f"policy: got a head of {type(self.head).__name__}; expected head=diffusion or flow.")
        return self.head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.action_normalizer.low.device

    def condition(self, obs: Observations, draws: Draws | None = None) -> Float[Tensor, "batch cond"]:
        """Observations in their own units to the head's condition."""
        return self.observer(obs, draws)

    def forward(self, batch: Mapping[str, Any], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each sample; ``batch`` has ``obs`` and ``action`` (batch, horizon, action_dim)."""
        chunk = self.normalized(batch["action"], batch["obs"])
        return self.head.loss(chunk, self.condition(batch["obs"], draws), draws)

    def origin(self, obs: Observations) -> Float[Tensor, "batch 1 action"] | float:
        """What actions are measured from: features of the newest observation, or 0."""
        low = self.observer.low_dim(obs) if self.reference else None
        return 0.0 if low is None else low[:, -1:, self.reference]

    def normalized(
        self, action: Float[Tensor, "batch horizon action"], obs: Observations
    ) -> Float[Tensor, "batch horizon dim"]:
        """A chunk in the environment's units as the head sees it."""
        own = poses.encode(action) if self.rotations else action - self.origin(obs)
        return self.action_normalizer.normalize(own.flatten(1)).reshape(own.shape)

    def actions(
        self, x: Float[Tensor, "batch horizon dim"], obs: Observations
    ) -> Float[Tensor, "batch horizon action"]:
        """A normalised chunk in the environment's units: the inverse of `normalized`."""
        own = self.action_normalizer.unnormalize(x.flatten(1)).reshape(x.shape)
        return poses.decode(own) if self.rotations else own + self.origin(obs)

    @torch.no_grad()
    def plan(self, obs: Observations, table: Table | None, noise: Noise) -> Float[Tensor, "batch horizon action"]:
        """Draw one chunk per observation, in the environment's units.

        Args:
            table: a solver's table, for heads that denoise.
            noise: source of the starting and of the fresh noise.
        """
        return self.actions(self.head.draw(self.condition(obs), table, noise), obs)

    def denoising(self, obs: Observations, table: Table, noise: Noise) -> Iterator[sample.State]:
        """The trajectory behind `plan`, in normalised units, after `start`."""
        return self.diffusion.denoising(self.condition(obs), table, noise)

    def start(self, obs: Observations, table: Table, noise: Noise) -> Float[Tensor, "batch horizon dim"]:
        """Samples of the prior at the table's first time."""
        return self.diffusion.start(self.condition(obs), table, noise)

    def executed(self, chunk: Float[Tensor, "batch horizon action"]) -> Any:
        """The part of a chunk that is carried out before the next replan."""
        first = self.n_obs_steps - 1
        return chunk[:, first : first + self.n_action_steps]

    def seen(self, observation: Any) -> dict[str, Tensor]:
        """What an environment gives, stacked (batch, n_obs_steps, ...), as observations on the policy's device.

        An environment whose observation is an array gives the one that the policy sees.
        """
        named = observation if isinstance(observation, Mapping) else {next(iter(self.observer.kinds)): observation}
        dtype, found = self.action_normalizer.low.dtype, {}
        for key, kind in self.observer.kinds.items():
            if key not in named:
                raise WorkbenchError(
                    f"observation: got {', '.join(named)}; expected also {key}: the environment gives another "
                    "observation than the policy was trained on."
                )
            given = np.asarray(named[key])
            if kind == "language":
                given = language.embed(given.flatten().tolist()).reshape(*given.shape, -1)
            value = torch.as_tensor(given).to(self.device)
            found[key] = value if kind == "image" else value.to(dtype)
        return found


def assemble(
    config: PolicyConfig, obs_normalizer: MinMax, action_normalizer: MinMax, chunks: Tensor | None = None
) -> Policy:
    """The policy that ``config`` describes.

    Args:
        obs_normalizer, action_normalizer: of low-dimensional observations and of flat chunks; their sizes give the
            network's.
        chunks: (n, horizon * action_dim) of the training data, in the environment's units, for heads that fit
            something to them.
    """
    cameras = [key for key, kind in config.task.obs.items() if kind == "image"]
    observer = Observer(config.task.obs, obs_normalizer, {key: build(config.encoder) for key in cameras})
    shape = Shape(
        config.horizon,
        len(action_normalizer.low) // config.horizon,
        config.n_obs_steps,
        observer.features,
        config.n_action_steps,
    )
    network = build(config.network, horizon=shape.horizon, dim=shape.dim, cond_dim=shape.cond_dim)
    if config.prediction not in PREDICTIONS:
        raise WorkbenchError(f"prediction: got {config.prediction!r}; expected one of {', '.join(PREDICTIONS)}.")
    known = None if chunks is None else action_normalizer.normalize(chunks).unflatten(1, (shape.horizon, shape.dim))
    parts = Parts(
        shape,
        NetworkDenoiser(network, build(config.schedule), config.prediction, config.clip),
        bind(config.loss),
        partial(uniform_times, n_train=config.n_train or None),
        known,
    )
    head, task = build(config.head, parts), config.task
    return Policy(observer, head, action_normalizer, shape, task.reference, task.rotations)


def sampling_table(config: PolicyConfig, policy: Policy) -> Table | None:
    """The solver's table that ``config`` asks for; None for a head that does not denoise."""
    if not policy.head.denoises:
        return None
    return table(config.sampler, config.grid, config.steps, build(config.schedule), policy.head.arrange)


def restore(saved: Checkpoint) -> tuple[Policy, PolicyConfig]:
    """The policy in a checkpoint, in evaluation mode, and its configuration.

    Raises:
        WorkbenchError: the checkpoint is not a policy's, or is damaged.
    """
    saved.require("policy")
    config = typed(PolicyConfig, saved.config)
    weights = saved.tensors("model")
    seen, done = (len(weights.get(name, ())) for name in ("observer.normalizer.low", "action_normalizer.low"))
    policy = assemble(config, MinMax.empty(seen), MinMax.empty(done))
    fill(policy, weights, saved.path)
    return policy.requires_grad_(False).eval(), config
