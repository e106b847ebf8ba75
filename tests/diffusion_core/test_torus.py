"""The torus: both series of the wrapped normal against each other, solvers against an exact flow and an exact law."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_core import grid as grids
from diffusion_core.contracts import HostReads, check_process
from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.noise import PerSample, Shared
from diffusion_core.oracles import WrappedMixture
from diffusion_core.plan import Plan, Together
from diffusion_core.process import wrapped_normal as wrapped
from diffusion_core.process.joint import Joint
from diffusion_core.process.torus import Torus
from diffusion_core.sample import sample, trajectory
from diffusion_core.schedule import GeometricVarianceExploding, Linear, VarianceExploding
from diffusion_core.solvers import ddim
from diffusion_core.solvers import torus as solvers
from diffusion_core.solvers.torus import Wrapped
from tests.diffusion_core.worlds import gaussian, vector

ScoreFn = Callable[[Tensor, Tensor, float], Tensor]
TorusSolver = Callable[[Torus, Tensor], Wrapped]

CIRCLE = Torus(VarianceExploding(1.0))
LONG = Torus(VarianceExploding(3.0), period=3.0)
FINE = torch.linspace(-0.5, 0.5, 401, dtype=torch.float64)
every_sigma = pytest.mark.parametrize("sigma", [0.003, 0.05, 0.2, 0.39, 0.4, 0.41, 0.7, 1.0, 2.0, 5.0])


def even_mixture(process: Torus) -> WrappedMixture:
    """Three modes, even about 0: no probability flows past the origin."""
    means = vector(0.0, 0.3, -0.3)[:, None] * process.period
    return WrappedMixture(process, vector(0.4, 0.3, 0.3), means, vector(0.06, 0.08, 0.08) * process.period)


def plane_mixture(process: Torus) -> WrappedMixture:
    means = torch.tensor([[0.1, 0.9], [0.6, 0.4]], dtype=torch.float64) * process.period
    return WrappedMixture(process, vector(0.35, 0.65), means, vector(0.1, 0.2) * process.period)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# --- the wrapped normal -----------------------------------------------------------------------------------


def many_images(u: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Log-density and score by a sum that is far too long, period 1."""
    k = torch.arange(-200, 201, dtype=torch.float64)
    d = u[:, None] + k
    logits = -0.5 * (d / sigma) ** 2
    share = logits.softmax(1)
    return logits.logsumexp(1) - math.log(sigma * math.sqrt(2.0 * math.pi)), -(share * d).sum(1) / sigma**2


def check_score(score: ScoreFn, sigma: float) -> None:
    """``sigma score`` at every displacement, to float64's precision of the displacement itself."""
    expected = many_images(FINE, sigma)[1]
    torch.testing.assert_close(sigma * score(FINE, full(sigma), 1.0), sigma * expected, rtol=0, atol=2e-14 / sigma**2)


@every_sigma
def test_score_and_log_density_are_the_endless_sum_of_images(sigma):
    check_score(wrapped.score, sigma)
    expected = many_images(FINE, sigma)[0]
    torch.testing.assert_close(wrapped.log_density(FINE, full(sigma), 1.0), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 3e-15), (torch.float32, 2e-6)], ids=str)
def test_both_series_agree_around_the_switch(dtype, tolerance, monkeypatch):
    u = FINE.to(dtype)
    for sigma in (0.3, 0.35, 0.4, 0.45, 0.5):
        width = torch.tensor(sigma, dtype=dtype)
        both = []
        for switch in (9.0, 0.0):
            monkeypatch.setattr(wrapped, "SWITCH", switch or 1e-3)
            both.append((wrapped.score(u, width, 1.0), wrapped.log_density(u, width, 1.0)))
        (score_a, density_a), (score_b, density_b) = both
        torch.testing.assert_close(sigma * score_a, sigma * score_b, rtol=0, atol=tolerance)
        torch.testing.assert_close(density_a, density_b, rtol=0, atol=tolerance)


@every_sigma
def test_float32_is_float64_rounded(sigma):
    u = FINE.float().double()
    width = torch.tensor(sigma, dtype=torch.float32)
    exact = wrapped.score(u, width.double(), 1.0)
    got = wrapped.score(u.float(), width, 1.0).double()
    torch.testing.assert_close(sigma * got, sigma * exact, rtol=2e-5, atol=3e-6)


