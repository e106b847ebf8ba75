"""Exponential moving average of weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Ema:
    """``average <- decay average + (1 - decay) weights`` with ``decay = 1 - (1 + (step - 1) / inv_gamma)^-power``
    after optimizer step ``step`` = 1, 2, ...: the first step takes the weights as they are.

    A pure rule of the step: there is no counter to lose on resume.

    Args:
        power: how fast the memory grows with the step; 0.75 suits up to 1e6 steps.
        inv_gamma: steps at which the decay begins to bite.
        max_decay: upper bound.

    Source: the warm-up rule of Chi et al. 2023 (arXiv 2303.04137), appendix A.4, there from
    https://github.com/crowsonkb/k-diffusion.
    """

    power: float = 0.75
    inv_gamma: float = 1.0
    max_decay: float = 0.9999

    def decay(self, step: int) -> float:
        """Decay after optimizer step ``step`` (1 is the first)."""
        return min(max(1.0 - (1.0 + (step - 1) / self.inv_gamma) ** -self.power, 0.0), self.max_decay)

    def shadow(self, model: nn.Module) -> nn.Module:
        """A copy of ``model`` to hold the average: no gradients, evaluation mode."""
        return copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, average: nn.Module, model: nn.Module, step: int) -> None:
        """Move ``average`` towards ``model``; buffers are copied."""
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - self.decay(step))
        for kept, new in zip(average.buffers(), model.buffers(), strict=True):
            kept.copy_(new)
