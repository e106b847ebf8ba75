"""The experiment of latent diffusion runs whole; its costs are counted, not guessed."""

from __future__ import annotations

import json

import pytest
import torch

from images import reference
from images.experiments import latent
from images.experiments.latent import factors, operations, rmse
from images.lab import TIERS, Lab, Tier
from images.systems import System
from images.systems.autoencoder import Autoencoder

SHORT = Tier("smoke", (*TIERS["smoke"].words, "train.steps=10"), 100)


def test_the_experiment_writes_its_row(tmp_path, monkeypatch):
    # fewer steps than a real run: the rows are what is tested
    steps = (1, 3)
    monkeypatch.setattr(latent, "STEPS", steps)
    lab = Lab(SHORT, tmp_path / "zoo")
    report = reference.run("latent", lab, tmp_path)
    row = json.loads((tmp_path / "smoke" / "latent" / "row.json").read_text())
    assert [variant["name"] for variant in row["variants"]][:2] == [f"pixels, {n} steps" for n in steps]
    assert len(row["variants"]) == 2 * (1 + len(factors(8)) + 1)
    of_words = next(v for v in row["variants"] if v["name"].startswith("f = 2, words"))
    assert {"FD", "operations", "images per CPU second", "reconstruction error"} <= of_words["metrics"].keys()
    assert row["shown"] in (True, False) and len(report.samples) >= 48

    pixels = lab.train("system=conditional").component
    assert isinstance(pixels, System)
    # twice the steps are twice the calls of the network, and nothing else is counted
    assert operations(pixels, 8) == pytest.approx(2.0 * operations(pixels, 4))
    costs = {v["name"]: v["metrics"]["operations"]["value"] for v in row["variants"]}
    assert costs["f = 4, 3 steps"] < costs["f = 2, 3 steps"] < 0.5 * costs["pixels, 3 steps"]

    stage = lab.train("system=autoencoder", "system.kind=kl", "system.factor=2", "system.latent_channels=2").component
    assert isinstance(stage, Autoencoder)
    images = lab.test_data.images()
    expected = (stage.reconstructed(images) - images).square().mean().sqrt()
    assert rmse(stage, images).value == pytest.approx(float(expected), rel=1e-5)


def test_compressions_leave_something():
    assert factors(8) == [2, 4] and factors(16) == [2, 4, 8] and factors(6) == [2] and factors(7) == []
    assert torch.tensor([16 // f for f in factors(16)]).min() >= 2
