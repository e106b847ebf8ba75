"""Linear inverse problems with the denoiser's own covariance: conditioning that is exact for Gaussian data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import factor
from diffusion_core.process import Process
from diffusion_core.process.gaussian import Gaussian


@dataclass(frozen=True, eq=False)
class Measured(Denoiser):
    """``denoiser`` given ``observed = A x0 + std eps``, with the covariance of x0 that the denoiser itself implies.

    By Tweedie's second formula ``V = Cov[x0 | x_t] = (sigma^2 / alpha) J`` with ``J = d x0_hat / d x_t``, so that

        x0_hat + V A^T u,   (std^2 + A V A^T) u = observed - A x0_hat,

    is the mean of x0 given x_t and the observation if x0 given x_t is normal. `guidance.measurement` puts one number
    in place of A V A^T and so does too little where the denoiser is sure of itself; this solves for u by conjugate
    gradients, a vector-Jacobian product each. At a time without signal, where x_t says nothing of x0, it does nothing.

    Args:
        operator: A, linear, (batch, ...) -> (batch, m).
        observed: (batch, m).
        std: of the observation's noise, > 0.
        iterations: of the conjugate gradients.

    Source: Rozet et al. 2024, section 4.2, moment matching posterior sampling (arXiv 2405.13712).
    """

    denoiser: Denoiser
    operator: Callable[[Tensor], Tensor]
    observed: Float[Tensor, "batch m"]
    std: float
    iterations: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.denoiser.process, Gaussian):
            raise WorkbenchError(
                f"Measured: got a denoiser on {type(self.denoiser.process).__name__}; expected one of a Gaussian field."
            )
        if not self.std > 0.0 or self.iterations < 1:
            raise WorkbenchError(
                f"Measured: got std={self.std}, iterations={self.iterations}; expected std > 0 and iterations >= 1."
            )

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.denoiser.process

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        schedule = self.denoiser.process.schedule  # type: ignore[attr-defined]
        evaluate, alpha, sigma = self.denoiser.bind(times, cond), schedule.alpha(times), schedule.sigma(times)
        off = (alpha <= 0.0).reshape(len(times), -1).any(1).tolist()
        ratio = sigma**2 / torch.where(alpha > 0.0, alpha, 1.0)

        def measured(x: Tensor, i: int) -> Tensor:
            if off[i]:
                return evaluate(x, i)
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                x0_hat = evaluate(leaf, i)
                seen = self.operator(x0_hat)
            k = factor(ratio[i], x)

            def spread(u: Tensor) -> Tensor:
                """``V A^T u``."""
                return k * torch.autograd.grad(seen, leaf, u, retain_graph=True)[0]

            def system(u: Tensor) -> Tensor:
                return self.std**2 * u + self.operator(spread(u))

            u = _conjugate_gradients(system, self.observed.to(seen) - seen.detach(), self.iterations)
            return x0_hat.detach() + spread(u)

        return measured


def _conjugate_gradients(
    system: Callable[[Tensor], Tensor], right: Float[Tensor, "batch m"], iterations: int
) -> Float[Tensor, "batch m"]:
    """The solution of ``system(u) = right`` for each sample, from 0 on.

    A sample whose direction has no positive curvature, as a network's Jacobian may have, stays where it is.
    """
    u, residual = torch.zeros_like(right), right
    direction, square = residual, residual.square().sum(1, keepdim=True)
    for _ in range(iterations):
        image = system(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        goes = (curvature > 0.0) & (square > 0.0)
        length = torch.where(goes, square / torch.where(goes, curvature, 1.0), 0.0)
        u, residual = u + length * direction, residual - length * image
        new = residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(goes, new / torch.where(goes, square, 1.0), 0.0) * direction
        square = torch.where(goes, new, 0.0)
    return u
