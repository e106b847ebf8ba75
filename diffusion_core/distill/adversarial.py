"""Adversarial distillation: a discriminator cannot tell the student's ``x_s`` from the real one, given ``x_t``.

For a large step ``p(x_s | x_t)`` is not Gaussian, so a denoiser's mean is not enough; a generator that is judged on
pairs ``(x_s, x_t)`` can have any shape. What is judged against what is a `Duel`:

- `denoising_duel`: data, noised twice, against the generator's jump (denoising diffusion GAN);
- `teaching_duel`: the teacher's several steps against the student's one (progressive adversarial distillation).

The two losses are the same for both. They take the discriminator's logits through a `Criterion`.

Adversarial diffusion distillation (Sauer et al. 2023, arXiv 2311.17042) is a denoising duel whose steps all end at
s = 0, where data meets the student's x0_hat itself, under `HINGE`, plus `score.sds` of that x0_hat by the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import relu, softplus

from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.distill import Pairs, estimate, jump, process_of
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.predict import align
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule, Times

Discriminator = Callable[[Tensor, Tensor, Times, Times, Any], Tensor]
"""``discriminator(x_s, x_t, s, t, cond) -> (batch, ...)`` logits, positive for real; more axes are averaged."""

Generator = Callable[[Tensor, Tensor, Times, Any], Tensor]
"""``generator(x_t, z, t, cond) -> x0``, with z (batch, latent) standard normal."""


class Duel(NamedTuple):
    """Two samples at time ``s`` that both belong to the same ``x_t``; ``fake`` carries the student's gradient."""

    real: Tensor
    fake: Tensor
    x_t: Tensor
    s: Times
    t: Times


