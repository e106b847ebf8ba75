"""Rotations: both series of the heat kernel, its semigroup law, and sampling that returns to the data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion_core import grid as grids
from diffusion_core.contracts import check_process
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy
from diffusion_core.loss import Draws
from diffusion_core.noise import PerSample, Shared
from diffusion_core.oracles import RotationMixture
from diffusion_core.process import igso3, so3
from diffusion_core.process.so3 import SO3
from diffusion_core.sample import sample
from diffusion_core.schedule import Cosine, VarianceExploding
from diffusion_core.solvers import so3 as solvers
from diffusion_core.solvers.so3 import Geodesic
from tests.diffusion_core.test_torus import check_no_host_reads, ks
from tests.diffusion_core.worlds import vector

RotationSolver = Callable[[SO3, Tensor], Geodesic]

BALL = SO3(VarianceExploding(2.5))
SIGMAS = (0.01, 0.1, 0.5, 1.0, 1.49, 1.51, 2.5, 5.0)
ANGLES = torch.cat([vector(0.0, 1e-9, 1e-5, 1e-3, 0.05), torch.linspace(0.1, math.pi, 60, dtype=torch.float64)])
every_sigma = pytest.mark.parametrize("sigma", SIGMAS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def rotations(n: int, seed: int = 0) -> Tensor:
    """Uniform rotations by another way: the QR decomposition of a normal matrix."""
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator(seed), dtype=torch.float64))
    q = q * torch.sign(r.diagonal(dim1=-2, dim2=-1))[:, None, :]
    return q * torch.linalg.det(q)[:, None, None]


def one_mode(std: float = 0.3) -> RotationMixture:
    return RotationMixture(BALL, vector(1.0), rotations(1, 7), vector(std))


def three_modes() -> RotationMixture:
    return RotationMixture(BALL, vector(0.5, 0.3, 0.2), rotations(3, 8), vector(0.2, 0.35, 0.5))


def angles_from(mean: Tensor, x: Tensor) -> Tensor:
    return so3.log(mean.mT @ x).norm(dim=-1)


def cdf(angle: Tensor, sigma: float) -> Tensor:
    """`igso3.cdf` read from a fine table: for many angles."""
    top = min(math.pi, 10.0 * sigma)
    nodes = igso3.cdf(torch.linspace(0.0, top, 2001, dtype=torch.float64), sigma)
    position = (angle / top).clamp(max=1.0) * 2000
    i = position.long().clamp(max=1999)
    return nodes[i] + (position - i) * (nodes[i + 1] - nodes[i])


# --- the distribution -----------------------------------------------------------------------------------


def many_characters(angle: Tensor, sigma: float) -> Tensor:
    degree = torch.arange(0, int(12.0 / sigma) + 2, dtype=torch.float64)
    ratio = torch.sin((degree + 0.5) * angle[:, None]) / torch.sin(0.5 * angle[:, None])
    return ((2.0 * degree + 1.0) * torch.exp(-0.5 * degree * (degree + 1.0) * sigma**2) * ratio).sum(1)


def check_density(log_density: Callable[[Tensor, Tensor], Tensor], sigma: float) -> None:
    """The endless sum of characters, relative to its largest value: below that the sum itself has no digits."""
    angle = ANGLES[ANGLES > 1e-2]
    expected = many_characters(angle, sigma)
    got = log_density(angle, full(sigma)).exp()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-11 * float(expected.abs().max()))


@every_sigma
def test_the_density_is_the_endless_sum_of_characters(sigma):
    check_density(igso3.log_density, sigma)


def test_both_series_agree_around_the_switch(monkeypatch):
    for sigma in (1.3, 1.5, 1.7):
        both = []
        for switch in (9.0, 1e-3):
            monkeypatch.setattr(igso3, "SWITCH", switch)
            both.append((igso3.log_density(ANGLES, full(sigma)), igso3.score_factor(ANGLES, full(sigma))))
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_sigma
def test_the_density_integrates_to_one(sigma):
    assert float(igso3.cdf(full(math.pi), sigma)) == pytest.approx(1.0, abs=1e-13)


@every_sigma
def test_the_score_factor_is_the_slope_of_the_log_density(sigma):
    angle = ANGLES[ANGLES > 1e-4].clone().requires_grad_()
    (slope,) = torch.autograd.grad(igso3.log_density(angle, full(sigma)).sum(), angle)
    factor = igso3.score_factor(angle.detach(), full(sigma))
    torch.testing.assert_close(factor * angle.detach(), slope, rtol=1e-8, atol=1e-9)
    # and at 0 it has its limit
    around = igso3.score_factor(vector(0.0, 1e-9, 1e-6), full(sigma))
    torch.testing.assert_close(around, around[2].expand(3), rtol=1e-9, atol=1e-12)


@every_sigma
def test_float32_is_float64_rounded(sigma):
    # up to a float32 below pi, where the slope of a narrow one turns within sigma^2 / pi
    angle, width = ANGLES[ANGLES < 3.14].float(), torch.tensor(sigma, dtype=torch.float32)
    for of, least in ((igso3.score_factor, 0.0), (igso3.log_density, 1.0)):
        exact = of(angle.double(), width.double())
        size = max(least, float(exact.abs().max()))
        torch.testing.assert_close(of(angle, width).double(), exact, rtol=3e-6, atol=3e-6 * size)


@pytest.mark.parametrize("sigma", [0.003, 0.05, 0.3, 0.77, 1.234, 2.2, 4.0, 7.0])
def test_stretch_carries_quantiles_of_the_radius_to_quantiles_of_the_angle(sigma):
    radius = vector(0.011, 0.1, 0.5, 1.0, 1.4, 1.6, 2.0, 3.0, 4.0, 5.0)
    angle = igso3.stretch(radius, torch.full_like(radius, sigma)) * radius
    level = torch.erf(radius / math.sqrt(2.0)) - math.sqrt(2.0 / math.pi) * radius * torch.exp(-0.5 * radius**2)
    density = igso3.log_density(angle, full(sigma)).exp() * (1.0 - torch.cos(angle)) / math.pi
    wrong = (igso3.cdf(angle, sigma) - level) / density
    torch.testing.assert_close(angle + wrong, angle, rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.003, 0.05, 0.31, 0.774, 1.234, 2.2, 4.0, 6.5])
def test_score_norm_is_the_mean_square(sigma):
    top = min(math.pi, 12.0 * sigma)
    angle = (torch.arange(20000, dtype=torch.float64) + 0.5) * (top / 20000)
    density = igso3.log_density(angle, full(sigma)).exp() * (1.0 - torch.cos(angle)) / math.pi
    mean = (density * (igso3.score_factor(angle, full(sigma)) * angle) ** 2).sum() * (top / 20000)
    torch.testing.assert_close(igso3.score_norm(full(sigma)), mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigma", [1.8, 2.5])
def test_the_distance_to_uniform_is_the_total_variation(sigma):
    angle = (torch.arange(20000, dtype=torch.float64) + 0.5) * (math.pi / 20000)
    density = igso3.log_density(angle, full(sigma)).exp()
    distance = 0.5 * ((density - 1.0).abs() * (1.0 - torch.cos(angle))).mean()
    assert igso3.distance_to_uniform(sigma) == pytest.approx(float(distance), rel=3e-3)


# --- rotations and their vectors -------------------------------------------------------------------------


def check_log(log: Callable[[Tensor], Tensor]) -> None:
    """``log(exp(v)) = v`` up to pi, at both of whose ends an arccosine of the trace has lost half its digits."""
    axis = torch.randn(40, 3, generator=generator(), dtype=torch.float64)
    axis = torch.cat([axis / axis.norm(dim=1, keepdim=True), torch.eye(3).double(), -torch.eye(3).double()])
    for angle in (0.0, 1e-12, 1e-7, 1e-3, 1.0, 2.5, math.pi - 1e-3, math.pi - 1e-7, math.pi - 1e-10):
        v = angle * axis
        torch.testing.assert_close(log(so3.exp(v)), v, rtol=1e-13, atol=4e-15)


def test_log_inverts_exp_up_to_half_a_turn():
    check_log(so3.log)
    half_turn = so3.exp(math.pi * vector(0.6, 0.0, 0.8))
    torch.testing.assert_close(so3.log(half_turn).abs(), math.pi * vector(0.6, 0.0, 0.8), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(so3.exp(so3.log(half_turn)), half_turn, rtol=0, atol=1e-14)


def test_exp_is_the_matrix_exponential_and_exp_of_log_the_identity():
    v = 3.0 * torch.randn(50, 3, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(so3.exp(v), torch.linalg.matrix_exp(so3.hat(v)), rtol=0, atol=1e-12)
    r = rotations(500)
    torch.testing.assert_close(so3.exp(so3.log(r)), r, rtol=0, atol=1e-14)


def test_tangent_and_project():
    r, g = rotations(5), torch.randn(5, 3, 3, generator=generator(), dtype=torch.float64)
    e = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((torch.linalg.matrix_exp(so3.hat(e)) * (r.mT @ g)).sum(), e)
    torch.testing.assert_close(so3.tangent(r, g), gradient, rtol=1e-12, atol=1e-12)
    off = so3.project(r + 1e-5 * g)
    torch.testing.assert_close(off.mT @ off, torch.eye(3).double().expand(5, 3, 3), rtol=0, atol=1e-8)
    torch.testing.assert_close(so3.project(r), r, rtol=0, atol=1e-14)


# --- the process -----------------------------------------------------------------------------------------


def check_corrupt(process: SO3, sigma: float) -> None:
    """The angle of the noise has the heat kernel's distribution, its axis is uniform."""
    n = 50_000
    x0 = rotations(1, 3).expand(n, 3, 3)
    t = torch.full((n,), sigma / 2.5, dtype=torch.float64)
    x_t = process.corrupt(x0, t, process.noise(x0, Draws(generator(1))))
    vectors = so3.log(x0.mT @ x_t)
    assert ks(cdf(vectors.norm(dim=1), sigma)) < 1.95
    assert ks(0.5 + 0.5 * (vectors / vectors.norm(dim=1, keepdim=True))[:, 2]) < 1.95


