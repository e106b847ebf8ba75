"""Multistep solvers: weights against 30-digit integrals, local and global order, papers' loops, exact marginals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import mpmath
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from diffusion_core import grid as grids
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Shared
from diffusion_core.oracles import GaussianMixture
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import sample, trajectory
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule, VarianceExploding
from diffusion_core.solvers import (
    Solver,
    Table,
    ddim,
    ddpm,
    deis,
    dpm_solver_2m,
    dpm_solver_3m,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    dpm_solver_pp_3m,
    dpm_solver_pp_3m_sde,
    lms,
    sa_solver,
    unipc,
)
from tests.diffusion_core.test_solvers import columns_close, kolmogorov_smirnov, same_table
from tests.diffusion_core.worlds import SCHEDULES, SMOOTH, gaussian, mixture, plane_mixture, vector

# solver, the order it converges with (measured at 128 -> 256 steps, within 0.15)
DETERMINISTIC: dict[str, tuple[Solver, float]] = {
    "pp_2m": (dpm_solver_pp_2m, 2.0),
    "pp_3m": (dpm_solver_pp_3m, 3.0),
    "2m": (dpm_solver_2m, 2.0),
    "3m": (dpm_solver_3m, 3.0),
    "deis1": (partial(deis, order=1), 1.0),
    "deis2": (partial(deis, order=2), 2.0),
    "deis3": (deis, 3.0),
    "lms2": (partial(lms, order=2), 2.0),
    "lms3": (partial(lms, order=3), 3.0),
    "lms4": (lms, 4.0),
    "unipc1": (partial(unipc, order=1), 2.0),
    "unipc2": (unipc, 3.0),
    "unipc2_bh1": (partial(unipc, variant="bh1"), 3.0),
    "unipc3_staged": (partial(unipc, order=3, warm_up="staged"), 4.0),
    "sa1": (partial(sa_solver, order=1, tau=0.0), 2.0),
    "sa2": (partial(sa_solver, order=2, tau=0.0), 3.0),
    "sa2_uncorrected": (partial(sa_solver, order=2, tau=0.0, corrector=False), 2.0),
}
PUBLISHED: dict[str, Solver] = {
    "pp_3m": partial(dpm_solver_pp_3m, warm_up="published"),
    "3m": partial(dpm_solver_3m, warm_up="published"),
    "deis3": partial(deis, warm_up="published"),
    "lms4": partial(lms, warm_up="published"),
    "unipc3": partial(unipc, order=3),
    "sa3": partial(sa_solver, order=3, tau=0.0),
}
STOCHASTIC: dict[str, Solver] = {
    "pp_2m_sde": dpm_solver_pp_2m_sde,
    "pp_3m_sde": dpm_solver_pp_3m_sde,
    "sa3": sa_solver,
    "sa2": partial(sa_solver, order=2, tau=0.4),
    "sa1": partial(sa_solver, order=1, tau=1.6),
    "sa3_uncorrected": partial(sa_solver, order=3, tau=0.7, corrector=False),
}
FLOWS = {name: solver for name, (solver, _) in DETERMINISTIC.items()} | {
    f"{k}_published": v for k, v in PUBLISHED.items()
}
every_flow = pytest.mark.parametrize("solver", FLOWS.values(), ids=FLOWS.keys())
every_stochastic = pytest.mark.parametrize("solver", STOCHASTIC.values(), ids=STOCHASTIC.keys())
every_solver = pytest.mark.parametrize("solver", [*FLOWS.values(), *STOCHASTIC.values()], ids=[*FLOWS, *STOCHASTIC])
# one that ends without signal, one straight, one with kinks
few_schedules = pytest.mark.parametrize(
    "schedule", [Cosine(), RectifiedFlow(), SCHEDULES["cosine_betas"]], ids=["cosine", "flow", "betas"]
)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the order of convergence on an exact flow ----------------------------------------------------------


def flow_slope(solver: Solver, schedule: Schedule, grid_of: Callable[[int], Tensor], n: int) -> float:
    """How many times halving the step halves the mean error at the end of a three-mode mixture's exact flow."""
    data = mixture(schedule)
    exact = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]
    start = data.flow(exact, float(grid_of(n)[-1]), float(grid_of(n)[0]))

    def error(n: int) -> float:
        return float((sample(data, solver(schedule, grid_of(n)), start) - exact).abs().mean())

    return math.log2(error(n) / error(2 * n))


def check_global_order(solver: Solver, schedule: Schedule, order: float) -> None:
    measured = flow_slope(solver, schedule, lambda n: grids.uniform(n, 0.8, 0.2), 128)
    assert measured == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, schedule) for schedule in ("cosine", "exploding") for name in DETERMINISTIC]
    + [
        (name, schedule)
        for schedule in ("linear", "flow")
        for name in ("pp_3m", "3m", "deis3", "unipc2", "unipc3_staged")
    ],
)
def test_the_error_on_an_exact_flow_falls_with_the_order(name, schedule):
    check_global_order(DETERMINISTIC[name][0], SMOOTH[schedule], DETERMINISTIC[name][1])


