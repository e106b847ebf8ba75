"""Score networks: an exact network is an exact denoiser, and nothing that the loss could learn is left in it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise.score import ScoreNetwork, score_loss
from diffusion_core.loss import Draws
from diffusion_core.oracles import RotationMixture, WrappedMixture
from diffusion_core.process.so3 import SO3
from diffusion_core.process.torus import Torus
from diffusion_core.sample import sample
from diffusion_core.schedule import VarianceExploding
from diffusion_core.solvers import torus as solvers
from tests.diffusion_core.test_so3 import rotations
from tests.diffusion_core.worlds import vector

World = WrappedMixture | RotationMixture

TORUS = WrappedMixture(
    Torus(VarianceExploding(2.0), period=2.0), vector(0.4, 0.6), vector(0.2, 1.1)[:, None], vector(0.1, 0.3)
)
ROTATIONS = RotationMixture(SO3(VarianceExploding(2.5)), vector(0.4, 0.6), rotations(2), vector(0.2, 0.4))


class Exact(nn.Module):
    """The output that makes a score network exact."""

    def __init__(self, data: World, scale: str) -> None:
        super().__init__()
        self.data, self.scale = data, scale

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        score = self.data.bind(t[None])(x, 0) if t.ndim == 1 else self.data.score(x, float(t))
        factors = self.data.process.output_scale(t, self.scale)
        return score / factors.reshape(-1, *(1,) * (score.ndim - 1))


@pytest.mark.parametrize("data", [TORUS, ROTATIONS], ids=lambda data: type(data).__name__)
@pytest.mark.parametrize("scale", ["sigma", "norm"])
def test_an_exact_network_is_an_exact_denoiser(data, scale):
    denoiser = ScoreNetwork(Exact(data, scale), data.process, scale)
    x = data.sample(6, torch.Generator().manual_seed(0))
    times = vector(0.9, 0.3, 0.05)
    for i, t in enumerate(times.tolist()):
        torch.testing.assert_close(denoiser.bind(times)(x, i), data.score(x, t), rtol=1e-12, atol=1e-12)
    each = torch.rand(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = denoiser.bind(each)(x, 1)
    for j in range(6):
        torch.testing.assert_close(got[j], data.score(x[j], float(each[1, j])), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("data", [TORUS, ROTATIONS], ids=lambda data: type(data).__name__)
def test_the_target_is_the_marginal_score_plus_what_no_function_of_x_t_explains(data):
    """``E (target - score) h(x_t) = 0`` for every h: the loss is least at the marginal score."""
    n = 40_000
    denoiser = ScoreNetwork(Exact(data, "norm"), data.process)
    draws = Draws(torch.Generator().manual_seed(2))
    x0 = data.sample(n, draws.generator)
    for t in (0.04, 0.2, 0.6):
        t_all = torch.full((n,), t, dtype=torch.float64)
        x_t = data.process.corrupt(x0, t_all, data.process.noise(x0, draws))
        exact = denoiser(x_t, t_all)
        rest = denoiser.target(x0, x_t, t_all) - exact
        flat = x_t.reshape(n, -1)
        for h in (exact, torch.sin(math.pi * flat[:, :1]), torch.cos(math.pi * flat[:, :1])):
            product = rest * h
            error = product.std(0) / math.sqrt(n)
            assert bool((product.mean(0).abs() < 4.5 * error).all())


@pytest.mark.parametrize("data", [TORUS, ROTATIONS], ids=lambda data: type(data).__name__)
def test_the_loss_is_the_mean_squared_error_of_its_own_draws(data):
    denoiser = ScoreNetwork(Exact(data, "norm"), data.process)
    x0 = data.sample(5, torch.Generator().manual_seed(0))
    loss = score_loss(denoiser, x0, None, Draws(torch.Generator().manual_seed(3)))
    draws = Draws(torch.Generator().manual_seed(3))
    t = draws.uniform((5,))
    x_t = data.process.corrupt(x0, t, data.process.noise(x0, draws))
    for j in range(5):
        score = data.process.score(x0[j : j + 1], x_t[j : j + 1], t[j : j + 1])
        error = (data.score(x_t[j : j + 1], float(t[j])) - score) / data.process.output_scale(t[j : j + 1])
        assert float(loss[j]) == pytest.approx(float((error**2).mean()), rel=1e-8)


def test_sampling_in_float32_follows_float64():
    class Cast(Exact):
        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            return super().forward(x.double(), t.double(), cond).to(x.dtype)

    denoiser = ScoreNetwork(Cast(TORUS, "norm"), TORUS.process)
    plan = solvers.flow(TORUS.process, grids.uniform(20, 1.0, 0.02), 2)
    x = 2.0 * torch.rand(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, got = sample(denoiser, plan, x), sample(denoiser, plan, x.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=2e-5)
