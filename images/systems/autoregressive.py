"""Absorbing diffusion of grey levels: an autoregressive model for every order of the pixels at once.

Source: Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces" (arXiv 2107.03006);
Hoogeboom et al. 2022, "Autoregressive diffusion models" (arXiv 2110.02037).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion_core import grid, guidance, sample
from diffusion_core.denoise import Denoiser
from diffusion_core.denoise.classifier import Classifier
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.embed import sinusoidal_positions
from diffusion_core.noise import Noise
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.categorical.orders import order_agnostic_loss
from diffusion_core.schedule import RectifiedFlow
from diffusion_core.solvers.categorical import reveal
from images.systems import Parts, Sampling, System, dropped

Tokens = Int64[Tensor, "batch channels height width"]


class TokenNetwork(nn.Module):
    """``(tokens, t, cond) -> logits``: a network of images, between an embedding of tokens and logits of levels.

    Args:
        parts: where the network comes from.
        levels: of each channel; the token ``levels`` is MASK.
        width: of the embedding of a token.
        n_classes: of the network.
    """

    def __init__(self, parts: Parts, levels: int, width: int, n_classes: int) -> None:
        super().__init__()
        self.levels = levels
        self.embedding = nn.Embedding(levels + 1, width)
        with torch.no_grad():
            # neighbours in brightness begin alike; an even width's worth of sinusoids, MASK apart from all levels
            self.embedding.weight[:levels] = sinusoidal_positions(levels, width + width % 2)[:, :width]
        channels = parts.shape[0]
        self.network = parts.network(channels=width * channels, out_channels=levels * channels, n_classes=n_classes)

    def forward(
        self, tokens: Tokens, t: Float[Tensor, " batch"], cond: dict[str, Tensor] | None = None
    ) -> Float[Tensor, "batch channels height width levels"]:
        x = self.embedding(tokens).movedim(-1, 2).flatten(1, 2)
        return self.network(x, t, cond).unflatten(1, (-1, self.levels)).movedim(2, -1)


class AnyOrder(System):
    """``p(image | label)`` over grey levels, pixel by pixel in any order, or several pixels at once.

    The loss is the bound on ``-log2 p``, in bits per dimension. Sampling in as many steps as an image has entries is
    exact ancestral sampling of the model in a random order; fewer steps reveal several entries at once, each for
    itself. Of `Sampling` only ``steps`` and ``guidance_scale`` count.

    Args:
        parts: what it is put together from; of the configuration's groups only the network counts.
        levels: even steps of brightness of each channel, to which images are rounded.
        width: of the embedding of a level.
        label_dropout: share of labels that training replaces by none.
    """

    def __init__(self, parts: Parts, levels: int = 17, width: int = 16, label_dropout: float = 0.1) -> None:
        super().__init__(parts)
        if not 2 <= levels <= 256:
            raise WorkbenchError(f"system.levels: got {levels}; expected 2 to 256 steps of brightness.")
        if width < 2:
            raise WorkbenchError(f"system.width: got {width}; expected at least 2.")
        self.levels, self.label_dropout = levels, label_dropout
        self.entries = math.prod(parts.shape)
        # the linear survival: at time t a share 1 - t of the entries is known
        process = Absorbing(RectifiedFlow(), levels)
        self.process = process
        self.denoiser = Classifier(TokenNetwork(parts, levels, width, parts.n_classes), process)

    def tokens(self, images: Float[Tensor, "n c h w"]) -> Tokens:
        """The nearest level of each entry."""
        return torch.round((images.clamp(-1.0, 1.0) + 1.0) * (0.5 * (self.levels - 1))).long()

    def images(self, tokens: Tokens) -> Float[Tensor, "n c h w"]:
        """Levels as numbers in [-1, 1]."""
        return tokens.float() * (2.0 / (self.levels - 1)) - 1.0

    def condition(self, labels: Int64[Tensor, " n"]) -> dict[str, Tensor] | None:
        """The network's condition."""
        return {"label": labels} if self.n_classes else None

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        cond = self.condition(dropped(batch["label"], self.n_classes, self.label_dropout, draws))
        nats = order_agnostic_loss(self.denoiser, self.tokens(batch["image"]), cond, draws)
        return nats / (self.entries * math.log(2.0))

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        n, device, cond = len(labels), labels.device, self.condition(labels)
        orders = noise.uniform((n, self.entries), torch.float64, device).argsort(1)
        plan = reveal(self.process, grid.uniform(min(how.steps, self.entries)), self.entries, orders)
        denoiser: Denoiser = self.denoiser
        if how.guidance_scale != 1.0 and cond is not None:
            null = self.condition(torch.full_like(labels, self.n_classes))
            denoiser = guidance.classifier_free(denoiser, null, how.guidance_scale)
        start = torch.full((n, *self.shape), self.process.mask, device=device)
        return self.images(sample.sample(denoiser, plan, start, cond, noise))
