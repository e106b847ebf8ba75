"""Consistency: exact flow maps cost nothing, the boundary holds exactly, training is distillation in the mean."""

# ruff: noqa: B023  a closure here is used up within its turn of the loop

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.distill import jump
from diffusion_core.distill.consistency import (
    boundary_coefficients,
    consistency_distillation,
    consistency_function,
    consistency_training,
    continuous_consistency,
    ddim_step,
    discretisation,
    doubling_steps,
    heun_step,
    inverse_gap,
    lognormal_neighbours,
    pseudo_huber,
    squared,
    uniform_neighbours,
    unweighted,
)
from diffusion_core.errors import WorkbenchError
from diffusion_core.guidance import classifier_free
from diffusion_core.loss import Draws
from diffusion_core.noise import Shared
from diffusion_core.oracles import GaussianData
from diffusion_core.predict import PREDICTIONS, Prediction
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import sample
from diffusion_core.schedule import RectifiedFlow, Schedule, VarianceExploding
from diffusion_core.solvers import consistency, ddim
from tests.diffusion_core.test_distill_jump import (
    Fixed,
    Small,
    at,
    draws,
    exact_gaussian,
    exact_mixture,
    fit_network,
    normal,
    quadrature,
    quantiles,
    train,
    unscaled,
    wasserstein,
)
from tests.diffusion_core.test_solvers import kolmogorov_smirnov
from tests.diffusion_core.worlds import SMOOTH, gaussian, mixture, vector

T_MIN = 0.01
PLAIN = {"neighbours": uniform_neighbours, "distance": squared, "weighting": unweighted}


class FlowMap(nn.Module):
    """The network whose consistency function is the exact flow map of Gaussian data to T_MIN."""

    def __init__(self, data: GaussianData, kind: Prediction) -> None:
        super().__init__()
        self.data, self.kind = data, kind

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        x, t = unscaled(self.kind, self.data.schedule, x, t)
        c_skip, c_out = boundary_coefficients(self.kind, self.data.schedule, t, T_MIN)
        # at t = T_MIN any output will do
        c_out = torch.where(c_out.abs() < 1e-9, 1.0, c_out)[:, None]
        return (flow(self.data, x, t, torch.full_like(t, T_MIN)) - c_skip[:, None] * x) / c_out


