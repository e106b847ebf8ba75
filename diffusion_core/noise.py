"""Sources of randomness for sampling.

A sample must not depend on who shares its batch: `PerSample` gives every element its own stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError


@runtime_checkable
class Noise(Protocol):
    """Anything that draws standard normal and uniform tensors of a given shape, batch axis first."""

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor: ...

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor: ...


class Shared:
    """One stream for the whole batch: the fastest; a sample depends on its place in the batch."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=dtype, device=self.generator.device).to(device)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=dtype, device=self.generator.device).to(device)


class PerSample:
    """One stream per sample: the result for a seed is the same alone, in any batch and at any place in it.

    Normals are drawn in float32 on the CPU, so the same seed gives the same noise on every device and in every
    precision; uniforms in float64, since a categorical draw compares them with cumulative probabilities.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)

    @classmethod
    def from_seeds(cls, seeds: Sequence[int]) -> PerSample:
        return cls([torch.Generator().manual_seed(int(seed)) for seed in seeds])

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._stack(torch.randn, shape, torch.float32).to(device, dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._stack(torch.rand, shape, torch.float64).to(device, dtype)

    def _stack(self, draw: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if shape[0] != len(self.generators):
            raise WorkbenchError(
                f"per-sample noise: got a batch of {shape[0]}, expected {len(self.generators)}, one per seed."
            )
        return torch.stack([draw(*shape[1:], generator=g, dtype=dtype) for g in self.generators])


@dataclass(frozen=True)
class On:
    """A noise source on one device: what `Process.noise` draws from when sampling starts."""

    noise: Noise
    device: torch.device

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.noise.normal(shape, dtype, self.device)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.noise.uniform(shape, dtype, self.device)
