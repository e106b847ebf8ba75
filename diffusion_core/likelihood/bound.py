"""The variational bound on ``-log p(x0)``: term by term, in continuous time, and as a training loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.likelihood.decode import Decoder, normal, normal_kl, total
from diffusion_core.loss import Draws
from diffusion_core.noise import On, Shared
from diffusion_core.ode import check_span, schedule_of
from diffusion_core.predict import align, to_x0
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule, Times
from diffusion_core.solvers.table import Learned, falling_pairs


def interpolated_log_variance(fraction: Tensor, log_small: Tensor, log_large: Tensor) -> Tensor:
    """``fraction log_large + (1 - fraction) log_small``; the fraction is free, not clamped to [0, 1].

    Source: Nichol & Dhariwal 2021, eq. 15 (arXiv 2102.09672).
    """
    return fraction * log_large + (1.0 - fraction) * log_small


def prior_kl(schedule: Schedule, x0: Float[Tensor, "batch ..."], t: float = 1.0) -> Float[Tensor, " batch"]:
    """``L_T = KL(q(x_t | x0) || N(0, sigma_t^2))``: the price of starting from `Gaussian.prior`.

    The variances are equal, so it is ``alpha_t^2 |x0|^2 / (2 sigma_t^2)``; for a variance-preserving schedule the
    paper's prior N(0, 1) differs from this one by ``alpha_1^2``, which is meant to be negligible.

    Source: Ho et al. 2020, eq. 5 (arXiv 2006.11239).
    """
    u = torch.tensor(t, dtype=torch.float64)
    log_variance = align(2.0 * schedule.sigma(u).log(), x0)
    return total(normal_kl(align(schedule.alpha(u), x0) * x0, log_variance, torch.zeros_like(x0), log_variance))


class Bound(NamedTuple):
    """Terms of a bound on ``-log p(x0)`` in nats: ``prior`` (batch,) and ``steps`` (rows, batch), noise end first."""

    prior: Tensor
    steps: Tensor

    @property
    def nats(self) -> Float[Tensor, " batch"]:
        """The bound itself."""
        return self.prior + self.steps.sum(0)


@dataclass(frozen=True)
class Steps:
    """The chain of Gaussian steps ``p(x_s | x_t)`` of ancestral sampling on a grid.

    ``p(x_s | x_t) = N(a x_t + b x0_hat, variance)`` with the mean of ``q(x_s | x_t, x0_hat)``.

    Args:
        schedule: noise schedule.
        grid: falling times that end at 0: the last step is the decoder.
        variance: that of the posterior ("small"), that of ``q(x_t | x_s)`` ("large"), or between the two by a
            fraction that the network gives for each element ("learned").
        decoder: ``log p(x0 | x_t)`` of the last step: `normal` for continuous data, `discretised` for 256 levels
            (``partial(discretised, levels=...)`` for others).

    Raises:
        WorkbenchError: the grid rises or does not end at 0.

    Source: Ho et al. 2020, eq. 5 to 7 (arXiv 2006.11239); Nichol & Dhariwal 2021, section 3.1 (arXiv 2102.09672).
    """

    schedule: Schedule
    grid: Grid
    variance: Literal["small", "large", "learned"] = "small"
    decoder: Decoder = normal

    def __post_init__(self) -> None:
        falling_pairs(self.grid)
        if float(self.grid[-1]) != 0.0:
            raise WorkbenchError(
                f"variational bound: got a grid that ends at t={float(self.grid[-1]):.6g}; expected 0: without its "
                "last step the bound would miss what is still to be decoded. Append 0."
            )
        if self.variance not in ("small", "large", "learned"):
            raise WorkbenchError(
                f"variational bound: got variance={self.variance!r}; expected small, large or learned."
            )

    def __len__(self) -> int:
        return len(self.grid) - 1

    def require_schedule_of(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser of another schedule: at the same time it expects another amount of noise.

        Raises:
            WorkbenchError: the schedules differ.
        """
        schedule = schedule_of(denoiser)
        if schedule is not self.schedule and schedule != self.schedule:
            raise WorkbenchError(
                f"variational bound: got steps under {self.schedule} and a denoiser under {schedule}; expected the "
                "same schedule: build Steps with the denoiser's."
            )

    @property
    def times(self) -> Times:
        """(n,) time at which row i finds its sample."""
        return self.grid[:-1]

    @cached_property
    def log_variances(self) -> tuple[Times, Times]:
        """Logarithms (n,) of the small and the large variance of each row.

        The posterior of the last step, to t = 0, has variance 0. As in the paper's code the small variance of that
        row is the one of the row before (of a single row: the large one). On a grid whose last steps shrink in
        proportion to t (uniform in log-SNR, Karras) that is far too small for the decoder: take "large" there.
        """
        process = Gaussian(self.schedule)
        t, s = falling_pairs(self.grid)
        large = process.forward(t, s)[1].log()
        small = 2.0 * process.posterior(t, s)[2].log()
        before = small[-2:-1] if len(small) > 1 else large
        return torch.cat([small[:-1], before]), large

    @cached_property
    def _of_x0(self) -> Times:
        return Gaussian(self.schedule).posterior(*falling_pairs(self.grid))[1]

    def term(
        self,
        rows: Int64[Tensor, " batch"],
        x0: Float[Tensor, "batch ..."],
        x0_hat: Float[Tensor, "batch ..."],
        fraction: Float[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Each sample's term: ``KL(q(x_s | x_t, x0) || p(x_s | x_t))``, in the last row ``-log p(x0 | x_t)``.

        Both means have the same ``a x_t``, which drops out: what counts is ``b (x0 - x0_hat)``. In the last row a = 0
        and b = 1.

        Args:
            rows: row of the grid for each sample.
            x0: clean data.
            x0_hat: the estimate at those rows' times.
            fraction: learned interpolation of the log-variance, shape of ``x0``; None unless variance="learned".
        """
        if (fraction is None) == (self.variance == "learned"):
            raise WorkbenchError(
                f"variational bound: got variance={self.variance!r} and {'no' if fraction is None else 'a'} fraction "
                'from the denoiser; expected variance="learned" for a network with a variance_axis, and for no other.'
            )
        last = rows == len(self) - 1
        log_variance = self._log_variance(rows, x0, fraction)
        small = align(self.log_variances[0].to(rows.device)[rows], x0)
        b = align(self._of_x0.to(rows.device)[rows], x0)
        divergence = total(normal_kl(b * x0, small, b * x0_hat, log_variance))
        # of other rows nobody asked for the decoder, and a far estimate (eps where hardly any signal is) would have the
        # probability 0 and a gradient of 0 times infinity: they get the last row's variance and the data themselves
        near = torch.where(align(last, x0).bool(), x0_hat, x0)
        decoded = total(self.decoder(x0, near, self._log_variance(torch.full_like(rows, len(self) - 1), x0, fraction)))
        return torch.where(last, -decoded, divergence)

    def _log_variance(self, rows: Tensor, x0: Tensor, fraction: Tensor | None) -> Tensor:
        small, large = (align(table.to(rows.device)[rows], x0) for table in self.log_variances)
        if fraction is not None:
            return interpolated_log_variance(fraction, small, large)
        return (small if self.variance == "small" else large).expand_as(x0)


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    steps: Steps,
    x0: Float[Tensor, "batch ..."],
    generator: torch.Generator,
    cond: Any = None,
) -> Bound:
    """``-log p(x0) <= L_T + sum_t L_t + L_0`` in nats, each term from one draw of ``x_t ~ q(x_t | x0)``.

    Args:
        denoiser: what gives x0_hat; with ``steps.variance="learned"`` a `NetworkDenoiser` that has one.
        steps: the chain; use the one that samples are drawn with.
        x0: clean data.
        generator: source of the draws.
        cond: passed to the denoiser.

    Source: Ho et al. 2020, eq. 5 (arXiv 2006.11239).
    """
    steps.require_schedule_of(denoiser)
    if steps.variance == "learned" and isinstance(denoiser, NetworkDenoiser):
        denoiser = denoiser.with_variance()
    evaluate = denoiser.bind(steps.times, cond)
    source, process = On(Shared(generator), x0.device), Gaussian(steps.schedule)
    terms = []
    for i in range(len(steps)):
        rows = torch.full((x0.shape[0],), i, device=x0.device)
        x_t = process.corrupt(x0, steps.times[i].expand(x0.shape[0]), process.noise(x0, source))
        estimate = evaluate(x_t, i)
        x0_hat, fraction = estimate if isinstance(estimate, Learned) else (estimate, None)
        terms.append(steps.term(rows, x0, x0_hat, fraction))
    return Bound(prior_kl(steps.schedule, x0, float(steps.grid[0])), torch.stack(terms))


def continuous_term(
    schedule: Schedule, t: Float64[Tensor, " batch"], x0: Float[Tensor, "batch ..."], x0_hat: Float[Tensor, "batch ..."]
) -> Float[Tensor, " batch"]:
    """``-1/2 SNR'(t) |x0 - x0_hat|^2``, nats per unit of time: a step's term as the steps become infinitely short.

    ``SNR' = SNR log_snr' = 2 alpha (d_alpha sigma - alpha d_sigma) / sigma^3``.

    Source: Kingma et al. 2021, the continuous-time model (arXiv 2107.00630); their time runs the same way.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    rate = alpha * (alpha * schedule.d_sigma(t) - sigma * schedule.d_alpha(t)) / sigma**3
    return rate.to(x0.device, x0.dtype) * total((x0 - x0_hat) ** 2)


@torch.no_grad()
def continuous_bound(
    denoiser: Denoiser,
    x0: Float[Tensor, "batch ..."],
    generator: torch.Generator,
    n: int = 64,
    start: float = 1.0,
    end: float = 1e-4,
    decoder: Decoder = normal,
    cond: Any = None,
) -> Bound:
    """The bound in the limit of infinitely many steps between ``start`` and ``end``, then one decoder.

    ``L_T + integral of continuous_term over [end, start] - log N(x0; x_end / alpha_end, (sigma_end / alpha_end)^2)``

    The integral is estimated without bias from one time in each of ``n`` strata, equal in ``log t``: the integrand
    falls like 1/t, so that the strata weigh about the same. (The paper draws t evenly, and learns the schedule.)

    Args:
        denoiser: what gives x0_hat.
        x0: clean data.
        generator: source of the draws.
        n: number of evaluations.
        start: first time.
        end: last time, > 0; the decoder bridges the rest without the denoiser.
        decoder: of the last row.
        cond: passed to the denoiser.

    Returns:
        the bound; its n + 1 rows are the strata, noise end first, and the decoder.

    Source: Kingma et al. 2021, the continuous-time model (arXiv 2107.00630).
    """
    schedule = schedule_of(denoiser)
    check_span(schedule, start, end)
    source, process, batch = On(Shared(generator), x0.device), Gaussian(schedule), x0.shape[0]
    length = math.log(start / end)
    u = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device).cpu()) / n
    times = start * torch.exp(-length * u)
    evaluate = denoiser.bind(times, cond)
    terms = []
    for i in range(n):
        t = times[i].expand(batch)
        x0_hat = evaluate(process.corrupt(x0, t, process.noise(x0, source)), i)
        terms.append(continuous_term(schedule, t, x0, x0_hat) * float(times[i] * length / n))
    last = torch.full((batch,), end, dtype=torch.float64)
    x_end = process.corrupt(x0, last, process.noise(x0, source))
    log_variance = align(-schedule.log_snr(last), x0)
    terms.append(-total(decoder(x0, x_end / align(schedule.alpha(last), x0), log_variance)))
    return Bound(prior_kl(schedule, x0, start), torch.stack(terms))


