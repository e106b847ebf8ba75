"""Solvers: order of convergence on an exact flow, identities of tables, second implementations, exact marginals."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample, Shared
from diffusion_core.oracles import GaussianMixture
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import loop, sample, script
from diffusion_core.schedule import (
    Cosine,
    DiscreteBetas,
    Linear,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    linear_betas,
)
from diffusion_core.solvers import (
    Solver,
    Table,
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    dpm_solver_pp_3s,
    edm,
    euler,
    heun,
    repaint,
    unipc,
)
from tests.diffusion_core.test_denoise import ExactNetwork
from tests.diffusion_core.worlds import SCHEDULES, SMOOTH, gaussian, mixture, plane_mixture, vector

ORDERS: dict[Solver, float] = {ddim: 1.0, euler: 1.0, heun: 2.0, dpm_solver_pp_2m: 2.0}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_smooth = pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
every_ode_solver = pytest.mark.parametrize("solver", ORDERS, ids=lambda solver: solver.__name__)


def ddim_of(eta: float) -> Solver:
    return lambda schedule, grid: ddim(schedule, grid, eta)


def slope(error: Callable[[int], float], n: int) -> float:
    """Measured order: how many times halving the step halves the error."""
    return math.log2(error(n) / error(2 * n))


def columns_close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def same_table(a: Table, b: Table) -> None:
    """Equal coefficients, to 1e-12."""
    for name in ("times", "reached", "x", "estimate", "noise"):
        columns_close(getattr(a, name), getattr(b, name))


# --- order of convergence -------------------------------------------------------------------------------


def check_order(solver: Solver, schedule: Schedule, order: float) -> None:
    """The error at the end of the exact flow of a three-mode mixture falls as ``n^-order``."""
    data = mixture(schedule)
    exact = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]
    start = data.flow(exact, 0.2, 0.8)

    def error(n: int) -> float:
        end = sample(data, solver(schedule, grids.uniform(n, 0.8, 0.2)), start)
        return float((end - exact).abs().mean())

    assert slope(error, 64) == pytest.approx(order, abs=0.1)


@every_smooth
@every_ode_solver
def test_the_error_on_an_exact_nonlinear_flow_falls_with_the_order(solver, schedule):
    check_order(solver, schedule, ORDERS[solver])


@every_ode_solver
def test_the_order_holds_on_a_grid_of_unequal_steps(solver):
    schedule = VarianceExploding(20.0)
    data = mixture(schedule)
    exact = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]
    start = data.flow(exact, 0.02, 1.0)

    def error(n: int) -> float:
        # the last entry, t = 0, is cut off: a step of infinite length in log-SNR has no order
        end = sample(data, solver(schedule, grids.karras(schedule, n + 1, 1.0, 0.02)[:-1]), start)
        return float((end - exact).abs().mean())

    assert slope(error, 128) == pytest.approx(ORDERS[solver], abs=0.15)


def variance_error(table: Table, schedule: Schedule, std: float = 0.5) -> float:
    """Error of the variance that a one-row-a-step table gives N(0, std^2) data with the exact denoiser.

    Everything is linear: ``var <- (a + b gain)^2 var + c^2`` with ``gain = alpha std^2 / (alpha^2 std^2 + sigma^2)``.
    """
    alpha, sigma = schedule.alpha(table.times), schedule.sigma(table.times)
    marginal = alpha**2 * std**2 + sigma**2
    factor = (table.x[:, 0] + table.estimate[:, 0] * alpha * std**2 / marginal) ** 2
    variance = float(marginal[0])
    for multiply, add in zip(factor.tolist(), (table.noise**2).tolist(), strict=True):
        variance = multiply * variance + add
    return abs(variance - std**2)


@every_smooth
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_the_variance_of_gaussian_data_is_reached_with_weak_order_one(schedule, eta):
    def error(n: int) -> float:
        return variance_error(ddim(schedule, grids.uniform(n), eta), schedule)

    assert error(3200) < 0.01
    assert slope(error, 1600) == pytest.approx(1.0, abs=0.12)


# --- laws that tables obey exactly ----------------------------------------------------------------------


def check_ddpm_is_ddim(solver: Solver, schedule: Schedule) -> None:
    """DDIM with eta = 1 is ancestral sampling, entry by entry."""
    grid = grids.uniform(17)
    same_table(solver(schedule, grid), ddpm(schedule, grid))


@every_schedule
def test_ddim_with_eta_one_is_ddpm(schedule):
    check_ddpm_is_ddim(ddim_of(1.0), schedule)


@pytest.mark.parametrize("schedule", [VarianceExploding(80.0), RectifiedFlow()], ids=str)
def test_ddim_without_noise_is_euler_where_alpha_and_sigma_are_straight(schedule):
    grid = grids.uniform(13)
    same_table(ddim(schedule, grid), euler(schedule, grid))


@every_schedule
def test_the_first_row_of_2m_is_ddim(schedule):
    grid = grids.uniform(9, start=0.99)
    multistep, single = dpm_solver_pp_2m(schedule, grid), ddim(schedule, grid)
    columns_close(multistep.x, single.x)
    columns_close(multistep.estimate[0], torch.cat([single.estimate[0], vector(0.0)]))
    assert bool((multistep.estimate[1:-1, 1] != 0.0).all()), "the later rows are of second order"
    assert float(multistep.estimate[-1, 1]) == 0.0, "the step to t = 0 is not"


def check_point_mass(solver: Solver, schedule: Schedule, grid: Tensor) -> None:
    """Data that is one point: ``a alpha_t + sum b = alpha_s`` and ``(a sigma_t)^2 + c^2 = sigma_s^2`` in every row."""
    table = solver(schedule, grid)
    t, s = table.times, table.reached
    a = table.x[:, 0]
    columns_close(a * schedule.alpha(t) + table.estimate.sum(1), schedule.alpha(s), 1e-11)
    columns_close((a * schedule.sigma(t)) ** 2 + table.noise**2, schedule.sigma(s) ** 2, 1e-10)


@every_schedule
@pytest.mark.parametrize(
    "solver", [ddpm, ddim_of(0.0), ddim_of(0.4), ddim_of(1.0), dpm_solver_pp_2m], ids=["ddpm", "0", ".4", "1", "2m"]
)
def test_every_row_is_exact_if_the_data_is_one_point(schedule, solver):
    check_point_mass(solver, schedule, grids.uniform(11))


@every_schedule
def test_the_noise_of_ddim_grows_in_proportion_to_eta(schedule):
    grid = grids.uniform(11)
    columns_close(ddim(schedule, grid, 0.3).noise, 0.3 * ddpm(schedule, grid).noise)


@pytest.mark.parametrize(
    ("solver", "commutes"),
    [(ddim, True), (ddim_of(0.5), True), (ddpm, True), (dpm_solver_pp_2m, True), (euler, False), (heun, False)],
    ids=["ddim", "ddim.5", "ddpm", "2m", "euler", "heun"],
)
@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "linear_betas"])
def test_a_change_of_schedule_is_a_rescaling_of_x(solver, commutes, name):
    schedule, exploding = SCHEDULES[name], VarianceExploding(200.0)
    grid = grids.uniform(12, 0.9, 0.05)
    matched = exploding.t_of_log_snr(schedule.log_snr(grid))
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(under: Schedule, times: Tensor) -> Tensor:
        alpha_start, alpha_end = under.alpha(times[[0, -1]]).tolist()
        noise = Shared(torch.Generator().manual_seed(1))
        return sample(plane_mixture(under), solver(under, times), alpha_start * x, noise=noise) / alpha_end

    difference = float((run(schedule, grid) - run(exploding, matched)).abs().max())
    # Euler's and Heun's steps are straight in t and so depend on the schedule, but Euler is DDIM for a straight flow
    assert difference < 1e-10 if commutes or (solver, name) == (euler, "flow") else difference > 1e-4


def test_a_coarser_grid_is_the_respaced_process():
    full, n_train = linear_betas(120), 120
    grid = grids.trailing(n_train, 8)
    alpha_squared = full.alpha(grid.flip(0)) ** 2
    respaced = DiscreteBetas(tuple((1.0 - alpha_squared[1:] / alpha_squared[:-1]).tolist()))
    for solver in (ddpm, ddim, dpm_solver_pp_2m):
        coarse, own = solver(full, grid), solver(respaced, grids.trailing(8, 8))
        for name in ("x", "estimate", "noise"):
            columns_close(getattr(coarse, name), getattr(own, name), 1e-10)


@every_schedule
@pytest.mark.parametrize("solver", [*ORDERS, ddpm, ddim_of(0.5)], ids=["ddim", "euler", "heun", "2m", "ddpm", "ddim.5"])
def test_every_step_starts_where_the_last_one_ended(schedule, solver):
    grid = grids.uniform(7, 0.95, 0.0)
    table = solver(schedule, grid)
    assert torch.equal(table.reached[table.ends_step], grid[1:])
    assert torch.equal(table.times[1:], table.reached[:-1])
    assert float(table.times[0]) == 0.95


# --- second implementations, from the papers ------------------------------------------------------------


def check_ddpm_paper(solver: Solver) -> None:
    """Ho et al. 2020, eq. 7 on the model's own steps, in the paper's symbols."""
    schedule = linear_betas(60)
    table = solver(schedule, grids.trailing(60, 60))
    alpha_bar = 1.0
    for i, beta in enumerate(schedule.betas, start=1):
        alpha, alpha_bar_before = 1.0 - beta, alpha_bar
        alpha_bar *= alpha
        row = 60 - i
        of_x0 = math.sqrt(alpha_bar_before) * beta / (1.0 - alpha_bar)
        of_x_t = math.sqrt(alpha) * (1.0 - alpha_bar_before) / (1.0 - alpha_bar)
        assert float(table.estimate[row, 0]) == pytest.approx(of_x0, rel=1e-10)
        assert float(table.x[row, 0]) == pytest.approx(of_x_t, rel=1e-10)
        beta_tilde = (1.0 - alpha_bar_before) / (1.0 - alpha_bar) * beta
        assert float(table.noise[row]) ** 2 == pytest.approx(beta_tilde, rel=1e-10)


def test_ddpm_is_the_posterior_of_ho_et_al():
    check_ddpm_paper(ddpm)


def test_large_variance_is_beta_itself_with_none_in_the_last_step():
    schedule = linear_betas(60)
    grid = grids.trailing(60, 60)
    large, small = ddpm(schedule, grid, variance="large"), ddpm(schedule, grid)
    columns_close(large.noise[:-1] ** 2, vector(*schedule.betas[:0:-1]))
    assert float(large.noise[-1]) == 0.0
    columns_close(large.x, small.x)
    columns_close(large.estimate, small.estimate)


def velocity(data: GaussianMixture, x: Tensor, t: float) -> Tensor:
    """``dx/dt`` of the probability flow from the score (Song et al. 2021, eq. 13), not from x0_hat."""
    u = torch.tensor(t, dtype=torch.float64)
    alpha, sigma, d_alpha, d_sigma = (
        float(f(u)) for f in (data.schedule.alpha, data.schedule.sigma, data.schedule.d_alpha, data.schedule.d_sigma)
    )
    drift = d_alpha / alpha
    diffusion_squared = 2.0 * sigma * (d_sigma - drift * sigma)
    return drift * x - 0.5 * diffusion_squared * data.score(x, t)


@every_schedule
@pytest.mark.parametrize("solver", [euler, heun], ids=["euler", "heun"])
def test_euler_and_heun_are_the_textbook_loops_on_the_flow(schedule, solver):
    data = plane_mixture(schedule)
    grid = grids.uniform(6, 0.9, 0.1)
    x = expected = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = grid.tolist()
    for t, s in pairwise(times):
        k_1 = velocity(data, expected, t)
        if solver is heun:
            k_2 = velocity(data, expected + (s - t) * k_1, s)
            expected = expected + (s - t) * 0.5 * (k_1 + k_2)
        else:
            expected = expected + (s - t) * k_1
    torch.testing.assert_close(sample(data, solver(schedule, grid), x), expected, rtol=1e-9, atol=1e-9)


def check_2m_paper(solver: Solver) -> None:
    """Lu et al. 2022b, algorithm 2, in the paper's symbols, lambda = log(alpha / sigma)."""
    schedule = Linear()
    data = plane_mixture(schedule)
    grid = grids.uniform(8, 0.9, 0.05)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = data.bind(grid)
    alpha, sigma = schedule.alpha(grid).tolist(), schedule.sigma(grid).tolist()
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    h = [math.nan] + [lam[i] - lam[i - 1] for i in range(1, 9)]
    buffer = [model(x, 0)]
    expected = sigma[1] / sigma[0] * x - alpha[1] * (math.exp(-h[1]) - 1.0) * buffer[0]
    buffer.append(model(expected, 1))
    for i in range(2, 9):
        r = h[i - 1] / h[i]
        d = (1.0 + 1.0 / (2.0 * r)) * buffer[i - 1] - 1.0 / (2.0 * r) * buffer[i - 2]
        expected = sigma[i] / sigma[i - 1] * expected - alpha[i] * (math.exp(-h[i]) - 1.0) * d
        buffer.append(model(expected, i))
    torch.testing.assert_close(sample(data, solver(schedule, grid), x), expected, rtol=1e-10, atol=1e-10)


