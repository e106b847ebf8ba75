"""The experiment on diffusion transformers, once."""

from __future__ import annotations

from images.experiments import dit
from tests.images.experiments.rows import check_row, short_lab


def test_the_experiment_runs_and_its_row_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(dit, "STEPS", 2)
    report = check_row("dit", short_lab(tmp_path / "zoo"), tmp_path)
    cost = {v.name: v.metrics["operations"].value for v in report.variants}
    transformers = [name for name in cost if name.startswith("DiT") and "gates" not in name]
    assert len(transformers) == sum(len(patches) for _, patches in dit.GRID)
    assert cost["DiT small, patch 4"] < cost["DiT small, patch 2"] < cost["DiT medium, patch 2"]
    assert cost["DiT small, patch 4"] < cost["DiT medium, patch 4"] < cost["DiT large, patch 4"]