@pytest.mark.parametrize("sigma", [0.05, 0.6, 1.2, 2.5])
def test_corrupt_has_the_heat_kernels_angle(sigma):
    check_corrupt(BALL, sigma)


@pytest.mark.parametrize("a, b", [(0.3, 0.4), (0.9, 1.2)])
def test_noising_twice_is_noising_once_with_the_summed_variance(a, b):
    n = 50_000
    x = torch.eye(3, dtype=torch.float64).expand(n, 3, 3)
    for seed, sigma in enumerate((a, b)):
        t = torch.full((n,), sigma / 2.5, dtype=torch.float64)
        x = BALL.corrupt(x, t, BALL.noise(x, Draws(generator(seed))))
    angle = so3.log(x).norm(dim=1)
    assert ks(cdf(angle, math.hypot(a, b))) < 1.95
    assert ks(cdf(angle, a + b)) > 10.0


def check_score(score: Callable[[RotationMixture, Tensor, float], Tensor]) -> None:
    """The derivative of the log-density along ``x exp(e v)``, by central differences."""
    data, x, step = three_modes(), rotations(20), 1e-5
    for t in (0.0, 0.1, 0.4, 0.9):
        columns = []
        for axis in torch.eye(3, dtype=torch.float64):
            ahead, behind = x @ so3.exp(step * axis), x @ so3.exp(-step * axis)
            columns.append((data.log_density(ahead, t) - data.log_density(behind, t)) / (2.0 * step))
        numeric = torch.stack(columns, -1)
        torch.testing.assert_close(
            score(data, x, t), numeric, rtol=1e-6, atol=1e-7 * (1.0 + float(numeric.abs().max()))
        )


