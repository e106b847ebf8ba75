"""The experiment of any-order autoregression runs whole, and its baseline is a likelihood."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from images import reference
from images.experiments import autoregressive
from images.experiments.autoregressive import independent_bits, toy_gap
from images.lab import TIERS, Lab, Tier

SHORT = Tier("smoke", (*TIERS["smoke"].words, "train.steps=30"), 100)


def test_the_experiment_writes_its_row(tmp_path, monkeypatch):
    # fewer calls than a real run: the rows are what is tested
    for name, value in {"CALLS": (1, 2, 4, 8), "FEW": 4, "MANY": 8, "PIXELS": 640}.items():
        monkeypatch.setattr(autoregressive, name, value)
    lab = Lab(SHORT, tmp_path / "zoo")
    report = reference.run("autoregressive", lab, tmp_path)
    row = json.loads((tmp_path / "smoke" / "autoregressive" / "row.json").read_text())
    names = [variant["name"] for variant in row["variants"]]
    assert names == [
        "independent pixels, histograms",
        *(f"{n} calls" for n in (1, 2, 4, 8)),
        "likelihood, pixel by pixel",
    ]
    # 30 steps of training are enough to beat a die of 17 sides
    assert row["variants"][-1]["metrics"]["bits per dim"]["value"] < math.log2(17)
    assert row["shown"] in (True, False) and len(report.samples) >= 48


def test_the_toy_is_exact():
    assert toy_gap() < 1e-5


def test_histograms_are_a_likelihood():
    """All images of a label together have probability 1, and an image's frequency in training counts."""
    train = torch.tensor([0, 0, 1, 1]).reshape(2, 1, 1, 2)
    labels = torch.tensor([0, 1])
    every = torch.tensor(list(itertools.product(range(3), repeat=2))).reshape(-1, 1, 1, 2)
    for label in (0, 1):
        bits = independent_bits(train, labels, every, torch.full((9,), label), levels=3)
        assert float((-2.0 * bits).exp2().sum()) == pytest.approx(1.0)
        assert int(bits.argmin()) == {0: 0, 1: 4}[label]
    assert float(independent_bits(train, labels, every[:1], torch.tensor([0]), 3)) == pytest.approx(-math.log2(2 / 4))
