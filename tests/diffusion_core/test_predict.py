"""The table of conversions against the definition of every kind of prediction."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import PREDICTIONS, Prediction, align, convert, mixture, to_x0
from diffusion_core.schedule import Cosine, RectifiedFlow, Schedule
from tests.diffusion_core.worlds import SCHEDULES, vector

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
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
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    back = convert(got, x_t, target, source, schedule, TIMES)
    torch.testing.assert_close(back, given, rtol=1e-8, atol=1e-8)


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


@pytest.mark.parametrize("kind", ["x0", "v", "velocity"])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
def test_data_is_recovered_even_where_no_signal_is_left(schedule, kind):
    one = vector(1.0)
    x0, eps = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c_x, c_p = to_x0(kind, schedule, one)
    torch.testing.assert_close(
        c_x * eps + c_p * by_definition(kind, schedule, x0, eps, one), x0, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["eps", "score"])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
def test_noise_predictions_are_refused_where_no_signal_is_left(schedule, kind):
    with pytest.raises(WorkbenchError, match=r"t=1 .*expected"):
        to_x0(kind, schedule, vector(1.0, 0.5))


@pytest.mark.parametrize(("kind", "name"), [("score", "linear"), ("velocity", "cosine_without_offset")])
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
