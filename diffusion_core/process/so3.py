"""Rotations: matrices in SO(3), noised by the heat kernel.

Conventions. A rotation is a matrix (..., 3, 3); noise multiplies it from the right,
``x_t = x0 exp(v)``, and a tangent vector (..., 3) at x is the rotation vector ``v`` of ``d/de x exp(e v)``: it lives in
the body's frame. So a fixed rotation applied from the left, a change of the laboratory's frame, changes the matrices
and leaves scores, increments and noise as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.predict import align
from diffusion_core.process import Process, Source, igso3, mean_by_shares
from diffusion_core.process.gaussian import weighted_sum
from diffusion_core.process.torus import ScoreScale, refuse_early_start, refuse_shrinking, tilted
from diffusion_core.schedule import Schedule, Times

UNIFORM_VARIANCE = (math.pi**2 / 3.0 + 2.0) / 3.0
"""``E angle^2 / 3`` of a uniform rotation: the variance of one component of its rotation vector."""


@dataclass(frozen=True)
class SO3(Process):
    """Brownian motion on rotations: ``x_t ~ IGSO3(x0, sigma_t)``. Its estimate is the score, a tangent at ``x_t``.

    For small sigma this is ``x0 exp(sigma_t z)`` with ``z ~ N(0, I_3)``; as sigma grows it becomes uniform.

    Args:
        schedule: one whose alpha is 1; sigma in radians.

    Raises:
        WorkbenchError: the schedule's alpha is not 1.

    Source: Leach et al. 2022, "Denoising Diffusion Probabilistic Models on SO(3)"; Yim et al. 2023
    (arXiv 2302.02277).
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        refuse_shrinking(self.schedule, "SO(3)")

    def noise(self, x0: Float[Tensor, "*b 3 3"], source: Source) -> Float[Tensor, "*b 3"]:
        """Three standard normals for each rotation; their length has the quantile of the angle."""
        return source.normal(x0.shape[:-1], x0.dtype)

    def corrupt(self, x0: Float[Tensor, "*b 3 3"], t: Times, noise: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
        """``x_t = x0 exp(g(sigma_t, |noise|) noise)``, see `igso3.stretch`.

        Args:
            x0: (*t, ..., 3, 3) clean rotations.
            t: float64 times; their shape is the leading axes of ``x0``.
            noise: (*t, ..., 3) standard normal.
        """
        return x0 @ exp(self._vector(self.schedule.sigma(t), noise))

    def prior(self, noise: Float[Tensor, "*b 3"], t: float = 1.0, exponent: float = 1.0) -> Float[Tensor, "*b 3 3"]:
        """A uniform rotation; any power of the uniform density is uniform, too.

        Raises:
            WorkbenchError: at ``t`` the data has not been forgotten.
        """
        sigma = self.schedule.sigma(torch.tensor(t, dtype=torch.float64))
        refuse_early_start(igso3.distance_to_uniform(float(sigma)), t, self.schedule, "2.2 rad")
        return exp(self._vector(torch.full_like(sigma, igso3.FLAT), noise))

    def score(self, x0: Float[Tensor, "*b 3 3"], x_t: Float[Tensor, "*b 3 3"], t: Times) -> Float[Tensor, "*b 3"]:
        """``grad log q(x_t | x0)``, a tangent at ``x_t``; arguments as `corrupt`."""
        return kernel_score(x0, x_t, self.schedule.sigma(t))

    def target(
        self, x0: Float[Tensor, "*b 3 3"], x_t: Float[Tensor, "*b 3 3"], t: Times, scale: ScoreScale = "norm"
    ) -> Float[Tensor, "*b 3"]:
        """What a network with output of this ``scale`` should return: `score` divided by `output_scale`."""
        score = self.score(x0.double(), x_t.double(), t)
        # in float64: at large sigma both are too small for float32
        return (score / align(self.output_scale(t, scale), score)).to(x_t.dtype)

    def output_scale(self, t: Times, scale: ScoreScale = "norm") -> Times:
        """``c(t)`` with ``score = c(t) output``: the root mean square of one component, or ``1 / sigma``."""
        sigma = self.schedule.sigma(t)
        return (igso3.score_norm(sigma) / 3.0).sqrt() if scale == "norm" else 1.0 / sigma

    def combine(self, weights: Tensor, times: Times) -> Callable[[Tensor, Sequence[Tensor], int], Tensor]:
        """``score = sum_k w_k score_k``: all are tangents at the same point."""
        add = weighted_sum(torch.zeros_like(times), weights)
        # the sample's factor is 0, and its shape is not that of a tangent
        return lambda x, scores, i: add(torch.zeros_like(scores[0]), scores, i)

    def mix(self, times: Times) -> Callable[[Tensor, Sequence[Tensor], Tensor, int], Tensor]:
        return mean_by_shares

    def clean(self, times: Times) -> Callable[[Tensor, Tensor, int], Tensor]:
        """``x_t exp(sigma^2 score)``: Tweedie's formula along a geodesic, right for small sigma."""
        variance = self.schedule.sigma(times) ** 2
        return lambda x, score, i: x @ exp(align(variance[i], score) * score)

    def tilt(self, times: Times, of: Literal["x_t", "x0_hat"]) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """``score + J gradient``, the partial derivatives made a tangent (see `tangent`) where they were taken.

        ``J = 1`` for one in x_t; for one in x0_hat, uniform data stands in, as in `Torus.tilt`.
        """
        add, clean = tilted(self.schedule.sigma(times), of, UNIFORM_VARIANCE), self.clean(times)

        def tilt(x: Tensor, score: Tensor, gradient: Tensor, i: int) -> Tensor:
            at = x if of == "x_t" else clean(x, score, i)
            return add(score, tangent(at, gradient), i)

        return tilt

    def pin(self, times: Times) -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
        """Where the data is known, the score is that of ``q(x_t | values)``; ``mask`` is (..., 1) or as the score."""
        sigma = self.schedule.sigma(times)
        return lambda x, score, mask, values, i: torch.where(mask, kernel_score(values, x, sigma[i]), score)

    def _vector(self, sigma: Times, noise: Tensor) -> Tensor:
        radius = noise.double().norm(dim=-1)
        wide = sigma.to(noise.device).reshape(sigma.shape + (1,) * (radius.ndim - sigma.ndim)).expand_as(radius)
        return igso3.stretch(radius, wide)[..., None].to(noise.dtype) * noise


def kernel_score(mean: Float[Tensor, "*#b 3 3"], x: Float[Tensor, "*#b 3 3"], sigma: Tensor) -> Float[Tensor, "*b 3"]:
    """The score of IGSO3 around ``mean`` at ``x``; ``sigma`` has leading axes of theirs."""
    vector = log(mean.mT @ x)
    angle = vector.norm(dim=-1)
    return igso3.score_factor(angle, align(sigma, angle))[..., None] * vector


def exp(vector: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """The rotation by ``|vector|`` radians about ``vector``: ``I + sin(w)/w K + (1 - cos w)/w^2 K^2``.

    Source: Rodrigues' formula; ``(1 - cos w) / w^2 = (sin(w/2) / (w/2))^2 / 2`` keeps its digits near 0.
    """
    angle = vector.norm(dim=-1)[..., None, None]
    k = hat(vector)
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + torch.sinc(angle / math.pi) * k + 0.5 * torch.sinc(angle / (2.0 * math.pi)) ** 2 * (k @ k)


def log(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """The rotation vector, of length at most pi; at pi itself one of the two.

    By way of the unit quaternion, whose largest component is never small: the angle from a trace would lose half of
    its digits near 0 and near pi.
    """
    m = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
    ww, xx = 1.0 + m[0][0] + m[1][1] + m[2][2], 1.0 + m[0][0] - m[1][1] - m[2][2]
    yy, zz = 1.0 - m[0][0] + m[1][1] - m[2][2], 1.0 - m[0][0] - m[1][1] + m[2][2]
    wx, wy, wz = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, xz, yz = m[0][1] + m[1][0], m[0][2] + m[2][0], m[1][2] + m[2][1]
    outer = torch.stack([ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz], -1).unflatten(-1, (4, 4))
    largest = torch.stack([ww, xx, yy, zz], -1).argmax(-1)
    row = outer.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    quaternion = row / row.norm(dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[..., :1] < 0.0, -quaternion, quaternion)
    w, v = quaternion[..., 0], quaternion[..., 1:]
    sine = v.norm(dim=-1)
    small = sine < 1e-12
    ratio = torch.where(small, 2.0, 2.0 * torch.atan2(sine, w) / torch.where(small, 1.0, sine))
    return ratio[..., None] * v


def hat(vector: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """The matrix K of ``K u = vector x u``."""
    a, b, c = vector.unbind(-1)
    zero = torch.zeros_like(a)
    return torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).unflatten(-1, (3, 3))


def tangent(x: Float[Tensor, "*b 3 3"], gradient: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3"]:
    """The tangent at ``x`` of a function with matrix of partial derivatives ``gradient``, as autograd gives it."""
    k = x.mT @ gradient
    return torch.stack([k[..., 2, 1] - k[..., 1, 2], k[..., 0, 2] - k[..., 2, 0], k[..., 1, 0] - k[..., 0, 1]], -1)


def project(x: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 3 3"]:
    """``x (3 I - x^T x) / 2``: one Newton step to the nearest rotation, from one that rounding has moved away."""
    return 1.5 * x - 0.5 * (x @ (x.mT @ x))
