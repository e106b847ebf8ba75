"""Bounds on the likelihood of a categorical process, term by term, in nats per sample.

    -log p(x0) <= KL(q(x_1 | x0) || p(x_1)) + sum_i E KL(q(x_s | x_t, x0) || p(x_s | x_t))      over the steps t -> s

The reconstruction term is the last step: at s = 0 the posterior is a point on x0 and the divergence is
``-log p(x0 | x_t)``. With infinitely many steps the sum becomes the integral of `rate_kl`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.denoise.classifier import Classifier
from diffusion_core.grid import Grid
from diffusion_core.loss import Draws, uniform_times
from diffusion_core.process import Source
from diffusion_core.process.categorical.kernel import one_hot
from diffusion_core.process.categorical.process import Categorical
from diffusion_core.process.categorical.redraw import Absorbing
from diffusion_core.process.categorical.reverse import excess, log_x0
from diffusion_core.schedule import Times

Nats = Float64[Tensor, " batch"]


def cross_entropy(process: Categorical, logits: Float[Tensor, "*x k"], x0: Tensor, x_t: Tensor, t: Times) -> Nats:
    """``-log p(x0 | x_t)``, summed over entries; 0 where ``x_t`` leaves no choice.

    Args:
        logits: (batch, ..., K) estimate at ``x_t``.
        x0, x_t: (batch, ...) clean and noised indices.
        t: (batch,), or a 0-dim tensor.
    """
    log_p = log_x0(process.kernel(t, torch.zeros_like(t)).column(x_t), logits)
    return _sum(-log_p.gather(-1, x0[..., None])[..., 0])


def prior_kl(process: Categorical, x0: Int64[Tensor, "batch ..."], t: float = 1.0) -> Nats:
    """``KL(q(x_t | x0) || p(x_t))``, D3PM's L_T: what the noise at the start still knows of the data.

    Source: Austin et al. 2021, eq. 1 (arXiv 2107.03006).
    """
    u = torch.tensor(t, dtype=torch.float64, device=x0.device)
    from_data = process.kernel(u, torch.zeros_like(u))
    q = from_data.push(one_hot(x0, process.states))
    return _sum(_kl(q, process.prior_probabilities(t).to(x0.device).expand_as(q)))


def step_kl(process: Categorical, logits: Float[Tensor, "*x k"], x0: Tensor, x_t: Tensor, t: Times, s: Times) -> Nats:
    """``KL(q(x_s | x_t, x0) || p(x_s | x_t))``, D3PM's L_{t-1}, and its L_0 when ``s`` is 0.

    Source: Austin et al. 2021, eq. 1 (arXiv 2107.03006).
    """
    reverse = process.reverse(t, s)
    q = reverse.probabilities(one_hot(x0, process.classes).log(), x_t)
    return _sum(_kl(q, reverse.probabilities(logits, x_t)))


def rate_kl(process: Categorical, logits: Float[Tensor, "*x k"], x0: Tensor, x_t: Tensor, t: Times) -> Nats:
    """The limit of ``step_kl / (t - s)``: a divergence of jump rates, per unit of time, for t in (0, 1).

    With reverse rates ``r(y) = R_t(y -> x_t) sum_x0 p(x0 | x_t) q_t(y | x0) / q_t(x_t | x0)``, of the estimate and of
    the data (``r_q``, where p is a point on x0)::

        sum_{y != x_t}  r(y) - r_q(y) + r_q(y) log(r_q(y) / r(y))

    Source: Campbell et al. 2022 (arXiv 2205.14987), with the reverse rates of the data put in.
    """
    from_data = process.kernel(t, torch.zeros_like(t))
    likelihood, forward_rates = from_data.column(x_t), process.rates(x_t, t)

    def reverse_rates(estimate: Tensor) -> Tensor:
        return forward_rates * from_data.push(excess(likelihood, estimate))

    r, r_q = reverse_rates(logits), reverse_rates(one_hot(x0, process.classes).log())
    return _sum((r - r_q).sum(-1) + _kl(r_q, r))


def masked_weight(process: Absorbing, t: Times) -> Times:
    """``-alpha_t' / (1 - alpha_t)``: `rate_kl` of absorbing states is this times the cross-entropy.

    Source: Sahoo et al. 2024 (MDLM, arXiv 2406.07524); Shi et al. 2024 (MD4, arXiv 2406.04329).
    """
    return -process.schedule.d_alpha(t) / (1.0 - process.schedule.alpha(t))


def continuous_loss(
    denoiser: Classifier,
    x0: Int64[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    times: Callable[[Draws, int], Float64[Tensor, " batch"]] = uniform_times,
) -> Nats:
    """An unbiased estimate of the bound in continuous time, less its prior term: one time per sample.

    Args:
        denoiser: network and process, one in continuous time.
        x0: clean indices.
        cond: passed to the network.
        draws: random numbers of this step.
        times: how training times are drawn; uniform, or the estimate is of something else.

    Returns:
        (batch,) nats per sample.
    """
    process = denoiser.process
    # t = 0 is drawn once in 2^53, but there nothing is noised and the weight is infinite
    t = 1.0 - times(draws, x0.shape[0]).clamp(max=1.0 - 1e-9)
    x_t = process.corrupt(x0, t, process.noise(x0, draws))
    logits = denoiser(x_t, t, cond)
    if isinstance(process, Absorbing):
        # the same number without 0 * inf at t = 1, where the hazard of a jump is infinite
        return masked_weight(process, t) * cross_entropy(process, logits, x0, x_t, t)
    return rate_kl(process, logits, x0, x_t, t.clamp(max=1.0 - 1e-9))


def hybrid_loss(
    denoiser: Classifier, x0: Int64[Tensor, "batch ..."], cond: Any, draws: Draws, n: int, ce_weight: float = 0.001
) -> Nats:
    """``n KL(q(x_s | x_t, x0) || p(x_s | x_t)) + ce_weight cross_entropy`` at one of n equal steps per sample.

    With ``ce_weight = 0`` an unbiased estimate of the bound with n steps, less its prior term.

    Source: Austin et al. 2021, eq. 5 (arXiv 2107.03006); there the first term is averaged over steps, not summed.
    """
    process = denoiser.process
    t = uniform_times(draws, x0.shape[0], n_train=n)
    x_t = process.corrupt(x0, t, process.noise(x0, draws))
    logits = denoiser(x_t, t, cond)
    # (i - 1) / n and not t - 1 / n, which would miss 0 by a rounding error
    s = ((t * n).round() - 1.0) / n
    bound = n * step_kl(process, logits, x0, x_t, t, s)
    return bound if ce_weight == 0.0 else bound + ce_weight * cross_entropy(process, logits, x0, x_t, t)


@dataclass(frozen=True)
class Bound:
    """A bound on ``-log p(x0)`` in nats per sample, by its terms.

    Args:
        prior: (batch,).
        steps: (n, batch), in the order of the grid; the last one is the reconstruction.
    """

    prior: Float64[Tensor, " batch"]
    steps: Float64[Tensor, "n batch"]

    @property
    def nats(self) -> Nats:
        return self.prior + self.steps.sum(0)

    def bits_per_dim(self, entries: int) -> Nats:
        """In bits per entry of x0."""
        return self.nats / (entries * math.log(2.0))


@torch.no_grad()
def bound(denoiser: Denoiser, x0: Int64[Tensor, "batch ..."], grid: Grid, source: Source, cond: Any = None) -> Bound:
    """The bound of ancestral sampling on ``grid``, with one draw of ``x_t`` per step and sample: an unbiased estimate.

    Args:
        denoiser: of a categorical process.
        x0: clean indices.
        grid: falling times; it ends at 0.
        source: base noise, such as `noise.On`.
        cond: passed to the denoiser.
    """
    process: Categorical = denoiser.process  # type: ignore[assignment]
    evaluate = denoiser.bind(grid[:-1], cond)
    steps = []
    for i, (t, s) in enumerate(zip(grid[:-1].to(x0.device), grid[1:].to(x0.device), strict=True)):
        x_t = process.corrupt(x0, t, process.noise(x0, source))
        steps.append(step_kl(process, evaluate(x_t, i), x0, x_t, t, s))
    return Bound(prior_kl(process, x0, float(grid[0])), torch.stack(steps))


def _kl(q: Tensor, p: Tensor) -> Tensor:
    """``sum q log(q / p)`` over the last axis, with ``0 log 0 = 0`` and gradients that stay finite there."""
    positive = q > 0.0
    return torch.where(positive, q * (q.where(positive, 1.0).log() - p.where(positive, 1.0).log()), 0.0).sum(-1)


def _sum(per_entry: Tensor) -> Tensor:
    return per_entry.flatten(1).sum(1)
