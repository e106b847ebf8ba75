"""Bounds and densities against Gaussians and mixtures, whose likelihood is known."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from diffusion_core import grid as grids
from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.likelihood import (
    Steps,
    bits_per_dim,
    continuous_bound,
    continuous_term,
    discretised,
    exact_divergence,
    hutchinson,
    hybrid_loss,
    interpolated_log_variance,
    log_likelihood,
    normal,
    normal_kl,
    prior_kl,
    probes,
    uniform_rows,
    variational_bound,
    vlb_loss,
)
from diffusion_core.loss import Draws, denoising_loss
from diffusion_core.ode import HEUN, RK4, evenly, integrate
from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule, VarianceExploding, linear_betas
from diffusion_core.solvers.table import Learned
from tests.diffusion_core.test_denoise import ExactNetwork
from tests.diffusion_core.worlds import SCHEDULES, SMOOTH, gaussian, mixture, plane_mixture, vector

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_smooth = pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
LINE = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None]
START = 1e-3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def clean(data: GaussianData, n: int) -> Tensor:
    return data.mean + data.std * torch.randn(n, len(data.mean), generator=seeded(1), dtype=torch.float64)


def assert_mean(values: Tensor, expected: float | Tensor, k: float = 4.5) -> None:
    """The mean over axis 0 is as expected, within k standard errors."""
    error = values.std(0) / math.sqrt(len(values)) + 1e-9 * values.abs().max()
    assert bool(((values.mean(0) - expected).abs() <= k * error).all()), (values.mean(0), expected, error)


# --- the density along the flow


def check_density(density, schedule: Schedule, tolerance: float = 1e-4) -> None:
    """``log p_start`` of mixtures on the line and in the plane, the prior being the true marginal."""
    for data, x in ((mixture(schedule), LINE), (plane_mixture(schedule), torch.cat([LINE, LINE.flip(0) + 0.7], 1))):
        got = density(data, x, START, prior=lambda x, data=data: data.log_density(x, 1.0))
        torch.testing.assert_close(got.nats, data.log_density(x, START), rtol=0, atol=tolerance)


@every_schedule
def test_the_density_along_the_flow_is_that_of_the_data(schedule):
    check_density(partial(log_likelihood, solve=partial(integrate, rtol=3e-6, atol=3e-6)), schedule)


@pytest.mark.parametrize("schedule", [linear_betas(), RectifiedFlow()], ids=["linear_betas", "flow"])
def test_fixed_steps_find_the_same_density(schedule):
    check_density(partial(log_likelihood, solve=evenly(40, RK4)), schedule)


def test_the_density_of_fixed_steps_converges_with_the_order_of_the_method():
    data = plane_mixture(Linear())
    x = data.sample(8, seeded())
    errors = [
        log_likelihood(data, x, START, prior=lambda x: data.log_density(x, 1.0), solve=evenly(n, HEUN)).nats
        - data.log_density(x, START)
        for n in (40, 80)
    ]
    assert math.log2(float(errors[0].abs().max() / errors[1].abs().max())) > 1.8


def check_prior(density, schedule: Schedule) -> None:
    """With the sampler's prior: off by what the prior differs from the marginal, at the place the flow leads to."""
    data = plane_mixture(schedule)
    x = data.sample(8, seeded())
    got = density(data, x, START, solve=partial(integrate, rtol=1e-6, atol=1e-6))
    prior = Normal(0.0, schedule.sigma(at(1.0))).log_prob(got.x).sum(1)
    gap = got.nats - data.log_density(x, START)
    torch.testing.assert_close(gap, prior - data.log_density(got.x, 1.0), rtol=0, atol=1e-4)
    # to first order in alpha: |alpha mean . x| / sigma^2, with means shorter than 1.3
    reach = schedule.alpha(at(1.0)) / schedule.sigma(at(1.0)) * (1.0 + got.x.norm(dim=1) / schedule.sigma(at(1.0)))
    assert bool((gap.abs() < 1.5 * reach + 1e-4).all())


@every_schedule
def test_the_prior_is_the_samplers(schedule):
    check_prior(log_likelihood, schedule)


@every_schedule
def test_the_density_of_a_gaussian_integrates_to_one(schedule):
    data = GaussianData(schedule, vector(0.3), vector(0.5))
    x = torch.linspace(-4.0, 5.0, 301, dtype=torch.float64)[:, None]
    got = log_likelihood(data, x, START, prior=lambda x: Normal(*data.marginal(1.0)).log_prob(x)[:, 0])
    assert float(torch.trapezoid(got.nats.exp(), x[:, 0])) == pytest.approx(1.0, abs=1e-4)


