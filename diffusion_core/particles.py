"""Particles: weighted samples, whose weights make up for what the sampler does wrong.

Ancestral sampling with the score of ``pi_t = prod_k p_k,t^w_k`` does not arrive at ``pi_s``. By how much a path was
too likely is known, so a path gets a weight, and many of them under their weights are a sample of the product.

By density. A step from x_t to x_s multiplies the weight by

    pi_s(x_s) L(x_t | x_s) / (pi_t(x_t) K(x_s | x_t)),

K the kernel that drew x_s and L one back, any; that is exact for any number of steps. With W the sum of the exponents,

    K = N(a x_t + b sum_k w_k x0_hat_k / W, std^2 / W),        L = N(alpha_ts x_s, var_ts / W),

the ancestral and the forward kernel with noise as narrow as that of a product of W priors: where nothing is known of
the data yet they leave the product as it is, and no weight is spent there.

By path, without densities, K has the product's own x0_hat and all of its noise, and the weight's limit for small steps,

    d log w = (1 - W) d d(log alpha) + 1/2 (|eps|^2 - sum_k w_k |eps_k|^2) d(log_snr),

where eps_k is the noise that expert k sees in x_t, eps the one that the product sees, d the number of dimensions. (The
narrow noise would bring in the divergence of the score.) A factor ``exp(-cost)`` multiplies the weight by its own
ratio, and by what the pull of the cost changed in K. The error is of the order of the step, and unlike by density the
weights spread at high noise already, the more the further W is from 1.

Weights degenerate: after some steps most of the weight may lie on few paths. The effective sample size says so, and
resampling inside each group replaces light particles by copies of heavy ones, which a corrector then moves apart. One
that is not exact (`Ula`) leaves the samples better than it found them, but biases the normaliser.

Source: by path: Skreta et al. 2025, "Feynman-Kac Correctors" (arXiv 2503.02819), here in terms of eps and log-SNR; with
costs: Wu et al. 2023, "Twisted Diffusion Sampler" (arXiv 2306.17775); the weights of any K and L: Del Moral et al. 2006
(doi 10.1111/j.1467-9868.2006.00553.x). The narrow K and L are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion_core.correct import check_shares
from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Product
from diffusion_core.experts.batched import batched
from diffusion_core.experts.factors import log_density
from diffusion_core.experts.product import merged, strength_at
from diffusion_core.grid import Grid
from diffusion_core.noise import Noise
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import Corrector
from diffusion_core.solvers import ddpm

Method = Literal["systematic", "stratified", "multinomial"]
Proposal = Callable[[Tensor, int], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""``propose(x_t, i) -> (x0_hat, weigh)``, with ``weigh(x_s)`` (batch,) the logarithm of the step's weight."""


@dataclass(frozen=True)
class Resampling:
    """When particles are drawn anew.

    Args:
        threshold: share of K below which the effective sample size of a group must fall.
        below: only at times below this one: at high noise, weights are far from each other and mean little.
        method: systematic has the least variance; stratified and multinomial are what proofs are about.
    """

    threshold: float = 0.5
    below: float = 1.0
    method: Method = "systematic"


@dataclass(frozen=True)
class Particles:
    """Weighted samples, K for each of N groups: N independent problems.

    Args:
        x: (N K, ...) group after group.
        log_weights: each group's sum to 1.
        log_normalizer: estimate of ``log of the integral of prod_k p_k^w_k exp(-cost)`` in nats; its exponential is
            unbiased for weights by density.
        effective: effective sample size after each weighted step, before resampling, as a share of K.
        accepted: the corrector's acceptance at each of these steps, mean over a group; None without a corrector.
    """

    x: Tensor
    log_weights: Float64[Tensor, "N K"]
    log_normalizer: Float64[Tensor, " N"]
    effective: Float64[Tensor, "steps N"]
    accepted: Float[Tensor, "steps N"] | None = None

    def mean(self, values: Float[Tensor, "NK *d"]) -> Float[Tensor, "N *d"]:
        """Weighted mean of ``values``, one per particle, in each group."""
        grouped = values.reshape(*self.log_weights.shape, *values.shape[1:])
        weights = self.log_weights.exp().reshape(*self.log_weights.shape, *[1] * (values.ndim - 1))
        return (weights.to(values.dtype) * grouped).sum(1)

    def resampled(self, noise: Noise, method: Method = "systematic") -> Tensor:
        """(N K, ...) samples of equal weight."""
        n, k = self.log_weights.shape
        uniform = noise.uniform((n * k, 1), torch.float64, self.x.device).reshape(n, k)
        return self.x[_rows(offspring(self.log_weights.exp(), uniform, method))]


