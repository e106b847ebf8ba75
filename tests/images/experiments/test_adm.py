"""ADM and classifier guidance: what is measured, and the experiment once."""

from __future__ import annotations

import pytest
import torch

from images.experiments import adm
from images.systems.diffusion import Diffusion
from tests.images.experiments.rows import check_row, short_lab


def test_the_networks_differ_in_the_switches_alone(tmp_path):
    words = [dict(word.split("=") for word in words) for words, _ in adm.NETWORKS.values()]
    assert len({frozenset(w) for w in words}) == 1
    ddpm, adagn, whole = words
    assert {key for key in ddpm if ddpm[key] != adagn[key]} == {"++network.conditioning"}
    assert {key for key in ddpm if ddpm[key] != whole[key]} == set(ddpm)


def test_the_experiment_runs_and_its_row_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(adm, "STEPS", 2)
    monkeypatch.setattr(adm, "NETWORKS", {n: (words, (0,)) for n, (words, _) in adm.NETWORKS.items()})
    monkeypatch.setattr(adm, "SEEDS", (0,))
    lab = short_lab(tmp_path / "zoo")
    report = check_row("adm", lab, tmp_path)
    assert [v.name for v in report.variants][:3] == [f"{name}, seed 0" for name in adm.NETWORKS]

    model = lab.train("system=ddpm").component
    assert isinstance(model, Diffusion)
    data = lab.test_data.subset(torch.arange(50))
    found = adm.held_out_loss(model, data, 2)
    # the same draws for the same weights; a network that has hardly learned says 0, and misses noise of variance 1
    assert found == adm.held_out_loss(model, data, 2) and found.n == 50
    assert found.value == pytest.approx(1.0, abs=0.3)
