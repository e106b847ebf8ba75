"""Cubic interpolation in tables on a uniform grid."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def stencil(position: Float64[Tensor, "*b"], n: int) -> tuple[Int64[Tensor, "*b 4"], Float64[Tensor, "*b 4"]]:
    """The four of ``n`` nodes 0, 1, .. around ``position`` and Lagrange's weights on them.

    ``f(position) = sum_j weight_j f(node_j)`` is exact for cubics; the error is ``0.024 f''''`` in units of the
    spacing inside the table and twice that in its first and last interval.

    Args:
        position: in units of the spacing; outside [0, n - 1] it is moved to the end.
        n: number of nodes, at least 4.
    """
    position = position.clamp(0.0, n - 1.0)
    first = (position.floor().long() - 1).clamp(0, n - 4)
    u = position - first
    weights = [
        -(u - 1.0) * (u - 2.0) * (u - 3.0) / 6.0,
        u * (u - 2.0) * (u - 3.0) / 2.0,
        -u * (u - 1.0) * (u - 3.0) / 2.0,
        u * (u - 1.0) * (u - 2.0) / 6.0,
    ]
    return first[..., None] + torch.arange(4, device=position.device), torch.stack(weights, -1)
