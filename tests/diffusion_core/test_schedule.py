"""Schedules against their definitions, their inverses, autograd, quadrature and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import (
    Cosine,
    DiscreteBetas,
    GeometricVarianceExploding,
    Laplace,
    LearnedLogSnr,
    Linear,
    Range,
    RectifiedFlow,
    Schedule,
    Shifted,
    Sigmoid,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
    ZeroTerminal,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    sigmoid_betas,
)
from tests.diffusion_core.worlds import EVERY_SCHEDULE, NOISY_AT_ZERO, bent, vector

every_schedule = pytest.mark.parametrize("schedule", EVERY_SCHEDULE.values(), ids=EVERY_SCHEDULE.keys())
inside = st.floats(1e-4, 1.0 - 1e-4)


def check_inverse(schedule: Schedule) -> None:
    """``t_of_log_snr`` undoes ``log_snr`` and the other way round."""
    t = torch.linspace(1e-5, 1.0 - 1e-5, 997, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(schedule.t_of_log_snr(log_snr), t, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(schedule.log_snr(schedule.t_of_log_snr(log_snr)), log_snr, rtol=1e-10, atol=1e-10)


@every_schedule
def test_log_snr_and_its_inverse_undo_each_other(schedule):
    check_inverse(schedule)


@every_schedule
@settings(deadline=None)  # the first call compiles type checks
@given(t=inside)
def test_log_snr_round_trip_at_any_time(schedule, t):
    assert float(schedule.t_of_log_snr(schedule.log_snr(vector(t)))) == pytest.approx(t, rel=1e-8)


@every_schedule
@settings(deadline=None)  # the first call compiles type checks
@given(t=inside, s=inside)
def test_log_snr_falls_with_time(schedule, t, s):
    low, high = sorted((t, s))
    at_low, at_high = schedule.log_snr(vector(low, high)).tolist()
    # equal only where float64 cannot tell the two apart
    assert at_low > at_high or high - low < 1e-12


@every_schedule
def test_derivatives_are_those_of_autograd(schedule):
    t = torch.linspace(0.003, 0.9971, 313, dtype=torch.float64, requires_grad=True)
    for function, derivative in ((schedule.alpha, schedule.d_alpha), (schedule.sigma, schedule.d_sigma)):
        value = function(t)
        if value.requires_grad:
            (expected,) = torch.autograd.grad(value.sum(), t)
        else:
            expected = torch.zeros_like(t)
        torch.testing.assert_close(derivative(t.detach()), expected, rtol=1e-9, atol=1e-12)


OTHERS = {"flow", "exploding", "sub_preserving", "geometric", "shifted_flow", "shifted_exploding"}


@pytest.mark.parametrize("name", sorted(EVERY_SCHEDULE.keys() - OTHERS))
def test_variance_is_preserved(name):
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    total = EVERY_SCHEDULE[name].alpha(t) ** 2 + EVERY_SCHEDULE[name].sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", [Linear(), Linear(0.3, 0.3), linear_betas(50), cosine_betas(10)], ids=str)
def test_alpha_squared_is_exp_of_minus_the_integral_of_beta(schedule):
    assert isinstance(schedule, VariancePreserving)
    for t in (0.07, 0.31, 0.9):
        knots = [i / 50 for i in range(1, 50) if i / 50 < t]
        integral, _ = quad(lambda u: float(schedule.beta(vector(u))), 0.0, t, points=knots or None, limit=400)
        assert -2.0 * math.log(float(schedule.alpha(vector(t)))) == pytest.approx(integral, rel=1e-9)


def test_cosine_is_the_ratio_of_cosines_of_nichol_and_dhariwal():
    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0.0, 0.1, 0.5, 0.95):
        assert float(Cosine().alpha(vector(t))) ** 2 == pytest.approx(f(t) / f(0.0), rel=1e-13)


WITHOUT_SIGNAL = ("cosine", "cosine_without_offset", "flow", "sigmoid", "steep_sigmoid", "laplace", "wide_laplace",
    "zero_terminal", "zero_terminal_betas", "shifted_cosine", "shifted_flow")  # fmt: skip


@pytest.mark.parametrize("schedule", [EVERY_SCHEDULE[name] for name in WITHOUT_SIGNAL], ids=WITHOUT_SIGNAL)
def test_nothing_of_the_data_is_left_at_the_end(schedule):
    one = vector(1.0)
    assert float(schedule.alpha(one)) == 0.0
    assert float(schedule.sigma(one)) == pytest.approx(1.0, abs=1e-15)
    assert float(schedule.log_snr(one)) == -math.inf
    assert float(schedule.t_of_log_snr(vector(-math.inf))) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("name", sorted(EVERY_SCHEDULE.keys() - NOISY_AT_ZERO))
def test_data_is_without_noise_at_time_zero(name):
    schedule, zero = EVERY_SCHEDULE[name], vector(0.0)
    assert float(schedule.alpha(zero)) == 1.0
    assert float(schedule.sigma(zero)) == 0.0
    assert float(schedule.log_snr(zero)) == math.inf
    assert float(schedule.t_of_log_snr(vector(math.inf))) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("sigma", [1e-4, 1e-6])
def test_noise_keeps_its_digits_near_time_zero(sigma):
    # 1 - alpha^2 formed by subtraction would be off by 1e-4 of itself at sigma = 1e-6
    for schedule in (
        Linear(),
        Cosine(),
        Cosine(0.0),
        linear_betas(),
        Sigmoid(),
        Laplace(0.0, 3.0),
        ZeroTerminal(Linear()),
    ):
        t = schedule.t_of_log_snr(vector(-2.0 * math.log(sigma)))
        assert float(schedule.sigma(t)) == pytest.approx(sigma, rel=3e-6)


def check_tiny_noise(schedule: Schedule) -> None:
    """The time of a noise level far below the rounding of alpha is still found."""
    t = schedule.t_of_log_snr(vector(-2.0 * math.log(1e-12)))
    torch.testing.assert_close(schedule.sigma(t), vector(1e-12), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", [SubVariancePreserving(), RectifiedFlow(), VarianceExploding()], ids=str)
def test_tiny_noise_is_found(schedule):
    check_tiny_noise(schedule)


def check_knots(schedule: DiscreteBetas) -> None:
    """At ``t = i / n``: alpha^2 is the product of ``1 - beta``, and beta is the segment's that ends there."""
    n = len(schedule.betas)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    betas = torch.tensor(schedule.betas, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2, torch.cumprod(1.0 - betas, 0), rtol=1e-11, atol=0)
    torch.testing.assert_close(schedule.beta(t), -n * torch.log1p(-betas), rtol=1e-11, atol=0)


