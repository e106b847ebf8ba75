"""How the next chunk is drawn when part of the last one will be executed before it arrives.

Every way is a function of one signature, so that runtimes, experiments and robots need not know which it is. What a
chunk should agree with comes as `Plans`, row by row beside the new chunk; what it agrees with, and how well, is an
expert in the algebra of ``diffusion_core.experts`` multiplied onto the policy's denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffusion_core.configure import build
from diffusion_core.configure import table as table_of
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Known
from diffusion_core.guidance import Inflated, measurement
from diffusion_core.inverse import Measured
from diffusion_core.noise import Noise, PerSample
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import sample
from diffusion_core.schedule import Schedule, Times
from diffusion_core.solvers import Table
from envs.rollout import Observation, stack
from policy.config import PolicyConfig
from policy.model import Observations, Policy
from policy.runtime.chunks import Choose, newest
from policy.runtime.execution import Plans


@dataclass(frozen=True, eq=False)
class Overlap:
    """The plans of a batch of robots beside the chunk to be drawn; see `Plans`.

    Args:
        x: planned actions as the head sees them, normalised for the present observations.
        known, frozen: where there are any, and where they will be executed whatever is drawn.
    """

    x: Float[Tensor, "batch horizon action"]
    known: Bool[Tensor, "batch horizon"]
    frozen: Bool[Tensor, "batch horizon"]

    @classmethod
    def of(cls, policy: Policy, obs: Observations, plans: Sequence[Plans]) -> Overlap:
        """That of robots which all know something of the chunk to come."""
        like = policy.action_normalizer.low
        known, frozen = (torch.as_tensor(np.stack([p[i] for p in plans]), device=like.device) for i in (1, 2))
        x = policy.normalized(torch.as_tensor(np.stack([p.actions for p in plans])).to(like), obs)
        return cls(torch.where(known[..., None], x, 0.0), known, frozen)


Draw = Callable[[Policy, Table | None, Observations, Overlap, Noise], Tensor]
"""``draw(policy, table, obs, overlap, noise)`` -> (batch, horizon, action) in the environment's units."""


def independent(
    policy: Policy, table: Table | None, obs: Observations, overlap: Overlap, noise: Noise
) -> Float[Tensor, "batch horizon action"]:
    """Draw the chunk as if there were no other."""
    return policy.plan(obs, table, noise)


def inpainting(
    policy: Policy, table: Table | None, obs: Observations, overlap: Overlap, noise: Noise
) -> Float[Tensor, "batch horizon action"]:
    """Pin what will have been executed: at every denoising step the estimate there is put in its place.

    The other rows see it only as far as the network makes them agree, which is what real-time chunking improves on.

    Source: Song et al. 2021, appendix I.2 (arXiv 2011.13456); for chunks: Black et al. 2025, section 3 (arXiv
    2506.07339).
    """
    pinned = policy.denoiser * Known(overlap.frozen[..., None], overlap.x)
    return _drawn(policy, pinned, required(table), obs, noise)


@dataclass(frozen=True)
class Bounded:
    """``min(strength, bound alpha_t / sigma_t)``: no more than real-time chunking's largest guidance weight.

    The weight of a velocity's guidance is ``strength sigma / alpha`` for a rectified flow, where ``alpha = 1 - t`` and
    ``sigma = t``; the bound is put on that ratio for every schedule. At a time without signal it is 0.
    """

    strength: Inflated
    schedule: Schedule
    bound: float

    def __call__(self, t: Times) -> Times:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        # at t = 0 there is no noise, and no bound
        most = torch.where(sigma > 0.0, self.bound * alpha / sigma, torch.inf)
        return torch.minimum(self.strength(t), most)


