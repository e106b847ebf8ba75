"""Classifier guidance: an unconditional diffusion, and a classifier of its noisy images that steers it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion_core import guidance
from diffusion_core.denoise import Denoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.attention import Attention
from diffusion_core.nn.embed import Condition, grid_positions
from diffusion_core.nn.residual import ResidualBlock, convolution, group_norm
from diffusion_core.noise import Noise
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Times
from images.systems import Parts, Sampling, System, built_on, draw
from images.systems.diffusion import Diffusion


class NoisyEncoder(nn.Module):
    """``(x_t, t) -> logits``: the way down of ADM's U-Net, and attention that pools what is left.

    Args:
        channels, size: of the images; size divisible by ``patch * 2 ** (len(widths) - 1)``.
        n_classes: of the labels.
        widths: channels per resolution, finest first; the last divisible by 4 and by ``heads``.
        heads: of the attention at the end.
        patch: the network sees ``patch x patch`` pixels as channels of one.

    Source: Dhariwal & Nichol 2021, section 4.2 (arXiv 2105.05233). They attend to the mean of the last map from 8 x 8
    pixels on; our mean is of the attended tokens.
    """

    position: Tensor

    def __init__(
        self, channels: int, size: int, n_classes: int, widths: Sequence[int] = (16, 32), heads: int = 2, patch: int = 1
    ) -> None:
        super().__init__()
        factor = patch * 2 ** (len(widths) - 1)
        if not widths or size % factor or widths[-1] % 4 or n_classes < 2:
            raise WorkbenchError(
                f"noisy classifier: got size={size}, patch={patch}, widths={list(widths)}, n_classes={n_classes}; "
                f"expected a size divisible by {factor}, a last width divisible by 4, and at least two classes."
            )
        self.patch, time_dim = patch, 64
        self.condition = Condition(channels, 4 * time_dim, time_dim)
        self.inlet = convolution(channels * patch**2, widths[0])
        blocks, width = [], widths[0]
        for i, outlet in enumerate(widths):
            blocks.append(ResidualBlock(width, outlet, "scale_shift", "down" if i else None))
            blocks.append(ResidualBlock(outlet, outlet, "scale_shift"))
            width = outlet
        self.blocks = nn.ModuleList(blocks)
        self.sizes = [block.modulation for block in blocks]
        self.modulation = nn.Linear(4 * time_dim, sum(self.sizes))
        self.norm = group_norm(width)
        self.register_buffer("position", grid_positions(size // factor, width), persistent=False)
        self.attention = Attention(width, heads)
        self.head = nn.Linear(width, n_classes)

    def forward(
        self, x_t: Float[Tensor, "batch channels size size"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        x, embedding, _ = self.condition(x_t, t, None)
        modulations = self.modulation(nn.functional.silu(embedding)).split(self.sizes, dim=1)
        h = self.inlet(nn.functional.pixel_unshuffle(x, self.patch))
        for block, modulation in zip(self.blocks, modulations, strict=True):
            h = block(h, modulation)
        tokens = nn.functional.silu(self.norm(h)).flatten(2).mT
        return self.head((tokens + self.attention(tokens + self.position)).mean(1))


class ClassifierGuidance(System):
    """``p(x) p(label | x_t)^scale``: the parent's images, steered towards a class.

    Trains the classifier alone, on images noised by the parent's schedule; the parent stays as it is.

    Args:
        parts: what it is put together from; of the configuration's groups only ``times`` and the parent count.
        widths, heads, patch: of the `NoisyEncoder`.

    Source: Dhariwal & Nichol 2021, section 4, algorithms 1 and 2. Here the gradient is part of the score, as in
    algorithm 2, with every solver.
    """

    def __init__(self, parts: Parts, widths: Sequence[int] = (16, 32), heads: int = 2, patch: int = 1) -> None:
        super().__init__(parts)
        self.parent = built_on(parts, Diffusion, "a diffusion (system=ddpm)")
        if self.parent.conditional:
            raise WorkbenchError(
                "parent: got a diffusion that is told the label; expected one that is not: train system=ddpm, and "
                "leave the label to the classifier."
            )
        self.classifier = NoisyEncoder(parts.shape[0], parts.shape[1], parts.n_classes, widths, heads, patch)
        self.times = parts.times

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        x0, labels = batch["image"], batch["label"]
        t = self.times(draws, len(x0))
        x_t = Gaussian(self.parent.denoiser.schedule).corrupt(x0, t, draws.normal(x0.shape, x0.dtype))
        return -self.log_prob(x_t, t, labels)

    def log_prob(
        self, x_t: Float[Tensor, "batch c h w"], t: Times, labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """``log p(label | x_t)``, nats; 0 for the null label.

        Args:
            t: (batch,), or one time for all.
        """
        logits = self.classifier(x_t, t.to(x_t.device, x_t.dtype).expand(len(x_t)))
        # the null label's column stands for certainty: no information, no gradient
        whole = nn.functional.pad(logits.log_softmax(1), (0, 1))
        return whole.gather(1, labels[:, None])[:, 0]

    def guided(self, labels: Int64[Tensor, " n"], scale: float) -> Denoiser:
        """The parent's denoiser times the classifier; scale 1 is Bayes' rule, 0 the parent alone."""
        if not math.isfinite(scale):
            raise WorkbenchError(f"guidance_scale: got {scale}; expected a finite number: 1 is Bayes' rule.")
        steered = self.parent.denoiser * guidance.classifier(lambda x_t, t: self.log_prob(x_t, t, labels), scale)
        return cast(Denoiser, steered)

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        denoiser, table = self.guided(labels, how.guidance_scale), how.table(self.parent.denoiser.schedule)
        return draw(denoiser, table, (len(labels), *self.shape), noise, labels.device)

    @torch.no_grad()
    def accuracy(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], t: float, noise: Noise) -> float:
        """Share of images, noised to time ``t``, whose class the classifier names."""
        times = torch.full((len(images),), t, dtype=torch.float64, device=images.device)
        eps = noise.normal(images.shape, images.dtype, images.device)
        x_t = Gaussian(self.parent.denoiser.schedule).corrupt(images, times, eps)
        return float((self.classifier(x_t, times.to(x_t.dtype)).argmax(1) == labels).double().mean())