@pytest.mark.parametrize("n", [1, 7, 49, 50, 100, 1000, 4000])
def test_discrete_betas_are_exact_at_their_knots(n):
    check_knots(linear_betas(n))
    check_knots(cosine_betas(n))


def test_discrete_betas_of_a_continuous_schedule_are_that_schedule_at_the_knots():
    linear = Linear()
    t = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)
    betas = -torch.expm1(-linear.integrated_beta(t).diff())
    discrete = DiscreteBetas(tuple(betas.tolist()))
    torch.testing.assert_close(discrete.log_snr(t[1:]), linear.log_snr(t[1:]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (scaled_linear_betas(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (sigmoid_betas(), {"beta_schedule": "sigmoid", "num_train_timesteps": 1000}),
        (linear_betas(1000), {"beta_schedule": "linear", "num_train_timesteps": 1000}),
        (cosine_betas(100), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100}),
        (cosine_betas(1000), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}),
    ],
    ids=["scaled_linear", "sigmoid", "linear", "cosine-100", "cosine-1000"],
)
def test_betas_are_those_of_diffusers(ours, theirs):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(**theirs)
    n = len(ours.betas)
    alpha_squared = ours.alpha(torch.arange(1, n + 1, dtype=torch.float64) / n) ** 2
    # theirs are float32: rounding beta and 1 - beta moves each factor by up to 6e-8 / (1 - beta), its product by 6e-8
    allowed = (6e-8 / (1.0 - vector(*ours.betas)) + 6e-8).cumsum(0)
    assert bool(((alpha_squared / scheduler.alphas_cumprod.double() - 1.0).abs() <= allowed).all())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Linear(0.0, 1.0),
        lambda: Linear(2.0, 1.0),
        lambda: Linear(math.nan, 1.0),
        lambda: Cosine(-0.1),
        lambda: Cosine(1.0),
        lambda: VarianceExploding(0.0),
        lambda: GeometricVarianceExploding(0.0),
        lambda: GeometricVarianceExploding(2.0, 1.0),
        lambda: SubVariancePreserving(0.0),
        lambda: Sigmoid(1.0, 1.0),
        lambda: Sigmoid(tau=0.0),
        lambda: Sigmoid(tau=1e-9),
        lambda: Laplace(scale=0.0),
        lambda: Laplace(math.nan),
        lambda: ZeroTerminal(Cosine()),
        lambda: ZeroTerminal(VarianceExploding()),
        lambda: Shifted(Linear(), 0.0),
        lambda: Shifted(SubVariancePreserving(), 2.0),
        lambda: Range(Linear(), 0.5, 0.5),
        lambda: Range(Linear(), 0.0, 1.1),
        lambda: LearnedLogSnr(0),
        lambda: LearnedLogSnr(4, -5.0, 5.0),
        lambda: VarianceExploding(math.nan),
        lambda: DiscreteBetas(()),
        lambda: DiscreteBetas((0.1, 1.0)),
        lambda: DiscreteBetas((0.0,)),
        lambda: DiscreteBetas((0.1, math.nan)),
    ],
)
def test_impossible_schedules_are_refused(build):
    with pytest.raises(WorkbenchError, match=r"got .*expected"):
        build()


