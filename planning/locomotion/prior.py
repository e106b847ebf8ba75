"""The learned prior of motions, and the value of a motion."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffusion_core.checkpoint import Checkpoint, fill
from diffusion_core.configure import bind, build, table, typed
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Weighting, denoising_loss, simple
from diffusion_core.normalize import MinMax
from diffusion_core.predict import PREDICTIONS
from diffusion_core.solvers import Table
from envs.cheetah import ACTIONS, OBS
from planning.locomotion.config import MotionConfig
from planning.locomotion.data import Motions

STEP = OBS + ACTIONS
"""Numbers of a node: what is seen, and what is done there."""
CONDITIONS = 2
"""What the network is told: the return-to-go from -1 to 1, and whether it is told."""
SPREAD = 3.0
"""Standard deviations that are scaled to 1: ranges would be those of a few falls."""


class Value(nn.Module):
    """The return-to-go of a motion, normalised, from all of its nodes.

    Args:
        horizon: nodes.
        width: of the network.
    """

    def __init__(self, horizon: int, width: int = 256) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(horizon * STEP, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, x: Float[Tensor, "batch horizon step"]) -> Float[Tensor, " batch"]:
        return self.network(x.flatten(1)).squeeze(-1)


class MotionPrior(nn.Module):
    """``p(motion | first observation, return-to-go)`` as a diffusion over normalised steps, and a `Value` beside it.

    In training the first observation is always shown clean. The return-to-go is told with the chance ``told``, so that
    the same network is a prior of all that was seen and one of what led to a return.

    Args:
        denoiser: over (batch, horizon, 23), conditioned on (batch, 2).
        normalizer: of steps.
        returns: of returns-to-go.
        horizon: nodes.
        told: see above.
        weighting: of the training loss.

    Source: Janner et al. 2022, section 3 (arXiv 2205.09991), states and actions in one array and a value that guides
    it; Ajay et al. 2023, section 3 (arXiv 2211.15657), a return as the condition, left out now and then. Ours: the
    value sees x0_hat, not x_t; actions are part of the motion where Ajay et al. have an inverse dynamics.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        normalizer: MinMax,
        returns: MinMax,
        horizon: int,
        told: float = 0.75,
        weighting: Weighting = simple,
    ) -> None:
        super().__init__()
        self.denoiser, self.normalizer, self.returns = denoiser, normalizer, returns
        self.horizon, self.told, self.weighting = horizon, told, weighting
        self.value = Value(horizon)

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each motion of `Motions.batch`."""
        x0 = self.normalizer.normalize(batch["motion"])
        returns = self.returns.normalize(batch["value"][:, None])
        told = (draws.uniform((len(x0), 1)).to(x0.device) < self.told).to(x0.dtype)
        cond = torch.cat([returns * told, told], 1)
        loss = denoising_loss(self.denoiser, x0, cond, draws, weighting=self.weighting, known=self.clean(x0))
        # no parameter is shared, so the sum of both is a matter of convenience
        return loss + (self.value(x0) - returns[:, 0]).square()

    def clean(self, x0: Float[Tensor, "batch horizon step"]) -> Bool[Tensor, "batch horizon step"]:
        """The first observation."""
        known = torch.zeros(x0.shape, dtype=torch.bool, device=x0.device)
        known[:, 0, :OBS] = True
        return known

    def condition(self, target: float | None) -> Float[Tensor, "1 2"]:
        """What the network is told for a return-to-go from 0 to 1, or for none."""
        like = self.normalizer.low
        return torch.tensor([[0.0, 0.0] if target is None else [2.0 * target - 1.0, 1.0]]).to(like)


def normalizers(motions: Motions) -> tuple[MinMax, MinMax]:
    """Of steps, by mean and deviation; and of returns-to-go, by their range."""
    mean, std = motions.steps.mean(0), motions.steps.std(0)
    values = motions.values[motions.starts]
    return MinMax(mean - SPREAD * std, mean + SPREAD * std), MinMax(values.min()[None], values.max()[None])


def assemble(config: MotionConfig, normalizer: MinMax, returns: MinMax) -> MotionPrior:
    """The prior that ``config`` describes, with new weights."""
    if config.prediction not in PREDICTIONS:
        raise WorkbenchError(f"prediction: got {config.prediction!r}; expected one of {', '.join(PREDICTIONS)}.")
    network = build(config.network, horizon=config.horizon, dim=STEP, cond_dim=CONDITIONS)
    denoiser = NetworkDenoiser(network, build(config.schedule), config.prediction, config.clip)
    return MotionPrior(denoiser, normalizer, returns, config.horizon, config.told, bind(config.loss))


def sampling_tables(config: MotionConfig, prior: MotionPrior) -> tuple[Table, Table | None]:
    """The solver's tables from noise, and from a noised plan."""
    schedule = prior.denoiser.schedule
    cold = table(config.sampler, config.grid, config.steps, schedule)
    if not config.planner.warm:
        return cold, None
    return cold, table(
        config.sampler, {**config.grid, "start": config.planner.warm_start}, config.planner.warm, schedule
    )


def restore(saved: Checkpoint) -> tuple[MotionPrior, MotionConfig]:
    """The prior in a checkpoint, in evaluation mode, and its configuration.

    Raises:
        WorkbenchError: the checkpoint is not one of these, or is damaged.
    """
    saved.require("locomotion")
    config = typed(MotionConfig, saved.config)
    prior = assemble(config, MinMax.empty(STEP), MinMax.empty(1))
    fill(prior, saved.tensors("model"), saved.path)
    return prior.requires_grad_(False).eval(), config
