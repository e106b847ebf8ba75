"""Improved DDPM: its row and its chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from images.config import configuration
from images.experiments import improved_ddpm
from images.lab import Lab
from images.model import assemble
from images.systems.diffusion import Diffusion
from tests.images.experiments.leaf import check_loss_falls
from tests.images.experiments.rows import check_row, short_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    short = short_lab(tmp_path_factory.mktemp("zoo"))
    return Lab(replace(short.tier, n=48), short.zoo)


def test_the_experiment_writes_its_row(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(improved_ddpm, "COUNTED", 8)
    monkeypatch.setattr(improved_ddpm, "STEPS", (2, 3))
    monkeypatch.setattr(improved_ddpm, "JUDGED", (2, 3))
    monkeypatch.setattr(improved_ddpm, "CHAINS", (2, 3, 5))
    report = check_row("improved_ddpm", lab, tmp_path)
    assert all("bound" in v.metrics for v in report.variants)


def test_improved_ddpm_has_the_thousand_betas_of_its_steps():
    config = configuration(["task=digits", "system=improved_ddpm"])
    model = assemble(config, 10)
    assert isinstance(model, Diffusion) and len(model.denoiser.schedule.betas) == model.n_train == 1000


def test_the_leaf_is_a_system_whose_loss_falls():
    check_loss_falls("system=improved_ddpm", "system.levels=17")