def test_2m_is_the_algorithm_of_lu_et_al():
    check_2m_paper(dpm_solver_pp_2m)


# --- ends, inversion, distributions ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x0", "v", "velocity"])
@pytest.mark.parametrize("solver", [ddim, dpm_solver_pp_2m, heun], ids=lambda solver: solver.__name__)
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
def test_sampling_from_zero_terminal_snr_follows_the_exact_flow(schedule, solver, kind):
    exact = gaussian(schedule)
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = exact.flow(x, 1.0, 0.0)
    network = NetworkDenoiser(ExactNetwork(schedule, kind), schedule, kind)

    def error(n: int) -> float:
        return float((sample(network, solver(schedule, grids.uniform(n)), x) - truth).abs().max())

    table = solver(schedule, grids.uniform(20))
    torch.testing.assert_close(sample(network, table, x), sample(exact, table, x), rtol=1e-9, atol=1e-9)
    assert error(320) < 0.02 and error(40) / error(160) > 3.0


@pytest.mark.parametrize("solver", [ddim_of(0.0), ddim_of(0.6), ddpm, dpm_solver_pp_2m], ids=["0", ".6", "ddpm", "2m"])
def test_a_single_datum_is_recovered_exactly_from_pure_noise(solver):
    schedule = Cosine()
    datum = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    data = GaussianMixture(schedule, vector(1.0), datum, vector(0.0))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = sample(data, solver(schedule, grids.uniform(6)), x, noise=PerSample.from_seeds(range(5)))
    torch.testing.assert_close(end, datum.expand(5, 2), rtol=0, atol=1e-12)