class Affine(nn.Module):
    """``F = (slope + turn t) x + shift``: three parameters whose gradients are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.turn, self.shift = (
            nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.4, -0.7, 0.2)
        )

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return (self.slope + self.turn * t[:, None]) * x + self.shift


def flow(data: GaussianData, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """`GaussianData.flow` at per-sample times."""
    alpha_t, sigma_t, alpha_s, sigma_s = (
        f(v)[:, None] for v in (t, s) for f in (data.schedule.alpha, data.schedule.sigma)
    )
    std_t, std_s = ((a**2 * data.std**2 + b**2).sqrt() for a, b in ((alpha_t, sigma_t), (alpha_s, sigma_s)))
    return alpha_s * data.mean + std_s / std_t * (x - alpha_t * data.mean)


def check_boundary(function=consistency_function) -> None:
    """``f(x, t_min) = x`` to the last bit, whatever is predicted."""
    for schedule in SMOOTH.values():
        for kind in PREDICTIONS:
            x, t = normal(5, 2), torch.full((5,), T_MIN, dtype=torch.float64)
            denoiser = NetworkDenoiser(Affine(), schedule, kind)
            assert torch.equal(function(denoiser, x, t, None, T_MIN), x)


def test_the_boundary_holds_exactly_for_every_prediction():
    check_boundary()


@pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
def test_the_function_is_one_ddim_step_of_whatever_is_predicted(schedule: Schedule):
    data, x = gaussian(schedule), normal(5, 2)
    for kind in PREDICTIONS:
        for t in (0.9, 0.3):
            denoiser = exact_gaussian(data, kind)
            stepped = sample(data, ddim(schedule, vector(t, T_MIN)), x)
            ours = consistency_function(denoiser, x, at(t)(draws(), 5), None, T_MIN)
            torch.testing.assert_close(ours, stepped, rtol=1e-9, atol=1e-9)


def check_exact_map(loss=consistency_distillation) -> None:
    """The exact flow map agrees with itself along the exact flow: the loss is zero."""
    for schedule in SMOOTH.values():
        for kind in PREDICTIONS:
            data, x0 = gaussian(schedule), normal(20, 2)
            student = NetworkDenoiser(FlowMap(data, kind), schedule, kind)
            solve = lambda x, t, s, cond: flow(data, x, t, s)  # noqa: E731
            result = loss(student, solve, x0, None, draws(), vector(0.95, 0.6, 0.3, 0.05, T_MIN))
            assert float(result.max()) < 1e-10


def test_the_exact_flow_map_is_consistent_along_the_exact_flow():
    check_exact_map()


def local_error(step, t: float, h: float) -> float:
    data = mixture(RectifiedFlow())
    x = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64)[:, None]
    solve = step(exact_mixture(data))
    reached = solve(x, at(t)(draws(), 7), at(t - h)(draws(), 7), None)
    return float((reached - data.flow(x, t, t - h)).abs().max())


@pytest.mark.parametrize(("step", "order"), [(ddim_step, 2.0), (heun_step, 3.0)], ids=["ddim", "heun"])
def test_a_step_of_the_teacher_has_the_local_error_of_its_order(step, order):
    coarse, fine = (local_error(step, 0.6, h) for h in (0.02, 0.005))
    assert abs(math.log(coarse / fine) / math.log(4.0) - order) < 0.15


def test_a_guided_teacher_may_have_a_strength_for_each_sample():
    schedule, t, s = RectifiedFlow(), at(0.8)(draws(), 4), at(0.5)(draws(), 4)
    x, here, nowhere = normal(4, 2), vector(2.0, 1.0).expand(4, 2), vector(0.0, 0.0).expand(4, 2)
    denoiser, scale = exact_gaussian(gaussian(schedule)), vector(1.0, 2.0, 5.0, 7.5)
    guided = classifier_free(denoiser, nowhere, lambda t: scale.expand(t.shape))
    uncond, cond = denoiser.x0_hat(x, t, nowhere), denoiser.x0_hat(x, t, here)
    expected = jump(schedule, x, uncond + scale[:, None] * (cond - uncond), t, s)
    torch.testing.assert_close(ddim_step(guided)(x, t, s, here), expected, rtol=1e-10, atol=1e-10)


def gradients(student: NetworkDenoiser, loss: Tensor) -> Tensor:
    return torch.stack(torch.autograd.grad(loss, list(student.parameters())))


def check_training_is_distillation(training=consistency_training) -> None:
    """The mean gradient of training is that of distillation with the exact denoiser's DDIM step, for every step size.

    The step that training takes has that step as its mean given ``x_t``, and an affine student is linear in it. All is
    polynomial in (x0, noise): quadrature is exact.
    """
    weights, (z, noise) = quadrature(2)
    for schedule in SMOOTH.values():
        data = GaussianData(schedule, vector(0.7), vector(0.4))
        student = NetworkDenoiser(Affine(), schedule, "v")
        x0 = data.mean + data.std * z
        for grid in (vector(0.9, 0.3), vector(0.6, 0.59)):
            ours = training(student, x0, None, Fixed(noise), grid, **PLAIN)
            theirs = consistency_distillation(student, ddim_step(exact_gaussian(data)), x0, None, Fixed(noise), grid)
            expected = gradients(student, (weights * theirs).sum())
            torch.testing.assert_close(gradients(student, (weights * ours).sum()), expected, rtol=1e-8, atol=1e-10)
            # the losses themselves differ by the variance of the step: it is the gradients that agree
            assert float((weights * (ours - theirs)).sum().detach()) > 1e-7


def test_the_gradient_of_training_is_that_of_distillation_with_the_exact_denoiser():
    check_training_is_distillation()


def check_continuous(loss=continuous_consistency) -> None:
    """Zero for the exact flow map with the exact velocity, whatever is predicted and at every time."""
    for schedule in SMOOTH.values():
        for kind in PREDICTIONS:
            data = gaussian(schedule)
            student = NetworkDenoiser(FlowMap(data, kind), schedule, kind)
            times = lambda draws, batch: torch.linspace(0.05, 0.95, batch, dtype=torch.float64)  # noqa: E731
            result = loss(student, normal(9, 2), None, draws(), T_MIN, exact_gaussian(data), times)
            assert float(result.max()) < 1e-16


def test_the_exact_flow_map_does_not_change_along_the_exact_flow():
    check_continuous()


def check_limit(loss=continuous_consistency) -> None:
    """Its gradient is the limit of distillation's, sample by sample: ``alpha_t / (c |c_out| h)`` of it as h -> 0.

    With ``c`` large, the normalisation ``1 / (|g| + c)`` is a factor.
    """
    t, h, c = 0.5, 1e-6, 1e9
    for schedule in SMOOTH.values():
        for kind in PREDICTIONS:
            data, x0, noise = gaussian(schedule), normal(1, 2), normal(1, 2, seed=1)
            student = NetworkDenoiser(Affine(), schedule, kind)
            ours = loss(student, x0, None, Fixed(noise), T_MIN, exact_gaussian(data), at(t), c)
            solve = lambda x, t, s, cond: flow(data, x, t, s)  # noqa: E731
            steps = lambda schedule, grid, draws, batch: (vector(t), vector(t - h))  # noqa: E731
            theirs = consistency_distillation(
                student, solve, x0, None, Fixed(noise), vector(t, T_MIN), neighbours=steps
            )
            _, c_out = boundary_coefficients(kind, schedule, vector(t), T_MIN)
            factor = float(schedule.alpha(vector(t)) / (c_out.abs() * h))
            torch.testing.assert_close(
                c * gradients(student, ours.sum()), factor * gradients(student, theirs.sum()), rtol=1e-3, atol=1e-4
            )


def test_the_continuous_gradient_is_the_limit_of_the_discrete_one():
    check_limit()


def test_continuous_training_needs_no_teacher():
    # the velocity of a pair has the exact velocity as its mean, and the tangent is linear in it where c is large
    weights, (z, noise) = quadrature(2)
    schedule, c = RectifiedFlow(), 1e9
    data = GaussianData(schedule, vector(0.7), vector(0.4))
    student = NetworkDenoiser(Affine(), schedule, "velocity")
    pair, taught = (
        continuous_consistency(student, 0.7 + 0.4 * z, None, Fixed(noise), T_MIN, teacher, at(0.6), c)
        for teacher in (None, exact_gaussian(data))
    )
    ours, theirs = (c * gradients(student, (weights * loss).sum()) for loss in (pair, taught))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_target_is_the_network_passed_in_and_gets_no_gradient():
    schedule, grid, x0 = RectifiedFlow(), vector(0.8, 0.4), normal(4, 1)
    student, target = (NetworkDenoiser(Affine(), schedule, "velocity") for _ in range(2))
    with torch.no_grad():
        target.network.shift.add_(0.5)
    noise = normal(4, 1, seed=1)
    loss = consistency_training(student, x0, None, Fixed(noise), grid, target, **PLAIN)
    process, (t, s) = Gaussian(schedule), (at(v)(draws(), 4) for v in (0.8, 0.4))
    there = process.corrupt(x0, s, noise)
    # t_min is the grid's end, and so the target's own sample
    ours = consistency_function(student, process.corrupt(x0, t, noise), t, None, 0.4)
    torch.testing.assert_close(loss, squared(ours, there))
    loss.sum().backward()
    assert student.network.shift.grad is not None and target.network.shift.grad is None
    middle = lambda schedule, grid, draws, batch: (t, s)  # noqa: E731
    loss = consistency_training(student, x0, None, Fixed(noise), vector(0.8, 0.1), target, middle, squared, unweighted)
    ours, theirs = (
        consistency_function(n, process.corrupt(x0, v, noise), v, None, 0.1) for n, v in ((student, t), (target, s))
    )
    torch.testing.assert_close(loss, squared(ours, theirs))


def test_pseudo_huber_is_its_formula_and_square_near_zero():
    a, b = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    c = 0.00054 * math.sqrt(20)
    expected = [math.sqrt(float((x - y).square().sum()) + c**2) - c for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(pseudo_huber(a, b), vector(*expected), rtol=1e-13, atol=0)
    near = pseudo_huber(a, a + 1e-7)
    torch.testing.assert_close(near, torch.full_like(near, 20 * 1e-14 / (2 * c)), rtol=1e-4, atol=0)


def check_lognormal(neighbours=lognormal_neighbours) -> None:
    """``p_i ~ erf((log u_t - mean) / (sqrt 2 std)) - erf((log u_s - mean) / (sqrt 2 std))``, Song & Dhariwal 2023."""
    n = 60_000
    for schedule in (VarianceExploding(80.0), RectifiedFlow()):
        grid = vector(1.0, 0.6, 0.3, 0.1, 0.02, 0.005)
        t, s = neighbours(schedule, grid, draws(), n)
        level = ((schedule.sigma(grid) / schedule.alpha(grid)).log() + 1.1) / (2.0 * math.sqrt(2.0))
        p = torch.erf(level)[:-1] - torch.erf(level)[1:]
        for i, expected in enumerate((p / p.sum()).tolist()):
            mine = t == grid[i]
            assert torch.equal(s[mine], grid[i + 1].expand(int(mine.sum())))
            assert abs(float(mine.double().mean()) - expected) < 4.5 * math.sqrt(expected * (1 - expected) / n)


def test_lognormal_steps_are_as_likely_as_published():
    check_lognormal()


def test_the_number_of_steps_doubles_from_10_to_1280_in_eight_equal_stages():
    # Song & Dhariwal 2023, section 3.4: 400k steps, K' = 50k
    counts = [doubling_steps(step, 400_000) for step in (0, 49_999, 50_000, 100_000, 349_999, 350_000, 399_999, 10**9)]
    assert counts == [10, 10, 20, 40, 640, 1280, 1280, 1280]
    with pytest.raises(WorkbenchError, match="last: got 5"):
        doubling_steps(0, 10, first=10, last=5)


def test_the_discretisation_is_karras_and_ends_at_t_min():
    grid = discretisation(VarianceExploding(80.0), 18, 1.0, 0.002 / 80.0)
    i = torch.arange(19, dtype=torch.float64)
    edm = (80.0 ** (1 / 7) + i / 18 * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    torch.testing.assert_close(80.0 * grid, edm, rtol=1e-12, atol=0)
    torch.testing.assert_close(inverse_gap(VarianceExploding(80.0), grid[:-1], grid[1:]), -1.0 / edm.diff())


def test_distillation_teaches_one_step_what_ddim_needs_many_for():
    """Measured W1 of one step: 0.979 for DDIM with the exact denoiser, 0.134 for the student."""
    data = mixture(RectifiedFlow())
    exact, x1 = exact_mixture(data, "velocity"), quantiles()
    ends, step = vector(1.0, T_MIN), iter(range(10_000))
    undistilled = wasserstein(sample(exact, ddim(data.schedule, ends), x1), data)
    clean = data.sample(20_000, torch.Generator().manual_seed(1)).float()
    student = NetworkDenoiser(Small(), data.schedule, "velocity")

    def loss(source: Draws) -> Tensor:
        grid = grids.uniform(doubling_steps(next(step), 350, 2, 8), 1.0, T_MIN)
        rows = (source.uniform((256,)) * len(clean)).long()
        return consistency_distillation(
            student, heun_step(exact), clean[rows], None, source, grid, distance=pseudo_huber
        )

    train(student, loss, 700, 1e-2)
    distilled = wasserstein(sample(student, ddim(data.schedule, ends), x1.float()), data)
    assert distilled < 0.3 < 0.9 < undistilled


def test_training_without_a_teacher_teaches_one_step_too():
    """Measured W1 of one step: 0.167."""
    data = mixture(RectifiedFlow())
    clean = data.sample(20_000, torch.Generator().manual_seed(1)).float()
    student, step = NetworkDenoiser(Small(), data.schedule, "velocity"), iter(range(10_000))

    def loss(source: Draws) -> Tensor:
        grid = grids.uniform(doubling_steps(next(step), 700, 4, 32), 0.99, T_MIN)
        rows = (source.uniform((256,)) * len(clean)).long()
        return consistency_training(student, clean[rows], None, source, grid)

    train(student, loss, 700, 1e-2)
    x = data.flow(quantiles(), 1.0, 0.99).float()
    distilled = wasserstein(sample(student, ddim(data.schedule, vector(0.99, T_MIN)), x), data)
    assert distilled < 0.25


def test_continuous_time_needs_no_grid_at_all():
    """From a network that begins as the teacher. Measured W1 of one step: 0.162, 0.163, 0.131 for three seeds."""
    data = mixture(RectifiedFlow())
    exact, clean = exact_mixture(data, "velocity"), data.sample(20_000, torch.Generator().manual_seed(1)).float()
    student = NetworkDenoiser(Small(), data.schedule, "velocity")
    fit_network(student.network, exact, clean, 500)

    def loss(source: Draws) -> Tensor:
        rows = (source.uniform((256,)) * len(clean)).long()
        return continuous_consistency(student, clean[rows], None, source, T_MIN, exact, c=1.0)

    train(student, loss, 400, 5e-3)
    one_step = sample(student, ddim(data.schedule, vector(1.0, T_MIN)), quantiles().float())
    assert wasserstein(one_step, data) < 0.3


class Jump(Denoiser):
    """The exact flow map of a mixture to the data."""

    def __init__(self, schedule: Schedule) -> None:
        self.data = mixture(schedule)
        self.process = self.data.process

    def bind(self, times, cond=None):
        at_times = times.tolist()
        return lambda x, i: self.data.flow(x, at_times[i], 0.0)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_multistep_sampling_with_the_exact_flow_map_is_exact(n_steps: int):
    # a jump to the data, and its noising: each keeps the exact marginal, in any number of steps
    n, schedule = 40_000, RectifiedFlow()
    world = Jump(schedule)
    noise = Shared(torch.Generator().manual_seed(1))
    x = sample(world, consistency(schedule, grids.uniform(n_steps)), normal(n, 1), noise=noise)
    assert kolmogorov_smirnov(x, world.data) < 1.95 / math.sqrt(n)  # the 0.1 % level


def test_multistep_sampling_jumps_and_noises_again():
    table, schedule = consistency(RectifiedFlow(), vector(1.0, 0.4, 0.0)), RectifiedFlow()
    assert not bool(table.x.any()) and table.estimate[:, 0].tolist() == schedule.alpha(vector(0.4, 0.0)).tolist()
    assert table.noise.tolist() == schedule.sigma(vector(0.4, 0.0)).tolist()