@pytest.mark.parametrize(("solver", "order"), DETERMINISTIC.values(), ids=DETERMINISTIC.keys())
def test_the_order_holds_on_a_grid_of_unequal_steps(solver, order):
    schedule = VarianceExploding(20.0)
    measured = flow_slope(solver, schedule, lambda n: grids.karras(schedule, n + 1, 1.0, 0.02)[:-1], 128)
    assert measured == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("name", "order"), [("pp_3m", 2), ("3m", 2), ("deis3", 2), ("lms4", 2), ("unipc3", 3)])
def test_a_published_start_costs_the_order(name, order):
    # where the start's error is the larger part; for other schedules the slope is still on its way down at 512
    assert flow_slope(PUBLISHED[name], Cosine(), lambda n: grids.uniform(n, 0.8, 0.2), 256) < order + 0.15


@pytest.mark.parametrize(
    ("solver", "extra"),
    [(dpm_solver_pp_2m, 0), (dpm_solver_pp_3m, 1), (dpm_solver_3m, 1), (deis, 1), (lms, 2), (unipc, 0)]
    + [(solver, 0) for solver in PUBLISHED.values()],
)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_what_a_solver_costs(solver, extra, n):
    table = solver(Linear(), grids.uniform(n, 0.9, 0.1))
    assert int(table.evaluates.sum()) == n + extra
    assert torch.equal(table.reached[table.ends_step], grids.uniform(n, 0.9, 0.1)[1:])
    # from no signal the first step is of first order in any case, and the start comes after it
    cosine = solver(Cosine(), grids.uniform(n))
    assert int(cosine.evaluates.sum()) == n + (extra if n > 2 or (n > 1 and solver is lms) else 0)
    assert bool(cosine.ends_step[0])


# --- the order of one step, on an estimate prescribed as a function of lambda ------------------------------


def prescribed(schedule: Schedule, t: Tensor, tau: float = 0.0) -> tuple[Tensor, Tensor]:
    """``(x, x0_hat)`` at t if ``x0_hat = exp(0.7 lambda)``, noise left out; no derivative of it vanishes anywhere.

    ``x = sigma e^{-tau^2 lambda} (0.3 + c e^{(c + 0.7) lambda} / (c + 0.7))`` with ``c = 1 + tau^2``, which makes
    eps a smooth function as well.
    """
    lam = 0.5 * schedule.log_snr(t)
    c = 1.0 + tau**2
    integral = c * torch.exp((c + 0.7) * lam) / (c + 0.7)
    return schedule.sigma(t) * torch.exp(-(tau**2) * lam) * (0.3 + integral), torch.exp(0.7 * lam)


def step_error(table: Table, row: int, schedule: Schedule, tau: float = 0.0) -> float:
    """The error of one row that finds exact samples and estimates."""
    x, estimate = prescribed(schedule, table.times, tau)
    value = 0.0
    for columns, values in ((table.x, x), (table.estimate, estimate)):
        for k, c in enumerate(columns[row].tolist()):
            value += c * float(values[row - k]) if c else 0.0
    return abs(value - float(prescribed(schedule, table.reached, tau)[0][row]))


def unequal_grid(schedule: Schedule, h: float) -> Tensor:
    # the last step starts at the same lambda whatever h: only the step is to change the error
    offsets = vector(-5.2, -4.2, -2.9, -2.1, -0.9, 0.0, 1.1)
    return schedule.t_of_log_snr(2.0 * (-0.4 + h * offsets))


def check_local_order(solver: Solver, schedule: Schedule, order: int, tau: float = 0.0) -> None:
    """One step with the memory full has an error of ``h^(order + 1)``."""

    def error(h: float) -> float:
        table = solver(schedule, unequal_grid(schedule, h))
        return step_error(table, len(table.times) - 1, schedule, tau)

    assert math.log2(error(0.04) / error(0.02)) == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize(
    ("solver", "order", "tau"),
    [
        (dpm_solver_pp_2m, 2, 0.0),
        (dpm_solver_pp_2m_sde, 2, 1.0),
        (dpm_solver_pp_3m, 3, 0.0),
        (dpm_solver_pp_3m_sde, 3, 1.0),
        (dpm_solver_2m, 2, 0.0),
        (dpm_solver_3m, 3, 0.0),
        *[(partial(deis, order=p, coordinate=y), p, 0.0) for p in (1, 2, 3) for y in ("t", "lambda", "rho")],
        (lms, 4, 0.0),
        *[(partial(sa_solver, order=p, tau=v, corrector=False), p, v) for p in (1, 2, 3) for v in (0.0, 0.5, 1.7)],
    ],
)
@pytest.mark.parametrize("name", ["linear", "flow"])
def test_one_step_has_the_local_order(solver, order, tau, name):
    check_local_order(solver, SMOOTH[name], order, tau)