class Curved(nn.Module):
    """A smooth map whose Jacobian is full and not symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(6, 6, generator=seeded(3), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return (torch.tanh(flat @ self.matrix) * flat.cos()).reshape(x.shape)


def check_divergence(divergence) -> None:
    """The trace of ``torch.func``'s Jacobian."""
    f, x = Curved(), torch.randn(4, 2, 3, generator=seeded(), dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: f(one[None])[0].flatten()))(x).flatten(2)
    expected = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    value, got = divergence(f, x)
    torch.testing.assert_close(value, f(x), rtol=0, atol=0)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_exact_divergence_is_the_trace_of_the_jacobian():
    check_divergence(exact_divergence)


def test_hutchinsons_estimate_over_an_orthogonal_basis_is_exact():
    basis = math.sqrt(6.0) * torch.eye(6, dtype=torch.float64).reshape(6, 1, 2, 3).expand(-1, 4, -1, -1)
    check_divergence(hutchinson(basis))


def check_probes(draw) -> None:
    """Mean 0 and covariance 1, independent between elements, samples and directions."""
    for kind in ("rademacher", "gaussian"):
        e = draw(torch.zeros(5_000, 2, 2, dtype=torch.float64), seeded(), 4, kind).transpose(0, 1).flatten(1)
        assert_mean(e, 0.0)
        products = (e[:, :, None] * e[:, None]).flatten(1)
        assert_mean(products, torch.eye(16, dtype=torch.float64).flatten())


def test_probes_are_white():
    check_probes(probes)


def check_hutchinson(draw, kind: str) -> None:
    """Many estimates of one point's log-density average to the exact one, within 4.5 standard errors."""
    data = plane_mixture(Linear())
    x, solve = vector(0.3, 0.2)[None], evenly(20, RK4)
    exact = log_likelihood(data, x, 1e-2, solve=solve)
    many = x.expand(2_000, -1)
    estimates = log_likelihood(data, many, 1e-2, divergence=hutchinson(draw(many, seeded(), 1, kind)), solve=solve)
    assert float(estimates.nats.std()) > 1e-3
    assert_mean(estimates.nats, float(exact.nats))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinsons_density_is_unbiased(kind):
    check_hutchinson(probes, kind)


def test_the_density_leaves_no_gradients_and_works_with_a_network():
    data = gaussian(Linear())
    denoiser = NetworkDenoiser(ExactNetwork(Linear(), "eps"), Linear(), "eps")
    x = clean(data, 5)
    got, expected = (log_likelihood(one, x, START) for one in (denoiser, data))
    assert not got.nats.requires_grad
    torch.testing.assert_close(got.nats, expected.nats, rtol=0, atol=1e-4)


# --- elementwise log-probabilities


def check_kl(kl) -> None:
    mean, log_variance, other, other_log_variance = torch.randn(4, 50, generator=seeded(), dtype=torch.float64)
    p, q = Normal(mean, (0.5 * log_variance).exp()), Normal(other, (0.5 * other_log_variance).exp())
    torch.testing.assert_close(kl(mean, log_variance, other, other_log_variance), kl_divergence(p, q))


