"""Distribution matching: the generator's gradient is that of a divergence between Gaussians, known in closed form."""

# ruff: noqa: B023  a closure here is used up within its turn of the loop

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.distill import matching
from diffusion_core.distill.matching import alike, fake_loss, matching_loss, simulated
from diffusion_core.distill.score import divergence, vsd
from diffusion_core.loss import denoising_loss
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import RectifiedFlow, Schedule
from tests.diffusion_core.test_distill_jump import (
    Fixed,
    Small,
    at,
    draws,
    exact_gaussian,
    normal,
    quadrature,
    told,
    train,
)
from tests.diffusion_core.test_distill_score import line
from tests.diffusion_core.worlds import SMOOTH, gaussian, vector


def kl(mean_1: Tensor, variance_1: Tensor, mean_2: float, variance_2: float) -> Tensor:
    """``KL(N(mean_1, variance_1) || N(mean_2, variance_2))``."""
    return 0.5 * (math.log(variance_2) - variance_1.log() + (variance_1 + (mean_1 - mean_2) ** 2) / variance_2 - 1.0)


def check_divergence(matching_loss=matching_loss) -> None:
    """Generator ``x = shift + scale z``: its gradient is that of ``sum_t KL(fake_t || real_t)``, to rounding."""
    weights, (z, noise) = quadrature(2)
    for schedule in SMOOTH.values():
        shift, scale = (v.requires_grad_() for v in (vector(1.3), vector(0.5)))
        real, fake = exact_gaussian(line(schedule, -0.2, 0.8)), exact_gaussian(line(schedule, 1.3, 0.5))
        for t in (0.2, 0.5, 0.9):
            x = shift + scale * z
            loss = matching_loss(x, None, real, fake, Fixed(noise), at(t), divergence)
            got = torch.autograd.grad((weights * loss).sum(), (shift, scale))
            alpha, sigma = schedule.alpha(vector(t)), schedule.sigma(vector(t))
            truth = kl(
                alpha * shift,
                (alpha * scale) ** 2 + sigma**2,
                float(alpha * -0.2),
                float((alpha * 0.8) ** 2 + sigma**2),
            )
            expected = torch.autograd.grad(truth.sum(), (shift, scale))
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_the_generators_gradient_is_the_divergences():
    check_divergence()


def check_weight(weighting=alike) -> None:
    """``w_t alpha_t (s_fake - s_real)`` with the paper's ``w_t = sigma_t^2 d / (alpha_t |x - x0_hat_real|_1)``."""
    for schedule in SMOOTH.values():
        x, noise, t = normal(4, 2), normal(4, 2, seed=1), 0.3
        times = at(t)(draws(), 4)
        alpha, sigma = schedule.alpha(times)[:, None], schedule.sigma(times)[:, None]
        real, fake = exact_gaussian(gaussian(schedule)), exact_gaussian(gaussian(schedule))
        here, there = vector(2.0, 1.0), None
        x_t = Gaussian(schedule).corrupt(x, times, noise)
        x0_real, x0_fake = real.x0_hat(x_t, times, there), fake.x0_hat(x_t, times, here)
        s_real, s_fake = ((alpha * x0 - x_t) / sigma**2 for x0 in (x0_real, x0_fake))
        w = sigma**2 / alpha * 2.0 / (x - x0_real).abs().sum(1, keepdim=True)
        other = told(schedule, lambda x, t, cond: fake.x0_hat(x, t, here))
        point = x.clone().requires_grad_()
        loss = matching_loss(point, None, real, other, Fixed(noise), at(t), weighting)
        (got,) = torch.autograd.grad(loss.sum(), point)
        torch.testing.assert_close(2.0 * got, w * alpha * (s_fake - s_real), rtol=1e-9, atol=1e-10)


def test_the_weight_is_the_papers():
    check_weight()


def test_it_is_variational_score_distillation():
    assert matching.vsd is vsd
    schedule, x = RectifiedFlow(), normal(4, 2)
    real, fake = exact_gaussian(gaussian(schedule)), told(schedule, lambda x, t, cond: 0.5 * x)
    assert torch.equal(
        matching_loss(x, None, real, fake, draws(), weighting=divergence),
        vsd(x, None, real, fake, draws(), weighting=divergence),
    )


