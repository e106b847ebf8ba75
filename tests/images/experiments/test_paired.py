"""The difference of two distances, and its error."""

from __future__ import annotations

import pytest
import torch

from images.experiments.paired import distance_gap
from images.metrics.distance import frechet_distance


def normal(n: int, seed: int, d: int = 4) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_gap_is_the_difference_of_both_distances():
    a, b, reference = normal(200, 0) + 0.5, normal(200, 1), normal(300, 2)
    apart = frechet_distance(a, reference).value - frechet_distance(b, reference).value
    assert distance_gap(a, b, reference, 5).value == pytest.approx(apart, abs=1e-12)
    assert distance_gap(b, a, reference, 5).value == pytest.approx(-apart, abs=1e-12)


def test_what_both_share_is_no_error():
    a, reference = normal(200, 0), normal(300, 2)
    assert distance_gap(a, a.clone(), reference, 10).stderr == 0.0
    near = distance_gap(a + 0.01, a, reference, 20)
    assert near.stderr < 0.2 * frechet_distance(a, reference).stderr


def test_the_error_is_the_spread_over_repeated_measurements():
    """The standard error of independent clouds, against 40 true repetitions: within a factor of 1.8 of their spread."""
    found = [
        distance_gap(normal(150, 3 * i) + 0.4, normal(150, 3 * i + 1), normal(150, 3 * i + 2), 20) for i in range(40)
    ]
    spread = float(torch.tensor([e.value for e in found]).std())
    claimed = float(torch.tensor([e.stderr for e in found]).mean())
    assert spread / 1.8 < claimed < 1.8 * spread