def check_corrector_order(solver: Callable[..., Table], schedule: Schedule, order: int, tau: float) -> None:
    """Row i of the corrected table, from row i - 1's prediction, less the prediction from x_i: ``h^(order + 2)``."""

    def error(h: float) -> float:
        grid = unequal_grid(schedule, h)
        corrected, plain = (solver(schedule, grid, order, tau, on) for on in (True, False))
        x, estimate = prescribed(schedule, grid, tau)

        def step(table: Table, i: int, start: float) -> float:
            terms = [float(b) * float(estimate[i - k]) for k, b in enumerate(table.estimate[i]) if i >= k]
            return float(table.x[i, 0]) * start + sum(terms)

        predicted = step(plain, 4, float(x[4]))
        return abs(step(corrected, 5, predicted) - step(plain, 5, float(x[5])))

    assert math.log2(error(0.02) / error(0.01)) == pytest.approx(order + 2, abs=0.15)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.7])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_is_of_one_order_more(order, tau):
    check_corrector_order(sa_solver, Linear(), order, tau)


# --- the weights, digit by digit --------------------------------------------------------------------------

Real = Callable[[mpmath.mpf], mpmath.mpf]


def lagrange_weight(kernel: Real, coordinate: Real, times: list[mpmath.mpf], s: mpmath.mpf, k: int) -> float:
    """``integral kernel(y) l_k(y) dy`` from the first of ``times`` to s, to 30 digits."""
    with mpmath.workdps(30):
        nodes = [coordinate(t) for t in times]

        def integrand(y: mpmath.mpf) -> mpmath.mpf:
            factors = ((y - node) / (nodes[k] - node) for j, node in enumerate(nodes) if j != k)
            return kernel(y) * mpmath.fprod(factors)

        end = coordinate(s)
        return float(mpmath.quad(integrand, mpmath.linspace(nodes[0], end, 9)))


def flow_grid(h: float) -> Tensor:
    """Four times of the rectified flow, ``h`` apart in lambda, starting at lambda = -3."""
    return RectifiedFlow().t_of_log_snr(2.0 * (-3.0 + h * torch.arange(5, dtype=torch.float64)))


def check_data_weights(solver: Solver, tau: float, h: float) -> None:
    """Entries of x0_hat one and two rows back, at the steps of size h in lambda that a table may have."""
    grid = flow_grid(h)
    b = solver(RectifiedFlow(), grid).estimate[-1]
    times = [mpmath.mpf(t) for t in grid.flip(0).tolist()]
    s, older, c = times[0], times[1:4], 1 + tau**2

    def lam(t: mpmath.mpf) -> mpmath.mpf:
        return mpmath.log((1 - t) / t)

    for k in (1, 2):
        exact = lagrange_weight(lambda y: c * (1 - s) * mpmath.exp(c * (y - lam(s))), lam, older, s, k)
        # a step of h and nodes h apart: their distances have lost log10(1 / h) digits in float64 times already
        assert float(b[k]) == pytest.approx(exact, rel=1e-12 + 4e-15 / h)


@pytest.mark.parametrize("h", [1e-4, 1e-2, 0.5, 3.0, 10.0])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_the_weights_of_data_prediction_are_the_integrals(tau, h):
    check_data_weights(partial(sa_solver, order=3, tau=tau, corrector=False), tau, h)


@pytest.mark.parametrize("h", [1e-4, 1e-2, 0.5, 3.0])
@pytest.mark.parametrize("coordinate", ["t", "lambda", "rho"])
def test_the_weights_of_noise_prediction_are_the_integrals(coordinate, h):
    grid = flow_grid(h)
    b = deis(RectifiedFlow(), grid, 3, coordinate, "published").estimate[-1]
    times = [mpmath.mpf(t) for t in grid.flip(0).tolist()]
    s, older = times[0], times[1:4]
    maps: dict[str, tuple[Real, Real]] = {
        "t": (lambda t: t, lambda t: (1 - s) / (1 - t) ** 2),
        "lambda": (lambda t: mpmath.log((1 - t) / t), lambda y: -(1 - s) * mpmath.exp(-y)),
        "rho": (lambda t: t / (1 - t), lambda rho: 1 - s),
    }
    to, kernel = maps[coordinate]
    for k in (1, 2):
        # eps_k = (x_k - alpha_k x0_hat_k) / sigma_k
        exact = lagrange_weight(kernel, to, older, s, k) * -float((1 - older[k]) / older[k])
        assert float(b[k]) == pytest.approx(exact, rel=1e-12 + 4e-15 / h)


def test_lms_on_equal_steps_of_the_noise_level_is_adams_bashforth():
    schedule = VarianceExploding(20.0)
    grid = grids.uniform(9, 0.9, 0.0)
    table, sigma = lms(schedule, grid, 4, "published"), schedule.sigma(grid)
    # Hairer, Norsett & Wanner, section III.1: the weights of the newest first
    weights = [
        vector(1.0, 0.0, 0.0, 0.0),
        vector(3.0, -1.0, 0.0, 0.0) / 2.0,
        vector(23.0, -16.0, 5.0, 0.0) / 12.0,
        vector(55.0, -59.0, 37.0, -9.0) / 24.0,
    ]
    for i in range(9):
        used = min(i, 3) + 1
        w = (sigma[i + 1] - sigma[i]) * weights[used - 1][:used] / sigma[i + 1 - used : i + 1].flip(0)
        columns_close(table.estimate[i, :used], -w)
        columns_close(table.x[i, :used], w + vector(1.0, 0.0, 0.0, 0.0)[:used])