def test_the_score_of_a_flat_distribution_is_none():
    score = wrapped.score(FINE[None], vector(1.0, 2.0, 5.0, 50.0)[:, None], 1.0)
    bound = 4.1 * math.pi * torch.exp(-2.0 * math.pi**2 * vector(1.0, 4.0, 25.0, 2500.0))
    assert bool((score.abs().amax(1) <= bound).all())


@every_sigma
def test_score_is_the_gradient_of_log_density(sigma):
    x = (3.0 * FINE[::7]).requires_grad_()
    (gradient,) = torch.autograd.grad(wrapped.log_density(x, full(sigma), 3.0).sum(), x)
    score = wrapped.score(x.detach(), full(sigma), 3.0)
    torch.testing.assert_close(gradient, score, rtol=1e-10, atol=1e-12 / sigma**2)


@settings(deadline=None)
@given(
    x=st.integers(0, 2**20 - 1).map(lambda n: n / 2**20), turns=st.integers(-4, 4), sigma=st.sampled_from([0.05, 0.7])
)
def test_a_whole_turn_changes_nothing(x, turns, sigma):
    here, there = vector(x), vector(x + turns)
    assert torch.equal(wrapped.wrap(there, 1.0), here)
    for of in (wrapped.score, wrapped.log_density, wrapped.normalised_score):
        assert torch.equal(of(here, full(sigma), 1.0), of(there, full(sigma), 1.0))


def check_wrap(wrap: Callable[[Tensor, float], Tensor]) -> None:
    """In [0, period), and the same point of the circle."""
    for dtype in (torch.float32, torch.float64):
        for period in (1.0, 0.3, 7.0):
            x = torch.cat([torch.linspace(-30.0, 30.0, 601), torch.tensor([-1e-20, 0.0, -1e-45, 1e-20])]).to(dtype)
            w = wrap(x, period)
            assert bool((w >= 0.0).all() and (w < period).all())
            turns = (x - w) / period
            torch.testing.assert_close(turns, turns.round(), rtol=0, atol=200 * torch.finfo(dtype).eps)


def test_wrap_stays_inside_the_period():
    check_wrap(wrapped.wrap)


@pytest.mark.parametrize("sigma", [0.01, 0.0502, 0.07, 0.2, 0.4, 0.8, 1.5, 3.0])
def test_score_norm_and_the_normalised_score(sigma):
    u = (torch.arange(8192, dtype=torch.float64) + 0.5) / 8192 - 0.5
    density = wrapped.log_density(u, full(sigma), 1.0).exp()
    score = wrapped.score(u, full(sigma), 1.0)
    norm = wrapped.score_norm(full(2.0 * sigma), 2.0) * 4.0
    torch.testing.assert_close(norm, (density * score**2).mean(), rtol=1e-8, atol=0)
    normalised = wrapped.normalised_score(2.0 * u, full(2.0 * sigma), 2.0)
    torch.testing.assert_close(normalised * norm.sqrt(), score, rtol=1e-8, atol=1e-300)
    assert float((density * normalised**2).mean()) == pytest.approx(1.0, abs=1e-8)


def test_the_normalised_score_survives_where_the_score_does_not():
    for dtype in (torch.float32, torch.float64):
        u = FINE.to(dtype)
        got = wrapped.normalised_score(u, torch.tensor(20.0, dtype=dtype), 1.0)
        torch.testing.assert_close(got, -math.sqrt(2.0) * torch.sin(2.0 * math.pi * u), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.41, 2.0])
def test_cdf_is_the_integral_of_the_density(sigma):
    x = torch.linspace(0.0, 2.0, 20001, dtype=torch.float64)
    density = wrapped.log_density(x - 0.7, full(sigma), 2.0).exp()
    integral = torch.cat([torch.zeros(1).double(), (0.5 * (density[1:] + density[:-1]) * 1e-4).cumsum(0)])
    torch.testing.assert_close(
        wrapped.cdf(x, full(0.7), full(sigma), 2.0), integral, rtol=0, atol=2e-5 / (sigma / 0.02)
    )
    assert float(wrapped.cdf(full(2.0), full(0.7), full(sigma), 2.0)) == pytest.approx(1.0, abs=1e-14)


# --- the process -----------------------------------------------------------------------------------------


