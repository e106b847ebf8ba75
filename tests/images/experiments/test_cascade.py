"""The cascade's experiment runs whole, and its parts draw what they say."""

from __future__ import annotations

import json

import torch

from images import reference
from images.experiments import cascade
from images.experiments.cascade import enhanced, how, small_images
from images.lab import TIERS, Lab, Tier
from images.systems.cascade import Cascade
from images.systems.low_res import LowRes

SHORT = Tier("smoke", (*TIERS["smoke"].words, "train.steps=10"), 100)


def test_the_experiment_writes_its_row(tmp_path, monkeypatch):
    # fewer steps than a real run: the rows are what is tested
    levels, base_steps = (0.0, 0.5, 1.0), (1, 2, 3)
    for name, value in {"LEVELS": levels, "BASE_STEPS": base_steps, "FINE": how(2)}.items():
        monkeypatch.setattr(cascade, name, value)
    lab = Lab(SHORT, tmp_path / "zoo")
    report = reference.run("cascade", lab, tmp_path)
    row = json.loads((tmp_path / "smoke" / "cascade" / "row.json").read_text())
    names = [variant["name"] for variant in row["variants"]]
    # the baseline first; every level but the last with true small images and with those of each base
    assert names[0].startswith("trained without noise")
    assert len(set(names)) == len(names) == (1 + len(base_steps)) * (1 + len(levels)) + 1 + 1 + 2
    assert all("FD" in variant["metrics"] and variant["commands"] for variant in row["variants"])
    assert row["shown"] in (True, False) and len(report.samples) >= 48
    assert "parent=<run of" in row["variants"][0]["commands"][1]

    base_run = lab.train("system=low_res", f"train.steps={lab.steps * 6 // 10}")
    trained = lab.train("system=cascade", f"train.steps={lab.steps * 6 // 10}", parent=base_run)
    base, system = base_run.component, trained.component
    assert isinstance(base, LowRes) and isinstance(system, Cascade)
    # a cascade carries its base: the same small images by both
    labels = torch.arange(5)
    small = small_images(base, labels, 4)
    assert torch.equal(small, small_images(system.parent, labels, 4))
    again = enhanced(system, small, labels, 0.25)
    torch.testing.assert_close(again[:2], enhanced(system, small[:2], labels[:2], 0.25), rtol=0, atol=1e-4)
