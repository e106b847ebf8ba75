"""The isotropic Gaussian on rotations, IGSO3: the heat kernel of SO(3) as a distribution of the angle.

The generator is half the Laplacian and time is ``sigma^2``, so that a narrow one is a rotation vector from
``N(0, sigma^2 I_3)``. The density with respect to the uniform (Haar) probability at a rotation by ``angle`` from the
mean has two exact series,

    f = sum_l (2 l + 1) exp(-l (l + 1) sigma^2 / 2) sin((l + 1/2) angle) / sin(angle / 2)            (characters)
      = exp(sigma^2 / 8) sqrt(2 pi) / (sigma^3 sin(angle / 2)) sum_k (-1)^k a_k exp(-a_k^2 / (2 sigma^2))  (images)

with ``a_k = angle - 2 pi k``: one is Poisson's sum of the other. The angle itself has density
``f (1 - cos angle) / pi`` on [0, pi].

Source: Nikolayev & Savyolova 1997, "Normal distribution on the rotation group SO(3)"; Leach et al. 2022, "Denoising
Diffusion Probabilistic Models on SO(3)", and Yim et al. 2023 (arXiv 2302.02277) give the first series. For
small sigma they keep three images or cut the characters; here both series are used where they are exact.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.process.interpolate import stencil

SWITCH = 1.5
"""sigma above which the characters take over from the images: five characters and two images are enough for both."""

_CHARACTERS = 7
_IMAGES = 3
FLAT = 6.0
"""sigma from which the distribution is uniform to float64's precision."""

_SIGMAS, _RADII, _FARTHEST = 241, 181, 8.0


def log_density(angle: Tensor, sigma: Tensor) -> Tensor:
    """``log f`` in nats, with respect to Haar's probability.

    Args:
        angle: in [0, pi].
        sigma: > 0; broadcasts over ``angle``.
    """
    small, large = sigma.clamp(max=SWITCH), sigma.clamp(min=SWITCH)
    log_sine = (2.0 / torch.sinc(angle / (2.0 * math.pi))).log()
    narrow = (
        small**2 / 8.0
        + 0.5 * math.log(2.0 * math.pi)
        - 3.0 * small.log()
        - 0.5 * (angle / small) ** 2
        + log_sine
        + _images(angle, small)[0].log()
    )
    return torch.where(sigma <= SWITCH, narrow, _characters(angle, large)[0].log())


def score_factor(angle: Tensor, sigma: Tensor) -> Tensor:
    """``(d log f / d angle) / angle``: what the rotation vector from the mean is multiplied by to give the score."""
    small, large = sigma.clamp(max=SWITCH), sigma.clamp(min=SWITCH)
    even, slope = _images(angle, small)
    narrow = -1.0 / small**2 + _half_cotangent(angle) + slope / even
    density, slope = _characters(angle, large)
    return torch.where(sigma <= SWITCH, narrow, slope / density)


