"""Schedules against their definitions, their inverses, autograd, quadrature and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import (
    Cosine,
    DiscreteBetas,
    Linear,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    cosine_betas,
    linear_betas,
)
from tests.diffusion_core.worlds import SCHEDULES, vector

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
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
@given(t=inside)
def test_log_snr_round_trip_at_any_time(schedule, t):
    assert float(schedule.t_of_log_snr(schedule.log_snr(vector(t)))) == pytest.approx(t, rel=1e-8)


@every_schedule
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


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_without_offset", "linear_betas", "cosine_betas"])
def test_variance_is_preserved(name):
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    total = SCHEDULES[name].alpha(t) ** 2 + SCHEDULES[name].sigma(t) ** 2
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


@pytest.mark.parametrize("schedule", [Cosine(), Cosine(0.0), RectifiedFlow()], ids=str)
def test_nothing_of_the_data_is_left_at_the_end(schedule):
    one = vector(1.0)
    assert float(schedule.alpha(one)) == 0.0
    assert float(schedule.sigma(one)) == pytest.approx(1.0, abs=1e-15)
    assert float(schedule.log_snr(one)) == -math.inf
    assert float(schedule.t_of_log_snr(vector(-math.inf))) == pytest.approx(1.0, abs=1e-15)


@every_schedule
def test_data_is_without_noise_at_time_zero(schedule):
    zero = vector(0.0)
    assert float(schedule.alpha(zero)) == 1.0
    assert float(schedule.sigma(zero)) == 0.0
    assert float(schedule.log_snr(zero)) == math.inf
    assert float(schedule.t_of_log_snr(vector(math.inf))) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("sigma", [1e-4, 1e-6])
def test_noise_keeps_its_digits_near_time_zero(sigma):
    # 1 - alpha^2 formed by subtraction would be off by 1e-4 of itself at sigma = 1e-6
    for schedule in (Linear(), Cosine(), Cosine(0.0), linear_betas()):
        t = schedule.t_of_log_snr(vector(-2.0 * math.log(sigma)))
        assert float(schedule.sigma(t)) == pytest.approx(sigma, rel=3e-6)


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
        (linear_betas(1000), {"beta_schedule": "linear", "num_train_timesteps": 1000}),
        (cosine_betas(100), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100}),
        (cosine_betas(1000), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}),
    ],
    ids=["linear", "cosine-100", "cosine-1000"],
)
def test_betas_are_those_of_diffusers(ours, theirs):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(**theirs)
    n = theirs["num_train_timesteps"]
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