# --- laws that tables obey exactly ----------------------------------------------------------------------


@every_schedule
def test_order_one_is_ddim_and_with_noise_ddpm(schedule):
    grid = grids.uniform(13)
    for solver in (
        partial(deis, order=1),
        partial(deis, order=1, coordinate="lambda"),
        partial(lms, order=1),
        partial(sa_solver, order=1, tau=0.0, corrector=False),
    ):
        same_table(solver(schedule, grid), ddim(schedule, grid))
    same_table(sa_solver(schedule, grid, order=1, tau=1.0, corrector=False), ddpm(schedule, grid))


@few_schedules
def test_one_step_to_no_noise_is_of_first_order(schedule):
    grid = grids.uniform(1)
    first = ddim(schedule, grid)
    for solver in [*FLOWS.values(), *STOCHASTIC.values()]:
        table = solver(schedule, grid)
        if len(table.times) > 1:
            assert bool(schedule.log_snr(grid[:1]).isfinite()), "a start in stages needs a finite step"
            continue
        columns_close(table.x[:, :1], first.x)
        columns_close(table.estimate[:, :1], first.estimate)
        assert not bool(table.estimate[:, 1:].any() or table.x[:, 1:].any() or table.noise.any())


@pytest.mark.parametrize("solver", [dpm_solver_pp_2m_sde, dpm_solver_pp_3m_sde, sa_solver])
def test_one_step_with_noise_is_ddpm(solver):
    table, first = (build(Linear(), vector(0.9, 0.3)) for build in (solver, ddpm))
    columns_close(table.x, first.x)
    columns_close(table.estimate[:, :1], first.estimate)
    columns_close(table.noise, first.noise)
    assert not bool(table.estimate[:, 1:].any())


def test_aliases_are_what_they_say():
    schedule, grid = Linear(), grids.uniform(9, 0.95, 0.0)
    same_table(dpm_solver_3m(schedule, grid), deis(schedule, grid, 3, "lambda"))
    same_table(lms(schedule, grid, 3), deis(schedule, grid, 3, "rho"))
    same_table(dpm_solver_pp_3m_sde(schedule, grid), sa_solver(schedule, grid, 3, 1.0, corrector=False))
    same_table(dpm_solver_pp_3m(schedule, grid, "published"), sa_solver(schedule, grid, 3, 0.0, corrector=False))


def check_point(solver: Solver, schedule: Schedule, grid: Tensor) -> None:
    """Data that is one point: every state of a flow is on the line of its start, and noise keeps the variance."""
    table = solver(schedule, grid)
    datum = vector(0.3, -2.0)[None]
    point = GaussianMixture(schedule, vector(1.0), datum, vector(0.0))
    alpha, sigma = schedule.alpha(grid).tolist(), schedule.sigma(grid).tolist()
    if table.noisy:
        a = table.x[:, 0]
        columns_close(a * schedule.alpha(table.times) + table.estimate.sum(1), schedule.alpha(table.reached), 1e-11)
        columns_close(
            (a * schedule.sigma(table.times)) ** 2 + table.noise**2, schedule.sigma(table.reached) ** 2, 1e-11
        )
        return
    eps = normal(5, 2)
    states = list(trajectory(point, table, alpha[0] * datum + sigma[0] * eps))
    for i, state in enumerate(states, start=1):
        torch.testing.assert_close(state.x, alpha[i] * datum + sigma[i] * eps, rtol=0, atol=1e-10 * max(1.0, sigma[0]))


@few_schedules
@every_solver
def test_every_step_is_exact_if_the_data_is_one_point(schedule, solver):
    check_point(solver, schedule, grids.uniform(9))
    check_point(solver, schedule, grids.uniform(2, 0.9, 0.0))


@pytest.mark.parametrize(
    ("solver", "commutes"),
    [
        *[(solver, True) for solver in (dpm_solver_pp_3m, dpm_solver_2m, dpm_solver_3m, lms, unipc, sa_solver)],
        (dpm_solver_pp_2m_sde, True),
        (deis, False),
    ],
)
@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "linear_betas"])
def test_a_change_of_schedule_is_a_rescaling_of_x(solver, commutes, name):
    schedule, exploding = SCHEDULES[name], VarianceExploding(200.0)
    grid = grids.uniform(12, 0.9, 0.05)
    matched = exploding.t_of_log_snr(schedule.log_snr(grid))
    x = normal(50, 2)

    def run(under: Schedule, times: Tensor) -> Tensor:
        alpha_start, alpha_end = under.alpha(times[[0, -1]]).tolist()
        noise = Shared(torch.Generator().manual_seed(1))
        return sample(plane_mixture(under), solver(under, times), alpha_start * x, noise=noise) / alpha_end

    difference = float((run(schedule, grid) - run(exploding, matched)).abs().max())
    assert difference < 1e-9 if commutes else difference > 1e-5


