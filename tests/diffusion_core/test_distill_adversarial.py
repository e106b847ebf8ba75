"""Adversarial distillation: the duels' joint laws, the penalty in closed form, and modes that a Gaussian misses."""

# ruff: noqa: B023  a closure here is used up within its turn of the loop

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.distill import grid_pairs
from diffusion_core.distill.adversarial import (
    HINGE,
    NON_SATURATING,
    Duel,
    denoising_duel,
    discriminator_loss,
    generator_loss,
    posterior_sample,
    r1,
    teaching_duel,
)
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Shared
from diffusion_core.oracles import GaussianMixture
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import sample
from diffusion_core.schedule import Cosine, RectifiedFlow
from diffusion_core.solvers import ddim, ddpm
from tests.diffusion_core.test_distill_jump import (
    Fixed,
    at,
    draws,
    exact_gaussian,
    exact_mixture,
    normal,
    step_of,
    told,
)
from tests.diffusion_core.test_distill_score import line
from tests.diffusion_core.worlds import SMOOTH, gaussian, plane_mixture, vector


def duel(n: int = 6, d: int = 3) -> Duel:
    real, fake, x_t = (normal(n, d, seed=seed) for seed in range(3))
    return Duel(real, fake.requires_grad_(), x_t, at(0.4)(draws(), n), at(0.8)(draws(), n))


def quadratic(x_s: Tensor, x_t: Tensor, s: Tensor, t: Tensor, cond: object) -> Tensor:
    """Its gradient is ``x_s + t x_t``; two logits a sample, whose mean that is the gradient of."""
    logit = 0.5 * (x_s**2).sum(1) + t * (x_s * x_t).sum(1)
    return torch.stack([logit + 1.0, logit - 3.0], 1)


def check_r1(loss=discriminator_loss) -> None:
    """The penalty is ``weight / 2 |x_s + t x_t|^2`` at the real samples, on top of the loss without it."""
    players = duel()
    for criterion in (NON_SATURATING, HINGE):
        with_penalty = loss(quadratic, players, None, criterion, 0.6)
        without = loss(quadratic, players, None, criterion)
        expected = 0.3 * ((players.real + 0.8 * players.x_t) ** 2).sum(1)
        torch.testing.assert_close(with_penalty - without, expected, rtol=1e-12, atol=1e-12)


def test_the_penalty_of_a_quadratic_discriminator_is_its_closed_form():
    check_r1()


def test_the_penalty_teaches_the_discriminator():
    # d/dw |w|^2 = 2 w for the logit <w, x>
    w, real = vector(0.3, -2.0).requires_grad_(), normal(5, 2).requires_grad_()
    penalty = r1(real @ w, real)
    torch.testing.assert_close(penalty, (w**2).sum().expand(5))
    torch.testing.assert_close(torch.autograd.grad(penalty.sum(), w)[0], 10.0 * w.detach())


def check_criteria(loss=discriminator_loss) -> None:
    """``-log D``, ``-log(1 - D)`` and the hinges, on logits that are given."""
    logits = vector(-2.0, -0.5, 0.0, 0.5, 3.0)
    players = Duel(logits[:, None], logits.flip(0)[:, None], logits[:, None], logits, logits)
    same = lambda x_s, x_t, s, t, cond: x_s[:, 0]  # noqa: E731
    real, fake = logits.sigmoid(), logits.flip(0).sigmoid()
    torch.testing.assert_close(loss(same, players), -real.log() - (1.0 - fake).log())
    torch.testing.assert_close(generator_loss(same, players), -fake.log())
    hinged = (1.0 - logits).clamp(min=0.0) + (1.0 + logits.flip(0)).clamp(min=0.0)
    torch.testing.assert_close(loss(same, players, None, HINGE), hinged)
    torch.testing.assert_close(generator_loss(same, players, None, HINGE), -logits.flip(0))


def test_the_criteria_are_their_formulas():
    check_criteria()


