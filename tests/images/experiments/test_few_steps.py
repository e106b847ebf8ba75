"""Progressive distillation, consistency models, the denoising GAN: every row can be written, and says what was seen."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from images.experiments import denoising_gan, progressive
from images.experiments.progressive import apart, halvings
from images.lab import TIERS, Lab
from tests.images.experiments.rows import check_row, short_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    lab = short_lab(tmp_path_factory.mktemp("zoo"))
    return Lab(replace(lab.tier, n=60), lab.zoo)


def test_the_row_of_progressive_distillation(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(progressive, "halvings", lambda lab: [8, 4, 2, 1])
    report = check_row("progressive", lab, tmp_path)
    names = [variant.name for variant in report.variants]
    assert names == [f"teacher, DDIM, {n} steps" for n in (8, 4, 2, 1)] + [f"student of {n} steps" for n in (4, 2, 1)]
    # the student of one step descends from that of four
    assert report.variants[-1].commands[0].count("system=progressive") == 3
    whole = report.variants[0].metrics["distance to the teacher's images"]
    assert whole.value == 0.0


def test_the_row_of_consistency_models(lab, tmp_path):
    report = check_row("consistency", lab, tmp_path)
    commands = {variant.name: variant.commands[0] for variant in report.variants}
    assert "parent" in commands["distilled, 1 step"]
    assert "parent" not in commands["trained without teacher, 1 step"]


def test_the_row_of_the_denoising_gan(lab, tmp_path):
    report = check_row("denoising_gan", lab, tmp_path)
    commands = {variant.name: variant.commands[0] for variant in report.variants}
    assert "system.latent=0" in commands[f"{denoising_gan.BLIND}, {denoising_gan.STEPS} steps"]


def test_every_student_takes_half_of_the_steps_and_all_together_no_more_training_than_the_teacher():
    for name in ("quick", "full"):
        tier = Lab(TIERS[name])
        counts = halvings(tier)
        assert counts[-1] == 1 and all(a == 2 * b for a, b in pairwise(counts))
        assert (len(counts) - 1) * (tier.steps // 6) <= tier.steps


def test_images_are_as_far_apart_as_their_root_mean_square():
    a = torch.zeros(3, 1, 4, 4)
    b = torch.tensor([0.0, 0.3, -0.6])[:, None, None, None].expand_as(a)
    assert apart(a, b).value == pytest.approx(0.3)