def test_the_divergence_of_normals_is_torchs():
    check_kl(normal_kl)
    x, mean, log_variance = torch.randn(3, 50, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(normal(x, mean, log_variance), Normal(mean, (0.5 * log_variance).exp()).log_prob(x))


def check_decoder(decoder) -> None:
    """The probabilities of all levels sum to 1, wherever the Gaussian lies, and are the integrals of its density."""
    for levels in (2, 16, 256):
        x0 = torch.linspace(-1.0, 1.0, levels, dtype=torch.float64)[:, None]
        mean = vector(-3.0, -1.0, -0.31, 0.0, 0.77, 1.0, 2.5).repeat_interleave(3)
        std = vector(0.004, 0.1, 2.0).repeat(7)
        log_probability = decoder(x0, mean, 2.0 * std.log(), levels)
        torch.testing.assert_close(
            log_probability.exp().sum(0), torch.ones(21, dtype=torch.float64), rtol=0, atol=1e-12
        )
        edges = torch.linspace(-1.0, 1.0, 2 * levels - 1, dtype=torch.float64)[1::2, None]
        cdf = Normal(mean, std).cdf(edges)
        ends = torch.zeros(1, 21, dtype=torch.float64)
        direct = torch.cat([ends, cdf, ends + 1.0]).diff(dim=0)
        torch.testing.assert_close(log_probability.exp(), direct, rtol=1e-9, atol=1e-14)


def test_the_discrete_decoder_is_a_distribution():
    check_decoder(discretised)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_discrete_decoder_is_symmetric_and_finite_in_its_tails(dtype):
    x0 = torch.linspace(-1.0, 1.0, 256, dtype=dtype)[:, None]
    mean = torch.tensor([-50.0, -1.0, 0.0, 0.4, 30.0], dtype=dtype, requires_grad=True)
    log_variance = torch.full_like(mean, 2.0 * math.log(0.01)).requires_grad_(True)
    log_probability = discretised(x0, mean, log_variance)
    torch.testing.assert_close(discretised(-x0, -mean, log_variance), log_probability)
    assert bool(torch.isfinite(log_probability).all()) and float(log_probability.detach().max()) <= 0.0
    for gradient in torch.autograd.grad(log_probability.sum(), (mean, log_variance)):
        assert bool(torch.isfinite(gradient).all())


def test_bits_of_the_uniform_distribution_are_eight():
    # density 1/2 on [-1, 1] in each of 12 dimensions, dequantised; or 256 equally likely levels
    assert float(bits_per_dim(vector(12 * math.log(2.0)), 12, bin_width=2 / 256)) == pytest.approx(8.0, abs=1e-12)
    assert float(bits_per_dim(vector(12 * math.log(256.0)), 12)) == pytest.approx(8.0, abs=1e-12)


def check_interpolation(interpolated) -> None:
    """Linear in the logarithm, at 0 the small and at 1 the large one, and on beyond both."""
    small, large = at(-3.0), at(-1.0)
    got = interpolated(vector(-0.5, 0.0, 0.25, 1.0, 1.5), small, large)
    torch.testing.assert_close(got, vector(-4.0, -3.0, -2.5, -1.0, 0.0))


def test_the_learned_variance_is_interpolated_not_clamped():
    check_interpolation(interpolated_log_variance)


# --- the bound on a grid


def check_terms(term, schedule: Schedule) -> None:
    """Every term is torch's divergence of the posterior from the model's step; the last is the decoder's."""
    grid = grids.trailing(20, 5)
    process, n = Gaussian(schedule), 5
    x0, x0_hat, x_t = torch.randn(3, n, 3, generator=seeded(), dtype=torch.float64)
    fraction = torch.rand(n, 3, generator=seeded(1), dtype=torch.float64) * 2.0 - 0.5
    t, s = grid[:-2], grid[1:-1]
    a, b, small = (c[:, None] for c in process.posterior(t, s))
    large = process.forward(t, s)[1].sqrt()[:, None]
    true, mean = a * x_t[:-1] + b * x0[:-1], a * x_t[:-1] + b * x0_hat[:-1]
    # the last step: second posterior variance for its own of 0, and the variance of q(x_t | x_0)
    last = {"small": small[-1], "large": schedule.sigma(grid[-2])[None]}
    stds = {"small": small, "large": large, "learned": large ** fraction[:-1] * small ** (1.0 - fraction[:-1])}
    last["learned"] = last["large"] ** fraction[-1] * last["small"] ** (1.0 - fraction[-1])
    for variance, std in stds.items():
        expected = kl_divergence(Normal(true, small), Normal(mean, std.expand_as(mean))).sum(1)
        decoded = -Normal(x0_hat[-1], last[variance].expand(3)).log_prob(x0[-1]).sum()
        steps = Steps(schedule, grid, variance)
        got = term(steps, torch.arange(n), x0, x0_hat, fraction if variance == "learned" else None)
        torch.testing.assert_close(got, torch.cat([expected, decoded[None]]), rtol=1e-8, atol=1e-10)


@every_schedule
def test_each_term_is_a_divergence_of_normals(schedule):
    check_terms(Steps.term, schedule)


@every_schedule
def test_a_term_is_half_the_drop_of_the_signal_to_noise_ratio(schedule):
    # Kingma et al. 2021: with the posterior's variance the term is (SNR(s) - SNR(t)) / 2 |x0 - x0_hat|^2
    steps = Steps(schedule, torch.cat([grids.uniform(10, 1.0, 0.05), vector(0.0)]))
    snr = schedule.log_snr(steps.grid[:-1]).exp()
    got = steps.term(torch.arange(10), torch.ones(10, 1, dtype=torch.float64), torch.zeros(10, 1, dtype=torch.float64))
    torch.testing.assert_close(got, 0.5 * snr.diff(), rtol=1e-9, atol=1e-12)


def check_prior_kl(prior, schedule: Schedule) -> None:
    x0 = torch.randn(6, 2, 3, generator=seeded(), dtype=torch.float64)
    for t in (0.5, 1.0):
        alpha, sigma = schedule.alpha(at(t)), schedule.sigma(at(t))
        expected = kl_divergence(Normal(alpha * x0, sigma), Normal(torch.zeros_like(x0), sigma)).sum((1, 2))
        torch.testing.assert_close(prior(schedule, x0, t), expected)


@every_schedule
def test_the_prior_term_is_a_divergence_of_normals(schedule):
    check_prior_kl(prior_kl, schedule)


def residual(data: GaussianData, t: Tensor) -> Tensor:
    """``var(x0 | x_t)`` per feature, (len(t), d)."""
    alpha, sigma = data.schedule.alpha(t)[:, None], data.schedule.sigma(t)[:, None]
    return data.std**2 * sigma**2 / (alpha**2 * data.std**2 + sigma**2)


@every_schedule
@pytest.mark.parametrize("variance", ["small", "large"])
def test_every_expected_term_of_gaussian_data_is_in_closed_form(schedule, variance):
    data = gaussian(schedule)
    x0 = clean(data, 4_000)
    steps = Steps(schedule, grids.trailing(8, 8), variance)
    bound = variational_bound(data, steps, x0, seeded())
    t, s = steps.grid[:-1], steps.grid[1:]
    _, b, std = (c[:, None] for c in Gaussian(schedule).posterior(t, s))
    model = (2.0 * std.log() if variance == "small" else Gaussian(schedule).forward(t, s)[1].log()[:, None]).exp()
    error = residual(data, t)
    ratio = std**2 / model
    expected = (0.5 * (ratio - ratio.log() - 1.0 + b**2 * error / model)).sum(1)
    last = float(std[-2] ** 2 if variance == "small" else model[-1])
    expected[-1] = (0.5 * (math.log(2.0 * math.pi * last) + error[-1] / last)).sum()
    assert_mean(bound.steps.T, expected)
    sigma = schedule.sigma(at(1.0))
    expected_prior = (schedule.alpha(at(1.0)) ** 2 * (data.mean**2 + data.std**2) / (2.0 * sigma**2)).sum()
    assert_mean(bound.prior, float(expected_prior))
    torch.testing.assert_close(bound.nats, bound.prior + bound.steps.sum(0))


class ExactStep(Denoiser):
    """Gaussian data whose estimate brings the true variance of ``p(x_s | x_t)`` along, as a learned fraction."""

    def __init__(self, data: GaussianData, steps: Steps) -> None:
        self.data, self.steps, self.process = data, steps, data.process

    def bind(self, times, cond=None):
        t, s = self.steps.grid[:-1], self.steps.grid[1:]
        _, b, std = (c[:, None] for c in self.process.posterior(t, s))
        wanted = (std**2 + b**2 * residual(self.data, t)).log()
        small, large = (log[:, None] for log in self.steps.log_variances)
        fraction, evaluate = (wanted - small) / (large - small), self.data.bind(times)
        return lambda x, i: Learned(evaluate(x, i), fraction[i].expand_as(x))


def check_exact_chain(bound, schedule: Schedule) -> None:
    """If every step has the true mean and variance, the bound is tight: what is left is the prior's error."""
    data = gaussian(schedule)
    x0 = clean(data, 4_000)
    steps = Steps(schedule, grids.trailing(6, 6), "learned")
    got = bound(ExactStep(data, steps), steps, x0, seeded()).nats
    sigma = schedule.sigma(at(1.0)).expand(2)
    mismatch = kl_divergence(Normal(*data.marginal(1.0)), Normal(torch.zeros(2, dtype=torch.float64), sigma)).sum()
    assert_mean(got + Normal(data.mean, data.std).log_prob(x0).sum(1), float(mismatch))


@every_schedule
def test_the_bound_of_an_exact_chain_is_the_likelihood(schedule):
    check_exact_chain(variational_bound, schedule)


X = torch.linspace(-4.0, 4.0, 2_001, dtype=torch.float64)[:, None]


def mmse(data: GaussianMixture, t: float) -> float:
    """``E |x0 - x0_hat|^2`` on the line, by quadrature over x_t."""
    x = X * float(schedule_width(data, t))
    density = data.log_density(x, t).exp()
    second = float((data.weights * (data.means[:, 0] ** 2 + data.stds**2)).sum())
    return second - float(torch.trapezoid(density * data.bind(vector(t))(x, 0)[:, 0] ** 2, x[:, 0]))


def schedule_width(data: GaussianMixture, t: float) -> Tensor:
    return data.schedule.alpha(at(t)) + 2.0 * data.schedule.sigma(at(t))


def expected_rows(data: GaussianMixture, steps: Steps) -> Tensor:
    """The expected terms of the bound, without a random number: each is affine in the squared error."""
    rows = torch.arange(len(steps))
    zero = torch.zeros(len(steps), 1, dtype=torch.float64)
    least = steps.term(rows, zero, zero)
    slope = steps.term(rows, zero + 1.0, zero) - least
    return least + slope * vector(*(mmse(data, t) for t in steps.times.tolist()))


def expected_prior(data: GaussianMixture, start: float) -> float:
    second = (data.weights * (data.means[:, 0] ** 2 + data.stds**2)).sum()
    return float(0.5 * (data.schedule.alpha(at(start)) / data.schedule.sigma(at(start))) ** 2 * second)


def entropy(data: GaussianMixture) -> float:
    log_density = data.log_density(X, 0.0)
    return -float(torch.trapezoid(log_density.exp() * log_density, X[:, 0]))


@every_smooth
def test_the_bound_of_a_mixture_is_above_its_likelihood_and_tightens_with_more_steps(schedule):
    data = mixture(schedule)
    end = float(schedule.t_of_log_snr(at(math.log(1e3))))
    gaps = []
    for n in (5, 15, 45):
        steps = Steps(schedule, grids.log_snr_uniform(schedule, n, 0.995, end), "large")
        gaps.append(float(expected_rows(data, steps).sum()) + expected_prior(data, 0.995) - entropy(data))
    # first order in the number of steps, which triples
    assert gaps[0] > 1.8 * gaps[1] > 1.8 * 2.4 * gaps[2] > 0.0, gaps


@pytest.mark.parametrize("schedule", [Linear(), VarianceExploding(20.0)], ids=["linear", "exploding"])
def test_the_estimated_bound_of_a_mixture_has_the_expected_terms(schedule):
    data = mixture(schedule)
    steps = Steps(schedule, grids.log_snr_uniform(schedule, 8, 0.99, 0.02), "large")
    bound = variational_bound(data, steps, data.sample(4_000, seeded()), seeded(1))
    assert_mean(bound.steps.T, expected_rows(data, steps))


# --- the bound in continuous time


def check_continuous(bound, schedule: Schedule) -> None:
    """Gaussian data: ``1/2 integral of mmse dSNR = 1/2 log (1 + std^2 SNR)`` between its ends, per feature."""
    data = gaussian(schedule)
    x0 = clean(data, 4_000)
    end = 0.01
    got = bound(data, x0, seeded(), n=64, end=end)
    snr = schedule.log_snr(vector(1.0, end)).exp()[:, None]
    integral = (0.5 * torch.log1p(data.std**2 * snr)).sum(1).diff()
    # times are shared by the batch: the strata leave an error of their own, of which 2% is a generous measure
    found = got.steps[:-1].sum(0)
    error = float(found.std()) / math.sqrt(len(x0))
    assert abs(float(found.mean() - integral)) < 4.5 * error + 0.02 * float(integral)
    assert_mean(got.steps[-1], 1.0 + math.log(2.0 * math.pi / float(snr[1])))
    assert_mean(got.prior, float(0.5 * snr[0] * (data.mean**2 + data.std**2).sum()))


@every_smooth
def test_the_continuous_bound_of_gaussian_data_is_in_closed_form(schedule):
    check_continuous(continuous_bound, schedule)


@every_schedule
def test_the_continuous_term_is_the_limit_of_the_discrete_ones(schedule):
    x0, x0_hat = torch.randn(2, 3, 2, generator=seeded(), dtype=torch.float64)
    for t in (0.1503, 0.5004, 0.9001):
        times = torch.full((3,), t, dtype=torch.float64)
        h = 1e-6
        steps = Steps(schedule, vector(t + h / 2, t - h / 2, 0.0))
        short = steps.term(torch.zeros(3, dtype=torch.int64), x0, x0_hat) / h
        torch.testing.assert_close(continuous_term(schedule, times, x0, x0_hat), short, rtol=1e-5, atol=1e-9)


@every_smooth
def test_the_discrete_bound_of_a_mixture_tends_to_the_continuous_one(schedule):
    data = mixture(schedule)
    start, end = 0.99, float(schedule.t_of_log_snr(at(math.log(1e3))))
    times = torch.exp(torch.linspace(math.log(start), math.log(end), 201, dtype=torch.float64))
    one, zero = torch.ones(201, 1, dtype=torch.float64), torch.zeros(201, 1, dtype=torch.float64)
    rates = continuous_term(schedule, times, one, zero) * vector(*(mmse(data, t) for t in times.tolist()))
    continuous = -float(torch.trapezoid(rates, times))
    gaps = []
    for every in (20, 10, 5):
        steps = Steps(schedule, torch.cat([times[::every], vector(0.0)]))
        gaps.append(float(expected_rows(data, steps)[:-1].sum()) - continuous)
    # first order in the step, from above
    assert gaps[0] > 1.6 * gaps[1] > 1.6**2 * gaps[2] > 0.0, gaps
    # and the limit itself is the likelihood, but for the prior's error and the blur at its end
    decoder = 0.5 * (1.0 + math.log(2.0 * math.pi) - float(schedule.log_snr(at(end))))
    assert 0.0 < continuous + expected_prior(data, start) + decoder - entropy(data) < 0.05


# --- the losses


class TwoHalves(nn.Module):
    """An exact prediction off by a learnable shift, and a learnable interpolation of the variance, side by side."""

    def __init__(self, schedule: Schedule, kind: str) -> None:
        super().__init__()
        self.exact = ExactNetwork(schedule, kind)
        self.shift = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.variance = nn.Parameter(torch.tensor(-0.4, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        prediction = self.exact(x, t, cond) + self.shift
        return torch.cat([prediction, self.variance.expand_as(prediction)], -1)


def learned(schedule: Schedule, kind: str = "eps", n: int = 8) -> tuple[NetworkDenoiser, Steps]:
    denoiser = NetworkDenoiser(TwoHalves(schedule, kind), schedule, kind, variance_axis=-1)
    return denoiser, Steps(schedule, grids.trailing(n, n), "learned")


def mostly_early(draws: Draws, batch: int, n: int) -> tuple[Tensor, Tensor]:
    """An importance sampler: the last row as often as all others together."""
    rows, _ = uniform_rows(draws, batch, n - 1)
    last = draws.uniform((batch,)) < 0.5
    probability = torch.where(last, 0.5, 0.5 / (n - 1))
    return torch.where(last, n - 1, rows), probability.double()


def check_vlb_loss(loss, rows) -> None:
    """Per element, the mean over rows and noise is the sum of the bound's terms."""
    schedule = Linear()
    denoiser, steps = learned(schedule)
    x0 = clean(gaussian(schedule), 20_000)
    expected = variational_bound(denoiser, steps, x0, seeded()).steps.sum(0) / 2
    got = loss(denoiser, steps, x0, None, Draws(seeded(5)), rows=rows).detach()
    assert got.shape == (20_000,)
    error = math.sqrt(float(got.var() + expected.var()) / 20_000)
    assert abs(float(got.mean() - expected.mean())) < 4.5 * error


@pytest.mark.parametrize("rows", [uniform_rows, mostly_early], ids=["uniform", "importance"])
def test_the_loss_of_the_bound_is_unbiased(rows):
    check_vlb_loss(vlb_loss, rows)


def check_hybrid(hybrid, vlb=vlb_loss) -> None:
    """The prediction learns from the simple loss alone, the variance from the bound alone."""
    for schedule, kind in ((Linear(), "eps"), (RectifiedFlow(), "velocity"), (Cosine(), "v")):
        denoiser, steps = learned(schedule, kind)
        x0 = clean(gaussian(schedule), 64)
        parameters = (denoiser.network.shift, denoiser.network.variance)
        got = torch.autograd.grad(hybrid(denoiser, steps, x0, None, Draws(seeded())).mean(), parameters)
        bound = torch.autograd.grad(vlb(denoiser, steps, x0, None, Draws(seeded())).mean(), parameters)

        def times(draws: Draws, batch: int, steps: Steps = steps) -> Tensor:
            return steps.times[uniform_rows(draws, batch, len(steps))[0]]

        simple = denoising_loss(denoiser, x0, None, Draws(seeded()), times=times).mean()
        (of_shift,) = torch.autograd.grad(simple, parameters[0])
        assert abs(float(bound[0])) > 1e-3 and abs(float(bound[1])) > 1e-3
        torch.testing.assert_close(got[0], of_shift, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got[1], 0.001 * bound[1], rtol=1e-9, atol=1e-12)


def test_the_hybrid_loss_stops_the_bounds_gradient_at_the_mean():
    check_hybrid(hybrid_loss)


def test_a_fixed_variance_trains_too():
    schedule = Linear()
    denoiser = NetworkDenoiser(ExactNetwork(schedule, "x0"), schedule, "x0")
    steps = Steps(schedule, grids.trailing(8, 8), "large")
    x0 = clean(gaussian(schedule), 20_000)
    got = vlb_loss(denoiser, steps, x0, None, Draws(seeded()))
    expected = variational_bound(denoiser, steps, x0, seeded()).steps.sum(0) / 2
    assert abs(float(got.mean() - expected.mean())) < 4.5 * math.sqrt(float(got.var() + expected.var()) / 20_000)


def test_gradients_are_finite_in_single_precision_for_images_at_every_row():
    # bins of width 1/128 under a noise of 80: their probability rounds to 0 where no decoder was asked for
    for schedule in (VarianceExploding(80.0), Linear()):
        steps = Steps(schedule, grids.trailing(10, 10), "learned", discretised)
        x0 = (torch.randint(0, 256, (10, 1, 4, 4), generator=seeded()) / 127.5 - 1.0).float()
        # a first row's estimate is as far off as eps / alpha can make it; the last one's is near
        far = torch.tensor([1e8, *[1e3] * 8, 1.0])[:, None, None, None]
        x0_hat = torch.randn(10, 1, 4, 4, generator=seeded()).mul(far).requires_grad_(True)
        fraction = torch.rand(10, 1, 4, 4, generator=seeded()).requires_grad_(True)
        term = steps.term(torch.arange(10), x0, x0_hat, fraction)
        for gradient in torch.autograd.grad(term.sum(), (x0_hat, fraction)):
            assert bool(torch.isfinite(gradient).all())


def test_the_bound_of_discrete_data_is_a_probability():
    # one level out of four with certainty: the best decoder gives 0 nats, uniform guessing log 4
    schedule = Cosine()
    steps = Steps(schedule, grids.trailing(50, 50), "small", partial(discretised, levels=4))
    data = GaussianData(schedule, vector(1 / 3), vector(1e-9))
    bound = variational_bound(data, steps, torch.full((10, 1), 1 / 3, dtype=torch.float64), seeded())
    assert float(bound.nats.max()) < 1e-6


# --- mistakes


def test_mistakes_are_named():
    schedule = Linear()
    with pytest.raises(WorkbenchError, match=r"ends at t=0\.1"):
        Steps(schedule, vector(1.0, 0.5, 0.1))
    with pytest.raises(WorkbenchError, match="rising"):
        Steps(schedule, vector(0.1, 0.5, 1.0))
    x0 = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(WorkbenchError, match="no fraction"):
        Steps(schedule, vector(1.0, 0.5, 0.0), "learned").term(torch.zeros(2, dtype=torch.int64), x0, x0)
    with pytest.raises(WorkbenchError, match="a fraction"):
        Steps(schedule, vector(1.0, 0.5, 0.0)).term(torch.zeros(2, dtype=torch.int64), x0, x0, x0)
    with pytest.raises(WorkbenchError, match="a denoiser under Cosine"):
        variational_bound(mixture(Cosine()), Steps(schedule, vector(1.0, 0.5, 0.0)), LINE, seeded())
    with pytest.raises(WorkbenchError, match="where there is none"):
        log_likelihood(mixture(schedule), LINE, 0.0)
    with pytest.raises(WorkbenchError, match="where there is none"):
        continuous_bound(mixture(schedule), LINE, seeded(), end=0.0)
