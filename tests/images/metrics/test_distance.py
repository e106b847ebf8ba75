"""Distances against closed forms, a second implementation, a double loop, and the spread of repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from images.metrics import distance
from images.metrics.distance import frechet_distance, kid


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_cloud(n: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """n points whose sample mean is ``mean`` and whose sample covariance is ``root root^T``, to rounding."""
    z = torch.randn(n, len(mean), generator=seeded(seed), dtype=torch.float64)
    z = z - z.mean(0)
    whitener = torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (n - 1)))
    return z @ whitener.T @ root.T + mean


def test_axis_aligned_gaussians_have_their_closed_form():
    """Commuting covariances: |difference of means|² + Σ (σ_a - σ_b)²."""
    sigma_a, sigma_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 2.0, 0.1]).double()
    mean_a, mean_b = torch.tensor([0.0, 1.0, -1.0]).double(), torch.tensor([1.0, 1.0, 1.0]).double()
    a, b = exact_cloud(50, mean_a, sigma_a.diag(), 0), exact_cloud(80, mean_b, sigma_b.diag(), 1)
    expected = (mean_a - mean_b).square().sum() + (sigma_a - sigma_b).square().sum()
    found = frechet_distance(a, b)
    assert found.value == pytest.approx(float(expected), rel=1e-10)
    assert (found.n, found.unit) == (50, "1")
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("d", [2, 7, 20])
def test_other_gaussians_agree_with_scipys_matrix_root(d):
    a = torch.randn(3 * d, d, generator=seeded(0)).double() @ torch.randn(d, d, generator=seeded(1)).double()
    b = torch.randn(4 * d, d, generator=seeded(2)).double() @ torch.randn(d, d, generator=seeded(3)).double() + 0.3
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    overlap = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b).real)
    means = float((a.mean(0) - b.mean(0)).square().sum())
    expected = means + np.trace(cov_a) + np.trace(cov_b) - 2.0 * overlap
    assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-8)


def test_clouds_on_two_lines_have_singular_covariances_and_a_closed_form():
    """Rank one, s²uu' and r²vv': s² + r² - 2 s r |u'v|; with fewer points than dimensions, too."""
    generator = seeded(4)
    u, v = (torch.nn.functional.normalize(torch.randn(10, generator=generator).double(), dim=0) for _ in range(2))
    a, b = torch.randn(6, 1, generator=generator).double(), torch.randn(30, 1, generator=generator).double()
    s, r = float(a.std()), float(b.std())
    means = float((a.mean() * u - b.mean() * v).square().sum())
    expected = means + s * s + r * r - 2.0 * s * r * abs(float(u @ v))
    assert frechet_distance(a * u, b * v).value == pytest.approx(expected, rel=1e-7)


def test_the_distance_is_zero_from_itself_symmetric_and_blind_to_rotation():
    a, b = torch.randn(40, 12, generator=seeded(5)).double(), torch.randn(30, 12, generator=seeded(6)).double() * 2.0
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=seeded(7)).double()).Q
    value = frechet_distance(a, b).value
    assert frechet_distance(a, a).value == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(b, a).value == pytest.approx(value, rel=1e-10)
    assert frechet_distance(a @ rotation + 3.0, b @ rotation + 3.0).value == pytest.approx(value, rel=1e-9)
    assert frechet_distance(2.0 * a, 2.0 * b).value == pytest.approx(4.0 * value, rel=1e-10)
    assert frechet_distance(a.float(), b.float()).value == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("measure", "shift"), [(frechet_distance, 0.0), (frechet_distance, 0.5), (kid, 0.0), (kid, 0.5)]
)
def test_the_error_is_the_spread_of_repeated_draws_within_a_factor_of_two(measure, shift):
    generator, d, repeats = seeded(8), 8, 80
    found = []
    for _ in range(repeats):
        a, b = torch.randn(300, d, generator=generator) * 1.2 + shift, torch.randn(400, d, generator=generator)
        found.append(measure(a if shift else a / 1.2, b))
    spread = float(np.std([f.value for f in found], ddof=1))
    promised = math.sqrt(float(np.mean([f.stderr**2 for f in found])))
    # where the distributions agree, both promise too much by up to sqrt(3): never too little
    low, high = (0.8, 1.3) if shift else (0.8, 2.0)
    assert low < promised / spread < high, (promised, spread)


