"""The closed forms that everything else is tested against, against quadrature, autograd and an ODE solver."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.schedule import Linear
from tests.diffusion_core.worlds import SMOOTH, gaussian, mixture, plane_mixture, vector

every_smooth = pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
X0 = torch.linspace(-8.0, 8.0, 40_001, dtype=torch.float64)
POINTS = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)[:, None]


def joint(data: GaussianMixture, x: Tensor, t: float) -> Tensor:
    """``p(x0) q(x_t | x0)`` on the line X0, from torch's own densities: (points of x, points of X0)."""
    u = torch.tensor(t, dtype=torch.float64)
    components = torch.distributions.Normal(data.means[:, 0], data.stds)
    family = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(data.weights), components)
    kernel = torch.distributions.Normal(data.schedule.alpha(u) * X0, data.schedule.sigma(u))
    return (family.log_prob(X0) + kernel.log_prob(x)).exp()


@every_smooth
@pytest.mark.parametrize("t", [0.2, 0.6, 0.95])
def test_density_and_posterior_mean_are_those_of_quadrature(schedule, t):
    data = mixture(schedule)
    weights = joint(data, POINTS, t)
    density = torch.trapezoid(weights, X0, dim=1)
    mean = torch.trapezoid(weights * X0, X0, dim=1) / density
    torch.testing.assert_close(data.log_density(POINTS, t), density.log(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(data.bind(vector(t))(POINTS, 0)[:, 0], mean, rtol=1e-8, atol=1e-8)


@every_smooth
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_score_is_the_gradient_of_the_log_density(schedule, t):
    data = plane_mixture(schedule)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    (gradient,) = torch.autograd.grad(data.log_density(x, t).sum(), x)
    torch.testing.assert_close(data.score(x.detach(), t), gradient, rtol=1e-8, atol=1e-8)


@every_smooth
def test_the_cdf_is_the_integral_of_the_density(schedule):
    data, t = mixture(schedule), 0.3
    x = POINTS[:, 0].clone().requires_grad_(True)
    level = data.cdf(x, t)
    (density,) = torch.autograd.grad(level.sum(), x)
    torch.testing.assert_close(density, data.log_density(POINTS, t).exp(), rtol=1e-9, atol=1e-12)
    assert float(data.cdf(vector(-1e3), t)) == 0.0 and float(data.cdf(vector(1e3), t)) == pytest.approx(1.0)


@every_smooth
def test_the_flow_solves_the_probability_flow_equation(schedule):
    # dx/dt = f x - g^2/2 score with f = alpha'/alpha, g^2 = 2 sigma (sigma' - f sigma)
    data = mixture(schedule)

    def slope(t: float, x) -> Tensor:
        u = vector(t)
        drift = float(schedule.d_alpha(u) / schedule.alpha(u))
        sigma = float(schedule.sigma(u))
        half_g_squared = sigma * (float(schedule.d_sigma(u)) - drift * sigma)
        points = torch.from_numpy(x)[:, None]
        return (drift * points - half_g_squared * data.score(points, t))[:, 0].numpy()

    start = data.flow(POINTS, 0.1, 0.9)
    solved = solve_ivp(slope, (0.9, 0.1), start[:, 0].numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.from_numpy(solved.y[:, -1]), POINTS[:, 0], rtol=1e-6, atol=1e-6)


@every_smooth
def test_a_flow_in_two_parts_is_the_flow(schedule):
    for data, x in ((mixture(schedule), POINTS), (gaussian(schedule), POINTS.expand(-1, 2))):
        torch.testing.assert_close(
            data.flow(data.flow(x, 0.2, 0.5), 0.5, 0.8), data.flow(x, 0.2, 0.8), rtol=1e-8, atol=1e-8
        )


@every_smooth
def test_a_gaussian_is_a_mixture_of_one(schedule):
    one = GaussianMixture(schedule, vector(1.0), vector(0.7)[:, None], vector(0.4))
    data = GaussianData(schedule, vector(0.7), vector(0.4))
    times = vector(0.1, 0.5, 0.9)
    for i in range(3):
        torch.testing.assert_close(data.bind(times)(POINTS, i), one.bind(times)(POINTS, i), rtol=1e-11, atol=1e-11)
    near = 0.7 + 0.4 * POINTS
    torch.testing.assert_close(data.flow(near, 0.05, 0.8), one.flow(near, 0.05, 0.8), rtol=1e-9, atol=1e-9)


@every_smooth
def test_marginals_have_the_moments_of_noised_samples(schedule):
    n, t = 100_000, vector(0.6)
    generator = torch.Generator().manual_seed(0)
    data = plane_mixture(schedule)
    x0 = data.sample(n, generator)
    for of_x0, moment in (
        (x0, data.weights @ data.means),
        (x0**2, data.weights @ (data.means**2 + data.stds[:, None] ** 2)),
    ):
        assert bool(((of_x0.mean(0) - moment).abs() < 4.0 * of_x0.std(0) / math.sqrt(n)).all())
    # E[score] = 0 and E[x . score] = -d hold under the true marginal only
    x_t = schedule.alpha(t) * x0 + schedule.sigma(t) * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    score = data.score(x_t, 0.6)
    stein = (x_t * score).sum(1)
    assert bool((score.mean(0).abs() < 4.0 * score.std(0) / math.sqrt(n)).all())
    assert abs(float(stein.mean()) + 2.0) < 4.0 * float(stein.std()) / math.sqrt(n)


@every_smooth
def test_the_marginal_of_gaussian_data_is_that_of_noised_samples(schedule):
    n, t = 100_000, 0.6
    data = gaussian(schedule)
    x0, noise = torch.randn(2, n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = schedule.alpha(vector(t)) * (data.mean + data.std * x0) + schedule.sigma(vector(t)) * noise
    mean, std = data.marginal(t)
    assert bool(((x_t.mean(0) - mean).abs() < 4.0 * std / math.sqrt(n)).all())
    assert bool(((x_t.std(0) - std).abs() < 4.0 * std / math.sqrt(2 * n)).all())


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1.5, -0.5), (1.0, 0.0)])
def test_weights_that_are_no_distribution_are_refused(weights):
    with pytest.raises(WorkbenchError, match=r"got weights .*expected positive"):
        GaussianMixture(Linear(), vector(*weights), vector(0.0, 1.0)[:, None], vector(1.0, 1.0))


def test_a_cdf_in_the_plane_is_refused():
    with pytest.raises(WorkbenchError, match="got 2 dimensions; expected 1"):
        plane_mixture(Linear()).cdf(vector(0.0), 0.5)