def test_no_estimate_is_evaluated_for_nothing_and_the_memory_is_full():
    schedule, grid = Linear(), grids.uniform(10, 0.9, 0.1)
    for solver, memory in (
        (dpm_solver_pp_3m_sde, 3),
        (partial(lms, warm_up="published"), 4),
        (unipc, 3),
        (sa_solver, 4),
    ):
        estimate = solver(schedule, grid).estimate
        for i, row in enumerate(estimate):
            assert int((row != 0.0).sum()) == min(i + 1, memory)


# --- second implementations, from the papers ------------------------------------------------------------


def half_log_snr(schedule: Schedule, grid: Tensor) -> list[float]:
    return (schedule.alpha(grid) / schedule.sigma(grid)).log().tolist()


def test_dpm_solver_2m_is_the_published_loop():
    schedule, grid = Linear(), grids.uniform(8, 0.9, 0.05)
    data, x = plane_mixture(schedule), normal(20, 2)
    alpha, sigma, lam = schedule.alpha(grid).tolist(), schedule.sigma(grid).tolist(), half_log_snr(schedule, grid)
    model, expected, before = data.bind(grid), x, None
    for i in range(8):
        eps = (expected - alpha[i] * model(expected, i)) / sigma[i]
        h = lam[i + 1] - lam[i]
        slope = 0.0 if before is None else (eps - before) / ((lam[i] - lam[i - 1]) / h)
        expected = alpha[i + 1] / alpha[i] * expected - sigma[i + 1] * math.expm1(h) * (eps + 0.5 * slope)
        before = eps
    torch.testing.assert_close(sample(data, dpm_solver_2m(schedule, grid), x), expected, rtol=1e-10, atol=1e-10)


def check_3m_taylor(solver: Solver) -> None:
    """The third-order step as a Taylor expansion: ``m, h m', h^2 m''`` of the parabola through three estimates.

    ``x_s = (sigma_s / sigma_t) x_t + alpha_s (phi_1 m + phi_2 h m' + phi_3 h^2 m'')``.
    """
    schedule, grid = Linear(), grids.uniform(8, 0.9, 0.05)
    data, x = plane_mixture(schedule), normal(20, 2)
    alpha, sigma, lam = schedule.alpha(grid).tolist(), schedule.sigma(grid).tolist(), half_log_snr(schedule, grid)
    table = solver(schedule, grid)
    states = [x, *(state.x for state in trajectory(data, table, x))]
    model = data.bind(grid)
    m = [model(states[i], i) for i in range(8)]
    for i in range(3, 8):
        h, back_1, back_2 = lam[i + 1] - lam[i], lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
        first, second = (m[i] - m[i - 1]) / back_1, (m[i - 1] - m[i - 2]) / back_2
        bend = (first - second) / (back_1 + back_2)  # half of m''
        d_1, d_2 = h * (first + bend * back_1), 2.0 * h**2 * bend
        phi_1 = -math.expm1(-h)
        phi_2 = (h - phi_1) / h
        phi_3 = (0.5 * h - phi_2) / h
        expected = sigma[i + 1] / sigma[i] * states[i] + alpha[i + 1] * (phi_1 * m[i] + phi_2 * d_1 + phi_3 * d_2)
        torch.testing.assert_close(states[i + 1], expected, rtol=1e-10, atol=1e-10)


def test_3m_is_the_taylor_expansion_with_the_whole_second_difference():
    check_3m_taylor(partial(dpm_solver_pp_3m, warm_up="published"))


def test_the_published_form_of_the_third_order_step_is_right_but_for_its_factors():
    from tests.diffusion_core.defects.multistep import third_order

    schedule, grid = Linear(), grids.uniform(9, 0.95, 0.05)
    columns_close(third_order()(schedule, grid).estimate, dpm_solver_pp_3m(schedule, grid, "published").estimate)
    columns_close(third_order(tau=1.0)(schedule, grid).estimate, dpm_solver_pp_3m_sde(schedule, grid).estimate)


