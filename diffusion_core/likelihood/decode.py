"""Log-probabilities of Gaussians, of continuous data and of data on a grid of levels; bits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``decoder(x0, mean, log_variance) -> log p(x0)`` in nats, elementwise."""


def bits_per_dim(nats: Tensor, n_dims: int, bin_width: float = 1.0) -> Tensor:
    """``(nats / n_dims - log bin_width) / log 2`` for a *negative* log-likelihood ``nats``.

    A probability of discrete data (`discretised`) has ``bin_width=1``. A density does not count bits: it becomes a
    (bound on a) probability of the bin, ``log P = log p + n_dims log bin_width``, if x0 was dequantised, that is
    spread evenly over its bin: ``(k + u) / 256`` with u in [0, 1), scaled to [-1, 1], has ``bin_width = 2 / 256``,
    which adds 7 bits.
    Without dequantisation a density on discrete data is unbounded and its bits mean nothing.

    Source: Theis et al. 2016, section 3.1 (arXiv 1511.01844).
    """
    return (nats / n_dims - math.log(bin_width)) / math.log(2.0)


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """``KL(N(m, v) || N(m', v')) = (log v' - log v + (v + (m - m')^2) / v' - 1) / 2`` in nats, elementwise."""
    difference = log_variance - other_log_variance
    squared = (mean - other_mean) ** 2 * torch.exp(-other_log_variance)
    return 0.5 * (torch.exp(difference) - difference - 1.0 + squared)


def normal(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """``log N(x0; mean, variance)`` elementwise: the decoder of continuous data."""
    return -0.5 * (math.log(2.0 * math.pi) + log_variance + (x0 - mean) ** 2 * torch.exp(-log_variance))


def discretised(x0: Tensor, mean: Tensor, log_variance: Tensor, levels: int = 256) -> Tensor:
    """Log-probability of the bin around ``x0`` under ``N(mean, variance)``: the decoder of discrete data.

    ``log (Phi((x0 + h - mean) / std) - Phi((x0 - h - mean) / std))`` with half a bin ``h = 1 / (levels - 1)``; the
    lowest and the highest bin reach to infinity, so the probabilities sum to 1.

    Args:
        x0: data on ``levels`` equally spaced values from -1 to 1.
        mean, log_variance: of the Gaussian; shapes of ``x0`` or broadcast to it.
        levels: number of values.

    Source: Ho et al. 2020, eq. 13 (arXiv 2006.11239).
    """
    half = 1.0 / (levels - 1)
    inverse_std = torch.exp(-0.5 * log_variance)
    low, high = (x0 - half - mean) * inverse_std, (x0 + half - mean) * inverse_std
    # in the upper tail Phi rounds to 1 and the difference to 0: there, by symmetry, take the lower one
    flip = low + high > 0.0
    outer, inner = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_inner = torch.special.log_ndtr(inner)
    middle = log_inner + torch.log(-torch.expm1(torch.special.log_ndtr(outer) - log_inner))
    edge = torch.where(x0 < -1.0 + half, torch.special.log_ndtr(high), middle)
    return torch.where(x0 > 1.0 - half, torch.special.log_ndtr(-low), edge)


def total(values: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """The sum over all axes but the batch."""
    return values.flatten(1).sum(1)
