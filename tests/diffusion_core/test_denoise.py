"""NetworkDenoiser: whatever an exact network predicts, the solver is given the posterior mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import PREDICTIONS, F, Prediction
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule, VarianceExploding
from tests.diffusion_core.worlds import SCHEDULES, gaussian, vector


class ExactNetwork(nn.Module):
    """The best prediction of each kind for `worlds.gaussian`, from regression on x_t.

    ``E[target | x_t] = E[target] + cov(target, x_t) / var(x_t) (x_t - E[x_t])`` needs no conversion between
    kinds, so it checks the conversions; it remembers how it was called.
    """

    def __init__(self, schedule: Schedule, kind: Prediction) -> None:
        super().__init__()
        self.schedule, self.kind, self.data = schedule, kind, gaussian(schedule)
        self.calls: list[tuple[Tensor, object]] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.calls.append((t, cond))
        t = t.to(torch.float64)[:, None]
        if self.kind == "F":
            # it is told log(sigma / alpha) / 4, and shown x_t in units of its width under data of width 1/2
            t = self.schedule.t_of_log_snr(-8.0 * t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        width = (alpha**2 / 4.0 + sigma**2) ** 0.5
        x_t = width * x_t if self.kind == "F" else x_t
        k_x0, k_eps = {
            "x0": lambda: (1.0, 0.0),
            "eps": lambda: (0.0, 1.0),
            "v": lambda: (-sigma, alpha),
            "velocity": lambda: (self.schedule.d_alpha(t), self.schedule.d_sigma(t)),
            "score": lambda: (0.0, -1.0 / sigma),
            "F": lambda: (2.0 * sigma / width, -0.5 * alpha / width),
        }[self.kind]()
        mean, variance = self.data.mean, self.data.std**2
        covariance = k_x0 * alpha * variance + k_eps * sigma
        return k_x0 * mean + covariance / (alpha**2 * variance + sigma**2) * (x_t - alpha * mean)


def check_denoiser(schedule: Schedule, kind: Prediction, times: Tensor, build=NetworkDenoiser) -> None:
    """The bound denoiser is the oracle's posterior mean at every one of ``times``."""
    evaluate = build(ExactNetwork(schedule, kind), schedule, kind).bind(times)
    exact = gaussian(schedule).bind(times)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(len(times)):
        torch.testing.assert_close(evaluate(x, i), exact(x, i), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_an_exact_prediction_of_any_kind_gives_the_posterior_mean(schedule, kind):
    check_denoiser(schedule, kind, vector(0.99, 0.6, 0.2, 0.01))


@pytest.mark.parametrize("kind", ["x0", "v", "velocity"])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
def test_the_posterior_mean_is_exact_where_no_signal_is_left(schedule, kind):
    # there v is -x0: a shortcut for "x_t does not matter" must not lose the factor of the prediction
    check_denoiser(schedule, kind, vector(1.0, 0.5))


def test_eps_is_refused_without_signal_when_bound_and_before_the_network_is_called():
    network = ExactNetwork(Cosine(), "eps")
    with pytest.raises(WorkbenchError, match=r"eps prediction: at t=1 .*expected"):
        NetworkDenoiser(network, Cosine(), "eps").bind(vector(1.0, 0.5))
    assert not network.calls


def test_the_estimate_is_clipped_to_the_bound():
    schedule, times = Linear(), vector(0.3)
    x = torch.linspace(-6.0, 6.0, 32, dtype=torch.float64).reshape(16, 2)
    free = gaussian(schedule).bind(times)(x, 0)
    clipped = NetworkDenoiser(ExactNetwork(schedule, "eps"), schedule, "eps", clip=1.0).bind(times)(x, 0)
    assert float(free.abs().max()) > 1.5
    torch.testing.assert_close(clipped, free.clamp(-1.0, 1.0), rtol=1e-9, atol=1e-9)


def test_the_network_is_called_with_its_time_per_sample_and_the_condition():
    network = ExactNetwork(Linear(), "eps")
    evaluate = NetworkDenoiser(network, Linear(), "eps").bind(vector(0.75, 0.25), cond="goal")
    evaluate(torch.zeros(3, 2, dtype=torch.float64), 1)
    ((t, cond),) = network.calls
    assert t.tolist() == [0.25] * 3 and cond == "goal"


@pytest.mark.parametrize(
    ("parameters", "time"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32)],
)
def test_time_is_given_in_the_precision_of_the_network_but_never_in_half(parameters, time):
    network = ExactNetwork(Linear(), "x0")
    network.weight = nn.Parameter(torch.zeros(1, dtype=parameters))
    NetworkDenoiser(network, Linear(), "x0").bind(vector(0.1))(torch.zeros(1, 2, dtype=torch.float64), 0)
    assert network.calls[0][0].dtype == time


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_target_of_training_is_what_the_bound_denoiser_undoes(kind):
    schedule, times = Linear(), vector(0.2, 0.5, 0.9)
    x0, eps = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = schedule.alpha(times)[:, None] * x0 + schedule.sigma(times)[:, None] * eps
    target = NetworkDenoiser(nn.Identity(), schedule, kind).target(x0, eps, times)

    class Recall(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
            return target

    evaluate = NetworkDenoiser(Recall(), schedule, kind).bind(times)
    for i in range(3):
        torch.testing.assert_close(evaluate(x_t, i)[i], x0[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [Linear(), VarianceExploding(20.0)], ids=str)
def test_an_edm_network_sees_unit_variance_and_its_own_label(schedule):
    seen: list[tuple[Tensor, Tensor]] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
            seen.append((x, t))
            return torch.zeros_like(x)

    kind, times = F(0.7), vector(0.9, 0.4, 0.1)
    denoiser = NetworkDenoiser(Watch(), schedule, kind)
    x0, eps = torch.randn(2, 3, 40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_t = Gaussian(schedule).corrupt(0.7 * x0, times, eps)
    denoiser(x_t, times)
    torch.testing.assert_close(seen[0][0].std(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=0.02)
    torch.testing.assert_close(seen[0][1], (schedule.sigma(times) / schedule.alpha(times)).log() / 4.0)
    # in the loop the same, and a network that says 0 leaves the skip connection
    estimate = denoiser.bind(times)(x_t, 1)
    torch.testing.assert_close(seen[1][0][1], seen[0][0][1], rtol=1e-12, atol=1e-12)
    assert seen[1][1].tolist() == [float(seen[0][1][1])] * 3
    alpha, sigma = schedule.alpha(times[1]), schedule.sigma(times[1])
    torch.testing.assert_close(estimate, 0.49 * alpha / (0.49 * alpha**2 + sigma**2) * x_t, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(denoiser.x0_hat(x_t, times)[1], estimate[1], rtol=1e-10, atol=1e-10)