def check_unipc_paper(solver: Callable[..., Table], order: int, variant: str) -> None:
    """Zhao et al. 2023 (arXiv 2302.04867) as a loop that corrects the sample: ``R rho = b`` is solved at each step."""
    schedule, grid = Linear(), grids.uniform(8, 0.9, 0.05)
    data, x = plane_mixture(schedule), normal(20, 2)
    alpha, sigma, lam = schedule.alpha(grid).tolist(), schedule.sigma(grid).tolist(), half_log_snr(schedule, grid)
    model = data.bind(grid)

    def solved(r: list[float], h: float, b_h: float) -> list[float]:
        # the integrals of u^n under the kernel are what the weights of the differences must give for m = u^n
        moments = [float(mpmath.quad(lambda u, n=n: h * u**n * mpmath.exp((u - 1) * h), [0, 1])) for n in range(1, 4)]
        matrix = torch.stack([vector(*r) ** n for n in range(1, len(r) + 1)])
        rho = torch.linalg.solve(matrix, vector(*moments[: len(r)])) / b_h
        return (rho * vector(*r)).tolist()

    corrected, m = x, []
    predicted = x
    for i in range(8):
        if i > 0:
            # the sample that reached i is corrected with the estimate there
            p = min(order, i)
            h = lam[i] - lam[i - 1]
            b_h = h if variant == "bh1" else -math.expm1(-h)
            new = model(predicted, i)
            r = [(lam[i - 1 - k] - lam[i - 1]) / h for k in range(1, p)] + [1.0]
            rho = [0.5] if p == 1 else solved(r, h, b_h)
            differences = [(m[i - 1 - k] - m[i - 1]) / r[k - 1] for k in range(1, p)] + [new - m[i - 1]]
            base = sigma[i] / sigma[i - 1] * corrected - alpha[i] * math.expm1(-h) * m[i - 1]
            corrected = base + alpha[i] * b_h * sum(c * d for c, d in zip(rho, differences, strict=True))
            m.append(new)
        else:
            m.append(model(x, 0))
        p = min(order, i + 1)
        h = lam[i + 1] - lam[i]
        b_h = h if variant == "bh1" else -math.expm1(-h)
        r = [(lam[i - k] - lam[i]) / h for k in range(1, p)]
        rho = [0.5] if p == 2 else solved(r, h, b_h) if r else []
        differences = [(m[i - k] - m[i]) / r[k - 1] for k in range(1, p)]
        predicted = sigma[i + 1] / sigma[i] * corrected - alpha[i + 1] * math.expm1(-h) * m[i]
        predicted = predicted + alpha[i + 1] * b_h * sum(c * d for c, d in zip(rho, differences, strict=True))
    end = sample(data, solver(schedule, grid, order, variant), x)
    torch.testing.assert_close(end, predicted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_the_papers_loop_with_the_correction_folded_in(order, variant):
    check_unipc_paper(unipc, order, variant)


# --- ends, inversion, times per token -------------------------------------------------------------------


@every_flow
def test_from_zero_terminal_snr_to_no_noise_the_exact_flow_is_followed(solver):
    schedule = Cosine()
    exact = gaussian(schedule)
    x = normal(40, 2)
    truth = exact.flow(x, 1.0, 0.0)

    def error(n: int) -> float:
        return float((sample(exact, solver(schedule, grids.uniform(n)), x) - truth).abs().max())

    assert error(160) < 0.04 and error(40) / error(160) > 3.0


@pytest.mark.parametrize(("solver", "order"), DETERMINISTIC.values(), ids=DETERMINISTIC.keys())
def test_inversion_is_the_reversed_grid(solver, order):
    schedule = Linear()
    data = mixture(schedule)
    x = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]

    def error(n: int) -> float:
        grid = grids.uniform(n, 0.9, 0.1)
        noise = sample(data, solver(schedule, grid.flip(0)), x)
        return float((sample(data, solver(schedule, grid), noise) - x).abs().mean())

    assert math.log2(error(64) / error(128)) > order - 0.3


PER_TOKEN: dict[str, Solver] = {
    "pp_2m": dpm_solver_pp_2m,
    "pp_3m": partial(dpm_solver_pp_3m, warm_up="published"),
    "2m": dpm_solver_2m,
    "3m": partial(dpm_solver_3m, warm_up="published"),
    "deis3": partial(deis, warm_up="published"),
    "lms4": partial(lms, warm_up="published"),
    "pp_2m_sde": dpm_solver_pp_2m_sde,
    "sa3_uncorrected": partial(sa_solver, corrector=False),
}


def pyramid(start: float, end: float, n: int, tokens: int) -> Tensor:
    """Tokens that fall one after another: each waits at the start, takes n steps, and stands at the end."""
    rows = torch.arange(n + 2 * (tokens - 1) + 1)[:, None] - 2 * torch.arange(tokens)
    return grids.uniform(n, start, end)[rows.clamp(0, n)]


@few_schedules
@pytest.mark.parametrize("solver", PER_TOKEN.values(), ids=PER_TOKEN.keys())
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.9, 0.1)])
def test_a_token_that_waits_and_rests_is_sampled_as_if_alone(schedule, solver, start, end):
    n, tokens = 6, 3
    alone, together = solver(schedule, grids.uniform(n, start, end)), solver(schedule, pyramid(start, end, n, tokens))
    for token in range(tokens):
        rows = slice(2 * token, 2 * token + n)
        for name in ("x", "estimate", "noise"):
            columns_close(getattr(together, name)[rows, ..., token], getattr(alone, name), 1e-10)
        still = together.times[:, token] == together.reached[:, token]
        assert int(still.sum()) == 2 * (tokens - 1)
        keeps = torch.zeros_like(together.x[still, :, token])
        keeps[:, 0] = 1.0
        assert torch.equal(together.x[still, :, token], keeps)
        assert not bool(together.estimate[still, :, token].any() | together.noise[still, token].any())


