"""The random numbers of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Draws:
    """The random numbers of one training step, the same however many processes share it.

    Every process draws for the whole batch and keeps its own rows ``[rank::world]``, so that two processes
    with half the batch each see exactly the numbers that one process with all of it sees.

    Args:
        generator: seeded by the training loop from (seed, step).
        rank, world: this process and how many there are.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, world: int = 1) -> None:
        self.generator, self.rank, self.world = generator, rank, world

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal, local shape, batch axis first."""
        return self._mine(torch.randn, shape, dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """Uniform in [0, 1), local shape, batch axis first."""
        return self._mine(torch.rand, shape, dtype)

    def _mine(self, draw: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        whole = (shape[0] * self.world, *shape[1:])
        return draw(whole, generator=self.generator, dtype=dtype, device=self.generator.device)[self.rank :: self.world]
