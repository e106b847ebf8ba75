"""Distances between two clouds of features: Fréchet's between fitted Gaussians, and the kernel distance."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate

CHUNK = 1024
"""Rows of a kernel matrix that are held at once."""


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m _"], resamples: int = 20, seed: int = 0) -> Estimate:
    """Estimate the squared Fréchet (2-Wasserstein) distance between Gaussians fitted to two clouds.

        FD = |mean_a - mean_b|² + tr(A) + tr(B) - 2 tr (A^1/2 B A^1/2)^1/2

    with the covariances A and B. The last trace is the sum of the singular values of A^1/2 B^1/2, which asks for no
    inverse and no root of a product, so that singular covariances (n <= d) are as good as others.

    The value is that of the two clouds as they are. It is biased upwards by about 1/n + 1/m: compare clouds of the same
    sizes only, and print the distance of real from real beside it. The standard error is the spread over
    ``resamples`` bootstrap draws of the samples of both clouds; their mean is not used, since drawing with replacement
    adds the bias once more. Where the two distributions agree it is too large by a factor of up to √3, because
    there the distance is quadratic in the sampling error.

    Args:
        a, b: features, one row per sample.
        resamples: bootstrap draws, each with the decompositions of two d x d matrices; at least 2.
        seed: of the draws.

    Raises:
        WorkbenchError: fewer than two samples, features of other sizes, or values that are not finite.

    Source: Dowson & Landau 1982 (doi 10.1016/0047-259X(82)90077-X); Heusel et al. 2017 (arXiv 1706.08500);
    its bias: Chong & Forsyth 2020 (arXiv 1911.07023).
    """
    a, b = clouds(a, b)
    generator = torch.Generator().manual_seed(seed)
    value = _gaussian_distance(a, b)
    drawn = torch.stack([_gaussian_distance(_redraw(a, generator), _redraw(b, generator)) for _ in range(resamples)])
    return around(float(value), float(drawn.std()), min(len(a), len(b)), low=0.0)


def kid(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m _"], subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate the kernel distance: the squared maximum mean discrepancy with a cubic kernel, without bias.

        k(x, y) = (x·y / d + 1)³
        KID = mean_{i≠j} k(a_i, a_j) + mean_{i≠j} k(b_i, b_j) - 2 mean_{ij} k(a_i, b_j)

    averaged over ``subsets`` random subsets of the same share f of either cloud. Its expectation is 0 where the
    distributions agree, whatever n, so that single values may be negative.

    The standard error is the spread s over the subsets, scaled to whole clouds as the delete-d jackknife does:
    ``s² (f / (1 - f) + 1 / subsets)``. It is too large by a factor of up to √3 where the distributions agree. (Averages
    of overlapping subsets are not independent: the s / √subsets of the literature is too small.)

    Args:
        a, b: features, one row per sample.
        subsets: how many, at least 2.
        subset_size: of the larger cloud's subsets, at most; they never hold more than half of a cloud.
        seed: of the subsets.

    Raises:
        WorkbenchError: fewer than four samples, features of other sizes, or values that are not finite.

    Source: Bińkowski et al. 2018, sections 3 and 4 (arXiv 1801.01401); unbiased estimate: Gretton et al. 2012, lemma 6
    (JMLR 13); delete-d jackknife: Shao & Wu 1989 (doi 10.1214/aos/1176347263).
    """
    a, b = clouds(a, b, least=4)
    share = min(0.5, subset_size / max(len(a), len(b)))
    generator = torch.Generator().manual_seed(seed)
    in_a, in_b = _subsets(len(a), share, subsets, generator), _subsets(len(b), share, subsets, generator)
    within = _mean_kernel(a, a, in_a, in_a, True) + _mean_kernel(b, b, in_b, in_b, True)
    values = within - 2.0 * _mean_kernel(a, b, in_a, in_b, False)
    stderr = float(values.std()) * math.sqrt(share / (1.0 - share) + 1.0 / subsets)
    return around(float(values.mean()), stderr, min(len(a), len(b)))


def clouds(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m _"], least: int = 2
) -> tuple[Float64[Tensor, "n d"], Float64[Tensor, "m d"]]:
    """Two clouds in float64, if they can be compared.

    Raises:
        WorkbenchError: fewer than ``least`` samples, features of other sizes, or values that are not finite.
    """
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise WorkbenchError(
            f"features: got {tuple(a.shape)} and {tuple(b.shape)}; expected (samples, features) of one extractor with "
            f"at least {least} samples each."
        )
    for name, cloud in (("first", a), ("second", b)):
        if not torch.isfinite(cloud).all():
            raise WorkbenchError(
                f"features: the {name} cloud holds values that are not finite; expected finite ones: the sampling "
                "diverged."
            )
    return a.double(), b.double()


def around(value: float, stderr: float, n: int, low: float = -math.inf, high: float = math.inf) -> Estimate:
    """An estimate with a normal 95 % interval within what is possible."""
    half = 1.959963984540054 * stderr
    return Estimate(value, stderr, max(value - half, low), min(value + half, high), n)


def _gaussian_distance(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> Float64[Tensor, ""]:
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(a), _gaussian(b)
    overlap = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    # the last two terms cancel where the clouds agree: rounding must not leave a negative distance
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2.0 * overlap).clamp(min=0.0)


def _gaussian(x: Float64[Tensor, "n d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def _root(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    # rounding makes zero eigenvalues slightly negative
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def _redraw(x: Float64[Tensor, "n d"], generator: torch.Generator) -> Float64[Tensor, "n d"]:
    return x[torch.randint(len(x), (len(x),), generator=generator).to(x.device)]


def _subsets(n: int, share: float, subsets: int, generator: torch.Generator) -> Float64[Tensor, "subsets n"]:
    """One row per subset: 1 for its members, 0 for the others."""
    size = max(round(share * n), 2)
    members = torch.rand(subsets, n, generator=generator).argsort(1)[:, :size]
    return torch.zeros(subsets, n, dtype=torch.float64).scatter_(1, members, 1.0)


def _mean_kernel(
    x: Float64[Tensor, "n d"],
    y: Float64[Tensor, "m d"],
    in_x: Float64[Tensor, "subsets n"],
    in_y: Float64[Tensor, "subsets m"],
    same: bool,
) -> Float64[Tensor, " subsets"]:
    """The mean of ``k(x_i, y_j)`` within every subset, without i = j where x and y are the ``same`` cloud.

    All subsets share one kernel matrix, of which `CHUNK` rows exist at a time.
    """
    in_x, in_y = in_x.to(x.device), in_y.to(x.device)
    total = torch.zeros(len(in_x), dtype=torch.float64, device=x.device)
    for first in range(0, len(x), CHUNK):
        rows = slice(first, first + CHUNK)
        kernel = (x[rows] @ y.T / x.shape[1] + 1.0) ** 3
        if same:
            kernel[torch.arange(len(kernel)), first + torch.arange(len(kernel))] = 0.0
        total += ((in_x[:, rows] @ kernel) * in_y).sum(1)
    left, right = in_x.sum(1), in_y.sum(1)
    return total / (left * (left - 1.0) if same else left * right)