# --- the formulas of the newer ones ------------------------------------------------------------------------


def test_sigmoid_is_the_difference_of_sigmoids_of_chen():
    start, end, tau = -2.0, 3.0, 0.7
    for t in (0.05, 0.4, 0.93):
        s = [1.0 / (1.0 + math.exp(-(start + u * (end - start)) / tau)) for u in (0.0, t, 1.0)]
        alpha = float(Sigmoid(start, end, tau).alpha(vector(t)))
        assert alpha**2 == pytest.approx((s[2] - s[1]) / (s[2] - s[0]), rel=1e-13)


def test_the_log_snr_of_uniform_times_is_laplace_distributed():
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    law = torch.distributions.Laplace(vector(0.7), vector(1.3))
    # time runs against log-SNR: t is the probability of a larger one
    torch.testing.assert_close(1.0 - law.cdf(Laplace(0.7, 1.3).log_snr(t)), t, rtol=1e-12, atol=0)


def test_sub_vp_has_the_square_of_the_preserving_noise():
    t = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    torch.testing.assert_close(SubVariancePreserving().sigma(t), Linear().sigma(t) ** 2, rtol=1e-13, atol=0)
    assert torch.equal(SubVariancePreserving().alpha(t), Linear().alpha(t))


def test_geometric_noise_is_the_same_factor_in_every_step():
    sigma = GeometricVarianceExploding(0.02, 5.0).sigma(torch.linspace(0.0, 1.0, 6, dtype=torch.float64))
    assert sigma.tolist() == pytest.approx([0.02 * 250.0 ** (i / 5) for i in range(6)], rel=1e-13)


@pytest.mark.parametrize("schedule", [Laplace(0.3, 0.5), Laplace(0.3, 2.0), Laplace(-0.3, 3.0), Cosine(0.0)], ids=str)
def test_derivatives_at_the_very_ends_are_the_limits(schedule):
    for t, inside in ((0.0, 1e-10), (1.0, 1.0 - 1e-10)):
        for derivative in (schedule.d_alpha, schedule.d_sigma):
            end, near = float(derivative(vector(t))), float(derivative(vector(inside)))
            assert not math.isnan(end)
            # an infinite slope is large nearby; a finite one is close
            assert abs(near) > 1e3 if math.isinf(end) else near == pytest.approx(end, rel=1e-3, abs=1e-3)


# --- schedules made of schedules ---------------------------------------------------------------------------