@every_ode_solver
def test_inversion_and_sampling_return_with_the_order_of_the_solver(solver):
    schedule = Linear()
    data = mixture(schedule)
    x = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]

    def error(n: int) -> float:
        grid = grids.uniform(n, 0.9, 0.05)
        noise = sample(data, solver(schedule, grid.flip(0)), x)
        return float((sample(data, solver(schedule, grid), noise) - x).abs().mean())

    assert error(256) < {1.0: 0.05, 2.0: 5e-4}[ORDERS[solver]]
    assert slope(error, 128) > ORDERS[solver] - 0.15


def kolmogorov_smirnov(x: Tensor, data: GaussianMixture) -> float:
    level = data.cdf(x.flatten().sort().values, 0.0)
    steps = torch.arange(len(level) + 1, dtype=torch.float64) / len(level)
    return float(torch.maximum((steps[1:] - level).abs(), (level - steps[:-1]).abs()).max())


def test_ancestral_samples_have_the_exact_marginal():
    n, schedule = 200_000, Linear()
    data = mixture(schedule)
    generator = torch.Generator().manual_seed(0)
    x0 = data.sample(n, generator)
    x_1 = Gaussian(schedule).corrupt(
        x0, torch.ones(n, dtype=torch.float64), torch.randn(n, 1, generator=generator, dtype=torch.float64)
    )

    def distance(steps: int) -> float:
        grid = grids.log_snr_uniform(schedule, steps, start=1.0, end=1e-3)
        return kolmogorov_smirnov(sample(data, ddpm(schedule, grid), x_1, noise=Shared(generator)), data)

    few, many = distance(20), distance(120)
    # the bias is of order one in the step and nothing is left of it in the limit; 1.95 / sqrt(n) is exceeded once
    # in a thousand by exact samples
    assert few > 0.03, "the test would not see a biased sampler"
    assert abs(many - few * 20 / 120) < 1.95 / math.sqrt(n)


