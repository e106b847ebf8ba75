"""Latent diffusion: a diffusion of an autoencoder's latents."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core.draws import Draws
from diffusion_core.noise import Noise
from images.systems import Parts, Sampling, System, built_on
from images.systems.autoencoder import Autoencoder
from images.systems.diffusion import Diffusion


class LatentDiffusion(System):
    """``p(z | label)`` as a Gaussian diffusion of scaled latents ``scale encode(x)``, decoded in the end.

    ``scale = 1 / std`` of all latents of the first batch of training, so that the schedule meets data of unit size.

    Args:
        parts: what it is put together from; the parent is an `Autoencoder`.
        label_dropout: share of labels that training replaces by none.

    Source: Rombach et al. 2022, section 3.2; the scale appendix G (arXiv 2112.10752).
    """

    scale: Tensor

    def __init__(self, parts: Parts, label_dropout: float = 0.1) -> None:
        super().__init__(parts)
        self.parent = built_on(parts, Autoencoder, "an autoencoder (system=autoencoder)")
        # a bound on pixels is none on latents
        inner = replace(parts, shape=self.parent.latent_shape, clip=None)
        self.diffusion = Diffusion(inner, label_dropout=label_dropout)
        # 0: not measured yet
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        with torch.no_grad():
            z = self.parent.encode(batch["image"])
            self.scale.copy_(torch.where(self.scale > 0.0, self.scale, 1.0 / z.std().clamp(min=1e-6)))
        return self.diffusion(batch | {"image": self.scale * z}, draws)

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        with torch.no_grad():
            return self.parent.decode(self.diffusion.sample(labels, noise, how) / self.scale)