@torch.no_grad()
def sample_particles(
    denoiser: Denoiser,
    grid: Grid,
    x: Tensor,
    noise: Noise,
    cond: Any = None,
    groups: int = 1,
    weigh: Literal["path", "density"] = "path",
    variance: Literal["small", "large"] = "large",
    resampling: Resampling | None = Resampling(),
    corrector: Corrector | None = None,
) -> Particles:
    """Sample a product of experts by weighted ancestral sampling.

    A last step that reaches t = 0 draws nothing and so is not weighted: what is sampled is the product at the last
    time above 0, denoised. Put it where nothing happens any more (``grids.karras(..., end=0.002)``).

    Args:
        denoiser: of a Gaussian field; for ``weigh="path"`` a product with exponents that do not depend on time (a
            cost's may), and known values that denoisers are shown clean. A cost makes a step cost two calls of the
            experts, on x0_hat three.
        grid: falling times.
        x: (groups K, ...) from `experts.start`, whose density the first weights divide by.
        noise: source of fresh noise; with `noise.PerSample` a group does not depend on the others.
        cond: passed to the denoiser; batch axis as in ``x``.
        groups: independent problems N; the particles of one stand together.
        weigh: "density" needs log-densities, "path" does not; see the module.
        variance: std^2, as in `ddpm`: "small" is right for data that is a point and makes weights by density
            heavy-tailed; "large" for unit data, or any that is smooth at the scale sigma_t.
        resampling: None only weighs.
        corrector: moves the particles at the end of every step above t = 0, after resampling.

    Raises:
        WorkbenchError: the field, the exponents or the sizes do not allow it.
    """
    process = denoiser.process
    if not isinstance(process, Gaussian) or grid.ndim > 1:
        raise WorkbenchError(
            f"particles: got the process {process} and times of shape {tuple(grid.shape)}; expected a Gaussian field "
            "with one time for all samples."
        )
    if groups < 1 or x.shape[0] % groups:
        raise WorkbenchError(f"particles: got {x.shape[0]} for {groups} groups; expected a multiple of {groups} >= 1.")
    inside = grid[grid > 0.0]
    table = ddpm(process.schedule, grid, variance)
    kernel = _Kernel(*(values.tolist() for values in (table.x[:, 0], table.estimate[:, 0], table.noise)))
    match weigh:
        case "path":
            first, propose = _by_path(denoiser, process, inside, cond, kernel)
        case "density":
            kernel = kernel.cooled(_exponents(denoiser, grid[:-1]))
            first, propose = _by_density(denoiser, process, inside, cond, kernel)
        case _:
            raise WorkbenchError(f"particles: got weigh={weigh!r}; expected path or density.")
    correct = None if corrector is None or len(inside) < 2 else corrector.bind(denoiser, inside[1:], cond)

    shape = (groups, x.shape[0] // groups)
    log_weights = first(x).double().reshape(shape)
    log_normalizer = torch.zeros(groups, dtype=torch.float64, device=x.device)
    effective, accepted = [], []
    for i, reached in enumerate(grid[1:].tolist()):
        x0_hat, log_ratio = propose(x, i)
        x = kernel.mean(x, x0_hat, i)
        if reached == 0.0:
            break
        x = x.add(noise.normal(x.shape, x.dtype, x.device), alpha=kernel.std[i])
        log_weights = log_weights + log_ratio(x).reshape(shape)
        effective.append(effective_share(log_weights))
        if resampling is not None and reached < resampling.below:
            due = effective[-1] < resampling.threshold
            uniform = noise.uniform((x.shape[0], 1), torch.float64, x.device).reshape(shape)
            chosen = offspring(log_weights.softmax(1), uniform, resampling.method)
            # no branch: where nothing is due every particle is its own offspring
            own = torch.arange(shape[1], device=x.device).expand(shape)
            x = x[_rows(torch.where(due[:, None], chosen, own))]
            log_normalizer = log_normalizer + torch.where(due, _log_mean(log_weights), 0.0)
            log_weights = torch.where(due[:, None], 0.0, log_weights)
        if correct is not None:
            x, share = correct(x, i, noise)
            accepted.append(share.reshape(shape).mean(1))
    return Particles(
        x,
        log_weights.log_softmax(1),
        log_normalizer + _log_mean(log_weights),
        torch.stack(effective) if effective else log_weights.new_zeros(0, groups),
        torch.stack(accepted) if accepted else None,
    )


def effective_share(log_weights: Float64[Tensor, "N K"]) -> Float64[Tensor, " N"]:
    """``1 / (K sum w^2)`` for weights that sum to 1: between 1/K (one particle has all) and 1 (all the same)."""
    return torch.exp(-(2.0 * log_weights.log_softmax(1)).logsumexp(1)) / log_weights.shape[1]


def offspring(weights: Float64[Tensor, "N K"], uniform: Float64[Tensor, "N K"], method: Method) -> Int64[Tensor, "N K"]:
    """Which particle each of K new ones copies: particle k on average ``K w_k`` times.

    The places ``(j + u) / K`` are looked up in the cumulative weights: one u for all is systematic, one for each j
    stratified; u itself is multinomial. Systematic counts differ from ``K w_k`` by less than 1.

    Source: Douc & Cappé 2005 (arXiv cs/0507025).
    """
    k = weights.shape[1]
    strata = torch.arange(k, dtype=torch.float64, device=weights.device)
    match method:
        case "systematic":
            places = (strata + uniform[:, :1]) / k
        case "stratified":
            places = (strata + uniform) / k
        case "multinomial":
            places = uniform
        case _:
            raise WorkbenchError(f"resampling: got {method!r}; expected systematic, stratified or multinomial.")
    cumulative = weights.cumsum(1)
    # the last entry exactly 1: a place above it would be nobody's
    return torch.searchsorted(cumulative / cumulative[:, -1:], places.contiguous(), right=True).clamp_(max=k - 1)


First = Callable[[Tensor], Tensor]
"""``first(x)`` (batch,): the logarithm of the weight that a start has before any step."""


def _by_density(
    denoiser: Denoiser, process: Gaussian, times: Float64[Tensor, " n"], cond: Any, kernel: _Kernel
) -> tuple[First, Proposal]:
    of_x, evaluate = log_density(denoiser, times, cond), denoiser.bind(times, cond)
    exponents = _exponents(denoiser, times)
    alpha_ts, variance_ts = process.forward(times[:-1], times[1:])
    spread = [math.sqrt(v / w) for v, w in zip(variance_ts.tolist(), exponents[:-1], strict=True)]
    shrink, alphas = alpha_ts.tolist(), process.schedule.alpha(times).tolist()
    width = float(process.schedule.sigma(times[0])) / math.sqrt(exponents[0])

    def first(x: Tensor) -> Tensor:
        return of_x(x, 0) - _log_normal(x, width)

    def propose(x: Tensor, i: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        x0_hat, w = evaluate(x, i), exponents[i]
        if w != 1.0:
            # the score divided by w, which for a product is the mean of the experts' estimates
            x0_hat = (x0_hat / w).add_(x, alpha=(1.0 - 1.0 / w) / alphas[i])

        def weigh(x_s: Tensor) -> Tensor:
            forth = _log_normal(x.sub(x_s, alpha=shrink[i]), spread[i])
            return of_x(x_s, i + 1) - of_x(x, i) + forth - kernel.log_density(x_s, x, x0_hat, i)

        return x0_hat, weigh

    return first, propose


def _by_path(
    denoiser: Denoiser, process: Gaussian, times: Float64[Tensor, " n"], cond: Any, kernel: _Kernel
) -> tuple[First, Proposal]:
    product = denoiser if isinstance(denoiser, Product) else denoiser**1.0
    if any(callable(exponent) for _, exponent in product.denoisers) or any(k.mode != "clean" for k in product.known):
        raise WorkbenchError(
            "particles by path: got an exponent that depends on time, or known values that the denoisers are shown "
            "renoised; expected a product of denoisers with constant exponents, costs, and known values that are shown "
            'clean (Known(..., mode="clean")); or weigh="density" with denoisers that have one.'
        )
    check_shares(product)
    log_snr = process.schedule.log_snr(times)
    if not bool(torch.isfinite(log_snr).all()):
        raise WorkbenchError(
            f"particles by path: at t={float(times[0]):.6g} the schedule {process.schedule} leaves no signal; expected "
            "a grid that starts a little below (for example at 0.99)."
        )
    leaves, weights = merged(product.denoisers, times, cond)
    evaluate_all, combined = batched(leaves, times), process.combine(weights, times)
    tilted = product.bind(times, cond) if product.energies else None

    def shown(x: Tensor) -> Tensor:
        for factor in product.known:
            x = factor.apply(x)
        return x

    def squared(x: Tensor) -> Tensor:
        # what is known is no variable, and has no weight
        for factor in product.known:
            x = torch.where(factor.mask, 0.0, x)
        return x.flatten(1).square().sum(1)

    potential = _potential(product, times, lambda x, i: shown(combined(x, evaluate_all(shown(x), i), i)))
    each, total = weights[0].tolist(), _exponents(product, times)[0]
    alpha, sigma = process.schedule.alpha(times), process.schedule.sigma(times)
    d_log_alpha, d_log_snr = alpha.log().diff().tolist(), log_snr.diff().tolist()
    alphas, sigmas = alpha.tolist(), sigma.tolist()

    def first(x: Tensor) -> Tensor:
        # where nothing is left of the data every expert is N(0, sigma^2), and their product known in closed form
        d = squared(torch.ones_like(x))
        constant = 0.5 * d * ((1.0 - total) * math.log(2.0 * math.pi * sigmas[0] ** 2) - math.log(total))
        return potential(x, 0) + constant

    def propose(x: Tensor, i: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        estimates = list(evaluate_all(shown(x), i))
        together = shown(combined(x, estimates, i))
        x0_hat = together if tilted is None else tilted(x, i)

        def squared_eps(estimate: Tensor) -> Tensor:
            return squared(x.sub(estimate, alpha=alphas[i]).div_(sigmas[i]))

        def weigh(x_s: Tensor) -> Tensor:
            excess = squared_eps(together)
            for w, estimate in zip(each, estimates, strict=True):
                excess = excess - w * squared_eps(estimate)
            d = squared(torch.ones_like(x))
            log_weight = 0.5 * d_log_snr[i] * excess + (1.0 - total) * d_log_alpha[i] * d
            if tilted is not None:
                log_weight = log_weight + potential(x_s, i + 1) - potential(x, i)
                # what is known is at the same place in both
                log_weight = (
                    log_weight + kernel.log_density(x_s, x, together, i) - kernel.log_density(x_s, x, x0_hat, i)
                )
            return log_weight

        return x0_hat, weigh

    return first, propose


class _Kernel(NamedTuple):
    """``K(x_s | x_t) = N(a x_t + b x0_hat, std^2)`` at each step."""

    a: list[float]
    b: list[float]
    std: list[float]

    def cooled(self, exponents: list[float]) -> _Kernel:
        """Its noise as that of ``N(0, sigma^2)`` to the given powers."""
        return self._replace(std=[std / math.sqrt(w) for std, w in zip(self.std, exponents, strict=True)])

    def mean(self, x_t: Tensor, x0_hat: Tensor, i: int) -> Tensor:
        return (x_t * self.a[i]).add_(x0_hat, alpha=self.b[i])

    def log_density(self, x_s: Tensor, x_t: Tensor, x0_hat: Tensor, i: int) -> Tensor:
        return _log_normal(x_s - self.mean(x_t, x0_hat, i), self.std[i])


def _potential(product: Product, times: Float64[Tensor, " n"], evaluate: Evaluate) -> Callable[[Tensor, int], Tensor]:
    """``-sum_j w_j cost_j`` at the i-th time; ``evaluate`` gives the x0_hat of the product without its costs."""
    costs = [(energy, strength_at(strength, times).tolist()) for energy, strength in product.energies]
    of_data = any(energy.on == "x0_hat" for energy, _ in costs)

    def potential(x: Tensor, i: int) -> Tensor:
        total = x.new_zeros(x.shape[0])
        x0_hat = evaluate(x, i) if of_data else x
        for energy, w in costs:
            total = total - w[i] * (energy.cost(x, times[i]) if energy.on == "x_t" else energy.cost(x0_hat))
        return total

    return potential


def _exponents(denoiser: Denoiser, times: Float64[Tensor, " n"]) -> list[float]:
    """The sum of a product's exponents at each time.

    Raises:
        WorkbenchError: it is not positive.
    """
    factors = denoiser.denoisers if isinstance(denoiser, Product) else ((denoiser, 1.0),)
    exponents = torch.stack([strength_at(strength, times) for _, strength in factors]).sum(0).tolist()
    if min(exponents) <= 0.0:
        raise WorkbenchError(
            f"particles: got exponents that sum to {min(exponents):.4g}; expected more than 0 at every time."
        )
    return exponents


def _log_normal(x: Tensor, std: float) -> Tensor:
    """``log N(x; 0, std^2)`` of each sample."""
    x = x.flatten(1)
    return -0.5 * (x / std).square().sum(1) - x.shape[1] * (math.log(std) + 0.5 * math.log(2.0 * math.pi))


def _log_mean(log_weights: Float64[Tensor, "N K"]) -> Float64[Tensor, " N"]:
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def _rows(chosen: Int64[Tensor, "N K"]) -> Int64[Tensor, " NK"]:
    """Places in the batch of the chosen particles of each group."""
    n, k = chosen.shape
    return (chosen + k * torch.arange(n, device=chosen.device)[:, None]).flatten()
