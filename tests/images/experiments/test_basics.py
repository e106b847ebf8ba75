"""The diffusion of 2015, NCSN, DDPM and improved DDPM: what they measure is right, and every row can be written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion_core.draws import Draws
from diffusion_core.noise import PerSample
from diffusion_core.schedule import GeometricVarianceExploding, linear_betas
from images.config import configuration
from images.experiments import bits, ddpm, improved_ddpm, ncsn, nonequilibrium
from images.lab import Lab
from images.model import assemble, sampling
from images.systems.diffusion import Diffusion
from tests.images.experiments.exact import MEAN, STD, gaussian
from tests.images.experiments.rows import check_row, short_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    short = short_lab(tmp_path_factory.mktemp("zoo"))
    return Lab(replace(short.tier, n=48), short.zoo)


def test_ddpm_writes_its_row(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(ddpm, "STEPS", 4)
    report = check_row("ddpm", lab, tmp_path, at_least=5)
    assert all({"FD", "bound", "flow"} <= v.metrics.keys() for v in report.variants[1:])
    assert "flow" in report.variants[0].metrics and "bound" not in report.variants[0].metrics
    assert all(0.5 < v.metrics["flow"].value for v in report.variants)


def test_nonequilibrium_writes_its_row(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(nonequilibrium, "STEPS", (5, 40))
    report = check_row("nonequilibrium", lab, tmp_path, at_least=6)
    assert [v.name for v in report.variants][1:3] == [f"{nonequilibrium.FIRST}, {n} steps" for n in (5, 40)]


def test_ncsn_writes_its_row(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(ncsn, "PER_LEVEL", (1, 2))
    monkeypatch.setattr(ncsn, "JUDGED", 1)
    report = check_row("ncsn", lab, tmp_path, at_least=6)
    # judged with the same number of calls
    assert sum(v.name.endswith("(11 steps)") for v in report.variants) == 1 + len(ncsn.SINGLE)


def test_improved_ddpm_writes_its_row(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(improved_ddpm, "STEPS", (2, 3))
    monkeypatch.setattr(improved_ddpm, "JUDGED", (2, 3))
    monkeypatch.setattr(improved_ddpm, "CHAINS", (2, 3, 5))
    report = check_row("improved_ddpm", lab, tmp_path)
    assert all("bound" in v.metrics for v in report.variants)


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


@pytest.mark.parametrize("per_level", [1, 4])
def test_annealed_langevin_of_gaussian_data_is_its_recursion(per_level):
    """Every step maps a normal law to a normal law: mean and variance at the end are known, whatever the step size."""
    schedule = GeometricVarianceExploding(0.05, 10.0)
    model = gaussian(schedule, 8, None)
    table = ncsn.annealed(model, per_level)
    assert int(table.evaluates.sum()) == (ncsn.LEVELS + 1) * per_level
    mean, variance, h = 0.0, 10.0**2, ncsn.STEP
    for t, evaluates in zip(table.times, table.evaluates, strict=True):
        if not evaluates:
            continue
        noise = float(schedule.sigma(t)) ** 2
        share = STD**2 / (STD**2 + noise)
        mean = (1.0 - h * (1.0 - share)) * mean + h * (1.0 - share) * MEAN
        variance = (1.0 - h * (1.0 - share)) ** 2 * variance + 2.0 * h * noise
    # and the last estimate
    mean, variance = share * mean + (1.0 - share) * MEAN, share**2 * variance
    pixels = ncsn.run(model, table, 300, 100).double()
    n = pixels.numel()
    assert abs(float(pixels.mean()) - mean) < 4.0 * (variance / n) ** 0.5
    assert abs(float(pixels.var()) / variance - 1.0) < 4.0 * (2.0 / n) ** 0.5


def test_a_sample_of_langevin_dynamics_does_not_depend_on_its_batch():
    model = gaussian(GeometricVarianceExploding(0.05, 10.0), 4, None)
    table = ncsn.annealed(model, 1)
    torch.testing.assert_close(ncsn.run(model, table, 6, 6), ncsn.run(model, table, 6, 4))


@pytest.mark.parametrize("system", ["nonequilibrium", "ncsn", "ddpm", "improved_ddpm"])
def test_a_leaf_is_a_system_whose_loss_falls(system):
    config = configuration(["task=digits", "network=unet2d_small", f"system={system}", "system.levels=17"])
    torch.manual_seed(0)
    model = assemble(config, 10)
    assert isinstance(model, Diffusion)
    table = sampling(config).table(model.denoiser.schedule)
    assert float(table.reached[-1]) == 0.0
    batch = {
        "image": torch.where(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0),
        "label": torch.zeros(16, dtype=torch.int64),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        loss = model(batch, Draws(torch.Generator().manual_seed(step % 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # the same three draws again and again: like is compared with like
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_2015_learns_mean_and_variance_and_walks_the_chain_it_learned():
    config = configuration(["task=digits", "network=unet2d_small", "system=nonequilibrium", "system.levels=17"])
    model = assemble(config, 10)
    assert isinstance(model, Diffusion)
    chain = model.chain(nonequilibrium.N_TRAIN)
    torch.testing.assert_close(chain.times, sampling(config).table(model.denoiser.schedule).times, rtol=0.0, atol=0.0)
    batch = {"image": torch.zeros(4, 1, 8, 8), "label": torch.zeros(4, dtype=torch.int64)}
    model(batch, Draws(torch.Generator().manual_seed(0))).sum().backward()
    gradient = model.denoiser.network.outlet.bias.grad
    assert gradient.shape == (2,) and bool((gradient != 0.0).all())


def test_improved_ddpm_has_the_thousand_betas_of_its_steps():
    config = configuration(["task=digits", "system=improved_ddpm"])
    model = assemble(config, 10)
    assert isinstance(model, Diffusion) and len(model.denoiser.schedule.betas) == model.n_train == 1000


def test_bits_need_as_many_levels_as_the_data_have(lab):
    model = lab.train("system=ddpm").component
    assert isinstance(model, Diffusion) and lab.test_data.levels == 17
    seen = replace(lab.test_data, levels=256)
    coarse, fine = (float(bits.by_bound(model, data, 20, 3).mean()) for data in (lab.test_data, seen))
    # 16 times as many levels are to be told
    assert fine - coarse == pytest.approx(4.0, abs=0.2)
