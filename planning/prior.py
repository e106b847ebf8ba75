"""The learned prior of plans: how the ball of the demonstrations moves, from where to where it will."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffusion_core.checkpoint import Checkpoint, fill
from diffusion_core.configure import bind, build, table, typed
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts.factors import Given, given
from diffusion_core.loss import Weighting, denoising_loss, simple
from diffusion_core.normalize import MinMax
from diffusion_core.predict import PREDICTIONS
from diffusion_core.solvers import Table
from diffusion_core.times import token_times, uniform_times
from diffusion_core.token_grid import pyramid
from planning.config import PlanningConfig
from planning.critic import StrideCritic
from planning.tasks import world

CONDITIONS = 3
"""What the network is told of a trajectory: its pace, and whether its start and its end are shown clean."""


class TrajectoryPrior(nn.Module):
    """``p(trajectory | pace, ends)`` as a diffusion over normalised places.

    In training each end is shown clean with the chance ``ends_clean``, by itself, and the network is told which; so one
    network draws trajectories from a start to a goal, from a start, to a goal, or at will. The time between nodes is
    drawn too, and told: a plan's duration is chosen when it is made.

    Args:
        denoiser: over (batch, horizon, 2), conditioned on (batch, 3).
        normalizer: of places, m.
        horizon: nodes.
        dt: shortest and longest time between nodes, s.
        ends_clean: see above.
        weighting: of the training loss.
        critic: of strides, trained beside it on the same batches; None: there is none.
        forcing: share of windows whose nodes have noise levels of their own.

    Source: Janner et al. 2022, section 3 (arXiv 2205.09991); the paces and the chance of clean ends are ours.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        normalizer: MinMax,
        horizon: int,
        dt: tuple[float, float],
        ends_clean: float = 0.7,
        weighting: Weighting = simple,
        critic: StrideCritic | None = None,
        forcing: float = 0.0,
    ) -> None:
        super().__init__()
        self.critic, self.forcing = critic, forcing
        self.denoiser, self.normalizer = denoiser, normalizer
        self.horizon, self.dt, self.ends_clean, self.weighting = horizon, dt, ends_clean, weighting

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each trajectory of `Trajectories.batch`."""
        x0 = self.normalizer.normalize(batch["xy"])
        ends = draws.uniform((len(x0), 2)).to(x0.device) < self.ends_clean
        known = self.clean(ends, x0)
        cond = self.condition(batch["dt"], ends)
        times = partial(token_times, tokens=self.horizon, share=self.forcing) if self.forcing else uniform_times
        loss = denoising_loss(self.denoiser, x0, cond, draws, times, self.weighting, known)
        # no parameter is shared, so the sum of both is a matter of convenience
        return loss if self.critic is None else loss + self.critic.loss(batch["xy"], batch["dt"], draws)

    def clean(self, ends: Bool[Tensor, "batch 2"], x0: Float[Tensor, "batch horizon 2"]) -> Bool[Tensor, "batch h 2"]:
        """Which entries are shown clean."""
        known = torch.zeros(x0.shape, dtype=torch.bool, device=x0.device)
        known[:, 0], known[:, -1] = ends[:, :1], ends[:, 1:]
        return known

    def condition(self, dt: Float[Tensor, " batch"], ends: Bool[Tensor, "batch 2"]) -> Float[Tensor, "batch 3"]:
        """What the network is told: the pace's logarithm from -1 to 1, and which ends are clean."""
        low, high = self.dt
        pace = torch.zeros_like(dt) if high == low else 2.0 * (dt / low).log() / torch.tensor(high / low).log() - 1.0
        return torch.cat([pace[:, None], ends.to(dt.dtype)], 1)

    def at(self, dt: Float[Tensor, " n"], ends: tuple[bool, bool] = (True, True)) -> Given:
        """The expert for trajectories of these paces.

        Args:
            dt: time between nodes of each, s.
            ends: whether the starts and the ends will be clean.

        Raises:
            WorkbenchError: the prior never saw such a pace.
        """
        (low, high), steps = self.dt, self.horizon - 1
        slowest, fastest = float(dt.max()), float(dt.min())
        if fastest < low * 0.999 or slowest > high * 1.001:
            raise WorkbenchError(
                f"duration: got {fastest * steps:.3g} to {slowest * steps:.3g} s; expected some of {low * steps:.3g} "
                f"to {high * steps:.3g} s, the paces that this prior was trained with."
            )
        like = self.normalizer.low
        told = torch.tensor([ends], device=like.device).expand(len(dt), 2)
        return given(self.denoiser, self.condition(dt.to(like), told))


def assemble(config: PlanningConfig, normalizer: MinMax) -> TrajectoryPrior:
    """The prior that ``config`` describes, with new weights."""
    if config.prediction not in PREDICTIONS:
        raise WorkbenchError(f"prediction: got {config.prediction!r}; expected one of {', '.join(PREDICTIONS)}.")
    network = build(config.network, horizon=config.horizon, dim=2, cond_dim=CONDITIONS)
    denoiser = NetworkDenoiser(network, build(config.schedule), config.prediction, config.clip)
    dt = world(config.task).dt
    paces = (dt * min(config.strides), dt * max(config.strides))
    critic = StrideCritic(anywhere=config.critic_anywhere) if config.critic else None
    return TrajectoryPrior(
        denoiser, normalizer, config.horizon, paces, config.ends_clean, bind(config.loss), critic, config.forcing
    )


def sampling_table(config: PlanningConfig, prior: TrajectoryPrior) -> Table:
    """The solver's table that ``config`` asks for, under the prior's schedule."""
    schedule = prior.denoiser.schedule
    if not config.planner.delay:
        return table(config.sampler, config.grid, config.steps, schedule)
    nodes = prior.horizon + (config.planner.segments - 1) * (prior.horizon - config.planner.overlap)
    times = pyramid(build(config.grid, n=config.steps), nodes, config.planner.delay)
    found: Table = build(config.sampler, schedule, times)
    return found


def restore(saved: Checkpoint) -> tuple[TrajectoryPrior, PlanningConfig]:
    """The prior in a checkpoint, in evaluation mode, and its configuration.

    Raises:
        WorkbenchError: the checkpoint is not a planner's, or is damaged.
    """
    saved.require("planning")
    config = typed(PlanningConfig, saved.config)
    prior = assemble(config, MinMax.empty(2))
    fill(prior, saved.tensors("model"), saved.path)
    return prior.requires_grad_(False).eval(), config
