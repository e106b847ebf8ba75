"""The experiment on the diffusion classifier, once."""

from __future__ import annotations

import pytest
import torch

from images.experiments import diffusion_classifier
from images.experiments.diffusion_classifier import accuracies, stages
from tests.images.experiments.rows import check_row, short_lab


@pytest.mark.parametrize("n_classes", [2, 3, 10, 24])
def test_elimination_keeps_ever_fewer_classes(n_classes):
    kept = [n_classes, *(stage.keep for stage in stages(n_classes))]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 1


def test_accuracy_is_of_the_sum_of_the_first_pairs():
    # class 0 is the better one by the first pair, class 1 by both together
    errors = torch.tensor([[[1.0, 9.0], [2.0, 3.0]]]).double()
    found = accuracies(errors, torch.tensor([1]), (1, 2))
    assert [found[k].value for k in (1, 2)] == [0.0, 1.0]


def test_the_experiment_runs_and_its_row_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion_classifier, "PAIRS", (1, 2, 8, 17))
    monkeypatch.setattr(diffusion_classifier, "ALONE", 8)
    report = check_row("diffusion_classifier", short_lab(tmp_path / "zoo"), tmp_path)
    evaluations = {v.name: v.metrics["evaluations per image"].value for v in report.variants}
    assert evaluations["shared pairs, 17 pairs"] == 170
    assert next(n for name, n in evaluations.items() if "elimination" in name) == 4 * 10 + 12 * 5 + 1 * 3
