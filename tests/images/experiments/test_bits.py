"""Bits per dimension: exact where the data and the network are Gaussian."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from diffusion_core.schedule import linear_betas
from images.data.pictures import Pictures
from images.experiments import bits
from images.systems import Parts
from images.systems.diffusion import Diffusion
from tests.images.experiments.exact import MEAN, STD, gaussian

N = 60


@pytest.fixture(scope="module")
def model() -> Diffusion:
    return gaussian(linear_betas())


@pytest.fixture(scope="module")
def data() -> Pictures:
    """Gaussian pixels of `gaussian`'s mean and width, on 256 levels."""
    x = MEAN + STD * torch.randn(400, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = ((x + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Pictures(pixels, torch.zeros(400, dtype=torch.int64), (), "gaussian", "drawn")


def exact(x: torch.Tensor, schedule, t: float, width: float) -> torch.Tensor:
    """Bits per dimension of the data noised to time ``t``: independent normals."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
    law = torch.distributions.Normal(alpha * MEAN, math.hypot(alpha * STD, sigma))
    return (-law.log_prob(x.double()).flatten(1).mean(1) - math.log(width)) / math.log(2.0)


def test_the_flow_finds_the_density(model, data):
    expected = exact(bits.dequantised(data, N), model.denoiser.schedule, 1e-3, bits.bin_width(data))
    coarse, fine = (bits.by_flow(model, data, N, tolerance).double() - expected for tolerance in (1e-2, 1e-4))
    # the prior N(0, sigma_1^2) of the start is not quite the marginal: 2e-3 bits are left whatever the tolerance
    assert fine.abs().max() < 5e-3 and coarse.abs().max() < 2e-2


def test_the_bound_comes_down_to_the_density_from_above(model, data):
    expected = float(exact(data.images()[:N], model.denoiser.schedule, 0.0, bits.bin_width(data)).mean())
    gaps = [float(bits.by_bound(model, data, N, steps, "large").mean()) - expected for steps in (10, 40, 160)]
    assert all(b < a for a, b in pairwise(gaps)) and -0.02 < gaps[-1] < 0.2, gaps


def test_a_gaussian_fit_is_the_exact_likelihood_of_gaussian_data(data):
    law = bits.gaussian_fit(data)
    x = bits.dequantised(data, 400)
    found = float(bits.by_gaussian(law, data, 400).mean())
    expected = float(exact(x, linear_betas(), 0.0, bits.bin_width(data)).mean())
    # fitted with d (d + 3) / 2 = 152 numbers on the images it is measured on: 152 / (2 n) nats too good, on average
    assert found == pytest.approx(expected - 152 / (2 * 400 * 16 * math.log(2.0)), abs=6e-3)


def test_a_gaussian_fit_has_the_moments_of_the_dequantised_data(data):
    law = bits.gaussian_fit(data)
    images = data.images().flatten(1).double()
    torch.testing.assert_close(law.loc, images.mean(0))
    spread = law.covariance_matrix - images.T.cov()
    torch.testing.assert_close(spread, torch.eye(16).double() * (2.0 / 255.0) ** 2 / 12.0, atol=1e-9, rtol=0.0)
    samples = bits.drawn(law, 4000, data.shape).flatten(1).double()
    # 5 standard errors of a mean, and of a variance
    assert (samples.mean(0) - law.loc).abs().max() < 5.0 * STD / 4000**0.5
    assert (samples.var(0) / law.covariance_matrix.diagonal() - 1.0).abs().max() < 5.0 * (2.0 / 4000) ** 0.5


def test_dequantised_values_fill_their_bins_and_no_other(data):
    u = (bits.dequantised(data, 400) - data.images()) / bits.bin_width(data)
    assert -0.5 <= float(u.min()) < -0.499 and 0.499 < float(u.max()) <= 0.5 + 1e-4
    assert abs(float(u.mean())) < 5.0 / (12.0 * u.numel()) ** 0.5


class Halves(torch.nn.Module):
    """The exact estimate, and everywhere the same interpolation of the variance."""

    def __init__(self, network: torch.nn.Module, interpolation: float) -> None:
        super().__init__()
        self.network, self.interpolation = network, interpolation

    def forward(self, x, t, cond=None):
        return torch.cat([self.network(x, t), torch.full_like(x, self.interpolation)], 1)


@pytest.mark.parametrize(("interpolation", "fixed"), [(-1.0, "small"), (1.0, "large")])
def test_a_learned_variance_at_its_ends_is_the_fixed_one(model, data, interpolation, fixed):
    network = Halves(model.denoiser.network, interpolation)
    parts = Parts((1, 4, 4), 0, lambda **_: network, model.denoiser.schedule, "eps", 1.0)
    learned = Diffusion(parts, learned_variance=True, conditional=False)
    found = bits.by_bound(learned, data, N, 20, "learned")
    torch.testing.assert_close(found, bits.by_bound(model, data, N, 20, fixed))
