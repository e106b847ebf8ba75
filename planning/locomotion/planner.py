"""Plans of motions: drawn anew every few steps from where the cheetahs are, and the best one begun."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core import guidance, sample
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Known, Product, product, start
from diffusion_core.experts.factors import given
from diffusion_core.noise import Shared
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.solvers import Table
from envs.cheetah import OBS
from planning.locomotion.config import MotionPlannerConfig
from planning.locomotion.prior import MotionPrior


class MotionPlanner:
    """Acts for several cheetahs at once; of one set of episodes only, as it remembers its plans.

    A motion is drawn from

        prior * (prior(. | return) / prior) ** guidance_scale * exp(guide * value(x0_hat)) * Known(first observation)

    Args:
        prior: of motions.
        cold, warm: the sampler from noise, and from a plan's past, if it is to be.
        config: what of this is wanted.
        seed: of the noise.
    """

    def __init__(
        self, prior: MotionPrior, cold: Table, warm: Table | None, config: MotionPlannerConfig, seed: int
    ) -> None:
        if config.target is not None and prior.told == 0.0:
            raise WorkbenchError("planner.target: got one, and a prior that was never told a return; leave it out.")
        self.prior, self.cold, self.warm, self.config = prior, cold, warm, config
        self.noise = Shared(torch.Generator().manual_seed(seed))
        self.plan: Tensor | None = None
        self.begun = 0

    def act(self, obs: Float[np.ndarray, "n 17"]) -> Float[np.ndarray, "n 6"]:
        """The next action of each."""
        if self.plan is None or self.begun >= self.config.every:
            self.plan, self.begun = self.planned(obs), 0
        actions = self.prior.normalizer.unnormalize(self.plan)[:, self.begun, OBS:]
        self.begun += 1
        return np.clip(actions.double().cpu().numpy(), -1.0, 1.0)

    def planned(self, obs: Float[np.ndarray, "n 17"]) -> Float[Tensor, "n horizon 23"]:
        """The motion of each that is carried out, normalised."""
        x = self.candidates(obs)
        if self.config.select == "first" or x.shape[1] == 1:
            return x[:, 0]
        with torch.no_grad():
            best = self.prior.value(x.flatten(0, 1)).unflatten(0, x.shape[:2]).argmax(1)
        return x[torch.arange(len(x), device=x.device), best]

    def candidates(self, obs: Float[np.ndarray, "n 17"]) -> Float[Tensor, "n candidates horizon 23"]:
        """Motions of each, normalised."""
        n, like = self.config.candidates, self.prior.normalizer.low
        shape = (len(obs) * n, self.prior.horizon, like.numel())
        seen = torch.as_tensor(obs, dtype=like.dtype, device=like.device)
        first = torch.zeros(len(obs), like.numel(), dtype=like.dtype, device=like.device)
        first[:, :OBS] = seen
        values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        values[:, 0] = self.prior.normalizer.normalize(first).repeat_interleave(n, 0)
        expert = self.expert(values)
        z = self.noise.normal(shape, like.dtype, like.device)
        if self.warm is None or self.plan is None:
            x, rows = start(expert, z, float(self.cold.times[0])), self.cold
        else:
            # what is behind falls away; the last step stands for those that were not planned yet
            ahead = torch.cat([self.plan[:, self.begun :], self.plan[:, -1:].expand(-1, self.begun, -1)], 1)
            clock = self.warm.times[:1].expand(shape[0])
            x = Gaussian(self.prior.denoiser.schedule).corrupt(ahead.repeat_interleave(n, 0), clock, z)
            rows = self.warm
        return sample.sample(expert, rows, x, noise=self.noise).unflatten(0, (len(obs), n))

    def expert(self, values: Float[Tensor, "batch horizon 23"]) -> Product:
        """What motions are drawn from."""
        prior, config = self.prior, self.config
        null, asked = prior.condition(None), prior.condition(config.target)
        if config.target is None or config.guidance_scale == 1.0:
            expression = product(Product(), given(prior.denoiser, asked.expand(len(values), -1)))
        else:
            told = (one.expand(len(values), -1) for one in (null, asked))
            expression = guidance.classifier_free(prior.denoiser, next(told), config.guidance_scale, next(told))
        if config.guide:
            expression = product(expression, Energy(lambda x0_hat: -prior.value(x0_hat)) ** config.guide)
        return product(expression, Known(prior.clean(values), values, "clean"))
