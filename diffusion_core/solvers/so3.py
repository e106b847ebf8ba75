"""Solvers on rotations: each row is one step along a geodesic.

    x_{i+1} = x_i exp(B_i score_i + C_i z),        z ~ N(0, I_3)

First order only: scores at two points are tangents in different spaces, and a memory would have to carry them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core.grid import Grid
from diffusion_core.noise import Noise
from diffusion_core.plan import Advance
from diffusion_core.process.so3 import SO3, exp, project
from diffusion_core.schedule import Times
from diffusion_core.solvers.table import Table, Tabled, falling_pairs, pairs, single_step
from diffusion_core.solvers.torus import ancestral_factors, flow_factor


@dataclass(frozen=True, eq=False)
class Geodesic(Tabled):
    """A table of tangent vectors: its ``estimate`` and ``noise`` columns make the increment of each row."""

    table: Table

    def begin(self, x: Tensor, noise: Noise | None) -> Advance:
        origin = torch.zeros_like(x[..., 0])
        increment = self.table.begin(origin, noise)
        # products of matrices drift away from rotations by a rounding each: projected at every step
        return lambda x, score, i: project(x @ exp(increment(origin, score, i)))


def geodesic_walk(process: SO3, grid: Grid) -> Geodesic:
    """``x_s = x_t exp((sigma_t^2 - sigma_s^2) score + (sigma_s / sigma_t) sqrt(sigma_t^2 - sigma_s^2) z)``.

    The ancestral step of flat space in the tangent space at ``x_t``. De Bortoli et al. walk with the noise of the
    forward process, ``sqrt(sigma_t^2 - sigma_s^2) z``, which has the same limit; this one ends without noise.

    Source: De Bortoli et al. 2022, algorithm 1 (arXiv 2202.02763); Yim et al. 2023 (arXiv 2302.02277).
    """
    t, s = falling_pairs(grid)
    return _geodesic(t, s, *ancestral_factors(process.schedule, t, s))


def flow(process: SO3, grid: Grid) -> Geodesic:
    """The probability flow, ``x_s = x_t exp((sigma_t^2 - sigma_s^2) / 2 score)``; a rising grid inverts it.

    Source: De Bortoli et al. 2022 (arXiv 2202.02763).
    """
    t, s = pairs(grid)
    return _geodesic(t, s, flow_factor(process.schedule, t, s), torch.zeros_like(t))


def _geodesic(t: Times, s: Times, gain: Times, std: Times) -> Geodesic:
    # increments start at the origin, so what multiplies it is of no account
    return Geodesic(single_step(t, s, torch.zeros_like(t)[:, None], gain[:, None], std))
