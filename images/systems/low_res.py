"""The base of a cascade: a diffusion of small images, on the same task as the system that enlarges them.

Source: Ho et al. 2022, "Cascaded diffusion models for high fidelity image generation" (arXiv 2106.15282).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise
from diffusion_core.process.gaussian import Gaussian
from images.systems import Parts, Sampling, System, draw
from images.systems.diffusion import Diffusion


class LowRes(System):
    """A diffusion of images averaged to a smaller side.

    Args:
        parts: what it is put together from.
        factor: side of the images over side of the small ones.
        label_dropout: share of labels that training replaces by none.
    """

    def __init__(self, parts: Parts, factor: int = 2, label_dropout: float = 0.1) -> None:
        super().__init__(parts)
        channels, height, width = parts.shape
        if factor < 2 or height % factor or width % factor:
            raise WorkbenchError(
                f"system.factor: got {factor} for images of {height} pixels; expected at least 2, and a divisor of it."
            )
        self.factor = factor
        self.small = (channels, height // factor, width // factor)
        self.diffusion = Diffusion(replace(parts, shape=self.small), label_dropout=label_dropout)

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        return self.diffusion(batch | {"image": self.shrink(batch["image"])}, draws)

    def shrink(self, images: Float[Tensor, "n c height width"]) -> Float[Tensor, "n c h w"]:
        """Averages over ``factor x factor`` pixels."""
        return avg_pool2d(images, self.factor)

    def enlarge(self, small: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        """Small images at the full side, bilinear."""
        return interpolate(small, scale_factor=float(self.factor), mode="bilinear", align_corners=False)

    def draw_small(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling, until: float = 0.0
    ) -> Float[Tensor, "n c h w"]:
        """Small images; with ``until`` > 0 left as noisy as they are at that time."""
        times = how.table(self.diffusion.denoiser.schedule).times
        shape = (len(labels), *self.small)
        if until >= float(times[0]):
            return Gaussian(self.diffusion.denoiser.schedule).prior(noise.normal(shape, torch.float32, labels.device))
        end = torch.tensor([until], dtype=torch.float64)
        # a table's times are where it evaluates: some solvers do so twice a step
        grid = torch.cat([times[times > until].unique().flip(0), end])
        plan = how.solver(self.diffusion.denoiser.schedule, grid)
        denoiser = self.diffusion.guided(labels, how.guidance_scale)
        return draw(denoiser, plan, shape, noise, labels.device, self.diffusion.condition(labels))

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        """Small images, enlarged: what the cascade would be without its second half."""
        return self.enlarge(self.draw_small(labels, noise, how))
