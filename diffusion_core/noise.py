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

    Args:
        generators: a stream each.
        each: consecutive samples that a stream is for.
    """

    def __init__(self, generators: Sequence[torch.Generator], each: int = 1) -> None:
        self.generators, self.each = list(generators), each

    @classmethod
    def from_seeds(cls, seeds: Sequence[int]) -> PerSample:
        return cls([torch.Generator().manual_seed(int(seed)) for seed in seeds])

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._stack(torch.randn, shape, torch.float32).to(device, dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._stack(torch.rand, shape, torch.float64).to(device, dtype)

    def _stack(self, draw: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if shape[0] != len(self.generators) * self.each:
            raise WorkbenchError(
                f"per-sample noise: got a batch of {shape[0]}, expected {len(self.generators) * self.each}, "
                f"{self.each} per seed."
            )
        return torch.cat([draw(self.each, *shape[1:], generator=g, dtype=dtype) for g in self.generators])


@dataclass(frozen=True)
class On:
    """A noise source on one device: what `Process.noise` draws from when sampling starts."""

    noise: Noise
    device: torch.device

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.noise.normal(shape, dtype, self.device)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.noise.uniform(shape, dtype, self.device)


class Brownian:
    """Increments of one Brownian path per sample: another number of steps follows the same path.

    The i-th draw is ``(W(c_{i+1}) - W(c_i)) / sqrt(|c_{i+1} - c_i|)`` with the clock c, a standard normal. A path is a
    function of its seed, refined by bridges between dyadic points of [first, last], so that two solvers, or two grids,
    can be compared sample by sample, and more steps converge to one answer instead of to one distribution.

    Args:
        seeds: one per sample.
        clock: (n + 1,) float64, monotone; one more than draws will be asked for: the log-SNR at a grid's times, or any
            other clock that both runs share.
        first, last: the ends of the path, the same in all runs that are to be compared; they enclose ``clock``.
        depth: bridges between two ends; the path is straight below ``|last - first| / 2^depth``.

    Source: virtual Brownian trees, Gaines & Lyons 1997; Li et al. 2020, section 4 (arXiv 2001.01328).
    """

    def __init__(
        self,
        seeds: Sequence[int],
        clock: Tensor,
        first: float | None = None,
        last: float | None = None,
        depth: int = 16,
    ) -> None:
        times = clock.tolist()
        self.first, self.last = (times[0] if first is None else first, times[-1] if last is None else last)
        low, high = sorted((self.first, self.last))
        differences = clock.diff()
        if not (bool((differences > 0).all() or (differences < 0).all()) and low <= min(times) and max(times) <= high):
            raise WorkbenchError(
                f"Brownian noise: got a clock from {times[0]:.6g} to {times[-1]:.6g} for a path over [{low:.6g}, "
                f"{high:.6g}]; expected finite, strictly monotone times inside of it (cut the grid's end at t = 0 off)."
            )
        self.seeds, self.depth = [int(seed) for seed in seeds], depth
        self._places = [(t - self.first) / (self.last - self.first) for t in times]
        self._drawn = 0

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if shape[0] != len(self.seeds) or self._drawn + 1 >= len(self._places):
            raise WorkbenchError(
                f"Brownian noise: got draw {self._drawn + 1} for a batch of {shape[0]}; expected at most "
                f"{len(self._places) - 1} draws (one per step of the clock) for {len(self.seeds)} samples."
            )
        a, b = self._places[self._drawn : self._drawn + 2]
        self._drawn += 1
        values = [self._at(seed, b, shape[1:]) - self._at(seed, a, shape[1:]) for seed in self.seeds]
        return (torch.stack(values) / abs(b - a) ** 0.5).to(device, dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The normal increment's quantile."""
        return torch.special.ndtr(self.normal(shape, torch.float64, device)).to(dtype)

    def _at(self, seed: int, place: float, shape: Sequence[int]) -> Tensor:
        """``W(place)`` on [0, 1]."""
        low, high, node = 0.0, 1.0, 1
        at_low, at_high = torch.zeros(*shape, dtype=torch.float64), _node(seed, 0, shape)
        for _ in range(self.depth):
            middle = 0.5 * (low + high)
            # given its ends a path is normal in the middle, with a quarter of the interval as its variance
            at_middle = 0.5 * (at_low + at_high) + 0.5 * (high - low) ** 0.5 * _node(seed, node, shape)
            if place < middle:
                high, at_high, node = middle, at_middle, 2 * node
            else:
                low, at_low, node = middle, at_middle, 2 * node + 1
        return torch.lerp(at_low, at_high, (place - low) / (high - low))


def _node(seed: int, node: int, shape: Sequence[int]) -> Tensor:
    # two numbers in one seed: a generator's stream depends on all its bits
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + node * 0xD1B54A32D192ED03 + 1) % 2**63)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
