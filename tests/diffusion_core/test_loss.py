"""Losses against their closed-form minimum, weights against their definition, draws against one process's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.loss import Draws, denoising_loss, min_snr, simple, uniform_times
from diffusion_core.predict import PREDICTIONS, convert
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Linear, RectifiedFlow
from tests.diffusion_core.test_denoise import ExactNetwork
from tests.diffusion_core.worlds import SMOOTH, gaussian, vector


def draws(seed: int = 0, rank: int = 0, world: int = 1) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), rank, world)


def at(t: float):
    return lambda draws, batch: torch.full((batch,), t, dtype=torch.float64)


def clean(schedule, n: int) -> Tensor:
    data = gaussian(schedule)
    return data.mean + data.std * torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Shifted(nn.Module):
    """A network that is wrong by a constant."""

    def __init__(self, network: nn.Module, shift: float) -> None:
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        return self.network(x, t, cond) + self.shift


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
def test_the_loss_of_the_exact_prediction_is_the_variance_of_its_target(schedule, kind, shift):
    # target given x_t: variance (k_x0 - k_eps alpha / sigma)^2 var(x0 | x_t); a bias adds its square
    n, t = 20_000, 0.4
    alpha, sigma, d_alpha, d_sigma = (
        float(f(vector(t))) for f in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma)
    )
    k_x0, k_eps = {
        "x0": (1.0, 0.0), "eps": (0.0, 1.0), "v": (-sigma, alpha),
        "velocity": (d_alpha, d_sigma), "score": (0.0, -1.0 / sigma),
    }[kind]  # fmt: skip
    variance = gaussian(schedule).std ** 2
    posterior = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    expected = float(((k_x0 - k_eps * alpha / sigma) ** 2 * posterior).mean()) + shift**2

    denoiser = NetworkDenoiser(Shifted(ExactNetwork(schedule, kind), shift), schedule, kind)
    loss = denoising_loss(denoiser, clean(schedule, n), None, draws(), times=at(t))
    assert loss.shape == (n,)
    assert abs(float(loss.mean()) - expected) < 4.0 * float(loss.std()) / math.sqrt(n)


def check_min_snr(weighting) -> None:
    """Written for any prediction, the weighted error is ``min(SNR, 5) |x0_hat - x0|^2``."""
    for schedule in SMOOTH.values():
        t = vector(0.05, 0.3, 0.6, 0.95)
        x0, eps, wrong = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x_t = Gaussian(schedule).corrupt(x0, t, eps)
        snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
        expected = snr.clamp(max=5.0)[:, None] * (wrong - x0) ** 2
        for kind in PREDICTIONS:
            target = NetworkDenoiser(nn.Identity(), schedule, kind).target(x0, eps, t)
            error = (convert(wrong, x_t, "x0", kind, schedule, t) - target) ** 2
            torch.testing.assert_close(weighting(kind, schedule, t)[:, None] * error, expected, rtol=1e-7, atol=1e-9)


def test_min_snr_is_one_loss_in_whatever_way_the_network_predicts():
    check_min_snr(min_snr)


def test_min_snr_of_eps_is_the_published_ratio():
    # Hang et al. 2023, section 3.4: min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v
    schedule, t = Linear(), vector(0.02, 0.3, 0.8)
    snr = schedule.log_snr(t).exp()
    torch.testing.assert_close(min_snr("eps", schedule, t), snr.clamp(max=5.0) / snr)
    torch.testing.assert_close(min_snr("v", schedule, t), snr.clamp(max=5.0) / (snr + 1.0))
    torch.testing.assert_close(min_snr("x0", schedule, t, gamma=1.0), snr.clamp(max=1.0))


@pytest.mark.parametrize("weighting", [simple, min_snr], ids=["simple", "min_snr"])
def test_each_sample_is_weighted_at_its_own_time(weighting):
    schedule, times = Linear(), vector(0.1, 0.5, 0.9)
    denoiser = NetworkDenoiser(ExactNetwork(schedule, "v"), schedule, "v")
    x0 = clean(schedule, 3)
    noise = draws().normal((3, 2), torch.float64)
    loss = denoising_loss(denoiser, x0, None, draws(), times=lambda draws, batch: times, weighting=weighting)
    for i, t in enumerate(times):
        x_t = schedule.alpha(t) * x0[i] + schedule.sigma(t) * noise[i]
        target = schedule.alpha(t) * noise[i] - schedule.sigma(t) * x0[i]
        error = (denoiser(x_t[None], t[None])[0] - target).square().mean()
        torch.testing.assert_close(loss[i], weighting("v", schedule, t) * error, rtol=1e-10, atol=0)


# --- random numbers -------------------------------------------------------------------------------------


def check_draws(make) -> None:
    """The shards of ``world`` processes, interleaved, are one process's draws; and every draw is fresh."""
    for world in (2, 3):
        one = make(torch.Generator().manual_seed(3), 0, 1)
        shards = [make(torch.Generator().manual_seed(3), rank, world) for rank in range(world)]
        for draw in ("uniform", "normal", "normal"):
            whole = getattr(one, draw)((6, 2))
            parts = [getattr(shard, draw)((6 // world, 2)) for shard in shards]
            assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_processes_together_draw_what_one_process_draws():
    check_draws(Draws)


def test_two_processes_together_have_the_losses_of_one():
    schedule = Linear()
    denoiser = NetworkDenoiser(ExactNetwork(schedule, "eps"), schedule, "eps")
    x0 = clean(schedule, 8)
    whole = denoising_loss(denoiser, x0, None, draws())
    parts = [denoising_loss(denoiser, x0[rank::2], None, draws(rank=rank, world=2)) for rank in range(2)]
    torch.testing.assert_close(torch.stack(parts, 1).flatten(), whole, rtol=1e-12, atol=0)


def test_continuous_times_are_uniform():
    n = 50_000
    t = uniform_times(draws(), n, 0.2, 0.7).sort().values
    assert float(t[0]) >= 0.2 and float(t[-1]) <= 0.7
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    level = (t - 0.2) / 0.5
    distance = float(torch.maximum((steps[1:] - level).abs(), (level - steps[:-1]).abs()).max())
    assert distance < 1.95 / math.sqrt(n)


def test_discrete_times_are_the_points_of_the_training_grid_and_equally_frequent():
    n, n_train = 50_000, 10
    times, counts = uniform_times(draws(), n, n_train=n_train).unique(return_counts=True)
    assert torch.equal(times, grids.trailing(n_train, n_train).flip(0)[1:])
    assert bool(((counts - n / n_train).abs() < 4.5 * math.sqrt(n * 0.1 * 0.9)).all())


def test_the_loss_reaches_the_network_with_a_gradient():
    schedule = RectifiedFlow()
    network = Shifted(ExactNetwork(schedule, "velocity"), 0.0)
    network.shift = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    n = 4000
    loss = denoising_loss(NetworkDenoiser(network, schedule, "velocity"), clean(schedule, n), None, draws())
    loss.mean().backward()
    # d/dshift E|error + shift|^2 = 2 shift
    assert abs(float(network.shift.grad) - 0.6) < 4.0 * 2.0 * float(loss.detach().mean().sqrt()) / math.sqrt(2 * n)
