"""Kernels over class indices: what a jump in time does to one of S states.

A kernel is a row-stochastic matrix ``q(x_t = j | x_s = i)``, but the usual ones are never written out as one:
keeping a state or redrawing it takes O(S) where a matrix takes O(S^2).

All arithmetic is float64. Single precision is not a harmless saving here: a float32 uniform has no value closer to
1 than 6e-8, so rare classes are drawn never, or, by Gumbel noise cut off at 16.6, too seldom. Over many
steps that acts as a lower temperature. Source: Zheng et al. 2024 (arXiv 2409.02908).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


class Kernel(ABC):
    """``q(x_t | x_s)``; its time axes are the leading axes of what it is applied to."""

    @abstractmethod
    def push(self, weights: Float64[Tensor, "*x s"]) -> Float64[Tensor, "*x s"]:
        """``sum_i weights_i q(x_t = j | x_s = i)`` for every j."""

    @abstractmethod
    def column(self, x_t: Int64[Tensor, "*x"]) -> Float64[Tensor, "*x s"]:
        """``q(x_t | x_s = i)`` for every i."""

    @abstractmethod
    def draw(self, x_s: Int64[Tensor, "*x"], noise: Float64[Tensor, "*x"]) -> Int64[Tensor, "*x"]:
        """``x_t ~ q(x_t | x_s)`` as a function of uniform ``noise``."""


@dataclass(frozen=True)
class Redraw(Kernel):
    """Keep the state with probability ``survival``, else draw a new one from ``stationary``.

    ``q(x_t = j | x_s = i) = survival 1[i = j] + (1 - survival) stationary_j``

    Args:
        survival: probability of keeping.
        stationary: (S,) distribution of the new state: a point on MASK, uniform, or the classes' frequencies.
    """

    survival: Float64[Tensor, "*t"]
    stationary: Float64[Tensor, " s"]

    def push(self, weights: Float64[Tensor, "*x s"]) -> Float64[Tensor, "*x s"]:
        a = trailing(self.survival, weights.ndim)
        return a * weights + (1.0 - a) * weights.sum(-1, keepdim=True) * self.stationary

    def column(self, x_t: Int64[Tensor, "*x"]) -> Float64[Tensor, "*x s"]:
        a = trailing(self.survival, x_t.ndim + 1)
        return a * one_hot(x_t, len(self.stationary)) + (1.0 - a) * self.stationary[x_t][..., None]

    def draw(self, x_s: Int64[Tensor, "*x"], noise: Float64[Tensor, "*x"]) -> Int64[Tensor, "*x"]:
        # what is left of the uniform once it is known to be below 1 - survival is uniform again
        a = trailing(self.survival, x_s.ndim)
        rest = noise / (1.0 - a).clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(1.0 - noise <= a, x_s, inverse_cdf(self.stationary, rest))


@dataclass(frozen=True)
class Matrix(Kernel):
    """Any kernel, as its matrix: row i is the distribution of ``x_t`` given ``x_s = i``."""

    matrix: Float64[Tensor, "*t s s"]

    def push(self, weights: Float64[Tensor, "*x s"]) -> Float64[Tensor, "*x s"]:
        return (self._flat(weights, 1) @ self.matrix).reshape(weights.shape)

    def column(self, x_t: Int64[Tensor, "*x"]) -> Float64[Tensor, "*x s"]:
        return self._rows(self.matrix.mT, x_t)

    def draw(self, x_s: Int64[Tensor, "*x"], noise: Float64[Tensor, "*x"]) -> Int64[Tensor, "*x"]:
        return inverse_cdf(self._rows(self.matrix, x_s), noise)

    def _rows(self, matrix: Tensor, x: Tensor) -> Tensor:
        index = self._flat(x, 0)[..., None].expand(*self.matrix.shape[:-2], -1, self.matrix.shape[-1])
        return matrix.gather(-2, index).reshape(*x.shape, -1)

    def _flat(self, values: Tensor, own_axes: int) -> Tensor:
        # (*t, ..., own axes) to (*t, one axis, own axes): a matrix product per time
        own = values.shape[values.ndim - own_axes :]
        return values.reshape(*self.matrix.shape[:-2], -1, *own)


def inverse_cdf(probabilities: Float64[Tensor, "*p s"], noise: Float64[Tensor, "*x"]) -> Int64[Tensor, "*x"]:
    """The first state whose cumulative probability reaches ``(1 - noise)`` of the total.

    Args:
        probabilities: not necessarily normalised; leading axes broadcast over ``noise``.
        noise: uniform in [0, 1).

    Returns:
        A state of positive probability, always: ``1 - noise`` lies in (0, 1], and states without probability are
        taken out. Counting ``cumulative <= noise`` hands out MASK at t = 0 once the sum is rounded to less than 1.
    """
    cumulative = probabilities.cumsum(-1).masked_fill(probabilities <= 0.0, -1.0)
    threshold = (1.0 - noise) * cumulative.amax(-1)
    return (cumulative >= threshold[..., None]).to(torch.uint8).argmax(-1)


def one_hot(x: Int64[Tensor, "*x"], states: int) -> Float64[Tensor, "*x s"]:
    """Indicators in float64; unlike torch's own, it never looks at the values of ``x`` on the host."""
    return (x[..., None] == torch.arange(states, device=x.device)).double()


def trailing(value: Tensor, ndim: int) -> Tensor:
    """Give a value per time the axes that broadcast over a tensor of ``ndim`` axes, in float64 (cf. predict.align)."""
    return value.reshape(value.shape + (1,) * (ndim - value.ndim))
