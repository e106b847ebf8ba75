"""Zero terminal SNR: nothing of the image is left at t = 1, in training as in sampling; and guidance rescaled.

Source: Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed" (arXiv 2305.08891).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core import guidance
from diffusion_core.denoise import Denoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import given
from diffusion_core.noise import Noise
from diffusion_core.schedule import Schedule, Shifted, ZeroTerminal, scaled_linear_betas
from images.systems import Parts, Sampling, System, draw
from images.systems.diffusion import Diffusion


def latent_betas(
    size: int, base: int = 64, n: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, rescale: bool = True
) -> Schedule:
    """Latent diffusion's betas, for images of ``size`` pixels, with or without signal at t = 1.

    What is left of an image at t = 1 shows in its mean: noise of ``size^2`` pixels has a mean of width ``1 / size``.
    The betas were made for 64 x 64; shifted by ``size / 64`` they leave as much of a smaller image's brightness.

    Args:
        size: side of the images, pixels.
        base: side for which the betas were made, pixels; ``base = size`` is no shift.
        n, beta_start, beta_end: of `schedule.scaled_linear_betas`.
        rescale: to zero terminal SNR.

    Source: the rescaling Lin et al. 2024, algorithm 1; the shift Hoogeboom et al. 2023, section 3.1 (arXiv 2301.11093).
    """
    if size < 1 or base < 1:
        raise WorkbenchError(f"latent_betas: got size={size}, base={base}; expected pixels, at least 1.")
    schedule = Shifted(scaled_linear_betas(n, beta_start, beta_end), size / base)
    return ZeroTerminal(schedule) if rescale else schedule


class RescaledGuidance(System):
    """A diffusion whose guided estimates are given back the spread of unguided ones.

    Args:
        parts: what it is put together from.
        phi: share of the rescaled estimate in the one that is used; 0: classifier-free guidance as it is.
        label_dropout: share of labels that training replaces by none.

    Raises:
        WorkbenchError: phi is no share, or the prediction gives no image at t = 1, as eps without signal.

    Source: Lin et al. 2024, section 3.4.
    """

    def __init__(self, parts: Parts, phi: float = 0.7, label_dropout: float = 0.1) -> None:
        super().__init__(parts)
        if not 0.0 <= phi <= 1.0:
            raise WorkbenchError(f"system.phi: got {phi}; expected a share in [0, 1].")
        self.phi = phi
        self.diffusion = Diffusion(parts, label_dropout=label_dropout)
        # sampling begins at the last step: a prediction that says nothing there is refused now, not after training
        self.diffusion.denoiser.bind(torch.ones(1, dtype=torch.float64))

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        return self.diffusion(batch, draws)

    def guided(self, labels: Int64[Tensor, " n"], scale: float) -> Denoiser:
        """The denoiser under rescaled guidance; with scale 1 or without labels the network's own."""
        plain = self.diffusion.denoiser
        if scale == 1.0 or not self.diffusion.conditional:
            return plain
        null = self.diffusion.condition(torch.full_like(labels, self.n_classes))
        return guidance.Rescaled(plain, given(plain, null), scale, self.phi)

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        denoiser, table = self.guided(labels, how.guidance_scale), how.table(self.diffusion.denoiser.schedule)
        cond = self.diffusion.condition(labels)
        return draw(denoiser, table, (len(labels), *self.shape), noise, labels.device, cond)
