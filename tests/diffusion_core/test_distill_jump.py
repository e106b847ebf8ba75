"""What all distillation losses stand on: a denoiser at per-sample times, one DDIM step per sample, pairs of times.

Also the worlds in which those losses are tested: exact networks, quadrature in place of random draws, a small network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.distill import Pairs, estimate, grid_pairs, jump, process_of
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.predict import PREDICTIONS, Prediction, convert, input_scale
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Linear, RectifiedFlow, Schedule
from diffusion_core.solvers import ddim
from tests.diffusion_core.worlds import SMOOTH, gaussian, mixture, plane_mixture, vector


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fixed(Draws):
    """Given numbers in place of random ones: the tensors ``normals`` one after the other, every uniform ``u``."""

    def __init__(self, *normals: Tensor, u: float = 0.5) -> None:
        super().__init__(torch.Generator())
        self.normals, self.u = list(normals), u

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return self.normals.pop(0).to(dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.full(tuple(shape), self.u, dtype=dtype)


def quadrature(dims: int, n: int = 12) -> tuple[Tensor, list[Tensor]]:
    """Weights and nodes (n^dims, 1) with which the mean of a polynomial of standard normals is exact."""
    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(n))
    weights = weights / weights.sum()
    axes = torch.meshgrid(*[nodes] * dims, indexing="ij")
    product = torch.stack(torch.meshgrid(*[weights] * dims, indexing="ij")).prod(0)
    return product.flatten(), [axis.reshape(-1, 1) for axis in axes]


def at(t: float) -> Callable[[Draws, int], Tensor]:
    return lambda draws, batch: torch.full((batch,), t, dtype=torch.float64)


def step_of(t: float, s: float) -> Pairs:
    return lambda draws, batch: (at(t)(draws, batch), at(s)(draws, batch))


def unscaled(kind: Prediction, schedule: Schedule, shown: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """``x_t`` and ``t`` from what a network is shown and told: other things for EDM's F."""
    if kind != "F":
        return shown, label
    t = schedule.t_of_log_snr(-8.0 * label)
    return shown / input_scale("F", schedule, t)[:, None], t


class Told(nn.Module):
    """A network that is told its x0_hat by a function of (x_t, t, cond) and says it in any ``kind``."""

    def __init__(
        self, schedule: Schedule, kind: Prediction, x0_hat: Callable[[Tensor, Tensor, object], Tensor]
    ) -> None:
        super().__init__()
        self.schedule, self.kind, self.x0_hat = schedule, kind, x0_hat

    def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        x_t, t = unscaled(self.kind, self.schedule, x_t, t.to(torch.float64))
        return convert(self.x0_hat(x_t, t, cond), x_t, "x0", self.kind, self.schedule, t)


def told(schedule: Schedule, x0_hat: Callable[[Tensor, Tensor, object], Tensor], kind: Prediction = "x0"):
    return NetworkDenoiser(Told(schedule, kind, x0_hat), schedule, kind)


def exact_gaussian(data: GaussianData, kind: Prediction = "x0") -> NetworkDenoiser:
    """The posterior mean of Gaussian data at per-sample times; ``cond``, where given, is another mean."""

    def x0_hat(x_t: Tensor, t: Tensor, cond: object) -> Tensor:
        mean = data.mean if cond is None else cond
        alpha, sigma = data.schedule.alpha(t)[:, None], data.schedule.sigma(t)[:, None]
        return mean + alpha * data.std**2 / (alpha**2 * data.std**2 + sigma**2) * (x_t - alpha * mean)

    return told(data.schedule, x0_hat, kind)


def exact_mixture(data: GaussianMixture, kind: Prediction = "x0") -> NetworkDenoiser:
    """The posterior mean of a mixture at per-sample times, in the precision of the samples."""

    def x0_hat(x_t: Tensor, t: Tensor, cond: object) -> Tensor:
        alpha, sigma = (v.to(x_t.dtype)[:, None] for v in (data.schedule.alpha(t), data.schedule.sigma(t)))
        weights, means, stds = (v.to(x_t.dtype) for v in (data.weights, data.means, data.stds))
        variance = alpha**2 * stds**2 + sigma**2
        away = x_t[:, None] - alpha[..., None] * means
        share = (weights.log() - 0.5 * ((away**2).sum(-1) / variance + means.shape[1] * variance.log())).softmax(1)
        return (share[..., None] * (means + (alpha * stds**2 / variance)[..., None] * away)).sum(1)

    return told(data.schedule, x0_hat, kind)


