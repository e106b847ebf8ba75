"""Conditioning on a linear measurement is exact where the data is normal, whatever its covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.guidance import Inflated, measurement
from diffusion_core.inverse import Measured
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Cosine

STD = 0.1


@dataclass(frozen=True, eq=False)
class Normal(Denoiser):
    """Data N(mean, covariance): ``x0_hat = m + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha m)``."""

    mean: Tensor
    covariance: Tensor
    process = Gaussian(Cosine())

    def posterior(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x0 given x_t."""
        clock = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.process.schedule.alpha(clock), self.process.schedule.sigma(clock)
        gain = (
            alpha
            * self.covariance
            @ torch.linalg.inv(alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean)))
        )
        return self.mean + (x - alpha * self.mean) @ gain.T, self.covariance - alpha * gain @ self.covariance

    def bind(self, times: Tensor, cond: Any = None) -> Evaluate:
        return lambda x, i: self.posterior(x, float(times[i]))[0]


@pytest.fixture
def world() -> tuple[Normal, Tensor, Tensor, Tensor]:
    """Five correlated numbers, two measurements of them, and noisy samples."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    root = draw(5, 5)
    return Normal(draw(5), root @ root.T / 5 + 0.01 * torch.eye(5)), draw(2, 5), draw(7, 2), draw(7, 5)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.95])
def test_it_is_the_mean_given_the_sample_and_the_measurement(world, t):
    model, a, y, x = world
    times = torch.tensor([t], dtype=torch.float64)
    found = Measured(model, lambda x0: x0 @ a.T, y, STD, iterations=2).bind(times)(x, 0)
    mean, v = model.posterior(x, t)
    gain = v @ a.T @ torch.linalg.inv(a @ v @ a.T + STD**2 * torch.eye(2))
    exact = mean + (y - mean @ a.T) @ gain.T
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def test_one_number_for_the_covariance_does_too_little_where_the_denoiser_is_sure(world):
    """Pseudo-inverse guidance takes x0 to be as uncertain as data of unit variance would be, and it is not."""
    model, a, y, x = world
    sure = Normal(model.mean, 0.01 * model.covariance)
    times = torch.tensor([0.5], dtype=torch.float64)
    operator = lambda x0: x0 @ a.T  # noqa: E731
    mean, v = sure.posterior(x, 0.5)
    gain = v @ a.T @ torch.linalg.inv(a @ v @ a.T + 1e-4 * torch.eye(2))
    exact = mean + (y - mean @ a.T) @ gain.T
    ours = Measured(sure, operator, y, 0.01, iterations=2).bind(times)(x, 0)
    theirs = (sure * measurement(operator, y, Inflated(sure.process.schedule, 0.01))).bind(times)(x, 0)
    assert (theirs - mean).norm() < 0.5 * (exact - mean).norm()
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)


def test_where_nothing_of_the_data_is_left_it_does_nothing(world):
    model, a, y, x = world
    times = torch.tensor([1.0], dtype=torch.float64)
    found = Measured(model, lambda x0: x0 @ a.T, y, STD).bind(times)(x, 0)
    torch.testing.assert_close(found, model.posterior(x, 1.0)[0])


def test_a_guidance_that_is_off_where_no_signal_is_left_may_begin_there(world):
    """Its gradient there would be divided by alpha = 0; another strength is refused at that time."""
    model, a, y, x = world
    times = torch.tensor([1.0, 0.5], dtype=torch.float64)
    guided = lambda strength: model * measurement(lambda x0: x0 @ a.T, y, strength)  # noqa: E731
    evaluate = guided(lambda t: (t < 1.0).double()).bind(times)
    torch.testing.assert_close(evaluate(x, 0), model.bind(times)(x, 0))
    alone = guided(1.0).bind(times[1:])(x, 0)
    torch.testing.assert_close(evaluate(x, 1), alone)
    with pytest.raises(WorkbenchError, match="leaves no signal"):
        guided(1.0).bind(times)


def test_bad_numbers_are_refused(world):
    model, _, y, _ = world
    for std, iterations in ((0.0, 1), (0.1, 0)):
        with pytest.raises(WorkbenchError, match="std > 0 and iterations >= 1"):
            Measured(model, lambda x0: x0, y, std, iterations)
