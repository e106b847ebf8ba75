"""What nearest neighbours tell: fidelity and variety as two numbers, and whether samples are copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from images.metrics.distance import clouds

CELLS = 2**23
"""Entries of a distance matrix that are held at once: 64 MiB."""
HALVES = 20
"""Random halves of the clouds that errors are estimated from."""


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


def precision_recall(
    samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], k: int = 3, seed: int = 0
) -> PrecisionRecall:
    """Estimate improved precision and recall.

        precision = share of samples s with |s - r| <= radius_k(r) for some reference r
        recall = share of references r with |r - s| <= radius_k(s) for some sample s

    where radius_k is the distance to the k-th nearest other point of the same cloud. Both depend on n and m (compare
    like with like) and both are about the same, not 1, for clouds of one distribution. Errors: see `_judged`.

    Raises:
        WorkbenchError: fewer than 2 k + 2 samples, or features that cannot be compared.

    Source: Kynkäänniemi et al. 2019, equations 1 and 2 (arXiv 1904.06991).
    """
    return PrecisionRecall(*_judged(_in_manifolds, samples, reference, k, seed))


def density_coverage(
    samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], k: int = 5, seed: int = 0
) -> DensityCoverage:
    """Estimate density and coverage.

        density = 1 / (k n) Σ_s Σ_r 1[|s - r| <= radius_k(r)]
        coverage = share of references r with |s - r| <= radius_k(r) for some sample s

    Only the reference has a manifold, so that a stray sample spoils neither. Samples of the same distribution have a
    density of 1, and for n = m and large a coverage of 1 - 2^-k. Density may exceed 1: it is no share. Errors: see
    `_judged`.

    Raises:
        WorkbenchError: fewer than 2 k + 2 samples, or features that cannot be compared.

    Source: Naeem et al. 2020, section 3 (arXiv 2002.09797).
    """
    return DensityCoverage(*_judged(_in_balls, samples, reference, k, seed))


def memorisation(
    samples: Float[Tensor, "n d"], training: Float[Tensor, "m d"], held_out: Float[Tensor, "h d"], seed: int = 0
) -> Memorisation:
    """Compare the samples' distances to their nearest training pictures with those of held-out pictures.

        copied = share of samples with min_i |s - training_i| < q,    q = 1 % quantile of min_i |held_out - training_i|

    The rows may be features or pixels. The error of the share is its spread over 200 bootstrap draws of the samples and
    of the held-out pictures, of which 100 is the least that resolve 1 %.

    Raises:
        WorkbenchError: fewer than 100 held-out pictures, or features that cannot be compared.
    """
    if len(held_out) < 100:
        raise WorkbenchError(
            f"memorisation: got {len(held_out)} held-out pictures; expected at least 100, whose 1 % quantile exists."
        )
    distance, fresh = nearest(samples, training)[0], nearest(held_out, training)[0]
    generator = torch.Generator().manual_seed(seed)

    def redraw(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (200, len(x)), generator=generator).to(x.device)]

    drawn = (redraw(distance) < torch.quantile(redraw(fresh), 0.01, dim=1)[:, None]).double().mean(1)
    copied = _widened((distance < torch.quantile(fresh, 0.01)).double(), float(drawn.std()))
    means = [results.mean(d.tolist(), resamples=1000) for d in (distance, fresh)]
    return Memorisation(copied, means[0], means[1])


def nearest(
    points: Float[Tensor, "n d"], among: Float[Tensor, "m d"]
) -> tuple[Float64[Tensor, " n"], Int64[Tensor, " n"]]:
    """The distance of every point to the nearest row ``among`` others, and which row that is.

    The row is found in float32, so that of two within 1e-3 of a feature's scale it may be the other one; the distance
    is that row's, in float64.
    """
    points, among = clouds(points, among, least=1)
    # the rounding of squared distances grows with the distance from the origin
    centre = among.mean(0)
    near = _distances((points - centre).float(), (among - centre).float(), exact=False)
    rows = torch.cat([distances.min(1).indices for _, distances in near])
    return torch.linalg.vector_norm(points - among[rows], dim=1), rows


def radii(points: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """The distance of every point to its k-th nearest other point."""
    parts = []
    for first, distances in _distances(points, points, points.dtype == torch.float64):
        here = torch.arange(len(distances), device=points.device)
        # a point is no neighbour of itself; its duplicates are
        distances[here, first + here] = torch.inf
        parts.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(parts)


Judgement = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Of samples and references and k: a number for each sample and one for each reference, whose means are the metrics."""


