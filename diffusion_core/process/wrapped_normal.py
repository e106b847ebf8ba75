"""The wrapped normal distribution: a normal variable on a circle of circumference ``period``.

Its density has two exact series. With ``u = d / period`` for the displacement ``d`` from the mean and
``r = sigma / period``,

    period * p = sum_k exp(-(u + k)^2 / (2 r^2)) / (r sqrt(2 pi))          (images)
               = 1 + 2 sum_n q^(n^2) cos(2 pi n u),  q = exp(-2 pi^2 r^2)    (Fourier)

The first converges fast for small r, the second for large r. Each is used where four terms on either side give
float64's precision: truncating the images at any sigma leaves a force where the distribution is flat.

Source: Mardia & Jupp 2000, "Directional Statistics", chapter 3.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.process.interpolate import stencil

SWITCH = 0.4
"""``sigma / period`` above which the Fourier series takes over: 1/sqrt(2 pi) makes both converge alike."""

_TERMS = 4
_SHARP = 0.05
_FLAT = 1.0
_NODES = 2001


def wrap(x: Tensor, period: float) -> Tensor:
    """``x`` modulo ``period``, in [0, period)."""
    x = torch.remainder(x, period)
    # a remainder of -1e-20 rounds to the period itself, which is outside the interval
    return torch.where(x >= period, 0.0, x)


def displacement(x: Tensor, origin: Tensor, period: float) -> Tensor:
    """The shortest way from ``origin`` to ``x``: ``x - origin`` modulo ``period``, in [-period/2, period/2)."""
    d = x - origin
    # not torch.round, which sends half turns to the even side: points a whole turn apart must get the same
    return d - period * torch.floor(d / period + 0.5)


def log_density(d: Tensor, sigma: Tensor, period: float) -> Tensor:
    """``log p(d)`` in nats per unit of length.

    Args:
        d: displacement from the mean, any real number.
        sigma: standard deviation before wrapping, > 0; broadcasts over ``d``.
        period: circumference.
    """
    u, r = displacement(d, torch.zeros_like(d), period) / period, sigma / period
    small, large = r.clamp(max=SWITCH), r.clamp(min=SWITCH)
    images = _image_logits(u, small).logsumexp(-1) - 0.5 * (u / small) ** 2 - (small * math.sqrt(2.0 * math.pi)).log()
    fourier = torch.log1p(2.0 * _fourier(u, large)[0])
    return torch.where(r <= SWITCH, images, fourier) - math.log(period)


def score(d: Tensor, sigma: Tensor, period: float) -> Tensor:
    """``d log p / dd``, per unit of length; arguments as `log_density`."""
    u, r = displacement(d, torch.zeros_like(d), period) / period, sigma / period
    large = r.clamp(min=SWITCH)
    decay = torch.exp(-2.0 * (math.pi * large) ** 2)
    return torch.where(r <= SWITCH, _image_score(u, r), decay * _fourier_score(u, large)) / period


def normalised_score(d: Tensor, sigma: Tensor, period: float) -> Tensor:
    """``score / sqrt(score_norm)``: of unit variance at every sigma.

    For large sigma both underflow; their ratio tends to ``-sqrt(2) sin(2 pi d / period)`` and is computed as such.
    """
    u, r = displacement(d, torch.zeros_like(d), period) / period, sigma / period
    excess = torch.exp(-0.5 * _log_excess(r.double())).to(r.dtype)
    large, small = r.clamp(min=SWITCH), r.clamp(max=SWITCH)
    images = _image_score(u, r) / (math.sqrt(8.0) * math.pi) * torch.exp(2.0 * (math.pi * small) ** 2)
    fourier = _fourier_score(u, large) / (math.sqrt(8.0) * math.pi)
    return torch.where(r <= SWITCH, images, fourier) * excess


def score_norm(sigma: Float64[Tensor, "*b"], period: float) -> Float64[Tensor, "*b"]:
    """``E |d log p / dd|^2`` under the wrapped normal itself, per coordinate; to 1e-8, from a cached table.

    It is ``1 / sigma^2`` for small sigma and ``8 pi^2 / period^2 exp(-4 pi^2 sigma^2 / period^2)`` for large.

    Source: Jiao et al. 2023 (arXiv 2309.04475), who estimate it by sampling.
    """
    r = sigma / period
    return 8.0 * math.pi**2 / period**2 * torch.exp(_log_excess(r) - 4.0 * (math.pi * r) ** 2)


def cdf(x: Tensor, mean: Tensor, sigma: Tensor, period: float) -> Tensor:
    """``P(0 <= y <= x)`` for ``x`` in [0, period] and ``y`` wrapped into it."""
    u, m, r = x / period, wrap(mean, period) / period, sigma / period
    k = torch.arange(-_TERMS - 1, _TERMS + 2, dtype=u.dtype, device=u.device)
    small = r.clamp(max=SWITCH)[..., None]
    ends = [torch.special.ndtr(((v - m)[..., None] + k) / small).sum(-1) for v in (torch.zeros_like(u), u)]
    n = k[-_TERMS:] - 1.0
    large = r.clamp(min=SWITCH)[..., None]
    waves = [torch.sin(2.0 * math.pi * n * v[..., None]) for v in (u - m, m)]
    factors = torch.exp(-2.0 * (math.pi * n * large) ** 2) / (math.pi * n)
    return torch.where(r <= SWITCH, ends[1] - ends[0], u + (factors * (waves[0] + waves[1])).sum(-1))


def _image_logits(u: Tensor, r: Tensor) -> Tensor:
    # relative to the image at k = 0: (u + k)^2 - u^2 keeps its digits in float32, the difference of squares does not
    k = torch.arange(-_TERMS, _TERMS + 1, dtype=u.dtype, device=u.device)
    return -(k**2 + 2.0 * k * u[..., None]) / (2.0 * r[..., None] ** 2)


def _image_score(u: Tensor, r: Tensor) -> Tensor:
    r = r.clamp(max=SWITCH)
    k = torch.arange(-_TERMS, _TERMS + 1, dtype=u.dtype, device=u.device)
    return -(u + (_image_logits(u, r).softmax(-1) * k).sum(-1)) / r**2


def _fourier(u: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_n q^(n^2) cos(2 pi n u)`` and ``sum_n n q^(n^2 - 1) sin(2 pi n u)``."""
    n = torch.arange(1, _TERMS + 1, dtype=u.dtype, device=u.device)
    rate, angle = 2.0 * (math.pi * r[..., None]) ** 2, 2.0 * math.pi * n * u[..., None]
    even = (torch.exp(-rate * n**2) * torch.cos(angle)).sum(-1)
    odd = (torch.exp(-rate * (n**2 - 1.0)) * n * torch.sin(angle)).sum(-1)
    return even, odd


