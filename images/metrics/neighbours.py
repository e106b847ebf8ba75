"""What nearest neighbours tell: fidelity and variety as two numbers, and whether samples are copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from images.metrics.distance import clouds

CHUNK = 1024
"""Rows of a distance matrix that are held at once."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of samples that could be real, share of real pictures that could be samples."""

    precision: Estimate
    recall: Estimate


@dataclass(frozen=True)
class DensityCoverage:
    """How many real neighbourhoods hold a sample, over what is expected; share of them that hold one at all."""

    density: Estimate
    coverage: Estimate


@dataclass(frozen=True)
class Memorisation:
    """How near samples are to what was trained on, beside pictures that were not.

    Args:
        copied: share of samples nearer to a training picture than 99 % of held-out pictures are; 0.01 is expected of a
            model that copies nothing.
        distance: mean distance of samples to their nearest training picture.
        held_out: the same of held-out pictures.
    """

    copied: Estimate
    distance: Estimate
    held_out: Estimate


def precision_recall(samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], k: int = 3) -> PrecisionRecall:
    """Estimate improved precision and recall.

        precision = share of samples s with |s - r| <= radius_k(r) for some reference r
        recall = share of references r with |r - s| <= radius_k(s) for some sample s

    where radius_k is the distance to the k-th nearest other point of the same cloud. Both depend on n and m (compare
    like with like) and both are about the same, not 1, for clouds of one distribution. The errors are Wilson's, over
    the points that are judged; the manifold that judges them is held fixed.

    Raises:
        WorkbenchError: not more than k samples, or features that cannot be compared.

    Source: Kynkäänniemi et al. 2019, equations 1 and 2 (arXiv 1904.06991).
    """
    samples, reference = clouds(samples, reference, least=k + 1)
    inside = _balls(samples, reference, radii(reference, k)) > 0
    reached = _balls(reference, samples, radii(samples, k)) > 0
    return PrecisionRecall(_share(inside), _share(reached))


def density_coverage(samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], k: int = 5) -> DensityCoverage:
    """Estimate density and coverage.

        density = 1 / (k n) Σ_s Σ_r 1[|s - r| <= radius_k(r)]
        coverage = share of references r with |s - r| <= radius_k(r) for some sample s

    Only the reference has a manifold, so that a stray sample spoils neither. Samples of the same distribution have a
    density of 1, and for n = m and large a coverage of 1 - 2^-k. Density may exceed 1: it is no share. Errors are
    over the samples (density) and over the references (coverage); the other cloud is held fixed.

    Raises:
        WorkbenchError: not more than k samples, or features that cannot be compared.

    Source: Naeem et al. 2020, section 3 (arXiv 2002.09797).
    """
    samples, reference = clouds(samples, reference, least=k + 1)
    radius = radii(reference, k)
    density = results.mean((_balls(samples, reference, radius).double() / k).tolist(), resamples=1000)
    return DensityCoverage(density, _share(nearest(reference, samples)[0] <= radius))


def memorisation(
    samples: Float[Tensor, "n d"], training: Float[Tensor, "m d"], held_out: Float[Tensor, "h d"]
) -> Memorisation:
    """Compare the samples' distances to their nearest training pictures with those of held-out pictures.

        copied = share of samples with min_i |s - training_i| < q,    q = 1 % quantile of min_i |held_out - training_i|

    The rows may be features or pixels. Its error is Wilson's over the samples; the threshold q has an error of its own
    that falls with the number of held-out pictures, of which 100 is the least that resolve 1 %.

    Raises:
        WorkbenchError: fewer than 100 held-out pictures, or features that cannot be compared.
    """
    if len(held_out) < 100:
        raise WorkbenchError(
            f"memorisation: got {len(held_out)} held-out pictures; expected at least 100, whose 1 % quantile exists."
        )
    distance, fresh = nearest(samples, training)[0], nearest(held_out, training)[0]
    copied = distance < torch.quantile(fresh, 0.01)
    means = [results.mean(d.tolist(), resamples=1000) for d in (distance, fresh)]
    return Memorisation(_share(copied), means[0], means[1])


def nearest(
    points: Float[Tensor, "n d"], among: Float[Tensor, "m d"]
) -> tuple[Float64[Tensor, " n"], Int64[Tensor, " n"]]:
    """The distance of every point to the nearest row ``among`` others, and which row that is."""
    points, among = clouds(points, among, least=1)
    found = [distances.min(1) for _, distances in _distances(points, among)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def radii(points: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, " n"]:
    """The distance of every point to its k-th nearest other point."""
    parts = []
    for first, distances in _distances(points, points):
        here = torch.arange(len(distances), device=points.device)
        # a point is no neighbour of itself; its duplicates are
        distances[here, first + here] = torch.inf
        parts.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(parts)


def _balls(
    points: Float64[Tensor, "n d"], centres: Float64[Tensor, "m d"], radius: Float64[Tensor, " m"]
) -> Int64[Tensor, " n"]:
    """In how many of the balls each point lies."""
    return torch.cat([(distances <= radius).sum(1) for _, distances in _distances(points, centres)])


def _distances(
    points: Float64[Tensor, "n d"], others: Float64[Tensor, "m d"]
) -> Iterator[tuple[int, Float64[Tensor, "rows m"]]]:
    for first in range(0, len(points), CHUNK):
        yield first, torch.cdist(points[first : first + CHUNK], others)


def _share(hits: Tensor) -> Estimate:
    return results.rate(int(hits.sum()), len(hits))
