"""Denoising diffusion GAN: four large steps, each drawn by a generator that a discriminator cannot tell from the truth.

Source: Xiao et al. 2022, "Tackling the generative learning trilemma with denoising diffusion GANs" (arXiv 2112.07804).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call

from diffusion_core import grid
from diffusion_core.distill import grid_pairs
from diffusion_core.distill.adversarial import (
    Duel,
    denoising_duel,
    discriminator_loss,
    generator_loss,
    posterior_sample,
)
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.embed import Condition
from diffusion_core.nn.residual import convolution
from diffusion_core.noise import Noise
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Times
from images.systems import Parts, Sampling, System


class Discriminator(nn.Module):
    """``(x_s, x_t, s, t, cond) -> logit``: is x_s real, given x_t?

    Args:
        channels, size: of the images.
        n_classes: labels that it is told; 0: none.
        width: of the first layer; doubled with every halving, down to 4 pixels.
    """

    def __init__(self, channels: int, size: int, n_classes: int, width: int = 32) -> None:
        super().__init__()
        self.inlet = convolution(2 * channels, width)
        layers: list[nn.Conv2d] = []
        while size > 4:
            layers.append(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1))
            width, size = 2 * width, size // 2
        layers.append(nn.Conv2d(width, width, 3, padding=1))
        self.layers = nn.ModuleList(layers)
        self.condition = Condition(channels, 128, 32, n_classes)
        self.shifts = nn.ModuleList(nn.Linear(128, layer.out_channels) for layer in layers)
        self.head = nn.Linear(width * size**2, 1)
        for layer in (self.inlet, *layers):
            # torch's own beginning halves what passes a layer, and the time is all that is left to judge by
            nn.init.kaiming_normal_(layer.weight, a=0.2)

    def forward(
        self, x_s: Tensor, x_t: Tensor, s: Times, t: Times, cond: dict[str, Tensor] | None
    ) -> Float[Tensor, " batch"]:
        _, embedding, _ = self.condition(x_t, t.to(x_t.dtype), cond)
        h = self.inlet(torch.cat([x_s, x_t], 1))
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            h = layer(nn.functional.leaky_relu(h, 0.2)) + shift(embedding)[..., None, None]
        return self.head(nn.functional.leaky_relu(h, 0.2).flatten(1))[:, 0]


class DenoisingGan(System):
    """``x_s ~ q(x_s | x_t, G(x_t, z, t))`` in few steps. Both players have one loss, each sees the other held still.

    Args:
        parts: what it is put together from; the schedule should leave no signal at t = 1.
        steps: of the chain.
        latent: size of z; 0: none, the generator is a function of x_t alone.
        r1_weight: of the gradient penalty.
        width: of the discriminator.
        pace: learning rate of the generator in units of the discriminator's, which has to keep up with it.

    Source: Xiao et al. 2022, section 3.2; the two rates Heusel et al. 2017 (arXiv 1706.08500). `Sampling` does not
    count: training fixes the steps.
    """

    def __init__(
        self,
        parts: Parts,
        steps: int = 4,
        latent: int = 32,
        r1_weight: float = 0.05,
        width: int = 48,
        pace: float = 0.2,
    ) -> None:
        super().__init__(parts)
        if min(steps, width) < 1 or latent < 0 or r1_weight < 0.0 or not pace > 0.0:
            raise WorkbenchError(
                f"system: got steps={steps}, latent={latent}, r1_weight={r1_weight}, width={width}, pace={pace}; "
                "expected steps and width of at least 1, pace above 0, and no negative number."
            )
        self.generator = parts.network(latent_dim=latent)
        self.discriminator = Discriminator(parts.shape[0], parts.shape[1], parts.n_classes, width)
        self.schedule, self.steps, self.latent, self.r1_weight = parts.schedule, steps, latent, r1_weight
        self.pace = pace
        # one optimizer, whose steps do not depend on a gradient's length: a step of a weight in units of `pace` is
        # shorter by `pace`
        for weight in self.generator.parameters():
            weight.data /= pace

    @property
    def times(self) -> Times:
        """The chain's grid."""
        return grid.uniform(self.steps)

    def condition(self, labels: Int64[Tensor, " n"]) -> dict[str, Tensor]:
        """What both players are told."""
        return {"label": labels} if self.n_classes else {}

    def generate(self, x_t: Tensor, z: Tensor, t: Times, cond: dict[str, Tensor]) -> Tensor:
        """``G(x_t, z, t)``, an image in (-1, 1)."""
        latent = {"latent": z} if self.latent else {}
        weights = {name: self.pace * weight for name, weight in self.generator.named_parameters()}
        return torch.tanh(functional_call(self.generator, weights, (x_t, t.to(x_t.dtype), cond | latent)))

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        x0, cond = batch["image"], self.condition(batch["label"])
        duel = denoising_duel(
            self.generate, self.schedule, x0, cond, draws, grid_pairs(self.times), max(self.latent, 1)
        )
        return self.fooling(duel, cond) + discriminator_loss(self.discriminator, duel, cond, r1_weight=self.r1_weight)

    def fooling(self, duel: Duel, cond: dict[str, Tensor]) -> Float[Tensor, " batch"]:
        """The generator's loss; no gradient reaches the discriminator."""
        still = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}

        def judged(*arguments: object) -> Tensor:
            return functional_call(self.discriminator, still, arguments)

        return generator_loss(judged, duel, cond)

    @torch.no_grad()
    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        n, device, process, cond = len(labels), labels.device, Gaussian(self.schedule), self.condition(labels)
        x = process.prior(noise.normal((n, *self.shape), torch.float32, device))
        for t, s in zip(self.times[:-1], self.times[1:], strict=True):
            z = noise.normal((n, max(self.latent, 1)), torch.float32, device)
            at, to = t.expand(n).to(device), s.expand(n).to(device)
            x = posterior_sample(
                process, x, self.generate(x, z, at, cond), at, to, noise.normal(x.shape, x.dtype, device)
            )
        return x