def test_the_score_is_the_derivative_of_the_log_density():
    check_score(lambda data, x, t: data.score(x, t))


@pytest.mark.parametrize("scale", ["sigma", "norm"])
def test_target_times_scale_is_the_score(scale):
    x0, t = rotations(3), vector(0.05, 0.5, 1.0)
    x_t = BALL.corrupt(x0, t, torch.randn(3, 3, generator=generator(), dtype=torch.float64))
    target = BALL.target(x0, x_t, t, scale) * BALL.output_scale(t, scale)[:, None]
    expected = RotationMixture(BALL, vector(1.0), x0[1:2], vector(1e-9)).score(x_t[1:2], 0.5)
    torch.testing.assert_close(target[1:2], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(target, BALL.score(x0, x_t, t), rtol=1e-12, atol=1e-12)


def test_normalised_targets_have_unit_variance():
    n = 50_000
    x0 = rotations(1).expand(n, 3, 3)
    for value in (0.02, 0.4, 1.0):
        t = torch.full((n,), value, dtype=torch.float64)
        squared = BALL.target(x0, BALL.corrupt(x0, t, BALL.noise(x0, Draws(generator()))), t) ** 2
        assert abs(float(squared.mean()) - 1.0) < 4.0 * float(squared.mean(1).std()) / math.sqrt(n)


def test_the_prior_is_uniform_and_refused_where_data_is_left():
    noise = torch.randn(50_000, 3, generator=generator(), dtype=torch.float64)
    x = BALL.prior(noise)
    angle = so3.log(x).norm(dim=1)
    assert ks((angle - torch.sin(angle)) / math.pi) < 1.95
    with pytest.raises(WorkbenchError, match="total variation"):
        SO3(VarianceExploding(1.5)).prior(noise)
    with pytest.raises(WorkbenchError, match="alpha = 1"):
        SO3(Cosine())


def distance(x):
    """A cost of rotations, (batch,)."""
    return (x - so3.exp(torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64))).square().sum((-1, -2))


