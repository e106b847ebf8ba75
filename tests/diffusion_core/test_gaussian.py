"""The Gaussian process against conditioning by linear algebra and against composition of its kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Cosine, RectifiedFlow, Schedule
from tests.diffusion_core.worlds import SCHEDULES, vector

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
inside = st.floats(0.01, 0.99)


def check_posterior(process: Gaussian) -> None:
    """``q(x_s | x_t, x0)`` by conditioning the joint normal of (x0, x_s, x_t), with x0 ~ N(0, 1)."""
    schedule: Schedule = process.schedule
    for t, s in ((0.9, 0.5), (0.5, 0.45), (0.2, 0.01), (0.99, 0.98)):
        # each variable as a row of coefficients on three independent unit normals (x0, e_s, e_ts)
        alpha_s, sigma_s, sigma_t = (
            float(f(vector(u))) for f, u in ((schedule.alpha, s), (schedule.sigma, s), (schedule.sigma, t))
        )
        alpha_ts = float(schedule.alpha(vector(t))) / alpha_s
        fresh = (sigma_t**2 - alpha_ts**2 * sigma_s**2) ** 0.5
        x0, x_s = vector(1.0, 0.0, 0.0), vector(alpha_s, sigma_s, 0.0)
        x_t = alpha_ts * x_s + vector(0.0, 0.0, fresh)
        given_rows = torch.stack([x_t, x0])
        weights = torch.linalg.solve(given_rows @ given_rows.T, given_rows @ x_s)
        residual = x_s - weights @ given_rows
        expected = torch.cat([weights, residual.norm()[None]])
        got = torch.cat(process.posterior(vector(t), vector(s)))
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@every_schedule
def test_posterior_is_the_joint_normal_conditioned(schedule):
    check_posterior(Gaussian(schedule))


@every_schedule
@given(times=st.lists(inside, min_size=3, max_size=3, unique=True))
def test_noising_in_two_steps_is_noising_in_one(schedule, times):
    s, t, u = (vector(v) for v in sorted(times))
    process = Gaussian(schedule)
    (alpha_ts, var_ts), (alpha_ut, var_ut), (alpha_us, var_us) = (
        process.forward(t, s),
        process.forward(u, t),
        process.forward(u, s),
    )
    torch.testing.assert_close(alpha_ut * alpha_ts, alpha_us, rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha_ut**2 * var_ts + var_ut, var_us, rtol=1e-9, atol=1e-12 * float(var_us.max() + 1))


@every_schedule
def test_noising_from_clean_data_is_the_marginal(schedule):
    t = vector(0.1, 0.4, 0.8)
    alpha, variance = Gaussian(schedule).forward(t, torch.zeros_like(t))
    torch.testing.assert_close(alpha, schedule.alpha(t), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, schedule.sigma(t) ** 2, rtol=1e-14, atol=0)


@every_schedule
def test_the_posterior_at_time_zero_is_the_data(schedule):
    a, b, std = Gaussian(schedule).posterior(vector(0.3), vector(0.0))
    assert (float(a), float(b), float(std)) == (0.0, pytest.approx(1.0, abs=1e-14), 0.0)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
def test_the_posterior_from_pure_noise_is_the_marginal(schedule):
    s = vector(0.3, 0.9)
    a, b, std = Gaussian(schedule).posterior(torch.ones_like(s), s)
    assert a.tolist() == [0.0, 0.0]
    torch.testing.assert_close(b, schedule.alpha(s), rtol=1e-14, atol=0)
    torch.testing.assert_close(std, schedule.sigma(s), rtol=1e-14, atol=0)


@every_schedule
def test_each_sample_is_corrupted_at_its_own_time(schedule):
    x0, noise = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = vector(0.1, 0.5, 0.9)
    whole = Gaussian(schedule).corrupt(x0, t, noise)
    for i in range(3):
        alone = float(schedule.alpha(t[i])) * x0[i] + float(schedule.sigma(t[i])) * noise[i]
        torch.testing.assert_close(whole[i], alone, rtol=1e-14, atol=1e-14)


@every_schedule
def test_the_prior_is_the_marginal_of_data_at_zero(schedule):
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    process = Gaussian(schedule)
    expected = process.corrupt(torch.zeros_like(noise), torch.full((5,), 0.7, dtype=torch.float64), noise)
    torch.testing.assert_close(process.prior(noise, 0.7), expected, rtol=1e-14, atol=0)