def test_a_stochastic_solver_keeps_the_mean_and_covariance_of_gaussian_data():
    n, schedule = 40_000, Cosine()
    data = gaussian(schedule)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    end = sample(data, ddim(schedule, grids.uniform(50), 0.5), x, noise=Shared(generator))
    assert bool(((end.mean(0) - data.mean).abs() < 4.0 * end.std(0) / math.sqrt(n)).all())
    # independent features stay independent
    assert abs(float(torch.corrcoef(end.T)[0, 1])) < 4.0 / math.sqrt(n)


# --- refusals -------------------------------------------------------------------------------------------


@every_ode_solver
def test_an_inversion_that_starts_without_noise_is_refused(solver):
    with pytest.raises(WorkbenchError, match=r"from t=0 to 0.25 is not finite; expected"):
        solver(Linear(), grids.uniform(4).flip(0))


@pytest.mark.parametrize("solver", [ddpm, ddim_of(0.5), ddim_of(1.0)], ids=["ddpm", "ddim.5", "ddim1"])
def test_a_solver_that_adds_noise_is_not_inverted(solver):
    with pytest.raises(WorkbenchError, match=r"got a rising grid, from t=0.1 to 0.9.*expected"):
        solver(Linear(), grids.uniform(4, 0.9, 0.1).flip(0))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_impossible_eta_is_refused(eta):
    with pytest.raises(WorkbenchError, match=r"got eta=.*expected"):
        ddim(Linear(), grids.uniform(4), eta)