@dataclass(frozen=True)
class RealTimeChunking:
    """Guide the chunk towards all that is planned, the more the sooner it will be executed.

    The plans ``y`` are a measurement of x0 with weights w per row, whose score is, with pseudo-inverse guidance,

        J^T [w (y - x0_hat)] / r_t^2,   r_t^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2),   J = d x0_hat / d x_t,

    a vector-Jacobian product of the denoiser. Rows that will have been executed have w = 1, those beyond the plans 0,
    and in between it falls as ``c (e^c - 1) / (e - 1)`` with c falling linearly from 1 to 0.

    Args:
        bound: largest guidance weight, beta; stronger guidance needs more denoising steps.
        soft: False: rows in between have w = 0.

    Source: Black et al. 2025, eq. 2 to 5 (arXiv 2506.07339), for flows; for any Gaussian process with the guidance of
    Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems".
    """

    bound: float = 5.0
    soft: bool = True

    def __post_init__(self) -> None:
        if not self.bound > 0.0:
            raise WorkbenchError(f"real-time chunking: got bound={self.bound}; expected a number > 0.")

    def __call__(
        self, policy: Policy, table: Table | None, obs: Observations, overlap: Overlap, noise: Noise
    ) -> Float[Tensor, "batch horizon action"]:
        weights = prefix_weights(overlap.known, overlap.frozen) if self.soft else overlap.frozen.to(overlap.x.dtype)
        root = weights.to(overlap.x.dtype).sqrt()[..., None]
        schedule = policy.denoiser.schedule
        strength = Bounded(Inflated(schedule, 0.0), schedule, self.bound)
        guided = policy.denoiser * measurement(lambda x0_hat: root * x0_hat, root * overlap.x, strength)
        return _drawn(policy, guided, required(table), obs, noise)


@dataclass(frozen=True)
class Conditioned:
    """Real-time chunking with the policy's own covariance: the plans are a measurement of noise ``std / sqrt(w)``.

    Pseudo-inverse guidance assumes that a chunk could still be anything, and so moves a policy that is sure of itself
    less than it could. Here the strength follows from how sure it is; see `diffusion_core.inverse.Measured`. The joins
    are smoother, but a policy that holds on to its plans corrects itself later: on Push-T at 4 steps of latency it
    solves fewer than `RealTimeChunking` does (``benchmarks/results/policy/realtime.json``).

    Args:
        std: how exactly frozen rows are met, in normalised units.
        iterations: of the conjugate gradients, a vector-Jacobian product each. A network's Jacobian is not quite
            symmetric, and with a few of them its defects take over (measured on Push-T: 1 is best).
        soft: False: rows in between have w = 0.

    Source: ours; weights as in Black et al. 2025, eq. 5 (arXiv 2506.07339), posterior as in Rozet et al. 2024 (arXiv
    2405.13712).
    """

    std: float = 0.05
    iterations: int = 1
    soft: bool = True

    def __call__(
        self, policy: Policy, table: Table | None, obs: Observations, overlap: Overlap, noise: Noise
    ) -> Float[Tensor, "batch horizon action"]:
        weights = prefix_weights(overlap.known, overlap.frozen) if self.soft else overlap.frozen.to(overlap.x.dtype)
        root = weights.to(overlap.x.dtype).sqrt()[..., None]

        def operator(x0: Tensor) -> Tensor:
            return (root * x0).flatten(1)

        measured = Measured(policy.denoiser, operator, operator(overlap.x), self.std, self.iterations)
        return _drawn(policy, measured, required(table), obs, noise)


