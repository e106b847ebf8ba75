"""The table of conversions against the definition of every kind of prediction."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import (
    PREDICTIONS,
    F,
    Prediction,
    align,
    coefficients,
    convert,
    input_scale,
    mixture,
    noise_label,
    to_x0,
)
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule, VarianceExploding
from tests.diffusion_core.worlds import EVERY_SCHEDULE, SCHEDULES, vector

every_schedule = pytest.mark.parametrize("schedule", EVERY_SCHEDULE.values(), ids=EVERY_SCHEDULE.keys())
TIMES = vector(0.02, 0.2, 0.531, 0.87, 0.99)


def by_definition(kind: Prediction, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Each target from its meaning; velocity and score by differentiating what they are derivatives of."""
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    if kind == "velocity":
        slope = torch.autograd.functional.jvp(
            lambda u: schedule.alpha(u)[:, None] * x0 + schedule.sigma(u)[:, None] * eps, t, torch.ones_like(t)
        )
        return slope[1]
    if kind == "score":
        x_t = (alpha * x0 + sigma * eps).requires_grad_(True)
        log_density = torch.distributions.Normal(alpha * x0, sigma).log_prob(x_t)
        return torch.autograd.grad(log_density.sum(), x_t)[0]
    if kind == "F":
        # EDM's own words, at the noise level sigma / alpha
        level, s = sigma / alpha, 0.5
        c_skip, c_out = s**2 / (level**2 + s**2), level * s / (level**2 + s**2) ** 0.5
        return (x0 - c_skip * (x0 + level * eps)) / c_out
    return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[kind]


def world(schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(TIMES), 3, generator=generator, dtype=torch.float64)
    return x0, eps, schedule.alpha(TIMES)[:, None] * x0 + schedule.sigma(TIMES)[:, None] * eps


@every_schedule
@pytest.mark.parametrize("target", PREDICTIONS)
@pytest.mark.parametrize("source", PREDICTIONS)
def test_every_kind_becomes_every_other_as_defined(schedule, source, target):
    x0, eps, x_t = world(schedule)
    given = by_definition(source, schedule, x0, eps, TIMES)
    expected = by_definition(target, schedule, x0, eps, TIMES)
    got = convert(given, x_t, source, target, schedule, TIMES)
    # a steep schedule has large targets, and as many of their digits are lost
    size = float(max(expected.abs().max(), given.abs().max(), 1.0))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8 * size)
    back = convert(got, x_t, target, source, schedule, TIMES)
    torch.testing.assert_close(back, given, rtol=1e-8, atol=1e-8 * size)


def check_to_x0(convert_to_x0) -> None:
    """``c_x x_t + c_p prediction`` is the data, for every kind and schedule."""
    for schedule in SCHEDULES.values():
        x0, eps, x_t = world(schedule)
        for kind in PREDICTIONS:
            c_x, c_p = convert_to_x0(kind, schedule, TIMES)
            prediction = by_definition(kind, schedule, x0, eps, TIMES)
            torch.testing.assert_close(c_x[:, None] * x_t + c_p[:, None] * prediction, x0, rtol=1e-8, atol=1e-8)


def test_data_is_recovered_from_every_kind():
    check_to_x0(to_x0)


@pytest.mark.parametrize("kind", ["x0", "v", "velocity", F(0.7)], ids=str)
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
def test_data_is_recovered_even_where_no_signal_is_left(schedule, kind):
    one = vector(1.0)
    x0, eps = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c_x, c_p = to_x0(kind, schedule, one)
    # by_definition divides by the signal: here F is x0 / sigma_data
    prediction = x0 / kind.sigma_data if isinstance(kind, F) else by_definition(kind, schedule, x0, eps, one)
    torch.testing.assert_close(c_x * eps + c_p * prediction, x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["eps", "score"])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
def test_noise_predictions_are_refused_where_no_signal_is_left(schedule, kind):
    with pytest.raises(WorkbenchError, match=r"t=1 .*expected"):
        to_x0(kind, schedule, vector(1.0, 0.5))


@pytest.mark.parametrize(("kind", "name"), [("score", "linear"), ("velocity", "cosine"), ("velocity", "linear")])
def test_targets_that_are_undefined_without_noise_are_refused_there(kind, name):
    with pytest.raises(WorkbenchError, match=r"t=0 "):
        to_x0(kind, SCHEDULES[name], vector(0.5, 0.0))


def test_an_unknown_kind_is_refused():
    # unwrapped: the suite's own type checker would refuse it first
    with pytest.raises(WorkbenchError, match="'noise'; expected one of x0, eps"):
        inspect.unwrap(mixture)("noise", Cosine(), TIMES)


def test_align_gives_every_sample_its_own_coefficient():
    like = torch.ones(3, 2, 4)
    scaled = align(vector(1.0, 2.0, 3.0), like) * like
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled[:, 1, 2], torch.tensor([1.0, 2.0, 3.0]))


# --- EDM's F -----------------------------------------------------------------------------------------------