@dataclass(frozen=True)
class Criterion:
    """What a logit costs: the discriminator on real and on fake samples, the generator on its own."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


NON_SATURATING = Criterion(lambda logit: softplus(-logit), softplus, lambda logit: softplus(-logit))
"""``-log D``, ``-log(1 - D)``, ``-log D``; ``D = sigmoid(logit)``. Source: Goodfellow et al. 2014 (arXiv 1406.2661)."""

HINGE = Criterion(lambda logit: relu(1.0 - logit), lambda logit: relu(1.0 + logit), torch.neg)
"""``max(0, 1 - logit)``, ``max(0, 1 + logit)``, ``-logit``. Source: Lim & Ye 2017 (arXiv 1705.02894); the criterion of
adversarial diffusion distillation, Sauer et al. 2023 (arXiv 2311.17042)."""


def posterior_sample(
    process: Gaussian,
    x_t: Float[Tensor, "batch ..."],
    x0: Float[Tensor, "batch ..."],
    t: Times,
    s: Times,
    noise: Tensor,
) -> Float[Tensor, "batch ..."]:
    """``x_s ~ q(x_s | x_t, x0)``: ``a x_t + b x0 + std noise``."""
    a, b, std = (align(c, x_t) for c in process.posterior(t, s))
    return a * x_t + b * x0 + std * noise


def denoising_duel(
    generator: Generator,
    schedule: Schedule,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    pairs: Pairs,
    latent: int,
) -> Duel:
    """Real: ``x_s ~ q(x_s | x0)``, ``x_t ~ q(x_t | x_s)``. Fake, from that x_t: ``x_s ~ q(x_s | x_t, G(x_t, z, t))``.

    Args:
        generator: random through z, so that it can answer one ``x_t`` with several x0.
        schedule: noise schedule.
        x0: clean data, normalised.
        cond: passed to the generator.
        draws: random numbers of this step.
        pairs: the generator's steps, such as `grid_pairs` of a grid of four.
        latent: size of z.

    Source: Xiao et al. 2022, section 3.2 (arXiv 2112.07804).
    """
    process = Gaussian(schedule)
    t, s = pairs(draws, x0.shape[0])
    real = process.corrupt(x0, s, draws.normal(x0.shape, x0.dtype))
    alpha_ts, variance_ts = (align(c, x0) for c in process.forward(t, s))
    x_t = alpha_ts * real + variance_ts.sqrt() * draws.normal(x0.shape, x0.dtype)
    guess = generator(x_t, draws.normal((x0.shape[0], latent), x0.dtype), t, cond)
    fake = posterior_sample(process, x_t, guess, t, s, draws.normal(x0.shape, x0.dtype))
    return Duel(real, fake, x_t, s, t)


def teaching_duel(
    student: NetworkDenoiser,
    teacher: Denoiser,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    grid: Float64[Tensor, " n_plus_1"],
    steps: int,
) -> Duel:
    """Real: ``steps`` DDIM steps of the teacher from ``x_t``. Fake: one of the student's over the same way.

    Args:
        student: its jump is judged.
        teacher: takes the steps of ``grid``; may be guided. No gradient reaches it.
        x0: clean data, normalised.
        cond: passed to both.
        draws: random numbers of this step.
        grid: the teacher's, falling.
        steps: of the teacher for each of the student's; divides their number.

    Raises:
        WorkbenchError: the grid does not split into jumps of this many steps.

    Source: Lin et al. 2024 (arXiv 2402.13929).
    """
    n = len(grid) - 1
    if steps < 1 or n % steps:
        raise WorkbenchError(f"teaching duel: got steps={steps} of a grid of {n}; expected a divisor of {n}.")
    i = steps * (draws.uniform((x0.shape[0],)) * (n // steps)).long()
    times = [grid.to(i.device)[i + k] for k in range(steps + 1)]
    t, s = times[0], times[-1]
    schedule = process_of(teacher).schedule
    x_t = process_of(student).corrupt(x0, t, draws.normal(x0.shape, x0.dtype))
    real = x_t
    with torch.no_grad():
        for here, there in pairwise(times):
            real = jump(schedule, real, estimate(teacher, real, here, cond), here, there)
    return Duel(real, jump(schedule, x_t, student.x0_hat(x_t, t, cond), t, s), x_t, s, t)


def generator_loss(
    discriminator: Discriminator, duel: Duel, cond: Any = None, criterion: Criterion = NON_SATURATING
) -> Float[Tensor, " batch"]:
    """What the discriminator's opinion of the fake sample costs its author.

    The gradient reaches the discriminator, too: step the generator's parameters only.

    Source: Xiao et al. 2022, section 3.2 (arXiv 2112.07804).
    """
    return _mean(criterion.generator(discriminator(duel.fake, duel.x_t, duel.s, duel.t, cond)))


def discriminator_loss(
    discriminator: Discriminator,
    duel: Duel,
    cond: Any = None,
    criterion: Criterion = NON_SATURATING,
    r1_weight: float = 0.0,
) -> Float[Tensor, " batch"]:
    """What mistaking real for fake and fake for real costs, plus ``r1_weight / 2`` times `r1`.

    Args:
        discriminator: (x_s, x_t, s, t, cond) -> logits.
        duel: the fake sample is detached here.
        cond: passed to the discriminator.
        criterion: `NON_SATURATING` or `HINGE`.
        r1_weight: weight of the gradient penalty.

    Returns:
        (batch,) one loss per sample.

    Source: Xiao et al. 2022, section 3.2 (arXiv 2112.07804).
    """
    on_fake = criterion.fake(discriminator(duel.fake.detach(), duel.x_t, duel.s, duel.t, cond))
    if r1_weight == 0.0:
        return _mean(criterion.real(discriminator(duel.real, duel.x_t, duel.s, duel.t, cond))) + _mean(on_fake)
    real = duel.real.detach().requires_grad_()
    logits = discriminator(real, duel.x_t, duel.s, duel.t, cond)
    return _mean(criterion.real(logits)) + _mean(on_fake) + 0.5 * r1_weight * r1(logits, real)


def r1(logits: Float[Tensor, "batch ..."], real: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """``|d logit / d x_s|^2``, the squared length of the discriminator's gradient at real samples.

    Args:
        logits: of ``real``, computed with a gradient.
        real: requires a gradient. Each sample's logits must depend on that sample alone (no batch normalisation).

    Source: Mescheder et al. 2018 (arXiv 1801.04406).
    """
    (slope,) = torch.autograd.grad(_mean(logits).sum(), real, create_graph=True)
    return (slope**2).flatten(1).sum(1)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.ndim > 1 else values
