"""Crystals that tests share."""

from __future__ import annotations

import numpy as np
import pytest

from materials.crystal import Crystal, Crystals
from materials.data import prototypes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_core.download.cache", lambda domain: tmp_path / "cache" / domain)
    monkeypatch.setattr("materials.metrics.each.cache", lambda domain: tmp_path / "cache" / domain)


@pytest.fixture(scope="session")
def decorated() -> Crystals:
    return Crystals.of(list(prototypes.generate(60, seed=3)), "sixty")


@pytest.fixture
def salt() -> Crystal:
    half = 0.5
    sites = [[0, 0, 0], [0, half, half], [half, 0, half], [half, half, 0]]
    sites += [[half, 0, 0], [0, half, 0], [0, 0, half], [half, half, half]]
    return Crystal(np.array([11] * 4 + [17] * 4), np.array(sites, dtype=float), 5.64 * np.eye(3), {"id": "salt"})
