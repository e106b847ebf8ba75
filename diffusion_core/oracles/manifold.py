"""Closed-form worlds on the torus and on the rotations: the score at every time is known exactly.

As in ``diffusion_core.oracles`` they are denoisers like any other; their estimate is the score. All arithmetic
is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.process import igso3, so3
from diffusion_core.process import wrapped_normal as wrapped
from diffusion_core.process.so3 import SO3
from diffusion_core.process.torus import Torus


def _check_weights(weights: Tensor) -> None:
    if bool((weights <= 0).any()) or abs(float(weights.sum()) - 1.0) > 1e-9:
        raise WorkbenchError(f"mixture: got weights {weights.tolist()}; expected positive ones that sum to 1.")


@dataclass(frozen=True, eq=False)
class WrappedMixture(Denoiser):
    """``x0 ~ sum_k weights_k prod_d WN(means_kd, stds_k)`` on a torus of d axes.

    Wrapped normals convolve to wrapped normals, so ``x_t`` is the mixture with variances ``stds_k^2 + sigma_t^2``.
    """

    process: Torus
    weights: Float64[Tensor, " k"]
    means: Float64[Tensor, "k d"]
    stds: Float64[Tensor, " k"]

    def __post_init__(self) -> None:
        _check_weights(self.weights)

    def _widths(self, times: Tensor | float) -> Tensor:
        sigma = self.process.schedule.sigma(torch.as_tensor(times, dtype=torch.float64))
        return (self.stds**2 + sigma[..., None] ** 2).sqrt()

    def _component_log_density(self, x: Tensor, widths: Tensor) -> Tensor:
        d = x[..., None, :] - self.means
        return self.weights.log() + wrapped.log_density(d, widths[..., None], self.process.period).sum(-1)

    def _score(self, x: Tensor, widths: Tensor) -> Tensor:
        share = self._component_log_density(x, widths).softmax(-1)
        each = wrapped.score(x[..., None, :] - self.means, widths[..., None], self.process.period)
        return (share[..., None] * each).sum(-2)

    def bind(self, times: Float64[Tensor, "n *extra"], cond: Any = None) -> Evaluate:
        widths = self._widths(times)
        return lambda x, i: self._score(x, widths[i])

    def score(self, x: Float64[Tensor, "*batch d"], t: float) -> Float64[Tensor, "*batch d"]:
        """``grad log p_t(x)``."""
        return self._score(x, self._widths(t))

    def log_density(self, x: Float64[Tensor, "*batch d"], t: float) -> Float64[Tensor, "*batch"]:
        """``log p_t(x)`` in nats."""
        return self._component_log_density(x, self._widths(t)).logsumexp(-1)

    def sample(self, n: int, generator: torch.Generator) -> Float64[Tensor, "n d"]:
        """``n`` draws of x0."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return wrapped.wrap(self.means[k] + self.stds[k, None] * noise, self.process.period)

    def cdf(self, x: Float64[Tensor, " batch"], t: float) -> Float64[Tensor, " batch"]:
        """``P(0 <= x_t <= x)``; one axis only."""
        if self.means.shape[1] != 1:
            raise WorkbenchError(f"wrapped mixture cdf: got {self.means.shape[1]} axes; expected 1.")
        each = wrapped.cdf(x[:, None], self.means[:, 0], self._widths(t), self.process.period)
        return (self.weights * each).sum(-1)

    def flow(self, x: Float64[Tensor, "batch 1"], t: float, s: float) -> Float64[Tensor, "batch 1"]:
        """The probability-flow ODE's exact solution from ``t`` to ``s`` for a mixture that is even about 0.

        On a circle the flow keeps quantiles only up to what has flowed past the origin; for an even density that
        is nothing, and `cdf` is conserved. Inverted by bisection.

        Raises:
            WorkbenchError: the mixture is not even.
        """
        period = self.process.period
        mirrored = torch.linspace(0.0, 0.5 * period, 33, dtype=torch.float64)[:, None]
        if not torch.allclose(self.log_density(mirrored, 0.0), self.log_density(-mirrored, 0.0), rtol=1e-9, atol=1e-9):
            raise WorkbenchError(
                f"wrapped mixture flow: got means {self.means.tolist()}; expected a density even about 0."
            )
        level = self.cdf(x[:, 0], t)
        low, high = torch.zeros_like(level), torch.full_like(level, period)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.cdf(middle, s) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (0.5 * (low + high))[:, None]


@dataclass(frozen=True, eq=False)
class RotationMixture(Denoiser):
    """``x0 ~ sum_k weights_k IGSO3(means_k, stds_k)``; its score is a tangent vector (..., 3).

    Heat kernels convolve, so ``x_t`` is the mixture with variances ``stds_k^2 + sigma_t^2``.
    """

    process: SO3
    weights: Float64[Tensor, " k"]
    means: Float64[Tensor, "k 3 3"]
    stds: Float64[Tensor, " k"]

    def __post_init__(self) -> None:
        _check_weights(self.weights)

    def _widths(self, times: Tensor | float) -> Tensor:
        sigma = self.process.schedule.sigma(torch.as_tensor(times, dtype=torch.float64))
        return (self.stds**2 + sigma[..., None] ** 2).sqrt()

    def _vectors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vectors = so3.log(self.means.mT @ x[..., None, :, :])
        return vectors, vectors.norm(dim=-1)

    def _component_log_density(self, angles: Tensor, widths: Tensor) -> Tensor:
        return self.weights.log() + igso3.log_density(angles, widths)

    def bind(self, times: Float64[Tensor, "n *extra"], cond: Any = None) -> Evaluate:
        widths = self._widths(times)

        def evaluate(x: Tensor, i: int) -> Tensor:
            vectors, angles = self._vectors(x)
            share = self._component_log_density(angles, widths[i]).softmax(-1)
            return ((share * igso3.score_factor(angles, widths[i]))[..., None] * vectors).sum(-2)

        return evaluate

    def score(self, x: Float64[Tensor, "*batch 3 3"], t: float) -> Float64[Tensor, "*batch 3"]:
        """``grad log p_t(x)``, a tangent at x."""
        return self.bind(torch.tensor([t], dtype=torch.float64))(x, 0)

    def log_density(self, x: Float64[Tensor, "*batch 3 3"], t: float) -> Float64[Tensor, "*batch"]:
        """``log p_t(x)`` in nats, with respect to Haar's probability."""
        return self._component_log_density(self._vectors(x)[1], self._widths(t)).logsumexp(-1)

    def mean(self, t: float) -> Float64[Tensor, "3 3"]:
        """``E x_t = sum_k weights_k exp(-stds_k^2 - sigma_t^2) means_k``, entry by entry.

        The matrix entries are the characters of degree 1, which the heat kernel shrinks by ``exp(-1 (1 + 1) / 2)`` per
        unit of variance.
        """
        return ((self.weights * torch.exp(-(self._widths(t) ** 2)))[:, None, None] * self.means).sum(0)

    def sample(self, n: int, generator: torch.Generator) -> Float64[Tensor, "n 3 3"]:
        """``n`` draws of x0."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        return self.means[k] @ so3.exp(igso3.stretch(z.norm(dim=1), self.stds[k])[:, None] * z)
