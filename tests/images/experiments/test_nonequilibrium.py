"""The diffusion of 2015: its row, and what its bound teaches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion_core.draws import Draws
from images.config import configuration
from images.experiments import nonequilibrium
from images.lab import Lab
from images.model import assemble, sampling
from images.systems.diffusion import Diffusion
from tests.images.experiments.leaf import check_loss_falls
from tests.images.experiments.rows import check_row, short_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    short = short_lab(tmp_path_factory.mktemp("zoo"))
    return Lab(replace(short.tier, n=48), short.zoo)


def test_the_experiment_writes_its_row(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(nonequilibrium, "COUNTED", 8)
    monkeypatch.setattr(nonequilibrium, "STEPS", (5, 40))
    report = check_row("nonequilibrium", lab, tmp_path, at_least=6)
    assert [v.name for v in report.variants][1:3] == [f"{nonequilibrium.FIRST}, {n} steps" for n in (5, 40)]


def test_2015_learns_mean_and_variance_and_walks_the_chain_it_learned():
    config = configuration(["task=digits", "network=unet2d_small", "system=nonequilibrium", "system.levels=17"])
    model = assemble(config, 10)
    assert isinstance(model, Diffusion)
    chain = model.chain(nonequilibrium.N_TRAIN)
    torch.testing.assert_close(chain.times, sampling(config).table(model.denoiser.schedule).times, rtol=0.0, atol=0.0)
    # the new network says 0: another image, or the mean has nothing to learn
    batch = {"image": torch.full((4, 1, 8, 8), 0.5), "label": torch.zeros(4, dtype=torch.int64)}
    model(batch, Draws(torch.Generator().manual_seed(0))).sum().backward()
    gradient = model.denoiser.network.outlet.bias.grad
    assert gradient.shape == (2,) and bool((gradient != 0.0).all())


def test_the_leaf_is_a_system_whose_loss_falls():
    check_loss_falls("system=nonequilibrium", "system.levels=17")
