"""Differences of distances, where both were measured against the same held-out images."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.results import Estimate
from images.evaluate import judge_of
from images.lab import Lab
from images.metrics.distance import around, frechet_distance


def distance_gap(
    a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], resamples: int = 50
) -> Estimate:
    """``FD(a, reference) - FD(b, reference)``; what the two have in common does not count as an error.

    Each bootstrap draw takes the same rows of a and b, which answer the same label and noise, and the same rows of the
    reference for both.

    Args:
        a, b: features of samples, row by row for the same request.
        reference: features of held-out images.
        resamples: bootstrap draws.
    """
    generator = torch.Generator().manual_seed(0)

    def rows(n: int) -> Tensor:
        return torch.randint(n, (n,), generator=generator)

    def gap(a: Tensor, b: Tensor, reference: Tensor) -> float:
        # the error of each by itself is not wanted: as few draws for it as there can be
        fd = [frechet_distance(x, reference, resamples=2).value for x in (a, b)]
        return fd[0] - fd[1]

    drawn = []
    for _ in range(resamples):
        samples, held_out = rows(len(a)), rows(len(reference))
        drawn.append(gap(a[samples], b[samples], reference[held_out]))
    return around(gap(a, b, reference), float(torch.tensor(drawn).std()), min(len(a), len(reference)))


def fd_gap(lab: Lab, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Estimate:
    """`distance_gap` of images, by the lab's judge and held-out images."""
    judge = judge_of(lab.config.task)[1]
    return distance_gap(judge(a)[0], judge(b)[0], judge(lab.test_data.images())[0])