def check_f(coefficients_of) -> None:
    """F has unit variance, and its best estimate none of the sample in it, for data of width sigma_data."""
    for schedule in EVERY_SCHEDULE.values():
        for s in (0.5, 1.3):
            k_x0, k_eps = coefficients_of(F(s), schedule, TIMES)
            alpha, sigma = schedule.alpha(TIMES), schedule.sigma(TIMES)
            variance, covariance = k_x0**2 * s**2 + k_eps**2, k_x0 * alpha * s**2 + k_eps * sigma
            torch.testing.assert_close(variance, torch.ones_like(TIMES), rtol=1e-12, atol=0)
            torch.testing.assert_close(covariance, torch.zeros_like(TIMES), rtol=0, atol=1e-12)


def test_f_is_of_unit_variance_and_uncorrelated_with_the_sample():
    check_f(mixture)


def test_f_of_unit_data_under_a_preserving_schedule_is_minus_v():
    for got, v in zip(mixture(F(1.0), Linear(), TIMES), mixture("v", Linear(), TIMES), strict=True):
        torch.testing.assert_close(got, -v, rtol=1e-13, atol=1e-15)


def test_f_of_a_word_is_f_of_one_half():
    for word, value in zip(mixture("F", Cosine(), TIMES), mixture(F(0.5), Cosine(), TIMES), strict=True):
        assert torch.equal(word, value)
    given = torch.ones(5, 1, dtype=torch.float64)
    assert convert(given, given, "F", F(0.5), Cosine(), TIMES) is given


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Linear(), VarianceExploding()], ids=str)
def test_f_is_defined_at_both_ends(schedule):
    ends = vector(0.0, 1.0)
    for c in (*to_x0("F", schedule, ends), *mixture("F", schedule, ends), input_scale("F", schedule, ends)):
        assert bool(c.isfinite().all())


def test_preconditioning_is_that_of_edm():
    schedule, s = VarianceExploding(80.0), 0.5
    sigma = schedule.sigma(TIMES)
    torch.testing.assert_close(input_scale("F", schedule, TIMES), 1.0 / (sigma**2 + s**2).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(noise_label("F", schedule, TIMES), sigma.log() / 4.0, rtol=1e-14, atol=1e-15)
    c_x, c_p = to_x0("F", schedule, TIMES)
    torch.testing.assert_close(c_x, s**2 / (sigma**2 + s**2), rtol=1e-12, atol=0)
    torch.testing.assert_close(c_p, sigma * s / (sigma**2 + s**2).sqrt(), rtol=1e-12, atol=0)


@every_schedule
def test_the_network_is_given_unit_variance(schedule):
    n = input_scale(F(0.8), schedule, TIMES)
    variance = (schedule.alpha(TIMES) ** 2 * 0.64 + schedule.sigma(TIMES) ** 2) * n**2
    torch.testing.assert_close(variance, torch.ones_like(TIMES), rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity", "score"])
def test_other_kinds_are_given_the_sample_and_the_time(kind):
    assert torch.equal(input_scale(kind, Linear(), TIMES), torch.ones_like(TIMES))
    assert torch.equal(noise_label(kind, Linear(), TIMES), TIMES)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_an_infinite_label_is_refused(t):
    with pytest.raises(WorkbenchError, match=rf"t={t:.6g} .*expected"):
        noise_label("F", RectifiedFlow(), vector(0.5, t))


def test_a_width_of_nothing_is_refused():
    with pytest.raises(WorkbenchError, match=r"got sigma_data=0.0; expected"):
        F(0.0)


# --- where a target is undefined ---------------------------------------------------------------------------


def check_undefined(convert_kinds) -> None:
    """Without noise x0 does not say what eps was, and without signal eps does not say what x0 was: refused, not NaN."""
    x = torch.ones(1, 2, dtype=torch.float64)
    without_noise = [("x0", "eps"), ("x0", "v"), ("x0", "score"), ("v", "score"), ("F", "score"), ("eps", "velocity")]
    without_signal = [("eps", "x0"), ("eps", "v"), ("score", "F"), ("score", "velocity")]
    for t, pairs in ((0.0, without_noise), (1.0, without_signal)):
        for source, target in pairs:
            with pytest.raises(WorkbenchError, match=r"t=\d .*expected"):
                convert_kinds(x, x, source, target, Cosine(), vector(t))


def test_undefined_targets_are_refused():
    check_undefined(convert)


@pytest.mark.parametrize("source", ["v", "F", "eps"])
def test_defined_ones_are_exact_without_noise(source):
    x0, eps = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = vector(0.0)
    k_x0, k_eps = mixture(source, Linear(), t)
    given = k_x0[:, None] * x0 + k_eps[:, None] * eps
    for target, expected in (("x0", x0), ("eps", eps), ("v", eps)):
        torch.testing.assert_close(convert(given, x0, source, target, Linear(), t), expected, rtol=1e-14, atol=1e-14)


def test_a_kind_is_itself_everywhere():
    for kind in PREDICTIONS:
        c_x, c_p = coefficients(kind, kind, Cosine(), vector(0.0, 1.0))
        assert c_x.tolist() == [0.0, 0.0] and c_p.tolist() == [1.0, 1.0]
