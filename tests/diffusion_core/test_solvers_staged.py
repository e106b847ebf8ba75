"""Solvers with stages: orders, identities, the papers' own loops, churn."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_core import grid as grids
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample, Shared
from diffusion_core.oracles import GaussianMixture
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import sample, trajectory
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule, VarianceExploding
from diffusion_core.solvers import (
    Solver,
    Table,
    ddim,
    dpm_solver_2s,
    dpm_solver_3s,
    dpm_solver_pp_2s,
    dpm_solver_pp_3s,
    edm,
    heun,
)
from tests.diffusion_core.test_solvers import (
    check_order,
    columns_close,
    every_schedule,
    every_smooth,
    kolmogorov_smirnov,
    same_table,
    slope,
)
from tests.diffusion_core.worlds import gaussian, mixture, plane_mixture, vector

ORDERS: dict[Solver, float] = {
    edm: 2.0,
    dpm_solver_2s: 2.0,
    dpm_solver_pp_2s: 2.0,
    dpm_solver_3s: 3.0,
    dpm_solver_pp_3s: 3.0,
}
STAGES: dict[Solver, int] = {edm: 2, dpm_solver_2s: 2, dpm_solver_pp_2s: 2, dpm_solver_3s: 3, dpm_solver_pp_3s: 3}
every_solver = pytest.mark.parametrize("solver", ORDERS, ids=lambda solver: solver.__name__)
exponential = pytest.mark.parametrize("solver", [*ORDERS][1:], ids=lambda solver: solver.__name__)


def points(n: int = 20, d: int = 2) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@every_smooth
@every_solver
def test_the_error_on_an_exact_nonlinear_flow_falls_with_the_order(solver, schedule):
    check_order(solver, schedule, ORDERS[solver])


@every_solver
def test_the_order_holds_on_unequal_steps(solver):
    schedule = VarianceExploding(20.0)
    data = mixture(schedule)
    exact = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]
    start = data.flow(exact, 0.02, 1.0)

    def error(n: int) -> float:
        end = sample(data, solver(schedule, grids.karras(schedule, n + 1, 1.0, 0.02)[:-1]), start)
        return float((end - exact).abs().mean())

    assert slope(error, 64) == pytest.approx(ORDERS[solver], abs=0.2)


@every_solver
def test_inversion_and_sampling_return_with_the_order_of_the_solver(solver):
    schedule = Linear()
    data = mixture(schedule)
    x = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]

    def error(n: int) -> float:
        grid = grids.uniform(n, 0.9, 0.05)
        noise = sample(data, solver(schedule, grid.flip(0)), x)
        return float((sample(data, solver(schedule, grid), noise) - x).abs().mean())

    assert error(128) < 5e-4 and slope(error, 64) > ORDERS[solver] - 0.3


@every_schedule
@every_solver
def test_every_row_is_exact_if_the_data_is_one_point(schedule, solver):
    # one point: x_t = alpha_t c + sigma_t e for all t, with c and e fixed
    data = GaussianMixture(schedule, vector(1.0), torch.tensor([[0.3, -2.0]], dtype=torch.float64), vector(0.0))
    e = points(5)
    grid = grids.uniform(7, 0.95)
    start = Gaussian(schedule).corrupt(data.means.expand(5, 2), torch.full((5,), 0.95, dtype=torch.float64), e)
    states = list(trajectory(data, solver(schedule, grid), start))
    assert len(states) == 7
    for state in states:
        t = torch.full((5,), state.t, dtype=torch.float64)
        exact = Gaussian(schedule).corrupt(data.means.expand(5, 2), t, e)
        torch.testing.assert_close(state.x, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
@every_solver
def test_a_start_without_signal_is_one_first_order_row(schedule, solver):
    table, first = solver(schedule, grids.uniform(6)), ddim(schedule, grids.uniform(6))
    assert table.ends_step[0] and table.ends_step[-1]
    for row in (0, -1):
        columns_close(table.x[row, :1], first.x[row])
        columns_close(table.estimate[row, :1], first.estimate[row])
    assert len(table.times) == 2 + 4 * STAGES[solver]
    data = gaussian(schedule)
    x = points()
    assert float((sample(data, solver(schedule, grids.uniform(200)), x) - data.flow(x, 1.0, 0.0)).abs().max()) < 0.03


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
@every_solver
def test_an_inversion_may_end_without_signal_in_one_first_order_row(schedule, solver):
    grid = grids.uniform(6, 1.0, 0.1).flip(0)
    table, first = solver(schedule, grid), ddim(schedule, grid)
    assert table.ends_step[-1] and table.ends_step[-2] and len(table.times) == 1 + 5 * STAGES[solver]
    columns_close(table.x[-1, :1], first.x[-1])
    columns_close(table.estimate[-1, :1], first.estimate[-1])
    data, x = gaussian(schedule), points()

    def error(n: int) -> float:
        end = sample(data, solver(schedule, grids.uniform(n, 1.0, 0.1).flip(0)), data.flow(x, 1.0, 0.1))
        return float((end - x).abs().max())

    assert error(200) < 0.02 and error(50) / error(200) > 3.0


@exponential
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), RectifiedFlow()], ids=str)
def test_a_change_of_schedule_is_a_rescaling_of_x(solver, schedule):
    exploding = VarianceExploding(200.0)
    grid = grids.uniform(8, 0.9, 0.05)
    matched = exploding.t_of_log_snr(schedule.log_snr(grid))

    def run(under: Schedule, times: Tensor) -> Tensor:
        alpha = under.alpha(times[[0, -1]]).tolist()
        return sample(plane_mixture(under), solver(under, times), alpha[0] * points()) / alpha[1]

    torch.testing.assert_close(run(schedule, grid), run(exploding, matched), rtol=1e-9, atol=1e-9)


def test_edm_without_churn_is_heun_where_time_is_the_noise_level():
    schedule = VarianceExploding(80.0)
    grid = grids.karras(schedule, 9)
    same_table(edm(schedule, grid), heun(schedule, grid))


# --- second implementations, in the papers' symbols -------------------------------------------------------


def lambdas(schedule: Schedule, grid: Tensor) -> list[float]:
    return (0.5 * schedule.log_snr(grid)).tolist()


def eps(data: GaussianMixture, x: Tensor, t: float) -> Tensor:
    return -float(data.schedule.sigma(vector(t))) * data.score(x, t)


def check_dpm_solver_3(solver: Solver) -> None:
    """Lu et al. 2022a, algorithm 2, with r_1 = 1/3, r_2 = 2/3."""
    schedule = Linear()
    data, grid = plane_mixture(schedule), grids.uniform(6, 0.9, 0.1)
    expected, lam = points(), lambdas(schedule, grid)

    def at(value: float) -> tuple[float, float, float]:
        t = schedule.t_of_log_snr(vector(2.0 * value))
        return float(t), float(schedule.alpha(t)), float(schedule.sigma(t))

    for i in range(6):
        h = lam[i + 1] - lam[i]
        (t, a_t, _), (s1, a1, g1) = at(lam[i]), at(lam[i] + h / 3.0)
        (s2, a2, g2), (_, a_s, g_s) = at(lam[i] + 2.0 * h / 3.0), at(lam[i + 1])
        e = eps(data, expected, t)
        u1 = a1 / a_t * expected - g1 * math.expm1(h / 3.0) * e
        d1 = eps(data, u1, s1) - e
        r2h = 2.0 * h / 3.0
        u2 = a2 / a_t * expected - g2 * math.expm1(r2h) * e - g2 * 2.0 * (math.expm1(r2h) / r2h - 1.0) * d1
        d2 = eps(data, u2, s2) - e
        expected = a_s / a_t * expected - g_s * math.expm1(h) * e - g_s * 1.5 * (math.expm1(h) / h - 1.0) * d2
    torch.testing.assert_close(sample(data, solver(schedule, grid), points()), expected, rtol=1e-9, atol=1e-9)


def test_dpm_solver_3_is_the_algorithm_of_lu_et_al():
    check_dpm_solver_3(dpm_solver_3s)


def test_dpm_solver_2_is_the_algorithm_of_lu_et_al():
    # Lu et al. 2022a, algorithm 1, with r_1 = 1/2
    schedule = Linear()
    data, grid = plane_mixture(schedule), grids.uniform(6, 0.9, 0.1)
    expected, lam = points(), lambdas(schedule, grid)
    for i in range(6):
        h = lam[i + 1] - lam[i]
        t = [schedule.t_of_log_snr(vector(2.0 * (lam[i] + r * h))) for r in (0.0, 0.5, 1.0)]
        alpha, sigma = [float(schedule.alpha(u)) for u in t], [float(schedule.sigma(u)) for u in t]
        u = alpha[1] / alpha[0] * expected - sigma[1] * math.expm1(0.5 * h) * eps(data, expected, float(t[0]))
        expected = alpha[2] / alpha[0] * expected - sigma[2] * math.expm1(h) * eps(data, u, float(t[1]))
    torch.testing.assert_close(sample(data, dpm_solver_2s(schedule, grid), points()), expected, rtol=1e-9, atol=1e-9)


def check_pp_3s(solver: Solver) -> None:
    """The exact integral of the polynomials that the stages interpolate, by quadrature, not by its closed form.

    A step solves ``x_s = sigma_s / sigma_t x + sigma_s integral exp(lambda) m d lambda``; its second and third stage
    take m as the straight line through m at the start and at the newest node.
    """
    schedule = Linear()
    data, grid = plane_mixture(schedule), grids.uniform(6, 0.9, 0.1)
    expected, lam = points(), lambdas(schedule, grid)
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(30))
    for i in range(6):
        h, start = lam[i + 1] - lam[i], expected
        sigma_t, slope, place = float(schedule.sigma(grid[i])), torch.zeros_like(start), 0.0
        m_0 = m = data.bind(grid[i : i + 1])(start, 0)
        for r in (1.0 / 3.0, 2.0 / 3.0, 1.0):
            slope = (m - m_0) / (place * h) if place else slope
            t = schedule.t_of_log_snr(vector(2.0 * (lam[i] + r * h)))
            after = 0.5 * r * h * (nodes + 1.0)
            measure = 0.5 * r * h * weights * torch.exp(lam[i] + after)
            integral = measure.sum() * m_0 + (measure * after).sum() * slope
            u = schedule.sigma(t) * (start / sigma_t + integral)
            m, place = data.bind(t)(u, 0), r
        expected = u
    torch.testing.assert_close(sample(data, solver(schedule, grid), points()), expected, rtol=1e-9, atol=1e-9)


def test_dpm_solver_pp_3s_integrates_the_lines_through_its_estimates():
    check_pp_3s(dpm_solver_pp_3s)


def test_dpm_solver_pp_2s_is_the_algorithm_of_lu_et_al():
    schedule = Linear()
    data, grid = plane_mixture(schedule), grids.uniform(6, 0.9, 0.1)
    expected, lam = points(), lambdas(schedule, grid)
    for i in range(6):
        h = lam[i + 1] - lam[i]
        t = [schedule.t_of_log_snr(vector(2.0 * (lam[i] + r * h))) for r in (0.0, 0.5, 1.0)]
        alpha, sigma = [float(schedule.alpha(u)) for u in t], [float(schedule.sigma(u)) for u in t]
        m = data.bind(t[0])(expected, 0)
        u = sigma[1] / sigma[0] * expected - alpha[1] * math.expm1(-0.5 * h) * m
        d = data.bind(t[1])(u, 0)
        expected = sigma[2] / sigma[0] * expected - alpha[2] * math.expm1(-h) * d
    torch.testing.assert_close(sample(data, dpm_solver_pp_2s(schedule, grid), points()), expected, rtol=1e-9, atol=1e-9)


def check_churn(solver: Solver) -> None:
    """Karras et al. 2022, algorithm 2, in noise levels."""
    schedule = VarianceExploding(80.0)
    # linear in x: what a mixture would make of the last digit is not the solver's
    data, grid = gaussian(schedule), grids.karras(schedule, 8)
    sigmas = (80.0 * grid).tolist()
    settings = {"churn": 6.0, "churn_min": 1.0, "churn_max": 50.0, "noise_scale": 1.007}
    noise, expected = PerSample.from_seeds(range(20)), 80.0 * points()
    raised = 0
    for i, (s, after) in enumerate(pairwise(sigmas)):
        gamma = min(6.0 / 8, math.sqrt(2.0) - 1.0) if 1.0 <= s <= 50.0 else 0.0
        s_hat = s * (1.0 + gamma)
        if gamma > 0.0:
            z = noise.normal((20, 2), torch.float64, torch.device("cpu"))
            expected = expected + math.sqrt(s_hat**2 - s**2) * 1.007 * z
            raised += 1
        d = (expected - data.bind(vector(s_hat / 80.0))(expected, 0)) / s_hat
        following = expected + (after - s_hat) * d
        if i < 7:
            d_after = (following - data.bind(vector(after / 80.0))(following, 0)) / after
            following = expected + (after - s_hat) * 0.5 * (d + d_after)
        expected = following
    table = solver(schedule, grid, **settings)
    assert int((~table.evaluates).sum()) == raised > 2
    end = sample(data, table, 80.0 * points(), noise=PerSample.from_seeds(range(20)))
    torch.testing.assert_close(end, expected, rtol=1e-8, atol=1e-8)


def test_churn_is_the_algorithm_of_karras_et_al():
    check_churn(edm)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=str)
def test_churn_under_any_schedule_is_churn_of_the_rescaled_sample(schedule):
    exploding, settings = VarianceExploding(200.0), {"churn": 5.0, "churn_min": 0.05, "churn_max": 50.0}
    grid = grids.uniform(8, 0.9, 0.05)
    matched = exploding.t_of_log_snr(schedule.log_snr(grid))

    def run(under: Schedule, times: Tensor) -> Tensor:
        alpha = under.alpha(times[[0, -1]]).tolist()
        table = edm(under, times, **settings)
        noise = PerSample.from_seeds(range(20))
        return sample(plane_mixture(under), table, alpha[0] * points(), noise=noise) / alpha[1]

    torch.testing.assert_close(run(schedule, grid), run(exploding, matched), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [Linear(), VarianceExploding(20.0)], ids=str)
def test_churned_samples_have_the_exact_marginal(schedule):
    n = 40_000
    data, generator = mixture(schedule), torch.Generator().manual_seed(0)
    x0 = data.sample(n, generator)
    x_1 = Gaussian(schedule).corrupt(
        x0, torch.ones(n, dtype=torch.float64), torch.randn(n, 1, generator=generator, dtype=torch.float64)
    )
    grid = grids.log_snr_uniform(schedule, 60, start=1.0, end=1e-3)
    end = sample(data, edm(schedule, grid, churn=20.0), x_1, noise=Shared(generator))
    # exceeded once in a thousand by exact samples, plus what 60 steps of second order leave
    assert kolmogorov_smirnov(end, data) < 1.95 / math.sqrt(n) + 0.004


# --- refusals ---------------------------------------------------------------------------------------------


@every_solver
def test_an_inversion_that_starts_without_noise_is_refused(solver):
    with pytest.raises(WorkbenchError, match=r"from t=0 to .* is not finite; expected"):
        solver(Linear(), grids.uniform(4).flip(0))


@every_solver
def test_times_for_each_token_are_refused(solver):
    with pytest.raises(WorkbenchError, match="solver with stages; expected a grid of shape"):
        solver(Linear(), grids.uniform(4)[:, None, None].expand(-1, 1, 3))


@pytest.mark.parametrize(
    "wrong", [{"churn": -1.0}, {"noise_scale": -1.0}, {"churn_min": 2.0, "churn_max": 1.0}], ids=str
)
def test_impossible_churn_is_refused(wrong):
    with pytest.raises(WorkbenchError, match=r"edm: got churn="):
        edm(Linear(), grids.uniform(4), **wrong)


def test_churn_is_not_inverted():
    with pytest.raises(WorkbenchError, match="got a rising grid"):
        edm(Linear(), grids.uniform(4, 0.9, 0.1).flip(0), churn=1.0)
    assert isinstance(edm(Linear(), grids.uniform(4, 0.9, 0.1).flip(0)), Table)