def prefix_weights(
    known: Bool[Tensor, "batch horizon"], frozen: Bool[Tensor, "batch horizon"]
) -> Float[Tensor, "batch horizon"]:
    """``w = 1`` where frozen, ``c (e^c - 1) / (e - 1)`` in between, 0 where nothing is known.

    With d the number of rows up to the last frozen one and L up to the last known one, row i in between has
    ``c = (L - i) / (L - d + 1)``.

    Source: Black et al. 2025, eq. 5 (arXiv 2506.07339), where L = H - s.
    """
    index = torch.arange(known.shape[1], device=known.device, dtype=torch.float64)
    d, length = (torch.where(m, index + 1.0, 0.0).amax(1, keepdim=True) for m in (frozen, known))
    c = ((length - index) / (length - d + 1.0)).clamp(0.0, 1.0)
    soft = c * torch.expm1(c) / (torch.e - 1.0)
    return torch.where(frozen, 1.0, torch.where(known, soft, 0.0)).float()


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Begin with the plans, noised to a time in the middle, instead of with noise: fewer denoising steps.

        x_t = alpha_t y + sigma_t eps

    Rows beyond the plans begin from the last planned action, held.

    Args:
        table: of the policy's solver on the last part of its grid; see `from_middle`.

    Source: the truncated start of Meng et al. 2022, SDEdit (arXiv 2108.01073), on chunks.
    """

    table: Table

    def __call__(
        self, policy: Policy, table: Table | None, obs: Observations, overlap: Overlap, noise: Noise
    ) -> Float[Tensor, "batch horizon action"]:
        index = torch.arange(overlap.x.shape[1], device=overlap.x.device)
        last = torch.where(overlap.known, index, -1).amax(1)
        held = overlap.x.take_along_dim(torch.minimum(index, last[:, None])[..., None], 1)
        z = noise.normal(held.shape, held.dtype, held.device)
        x = Gaussian(policy.denoiser.schedule).corrupt(held, self.table.times[0].expand(len(held)), z)
        found = sample(policy.denoiser, self.table, x, policy.condition(obs), noise)
        return policy.actions(found, obs)


@dataclass(frozen=True)
class Join:
    """A strategy at the joins of chunks.

    Args:
        draw: how the next chunk is drawn.
        choose: which of several chunks is obeyed.
        every: control steps between inferences; 0: the policy's n_action_steps.
    """

    draw: Draw = independent
    choose: Choose = newest
    every: int = 0


def infer(
    join: Join,
    policy: Policy,
    table: Table | None,
    windows: Sequence[Observation],
    plans: Sequence[Plans],
    streams: Sequence[torch.Generator],
) -> list[Float[np.ndarray, "horizon action"]]:
    """The next chunk of every robot, in two batches: those with plans, and those that have none to join.

    Args:
        windows: of each robot (n_obs_steps, ...).
        streams: of noise, one a robot.
    """
    found: dict[int, np.ndarray] = {}
    joining = [i for i, own in enumerate(plans) if own.known.any()]
    alone = [i for i, own in enumerate(plans) if not own.known.any()]
    for members, draw in ((joining, join.draw), (alone, independent)):
        if not members:
            continue
        obs = policy.seen(stack([windows[i] for i in members]))
        noise = PerSample([streams[i] for i in members])
        if draw is independent:
            chunks = policy.plan(obs, table, noise)
        else:
            chunks = draw(policy, table, obs, Overlap.of(policy, obs, [plans[i] for i in members]), noise)
        found |= dict(zip(members, chunks.to("cpu", torch.float32).numpy(), strict=True))
    return [found[i] for i in range(len(windows))]


def from_middle(config: PolicyConfig, policy: Policy, t: float) -> Table:
    """The table of a policy's sampler on the part of its grid from ``t`` on: for `WarmStart`.

    A new table on the shorter grid and not the last rows of the whole one, whose multistep rows look back beyond it.

    Raises:
        WorkbenchError: nothing of the grid is left.
    """
    schedule = policy.denoiser.schedule
    whole = table_of(config.sampler, config.grid, config.steps, schedule)
    times = torch.cat([whole.times[:1], whole.reached[whole.ends_step]])
    grid = times[times <= t]
    if len(grid) < 2:
        raise WorkbenchError(
            f"warm start: got t={t}, and no step of the grid from {float(times[0]):.4g} to {float(times[-1]):.4g} lies "
            "below it; expected a larger t, or more steps."
        )
    return build(config.sampler, schedule, grid)


def required(table: Table | None) -> Table:
    """The table of a policy that denoises.

    Raises:
        WorkbenchError: there is none.
    """
    if table is None:
        raise WorkbenchError(
            "join: got a policy that does not denoise; expected head=diffusion or flow, or draw=independent."
        )
    return table


def _drawn(policy: Policy, denoiser: object, table: Table, obs: Observations, noise: Noise) -> Tensor:
    x = sample(denoiser, table, policy.start(obs, table, noise), policy.condition(obs), noise)  # type: ignore[arg-type]
    return policy.actions(x, obs)
