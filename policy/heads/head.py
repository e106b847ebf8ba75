"""What a head is, and what it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.grid import Grid
from diffusion_core.loss import Draws, Weighting
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table
from diffusion_core.times import uniform_times


@dataclass(frozen=True)
class Shape:
    """Sizes of a chunk and of what it depends on.

    Args:
        horizon: steps of a chunk.
        dim: numbers of an action.
        n_obs_steps: observations that are seen.
        features: numbers of one observation.
        n_action_steps: steps that are carried out before the next chunk.
    """

    horizon: int
    dim: int
    n_obs_steps: int
    features: int
    n_action_steps: int

    @property
    def cond_dim(self) -> int:
        """Numbers of the condition."""
        return self.n_obs_steps * self.features

    @property
    def first(self) -> int:
        """Index of the action that stands beside the newest observation."""
        return self.n_obs_steps - 1


@dataclass(frozen=True)
class Parts:
    """What a configuration offers to any head; each takes what it needs.

    Args:
        shape: of chunks and conditions.
        denoiser: the network with its schedule and prediction type.
        weighting, times: of a denoising loss.
        chunks: (n, horizon, dim) normalised chunks to fit something to before training; None when a checkpoint will
            fill the weights.
    """

    shape: Shape
    denoiser: NetworkDenoiser
    weighting: Weighting
    times: Callable[..., Tensor] = uniform_times
    chunks: Tensor | None = None


class Head(nn.Module, ABC):
    """``p(chunk | condition)`` over normalised chunks.

    Every head's constructor takes `Parts` first, then its own keywords, which are the leaf's in ``conf/head/``.

    Attributes:
        denoises: whether `draw` needs a solver's table.
    """

    denoises: ClassVar[bool]

    @abstractmethod
    def arrange(self, grid: Grid) -> Any:
        """The times of a solver's table: the grid itself, or one for every action; not asked where none denoises."""

    @abstractmethod
    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        """The training loss of each sample."""

    @abstractmethod
    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        """One chunk for each condition.

        Args:
            table: a solver's table, for heads that denoise; others take None.
            noise: all randomness, one stream a sample.
        """