def check_fake_loss(fake_loss=fake_loss) -> None:
    """The denoising loss of the samples, and none of it moves them."""
    schedule, network = RectifiedFlow(), Small()
    fake, x = NetworkDenoiser(network, schedule, "v"), normal(6, 1).float().requires_grad_()
    loss = fake_loss(fake, x, None, draws())
    torch.testing.assert_close(loss, denoising_loss(fake, x.detach(), None, draws()))
    loss.sum().backward()
    assert x.grad is None and network.layers[0].weight.grad is not None


def test_the_fake_denoiser_learns_from_samples_that_do_not_feel_it():
    check_fake_loss()


@pytest.mark.parametrize("schedule", [SMOOTH["flow"], SMOOTH["cosine"]], ids=["flow", "cosine"])
def test_simulated_samples_have_the_law_of_the_students_own_noised_output(schedule: Schedule):
    """A student that jumps to ``3 + 0 x``: at each later time ``x_t ~ N(3 alpha_t, sigma_t^2)``, else the prior."""
    n, grid = 60_000, vector(1.0, 0.7, 0.3)
    student = told(schedule, lambda x, t, cond: torch.full_like(x, 3.0))
    x_t, t = simulated(student, normal(n, 1, seed=9), None, draws(), grid)
    for i, time in enumerate(grid):
        mine = x_t[t == time, 0]
        assert abs(len(mine) / n - 1.0 / 3.0) < 4.5 * math.sqrt(2.0 / 9.0 / n)
        mean, std = 3.0 * float(schedule.alpha(time)) * (i > 0), float(schedule.sigma(time))
        assert abs(float(mine.mean()) - mean) < 4.5 * std / math.sqrt(len(mine))
        assert abs(float(mine.std()) / std - 1.0) < 4.5 / math.sqrt(2 * len(mine))


def test_simulated_samples_follow_the_student_step_by_step():
    """A student that doubles what it sees: the last x_t is built from the one before it, the condition included."""
    schedule, grid, (first, second) = RectifiedFlow(), vector(0.8, 0.4), (normal(4, 1), normal(4, 1, seed=1))
    student = told(schedule, lambda x, t, cond: cond * x)
    x_t, t = simulated(student, first, 2.0, Fixed(second, u=0.9), grid)
    torch.testing.assert_close(x_t, 0.6 * 2.0 * (0.8 * first) + 0.4 * second)
    assert torch.equal(t, at(0.4)(draws(), 4))
    start, t = simulated(student, first, 2.0, Fixed(second, u=0.1), grid)
    torch.testing.assert_close(start, 0.8 * first)
    assert torch.equal(t, at(0.8)(draws(), 4))


@pytest.mark.parametrize(("learned", "bound"), [(False, 0.001), (True, 0.1)], ids=["exact", "learned"])
def test_a_generator_finds_the_data(learned: bool, bound: float):
    """``x = shift + scale z`` against N(-0.2, 0.8^2). Measured: (-0.2000, 0.8001) and, with a fake denoiser that is
    trained along, five steps for each of the generator's, (-0.250, 0.763)."""
    schedule, steps = RectifiedFlow(), 300
    real = exact_gaussian(line(schedule, -0.2, 0.8))
    generator = nn.Linear(1, 1)
    with torch.no_grad():
        generator.weight.fill_(0.3)
        generator.bias.fill_(1.0)
    learner = NetworkDenoiser(Small(), schedule, "velocity")
    optimizer, fake_optimizer = (torch.optim.Adam(m.parameters(), r) for m, r in ((generator, 3e-2), (learner, 1e-2)))
    source = draws()
    if learned:
        train(
            learner, lambda source: fake_loss(learner, generator(source.normal((256, 1))), None, source), 300, 1e-2, 1
        )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-2 * (1.0 - step / steps)
        for _ in range(5 * learned):
            fake_optimizer.zero_grad()
            fake_loss(learner, generator(source.normal((256, 1))), None, source).mean().backward()
            fake_optimizer.step()
        mean, std = float(generator.bias.detach()), float(generator.weight.detach().abs())
        fake = learner if learned else exact_gaussian(line(schedule, mean, std))
        optimizer.zero_grad()
        matching_loss(generator(source.normal((256, 1))), None, real, fake, source).mean().backward()
        optimizer.step()
    mean, std = float(generator.bias.detach()), float(generator.weight.detach().abs())
    assert abs(mean + 0.2) < bound and abs(std - 0.8) < bound