Rows = Callable[[Draws, int, int], tuple[Int64[Tensor, " batch"], Float64[Tensor, " batch"]]]
"""``rows(draws, batch, n)``: a row of the grid for each sample, and the probability with which it was drawn."""


def uniform_rows(draws: Draws, batch: int, n: int) -> tuple[Int64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """Any of the n rows with probability 1/n."""
    rows = (draws.uniform((batch,)) * n).long()
    return rows, torch.full_like(rows, 1.0 / n, dtype=torch.float64)


def vlb_loss(
    denoiser: NetworkDenoiser,
    steps: Steps,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    rows: Rows = uniform_rows,
) -> Float[Tensor, " batch"]:
    """One term of the bound per sample, divided by its probability: unbiased for ``sum_t L_t + L_0``, per element.

    ``L_T`` is left out: it has no gradient.

    Args:
        denoiser: network, prediction and schedule.
        steps: the chain; the grid of the training steps, ``grid.trailing(n_train, n_train)``.
        x0: clean data, normalised.
        cond: passed to the network.
        draws: random numbers of this step.
        rows: how rows are drawn; an importance sampler is such a callable (Nichol & Dhariwal 2021, eq. 18).

    Returns:
        (batch,) nats per element, so that it is of the order of `loss.denoising_loss`.
    """
    return _losses(denoiser, steps, x0, cond, draws, rows, stop_mean=False)[1]


def hybrid_loss(
    denoiser: NetworkDenoiser,
    steps: Steps,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    rows: Rows = uniform_rows,
    vlb_weight: float = 0.001,
) -> Float[Tensor, " batch"]:
    """``simple + vlb_weight vlb``, where the bound teaches the variance alone: its gradient stops at the mean.

    Args:
        denoiser, steps, x0, cond, draws, rows: as for `vlb_loss`.
        vlb_weight: weight of the bound in nats per element (the paper's code counts bits: its 0.001 is 0.0014 here).

    Source: Nichol & Dhariwal 2021, eq. 16 (arXiv 2102.09672).
    """
    simple, vlb = _losses(denoiser, steps, x0, cond, draws, rows, stop_mean=True)
    return simple + vlb_weight * vlb


def _losses(
    denoiser: NetworkDenoiser, steps: Steps, x0: Tensor, cond: Any, draws: Draws, rows: Rows, stop_mean: bool
) -> tuple[Tensor, Tensor]:
    """The simple loss and the bound's, from one evaluation at the same times and noise."""
    steps.require_schedule_of(denoiser)
    batch, n = x0.shape[0], len(steps)
    chosen, probability = rows(draws, batch, n)
    t = steps.times.to(chosen.device)[chosen]
    noise = draws.normal(x0.shape, x0.dtype)
    x_t = Gaussian(denoiser.schedule).corrupt(x0, t, noise)
    prediction, fraction = denoiser.outputs(x_t, t, cond)
    c_x, c_p = (align(c, x0) for c in to_x0(denoiser.prediction, denoiser.schedule, t))
    # not clipped: a clamp has no gradient where the estimate is worst
    x0_hat = c_x * x_t + c_p * prediction
    term = steps.term(chosen.to(x0.device), x0, x0_hat.detach() if stop_mean else x0_hat, fraction)
    inverse = (1.0 / probability).to(x0.device, x0.dtype)
    error = (prediction - denoiser.target(x0, noise, t)) ** 2
    return error.flatten(1).mean(1) * inverse / n, term * inverse / x0[0].numel()