def check_no_host_reads(denoiser: Denoiser, plan: Plan, x: Tensor) -> None:
    """No row of the loop waits for a tensor's value."""
    noise = Shared(generator())
    evaluate, advance = denoiser.bind(plan.bound), plan.begin(x, noise)
    with HostReads() as reads:
        for i in range(len(plan.ends_step)):
            x = advance(x, evaluate(x, i), i)
    assert reads.seen == []


def test_the_process_and_the_oracle_keep_the_contracts():
    check_process(LONG, plane_mixture(LONG).sample(4, generator()))
    check_process(LONG, plane_mixture(LONG).sample(6, generator()).reshape(2, 3, 2).float())
    x = LONG.prior(torch.randn(4, 2, generator=generator(), dtype=torch.float64))
    for plan in (solvers.ancestral(LONG, grids.uniform(5)), solvers.flow(LONG, grids.uniform(5), 3)):
        check_no_host_reads(plane_mixture(LONG), plan, x)


def test_a_geometric_schedule_ends_at_its_least_noise():
    process = Torus(GeometricVarianceExploding(0.005, 0.5))
    data = even_mixture(process)
    exact = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None]
    plan = solvers.flow(process, grids.uniform(100), 2)
    end = sample(data, plan, data.flow(exact, 0.0, 1.0))
    assert float(wrapped.displacement(end, exact, 1.0).abs().max()) < 2e-3
    assert process.prior(torch.zeros(2, 1)).tolist() == [[0.5], [0.5]]


def test_other_schedules_and_periods_are_refused():
    with pytest.raises(WorkbenchError, match="alpha = 1"):
        Torus(Linear())
    with pytest.raises(WorkbenchError, match="period=0"):
        Torus(VarianceExploding(1.0), 0.0)


def test_the_prior_is_uniform_and_refused_where_data_is_left():
    noise = LONG.noise(torch.zeros(100_000, 1, dtype=torch.float64), Draws(generator()))
    x = LONG.prior(noise, exponent=2.0)[:, 0].sort().values / 3.0
    rank = torch.arange(1, 100_001, dtype=torch.float64) / 100_000
    assert float((x - rank).abs().max()) < 1.95 / math.sqrt(100_000)  # Kolmogorov's law at 1e-3
    assert float(LONG.prior(torch.full((2,), 40.0)).max()) < 3.0
    with pytest.raises(WorkbenchError, match="total variation"):
        Torus(VarianceExploding(0.4)).prior(noise)


@pytest.mark.parametrize("sigma", [0.4, 0.5, 0.8])
def test_the_prior_error_is_the_total_variation(sigma):
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    distance = 0.5 * (wrapped.log_density(u, full(sigma), 1.0).exp() - 1.0).abs().mean()
    assert Torus(VarianceExploding(sigma)).prior_error(1.0) == pytest.approx(float(distance), rel=1e-4)


def test_corrupt_is_the_marginal_of_the_oracle():
    data = even_mixture(LONG)
    n = 100_000
    x0 = data.sample(n, generator())
    t = torch.full((n,), 0.13, dtype=torch.float64)
    x_t = LONG.corrupt(x0, t, LONG.noise(x0, Draws(generator(1))))
    assert ks(data.cdf(x_t[:, 0], 0.13)) < 1.95


@pytest.mark.parametrize("scale", ["sigma", "norm"])
def test_target_times_scale_is_the_score_and_learns_the_marginal_score(scale):
    x0 = torch.tensor([[0.1, 0.9], [0.4, 0.2]], dtype=torch.float64)
    t = vector(0.05, 0.6)
    x_t = LONG.corrupt(x0, t, torch.tensor([[0.3, -1.0], [2.0, 0.4]], dtype=torch.float64))
    target = LONG.target(x0, x_t, t, scale)
    score = LONG.score(x0, x_t, t)
    torch.testing.assert_close(target * LONG.output_scale(t, scale)[:, None], score, rtol=1e-8, atol=1e-12)
    alone = wrapped.score(x_t[0] - x0[0], LONG.schedule.sigma(t[0]), LONG.period)
    torch.testing.assert_close(score[0], alone, rtol=1e-12, atol=1e-12)


