"""Manifolds on clouds with known answers, in expectation over one distribution, and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from images.metrics import neighbours
from images.metrics.neighbours import density_coverage, memorisation, nearest, precision_recall, radii


def cloud(n: int, seed: int, centre: float = 0.0, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + centre


def values(samples: torch.Tensor, reference: torch.Tensor) -> list[float]:
    manifold, balls = precision_recall(samples, reference), density_coverage(samples, reference)
    return [manifold.precision.value, manifold.recall.value, balls.density.value, balls.coverage.value]


def test_points_on_a_line_have_known_radii():
    line = torch.arange(6.0, dtype=torch.float64)[:, None]
    assert radii(line, 1).tolist() == [1, 1, 1, 1, 1, 1]
    assert radii(line, 3).tolist() == [3, 2, 2, 2, 2, 3]
    # two at one place are neighbours of each other, at distance 0
    assert radii(torch.tensor([[0.0], [0.0], [5.0]]).double(), 1).tolist() == [0, 0, 5]


def test_a_cloud_against_itself_is_perfect():
    """Every ball holds its centre and k others: a density of (k + 1) / k."""
    x = cloud(200, 0)
    assert values(x, x) == pytest.approx([1.0, 1.0, 6 / 5, 1.0])


def test_disjoint_clouds_share_nothing():
    assert values(cloud(100, 0), cloud(120, 1, centre=100.0)) == [0.0, 0.0, 0.0, 0.0]


def test_a_dropped_mode_costs_recall_and_coverage_only():
    here, there = cloud(100, 0), cloud(100, 1, centre=100.0)
    assert values(here, torch.cat([here, there])) == pytest.approx([1.0, 0.5, 6 / 5, 0.5])


def test_samples_that_are_half_wrong_cost_precision_and_density_only():
    here, wrong = cloud(100, 0), cloud(100, 1, centre=100.0)
    assert values(torch.cat([here, wrong]), here) == pytest.approx([0.5, 1.0, 6 / 10, 1.0])


def test_one_outlier_of_the_samples_spoils_recall_but_not_coverage():
    """A far sample has a ball that holds everything: why density and coverage build on the reference alone."""
    reference = cloud(100, 0)
    samples = torch.cat([cloud(9, 1, centre=100.0), torch.full((1, 3), -100.0)])
    manifold, balls = precision_recall(samples, reference), density_coverage(samples, reference, k=3)
    assert manifold.recall.value == 1.0 and manifold.precision.value == 0.0
    assert balls.coverage.value == balls.density.value == 0.0


def test_density_and_coverage_of_one_distribution_are_those_of_theory_within_four_errors():
    """E density = 1. E coverage = 1 - Π_j (m - 1 - j) / (m + n - 1 - j): none of the k nearest is a sample."""
    n, m, k, repeats = 60, 40, 5, 80
    expected = 1.0 - math.prod((m - 1 - j) / (m + n - 1 - j) for j in range(k))
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(repeats):
        balls = density_coverage(torch.randn(n, 4, generator=generator), torch.randn(m, 4, generator=generator), k)
        found.append((balls.density.value, balls.coverage.value))
    means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(repeats)
    assert abs(means[0] - 1.0) < 4.0 * errors[0]
    assert abs(means[1] - expected) < 4.0 * errors[1]


def test_the_manifold_is_that_of_a_double_loop_whatever_the_chunks(monkeypatch):
    samples, reference = cloud(23, 2), cloud(31, 3, centre=0.5)
    whole = values(samples, reference)
    monkeypatch.setattr(neighbours, "CELLS", 7 * 31)
    assert values(samples, reference) == whole
    radius = [sorted(math.dist(r, o) for o in reference.tolist())[3] for r in reference.tolist()]
    inside = [any(math.dist(s, r) <= radius[j] for j, r in enumerate(reference.tolist())) for s in samples.tolist()]
    assert whole[0] == pytest.approx(np.mean(inside))


def test_the_errors_are_the_spread_of_repeated_draws_within_a_factor_of_two():
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(40):
        x, y = torch.randn(300, 6, generator=generator), torch.randn(300, 6, generator=generator) * 1.5
        manifold, balls = precision_recall(x, y), density_coverage(x, y)
        found.append([manifold.precision, manifold.recall, balls.density, balls.coverage])
    for estimates in zip(*found, strict=True):
        spread = float(np.std([e.value for e in estimates], ddof=1))
        promised = float(np.mean([e.stderr for e in estimates]))
        # too large near saturation, hardly too small anywhere
        assert 0.7 < promised / spread < 2.0, (promised, spread)


def test_nearest_is_brute_force():
    points, among = cloud(20, 4), cloud(30, 5)
    distance, row = nearest(points, among)
    for i, p in enumerate(points.tolist()):
        every = [math.dist(p, q) for q in among.tolist()]
        assert int(row[i]) == int(np.argmin(every))
        assert float(distance[i]) == pytest.approx(min(every), rel=1e-6)


def test_copies_are_found_and_fresh_samples_are_not_taken_for_copies():
    training, held_out = cloud(500, 6), cloud(400, 7)
    fresh = cloud(400, 8)
    honest = memorisation(fresh, training, held_out).copied
    # both the share and the threshold of 4 of 400 are random: four errors of each
    assert honest.value < 0.01 + 4.0 * math.sqrt(2 * 0.01 * 0.99 / 400)
    copies = training[:200] + 1e-4 * cloud(200, 9)
    found = memorisation(copies, training, held_out)
    assert found.copied.value == 1.0 and found.distance.value < 1e-3 < found.held_out.value
    mixed = memorisation(torch.cat([copies, fresh[:200]]), training, held_out)
    assert mixed.copied.value == pytest.approx(0.5, abs=0.03)


def test_too_few_points_are_refused():
    with pytest.raises(WorkbenchError, match="at least 8 samples each"):
        precision_recall(cloud(3, 0), cloud(10, 1))
    with pytest.raises(WorkbenchError, match="got 99 held-out pictures"):
        memorisation(cloud(10, 0), cloud(10, 1), cloud(99, 2))
