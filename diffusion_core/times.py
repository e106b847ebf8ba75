"""Training times: at which noise levels a model learns.

Each law is a function ``times(draws, batch) -> (batch,)`` once its other arguments are bound: the quantile function
of a distribution, applied to uniform numbers. Stratified, they are one in each equal slice of [0, 1], over
the whole batch of all processes, which lowers the variance of the mean loss and leaves the mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Schedule

TrainingTimes = Callable[[Draws, int], Float64[Tensor, "batch *tokens"]]
"""``times(draws, batch)``: float64 in [0, 1], on the device of the draws; of each sample, or of each of its tokens."""


def levels(draws: Draws, batch: int, stratified: bool = False) -> Float64[Tensor, " batch"]:
    """Uniform numbers in [0, 1); stratified: ``(i + u_i) / n`` for sample i of the n of all processes."""
    u = draws.uniform((batch,))
    if not stratified:
        return u
    # the law of Draws: row j of this process is row rank + j world of the whole batch
    i = draws.rank + draws.world * torch.arange(batch, dtype=torch.float64, device=u.device)
    return (i + u) / (batch * draws.world)


def uniform_times(
    draws: Draws,
    batch: int,
    t_min: float = 0.0,
    t_max: float = 1.0,
    n_train: int | None = None,
    stratified: bool = False,
) -> Float64[Tensor, " batch"]:
    """Training times: uniform in [t_min, t_max], or on the ``n_train`` steps of a discrete-time model.

    Stratified: Kingma et al. 2021, appendix I (arXiv 2107.00630), who shift all samples by one number; ours are drawn
    one by one.
    """
    u = levels(draws, batch, stratified)
    if n_train is None:
        return t_min + (t_max - t_min) * u
    return ((u * n_train).floor() + 1.0) / n_train


def token_times(draws: Draws, batch: int, tokens: int, share: float = 1.0) -> Float64[Tensor, "batch tokens"]:
    """A level of its own for every token in a share of the samples, one for all tokens in the others; all uniform.

    Source: Chen et al. 2024, "Diffusion forcing", algorithm 1 (arXiv 2407.01392); the share is ours.
    """
    u = draws.uniform((batch, tokens + 1))
    own = draws.uniform((batch, 1)) < share
    return torch.where(own, u[:, 1:], u[:, :1])


def logit_normal_times(
    draws: Draws, batch: int, mean: float = 0.0, std: float = 1.0, stratified: bool = False
) -> Float64[Tensor, " batch"]:
    """``t = sigmoid(z)``, ``z ~ N(mean, std^2)``: most often in the middle. Meant for `schedule.RectifiedFlow`.

    Source: Esser et al. 2024, section 3.1 (arXiv 2403.03206).
    """
    return torch.sigmoid(mean + std * torch.special.ndtri(levels(draws, batch, stratified)))


def log_normal_times(
    draws: Draws, batch: int, schedule: Schedule, mean: float = -1.2, std: float = 1.2, stratified: bool = False
) -> Float64[Tensor, " batch"]:
    """``log(sigma / alpha) ~ N(mean, std^2)``, clipped to what the schedule reaches.

    Args:
        draws, batch: see `TrainingTimes`.
        schedule: its noise levels in units of the data.
        mean, std: EDM's P_mean and P_std, for data of width 1/2.
        stratified: see `levels`.

    Source: Karras et al. 2022, table 1, "Noise distribution" (arXiv 2206.00364).
    """
    z = torch.special.ndtri(levels(draws, batch, stratified))
    return _of_log_snr(schedule, -2.0 * (mean + std * z))


def times_as_under(
    draws: Draws, batch: int, schedule: Schedule, law: Schedule, stratified: bool = False
) -> Float64[Tensor, " batch"]:
    """Times of ``schedule`` whose log-SNR is distributed as that of uniform times under ``law``.

    With ``law = schedule.Laplace(mean, scale)`` the log-SNR is Laplace distributed. Clipped to what ``schedule``
    reaches.

    Source: the equivalence of noise schedules and distributions of log-SNR: Kingma & Gao 2023 (arXiv 2303.00848).
    """
    return _of_log_snr(schedule, law.log_snr(levels(draws, batch, stratified)))


@torch.no_grad()
def _of_log_snr(schedule: Schedule, log_snr: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
    first, last = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64, device=log_snr.device))
    return schedule.t_of_log_snr(torch.minimum(torch.maximum(log_snr, last), first)).clamp(0.0, 1.0)


class Importance(nn.Module):
    """Times drawn more often where the loss has been large, and the weights that make up for it.

        p_bin ~ sqrt(mean of the last `history` squared losses there),    weight = 1 / (bins p_bin)

    Uniform until every bin has its history, and afterwards by a share of ``floor``, so that no weight exceeds
    ``1 / floor``. The history is part of the state, hence of a checkpoint.

    Args:
        bins: equal parts of [0, 1]; the steps themselves where the model has ``n_train`` of them.
        history: losses remembered for each bin.
        floor: share of uniform times.
        n_train: steps of a discrete-time model; None: continuous times.

    Source: Nichol & Dhariwal 2021, section 3.3 (arXiv 2102.09672).
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, bins: int = 100, history: int = 10, floor: float = 0.001, n_train: int | None = None) -> None:
        super().__init__()
        bins = n_train or bins
        if bins < 1 or history < 1 or not 0.0 < floor <= 1.0:
            raise WorkbenchError(
                f"Importance: got bins={bins}, history={history}, floor={floor}; expected bins >= 1, history >= 1 and "
                "0 < floor <= 1."
            )
        self.floor, self.n_train = floor, n_train
        self.register_buffer("losses", torch.zeros(bins, history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.long))

    def probabilities(self) -> Float64[Tensor, " bins"]:
        """Of drawing each bin."""
        bins, history = self.losses.shape
        root = self.losses.double().square().mean(1).sqrt()
        total = root.sum()
        uniform = torch.full_like(root, 1.0 / bins)
        learned = (1.0 - self.floor) * root / total.clamp(min=1e-300) + self.floor * uniform
        warm = (self.seen >= history).all() & (total > 0.0)
        return torch.where(warm, learned, uniform)

    def forward(
        self, draws: Draws, batch: int, stratified: bool = False
    ) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
        """Times (batch,) and the weights (batch,) of the losses there."""
        p = self.probabilities()
        bins = len(p)
        # the quantile function: linear inside each bin, so that the rest of u is uniform there
        u = levels(draws, batch, stratified).to(p.device)
        ends = p.cumsum(0)
        k = torch.searchsorted(ends, u, right=True).clamp(max=bins - 1)
        within = ((u - (ends - p)[k]) / p[k]).clamp(0.0, 1.0)
        t = (k.double() + 1.0) / bins if self.n_train else ((k + within) / bins).clamp(max=1.0)
        return t, 1.0 / (bins * p[k])

    @torch.no_grad()
    def record(self, t: Float64[Tensor, " batch"], loss: Float[Tensor, " batch"]) -> None:
        """Remember the unweighted losses (batch,) at times ``t``; those of all processes, where there are several."""
        values = torch.stack([t, loss.to(t)])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, values)
            # in the order of the whole batch, as one process would see it
            values = torch.stack(parts, 2).flatten(1)
        bins, history = self.losses.shape
        position = values[0].to(self.losses.device) * bins
        k = position.round().long() - 1 if self.n_train else position.long()
        k = k.clamp(0, bins - 1)
        # ring buffers without reading a value on the host: a loss whose place a later one of this batch takes is
        # written to a row that is thrown away
        here = nn.functional.one_hot(k, bins)
        before = (here.cumsum(0) - 1).gather(1, k[:, None])[:, 0]
        count = here.sum(0)
        place = k * history + (self.seen[k] + before) % history
        place = torch.where(before >= count[k] - history, place, bins * history)
        whole = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])
        whole[place] = values[1].to(whole)
        self.losses.copy_(whole[:-1].reshape(bins, history))
        self.seen.add_(count)
