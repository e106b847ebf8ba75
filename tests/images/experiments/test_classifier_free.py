"""Classifier-free guidance: its trends and its exact world, and the experiment once."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from images import zoo
from images.config import configuration
from images.experiments import classifier_free
from images.experiments.classifier_free import guided_points, posterior, rank_correlation, three_gaussians
from images.lab import TIERS
from tests.images.experiments.rows import check_row, short_lab


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


def test_guided_samples_need_no_training_of_their_own():
    words = TIERS["quick"].words
    keys = {zoo.key(configuration([*words, f"system={name}"])) for name in ("conditional", "classifier_free")}
    assert len(keys) == 1


def test_the_experiment_runs_and_its_row_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier_free, "STEPS", 2)
    report = check_row("classifier_free", short_lab(tmp_path / "zoo"), tmp_path)
    assert len(report.variants) == 2 * len(classifier_free.SCALES) + len(classifier_free.EXACT)
    assert not report.shown