def test_the_mean_conditional_score_is_the_marginal_score():
    data, t = plane_mixture(CIRCLE), 0.15
    x = torch.tensor([[0.2, 0.3], [0.8, 0.55]], dtype=torch.float64)
    x0 = data.sample(200_000, generator())
    sigma = CIRCLE.schedule.sigma(full(t))
    for point in x:
        weight = wrapped.log_density(point - x0, sigma, 1.0).sum(1).softmax(0)
        each = CIRCLE.score(x0, point.expand_as(x0), torch.full((len(x0),), t, dtype=torch.float64))
        mean = (weight[:, None] * each).sum(0)
        error = (weight[:, None] ** 2 * (each - mean) ** 2).sum(0).sqrt()
        assert bool(((mean - data.score(point, t)).abs() < 4.0 * error).all())


def test_the_oracle_score_is_the_gradient_of_its_log_density():
    data = plane_mixture(LONG)
    x = torch.rand(50, 2, generator=generator(), dtype=torch.float64).mul(3.0).requires_grad_()
    for t in (0.0, 0.1, 0.5, 1.0):
        (gradient,) = torch.autograd.grad(data.log_density(x, t).sum(), x)
        torch.testing.assert_close(data.score(x.detach(), t), gradient, rtol=1e-9, atol=1e-11)


def test_products_add_scores_and_known_values_pull():
    x, a, b = torch.rand(3, 4, 2, generator=generator(), dtype=torch.float64)
    times = vector(0.5, 0.2)
    combined = CIRCLE.combine(torch.tensor([[1.0, 0.5], [2.0, -1.0]], dtype=torch.float64), times)
    torch.testing.assert_close(combined(x, [a, b], 1), 2.0 * a - b, rtol=1e-14, atol=1e-14)
    mask = torch.tensor([True, False]).expand(4, 2)
    pinned = CIRCLE.pin(times)(x, a, mask, b, 1)
    torch.testing.assert_close(pinned[:, 1], a[:, 1], rtol=0, atol=0)
    clean = CIRCLE.clean(vector(0.002))(x, CIRCLE.pin(vector(0.002))(x, a, torch.ones_like(mask), b, 0), 0)
    torch.testing.assert_close(wrapped.displacement(clean, b, 1.0), torch.zeros_like(b), rtol=0, atol=1e-12)
    tilted = CIRCLE.tilt(times, "x_t")(x, a, b, 0)
    torch.testing.assert_close(tilted, a + b, rtol=1e-14, atol=1e-14)


# --- solvers ---------------------------------------------------------------------------------------------


def flow_of(order: int) -> TorusSolver:
    return lambda process, grid: solvers.flow(process, grid, order)


def flow_error(solver: TorusSolver, n: int, process: Torus) -> float:
    data = even_mixture(process)
    exact = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None] * process.period
    start = data.flow(exact, 0.05, 0.8)
    end = sample(data, solver(process, grids.uniform(n, 0.8, 0.05)), start)
    return float(wrapped.displacement(end, exact, process.period).abs().mean())


def check_order(solver: TorusSolver, order: float) -> None:
    """The error on the exact probability flow of an even mixture falls as ``n^-order``."""
    slope = math.log2(flow_error(solver, 192, CIRCLE) / flow_error(solver, 384, CIRCLE))
    assert slope == pytest.approx(order, abs=0.13)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_error_on_the_exact_flow_falls_with_the_order(order):
    check_order(flow_of(order), order)


def test_the_flow_scales_with_the_period():
    assert flow_error(flow_of(2), 16, LONG) == pytest.approx(3.0 * flow_error(flow_of(2), 16, CIRCLE), rel=1e-9)


def test_a_rising_grid_inverts_the_flow():
    data = even_mixture(CIRCLE)
    x = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None]
    grid = grids.uniform(200, 0.8, 0.05)
    noise = sample(data, solvers.flow(CIRCLE, grid.flip(0), 3), x)
    back = sample(data, solvers.flow(CIRCLE, grid, 3), noise)
    assert float(wrapped.displacement(back, x, 1.0).abs().max()) < 3e-4


