"""Score distillation: mean directions in closed form by quadrature, and the identities between its four references."""

# ruff: noqa: B023  a closure here is used up within its turn of the loop

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion_core.distill.score import (
    MIDDLE,
    Weighting,
    csd,
    dds,
    divergence,
    noise_variance,
    score_distillation,
    sds,
    vsd,
)
from diffusion_core.guidance import classifier_free
from diffusion_core.oracles import GaussianData
from diffusion_core.predict import convert
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule
from tests.diffusion_core.test_distill_jump import (
    Fixed,
    at,
    draws,
    exact_gaussian,
    exact_mixture,
    normal,
    quadrature,
    told,
)
from tests.diffusion_core.worlds import SMOOTH, gaussian, plane_mixture, vector


def line(schedule: Schedule, mean: float, std: float) -> GaussianData:
    return GaussianData(schedule, vector(mean), vector(std))


def slope(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of each sample's loss."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return gradient


def check_sds(sds=sds) -> None:
    """On N(mean, std^2) the mean direction at x is ``weight (1 - gain alpha) (x - mean)``: zero at the mean only.

    ``gain = alpha std^2 / (alpha^2 std^2 + sigma^2)``; the denoiser is affine, so quadrature is exact.
    """
    weights, (noise,) = quadrature(1)
    for schedule in SMOOTH.values():
        data, t = line(schedule, 0.7, 0.4), 0.6
        alpha, sigma = float(schedule.alpha(vector(t))), float(schedule.sigma(vector(t)))
        gain = alpha * 0.4**2 / ((alpha * 0.4) ** 2 + sigma**2)
        for x in (-1.0, 0.7, 2.0):
            points = torch.full_like(noise, x)
            got = slope(lambda x: sds(x, None, exact_gaussian(data), Fixed(noise), at(t)), points)
            expected = alpha * sigma * (1.0 - gain * alpha) * (x - 0.7)
            assert abs(float((weights[:, None] * got).sum()) - expected) < 1e-12


def test_the_mean_direction_of_sds_is_the_closed_form_and_vanishes_at_the_mode():
    check_sds()


def check_papers_eps(sds=sds) -> None:
    """With weight w on eps the gradient is ``w(t) (eps_hat - eps)``, Poole et al. 2022, eq. 3, here for w = sigma^2."""
    for schedule in SMOOTH.values():
        x, noise, t = normal(4, 2), normal(4, 2, seed=1), 0.4
        times = at(t)(draws(), 4)
        denoiser = exact_mixture(plane_mixture(schedule))
        x_t = Gaussian(schedule).corrupt(x, times, noise)
        eps_hat = convert(denoiser.x0_hat(x_t, times), x_t, "x0", "eps", schedule, times)
        expected = schedule.sigma(times)[:, None] ** 2 * (eps_hat - noise)
        # the mean over two entries halves the gradient
        got = 2.0 * slope(lambda x: sds(x, None, denoiser, Fixed(noise), at(t)), x)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_sds_is_the_papers_difference_of_eps():
    check_papers_eps()


@pytest.mark.parametrize("weighting", [noise_variance, divergence])
def test_vsd_of_a_point_is_sds(weighting: Weighting):
    # all samples alike: what their own denoiser says is that sample
    for schedule in SMOOTH.values():
        x, noise = normal(1, 2).expand(6, 2), normal(6, 2, seed=1)
        real, point = exact_mixture(plane_mixture(schedule)), GaussianData(schedule, x[0], vector(0.0, 0.0))
        ours = slope(lambda x: vsd(x, None, real, exact_gaussian(point), Fixed(noise), MIDDLE, weighting), x)
        theirs = slope(lambda x: sds(x, None, real, Fixed(noise), MIDDLE, weighting), x)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_direction_of_vsd_varies_less_than_that_of_sds_and_vanishes_at_the_data():
    """The noise enters SDS by ``gain_real``, VSD by ``gain_fake - gain_real``."""
    weights, (noise,) = quadrature(1)
    for schedule in SMOOTH.values():
        real, x, t = exact_gaussian(line(schedule, 0.7, 0.4)), torch.full_like(noise, 1.1), 0.5

        def spread(direction: Tensor) -> float:
            mean = (weights[:, None] * direction).sum()
            return float((weights[:, None] * (direction - mean) ** 2).sum().sqrt())

        alpha, sigma = float(schedule.alpha(vector(t))), float(schedule.sigma(vector(t)))
        gains = {std: alpha * std**2 / ((alpha * std) ** 2 + sigma**2) for std in (0.4, 0.5)}
        ours = slope(
            lambda x: vsd(x, None, real, exact_gaussian(line(schedule, 1.0, 0.5)), Fixed(noise), at(t)),
            x,
        )
        theirs = slope(lambda x: sds(x, None, real, Fixed(noise), at(t)), x)
        assert math.isclose(spread(ours), alpha * sigma**2 * (gains[0.5] - gains[0.4]), rel_tol=1e-9)
        assert math.isclose(spread(theirs), alpha * sigma**2 * gains[0.4], rel_tol=1e-9)
        assert spread(ours) < spread(theirs)
        assert float(vsd(x, None, real, real, Fixed(noise), at(t)).abs().max()) == 0.0


def check_csd(csd=csd) -> None:
    """SDS of a guided denoiser is SDS of the unconditional one plus the scale times CSD."""
    scale = 7.5
    for schedule in SMOOTH.values():
        denoiser = exact_gaussian(gaussian(schedule))
        here, nowhere = vector(2.0, 1.0).expand(5, 2), vector(0.0, 0.0).expand(5, 2)
        guided = classifier_free(denoiser, nowhere, scale)
        x, noise = normal(5, 2), normal(5, 2, seed=1)
        whole = slope(lambda x: sds(x, here, guided, Fixed(noise)), x)
        prior = slope(lambda x: sds(x, nowhere, denoiser, Fixed(noise)), x)
        pull = slope(lambda x: csd(x, here, nowhere, denoiser, Fixed(noise)), x)
        torch.testing.assert_close(whole, prior + scale * pull, rtol=1e-10, atol=1e-10)


def test_guided_sds_is_sds_and_the_scale_times_csd():
    check_csd()


def check_dds(dds=dds) -> None:
    """Source = target: nothing to do, exactly. Else SDS here minus SDS there, the same noise for both."""
    for schedule in SMOOTH.values():
        denoiser = exact_gaussian(gaussian(schedule))
        here, there = vector(2.0, 1.0), vector(0.0, 0.0)
        x, source = normal(5, 2), normal(5, 2, seed=2)
        same = slope(lambda x: dds(x, here, x.detach().clone(), here, denoiser, draws(3)), x)
        assert float(same.abs().max()) == 0.0
        edit = slope(lambda x: dds(x, here, source, there, denoiser, draws(3)), x)
        ours = slope(lambda x: sds(x, here, denoiser, draws(3)), x)
        theirs = slope(lambda x: sds(x, there, denoiser, draws(3)), source)
        torch.testing.assert_close(edit, ours - theirs, rtol=1e-10, atol=1e-10)


def test_dds_is_a_difference_of_sds_with_one_noise():
    check_dds()


def check_no_gradient_through(distil=sds) -> None:
    """The gradient is the direction over the number of entries, whatever the denoiser's own derivative is."""
    for schedule in SMOOTH.values():
        strength = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        denoiser = told(schedule, lambda x, t, cond: strength * torch.sin(5.0 * x))
        x, noise, t = normal(4, 2).requires_grad_(), normal(4, 2, seed=1), 0.5
        loss = distil(x, None, denoiser, Fixed(noise), at(t))
        inward, toward_network = torch.autograd.grad(loss.sum(), (x, strength), allow_unused=True)
        times = at(t)(draws(), 4)
        x_t = Gaussian(schedule).corrupt(x, times, noise)
        direction = (schedule.alpha(times) * schedule.sigma(times))[:, None] * (x - denoiser.x0_hat(x_t, times))
        torch.testing.assert_close(inward, direction.detach() / 2.0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(loss, 0.5 * (direction**2).mean(1), rtol=1e-12, atol=1e-12)
        assert toward_network is None


def test_no_gradient_passes_through_the_denoiser():
    check_no_gradient_through()


def test_the_gradient_of_single_precision_samples_far_from_zero_is_the_direction_to_the_last_bit():
    # (x - stop(x - direction))^2 / 2, the usual way to write it, rounds the direction to the spacing of x
    schedule, x = SMOOTH["flow"], torch.full((3, 1), 1000.0)
    denoiser = told(schedule, lambda x, t, cond: torch.zeros_like(x))
    tiny = lambda schedule, t, x, x0_hat: torch.full_like(t, 1e-9)  # noqa: E731
    got = slope(lambda x: score_distillation(x, None, denoiser, lambda x, *_: x, draws(), MIDDLE, tiny), x)
    torch.testing.assert_close(got, torch.full((3, 1), 1e-6), rtol=1e-6, atol=0)