def check_zero_terminal(rescaled, schedule: Schedule) -> None:
    """alpha is an affine function of what it was, 1 at t = 0 and 0 at t = 1."""
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    alpha, own = rescaled(schedule).alpha(t), schedule.alpha(t)
    torch.testing.assert_close(alpha, (own - own[-1]) / (own[0] - own[-1]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("schedule", [Linear(), linear_betas(), scaled_linear_betas()], ids=["linear", "betas", "ldm"])
def test_zero_terminal_snr_shifts_and_scales_alpha(schedule):
    check_zero_terminal(ZeroTerminal, schedule)


@pytest.mark.parametrize(("ours", "kind", "ends"), [
    (linear_betas(), "linear", (1e-4, 0.02)),
    (scaled_linear_betas(), "scaled_linear", (0.00085, 0.012)),
])  # fmt: skip
def test_zero_terminal_snr_is_that_of_diffusers_but_for_the_first_step(ours, kind, ends):
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(
        beta_schedule=kind, beta_start=ends[0], beta_end=ends[1], rescale_betas_zero_snr=True
    )
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    theirs = scheduler.alphas_cumprod.double().sqrt()[:-1]
    torch.testing.assert_close(ZeroTerminal(ours).alpha(t), theirs, rtol=4e-5, atol=3e-6)


def check_shift(shift) -> None:
    """log-SNR moves by ``-2 log factor``, and (alpha, sigma) stay on the curve of their family."""
    t = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    curves = {2: (Linear(), Cosine(), linear_betas()), 1: (RectifiedFlow(),)}
    for factor in (0.25, 3.0):
        for p, schedules in curves.items():
            for schedule in schedules:
                moved = shift(schedule, factor)
                expected = schedule.log_snr(t) - 2.0 * math.log(factor)
                torch.testing.assert_close(moved.log_snr(t), expected, rtol=1e-12, atol=1e-12)
                one = moved.alpha(t) ** p + moved.sigma(t) ** p
                torch.testing.assert_close(one, torch.ones_like(t), rtol=0, atol=1e-14)
        for schedule in (VarianceExploding(), GeometricVarianceExploding()):
            moved = shift(schedule, factor)
            torch.testing.assert_close(moved.sigma(t), factor * schedule.sigma(t), rtol=1e-14, atol=0)
            assert torch.equal(moved.alpha(t), torch.ones_like(t))


def test_a_shift_moves_log_snr_and_keeps_the_family():
    check_shift(Shifted)


@settings(deadline=None)  # the first call compiles type checks
@given(t=st.floats(0.0, 1.0), factor=st.floats(0.1, 10.0))
def test_shifting_a_flow_is_the_shift_of_stable_diffusion_3(t, factor):
    moved = factor * t / (1.0 + (factor - 1.0) * t)
    assert float(Shifted(RectifiedFlow(), factor).sigma(vector(t))) == pytest.approx(moved, rel=1e-12, abs=1e-300)
    assert float(Shifted(RectifiedFlow(), factor).alpha(vector(t))) == pytest.approx(1.0 - moved, rel=1e-9, abs=1e-15)


def test_a_shift_by_resolution_adds_the_published_log_snr():
    # Hoogeboom et al. 2023: 256 pixels with the noise of 64
    schedule, t = Shifted(Cosine(), 256 / 64), vector(0.2, 0.5, 0.9)
    torch.testing.assert_close(schedule.log_snr(t), Cosine().log_snr(t) + 2.0 * math.log(64 / 256))


@pytest.mark.parametrize("schedule", [Linear(), RectifiedFlow(), VarianceExploding()], ids=str)
def test_two_shifts_are_two_shifts(schedule):
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    twice, once = Shifted(Shifted(schedule, 2.0), 3.0), Shifted(schedule, 6.0)
    torch.testing.assert_close(twice.log_snr(t), once.log_snr(t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(Shifted(Shifted(schedule, 2.0), 0.5).sigma(t), schedule.sigma(t))


def test_a_range_runs_from_its_first_time_to_its_last():
    t = vector(0.0, 0.5, 1.0)
    assert torch.equal(Range(Cosine(), 0.2, 1.0).alpha(t), Cosine().alpha(vector(0.2, 0.6, 1.0)))


# --- the learned one ---------------------------------------------------------------------------------------


def test_the_ends_of_a_learned_schedule_are_fixed():
    schedule = bent()
    assert schedule.log_snr(vector(0.0, 1.0)).tolist() == pytest.approx([13.3, -5.0], rel=1e-9)


def test_the_gradient_of_the_learned_inverse_is_that_of_finite_differences():
    schedule = bent().double().requires_grad_(True)
    log_snr = vector(6.0, 1.0, -3.0).requires_grad_(True)
    assert torch.autograd.gradcheck(schedule.t_of_log_snr, (log_snr,))
    schedule.t_of_log_snr(log_snr).sum().backward()
    got, h = float(schedule.place.grad[2]), 1e-6
    with torch.no_grad():
        values = []
        for shift in (h, -2.0 * h):
            schedule.place[2] += shift
            values.append(float(schedule.t_of_log_snr(log_snr).sum()))
    assert got == pytest.approx((values[0] - values[1]) / (2.0 * h), rel=1e-5)


def test_a_learned_schedule_learns_the_schedule_that_is_asked_of_it():
    goal = Range(Cosine(), 0.02, 0.95)
    first, last = goal.log_snr(vector(0.0, 1.0)).tolist()
    schedule = LearnedLogSnr(16, first, last)
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    wanted = goal.log_snr(t)
    before = float((schedule.log_snr(t) - wanted).detach().abs().max())
    optimizer = torch.optim.Adam(schedule.parameters(), 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        (schedule.log_snr(t) - wanted).square().mean().backward()
        optimizer.step()
    assert before > 1.0 and float((schedule.log_snr(t) - wanted).detach().abs().max()) < 0.1 * before