def _fourier_score(u: Tensor, r: Tensor) -> Tensor:
    """The score in units of ``q / period``."""
    even, odd = _fourier(u, r)
    return -4.0 * math.pi * odd / (1.0 + 2.0 * even)


def _log_excess(r: Float64[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
    """``log(score_norm) - log(8 pi^2) + 4 pi^2 r^2`` at period 1: 0 for large r."""
    table = _excess_table().to(r.device)
    nodes, weights = stencil((r - _SHARP) * ((_NODES - 1) / (_FLAT - _SHARP)), _NODES)
    sharp = 4.0 * (math.pi * r) ** 2 - 2.0 * r.log() - math.log(8.0 * math.pi**2)
    return torch.where(r < _SHARP, sharp, (weights * table[nodes]).sum(-1))


@lru_cache(maxsize=1)
def _excess_table() -> Float64[Tensor, " n"]:
    # the trapezoid rule on a whole period converges exponentially: 512 points leave exp(-49) at the sharpest node
    r = torch.linspace(_SHARP, _FLAT, _NODES, dtype=torch.float64)[:, None]
    u = (torch.arange(512, dtype=torch.float64) / 512.0 - 0.5).expand(_NODES, -1)
    one = torch.cat([_chunk(u[i : i + 256], r[i : i + 256]) for i in range(0, _NODES, 256)])
    return one.log() - math.log(8.0 * math.pi**2)


def _chunk(u: Tensor, r: Tensor) -> Tensor:
    # the score without its factor q, whose square is the part that the table leaves out
    density = log_density(u, r, 1.0).exp()
    over_q = torch.where(
        r <= SWITCH,
        _image_score(u, r) * torch.exp(2.0 * (math.pi * r) ** 2),
        _fourier_score(u, r.clamp(min=SWITCH)),
    )
    return (density * over_q**2).mean(1)