def score_norm(sigma: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """``E |score|^2`` under the distribution itself, all three components; to 1e-6, from a cached table.

    It is ``3 / sigma^2`` for small sigma and ``18 exp(-2 sigma^2)`` for large.

    Source: Yim et al. 2023 (arXiv 2302.02277), whose loss it weighs.
    """
    table = _norm_table().to(sigma.device)
    nodes, weights = stencil(sigma.clamp(max=FLAT) * ((len(table) - 1) / FLAT), len(table))
    smooth = (weights * table[nodes]).sum(-1).exp()
    return smooth * _norm_ends(sigma) * torch.exp(-2.0 * sigma**2)


def cdf(angle: Float64[Tensor, "*b"], sigma: float) -> Float64[Tensor, "*b"]:
    """``P(angle' <= angle)``, by Gauss's rule on 24 pieces of [0, angle]; nothing lies beyond 10 sigma."""
    fractions, weights = _composite(24)
    reach = angle.clamp(max=10.0 * sigma)
    nodes = reach[..., None] * fractions.to(angle.device)
    return reach * (weights.to(angle.device) * _angle_density(nodes, torch.full_like(nodes, sigma))).sum(-1)


def stretch(radius: Float64[Tensor, "*b"], sigma: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """``g`` for which the rotation by the vector ``g z``, ``z ~ N(0, I_3)`` of length ``radius``, is IGSO3(sigma).

    ``g = angle / radius`` where the angle has the quantile of the radius: g = sigma (1 + O(sigma^2)) for small sigma.
    From a cached table in (sigma, radius), to 2e-6 of g. A function of three normals, so that no uniform is drawn
    and no axis needs normalising.
    """
    table = _stretch_table().to(sigma.device)
    i, of_sigma = stencil(sigma / (1.0 + sigma) * ((_SIGMAS - 1) * (1.0 + FLAT) / FLAT), _SIGMAS)
    j, of_radius = stencil(radius * ((_RADII - 1) / _FARTHEST), _RADII)
    around = table[i[..., :, None], j[..., None, :]]
    return sigma.clamp(max=FLAT) * torch.einsum("...i,...ij,...j->...", of_sigma, around, of_radius)


def distance_to_uniform(sigma: float) -> float:
    """The total variation to Haar's probability, ``9 sqrt(3) / (4 pi) exp(-sigma^2)``: its first character."""
    return 9.0 * math.sqrt(3.0) / (4.0 * math.pi) * math.exp(-(sigma**2))


def _images(angle: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """``E = sum_k (-1)^k (a_k / angle) exp((angle^2 - a_k^2) / (2 sigma^2))`` and ``(dE / d angle) / angle``.

    Images k and -k together, which leaves functions that are even in the angle and no division by it:
    with ``c = 2 pi k angle / sigma^2`` and ``w = (2 pi k / sigma)^2``,

        E = 1 + 2 sum_k (-1)^k exp(-w / 2) (cosh c - w sinh(c) / c)
    """
    k = torch.arange(1, _IMAGES + 1, dtype=angle.dtype, device=angle.device)
    sign = 1.0 - 2.0 * (k % 2)
    angle, variance = angle[..., None], sigma[..., None] ** 2
    c, w = 2.0 * math.pi * k * angle / variance, (2.0 * math.pi * k) ** 2 / variance
    # exp(c) alone overflows; with exp(-w / 2) the exponent is never positive
    scale = torch.exp(2.0 * math.pi * k * (angle - math.pi * k) / variance)
    flat = c < 0.05
    safe = torch.where(flat, 1.0, c)
    cosh = 0.5 * scale * (1.0 + torch.exp(-2.0 * c))
    sinhc = torch.where(flat, torch.exp(-0.5 * w) * (1.0 + c**2 / 6.0 + c**4 / 120.0), 0.0)
    sinhc = torch.where(flat, sinhc, -0.5 * scale * torch.expm1(-2.0 * safe) / safe)
    # (cosh c - sinh(c) / c) / c^2, the slope of sinh(c) / c over c
    bend = torch.exp(-0.5 * w) * (1.0 / 3.0 + c**2 / 30.0 + c**4 / 840.0)
    bend = torch.where(flat, bend, (cosh - sinhc) / safe**2)
    even = 1.0 + 2.0 * (sign * (cosh - w * sinhc)).sum(-1)
    slope = 2.0 * (sign * w / variance * (sinhc - w * bend)).sum(-1)
    return even, slope


def _characters(angle: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """``f`` and ``(df / d angle) / angle``, by ``sin((l + 1/2) w) / sin(w / 2) = 1 + 2 sum_{m <= l} cos(m w)``."""
    degree = torch.arange(_CHARACTERS, dtype=angle.dtype, device=angle.device)
    terms = (2.0 * degree + 1.0) * torch.exp(-0.5 * degree * (degree + 1.0) * sigma[..., None] ** 2)
    coefficients = terms.flip(-1).cumsum(-1).flip(-1)
    angles = degree * angle[..., None]
    # the mean of f is 1 whatever sigma: the other coefficients are added to it, not it to them
    density = (coefficients * torch.cos(angles) * torch.where(degree == 0, 1.0, 2.0)).sum(-1)
    slope = -2.0 * (coefficients * degree**2 * torch.sinc(angles / math.pi)).sum(-1)
    return density, slope


def _half_cotangent(angle: Tensor) -> Tensor:
    """``(1 / angle - cot(angle / 2) / 2) / angle``."""
    small = angle < 0.3
    safe = torch.where(small, 1.0, angle)
    series = 1.0 / 12.0 + angle**2 / 720.0 + angle**4 / 30240.0 + angle**6 / 1209600.0 + angle**8 / 47900160.0
    return torch.where(small, series, (1.0 / safe - 0.5 * torch.cos(0.5 * safe) / torch.sin(0.5 * safe)) / safe)


def _angle_density(angle: Tensor, sigma: Tensor) -> Tensor:
    return log_density(angle, sigma).exp() * 2.0 * torch.sin(0.5 * angle) ** 2 / math.pi


def _gauss(n: int = 6) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Gauss's nodes and weights on [0, 1], by the eigenvalues of Legendre's recursion (Golub & Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    side = k / (4.0 * k**2 - 1.0).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(side, 1) + torch.diag(side, -1))
    return 0.5 * (nodes + 1.0), vectors[0] ** 2


def _composite(pieces: int) -> tuple[Tensor, Tensor]:
    nodes, weights = _gauss()
    starts = torch.arange(pieces, dtype=torch.float64)[:, None]
    return ((starts + nodes) / pieces).flatten(), (weights / pieces).repeat(pieces)


def _norm_ends(sigma: Tensor) -> Tensor:
    return 18.0 + 3.0 * torch.exp(-(sigma**2)) / sigma**2


@lru_cache(maxsize=1)
def _norm_table() -> Float64[Tensor, " n"]:
    """Logarithm of `score_norm` over ``_norm_ends exp(-2 sigma^2)``, which has its limits at both ends."""
    sigma = torch.linspace(0.0, FLAT, 601, dtype=torch.float64)[1:, None]
    fractions, weights = _composite(24)
    # everything of a narrow one lies within 9 sigma
    reach = (9.0 * sigma).clamp(max=math.pi)
    angle = reach * fractions
    wide = sigma.expand_as(angle)
    squared = (score_factor(angle, wide) * angle) ** 2 * torch.exp(2.0 * sigma**2) / _norm_ends(sigma)
    mean = (weights * _angle_density(angle, wide) * squared).sum(-1) * reach[:, 0]
    return torch.cat([torch.zeros(1, dtype=torch.float64), mean.log()])


@lru_cache(maxsize=1)
def _stretch_table() -> Float64[Tensor, "sigmas radii"]:
    """``angle / (sigma radius)`` where the angle's quantile is the radius's; 1 at sigma = 0."""
    radius = torch.linspace(0.0, _FARTHEST, _RADII, dtype=torch.float64)[1:]
    # uniform in sigma / (1 + sigma): where a radius first reaches the angle pi, g bends within a small part of sigma
    share = torch.linspace(0.0, FLAT / (1.0 + FLAT), _SIGMAS, dtype=torch.float64)[1:, None]
    sigma = share / (1.0 - share)
    bell = math.sqrt(2.0 / math.pi) * radius * torch.exp(-0.5 * radius**2)
    below, above = torch.erf(radius / math.sqrt(2.0)) - bell, torch.erfc(radius / math.sqrt(2.0)) + bell
    # a difference of two numbers near 0 has no digits left: the first terms of its series instead
    cubic = math.sqrt(2.0 / math.pi) * radius**3 * (1.0 / 3.0 - radius**2 / 10.0 + radius**4 / 56.0 - radius**6 / 432.0)
    below = torch.where(radius < 0.1, cubic, below)

    pieces = 100
    nodes, weights = _gauss(4)
    reach = ((_FARTHEST + 1.0) * sigma).clamp(max=math.pi)
    edges = reach * torch.linspace(0.0, 1.0, pieces + 1, dtype=torch.float64)
    width = reach / pieces
    inside = edges[:, :-1, None] + width[..., None] * nodes
    mass = (weights * _angle_density(inside, sigma[..., None].expand_as(inside))).sum(-1) * width
    zero = torch.zeros_like(width)
    under = torch.cat([zero, mass.cumsum(1)], 1)
    over = torch.cat([mass.flip(1).cumsum(1).flip(1), zero], 1)

    # upper half by what is above, where what is below rounds to 1
    piece = torch.searchsorted(under, below.expand(len(sigma), -1).contiguous(), right=True) - 1
    upper = torch.searchsorted(-over, -above.expand(len(sigma), -1).contiguous(), right=True) - 1
    is_upper = (radius > 1.5).expand_as(piece)
    piece = torch.where(is_upper, upper, piece).clamp(0, pieces - 1)
    start, base = edges.gather(1, piece), torch.where(is_upper, over.gather(1, piece), under.gather(1, piece))
    goal = torch.where(is_upper, base - above, below - base)
    angle = (sigma * radius).clamp(min=start, max=start + width)
    for _ in range(4):
        part = start[..., None] + (angle - start)[..., None] * nodes
        covered = (weights * _angle_density(part, sigma[..., None].expand_as(part))).sum(-1) * (angle - start)
        density = _angle_density(angle, sigma.expand_as(angle)).clamp(min=1e-300)
        angle = (angle + (goal - covered) / density).clamp(min=start, max=start + width)
    ratio = angle / (sigma * radius)
    # at radius 0 the ratio is even in the radius: continued from its first values
    ratio = torch.cat([(4.0 * ratio[:, :1] - ratio[:, 1:2]) / 3.0, ratio], 1)
    return torch.cat([torch.ones(1, _RADII, dtype=torch.float64), ratio])