def check_adams(solver: TorusSolver, order: int) -> None:
    """On a score that is a polynomial of u the step of full order is exact: no matter how uneven the grid."""
    grid = vector(0.9, 0.8, 0.55, 0.5, 0.2, 0.1)
    table = solver(CIRCLE, grid).table
    u = 0.5 * CIRCLE.schedule.sigma(grid) ** 2
    power = order - 1
    for i in range(power, 5):
        step = sum(float(table.estimate[i, k]) * float(u[i - k]) ** power for k in range(order))
        exact = (float(u[i]) ** (power + 1) - float(u[i + 1]) ** (power + 1)) / (power + 1)
        assert step == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_adams_integrates_polynomials_in_u_exactly(order):
    check_adams(flow_of(order), order)


def ks(levels: Tensor) -> float:
    """Kolmogorov's distance of ``levels`` from uniform in units of ``1 / sqrt(n)``."""
    levels, n = levels.sort().values, len(levels)
    rank = torch.arange(n, dtype=torch.float64) / n
    return float(torch.maximum(levels - rank, rank + 1.0 / n - levels).max()) * math.sqrt(n)


def exact_law(data: WrappedMixture, grid: Tensor) -> Tensor:
    """Fourier coefficients 0, 1, .. of what ancestral sampling yields, with no sampling: period 1, from uniform.

    Written again from Gaussian conditioning: the mean of x_s is ``x_t + (1 - sigma_s^2 / sigma_t^2) sigma_t^2 score``.
    """
    nodes = (torch.arange(512, dtype=torch.float64) / 512)[:, None]
    n = torch.arange(160, dtype=torch.float64)
    coefficients = (n == 0).to(torch.complex128)
    waves = torch.exp(2j * math.pi * n * nodes)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        density = 2.0 * (waves[:, 1:] @ coefficients[1:]).real + 1.0
        sigma_t, sigma_s = (float(data.process.schedule.sigma(full(v))) for v in (t, s))
        mean = nodes + (1.0 - sigma_s**2 / sigma_t**2) * sigma_t**2 * data.score(nodes, t)
        variance = sigma_s**2 * (1.0 - sigma_s**2 / sigma_t**2)
        pushed = (density[:, None] * torch.exp(-2j * math.pi * n * mean)).mean(0)
        coefficients = pushed * torch.exp(-2.0 * (math.pi * n) ** 2 * variance)
    return coefficients


def law_cdf(coefficients: Tensor, x: Tensor) -> Tensor:
    n = torch.arange(1, len(coefficients), dtype=torch.float64)
    waves = (torch.exp(2j * math.pi * n * x[:, None]) - 1.0) / (2j * math.pi * n)
    return x + 2.0 * (waves @ coefficients[1:]).real


def check_ancestral(solver: TorusSolver) -> None:
    """Samples follow the law that the exact score and the ancestral formula have, at few and uneven steps."""
    data = even_mixture(CIRCLE)
    grid = vector(1.0, 0.7, 0.45, 0.3, 0.2, 0.12, 0.07)
    n, source = 100_000, Shared(generator())
    x = CIRCLE.prior(torch.randn(n, 1, generator=source.generator, dtype=torch.float64))
    x = sample(data, solver(CIRCLE, grid), x, noise=source)
    nodes = torch.linspace(0.0, 1.0, 2049, dtype=torch.float64)
    levels = law_cdf(exact_law(data, grid), nodes)
    i = (x[:, 0] * 2048).long()
    inside = x[:, 0] * 2048 - i
    assert ks(levels[i] + inside * (levels[i + 1] - levels[i])) < 1.95


def test_ancestral_samples_follow_their_exact_law():
    check_ancestral(solvers.ancestral)


def test_the_law_of_ancestral_sampling_converges_to_the_data():
    data = even_mixture(CIRCLE)
    nodes = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)

    def error(n: int) -> float:
        ratio = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)
        law = law_cdf(exact_law(data, 0.03**ratio), nodes)
        return float((law - data.cdf(nodes, 0.03)).abs().mean())

    coarse, fine = error(80), error(160)
    assert math.log2(coarse / fine) == pytest.approx(1.0, abs=0.12)
    assert fine < 2e-3


def test_ancestral_ends_on_the_data_exactly():
    """A single point as data, the last step to t = 0: the score pulls all the way."""
    point = WrappedMixture(CIRCLE, vector(1.0), vector(0.97)[:, None], vector(1e-9))
    noise = Shared(generator())
    x = CIRCLE.prior(torch.randn(500, 1, generator=noise.generator, dtype=torch.float64))
    end = sample(point, solvers.ancestral(CIRCLE, grids.uniform(60)), x, noise=noise)
    assert float(wrapped.displacement(end, vector(0.97), 1.0).abs().max()) < 1e-6