def check_kernel_distance_is_unbiased(measure=kid):
    generator = seeded(9)
    values = []
    for _ in range(150):
        values.append(measure(torch.randn(40, 5, generator=generator), torch.randn(30, 5, generator=generator)).value)
    assert abs(np.mean(values)) < 4.0 * np.std(values, ddof=1) / math.sqrt(len(values))


def test_the_kernel_distance_of_one_distribution_is_zero_on_average_within_four_errors():
    check_kernel_distance_is_unbiased()


def test_a_biased_kernel_distance_would_be_seen(monkeypatch):
    kernel = distance._mean_kernel

    def with_the_diagonal(x, y, in_x, in_y, same):
        return kernel(x, y, in_x, in_y, False)

    monkeypatch.setattr(distance, "_mean_kernel", with_the_diagonal)
    with pytest.raises(AssertionError):
        check_kernel_distance_is_unbiased()


def test_the_kernel_distance_of_two_normals_is_the_exact_one_within_four_errors():
    """One dimension, N(m, 1) and N(0, 1): E (xy + 1)³ = E[x³]E[y³] + 3 E[x²]E[y²] + 3 E[x]E[y] + 1."""
    m = 0.5
    of_a = (m**3 + 3 * m) ** 2 + 3 * (1 + m * m) ** 2 + 3 * m * m + 1
    of_b, of_both = 4.0, 3 * (1 + m * m) + 1
    exact = of_a + of_b - 2.0 * of_both
    generator = seeded(10)
    values = []
    for _ in range(100):
        a, b = torch.randn(200, 1, generator=generator) + m, torch.randn(200, 1, generator=generator)
        values.append(kid(a, b).value)
    assert abs(np.mean(values) - exact) < 4.0 * np.std(values, ddof=1) / 10.0


def test_the_kernel_distance_is_that_of_a_double_loop_over_every_subset(monkeypatch):
    monkeypatch.setattr(distance, "CHUNK", 4)
    a, b = torch.randn(11, 3, generator=seeded(11)), torch.randn(9, 3, generator=seeded(12)) + 0.4
    chosen: list[Tensor] = []
    draw = distance._subsets

    def remembering(*arguments):
        chosen.append(draw(*arguments))
        return chosen[-1]

    monkeypatch.setattr(distance, "_subsets", remembering)
    found = kid(a, b, subsets=5, subset_size=5)

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x.double() @ y.double()) / 3 + 1.0) ** 3

    values = []
    for in_a, in_b in zip(chosen[0], chosen[1], strict=True):
        x, y = a[in_a.bool()], b[in_b.bool()]
        n, m = len(x), len(y)
        assert (n, m) == (5, 4)
        of_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        of_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        values.append(of_x + of_y - 2.0 * sum(k(x[i], y[j]) for i in range(n) for j in range(m)) / (n * m))
    assert found.value == pytest.approx(float(np.mean(values)), rel=1e-12)
    share = 5 / 11
    expected = np.std(values, ddof=1) * math.sqrt(share / (1 - share) + 1 / 5)
    assert found.stderr == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("measure", [frechet_distance, kid])
def test_the_same_call_gives_the_same_numbers(measure):
    a, b = torch.randn(50, 4, generator=seeded(13)), torch.randn(50, 4, generator=seeded(14))
    state = torch.get_rng_state()
    assert measure(a, b) == measure(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert measure(a, b, seed=1).stderr != measure(a, b).stderr


@pytest.mark.parametrize("measure", [frechet_distance, kid])
def test_clouds_that_cannot_be_compared_are_refused(measure):
    good = torch.randn(10, 4, generator=seeded(15))
    with pytest.raises(WorkbenchError, match=r"got \(10, 4\) and \(10, 3\); expected"):
        measure(good, good[:, :3])
    with pytest.raises(WorkbenchError, match="samples each"):
        measure(good[:1], good)
    bad = good.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(WorkbenchError, match="the second cloud holds values that are not finite"):
        measure(good, bad)
