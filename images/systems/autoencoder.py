"""The first stage of latent diffusion: an autoencoder whose latents a diffusion can learn.

Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models" (arXiv 2112.10752).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from diffusion_core.distill.adversarial import HINGE
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.likelihood.decode import normal_kl
from diffusion_core.nn.autoencoder import KlAutoencoder, PatchDiscriminator, VqAutoencoder
from images.systems import Component, Parts


class Autoencoder(Component):
    """Images to latents ``factor`` times smaller on a side, and back.

        loss = |x - decode(z)|^2 + kl_weight KL(N(mean, var) || N(0, 1)),    z = mean + std eps        (kind "kl")
        loss = |x - decode(z_q)|^2 + quantisation error of z_q                                         (kind "vq")

    both per pixel and channel of the image, plus ``adversarial`` times the hinge loss of a patch discriminator.

    Args:
        parts: what it is put together from; of the configuration's groups none counts.
        kind: "kl" or "vq".
        factor: side of the images over side of the latents: 1, 2, 4 or 8.
        latent_channels, widths: of the autoencoder.
        kl_weight: of the divergence.
        codes: words in the book of "vq".
        adversarial: weight of the patch discriminator; 0: none.

    Source: Rombach et al. 2022, section 3.1 and appendix G. They compare images by a perceptual loss and absolute
    differences, here squared differences alone: no network that was trained on photographs is asked.
    """

    def __init__(
        self,
        parts: Parts,
        kind: str = "kl",
        factor: int = 2,
        latent_channels: int = 4,
        widths: Sequence[int] = (16, 32),
        kl_weight: float = 1e-6,
        codes: int = 256,
        adversarial: float = 0.0,
    ) -> None:
        super().__init__(parts)
        if kind not in ("kl", "vq"):
            raise WorkbenchError(f"system.kind: got {kind!r}; expected kl or vq.")
        if kl_weight < 0.0 or adversarial < 0.0:
            raise WorkbenchError(
                f"system: got kl_weight={kl_weight}, adversarial={adversarial}; expected weights that are not negative."
            )
        channels, size, _ = parts.shape
        self.model: KlAutoencoder | VqAutoencoder
        if kind == "kl":
            self.model = KlAutoencoder(channels, size, factor, latent_channels, widths)
        else:
            self.model = VqAutoencoder(channels, size, factor, latent_channels, widths, codes=codes)
        self.factor, self.kl_weight, self.adversarial = factor, kl_weight, adversarial
        self.latent_shape = self.model.latent_shape
        self.discriminator = PatchDiscriminator(channels, widths[0]) if adversarial > 0.0 else None

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        x = batch["image"]
        decoded, regular = self.trained_on(x, draws)
        loss = (x - decoded).square().flatten(1).mean(1) + regular
        return loss if self.discriminator is None else loss + self.adversarial * self.contest(x, decoded)

    def trained_on(
        self, x: Float[Tensor, "batch c h w"], draws: Draws
    ) -> tuple[Float[Tensor, "batch c h w"], Float[Tensor, " batch"]]:
        """What becomes of the images in training, and what the latents cost."""
        if isinstance(self.model, VqAutoencoder):
            z_q, _, error = self.model.quantise(self.model.encode(x))
            return self.model.decode(z_q), error
        mean, log_variance = self.model.encode(x)
        z = mean + (0.5 * log_variance).exp() * draws.normal(mean.shape, mean.dtype).to(mean.device)
        zero = torch.zeros(())
        # the sum over the latents, per pixel of the image: the weight is that of a loss summed over both
        divergence = normal_kl(mean, log_variance, zero, zero).flatten(1).sum(1)
        return self.model.decode(z), self.kl_weight * divergence / x[0].numel()

    def contest(
        self, x: Float[Tensor, "batch c h w"], decoded: Float[Tensor, "batch c h w"]
    ) -> Float[Tensor, " batch"]:
        """The losses of both players, in each of which the other one is held still."""
        discriminator = self.discriminator
        assert discriminator is not None
        # a copy of the names, not of the numbers: the same weights, through which no gradient flows
        still = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        fools = HINGE.generator(functional_call(discriminator, still, (decoded,)))
        tells = HINGE.real(discriminator(x)) + HINGE.fake(discriminator(decoded.detach()))
        return (fools + tells).flatten(1).mean(1)

    def encode(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch latent height width"]:
        """The latents that a diffusion learns: the means of "kl"; of "vq" those before they are quantised."""
        found = self.model.encode(x)
        return found if isinstance(found, Tensor) else found[0]

    def decode(self, z: Float[Tensor, "batch latent height width"]) -> Float[Tensor, "batch c h w"]:
        """The image of a latent; "vq" takes the nearest words first."""
        if isinstance(self.model, VqAutoencoder):
            z = self.model.quantise(z)[0]
        return self.model.decode(z)

    @torch.no_grad()
    def reconstructed(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        """There and back."""
        return self.decode(self.encode(x))