class Small(nn.Module):
    """A network for points on a line, seen through a few slow waves of time; ``extra`` more inputs beside x."""

    def __init__(self, extra: int = 0, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.tensor([0.5, 1.0, 2.0, 4.0]) * math.pi)
        self.layers = nn.Sequential(
            nn.Linear(1 + extra + 8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                fan = parameter.shape[-1]
                parameter.copy_((2.0 * torch.rand(parameter.shape, generator=generator) - 1.0) / math.sqrt(fan))

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        angles = t[:, None].to(x.dtype) * self.frequencies
        return self.layers(torch.cat([x, angles.cos(), angles.sin()], 1))


def train(module: nn.Module, loss: Callable[[Draws], Tensor], steps: int, rate: float = 2e-3, seed: int = 0) -> None:
    """Adam with a rate that falls to zero; every random number comes from ``seed``."""
    optimizer = torch.optim.Adam(module.parameters(), rate)
    source = draws(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1.0 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss(source).mean().backward()
        optimizer.step()


def fit_network(
    network: nn.Module, exact: NetworkDenoiser, clean: Tensor, steps: int = 2000, rate: float = 1e-2
) -> None:
    """Train a network to say what an exact one says, under the straight-line schedule: a teacher in a second."""

    def loss(source: Draws) -> Tensor:
        rows, t = (source.uniform((512,)) * len(clean)).long(), source.uniform((512,), torch.float32)
        x_t = torch.lerp(clean[rows], source.normal((512, 1)), t[:, None])
        with torch.no_grad():
            target = exact.network(x_t, t)
        return ((network(x_t, t) - target) ** 2).mean(1)

    train(network, loss, steps, rate)


def quantiles(n: int = 2000) -> Tensor:
    """The standard normal's, (n, 1): a start of sampling without sampling error."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def wasserstein(samples: Tensor, data: GaussianMixture) -> float:
    """W1 between samples (n, 1) and one-dimensional data whose schedule ends without signal."""
    truth = data.flow(quantiles(len(samples)) * float(data.schedule.sigma(vector(1.0))), 1.0, 0.0)
    return float((samples.double().sort(0).values - truth).abs().mean())


@pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
def test_a_jump_is_the_row_of_ddim_and_nothing_where_it_does_not_move(schedule):
    t, s = vector(0.99, 0.6, 0.6, 0.2), vector(0.6, 0.59, 0.0, 0.1)
    x_t, x0_hat = normal(4, 3), normal(4, 3, seed=1)
    jumped = jump(schedule, x_t, x0_hat, t, s)
    for i in range(4):
        table = ddim(schedule, torch.stack([t[i], s[i]]))
        expected = table.x[0, 0] * x_t[i] + table.estimate[0, 0] * x0_hat[i]
        torch.testing.assert_close(jumped[i], expected, rtol=1e-13, atol=1e-13)
        # Song et al. 2021, eq. 12: alpha_s x0_hat + sigma_s eps_hat
        eps_hat = convert(x0_hat, x_t, "x0", "eps", schedule, t)
        torch.testing.assert_close(jumped, Gaussian(schedule).corrupt(x0_hat, s, eps_hat), rtol=1e-11, atol=1e-11)
    still = vector(0.0, 0.3, 0.6, 1.0)
    assert torch.equal(jump(schedule, x_t, x0_hat, still, still), x_t)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
def test_an_estimate_is_the_posterior_mean_of_each_sample_at_its_own_time_and_carries_no_gradient(schedule, kind):
    t, x = vector(0.9, 0.5, 0.1), normal(3, 2).requires_grad_()
    for data, network in (
        (gaussian(schedule), exact_gaussian(gaussian(schedule), kind)),
        (plane_mixture(schedule), exact_mixture(plane_mixture(schedule), kind)),
    ):
        estimated = estimate(network, x, t)
        for i in range(3):
            truth = data.bind(t[i : i + 1])(x.detach()[i : i + 1], 0)
            torch.testing.assert_close(estimated[i : i + 1], truth, rtol=1e-9, atol=1e-9)
        assert not estimated.requires_grad


def test_steps_of_a_grid_are_equally_frequent_and_belong_together():
    n, grid = 40_000, vector(1.0, 0.7, 0.65, 0.2, 0.0)
    t, s = grid_pairs(grid)(draws(), n)
    for i in range(4):
        mine = t == grid[i]
        assert torch.equal(s[mine], grid[i + 1].expand(int(mine.sum())))
        assert abs(float(mine.double().mean()) - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / n)


def test_a_denoiser_of_another_kind_of_field_is_refused():
    class Other:
        pass

    denoiser = exact_gaussian(gaussian(Linear()))
    assert process_of(denoiser) == Gaussian(Linear())
    denoiser.process = Other()
    with pytest.raises(WorkbenchError, match="Other; expected Gaussian"):
        process_of(denoiser)


def test_w1_of_the_exact_flow_is_zero():
    data = mixture(RectifiedFlow())
    assert wasserstein(data.flow(quantiles(), 1.0, 0.0), data) < 1e-9
