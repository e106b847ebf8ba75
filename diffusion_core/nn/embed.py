"""Embeddings of scalars."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Sinusoidal(nn.Module):
    """``[cos(scale f_k t), sin(scale f_k t)]`` with frequencies ``f_k`` from 1 down to 1/10000.

    Args:
        dim: size of the embedding, even.
        scale: t in [0, 1] is stretched to this range, the integer steps of the literature.

    Source: Vaswani et al. 2017, section 3.5 (arXiv 1706.03762); Ho et al. 2020, appendix B (arXiv 2006.11239).
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 1000.0) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"Sinusoidal: got dim={dim}; expected an even number of at least 4.")
        half = dim // 2
        frequencies = scale * torch.exp(-math.log(10_000.0) * torch.arange(half) / (half - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)