def _in_manifolds(samples: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    inside = _balls(samples, reference, radii(reference, k))[0] > 0
    reached = _balls(reference, samples, radii(samples, k))[0] > 0
    return inside.double(), reached.double()


def _in_balls(samples: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    around_samples, hit = _balls(samples, reference, radii(reference, k))
    return around_samples.double() / k, hit.double()


def _judged(
    of: Judgement, samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], k: int, seed: int
) -> tuple[Estimate, Estimate]:
    """Both metrics, with the errors of judged and judging points.

    Whoever is judged by a manifold shares its accidents, so the judged points alone show too small an error: half of
    the true one, as measured. The standard error is the spread over `HALVES` random halves of both clouds, which the
    delete-d jackknife takes for that of the whole; close to 1, where halves are farther from saturated, it is up to
    1.7 times too large. (Not a bootstrap, in which a point drawn twice is its own neighbour.)

    Source: Shao & Wu 1989 (doi 10.1214/aos/1176347263).
    """
    samples, reference = clouds(samples, reference, least=2 * k + 2)
    generator = torch.Generator().manual_seed(seed)

    def half(x: Tensor) -> Tensor:
        # the spread needs no exact distances, which take several times longer
        return x[torch.randperm(len(x), generator=generator)[: len(x) // 2].to(x.device)].float()

    drawn = [[float(v.mean()) for v in of(half(samples), half(reference), k)] for _ in range(HALVES)]
    spread = torch.tensor(drawn, dtype=torch.float64).std(0).tolist()
    first, second = of(samples, reference, k)
    return _widened(first, spread[0]), _widened(second, spread[1])


def _widened(values: Float64[Tensor, " n"], stderr: float) -> Estimate:
    """The mean of ``values``, with Wilson's interval if they are 0 and 1, widened to the standard error ``stderr``."""
    hits = bool(((values == 0.0) | (values == 1.0)).all())
    plain = results.rate(int(values.sum()), len(values)) if hits else results.mean(values.tolist(), resamples=1000)
    factor = max(stderr / plain.stderr, 1.0) if plain.stderr else 1.0
    low, high = (plain.value + factor * (end - plain.value) for end in (plain.low, plain.high))
    return Estimate(plain.value, factor * plain.stderr, max(low, 0.0), min(high, 1.0) if hits else high, plain.n)


def _balls(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radius: Float[Tensor, " m"]
) -> tuple[Int64[Tensor, " n"], Bool[Tensor, " m"]]:
    """In how many of the balls each point lies, and which balls hold a point."""
    counts, held = [], torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    for _, distances in _distances(points, centres, points.dtype == torch.float64):
        inside = distances <= radius
        counts.append(inside.sum(1))
        held |= inside.any(0)
    return torch.cat(counts), held


def _distances(
    points: Float[Tensor, "n d"], others: Float[Tensor, "m d"], exact: bool
) -> Iterator[tuple[int, Float[Tensor, "rows m"]]]:
    # by matrix products, several times faster, |a - b| is not |b - a| to the last bit, and copies are not at distance 0
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    rows = max(CELLS // len(others), 1)
    for first in range(0, len(points), rows):
        yield first, torch.cdist(points[first : first + rows], others, compute_mode=mode)
