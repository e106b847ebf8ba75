"""Bits per dimension of held-out images: by the bound of a chain, along the probability flow, of a Gaussian fit."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import MultivariateNormal

from diffusion_core import grid, results
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.likelihood import (
    Steps,
    bits_per_dim,
    discretised,
    hutchinson,
    log_likelihood,
    probes,
    variational_bound,
)
from diffusion_core.ode import integrate
from diffusion_core.results import Estimate
from images.data.pictures import Pictures
from images.systems.diffusion import Diffusion

Variance = Literal["small", "large", "learned"]


def bin_width(data: Pictures) -> float:
    """Distance of two levels of brightness in [-1, 1]."""
    return 2.0 / (data.levels - 1)


def dequantised(data: Pictures, n: int) -> Float[Tensor, "n c h w"]:
    """The first ``n`` images, each value spread evenly over its bin: what a density may be measured on.

    Source: Theis et al. 2016, section 3.1 (arXiv 1511.01844).
    """
    images = data.images()[:n]
    u = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    return images + (u - 0.5) * bin_width(data)


def by_bound(model: Diffusion, data: Pictures, n: int, steps: int, variance: Variance = "small") -> Float[Tensor, " n"]:
    """Bits per dimension of each image by the bound of ``steps`` ancestral steps, its decoder over the data's levels.

    Source: Ho et al. 2020, eq. 5 and 13 (arXiv 2006.11239).
    """
    images, decoder = data.images()[:n], partial(discretised, levels=data.levels)
    chain = Steps(model.denoiser.schedule, grid.trailing(model.n_train, steps), variance, decoder)
    found = variational_bound(model.denoiser, chain, images, torch.Generator().manual_seed(0))
    return bits_per_dim(found.nats, images[0].numel())


def by_flow(model: Diffusion, data: Pictures, n: int, tolerance: float = 1e-2) -> Float[Tensor, " n"]:
    """Bits per dimension of each dequantised image by the density along the probability flow.

    The estimate is not clipped: where it is, its divergence is 0 and the flow stiff. The trace is Hutchinson's, with
    one probe.

    Source: Song et al. 2021, section 4.3 (arXiv 2011.13456).
    """
    images, trained = dequantised(data, n), model.denoiser
    free = NetworkDenoiser(trained.network, trained.schedule, trained.prediction, None, trained.variance_axis)
    found = log_likelihood(
        free,
        images,
        start=1.0 / model.n_train,
        divergence=hutchinson(probes(images, torch.Generator().manual_seed(2))),
        solve=partial(integrate, rtol=tolerance, atol=tolerance),
    )
    return bits_per_dim(-found.nats, images[0].numel(), bin_width(data))


def gaussian_fit(data: Pictures) -> MultivariateNormal:
    """The Gaussian with the mean and the whole covariance of the dequantised data, in float64.

    Dequantisation adds ``bin_width^2 / 12`` to every variance; without it a pixel that never changes would have none.
    """
    x = data.images().flatten(1).double()
    spread = torch.full((x.shape[1],), bin_width(data) ** 2 / 12.0, dtype=torch.float64)
    return MultivariateNormal(x.mean(0), x.T.cov() + spread.diag())


def by_gaussian(law: MultivariateNormal, data: Pictures, n: int) -> Float[Tensor, " n"]:
    """Bits per dimension of each dequantised image under a Gaussian: exact."""
    images = dequantised(data, n).flatten(1)
    return bits_per_dim(-law.log_prob(images.double()), images.shape[1], bin_width(data))


def drawn(law: MultivariateNormal, n: int, shape: tuple[int, int, int]) -> Float[Tensor, "n c h w"]:
    """``n`` images of a Gaussian."""
    z = torch.randn(n, law.loc.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (law.loc + z @ law.scale_tril.mT).float().reshape(n, *shape)


def mean(bits: Float[Tensor, " n"]) -> Estimate:
    """Their mean with its error over images."""
    return results.mean(bits.tolist(), "bits/dim")