def test_the_discriminators_loss_does_not_move_the_generator_and_the_generators_does():
    players, seen = duel(), []

    def discriminator(x_s: Tensor, x_t: Tensor, s: Tensor, t: Tensor, cond: object) -> Tensor:
        seen.append((float(s[0]), float(t[0]), cond))
        return quadratic(x_s, x_t, s, t, cond) * strength

    strength = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    discriminator_loss(discriminator, players, "c").sum().backward()
    assert players.fake.grad is None and strength.grad is not None
    generator_loss(discriminator, players, "c").sum().backward()
    assert players.fake.grad is not None
    assert seen == [(0.4, 0.8, "c")] * 3


def check_denoising_duel(make=denoising_duel, n: int = 100_000) -> None:
    """Real: the joint law of (x_s, x_t). Fake of a perfect generator: the same law, to 4.5 standard errors.

    With Gaussian data the perfect generator draws x0 from its Gaussian posterior.
    """
    mean, std = 0.7, 0.4
    for schedule in (RectifiedFlow(), Cosine()):
        t, s = 0.7, 0.3
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            (float(schedule.alpha(vector(v))), float(schedule.sigma(vector(v)))) for v in (t, s)
        )

        def perfect(x_t: Tensor, z: Tensor, t: Tensor, cond: object) -> Tensor:
            x0_hat = exact_gaussian(line(schedule, mean, std)).x0_hat(x_t, t)
            return x0_hat + std * sigma_t / math.sqrt((alpha_t * std) ** 2 + sigma_t**2) * z

        x0 = mean + std * normal(n, 1, seed=5)
        players = make(perfect, schedule, x0, None, draws(), step_of(t, s), 1)
        variance_s, variance_t = (a**2 * std**2 + b**2 for a, b in ((alpha_s, sigma_s), (alpha_t, sigma_t)))
        # x_t = alpha_ts x_s + noise
        covariance = alpha_t / alpha_s * variance_s
        for x_s in (players.real, players.fake):
            a, b = x_s[:, 0] - alpha_s * mean, players.x_t[:, 0] - alpha_t * mean
            for product, expected, spread in (
                (a, 0.0, variance_s),
                (b, 0.0, variance_t),
                (a * a, variance_s, 2.0 * variance_s**2),
                (b * b, variance_t, 2.0 * variance_t**2),
                (a * b, covariance, variance_s * variance_t + covariance**2),
            ):
                assert abs(float(product.mean()) - expected) < 4.5 * math.sqrt(spread / n)


def test_both_sides_of_a_denoising_duel_have_the_joint_law_of_the_process():
    check_denoising_duel()


@pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
def test_a_posterior_sample_of_the_exact_mean_is_a_ddpm_step(schedule):
    data, x_t, t, s = gaussian(schedule), normal(4, 2), 0.8, 0.5
    table = ddpm(schedule, vector(t, s))
    x0_hat, noise = exact_gaussian(data).x0_hat(x_t, at(t)(draws(), 4)), normal(4, 2, seed=1)
    expected = table.x[0, 0] * x_t + table.estimate[0, 0] * x0_hat + table.noise[0] * noise
    ours = posterior_sample(Gaussian(schedule), x_t, x0_hat, at(t)(draws(), 4), at(s)(draws(), 4), noise)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def check_teaching_duel(make=teaching_duel) -> None:
    """Real is the teacher's trajectory, fake the student's DDIM step, from one x_t."""
    grid = vector(0.9, 0.7, 0.6, 0.4, 0.1)
    for schedule in SMOOTH.values():
        data = gaussian(schedule)
        student = told(schedule, lambda x, t, cond: torch.sin(x))
        noise, x0 = normal(4, 2), normal(4, 2, seed=1)
        for u, part in ((0.2, grid[:3]), (0.8, grid[2:])):
            players = make(student, exact_gaussian(data), x0, None, Fixed(noise, u=u), grid, 2)
            x_t = Gaussian(schedule).corrupt(x0, part[:1].expand(4), noise)
            torch.testing.assert_close(players.x_t, x_t)
            assert torch.equal(players.t, part[:1].expand(4)) and torch.equal(players.s, part[2:].expand(4))
            real = sample(data, ddim(schedule, part), x_t)
            torch.testing.assert_close(players.real, real, rtol=1e-10, atol=1e-10)
            fake = sample(student, ddim(schedule, part[::2]), x_t)
            torch.testing.assert_close(players.fake, fake, rtol=1e-10, atol=1e-10)


