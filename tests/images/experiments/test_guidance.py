"""The experiments on guidance, on the diffusion classifier and on transformers: their parts exactly, the whole once."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

from diffusion_core import results
from diffusion_core.experts import start
from images import reference, zoo
from images.config import configuration
from images.experiments import adm
from images.experiments.classifier_free import guided_points, posterior, rank_correlation, three_gaussians
from images.experiments.diffusion_classifier import stages
from images.lab import TIERS, Lab
from images.systems.diffusion import Diffusion


@pytest.mark.parametrize("y", [[3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
def test_the_rank_correlation_is_scipys(y):
    x = [1.0, 2.0, 4.0, 16.0]
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_without_any_trend_the_rank_correlation_is_zero():
    assert rank_correlation([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == 0.0


def test_the_posterior_of_the_world_is_bayes_rule():
    world, x = three_gaussians(), torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    found = posterior(world, x)
    torch.testing.assert_close(found.sum(1), torch.ones(20).double())
    normal = torch.distributions.Normal(world.means[1], world.stds[1])
    log_joint = normal.log_prob(x).sum(1) + world.weights[1].log()
    torch.testing.assert_close(found[:, 1].log(), log_joint - world.log_density(x, 0.0))


def test_scale_one_samples_the_class_and_scale_zero_the_mixture():
    world, n = three_gaussians(), 2_000
    own = guided_points(world, 0, 1.0, n)
    # five standard errors, and a bias of the solver below them
    error = 5.0 * float(world.stds[0]) / math.sqrt(n)
    torch.testing.assert_close(own.mean(0), world.means[0], atol=error, rtol=0.0)
    torch.testing.assert_close(own.std(0), world.stds[0].expand(2), atol=error, rtol=0.0)
    shares = posterior(world, guided_points(world, 0, 0.0, n)).mean(0)
    torch.testing.assert_close(shares, world.weights, atol=5.0 * 0.5 / math.sqrt(n), rtol=0.0)


def test_guidance_moves_mass_away_from_the_other_classes():
    world = three_gaussians()
    true = [float(posterior(world, guided_points(world, 1, scale, 500))[:, 1].mean()) for scale in (0.0, 1.0, 2.0, 4.0)]
    assert true == sorted(true) and true[-1] > 0.99
    denoiser = world * (world / world) ** 3.0
    assert torch.equal(start(denoiser, torch.ones(1, 2).double()), torch.ones(1, 2).double())


def test_guided_samples_need_no_training_of_their_own():
    words = TIERS["quick"].words
    keys = {zoo.key(configuration([*words, f"system={name}"])) for name in ("conditional", "classifier_free")}
    assert len(keys) == 1


def test_the_held_out_loss_is_the_same_for_the_same_weights_and_differs_by_weights(lab):
    torch.manual_seed(0)
    trained = lab.train("system=conditional", "train.steps=1").component
    assert isinstance(trained, Diffusion)
    data = lab.test_data.subset(torch.arange(50))
    found = adm.held_out_loss(trained, data, 2)
    assert found == adm.held_out_loss(trained, data, 2) and found.n == 50
    assert found.value == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 24])
def test_elimination_keeps_ever_fewer_classes(n_classes):
    kept = [n_classes, *(stage.keep for stage in stages(n_classes))]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 1


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    smoke = TIERS["smoke"]
    return Lab(replace(smoke, words=(*smoke.words, "train.steps=10")), tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("name", ["adm", "classifier_free", "diffusion_classifier", "dit"])
def test_the_experiment_runs_and_its_row_is_written(name, lab, tmp_path, monkeypatch):
    module = importlib.import_module(f"images.experiments.{name}")
    for constant, few in {"STEPS": 2, "SEEDS": (0,), "PAIRS": (1, 2, 8, 17), "ALONE": 8}.items():
        if hasattr(module, constant):
            monkeypatch.setattr(module, constant, few)
    if name == "adm":
        monkeypatch.setattr(module, "NETWORKS", {n: (words, (0,)) for n, (words, _) in module.NETWORKS.items()})
    report = reference.run(name, lab, tmp_path)
    row = json.loads((tmp_path / "smoke" / name / "row.json").read_text())
    assert row["shown"] in (True, False) and len(row["variants"]) == len(report.variants) >= 8
    assert len({v["name"] for v in row["variants"]}) == len(row["variants"])
    assert len(report.samples) >= 48 and report.samples.shape[1:] == lab.shape
    for text in (row["criterion"], row["verdict"], row["published"], row["idea"], row["notes"]):
        assert len(text) > 40 and "nan" not in text.split() and "{" not in text
    for picture in ("samples.png", "figure.png"):
        assert (tmp_path / "smoke" / name / picture).stat().st_size > 1000
    assert results.hardware()["cores"] == row["hardware"]["cores"]
