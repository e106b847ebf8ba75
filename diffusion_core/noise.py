"""Sources of standard normal noise for sampling.

A sample must not depend on who shares its batch: `PerSample` gives every element its own stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError


@runtime_checkable
class Noise(Protocol):
    """Anything that draws standard normal tensors of a given shape, batch axis first."""

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor: ...


class Shared:
    """One stream for the whole batch: the fastest; a sample depends on its place in the batch."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=dtype, device=self.generator.device).to(device)


class PerSample:
    """One stream per sample: the result for a seed is the same alone, in any batch and at any place in it.

    Drawn in float32 on the CPU, so the same seed gives the same noise on every device and in every precision.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)

    @classmethod
    def from_seeds(cls, seeds: Sequence[int]) -> PerSample:
        return cls([torch.Generator().manual_seed(int(seed)) for seed in seeds])

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if shape[0] != len(self.generators):
            raise WorkbenchError(
                f"per-sample noise: got a batch of {shape[0]}, expected {len(self.generators)}, one per seed."
            )
        return torch.stack([torch.randn(*shape[1:], generator=g) for g in self.generators]).to(device, dtype)