@pytest.mark.parametrize("solver", PER_TOKEN.values(), ids=PER_TOKEN.keys())
def test_a_token_that_pauses_forgets_what_it_knows_twice(solver):
    schedule = Cosine()
    times = vector(1.0, 0.8, 0.7, 0.7, 0.5, 0.3, 0.3, 0.3, 0.1, 0.0)
    other = torch.linspace(1.0, 0.0, 10, dtype=torch.float64)
    table = solver(schedule, torch.stack([times, other], 1))
    b, a = table.estimate[..., 0], table.x[..., 0]
    # after a pause of one row the last estimate and the one before it are at one time
    assert float(b[3, 1]) == 0.0 and not bool(b[7, 1:3].any())
    # and what was before the pause is still of use
    assert b.shape[1] == 2 or float(b[3, 2]) != 0.0
    if not table.noisy and a.shape[1] == 1:
        columns_close(a[:, 0] * schedule.alpha(table.times[:, 0]) + b.sum(1), schedule.alpha(table.reached[:, 0]))
    if not table.noisy:
        # two samples with one datum: exact, whatever they stood still for
        datum, eps = vector(0.3, -2.0, 1.0), normal(2, 3)
        x = schedule.alpha(table.times[0])[:, None] * datum + schedule.sigma(table.times[0])[:, None] * eps
        advance = table.begin(x, None)
        for i in range(len(table.times)):
            x = advance(x, datum.expand(2, 3), i)
        torch.testing.assert_close(x, datum.expand(2, 3), rtol=0, atol=1e-10)


# --- distributions --------------------------------------------------------------------------------------


def variance_of(table: Table, schedule: Schedule, std: float = 0.5) -> float:
    """The variance that a table gives N(0, std^2) data with the exact denoiser ``x0_hat = gain x``.

    Everything is linear in the start and the draws: each sample is a row of their coefficients.
    """
    alpha, sigma = schedule.alpha(table.times), schedule.sigma(table.times)
    marginal = alpha**2 * std**2 + sigma**2
    gain = (alpha * std**2 / marginal).tolist()
    n = len(table.times)
    x = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    x[0, 0] = marginal[0].sqrt()
    for i in range(n):
        for k, a in enumerate(table.x[i].tolist()[: i + 1]):
            x[i + 1] += a * x[i - k]
        for k, b in enumerate(table.estimate[i].tolist()[: i + 1]):
            x[i + 1] += b * gain[i - k] * x[i - k]
        x[i + 1, i + 1] += table.noise[i]
    return float((x[-1] ** 2).sum())


def check_weak_order(solver: Solver, schedule: Schedule, order: float) -> None:
    """The variance of Gaussian data is reached with an error of ``n^-order`` (or a smaller one)."""

    def error(n: int) -> float:
        table = solver(schedule, grids.uniform(n, 0.8, 0.1))
        t = table.reached[-1]
        return abs(variance_of(table, schedule) - float(schedule.alpha(t) ** 2 * 0.25 + schedule.sigma(t) ** 2))

    assert error(200) < {1.0: 6e-3, 2.0: 1e-4}[order]
    assert math.log2(error(100) / error(200)) > order - 0.2


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        # order 2 is as far as it goes with noise: what a third estimate adds is in the drift
        (partial(sa_solver, order=1, tau=1.0, corrector=False), 1.0),
        (partial(sa_solver, order=1, tau=0.4, corrector=False), 1.0),
        (dpm_solver_pp_2m_sde, 2.0),
        (partial(sa_solver, order=2, tau=0.4, corrector=False), 2.0),
        (dpm_solver_pp_3m_sde, 2.0),
        (partial(sa_solver, order=2), 2.0),
        (sa_solver, 2.0),
    ],
)
def test_the_variance_of_gaussian_data_is_reached_with_its_weak_order(solver, order, name):
    check_weak_order(solver, SMOOTH[name], order)


def check_marginal(solver: Solver, steps: int, most: float) -> None:
    """Kolmogorov's distance of 200,000 samples of a mixture to its exact distribution."""
    n, schedule = 200_000, Linear()
    data = mixture(schedule)
    generator = torch.Generator().manual_seed(0)
    start = Gaussian(schedule).corrupt(
        data.sample(n, generator),
        torch.ones(n, dtype=torch.float64),
        torch.randn(n, 1, generator=generator, dtype=torch.float64),
    )
    grid = grids.log_snr_uniform(schedule, steps, start=1.0, end=1e-3)
    assert kolmogorov_smirnov(sample(data, solver(schedule, grid), start, noise=Shared(generator)), data) < most


# 1.95 / sqrt(n) = .0044 is exceeded once in a thousand by exact samples; ancestral sampling is at .03 with 40 steps
@pytest.mark.parametrize(("solver", "most"), [(dpm_solver_pp_2m_sde, 0.007), (sa_solver, 0.0044)])
def test_stochastic_samples_have_the_exact_marginal(solver, most):
    check_marginal(solver, 40, most)