@pytest.mark.parametrize("solver", [*ORDERS, ddpm], ids=lambda solver: solver.__name__)
def test_a_grid_that_turns_is_refused_by_every_solver(solver):
    with pytest.raises(WorkbenchError, match="strictly falling"):
        solver(Linear(), vector(0.9, 0.5, 0.6, 0.1))


# --- raw predictions --------------------------------------------------------------------------------------


def check_folded(fold) -> None:
    """A table folded for raw predictions is the table: the loop with x0_hat and the loop with p end alike."""
    grid = grids.uniform(7, 0.95, 0.1)
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for schedule in (Linear(), RectifiedFlow()):
        for kind in ("eps", "v", "velocity", "score"):
            network = NetworkDenoiser(ExactNetwork(schedule, kind), schedule, kind)
            for solver in FOLDED:
                table = solver(schedule, grid)
                raw = network.bind_raw(table.bound)
                assert raw is not None
                evaluate, c_x, c_p = raw
                folded = fold(table, c_x, c_p)
                ends = []
                for plan, look in ((table, network.bind(table.bound)), (folded, evaluate)):
                    *_, end = loop(script(plan), look, plan, x, PerSample.from_seeds(range(9)))
                    ends.append(end.x)
                torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)
                assert torch.equal(sample(network, table, x, noise=PerSample.from_seeds(range(9))), ends[1])


FOLDED: tuple[Solver, ...] = (
    ddpm,
    ddim,
    heun,
    dpm_solver_pp_2m,
    dpm_solver_pp_3s,
    lambda schedule, grid: unipc(schedule, grid, 3, warm_up="staged"),
    lambda schedule, grid: edm(schedule, grid, churn=5.0),
    lambda schedule, grid: repaint(dpm_solver_pp_2m, schedule, grid, jump=3, resamplings=2),
)


def test_a_table_for_raw_predictions_is_the_same_sampler():
    check_folded(Table.folded)


def test_a_clipped_estimate_is_not_folded_away():
    data = NetworkDenoiser(ExactNetwork(Linear(), "eps"), Linear(), "eps", clip=0.5)
    table = ddim(Linear(), grids.uniform(5))
    assert data.bind_raw(table.bound) is None
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(sample(data, table, x).abs().max()) <= 0.5


def test_what_is_kept_of_one_plan_does_not_serve_another():
    network = NetworkDenoiser(ExactNetwork(Linear(), "v"), Linear(), "v")
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coarse, fine = (ddim(Linear(), grids.uniform(n)) for n in (5, 9))
    alone = [sample(network, table, x) for table in (coarse, fine)]
    for table, expected in ((fine, alone[1]), (coarse, alone[0]), (coarse, alone[0])):
        assert torch.equal(sample(network, table, x), expected)
    # and a model that is moved to another precision is told its times in it
    single = network.float()
    single.network.weight = nn.Parameter(torch.zeros(1))
    sample(single, coarse, x.float())
    assert single.network.calls[-1][0].dtype == torch.float32