def test_a_teaching_duel_sets_the_teachers_steps_against_the_students_one():
    check_teaching_duel()


@pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
def test_a_duel_that_ends_at_zero_sets_data_against_the_students_estimate(schedule):
    student, x0 = exact_mixture(plane_mixture(schedule)), normal(5, 2)
    players = denoising_duel(
        lambda x_t, z, t, cond: student.x0_hat(x_t, t, cond), schedule, x0, None, draws(), step_of(0.7, 0.0), 1
    )
    torch.testing.assert_close(players.real, x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(players.fake, student.x0_hat(players.x_t, players.t), rtol=1e-12, atol=1e-12)


def test_jumps_that_do_not_fill_the_grid_are_refused():
    schedule = RectifiedFlow()
    student = exact_gaussian(gaussian(schedule))
    with pytest.raises(WorkbenchError, match="steps=3 of a grid of 4; expected a divisor of 4"):
        teaching_duel(student, student, normal(2, 2), None, draws(), grids.uniform(4), 3)


class Generator(nn.Module):
    """``x0 = G(x_t, z, t)`` on a line."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Wide(2, 1)

    def forward(self, x_t: Tensor, z: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.network(torch.cat([x_t, z], 1), t)


class Critic(nn.Module):
    """A logit of (x_s, x_t, t) on a line."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Wide(2, 1)

    def forward(self, x_s: Tensor, x_t: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.network(torch.cat([x_s, x_t], 1), t)[:, 0]


class Wide(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs + 1, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
            nn.Linear(width, outputs),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(inputs)
        with torch.no_grad():
            for parameter in self.parameters():
                fan = parameter.shape[-1]
                parameter.copy_((2.0 * torch.rand(parameter.shape, generator=generator) - 1.0) / math.sqrt(fan))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None].to(x.dtype)], 1))


def bimodal() -> GaussianMixture:
    return GaussianMixture(RectifiedFlow(), vector(0.5, 0.5), vector(-1.0, 1.0)[:, None], vector(0.1, 0.1))


def gan_w1(steps: int = 2, updates: int = 1000, seed: int = 0) -> tuple[float, float]:
    """W1 to two narrow modes after ``steps`` steps: DDPM with the exact denoiser, and a trained denoising GAN."""
    data = bimodal()
    schedule, grid, n = data.schedule, grids.uniform(steps), 4000
    truth = data.flow(torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None], 1.0, 0.0)

    def distance(x: Tensor) -> float:
        return float((x.double().sort(0).values - truth).abs().mean())

    start = normal(n, 1, seed=7)
    noise = Shared(torch.Generator().manual_seed(3))
    ancestral = distance(sample(exact_mixture(data), ddpm(schedule, grid), start, noise=noise))

    generator, critic = Generator(), Critic()
    optimizers = [torch.optim.Adam(m.parameters(), 1e-3, betas=(0.5, 0.9)) for m in (generator, critic)]
    source, pairs = draws(seed), grid_pairs(grid)
    clean = data.sample(20_000, torch.Generator().manual_seed(1)).float()
    for update in range(updates):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-3 * (1.0 - update / updates)
        rows = (source.uniform((256,)) * len(clean)).long()
        players = denoising_duel(generator, schedule, clean[rows], None, source, pairs, 1)
        optimizers[1].zero_grad()
        discriminator_loss(critic, players, r1_weight=0.05).mean().backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        generator_loss(critic, players).mean().backward()
        optimizers[0].step()

    x = start.float()
    with torch.no_grad():
        for t, s in pairwise(grid):
            t, s = t.expand(n), s.expand(n)
            x0 = generator(x, source.normal((n, 1)), t)
            x = posterior_sample(Gaussian(schedule), x, x0, t, s, source.normal((n, 1)))
    return ancestral, distance(x)


def test_two_steps_of_a_denoising_gan_find_modes_that_two_gaussian_steps_miss():
    """Measured W1: 0.443 for DDPM with the exact denoiser, 0.084 for the GAN."""
    ancestral, ours = gan_w1()
    assert ours < 0.5 * ancestral