# --- refusals -------------------------------------------------------------------------------------------


@every_stochastic
def test_a_solver_that_adds_noise_is_not_inverted(solver):
    with pytest.raises(WorkbenchError, match="got a rising grid"):
        solver(Linear(), grids.uniform(4, 0.9, 0.1).flip(0))


@every_flow
def test_an_inversion_that_starts_without_noise_is_refused(solver):
    with pytest.raises(WorkbenchError, match="is not finite; expected"):
        solver(Linear(), grids.uniform(4).flip(0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(deis, order=4), "deis: got order=4; expected 1 to 3"),
        (partial(deis, coordinate="sigma"), "coordinate.*'sigma'"),
        (partial(lms, order=0), "lms: got order=0; expected 1 to 4"),
        (partial(unipc, order=4), "unipc: got order=4"),
        (partial(unipc, variant="bh3"), "variant.*'bh3'"),
        (partial(unipc, warm_up="slow"), "warm_up.*'slow'"),
        (partial(dpm_solver_pp_3m, warm_up="slow"), "warm_up.*'slow'"),
        (partial(sa_solver, tau=-1.0), "tau=-1.0; expected"),
        (partial(sa_solver, tau=math.nan), "tau=nan; expected"),
        (partial(sa_solver, order=5), "order=5"),
    ],
)
def test_what_does_not_exist_is_refused(build, message):
    # a wrong word is caught by the type checker that the tests run under before the solver sees it
    with pytest.raises((WorkbenchError, TypeCheckError), match=message):
        build(Linear(), grids.uniform(4))


@pytest.mark.parametrize("solver", [dpm_solver_pp_3m, dpm_solver_3m, deis, lms, unipc, sa_solver])
def test_times_per_token_are_refused_where_the_rows_cannot_serve_them(solver):
    with pytest.raises(WorkbenchError, match=r"got times of shape \(11, 3\).*expected one time for all samples"):
        solver(Linear(), pyramid(0.9, 0.1, 6, 3))


# --- a cross-check: diffusers ---------------------------------------------------------------------------
# Left out, being wrong: their third-order DPM-Solver++ (half of the second difference) and its SDE (a sign as well).


def against_diffusers(
    scheduler_name: str, options: dict[str, object], solver: Solver, n: int = 12, end: float = 0.0, skip: int = 0
) -> None:
    """Every state of a trajectory with the same network and the same draws, in float32."""
    diffusers = pytest.importorskip("diffusers")
    from tests.diffusion_core import test_diffusers_parity as parity

    scheduler = getattr(diffusers, scheduler_name)(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing", **options
    )
    scheduler.set_timesteps(n)
    schedule = parity.BETAS["linear"]
    grid = grids.trailing(parity.N_TRAIN, n)
    grid[-1] = end
    table = solver(schedule, grid)
    # their noise level of the first step is sigma / alpha where ours is sigma
    scale = schedule.alpha(grid) if scheduler_name == "LMSDiscreteScheduler" else torch.ones_like(grid)
    start, draws = parity.start(), (lambda: torch.Generator().manual_seed(2))
    step = {"generator": draws()} if table.noisy else {}
    others = parity.theirs(scheduler, start / scale[0].float(), **step)
    denoiser = NetworkDenoiser(parity.Fixed(), schedule, "eps")
    ours = [state.x for state in trajectory(denoiser, table, start, noise=Shared(draws()))]
    rescaled = [x * float(c) for x, c in zip(others, scale[1:], strict=True)]
    kept = len(ours) - skip
    parity.assert_same(ours[:kept], rescaled[:kept], 1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "options", "solver"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}, dpm_solver_pp_2m_sde),
        ("UniPCMultistepScheduler", {"solver_order": 1}, partial(unipc, order=1)),
        ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}, unipc),
        ("LMSDiscreteScheduler", {}, partial(lms, warm_up="published")),
    ],
)
def test_diffusers_agrees(name, options, solver):
    against_diffusers(name, options, solver)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [2, 3])
def test_diffusers_agrees_on_unipc_but_for_its_last_steps(order, variant):
    # theirs lowers the order of the last two steps, where ours has only that of the last, which is of infinite length;
    # and with bh1 it ends with not-a-numbers
    options = {"solver_order": order, "solver_type": variant}
    solver = partial(unipc, order=order, variant=variant)
    against_diffusers("UniPCMultistepScheduler", options, solver, skip={2: 1, 3: 2}[order])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "options", "solver"),
    [
        ("DEISMultistepScheduler", {"solver_order": 2}, partial(deis, order=2, coordinate="lambda")),
        ("DEISMultistepScheduler", {"solver_order": 3}, partial(dpm_solver_3m, warm_up="published")),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver", "solver_order": 2, "final_sigmas_type": "sigma_min"},
            dpm_solver_2m,
        ),
    ],
)
def test_diffusers_agrees_where_it_ends_at_the_least_noise(name, options, solver):
    # 16 steps: theirs lowers the last orders below 15
    against_diffusers(name, options, solver, n=16, end=1e-3)