def check_corrector(corrected: Callable[..., Wrapped]) -> None:
    """Langevin rows at one time turn a uniform start into the marginal there, to the step's known bias."""
    data, sigma = even_mixture(CIRCLE), 0.1
    grid = vector(0.11, 0.1)
    plan = corrected(solvers.flow(CIRCLE, grid, 1), CIRCLE, steps=60, size=0.2)
    noise = Shared(generator())
    x = torch.rand(10_000, 1, generator=noise.generator, dtype=torch.float64)
    end = sample(data, plan, x, noise=noise)
    # the Euler step's stationary law is wider by delta / 2 per unit of curvature: a few percent of the width
    assert ks(data.cdf(end[:, 0], sigma)) < 1.95 + 0.01 * math.sqrt(10_000)
    assert ks(data.cdf(x[:, 0], sigma)) > 4.0


def test_the_corrector_relaxes_to_the_marginal():
    check_corrector(solvers.corrected)


def test_the_corrector_keeps_the_trajectory_and_refuses_a_memory():
    grid = vector(0.5, 0.3, 0.0)
    plan = solvers.corrected(solvers.ancestral(CIRCLE, grid), CIRCLE, steps=2)
    assert plan.ends_step.tolist() == [False, False, True, True]
    data, x = even_mixture(CIRCLE), torch.rand(3, 1, generator=generator(), dtype=torch.float64)
    assert [state.t for state in trajectory(data, plan, x, noise=Shared(generator()))] == [0.3, 0.0]
    with pytest.raises(WorkbenchError, match="scores a row"):
        solvers.corrected(solvers.flow(CIRCLE, grid, 2), CIRCLE)


def test_per_sample_times_are_per_sample_runs():
    data = even_mixture(CIRCLE)
    grids_2 = torch.stack([grids.uniform(4), grids.uniform(4, 0.7, 0.1)], 1)
    x = torch.rand(2, 5, 1, generator=generator(), dtype=torch.float64)
    many = sample(
        data,
        solvers.flow(CIRCLE, grids_2[:, :, None].expand(-1, -1, 5).contiguous(), 1),
        x,
    )
    for j in range(2):
        alone = sample(data, solvers.flow(CIRCLE, grids_2[:, j].contiguous(), 1), x[j])
        torch.testing.assert_close(many[j], alone, rtol=0, atol=1e-12)


def test_beside_another_field_it_runs_as_it_does_alone():
    line, circle = gaussian(Linear()), even_mixture(CIRCLE)

    class Both(Denoiser):
        process = Joint({"line": line.process, "circle": circle.process})

        def bind(self, times: Any, cond: Any = None) -> Any:
            first, second = line.bind(times["line"]), circle.bind(times["circle"])
            return lambda x, i: {"line": first(x["line"], i), "circle": second(x["circle"], i)}

    plans: dict[str, Plan] = {
        "line": ddim(Linear(), grids.uniform(8, 0.99)),
        "circle": solvers.flow(CIRCLE, grids.uniform(8), 2),
    }
    base = Both.process.noise(
        {"line": torch.zeros(4, 2).double(), "circle": torch.zeros(4, 1).double()}, Draws(generator())
    )
    x = Both.process.prior(base)
    end = sample(Both(), Together(plans), x)
    assert torch.equal(end["line"], sample(line, plans["line"], x["line"]))
    assert torch.equal(end["circle"], sample(circle, plans["circle"], x["circle"]))


def test_a_sample_does_not_depend_on_its_batch():
    data = even_mixture(CIRCLE)
    plan = solvers.ancestral(CIRCLE, grids.uniform(10))
    x = torch.rand(3, 1, generator=generator(), dtype=torch.float64)
    together = sample(data, plan, x, noise=PerSample.from_seeds([5, 6, 7]))
    alone = sample(data, plan, x[1:2], noise=PerSample.from_seeds([6]))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)


def test_the_flow_of_an_uneven_mixture_is_refused():
    data = WrappedMixture(CIRCLE, vector(1.0), vector(0.2)[:, None], vector(0.1))
    with pytest.raises(WorkbenchError, match="even"):
        data.flow(vector(0.1)[:, None], 0.5, 0.1)
