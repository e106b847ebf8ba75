"""Schedules given by the betas of a discrete-time model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule.definition import Times, VariancePreserving
from diffusion_core.schedule.formula import Cosine


@dataclass(frozen=True)
class DiscreteBetas(VariancePreserving):
    """A table of ``betas`` of a discrete-time model, made continuous.

    Step i (1..n) of the table sits at ``t = i / n``, where ``alpha_t^2 = prod_{j <= i} (1 - beta_j)`` holds
    exactly; in between ``beta`` is constant, so ``B(t) = -log alpha_t^2`` is piecewise linear and the
    derivative and the inverse are exact. A grid made of the model's own steps is `grid.trailing`.

    Source: Ho et al. 2020, eq. 4 (arXiv 2006.11239).
    """

    betas: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        wrong = [(i, b) for i, b in enumerate(self.betas) if not 0.0 < b < 1.0]
        if wrong or not self.betas:
            got = f"betas[{wrong[0][0]}]={wrong[0][1]}" if wrong else "no betas"
            raise WorkbenchError(
                f"DiscreteBetas: got {got}; expected at least one number, each in (0, 1) "
                "(for a zero-terminal-SNR model use the Cosine or RectifiedFlow schedule)."
            )

    @cached_property
    def _steps(self) -> Float64[Tensor, " n"]:
        return -torch.log1p(-torch.tensor(self.betas, dtype=torch.float64))

    @cached_property
    def _knots(self) -> Float64[Tensor, " n_plus_1"]:
        return torch.cat([torch.zeros(1, dtype=torch.float64), self._steps.cumsum(0)])

    def _segment(self, position: Times) -> Tensor:
        # a knot belongs to the segment it ends, although (i / n) n may round to a little more than i
        return (position - 1e-11).ceil().long().clamp(1, len(self.betas)) - 1

    def integrated_beta(self, t: Times) -> Times:
        position = t * len(self.betas)
        i = self._segment(position)
        return self._knots.to(t.device)[i] + (position - i) * self._steps.to(t.device)[i]

    def beta(self, t: Times) -> Times:
        n = len(self.betas)
        return self._steps.to(t.device)[self._segment(t * n)] * n

    def t_of_integrated_beta(self, integrated_beta: Times) -> Times:
        knots = self._knots.to(integrated_beta.device)
        i = torch.searchsorted(knots, integrated_beta.contiguous()).clamp(1, len(self.betas)) - 1
        return (i + (integrated_beta - knots[i]) / (knots[i + 1] - knots[i])) / len(self.betas)


def linear_betas(n: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteBetas:
    """DDPM's betas: ``n`` values from ``beta_start`` to ``beta_end``. Source: Ho et al. 2020, section 4."""
    return DiscreteBetas(tuple(torch.linspace(beta_start, beta_end, n, dtype=torch.float64).tolist()))


def cosine_betas(n: int = 100, beta_max: float = 0.999, offset: float = 0.008) -> DiscreteBetas:
    """Improved DDPM's cosine betas, ``beta_i = min(1 - alpha_i^2 / alpha_{i-1}^2, beta_max)``.

    This is the ``squaredcos_cap_v2`` of diffusers and of diffusion_policy (n = 100, beta_max = 0.999).

    Source: Nichol & Dhariwal 2021, section 3.2 (arXiv 2102.09672).
    """
    alpha_squared = Cosine(offset).alpha(torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64)) ** 2
    return DiscreteBetas(tuple((1.0 - alpha_squared[1:] / alpha_squared[:-1]).clamp(max=beta_max).tolist()))


def scaled_linear_betas(n: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> DiscreteBetas:
    """Latent diffusion's betas: the squares of ``n`` equally spaced roots. Source: Rombach et al. 2022, code
    (arXiv 2112.10752); the paper itself calls its schedule linear."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float64)
    return DiscreteBetas(tuple((roots**2).tolist()))


def sigmoid_betas(n: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, reach: float = 6.0) -> DiscreteBetas:
    """``beta_i = beta_start + (beta_end - beta_start) sigmoid(z_i)``, ``z`` from ``-reach`` to ``reach``.

    GeoDiff's table. Not to be mistaken for `Sigmoid`, whose *alpha^2* is a sigmoid.

    Source: Xu et al. 2022, code (arXiv 2203.02923).
    """
    z = torch.linspace(-reach, reach, n, dtype=torch.float64)
    return DiscreteBetas(tuple((beta_start + (beta_end - beta_start) * z.sigmoid()).tolist()))