def test_products_and_known_values():
    x, (a, b), times = rotations(4), torch.randn(2, 4, 3, generator=generator(), dtype=torch.float64), vector(0.4, 0.01)
    combined = BALL.combine(torch.tensor([[1.0, 0.0], [2.0, -1.0]], dtype=torch.float64), times)
    torch.testing.assert_close(combined(x, [a, b], 1), 2.0 * a - b, rtol=1e-14, atol=1e-14)
    # near the data the known value is where Tweedie's formula leads
    near = x @ so3.exp(0.02 * a)
    pinned = BALL.pin(times)(near, b, torch.ones(4, 1, dtype=torch.bool), x, 1)
    torch.testing.assert_close(BALL.clean(times)(near, pinned, 1), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("energy", [Energy(lambda x, t: distance(x), on="x_t"), Energy(lambda x0: distance(x0))])
def test_an_energy_of_rotations_adds_its_derivative_along_the_group(energy):
    data, x, times, h = three_modes(), rotations(4), vector(0.3), 1e-6
    score = data.bind(times)(x, 0)
    gained = (data * energy).bind(times)(x, 0) - score

    def cost(x):
        return distance(x if energy.on == "x_t" else BALL.clean(times)(x, data.bind(times)(x, 0), 0))

    steps = h * torch.eye(3, dtype=torch.float64)
    numeric = torch.stack([(cost(x @ so3.exp(v)) - cost(x @ so3.exp(-v))) / (2.0 * h) for v in steps], -1)
    torch.testing.assert_close(gained, -numeric, rtol=1e-5, atol=1e-6)


def test_a_cheap_energy_of_rotations_pulls_towards_its_least():
    data, x, times = three_modes(), rotations(4), vector(0.3)
    energy = Energy(lambda x0: distance(x0), through="estimate")
    score = data.bind(times)(x, 0)
    gained = (data * energy).bind(times)(x, 0) - score
    clean = BALL.clean(times)(x, score, 0)
    assert bool((distance(clean @ so3.exp(1e-3 * gained)) < distance(clean)).all())


def test_the_process_and_the_oracle_keep_the_contracts():
    check_process(BALL, rotations(4))
    check_process(BALL, rotations(6).reshape(2, 3, 3, 3).float())
    check_no_host_reads(three_modes(), solvers.geodesic_walk(BALL, grids.uniform(5)), rotations(4))


# --- solvers ---------------------------------------------------------------------------------------------


def reverse(data: RotationMixture, solver: RotationSolver, n: int, steps: int, end: float) -> Tensor:
    noise = Shared(generator(4))
    x = BALL.prior(torch.randn(n, 3, generator=noise.generator, dtype=torch.float64))
    ratio = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    return sample(data, solver(BALL, (end**ratio).contiguous()), x, noise=noise)


def check_walk(solver: RotationSolver) -> None:
    """Sampling comes back to the data: the angle to its mode, and every entry of the mean of three modes."""
    n, end = 10_000, 0.02
    data = one_mode()
    x = reverse(data, solver, n, 80, end)
    width = math.hypot(0.3, 2.5 * end)
    # 80 steps of a first-order walk leave a bias of 0.02, which halves with every doubling
    assert ks(cdf(angles_from(data.means[0], x), width)) < 1.95 + 0.02 * math.sqrt(n)
    many = three_modes()
    x = reverse(many, solver, n, 80, end)
    error = x.std(0) / math.sqrt(n)
    assert bool(((x.mean(0) - many.mean(end)).abs() < 4.0 * error + 0.01).all())


def test_the_walk_comes_back_to_the_data():
    check_walk(solvers.geodesic_walk)


def check_equivariance(solver: RotationSolver) -> None:
    """Turning the laboratory turns the samples: data, start and end by the same rotation from the left."""
    turn = rotations(1, 11)[0]
    data = three_modes()
    turned = RotationMixture(BALL, data.weights, turn @ data.means, data.stds)
    x = rotations(50, 12)
    plan = solver(BALL, grids.uniform(20))
    end = sample(data, plan, x, noise=PerSample.from_seeds(range(50)))
    turned_end = sample(turned, plan, turn @ x, noise=PerSample.from_seeds(range(50)))
    torch.testing.assert_close(turned_end, turn @ end, rtol=0, atol=1e-10)


def test_sampling_is_equivariant():
    check_equivariance(solvers.geodesic_walk)


def check_flow(solver: RotationSolver) -> None:
    """Around one mode the flow keeps the axis and carries each quantile of the angle to the same quantile."""
    data = one_mode()
    axis = vector(0.6, 0.0, 0.8)
    angle = vector(0.2, 0.5, 0.8, 1.2)
    wide, narrow = (math.hypot(0.3, 2.5 * t) for t in (0.5, 0.05))
    # the quantile's image, by bisection
    level = igso3.cdf(angle, narrow)
    low, high = torch.zeros_like(angle), torch.full_like(angle, math.pi)
    for _ in range(60):
        below = igso3.cdf(0.5 * (low + high), wide) < level
        low, high = torch.where(below, 0.5 * (low + high), low), torch.where(below, high, 0.5 * (low + high))
    start = data.means[0] @ so3.exp(low[:, None] * axis)
    exact = angle[:, None] * axis

    def error(n: int) -> float:
        end = sample(data, solver(BALL, grids.uniform(n, 0.5, 0.05)), start)
        return float((so3.log(data.means[0].mT @ end) - exact).norm(dim=1).mean())

    assert math.log2(error(100) / error(200)) == pytest.approx(1.0, abs=0.1)
    assert error(200) < 8e-3


def test_the_flow_is_the_quantile_map_to_first_order():
    check_flow(solvers.flow)


def test_a_rising_grid_inverts_the_flow():
    data, x = three_modes(), rotations(10)
    grid = grids.uniform(400, 0.5, 0.2)
    up = sample(data, solvers.flow(BALL, grid.flip(0)), x)
    back = sample(data, solvers.flow(BALL, grid), up)
    assert float((back - x).abs().max()) < 0.04
    assert float((up - x).abs().max()) > 0.1


def test_float32_rotations_stay_rotations():
    noise = Shared(generator())
    x = BALL.prior(torch.randn(20, 3, generator=noise.generator))
    assert x.dtype == torch.float32
    process = solvers.geodesic_walk(BALL, grids.uniform(300))
    advance = process.begin(x, noise)
    for i in range(300):
        x = advance(x, torch.zeros(20, 3), i)
    assert float((x.mT @ x - torch.eye(3)).abs().max()) < 1e-6
    assert x.dtype == torch.float32


def test_per_sample_times_are_per_sample_runs():
    data, x = three_modes(), rotations(2)
    both = torch.stack([grids.uniform(4), grids.uniform(4, 0.7, 0.1)], 1)
    many = sample(data, solvers.flow(BALL, both), x)
    for j in range(2):
        alone = sample(data, solvers.flow(BALL, both[:, j].contiguous()), x[j : j + 1])
        torch.testing.assert_close(many[j : j + 1], alone, rtol=0, atol=1e-10)
