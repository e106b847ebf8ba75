"""NCSN: its row, and annealed Langevin dynamics against their closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion_core.schedule import GeometricVarianceExploding
from images.experiments import ncsn
from images.lab import Lab
from tests.images.experiments.exact import MEAN, STD, gaussian
from tests.images.experiments.leaf import check_loss_falls
from tests.images.experiments.rows import check_row, short_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    short = short_lab(tmp_path_factory.mktemp("zoo"))
    return Lab(replace(short.tier, n=48), short.zoo)


def test_the_experiment_writes_its_row(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(ncsn, "PER_LEVEL", (1, 2))
    monkeypatch.setattr(ncsn, "JUDGED", 1)
    report = check_row("ncsn", lab, tmp_path, at_least=6)
    # judged with the same number of calls
    assert sum(v.name.endswith("(11 steps)") for v in report.variants) == 1 + len(ncsn.SINGLE)


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
    laws = [(mean, variance), (share * mean + (1.0 - share) * MEAN, share**2 * variance)]
    for pixels, (mean, variance) in zip(ncsn.run(model, table, 300, 100), laws, strict=True):
        n = pixels.numel()
        assert abs(float(pixels.double().mean()) - mean) < 4.0 * (variance / n) ** 0.5
        assert abs(float(pixels.double().var()) / variance - 1.0) < 4.0 * (2.0 / n) ** 0.5


def test_a_sample_of_langevin_dynamics_does_not_depend_on_its_batch():
    model = gaussian(GeometricVarianceExploding(0.05, 10.0), 4, None)
    table = ncsn.annealed(model, 1)
    torch.testing.assert_close(ncsn.run(model, table, 6, 6)[0], ncsn.run(model, table, 6, 4)[0])


def test_the_leaf_is_a_system_whose_loss_falls():
    check_loss_falls("system=ncsn")
