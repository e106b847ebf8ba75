"""DDPM: its row, and interpolation between images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion_core.noise import PerSample
from diffusion_core.schedule import linear_betas
from images.experiments import ddpm
from images.lab import Lab
from tests.images.experiments.exact import MEAN, STD, gaussian
from tests.images.experiments.leaf import check_loss_falls
from tests.images.experiments.rows import check_row, short_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    short = short_lab(tmp_path_factory.mktemp("zoo"))
    return Lab(replace(short.tier, n=48), short.zoo)


def test_the_experiment_writes_its_row(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(ddpm, "COUNTED", 8)
    monkeypatch.setattr(ddpm, "WHOLE", 6)
    monkeypatch.setattr(ddpm, "STEPS", 4)
    report = check_row("ddpm", lab, tmp_path, at_least=5)
    assert all({"FD", "bound", "flow"} <= v.metrics.keys() for v in report.variants[1:])
    assert "flow" in report.variants[0].metrics and "bound" not in report.variants[0].metrics
    assert all(v.metrics["flow"].value > 0.5 for v in report.variants)


def test_interpolation_near_the_data_mixes_pixels_and_its_ends_are_the_images():
    model = gaussian(linear_betas(), 8, None)
    a, b = torch.full((1, 8, 8), -0.5), torch.full((1, 8, 8), 0.5)
    near = ddpm.interpolated(model, a, b, 1, 5)
    # sigma = 0.01 at the first step, and the estimate takes most of it away
    torch.testing.assert_close(near.mean((1, 2, 3)), torch.linspace(-0.5, 0.5, 5), atol=0.01, rtol=0.0)
    far = ddpm.interpolated(model, a, b, 1000, 5)
    # nothing of the images is left in pure noise: both ends are draws of the data
    assert (far.mean((1, 2, 3)) - MEAN).abs().max() < 5.0 * STD / 8.0


def test_mixed_noise_is_as_loud_as_noise():
    z = PerSample.from_seeds([5, 6]).normal((2, 1, 64, 64), torch.float32, torch.device("cpu"))
    zero = torch.zeros(1, 64, 64)

    class Seen(torch.nn.Module):
        def forward(self, x, t, cond=None):
            self.x = x
            return x

    model = gaussian(linear_betas(), 64)
    seen = Seen()
    model.denoiser.network = seen
    ddpm.interpolated(model, zero, zero, 1, 9)
    torch.testing.assert_close(seen.x[[0, -1]], 0.01 * z)
    # 5 standard errors of a variance of 4,096 pixels
    assert (seen.x.var((1, 2, 3)) / 1e-4 - 1.0).abs().max() < 5.0 * (2.0 / 4096) ** 0.5


def test_the_leaf_is_a_system_whose_loss_falls():
    check_loss_falls("system=ddpm")
